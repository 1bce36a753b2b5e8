"""The catalogue in the database: each entry of papers.toml is a row, with the day on whose page they all stood. Seeding twice changes nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime, time
from typing import Any

import sqlalchemy as sa

from nullius.feed import catalogue
from nullius.feed.catalogue import Paper
from nullius.feed.tables import LOCAL, account, embedding, paper, paper_day, paper_name, paper_source
from nullius.feed.text import key
from nullius.lab.journal import now

SOURCE = "catalogue"


def is_current(connection: sa.Connection) -> bool:
    """Whether every entry of the catalogue is in the database as it stands in papers.toml today."""
    query = sa.select(paper_source.c.external_id, paper_source.c.payload_sha256).where(paper_source.c.source == SOURCE)
    found = {row[0]: row[1] for row in connection.execute(query)}
    return all(found.get(entry.slug) == _digest(entry) for entry in catalogue.papers())


def seed(connection: sa.Connection) -> None:
    """Write the catalogue, and the account of the one user of a local nullius, into the database."""
    if connection.execute(sa.select(account.c.id).where(account.c.id == LOCAL)).first() is None:
        connection.execute(account.insert().values(id=LOCAL, role="maintainer", created=now()))
    for entry in catalogue.papers():
        _write(connection, entry)


def _write(connection: sa.Connection, entry: Paper) -> None:
    source = connection.execute(
        sa.select(paper_source).where(paper_source.c.source == SOURCE, paper_source.c.external_id == entry.slug)
    ).first()
    if source is not None and source.payload_sha256 == _digest(entry):
        return
    ours: dict[str, Any] = {"slug": entry.slug, "arxiv_id": entry.arxiv, "title": entry.title, "title_key": key(entry.title)}
    ours |= {"summary": entry.summary, "published": entry.date, "date_inferred": False, "n_authors": entry.authors}
    ours |= {"question": entry.question, "code": entry.code or None, "changed": now()}
    found = _row(connection, entry)
    if found is None:
        age = datetime.combine(entry.date, time(), UTC).timestamp() / 3600  # the heat of a publication alone: see nullius.feed.heat
        number = connection.execute(paper.insert().values(**ours, heat=age, withdrawn=False, added=now())).inserted_primary_key
        assert number is not None
        paper_id = int(number[0])
    else:
        paper_id = int(found["id"])
        if found["slug"] not in (None, entry.slug):  # a paper that was renamed: its old address redirects
            connection.execute(paper_name.delete().where(paper_name.c.name == found["slug"]))
            connection.execute(paper_name.insert().values(name=found["slug"], paper=paper_id))
        connection.execute(paper.update().where(paper.c.id == paper_id).values(**ours))
        connection.execute(embedding.delete().where(embedding.c.paper == paper_id))  # of the old text
    day = {"paper": paper_id, "day": catalogue.day(), "source": SOURCE}
    if connection.execute(sa.select(paper_day).filter_by(**day)).first() is None:
        connection.execute(paper_day.insert().values(**day))
    values = {"paper": paper_id, "payload_sha256": _digest(entry), "fetched_at": now()}
    if source is None:
        connection.execute(paper_source.insert().values(source=SOURCE, external_id=entry.slug, **values))
    else:
        connection.execute(paper_source.update().where(paper_source.c.id == source.id).values(**values))


def _row(connection: sa.Connection, entry: Paper) -> Mapping[str, Any] | None:
    """The row that is this paper already: by slug, by arXiv id, or imported without an id under the same title."""
    by_title = sa.and_(paper.c.title_key == key(entry.title), paper.c.arxiv_id.is_(None), paper.c.merged_into.is_(None))
    for condition in (paper.c.slug == entry.slug, paper.c.arxiv_id == entry.arxiv, by_title):
        if (found := connection.execute(sa.select(paper).where(condition)).mappings().first()) is not None:
            return dict(found)
    return None


def _digest(entry: Paper) -> str:
    words = {name: value for name, value in entry.to_dict().items() if name != "runs"} | {"day": catalogue.day().isoformat()}
    return hashlib.sha256(json.dumps(words, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
