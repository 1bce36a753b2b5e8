"""The record of a run as plain data: the documented, versioned shape nullius.run/1 (docs/records.md)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nullius.paths import data_dir

if TYPE_CHECKING:
    from nullius.lab.verdicts import Verdict

SCHEMA = "nullius.run/1"
_OF_THE_JOURNAL = ("subject_sha256", "host", "pid", "pid_started", "heartbeat")


@dataclass(frozen=True)
class Record:
    """A finished run. data: the shape nullius.run/1 as the journal holds it; verdicts: those same verdicts as objects."""

    data: dict[str, Any]
    verdicts: tuple[Verdict, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain data."""
        return self.data

    def verdict(self, claim: str) -> Verdict:
        """Return the verdict on one claim. Raises KeyError for a claim that the study does not have."""
        for verdict in self.verdicts:
            if verdict.claim.id == claim:
                return verdict
        raise KeyError(claim)


def shape(
    row: Mapping[str, Any],
    subject: Mapping[str, Any] | None,
    samples: Mapping[str, str],
    verdicts: Sequence[Mapping[str, Any]],
    artefacts: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Build nullius.run/1 from a row of the journal and what belongs to it.

    subject: None for a run that ended before its subject was loaded. samples: claim → digest of its samples.
    """
    folder = data_dir() / "runs" / row["id"]
    return {
        "schema": SCHEMA,
        **{key: value for key, value in row.items() if key not in _OF_THE_JOURNAL},
        "subject": dict(subject) if subject else {"name": row["asked_subject"]},
        "gates": row["gates"] or [],
        "notes": row["notes"] or [],
        "samples": dict(samples),
        "verdicts": list(verdicts),
        "artefacts": [{**entry, "path": str(folder / entry["name"])} for entry in artefacts],
        "rerun": f"nullius rerun {row['id']}",
    }


def dumps(value: Any, indent: int | None = None) -> str:
    """Return strict JSON, which has no infinity: the open end of an interval becomes null."""
    return json.dumps(_finite(value), ensure_ascii=False, indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list | tuple) else value
