"""Documents for the importers' tests, and what the database holds after them."""

from __future__ import annotations

import json

import sqlalchemy as sa
from hypothesis import HealthCheck, settings

from nullius.errors import NulliusError
from nullius.feed import database as feed_database
from nullius.feed import tables
from nullius.feed.importers import sources
from nullius.feed.importers.decode import Document
from nullius.feed.importers.records import Record

from .source_server import atom, daily, entry, oai

ANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def parsed(content, day=None):
    """Records, rejects and the error, if any, of a document."""
    records, rejects, error = [], [], ""
    try:
        for found in sources.parse(Document.of(content if isinstance(content, bytes) else content.encode()), day):
            (records if isinstance(found, Record) else rejects).append(found)
    except NulliusError as problem:
        error = str(problem)
        assert "\n" not in error
    return records, rejects, error


def everything():
    """What the database holds of papers, without moments and numbers."""
    own = (
        "slug",
        "arxiv_id",
        "doi",
        "title",
        "abstract",
        "published",
        "n_authors",
        "version",
        "withdrawn",
        "heat",
        "their_summary",
        "primary_category",
    )
    with feed_database.reading() as connection:
        rows = [dict(row) for row in connection.execute(sa.select(tables.paper)).mappings()]
        names = {row["id"]: row["arxiv_id"] or row["title_key"] for row in rows}
        found = {names[row["id"]]: {name: row[name] for name in own} for row in rows}
        for table, columns in (
            (tables.paper_author, ("position", "name")),
            (tables.paper_category, ("category",)),
            (tables.paper_day, ("day", "source")),
            (tables.paper_source, ("source", "external_id", "payload_sha256")),
            (tables.signal, ("kind", "value")),
        ):
            for row in connection.execute(sa.select(table)).mappings():
                found[names[row["paper"]]].setdefault(table.name, set()).add(tuple(row[name] for name in columns))
        return found


HF = json.dumps([daily(entry(number)) for number in range(1, 6)])
DOCUMENTS = {
    "json": HF,
    "atom": atom([entry(number) for number in range(1, 6)], 5, 0),
    "oai": oai([entry(number) for number in range(1, 6)], ""),
    "bibtex": "".join(f"@article{{k{number}, title={{Paper number {number}}}, author={{A B}}, year=2024}}\n" for number in range(1, 6)),
}
