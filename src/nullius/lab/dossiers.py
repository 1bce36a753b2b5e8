"""Dossiers: all verdicts about one subject; and the page of all verdicts so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nullius.errors import UsageError, nearest
from nullius.lab import journal, studies
from nullius.lab.studies import Study

GLYPH = {"holds": "●", "fails": "✕", "inconclusive": "◐", "out of reach": "○"}


def dossier(subject: str) -> dict[str, Any]:
    """Return the documented shape nullius.dossier/1 for a subject, by the name it was run under. Raises UsageError when nothing was run."""
    verdicts = journal.latest_verdicts(subject=subject)
    if not verdicts:
        known = sorted({record["subject"]["name"] for record in journal.list_runs(limit=10_000, state="done")})
        raise UsageError(f"no verdicts on '{subject}'{nearest(subject, known)}; make some: nullius dossier {subject} --run")
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
    """Return every verdict so far as Markdown: a table per study, a column per subject."""
    verdicts = journal.latest_verdicts()
    lines = [
        "# Results so far",
        "",
        "Made by `nullius results --out docs/results.md` from the journal of runs. Each cell: verdict, effect with its 95% interval, the control in",
        "brackets, and the scale of the run. A verdict is computed from samples by the rule in [verdicts.md](verdicts.md); nothing here is typed.",
        "",
    ]
    for slug in sorted({verdict["slug"] for verdict in verdicts}):
        own = [verdict for verdict in verdicts if verdict["slug"] == slug]
        lines += _table(slug, own)
    subjects = {verdict["subject"]["sha256"]: verdict["subject"] for verdict in verdicts}
    lines += ["## Subjects", ""]
    for subject in sorted(subjects.values(), key=lambda entry: entry["name"]):
        about = subject["provenance"].get("quantisation") or "full precision"
        lines.append(
            f"- **{subject['name']}**: {subject['parameters'] / 1e6:.0f} M parameters, {about}, weights sha256 `{subject['sha256'][:16]}`"
        )
    return "\n".join(lines) + "\n"


def _table(slug: str, verdicts: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = sorted({(verdict["subject"]["name"], verdict["full"]) for verdict in verdicts})
    heads = [f"{name}{' (full)' if full else ''}" for name, full in columns]
    lines = [f"## {slug}", "", "| claim | published | " + " | ".join(heads) + " |", "| --- | --- |" + " --- |" * len(heads)]
    wordings = dict.fromkeys((verdict["claim"], verdict["wording"], str(verdict["published"] or "–")) for verdict in verdicts)
    for claim, wording, published in wordings:
        cells = []
        for name, full in columns:
            found = [
                v
                for v in verdicts
                if v["claim"] == claim and v["subject"]["name"] == name and v["full"] == full and v["wording"] == wording
            ]
            cells.append(_cell(found[-1]) if found else "· not run")
        lines.append(f"| **{claim}** {wording} | {published} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _cell(verdict: Mapping[str, Any]) -> str:
    word = f"{GLYPH[verdict['word']]} {verdict['word']}"
    if not verdict["effect"]:
        return f"{word}: {verdict['reason']}"
    effect, control = verdict["effect"], verdict["control"]
    numbers = f"{effect['estimate']:.2f} [{effect['lo']:.2f}, {effect['hi']:.2f}] ({control['estimate']:.2f})"
    return f"{word} {numbers}, n = {effect['n']}"
