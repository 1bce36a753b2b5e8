"""Dossiers: all verdicts about one subject; and the page of all verdicts so far."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from nullius.errors import UsageError, nearest
from nullius.lab import journal, studies, wording
from nullius.lab.figures import GLYPH
from nullius.lab.studies import Study


def dossier(subject: str) -> dict[str, Any]:
    """Return the documented shape nullius.dossier/1 for a subject, by the name it was run under. Raises UsageError when nothing was run."""
    verdicts = journal.latest_verdicts(subject=subject)
    if not verdicts:
        known = sorted({record["subject"]["name"] for record in journal.list_runs(limit=10_000, state="done")})
        raise UsageError(f"no verdicts on '{subject}'{nearest(subject, known)}; make some: nullius dossier {shlex.quote(subject)} --run")
    questions: dict[str, list[dict[str, Any]]] = {}
    for slug in sorted({verdict["slug"] for verdict in verdicts}):
        if slug in studies.modules():
            own = [verdict for verdict in verdicts if verdict["slug"] == slug]
            questions.setdefault(studies.question(slug), []).append({"slug": slug, "verdicts": own})
    missing = sorted(studies.modules().keys() - {verdict["slug"] for verdict in verdicts})
    return {"schema": "nullius.dossier/1", "subject": verdicts[-1]["subject"], "questions": questions, "missing": missing}


def missing(subject: str, *, full: bool) -> list[Study]:
    """Return the studies that have no finished run of this scale on a subject yet."""
    done = {record["slug"] for record in journal.list_runs(subject=subject, limit=100_000, state="done") if record["full"] == full}
    return [studies.get(slug) for slug in sorted(studies.modules()) if slug not in done]


def results_page() -> str:
    """Return the verdict on every claim registered today as Markdown: a table per study, a column per subject and scale."""
    verdicts = [verdict for verdict in journal.latest_verdicts() if verdict["slug"] in studies.modules()]
    lines = [
        "# Results so far",
        "",
        "Made by `nullius results --out docs/results.md` from the journal of runs. Each cell: verdict; effect with its 95% interval; control with",
        "its own; number of items; seed of the run. A verdict is computed from samples by the rule in [verdicts.md](verdicts.md); nothing here is",
        "typed. Verdicts on claims that have since been reworded are left out. What each study measures: [studies/](studies/).",
        "",
    ]
    for slug in sorted({verdict["slug"] for verdict in verdicts}):
        lines += _table(slug, [verdict for verdict in verdicts if verdict["slug"] == slug])
    subjects = {verdict["subject"]["sha256"]: verdict["subject"] for verdict in verdicts}
    lines += ["## Subjects", ""]
    for subject in sorted(subjects.values(), key=lambda entry: entry["name"]):
        about = subject["provenance"].get("quantisation") or "full precision"
        size = f"{subject['parameters'] / 1e6:.0f} M parameters"
        lines.append(f"- **{subject['name']}**: {size}, {about}, weights sha256 `{subject['sha256'][:16]}`")
    return "\n".join(lines) + "\n"


def _table(slug: str, verdicts: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = sorted({(verdict["subject"]["name"], verdict["full"]) for verdict in verdicts})
    heads = [f"{name}{' (full)' if full else ''}" for name, full in columns]
    lines = [f"## {slug}", "", "| claim | published | " + " | ".join(heads) + " |", "| --- | --- |" + " --- |" * len(heads)]
    for claim in studies.get(slug).claims:
        own = {(v["subject"]["name"], v["full"]): v for v in verdicts if v["digest"] == claim.digest}
        cells = [_cell(own[column]) if column in own else f"{GLYPH['not run']} not run" for column in columns]
        published = "–" if claim.published is None else str(claim.published)
        lines.append(f"| **{claim.id}** {claim.wording} | {published} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _cell(verdict: Mapping[str, Any]) -> str:
    word = f"{GLYPH[verdict['word']]} {verdict['word']}"
    if not verdict["effect"]:
        return f"{word}: {verdict['reason']}"

    def numbers(found: Mapping[str, Any]) -> str:
        return wording.interval(found["estimate"], found["lo"], found["hi"])

    return (
        f"{word} {numbers(verdict['effect'])}; control {numbers(verdict['control'])}; n = {verdict['effect']['n']}; seed {verdict['seed']}"
    )
