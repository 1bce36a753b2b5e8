"""Running again: the same numbers, or which input differs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nullius.errors import UsageError
from nullius.lab import studies
from nullius.lab.lab import Listener
from nullius.lab.runner import run
from nullius.lab.studies import Study

if TYPE_CHECKING:
    from nullius.models.language_model import LanguageModel


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side.

    same: whether every sample agrees to the last bit. changed: claims whose samples do not. differences: input → (before, now).
    """

    original: dict[str, Any]
    again: dict[str, Any]
    same: bool
    changed: tuple[str, ...]
    differences: dict[str, tuple[Any, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Return the documented shape nullius.rerun/1."""
        return {
            "schema": "nullius.rerun/1",
            "same": self.same,
            "changed": list(self.changed),
            "differences": {name: list(pair) for name, pair in self.differences.items()},
            "original": self.original,
            "again": self.again,
        }


def rerun(
    original: Mapping[str, Any], listener: Listener | None = None, *, study: Study | None = None, subject: LanguageModel | None = None
) -> Comparison:
    """Repeat a finished run (a record) with its subject, seed, scale, options, device and number of threads.

    study, subject: those of the record when they cannot be found by name. Raises UsageError for a run that did not finish.
    """
    if original["state"] != "done":
        raise UsageError(
            f"run {original['id']} is {original['state']}: only finished runs can be repeated; start it anew with `nullius run {original['slug']}`"
        )
    about = original["environment"]
    again = run(
        study or studies.get(original["slug"]),
        subject or original["asked_subject"],
        seed=original["seed"],
        full=original["full"],
        options=original["options"],
        device=about["device"] if about["device"] == "cpu" else None,  # another GPU is a difference to report, not a reason to refuse
        listener=listener,
        rerun_of=original["id"],
        threads=about["threads"],
    )
    return compare(original, again.to_dict())


def compare(original: Mapping[str, Any], again: Mapping[str, Any]) -> Comparison:
    """Compare the records of two finished runs."""
    before, now = original["samples"], again["samples"]
    same = original["environment"]["samples"] == again["environment"]["samples"]
    changed = tuple(claim for claim in {**before, **now} if before.get(claim) != now.get(claim)) if not same else ()
    return Comparison(dict(original), dict(again), same, changed, differences(original, again))


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the inputs in which two records differ.

    Paper, subject (weights, configuration, tokenizer), seed, scale, options, source files, versions, device, threads.
    """
    pairs = {name: (a[name], b[name]) for name in ("slug", "seed", "full", "options")}
    pairs["subject"] = (a["subject"].get("sha256", "")[:12], b["subject"].get("sha256", "")[:12])
    before, now = a["environment"] or {}, b["environment"] or {}
    for name in ("nullius", "python", "platform", "machine", "device", "device_name", "threads"):
        pairs[name] = (before.get(name), now.get(name))
    kinds = ["packages", "files"] + ["subject"] * ("subject" in before and "subject" in now)  # older records do not say
    for kind in kinds:
        old, new = before.get(kind, {}), now.get(kind, {})
        pairs |= {name: (old.get(name), new.get(name)) for name in sorted({**old, **new})}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
