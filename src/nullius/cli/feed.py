"""`nullius feed`: papers into the database, and the search index over them."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from nullius.errors import UsageError

if TYPE_CHECKING:
    from nullius.feed.importers.running import Report

app = typer.Typer(help="Import papers, keep them up to date, index them for search.", no_args_is_help=True, rich_markup_mode=None)

AsJson = Annotated[bool, typer.Option("--json", help="Print documented, versioned JSON (docs/feed.md) and nothing else.")]
SHOWN = 20  # rejects printed


def _say(line: str) -> None:
    Console(stderr=True, soft_wrap=True).print(line, highlight=False, markup=False)


def _json(value: Any) -> None:
    from nullius.lab.records import dumps

    typer.echo(dumps(value, indent=2))


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="A web address, a file, or - for standard input.")],
    date: Annotated[str, typer.Option(help="The day of a saved page that does not say its own, as 2025-11-04.")] = "",
    as_json: AsJson = False,
) -> None:
    """Import papers: Hugging Face JSON, arXiv Atom or OAI-PMH, BibTeX, a saved Daily Papers page. Importing twice changes nothing."""
    from nullius.feed.importers import running

    report = running.import_from(source, day=_day(date), say=_say)
    if as_json:
        _json({"schema": "nullius.imports/1", "imports": [report.to_dict()]})
    else:
        _show(report)
    if not report.imported:
        raise typer.Exit(1)


@app.command()
def sync(
    days: Annotated[int, typer.Option(min=1, max=3650, help="How many days to look back the first time.")] = 7,
    oai_set: Annotated[str, typer.Option("--set", help="A set of arXiv's; empty for none.")] = "cs:cs:CL",
    as_json: AsJson = False,
) -> None:
    """Fetch what is new: Hugging Face's daily papers, and arXiv's records of a set. The claims of studies are read anew where they changed."""
    from nullius.feed import claims, heat
    from nullius.feed.importers import syncing

    reports = syncing.sync(days=days, oai_set=oai_set, say=_say)
    claims.refresh()
    heat.catch_up()
    if as_json:
        _json({"schema": "nullius.imports/1", "imports": [report.to_dict() for report in reports]})
    else:
        for report in reports:
            typer.echo(report.address)
            _show(report)
    if all(report.error for report in reports):
        raise typer.Exit(1)


def _show(report: Report) -> None:
    for warning in report.warnings:
        _say(f"warning: {warning}")
    for reject in report.rejects[:SHOWN]:
        _say(f"left out, {reject['position']}: {reject['reason']}: {reject['head'][:80]}")
    if len(report.rejects) > SHOWN:
        _say(f"... and {len(report.rejects) - SHOWN:,} more")
    if report.error:
        _say(report.error)
    typer.echo(report.summary)


def _day(text: str) -> datetime.date | None:
    try:
        return datetime.date.fromisoformat(text) if text else None
    except ValueError:
        raise UsageError(f"a day is written 2025-11-04, not '{text}'") from None
