"""Calibration as pages show it: what each instrument recovered and where it raised false alarms, and whether that is still so."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Any

from nullius.lab import calibration
from nullius.lab.schema import url
from nullius.web import registry

FRESH_SECONDS = 10


def rests() -> dict[str, list[str]]:
    """Return instrument → the papers whose claims rest on it."""
    found: dict[str, list[str]] = {}
    for slug, study in registry.described().items():
        for name in dict.fromkeys(name for claim in study["claims"] for name in claim["rests_on"]):
            found.setdefault(name, []).append(slug)
    return found


def table() -> list[dict[str, Any]]:
    """Return a row for each instrument that was calibrated here, or that a claim rests on."""
    stored, resting = _stored(_now()), rests()
    return [{**_row(name, stored.get(name)), "studies": resting.get(name, [])} for name in sorted({*stored, *resting})]


def of(name: str) -> dict[str, Any]:
    """Return one instrument's row."""
    return _row(name, _stored(_now()).get(name))


def _row(name: str, found: dict[str, Any] | None) -> dict[str, Any]:
    blank: dict[str, Any] = {"name": name, "title": name, "about": "", "recovered": None, "alarms": None, "last": None, "by_nature": []}
    return {**blank, "version": "", "state": calibration.NEVER, **(found or {})}


def _now() -> tuple[str, int]:
    """The database, and a moment of some seconds: what is stored is compared with the instruments' sources, which are not read for each page."""
    return str(url()), int(time.monotonic() // FRESH_SECONDS)


@lru_cache(maxsize=2)
def _stored(_moment: tuple[str, int]) -> dict[str, dict[str, Any]]:
    return calibration.latest()
