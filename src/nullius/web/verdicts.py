"""Verdicts as pages need them: chips for a card, a matrix for a paper. Read from the journal when it has changed, else from memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from nullius.lab import journal
from nullius.lab.schema import reading, run
from nullius.web import registry

FRESH_SECONDS = 1.0
DECIDED = ("holds", "fails", "inconclusive")
_MEASURED = ("claim", "wording", "word", "reason", "effect", "control", "p_holm", "unit", "digest")
SHOWN = (*_MEASURED, "run", "runs", "agreeing", "full", "finished")


@dataclass
class Index:
    """All current verdicts. stamp: of the journal when they were read. by: (slug, subject's name) → verdicts, in the study's order."""

    stamp: tuple[Any, ...] = ()
    verdicts: list[dict[str, Any]] = field(default_factory=list)
    by: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=dict)
    by_slug: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    seconds: dict[tuple[str, str, bool], float] = field(default_factory=dict)


_index, _looked, _lock = Index(), 0.0, threading.Lock()


def stamp() -> tuple[Any, ...]:
    """Return what changes whenever a run is asked for, begins or ends."""
    query = sa.select(sa.func.count(), sa.func.max(run.c.finished), sa.func.max(run.c.id), sa.func.count().filter(run.c.state == "running"))
    with reading() as connection:
        return tuple(connection.execute(query.select_from(run)).one())


def index() -> Index:
    """Return the verdicts so far; at most a second old."""
    global _index, _looked
    if time.monotonic() - _looked < FRESH_SECONDS and _index.stamp:
        return _index
    with _lock:
        if time.monotonic() - _looked < FRESH_SECONDS and _index.stamp:
            return _index
        now = (*stamp(), str(journal.data_dir()))
        if now != _index.stamp:
            _index = _read(now)
        _looked = time.monotonic()
        return _index


def today() -> list[dict[str, Any]]:
    """Return the verdicts on claims as they are worded today; old verdicts stay with the old words, on their paper's page."""
    wordings = {claim["digest"] for study in registry.described().values() for claim in study["claims"]}
    return [v for v in index().verdicts if v["digest"] in wordings] if wordings else index().verdicts


def forget() -> None:
    """Look at the journal again at the next request: something was asked for or cancelled here."""
    global _looked
    _looked = 0.0


def _read(now: tuple[Any, ...]) -> Index:
    found = Index(stamp=now, verdicts=journal.latest_verdicts())
    for verdict in found.verdicts:
        name = verdict["subject"]["name"]
        found.by.setdefault((verdict["slug"], name), []).append(verdict)
        found.by_slug.setdefault(verdict["slug"], []).append(verdict)
        if verdict["wall_seconds"]:
            # a run that shared its processor took longer than the next one will: its own processor time tells more
            taken = min(verdict["wall_seconds"], verdict["cpu_seconds"] or verdict["wall_seconds"])
            found.seconds[verdict["slug"], name, verdict["full"]] = taken
    return found


def digests(slug: str) -> dict[str, str]:
    """Return digest → id of the claims as worded today."""
    return {claim["digest"]: claim["id"] for claim in registry.claims(slug)}


def everywhere(slug: str) -> dict[str, Any]:
    """Return how many of each word a paper's claims, as worded today, got on all subjects together, and which subjects these are."""
    wordings = digests(slug)
    own = [v for v in index().by_slug.get(slug, []) if v["digest"] in wordings]
    return {"tally": decisive(own), "on": sorted({v["subject"]["name"] for v in own})}


def subjects_of(slug: str) -> list[dict[str, Any]]:
    """Return the subjects that a paper has verdicts on, by name."""
    found = {v["subject"]["sha256"]: v["subject"] for v in index().by_slug.get(slug, [])}
    return sorted(found.values(), key=lambda subject: (subject["name"], subject["sha256"]))


def matrix(slug: str, mine: str = "") -> dict[str, Any]:
    """Return claims × subjects: what a paper says, and what came out on each subject, mine first.

    claims: each with `cells`, one for each of `subjects` (None: not run). earlier: verdicts on wordings that are no longer registered.
    """
    subjects = sorted(subjects_of(slug), key=lambda subject: subject["name"] != mine)
    own = {(v["digest"], v["subject"]["sha256"]): v for v in index().by_slug.get(slug, [])}
    claims = [{**claim, "cells": [_cell(own.get((claim["digest"], s["sha256"]))) for s in subjects]} for claim in registry.claims(slug)]
    for claim in claims:
        claim["scale"] = scale([cell for cell in claim["cells"] if cell], claim["published"])
    today = digests(slug)
    earlier = [_cell_of(v) for v in index().by_slug.get(slug, []) if v["digest"] not in today]
    return {"slug": slug, "subjects": [_about(subject) for subject in subjects], "claims": claims, "earlier": earlier}


def scale(rows: Sequence[Mapping[str, Any]], published: Any = None) -> dict[str, float]:
    """From where to where a plot of effects and controls reaches: everything that is drawn, and zero. Open ends do not count."""
    values = [0.0]
    for row in rows:
        for part in (row["effect"], row["control"]):
            values += [float(part[name]) for name in ("estimate", "lo", "hi") if part and part[name] is not None]
    if isinstance(published, int | float):
        values.append(float(published))
    low, high = min(values), max(values)
    room = (high - low or 1.0) * 0.06
    return {"low": low - room, "high": high + room}


def _about(subject: Mapping[str, Any]) -> dict[str, Any]:
    return {name: subject[name] for name in ("name", "sha256", "parameters", "architecture")}


def _cell(verdict: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return _cell_of(verdict) if verdict else None


def _cell_of(verdict: Mapping[str, Any]) -> dict[str, Any]:
    return {**shown(verdict), "subject": verdict["subject"]["name"]}


def shown(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """Return what pages show of a verdict."""
    return {name: verdict[name] for name in SHOWN}


def expected_seconds(slug: str, subject: str, full: bool = False) -> float | None:
    """Return how long a run is expected to take: as long as the last one like it, else what the study says, larger subjects in proportion."""
    found = index().seconds.get((slug, subject, full))
    if found or full:
        return found
    about = registry.known(slug)
    if about is None:
        return None
    from nullius.models.sources import sources

    own, default = sources().get(subject), sources().get(about["subject"])
    return about["minutes"] * 60 * (max(1.0, own.parameters / default.parameters) if own and default else 1.0)


def recent(since: str, until: str) -> list[dict[str, Any]]:
    """Return the verdicts that runs gave in a span of time (dates, the last one included), newest first."""
    found = [v for v in index().verdicts if since <= (v["finished"] or "")[:10] <= until]
    return sorted(found, key=lambda v: v["finished"], reverse=True)


def decisive(verdicts: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return how many of each word."""
    return {word: sum(v["word"] == word for v in verdicts) for word in (*DECIDED, "out of reach")}
