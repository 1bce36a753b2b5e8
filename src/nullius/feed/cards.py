"""Papers as lists show them: rows of the database made into cards, with what belongs to each, in a fixed number of queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from nullius.feed import verdicts
from nullius.feed.readable import readable
from nullius.feed.shapes import Card, Cell
from nullius.feed.tables import claim, paper, paper_author, saved, signal, study, vote
from nullius.feed.text import first_sentences
from nullius.lab import studies


def key_of(row: Mapping[Any, Any]) -> str:
    """Return what the address of a paper is made of: its slug, else its arXiv id, else p and its number."""
    return str(row["slug"] or row["arxiv_id"] or f"p{row['id']}")


def by_ids(connection: sa.Connection, ids: Sequence[int], *, subject: str = "", account: str | None = None) -> tuple[Card, ...]:
    """Return the cards of papers in the order given (unknown numbers are left out). subject: whose verdicts to show; account: whose votes."""
    rows = {row["id"]: dict(row) for row in connection.execute(sa.select(paper).where(paper.c.id.in_(ids))).mappings()}
    return from_rows(connection, [rows[number] for number in ids if number in rows], subject=subject, account=account)


def from_rows(
    connection: sa.Connection, rows: Sequence[Mapping[str, Any]], *, subject: str = "", account: str | None = None
) -> tuple[Card, ...]:
    """Return the cards of rows of `paper`."""
    ids = [row["id"] for row in rows]
    slugs = [row["slug"] for row in rows if row["slug"]]
    authors: dict[int, list[str]] = {}
    query = sa.select(paper_author.c.paper, paper_author.c.name).where(paper_author.c.paper.in_(ids))
    for number, name in connection.execute(query.order_by(paper_author.c.paper, paper_author.c.position)):
        authors.setdefault(number, []).append(readable(name))
    signals: dict[int, dict[str, int]] = {}
    query_signals = sa.select(signal.c.paper, signal.c.kind, signal.c.value).where(signal.c.paper.in_(ids)).order_by(signal.c.day)
    for number, kind, value in connection.execute(query_signals):  # the newest count of each kind stays
        signals.setdefault(number, {})[kind] = value
    cells: dict[str, list[Cell]] = {}
    if subject and slugs:
        found = verdicts.cells(connection, slugs, verdicts.hashes_of(connection, subject))
        for cell in _newest(_as_worded_today(connection, found)):
            cells.setdefault(cell.slug, []).append(cell)
    minutes = {row.slug: row.minutes for row in connection.execute(sa.select(study.c.slug, study.c.minutes).where(study.c.slug.in_(slugs)))}
    tested = verdicts.subjects_tested(connection) if slugs else {}
    voted, kept = (_of_account(connection, table, account, ids) for table in (vote, saved))
    runnable = studies.modules()
    cards = []
    for row in rows:
        number, slug = row["id"], row["slug"]
        summary, source = _summary(row)
        facts = {
            name: row[name]
            for name in ("arxiv_id", "published", "date_inferred", "question", "code", "withdrawn", "votes", "notes", "changed")
        }
        names = tuple(authors.get(number, ()))
        cards.append(
            Card(
                id=number,
                key=key_of(row),
                slug=slug,
                title=readable(row["title"]),
                summary=summary,
                summary_source=source,
                authors=names,
                n_authors=row["n_authors"] or len(names) or None,
                category=row["primary_category"],
                runnable=slug in runnable,
                minutes=minutes.get(slug),
                signals=signals.get(number, {}),
                cells=tuple(cells.get(slug, ())),
                subjects=tested.get(slug, 0),
                voted=number in voted,
                saved=number in kept,
                **facts,
            )
        )
    return tuple(cards)


def _summary(row: Mapping[str, Any]) -> tuple[str, str]:
    """Our sentence, else the beginning of the abstract, else somebody else's summary under their name."""
    if row["summary"]:
        return row["summary"], ""
    if row["abstract"]:
        return readable(first_sentences(row["abstract"])), "abstract"
    return (readable(row["their_summary"]), row["their_summary_source"] or "") if row["their_summary"] else ("", "")


def _as_worded_today(connection: sa.Connection, cells: Sequence[Cell]) -> list[Cell]:
    """Old verdicts stay with the old words, on the paper's page. Of a study that was never read all count."""
    known: dict[str, set[str]] = {}
    query = sa.select(claim.c.slug, claim.c.digest, claim.c.retired_at).where(claim.c.slug.in_({cell.slug for cell in cells}))
    for slug, digest, retired in connection.execute(query):
        known.setdefault(slug, set()).update([] if retired else [digest])
    return [cell for cell in cells if cell.slug not in known or cell.digest in known[cell.slug]]


def _newest(cells: Sequence[Cell]) -> list[Cell]:
    """One cell per claim: a name may stand for several files of weights, of which the one run last counts."""
    chosen: dict[tuple[str, str], Cell] = {}
    for cell in sorted(cells, key=lambda cell: cell.finished):
        chosen[cell.slug, cell.claim] = cell
    return [cell for cell in cells if chosen[cell.slug, cell.claim] is cell]


def _of_account(connection: sa.Connection, table: sa.Table, account: str | None, ids: Sequence[int]) -> set[int]:
    if account is None:
        return set()
    query = sa.select(table.c.paper).where(table.c.account == account, table.c.paper.in_(ids))
    return set(connection.execute(query).scalars())
