"""Laying out text in a terminal: paragraphs, facts and columns that fit any width.

On a terminal lines are wrapped at its width; elsewhere (a pipe, a file) every fact stays on one line, so that grep finds it whole. Nothing
is ever cut off. Paths and commands are never broken, so that they can be copied.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from typing import Any

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

# What stands in for our signs where the terminal's encoding has none of them, sign for sign; and control characters, which it would obey
_PLAIN = str.maketrans(dict(zip("●✕◐○·–—−×≥≤’‘“”→", "*x~o----x><''\"\">", strict=True)))
_CONTROL = dict.fromkeys((*range(32), *range(127, 160)), "?") | {9: " ", 10: " "}
_KEPT = "\ue000"  # stands for a space at which no line may break, while lines are made
_TOGETHER = re.compile(r"[-\w.]+ \[[-\w.]+, [-\w.]+\]|[\w()]+ [=<] [-\w.]+")  # intervals, and n = 50
NARROW = 28  # a column of prose narrower than this goes below instead


def console() -> Console:
    """Return the console for results (progress and errors go to stderr). Width: the terminal's, 100 columns when piped."""
    return Console() if sys.stdout.isatty() else Console(width=100, force_terminal=False, no_color=True)


def print_json(value: Any) -> None:
    """Print strict JSON to stdout: an interval without end is null. Where the encoding lacks a character, JSON's own way of writing it."""
    from nullius.lab.records import dumps

    text = dumps(value, indent=2)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(json.loads(text), indent=2)
    typer.echo(text)


def show(out: Console, line: str | Text) -> None:
    """Print one line as it is."""
    text = line.copy() if isinstance(line, Text) else Text(line)
    text.plain = text.plain.translate(_CONTROL).replace(_KEPT, " ")
    if not out.encoding.lower().startswith("utf"):
        text.plain = text.plain.translate(_PLAIN).encode(out.encoding, "replace").decode(out.encoding)
    text.rstrip()
    out.print(text, soft_wrap=True, highlight=False, emoji=False)


def paragraph(out: Console, text: str | Text, *, indent: int = 0, hanging: int = 0, lead: str = "") -> None:
    """Print `lead` and `text`, wrapped; lines after the first begin `hanging` further in. Intervals are kept together."""
    body = text.copy() if isinstance(text, Text) else Text(text)
    first, others = " " * indent + lead, " " * (indent + hanging)
    room = max(8, out.width - indent - hanging)
    body.plain = _TOGETHER.sub(lambda found: found[0].replace(" ", _KEPT if len(found[0]) <= room else " "), body.plain.replace("\n", " "))
    lines = body.wrap(out, room, overflow="fold") if out.is_terminal else [body]
    for i, line in enumerate(lines):
        show(out, Text(others if i else first) + line)


def facts(out: Console, rows: Sequence[tuple[str, str, str]], *, indent: int = 0) -> None:
    """Print rows of label, number and detail in columns. A row with no number uses both columns for its detail."""
    labels = max((len(label) for label, _, _ in rows), default=0) + 2
    numbers = max((cell_len(number) for _, number, _ in rows), default=0) + 2
    side_by_side = not out.is_terminal or out.width - indent - labels - numbers >= NARROW
    for label, number, detail in rows:
        lead = label.ljust(labels)
        if not number:
            paragraph(out, detail, indent=indent, hanging=labels, lead=lead)
        elif side_by_side:
            paragraph(out, detail, indent=indent, hanging=labels + numbers, lead=lead + number.ljust(numbers if detail else 0))
        else:
            paragraph(out, number, indent=indent, hanging=labels, lead=lead)
            if detail:
                paragraph(out, detail, indent=indent + labels)


def verbatim(out: Console, rows: Sequence[tuple[str, str]], *, labels: int = 0) -> None:
    """Print rows of label and a path or command that is never broken."""
    width = max([labels, *(len(label) + 2 for label, _ in rows)])
    for label, value in rows:
        show(out, label.ljust(width) + value)


def columns(out: Console, rows: Sequence[Sequence[str | Text]], *, indent: int = 0) -> None:
    """Print rows of cells under each other; cells that do not fit beside the others go to the next line, further in."""
    cells = [[cell if isinstance(cell, Text) else Text(cell) for cell in row] for row in rows]
    widths = [max((cell_len(row[i].plain) for row in cells if i < len(row)), default=0) for i in range(max(map(len, cells), default=0))]
    fit = len(widths)
    while out.is_terminal and fit > 1 and indent + sum(widths[:fit]) + 2 * (fit - 1) > out.width:
        fit -= 1
    for row in cells:
        line = Text(" " * indent)
        for i, cell in enumerate(row[:fit]):
            line.append_text(cell).append(" " * (widths[i] - cell_len(cell.plain) + 2))
        line.rstrip()
        if cell_len(line.plain) <= out.width or not out.is_terminal:
            show(out, line)
        else:
            paragraph(out, line[indent:], indent=indent, hanging=4)
        if row[fit:]:
            paragraph(out, Text("  ").join(row[fit:]), indent=indent + 4)
