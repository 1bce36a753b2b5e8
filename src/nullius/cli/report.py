"""What a person reads in the terminal: verdicts as small tables, progress, dossiers. Works without colour, at 80 columns, and piped.

Takes the documented JSON shapes (docs/records.md), so that the same code renders a run that has just ended and one from last year.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.text import Text

GLYPH = {"holds": "●", "fails": "✕", "inconclusive": "◐", "out of reach": "○", "not run": "·"}
COLOUR = {"holds": "green", "fails": "red", "inconclusive": "yellow", "out of reach": "blue", "not run": "dim"}


def interval(found: Mapping[str, Any] | None, digits: int = 2) -> str:
    """Format an interval as `0.41 [0.30, 0.52]`, an empty one as `–`."""
    if not found:
        return "–"
    numbers = [_number(found[key], digits) for key in ("estimate", "lo", "hi")]
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"


def _number(value: float, digits: int) -> str:
    if abs(value) == float("inf"):
        return "∞" if value > 0 else "−∞"
    digits = digits + 1 if 0 < abs(value) < 0.1 else digits
    return f"{value:.{digits}f}".replace("-", "−")


def verdict_word(word: str) -> Text:
    """Glyph and word, in colour where there is colour."""
    return Text(f"{GLYPH[word]} {word}", style=f"bold {COLOUR[word]}")


def render_run(record: Mapping[str, Any], out: Console) -> None:
    """Print one run: its verdicts, gates, notes, where its files are, and how to repeat it."""
    subject = record["subject"]
    scale = "full" if record["full"] else "quick"
    _line(out, Text(f"{record['slug']} on {subject['name']} · {scale} · seed {record['seed']} · {record['state']}", style="bold"))
    if record["reason"]:
        _line(out, f"  {record['reason']}")
    quantisation = (subject.get("provenance") or {}).get("quantisation")
    if quantisation:
        _line(out, f"  subject: {quantisation}; not to be compared with full-precision files")
    for verdict in record["verdicts"]:
        out.print()
        _line(out, verdict_word(verdict["word"]) + Text(f"  {verdict['claim']}", style="bold"))
        _line(out, verdict["wording"], indent=4)
        if verdict["effect"]:
            unit = f" {verdict['unit']}" if verdict["unit"] else ""
            _line(
                out, f"ours       {interval(verdict['effect'])}{unit}   n = {verdict['effect']['n']}   ({verdict['statistic']})", indent=4
            )
            _line(out, f"control    {interval(verdict['control'])}   ({verdict['control_wording']})", indent=4)
        published = verdict["published"]
        if published is not None:
            _line(out, f"published  {published}", indent=4)
        p = f"; p(Holm) = {verdict['p_holm']:.3f}" if verdict["p_holm"] is not None else ""
        _line(out, f"because    {verdict['reason']}{p}", indent=4)
        if verdict["note"]:
            _line(out, f"note       {verdict['note']}", indent=4)
    _footer(record, out)


def _footer(record: Mapping[str, Any], out: Console) -> None:
    out.print()
    for gate in record["gates"]:
        state = "passed" if gate["passed"] else "not passed"
        _line(
            out, f"gate {state}: {gate['what']}: {gate['mean']:.2f} [{gate['lo']:.2f}, {gate['hi']:.2f}], needed above {gate['above']:.2f}"
        )
    for note in record["notes"]:
        _line(out, f"note: {note}")
    if record["wall_seconds"] is not None:
        tokens, peak = record["tokens"] or 0, (record["peak_bytes"] or 0) / 2**30
        _line(out, f"took {record['wall_seconds']:.0f} s · {tokens:,} tokens through the model · peak {peak:.1f} GB".replace(",", " "))
    for artefact in record["artefacts"]:
        if artefact["name"] in ("figure.svg", "figure.html", "log.txt"):
            _line(out, f"{artefact['name'].split('.')[0]}: {artefact['path']}")
    if record["state"] == "done":
        _line(out, f"rerun: {record['rerun']}")


def render_runs(records: Sequence[Mapping[str, Any]], out: Console) -> None:
    """Print runs, one line each."""
    if not records:
        _line(out, "no runs yet: nullius run factual-recall")
    for record in records:
        counts = _counts(record["verdicts"])
        took = f"{record['wall_seconds']:.0f} s" if record["wall_seconds"] is not None else "–"
        scale = "full" if record["full"] else "quick"
        state = counts if record["state"] == "done" else f"{record['state']} {record['reason']}".strip()
        _line(
            out,
            f"{record['id']}  {record['started'][:16].replace('T', ' ')}  {record['slug']} on {record['subject']['name']} · {scale} · {took}",
        )
        _line(out, state, indent=4)


def _counts(verdicts: Sequence[Mapping[str, Any]]) -> str:
    words = [verdict["word"] for verdict in verdicts]
    return "  ".join(f"{GLYPH[word]} {words.count(word)} {word}" for word in GLYPH if word in words)


def render_paper(
    paper: Mapping[str, Any], claims: Sequence[Mapping[str, Any]], verdicts: Sequence[Mapping[str, Any]], out: Console
) -> None:
    """Print a paper: its claims with what is expected, and the verdicts so far on each subject."""
    _line(out, Text(paper["title"], style="bold"))
    authors = f"{paper['authors']} author{'s' if paper['authors'] > 1 else ''}"
    _line(
        out,
        f"{paper['slug']} · arXiv {paper['arxiv']} · {paper['date']} · {authors}" + (f" · code {paper['code']}" if paper["code"] else ""),
    )
    _line(out, paper["summary"])
    if not claims:
        _line(out, "not runnable yet: CONTRIBUTING.md shows how to add its study")
    for claim in claims:
        out.print()
        _line(out, Text(claim["id"], style="bold") + Text(f"  {claim['wording']}"))
        published = f" · published {claim['published']}" if claim["published"] is not None else ""
        _line(out, f"{claim['statistic']}, {claim['kind'].replace('_', ' ')}, margin {claim['margin']:g}{published}", indent=4)
        _line(out, f"control: {claim['control']}", indent=4)
        if claim["needs"]:
            _line(out, f"needs: {claim['needs']}", indent=4)
        for verdict in verdicts:
            if verdict["digest"] == claim["digest"]:
                where = f"on {verdict['subject']['name']}{' (full)' if verdict['full'] else ''}: "
                agree = f"  {verdict['agreeing']} of {verdict['runs']} runs agree" if verdict["runs"] > 1 else ""
                text = Text(where) + verdict_word(verdict["word"]) + Text(f" {interval(verdict['effect'])}{agree}  run {verdict['run']}")
                _line(out, text, indent=4)
    if claims:
        out.print()
        _line(out, f"run it: nullius run {paper['slug']}")


def render_rerun(comparison: Mapping[str, Any], out: Console) -> None:
    """Print whether a repeated run gave the same numbers, and which inputs differ."""
    render_run(comparison["again"], out)
    out.print()
    if comparison["same"]:
        _line(out, Text(f"same numbers as {comparison['original']['id']}, to the last bit", style="bold green"))
    else:
        _line(out, Text(f"the numbers differ from {comparison['original']['id']}", style="bold red"))
    for name, (before, now) in comparison["differences"].items():
        _line(out, f"  {name}: was {before}, is {now}")
    if not comparison["same"] and not comparison["differences"]:
        _line(out, "  no input differs: the study or the hardware is not deterministic")


def render_compare(comparison: Mapping[str, Any], out: Console) -> None:
    """Print one paper's claims over several subjects."""
    for claim in comparison["claims"]:
        _line(out, Text(claim["claim"], style="bold") + Text(f"  {claim['wording']}"))
        for row in claim["subjects"]:
            text = Text(f"{row['subject']}{' (full)' if row['full'] else ''}: ") + verdict_word(row["word"])
            text += Text(f" {interval(row['effect'])}  control {interval(row['control'])}")
            _line(out, text, indent=4)
        for pair in claim["differences"]:
            _line(out, f"{pair['a']} − {pair['b']}: {interval(pair['difference'])} (shared stimuli, paired)", indent=4)
        out.print()
    if comparison["figure"]:
        _line(out, f"figure: {comparison['figure']}")


def render_dossier(dossier: Mapping[str, Any], out: Console) -> None:
    """Print every verdict about one subject, grouped by question."""
    subject = dossier["subject"]
    _line(out, Text(f"dossier of {subject['name']}", style="bold"))
    if "sha256" in subject:
        quantisation = subject["provenance"].get("quantisation")
        facts = f"{subject['parameters'] / 1e6:.0f} M parameters · {subject['architecture']} · weights {subject['sha256'][:12]}"
        _line(out, facts + (f" · {quantisation}" if quantisation else ""))
    for question, papers in dossier["questions"].items():
        out.print()
        _line(out, Text(question, style="bold"))
        for paper in papers:
            _line(out, f"{paper['slug']}   {_counts(paper['verdicts'])}", indent=2)
            for verdict in paper["verdicts"]:
                _line(out, verdict_word(verdict["word"]) + Text(f"  {verdict['claim']}  {interval(verdict['effect'])}"), indent=6)
    if dossier["missing"]:
        out.print()
        _line(out, f"not run yet: {', '.join(dossier['missing'])}   (nullius dossier {subject['name']} --run)")


def _line(out: Console, text: str | Text, indent: int = 0) -> None:
    """Print one paragraph, wrapped at the console's width with a hanging indent; never truncated."""
    from rich.padding import Padding

    out.print(Padding(text if isinstance(text, Text) else Text(text), (0, 0, 0, indent), expand=False), highlight=False)


class Progress:
    """A listener of the lab that draws a bar on a terminal, and at most one line in five seconds elsewhere. All on stderr."""

    def __init__(self, title: str, minutes: float | None = None) -> None:
        self.title = title
        self.console = Console(stderr=True)
        self.live = sys.stderr.isatty()
        expected = f" (about {minutes:.1g} min)" if minutes else ""
        self.console.print(f"{title}{expected}: starting", highlight=False, soft_wrap=True)
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn())
        self.bars = Bars(*columns, console=self.console, transient=True)
        self.tasks: dict[str, TaskID] = {}
        self.last = 0.0

    def __enter__(self) -> Progress:
        if self.live:
            self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live:
            self.bars.stop()

    def step(self, label: str, done: int, total: int | None) -> None:
        """Draw progress of one part of the run."""
        if self.live:
            if label not in self.tasks:
                for task in self.tasks.values():
                    self.bars.update(task, visible=False)
                self.tasks[label] = self.bars.add_task(label, total=total)
            self.bars.update(self.tasks[label], completed=done, total=total, visible=True)
        elif time.monotonic() - self.last > 5 or done == 0:
            self.last = time.monotonic()
            self.console.print(f"{self.title}: {label} {done}{f'/{total}' if total else ''}", highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Draw a note."""
        self.console.print(f"{self.title}: {text}", highlight=False, soft_wrap=True, style="dim" if self.live else "")
