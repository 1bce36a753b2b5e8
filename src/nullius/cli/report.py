"""What a person reads in the terminal: verdicts as small tables, runs, papers, comparisons, dossiers.

Takes the documented JSON shapes (docs/records.md), so that the same code renders a run that has just ended and one from last year.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from rich.console import Console
from rich.text import Text

from nullius.cli.layout import columns, facts, paragraph, show, verbatim
from nullius.cli.progress import Progress
from nullius.lab.figures import GLYPH

__all__ = ["Progress", "render_compare", "render_dossier", "render_paper", "render_rerun", "render_run", "render_runs"]

COLOUR = {"holds": "green", "fails": "red", "inconclusive": "yellow", "out of reach": "blue", "not run": "dim"}
FILES = {"figure.svg": "figure", "figure.html": "explore", "samples.parquet": "samples", "log.txt": "log"}
ROOM = 11  # columns for the labels of a run's facts


def decimals(effect: Mapping[str, Any] | None, control: Mapping[str, Any] | None = None) -> int:
    """Return how many decimals an effect and its control are shown with.

    Two digits of the effect's half width, one of the control's, two decimals at least for small numbers; and as many more (two at most) as
    it takes that no end of an interval is rounded to zero, which would hide on which side of it the interval lies.
    """
    found = [(entry, digits) for entry, digits in ((effect, 2), (control, 1)) if entry]
    places = 0
    for entry, digits in found:
        lo, hi = _ends(entry)
        half = (hi - lo) / 2
        wanted = digits - 1 - math.floor(math.log10(half)) if 0 < half < math.inf else 2
        places = max(places, wanted, 0 if 1 <= half < math.inf else 2)
    ends = [end for entry, _ in found for end in _ends(entry) if math.isfinite(end) and end != 0]
    more = next((extra for extra in range(2) if all(round(end, places + extra) != 0 for end in ends)), 2)
    return min(places + more, 12)


def interval(found: Mapping[str, Any] | None, digits: int | None = None) -> str:
    """Format an interval as `0.41 [0.30, 0.52]`, one open on a side as `0.41 [0.30, inf]`, none as `–`."""
    if not found:
        return "–"
    places = decimals(found) if digits is None else digits
    lo, hi = _ends(found)
    return f"{_number(found['estimate'], places)} [{_number(lo, places)}, {_number(hi, places)}]"


def _ends(found: Mapping[str, Any]) -> tuple[float, float]:
    """JSON has no infinity: an open end comes as null."""
    lo, hi = found["lo"], found["hi"]
    return -math.inf if lo is None else lo, math.inf if hi is None else hi


def _number(value: float, places: int) -> str:
    text = f"{value:.{places}f}"
    return text.lstrip("-") if text.startswith("-") and not text.strip("-0.") else text  # -0.00 is 0.00


def verdict_word(word: str) -> Text:
    """Return glyph and word, in colour where there is colour."""
    return Text(f"{GLYPH[word]} {word}", style=f"bold {COLOUR[word]}")


def duration(seconds: float | None) -> str:
    """Format a duration: 47 s, 1 min 57 s, 2 h 10 min."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _counts(verdicts: Sequence[Mapping[str, Any]]) -> Text:
    words = [verdict["word"] for verdict in verdicts]
    parts = [Text(f"{GLYPH[word]} {words.count(word)} {word}", style=COLOUR[word]) for word in GLYPH if word in words]
    return Text("  ").join(parts)


def _scale(record: Mapping[str, Any]) -> str:
    return "full" if record["full"] else "quick"


def render_run(record: Mapping[str, Any], out: Console, calibrated: Mapping[str, str] = MappingProxyType({})) -> None:
    """Print one run (nullius.run/1): its verdicts, gates, notes, what it took, where its files are, and how to repeat it.

    calibrated: instrument → its line (`nullius.lab.calibration.lines_of`).
    """
    title = Text(f"{record['slug']} on {record['subject']['name']}", style="bold")
    paragraph(out, title)
    about = [f"run {record['id']}", _scale(record), f"seed {record['seed']}"]
    about += [f"{name} {value}" for name, value in (record.get("options") or {}).items()]
    paragraph(out, " · ".join([*about, record["state"] + (f": {record['reason']}" if record["reason"] else "")]))
    if len(record["verdicts"]) > 1:
        paragraph(out, _counts(record["verdicts"]))
    for verdict in record["verdicts"]:
        show(out, "")
        _verdict(verdict, out, calibrated)
    show(out, "")
    _conditions(record, out)
    _files(record, out)


def _verdict(verdict: Mapping[str, Any], out: Console, calibrated: Mapping[str, str]) -> None:
    """Print one verdict as a small table."""
    paragraph(out, verdict_word(verdict["word"]) + Text("  ") + Text(verdict["claim"], style="bold"))
    paragraph(out, verdict["wording"], indent=2)
    effect, control = verdict["effect"], verdict["control"]
    rows = []
    if verdict["published"] is not None:
        published = verdict["published"]
        rows.append(("published", f"{published:g}", "") if isinstance(published, (int, float)) else ("published", "", published))
    if effect:
        places = decimals(effect, control)
        clusters = f" in {effect['n_clusters']} clusters" if effect.get("n_clusters", effect["n"]) != effect["n"] else ""
        measured = f"{verdict['statistic']} ({verdict['unit']})" if verdict["unit"] else verdict["statistic"]
        rows.append(("ours", interval(effect, places), f"n = {effect['n']}{clusters}; {measured}"))
        rows.append(("control", interval(control, places), verdict["control_wording"]))
    rows.append(("because", "", verdict["reason"] + _p(verdict["p_holm"])))
    if verdict["note"]:
        rows.append(("note", "", verdict["note"]))
    if verdict.get("rests_on"):
        rows.append(("rests on", "", "; ".join(calibrated.get(name, name) for name in verdict["rests_on"])))
    facts(out, [(label.ljust(ROOM - 2), number, text) for label, number, text in rows], indent=2)


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "; p(Holm) < 0.001" if value < 0.001 else f"; p(Holm) = {value:.3f}"


def _conditions(record: Mapping[str, Any], out: Console) -> None:
    """Print the gates, the notes, the subject and what the run took."""
    rows = []
    for gate in record["gates"]:
        state = "passed" if gate["passed"] else "not passed"
        reach = f", for {', '.join(gate['claims'])}" if gate.get("claims") else ""
        found = interval({**gate, "estimate": gate["mean"]}, 2)
        rows.append(("gate", "", f"{state}: {gate['what']}: {found}, needed above {gate['above']:g}{reach}"))
    rows += [("note", "", note) for note in record["notes"]]
    subject = record["subject"]
    if "sha256" in subject:
        quantised = (subject.get("provenance") or {}).get("quantisation")
        described = f"{subject['parameters'] / 1e6:.0f} M parameters, {subject['architecture']}, weights sha256 {subject['sha256'][:12]}"
        rows.append(("subject", "", described + (f"; {quantised}, not to be compared with full-precision files" if quantised else "")))
    if record["wall_seconds"] is not None:
        tokens, peak = record["tokens"] or 0, (record["peak_bytes"] or 0) / 1e9
        device = (record.get("environment") or {}).get("device")
        text = f"{duration(record['wall_seconds'])}{f' on {device}' if device else ''}, {tokens:,} tokens through the model, peak {peak:.1f} GB"
        rows.append(("took", "", text))
    facts(out, [(label.ljust(ROOM - 2), number, text) for label, number, text in rows])


def _files(record: Mapping[str, Any], out: Console) -> None:
    """Print where the files are and the command that repeats the run; never broken over lines."""
    paths = {entry["name"]: entry["path"] for entry in record["artefacts"]}
    rows = [(label, paths[name]) for name, label in FILES.items() if name in paths]
    rows += [("also", path) for name, path in sorted(paths.items()) if name.startswith("figure-") and name.endswith(".svg")]
    if record["state"] == "done":
        rows.append(("rerun", record["rerun"]))
    elif record["state"] in ("running", "queued"):
        rows.append(("follow", f"nullius show {record['id']}"))
    verbatim(out, rows, labels=ROOM)


def render_runs(records: Sequence[Mapping[str, Any]], out: Console, slug: str | None = None, model: str | None = None) -> None:
    """Print runs: two lines each on a terminal, one elsewhere; where there are none, how to make one. slug, model: what was asked for."""
    if not records:
        asked = f"{f' of {slug}' if slug else ''}{f' on {model}' if model else ''}"
        paragraph(out, f"no runs{asked} yet: nullius run {slug or 'factual-recall'}{f' -m {shlex.quote(model)}' if model else ''}")
    rows = []
    for record in records:
        when = record["started"][:16].replace("T", " ")
        what = f"{record['slug']} on {record['subject']['name']}"
        state = (
            _counts(record["verdicts"])
            if record["state"] == "done"
            else Text(record["state"] + (f": {record['reason']}" if record["reason"] else ""))
        )
        rows.append([record["id"], when, Text(what, style="bold"), _scale(record), duration(record["wall_seconds"]), state])
    if not out.is_terminal:
        columns(out, rows)
        return
    for run_id, when, what, scale, took, state in rows:
        paragraph(out, Text("  ").join(Text.assemble(cell) for cell in (what, scale, took)))
        paragraph(out, Text("  ").join(Text.assemble(cell) for cell in (run_id, when)) + Text("  ") + state, indent=2)


def render_paper(
    paper: Mapping[str, Any],
    claims: Sequence[Mapping[str, Any]],
    verdicts: Sequence[Mapping[str, Any]],
    out: Console,
    calibrated: Mapping[str, str] = MappingProxyType({}),
    options: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Print a paper: its claims with what is expected, the verdicts so far on each subject, and what its study lets one choose.

    calibrated: as in `render_run`. options: as plain data, the first of an option's values being its default.
    """
    paragraph(out, Text(paper["title"], style="bold"))
    authors = f"{paper['authors']} author{'s' if paper['authors'] > 1 else ''}"
    paragraph(out, " · ".join([paper["slug"], f"arXiv {paper['arxiv']}", str(paper["date"]), authors]))
    if paper["code"]:
        verbatim(out, [("code", paper["code"])])
    paragraph(out, paper["summary"])
    if not claims:
        paragraph(out, "not runnable yet: CONTRIBUTING.md shows how to add its study")
    for claim in claims:
        show(out, "")
        paragraph(out, Text(claim["id"], style="bold"))
        paragraph(out, claim["wording"], indent=2)
        rows = [("expected", "", claim["expected"])]
        rows.append(("control", "", claim["control"]))
        if claim["published"] is not None:
            rows.append(("published", "", f"{claim['published']}"))
        if claim["needs"]:
            rows.append(("needs", "", claim["needs"]))
        if claim.get("rests_on"):
            rows.append(("rests on", "", "; ".join(calibrated.get(name, name) for name in claim["rests_on"])))
        facts(out, rows, indent=2)
        columns(out, [_standing(verdict) for verdict in verdicts if verdict["digest"] == claim["digest"]], indent=2)
    if options:
        show(out, "")
        facts(out, [(f"-o {option['name']}={'|'.join(option['values'])}", "", option["help"]) for option in options])
    if claims:
        show(out, "")
        verbatim(out, [("run it", f"nullius run {paper['slug']}")])


def _standing(verdict: Mapping[str, Any]) -> list[str | Text]:
    """A verdict so far as cells: glyph and word, subject, numbers, agreement of runs, run."""
    agree = f"{verdict['agreeing']} of {verdict['runs']} runs agree" if verdict["runs"] > 1 else ""
    name = f"{verdict['subject']['name']}{' (full)' if verdict['full'] else ''}"
    numbers = interval(verdict["effect"])
    return [verdict_word(verdict["word"]), name, numbers, *([agree] if agree else []), f"run {verdict['run']}"]


def render_rerun(comparison: Mapping[str, Any], out: Console) -> None:
    """Print whether a repeated run gave the same numbers, and which inputs differ."""
    render_run(comparison["again"], out)
    show(out, "")
    original = comparison["original"]["id"]
    if comparison["same"]:
        paragraph(out, Text(f"same numbers as {original}, to the last bit", style="bold green"))
    else:
        paragraph(out, Text(f"the numbers differ from {original}", style="bold red"))
    for name, (before, now) in comparison["differences"].items():
        paragraph(out, f"{name}: was {before}, is {now}", indent=2, hanging=2)
    if not comparison["same"] and not comparison["differences"]:
        paragraph(out, "no input differs: the study or the hardware is not deterministic", indent=2)


def render_compare(comparison: Mapping[str, Any], out: Console) -> None:
    """Print one paper's claims over several subjects."""
    for claim in comparison["claims"]:
        paragraph(out, Text(claim["claim"], style="bold"))
        paragraph(out, claim["wording"], indent=2)
        rows: list[list[str | Text]] = []
        for row in claim["subjects"]:
            places = decimals(row["effect"], row["control"])
            name = f"{row['subject']}{' (full)' if row['full'] else ''}"
            numbers = [interval(row["effect"], places), f"control {interval(row['control'], places)}"] if row["effect"] else []
            rows.append([verdict_word(row["word"]), name, *numbers])
        columns(out, rows, indent=2)
        for pair in claim["differences"]:
            text = f"{pair['a']} less {pair['b']}: {interval(pair['difference'])}, paired over the stimuli they share"
            paragraph(out, text, indent=2, hanging=2)
        show(out, "")
    if comparison["figure"]:
        verbatim(out, [("figure", comparison["figure"])])


def render_dossier(dossier: Mapping[str, Any], out: Console) -> None:
    """Print every verdict about one subject, grouped by question."""
    subject = dossier["subject"]
    paragraph(out, Text(f"dossier of {subject['name']}", style="bold"))
    if "sha256" in subject:
        quantised = (subject.get("provenance") or {}).get("quantisation")
        about = [f"{subject['parameters'] / 1e6:.0f} M parameters", subject["architecture"], f"weights sha256 {subject['sha256'][:12]}"]
        paragraph(out, " · ".join([*about, *([quantised] if quantised else [])]))
    paragraph(out, _counts([verdict for papers in dossier["questions"].values() for paper in papers for verdict in paper["verdicts"]]))
    for question, papers in dossier["questions"].items():
        show(out, "")
        paragraph(out, Text(question, style="bold"))
        for paper in papers:
            paragraph(out, Text(f"{paper['slug']}  ") + _counts(paper["verdicts"]), indent=2, hanging=2)
            columns(out, [[verdict_word(v["word"]), v["claim"], interval(v["effect"])] for v in paper["verdicts"]], indent=4)
    if dossier["missing"]:
        show(out, "")
        paragraph(out, f"not run yet: {', '.join(dossier['missing'])}")
        verbatim(out, [("run them", f"nullius dossier {shlex.quote(subject['name'])} --run")])
