"""`nullius feed`: papers into the database, and the search index over them."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from nullius.cli.layout import console, paragraph, print_json
from nullius.errors import NulliusError, UsageError

if TYPE_CHECKING:
    from nullius.feed.importers.running import Report
    from nullius.feed.search.engine import Hit

app = typer.Typer(help="Import papers, keep them up to date, index them for search.", no_args_is_help=True, rich_markup_mode=None)

AsJson = Annotated[bool, typer.Option("--json", help="Print documented, versioned JSON (docs/feed.md) and nothing else.")]
SHOWN = 20  # rejects printed


def _say(line: str) -> None:
    Console(stderr=True, soft_wrap=True).print(line, highlight=False, markup=False)


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="A web address, a file, an arXiv id, or - for standard input.")],
    date: Annotated[str, typer.Option(help="The day of a saved page that does not say its own, as 2025-11-04.")] = "",
    as_json: AsJson = False,
) -> None:
    """Import papers: Hugging Face JSON, arXiv Atom or OAI-PMH, BibTeX, a saved Daily Papers page. Importing twice changes nothing."""
    from nullius.feed.importers import running

    report = running.import_from(source, day=_day(date), say=_say)
    _index()
    if as_json:
        print_json({"schema": "nullius.imports/1", "imports": [report.to_dict()]})
    else:
        _show(report)
    if report.useless:
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
    _index()
    if as_json:
        print_json({"schema": "nullius.imports/1", "imports": [report.to_dict() for report in reports]})
    else:
        for report in reports:
            typer.echo(report.address if len(report.address) <= 100 else f"{report.address[:99]}…")
            _show(report)
    if all(report.error for report in reports):
        raise typer.Exit(1)


@app.command()
def index(
    embed: Annotated[
        bool, typer.Option(help="Also make the vectors for search by meaning, newest papers first (Ctrl-C stops, what is done stays).")
    ] = True,
    most: Annotated[int, typer.Option(min=0, help="Embed at most this many papers; 0 for all.")] = 0,
    device: Annotated[str, typer.Option(help="What embeds: cpu, or one of torch's devices (cuda).")] = "cpu",
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Throw the index away and build it anew from the database.")] = False,
) -> None:
    """Bring the search index up to date with the database."""
    from nullius.feed import claims
    from nullius.feed.search import embedding, weights, words

    claims.refresh()
    if rebuild:
        words.throw_away()
    count = words.open_index().update(threads=2, heap=300_000_000, wait=True)
    typer.echo(f"{count:,} papers indexed by words")
    if embed:
        try:
            weights.fetch_weights()
        except NulliusError as error:
            _say(f"search goes by words only: {error}")
            return
        with Console(stderr=True).status("embedding") as status:
            done = embedding.embed(most=most or None, device=device, progress=lambda n: status.update(f"embedding: {n:,} papers"))
        typer.echo(f"{done:,} papers embedded for search by meaning")


def _index() -> None:
    """Index what was imported, so that the next search finds it at once."""
    from nullius.feed.search import words

    words.open_index().update(threads=2, heap=100_000_000)


def search(text: str, as_json: bool, *, limit: int = 20) -> None:
    """Search all papers and print what was found; what `nullius papers --search` does."""
    from nullius.feed.search import engine

    found = engine.search(text, limit=limit)
    if as_json:
        print_json(
            {
                "schema": "nullius.papers/1",
                **{name: value for name, value in found.to_dict().items() if name != "hits"},
                "papers": [_plain(hit) for hit in found.hits],
            }
        )
        return
    for message in found.messages:
        _say(message)
    if not found.hits:
        left = "; ".join(f"{name} keeps {number:,} out" for name, number in found.removed.items())
        raise UsageError(f"no paper matches '{text[:80]}'{f' ({left})' if left else ''}; `nullius papers` lists the catalogue")
    out = console()
    for hit in found.hits:
        card = hit.card
        paragraph(out, Text.assemble((card.key, "bold"), f"  {card.title}"), hanging=4)
        if card.summary:
            paragraph(out, card.summary, indent=4)
        facts = [str(card.published or ""), f"{card.n_authors} author{'s' if card.n_authors != 1 else ''}" if card.n_authors else ""]
        facts += [f"arXiv {card.arxiv_id}" if card.arxiv_id else "", "runs" if card.runnable else "not runnable yet", f"by {hit.why}"]
        paragraph(out, Text(" · ".join(fact for fact in facts if fact), style="dim"), indent=4)
    paragraph(out, f"{found.total} found, {len(found.hits)} shown, {found.milliseconds:.0f} ms")


def _plain(hit: Hit) -> dict[str, Any]:
    """A hit in the shape that `nullius papers --json` gives to papers of the catalogue, with `key` and `why`."""
    card = hit.card
    own = {name: getattr(card, name) for name in ("key", "slug", "title", "summary", "question")}
    own |= {"arxiv": card.arxiv_id, "date": card.published.isoformat() if card.published else None, "authors": card.n_authors}
    own |= {"code": card.code or "", "url": f"https://arxiv.org/abs/{card.arxiv_id}" if card.arxiv_id else None}
    return {**own, "runs": card.runnable, "why": hit.why}


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
    from nullius.feed.importers.records import latest_day

    try:
        found = datetime.date.fromisoformat(text) if text else None
    except ValueError:
        raise UsageError(f"a day is written 2025-11-04, not '{text}'") from None
    if found is not None and found > latest_day():
        raise UsageError(f"{found} is yet to come: no page is of that day")
    return found
