"""Calibration as pages show it: what each instrument recovered and where it raised false alarms, and whether that is still so."""

from __future__ import annotations

from typing import Any

from nullius.lab import calibration
from nullius.web import registry


def rests() -> dict[str, list[str]]:
    """Return instrument → the papers whose claims rest on it."""
    found: dict[str, list[str]] = {}
    for slug, study in registry.described().items():
        for name in dict.fromkeys(name for claim in study["claims"] for name in claim["rests_on"]):
            found.setdefault(name, []).append(slug)
    return found


def table() -> list[dict[str, Any]]:
    """Return a row for each instrument that was calibrated here, or that a claim rests on."""
    stored, resting = _stored(), rests()
    return [{**_row(name, stored.get(name)), "studies": resting.get(name, [])} for name in sorted({*stored, *resting})]


def of(name: str) -> dict[str, Any]:
    """Return one instrument's row."""
    return _row(name, _stored().get(name))


def _row(name: str, found: dict[str, Any] | None) -> dict[str, Any]:
    blank = {"name": name, "title": name.replace("-", " ").replace("_", " "), "about": "", "recovered": None, "alarms": None, "last": None}
    return {**blank, "version": "", "state": "never calibrated", **(found or {})}


def _stored() -> dict[str, dict[str, Any]]:
    """What the lab has stored, by instrument."""
    return calibration.latest()
