"""Running again: the same numbers, or which input differs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nullius.errors import UsageError
from nullius.lab import studies
from nullius.lab.lab import Listener
from nullius.lab.runner import run


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side. same: whether every sample agrees to the last bit. differences: input → (before, now)."""

    original: dict[str, Any]
    again: dict[str, Any]
    same: bool
    differences: dict[str, tuple[Any, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Return the documented shape nullius.rerun/1."""
        differences = {name: list(pair) for name, pair in self.differences.items()}
        return {"schema": "nullius.rerun/1", "same": self.same, "differences": differences, "original": self.original, "again": self.again}


def rerun(original: Mapping[str, Any], listener: Listener | None = None) -> Comparison:
    """Repeat a finished run with its subject, seed, scale, options and number of threads."""
    if original["state"] != "done":
        raise UsageError(
            f"run {original['id']} is {original['state']}: only finished runs can be repeated; start it anew with `nullius run`"
        )
    about = original["environment"]
    again = run(
        studies.get(original["slug"]),
        original["subject"]["name"],
        seed=original["seed"],
        full=original["full"],
        options=original["options"],
        device=about["device"] if about["device"] == "cpu" else None,
        listener=listener,
        rerun_of=original["id"],
        threads=about["threads"],
    ).to_dict()
    same = again["environment"]["samples"] == about["samples"]
    return Comparison(dict(original), again, same, differences(original, again))


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the inputs in which two records differ: subject, seed, scale, options, source, versions, device, threads."""
    pairs = {name: (a[name], b[name]) for name in ("seed", "full", "options")}
    pairs["subject"] = (a["subject"].get("sha256", "")[:12], b["subject"].get("sha256", "")[:12])
    before, now = a["environment"] or {}, b["environment"] or {}
    for name in ("study_source", "nullius_source", "python", "platform", "device", "threads"):
        pairs[name] = (before.get(name), now.get(name))
    for name in before.get("packages", {}):
        pairs[name] = (before["packages"][name], now.get("packages", {}).get(name))
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
