"""`nullius calibrate`: every instrument against cases whose right answer is known by construction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from nullius.cli.layout import columns, console, facts, paragraph, print_json, show

INSTRUMENTS = Annotated[list[str] | None, typer.Argument(help="Names of instruments, as verdicts say them (default: all).")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("calibrate")(calibrate)


def calibrate(
    instruments: INSTRUMENTS = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print documented, versioned JSON (docs/calibration.md) and nothing else.")
    ] = False,
) -> None:
    """Run every instrument on planted and null cases; print and keep recovery and false-alarm rates. Exit code 3 where one falls short."""
    from nullius.cli.progress import Progress
    from nullius.lab import calibration

    with Progress("calibrating") as progress:
        rows = calibration.calibrate(instruments or (), progress.step)
    if as_json:
        print_json({"schema": "nullius.calibration/1", "instruments": rows})
    else:
        render(rows)
    if not all(calibration.meets_goals(row) for row in rows):
        raise typer.Exit(3)


def render(rows: list[dict[str, Any]], out: Console | None = None) -> None:
    """Print rows of `nullius.lab.calibration`: rates with intervals, then what is known to fail by nature."""
    out = out or console()
    lines: list[list[str | Text]] = [["instrument", "recovered", "false alarms", ""]]
    for row in rows:
        good = row["state"] == "ok"
        state = Text(f"{'●' if good else '✕'} {row['state']}", style="bold green" if good else "bold red")
        lines.append([Text(row["name"], style="bold"), rate(row["recovered"]), rate(row["alarms"]), state])
    columns(out, lines)
    paragraph(out, "Intervals (95 %) are over draws: what is planted by one seed is not independent.")
    known = [(row["name"], one) for row in rows for one in row["by_nature"]]
    if known:
        show(out, "")
        paragraph(out, "Known to fall short by nature (beside the rates above, not in them):")
    for name, one in known:
        show(out, "")
        paragraph(out, Text(f"{name}: {one['name'].replace('_', ' ')}", style="bold"))
        details = [("recovered", rate(one["recovered"]), one["planted"]), ("false alarms", rate(one["alarms"]), one["null"])]
        facts(out, [*(entry for entry in details if entry[1] != "–"), ("because", "", one["by_nature"])], indent=2)


def rate(found: Mapping[str, Any] | None) -> str:
    """Format a rate as `48/50 [0.86, 1.00]`, none as `–`."""
    return f"{found['found']}/{found['of']} [{found['lo']:.2f}, {found['hi']:.2f}]" if found else "–"
