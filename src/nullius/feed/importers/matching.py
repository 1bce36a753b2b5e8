"""Which paper a record is: by arXiv id, by DOI, else by title where the dates allow it. All of a batch is looked up in a few queries."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from nullius.feed import heat
from nullius.feed.importers.records import Record
from nullius.feed.readable import readable
from nullius.feed.tables import paper, paper_name, paper_source
from nullius.feed.text import key

DAYS_APART = 60  # between two days that are given for one paper (submission, announcement, first page)
DAYS_APART_INFERRED = 400  # where a year, or everything but the year, was guessed
FORMER = "title "  # before the key of a title that a paper had, among its former names: no other name holds a space
_COLUMNS = [column for column in paper.c if column.name not in ("summary", "heat", "votes", "notes", "added")]
RANK = {"arxiv": 3, "huggingface": 2, "bibtex": 1, "page": 0}


@lru_cache(maxsize=4096)
def title_key(title: str) -> str:
    """Return the key by which titles are compared; one that is nothing but signs stands for itself."""
    return (key(readable(title)) or title)[:500]


class Known:
    """The papers that a batch of records may be, as they stand in the database; kept up to date by the caller while the batch is written."""

    def __init__(self, connection: sa.Connection, batch: Sequence[Record]) -> None:
        self.rows: dict[int, dict[str, Any]] = {}
        self._arxiv: dict[str, int] = {}
        self._doi: dict[str, int] = {}
        self._titles: dict[str, list[int]] = {}
        self.sources: dict[tuple[str, str], dict[str, Any]] = {}
        self.ranks: dict[int, tuple[int, int]] = {}
        own: dict[str, set[str]] = {}
        for record in batch:
            own.setdefault(record.source, set()).add(record.external_id)
        for source, names in own.items():
            same = sa.and_(paper_source.c.source == source, paper_source.c.external_id.in_(names))
            for row in connection.execute(sa.select(paper_source).where(same)).mappings():
                self.sources[source, row["external_id"]] = dict(row)
        keys = {title_key(record.title) for record in batch if record.title}
        former = sa.select(paper_name.c.name, paper_name.c.paper).where(paper_name.c.name.in_([FORMER + key for key in keys]))
        aliases = {name.removeprefix(FORMER): number for name, number in connection.execute(former)} if keys else {}
        wanted = (
            (paper.c.arxiv_id, {record.arxiv_id for record in batch if record.arxiv_id}),
            (paper.c.doi, {record.doi for record in batch if record.doi}),
            (paper.c.title_key, keys),
            (paper.c.id, {*(row["paper"] for row in self.sources.values()), *aliases.values()}),
        )
        for column, values in wanted:
            if values:
                for row in connection.execute(sa.select(*_COLUMNS).where(column.in_(values))).mappings():
                    self.add(dict(row))
        for had, number in aliases.items():
            self.also(had, number)
        merged = {row["merged_into"] for row in self.rows.values() if row["merged_into"] is not None} - self.rows.keys()
        if merged:
            for row in connection.execute(sa.select(*_COLUMNS).where(paper.c.id.in_(merged))).mappings():
                self.add(dict(row))
        if self.rows:
            heat.hold(connection, self.rows)
            query = sa.select(paper_source.c.paper, paper_source.c.source, paper_source.c.version).where(
                paper_source.c.paper.in_(self.rows)
            )
            for number, source, version in connection.execute(query):
                self.rank(number, source, version)

    def add(self, row: dict[str, Any]) -> None:
        """Take in a row, or a row's new identifiers."""
        number = row["id"]
        self.rows[number] = row
        if row["arxiv_id"]:
            self._arxiv[row["arxiv_id"]] = number
        if row["doi"]:
            self._doi[row["doi"]] = number
        self.also(row["title_key"], number)

    def also(self, key: str, number: int) -> None:
        """Take in a title, by its key, that a paper has or had."""
        if number not in (same := self._titles.setdefault(key, [])):
            same.append(number)

    def merged(self, connection: sa.Connection, source: int, target: int) -> None:
        """Note that one paper was merged into another, and read what that one is now."""
        self.rows[source] |= {"merged_into": target, "doi": None}
        self.ranks[target] = max(self.ranks.get(source, (-1, 0)), self.ranks.get(target, (-1, 0)))
        self.add(dict(connection.execute(sa.select(*_COLUMNS).where(paper.c.id == target)).mappings().one()))

    def rank(self, number: int, source: str, version: int | None) -> None:
        """Note that a source of this rank has told of a paper."""
        if source in RANK:
            self.ranks[number] = max(self.ranks.get(number, (-1, 0)), (RANK[source], version or 0))

    def has_doi(self, doi: str | None) -> bool:
        """Whether a paper has this DOI."""
        return doi in self._doi

    def find(self, record: Record) -> int | None:
        """Return the number of the paper that a record is, or None for one that is not known."""
        if record.arxiv_id in self._arxiv:
            return self.final(self._arxiv[record.arxiv_id])
        if record.doi in self._doi:
            same = self.final(self._doi[record.doi])
            if not (record.arxiv_id and self.rows[same]["arxiv_id"]):  # two ids are two papers, though a journal gave them one DOI
                return same
        if not record.title:
            return None
        number = self._by_title(record)
        if number is None and (source := self.sources.get((record.source, record.external_id))) is not None and not record.arxiv_id:
            return self.final(source["paper"]) if source["paper"] in self.rows else None
        return number

    def of_its_title(self, record: Record) -> list[int]:
        """Return the papers that have, or had, the title of a record, and whose dates allow that they are it."""
        candidates = [self.final(number) for number in self._titles.get(title_key(record.title), [])]
        return [number for number in dict.fromkeys(candidates) if self._fits(record, self.rows[number])]

    def _by_title(self, record: Record) -> int | None:
        fitting = self.of_its_title(record)
        return min(fitting, key=lambda number: (_apart(record.published, self.rows[number]["published"]), number)) if fitting else None

    def _fits(self, record: Record, row: Mapping[str, Any]) -> bool:
        if record.arxiv_id and row["arxiv_id"]:
            return False  # two ids are two papers, whatever they are called
        if not record.arxiv_id and not row["arxiv_id"]:
            return True  # nothing but the title tells such papers apart
        most = DAYS_APART_INFERRED if record.date_inferred or row["date_inferred"] else DAYS_APART
        return _apart(record.published, row["published"]) <= most

    def final(self, number: int) -> int:
        """Return the paper that one was merged into, or itself."""
        for _ in range(20):
            into = self.rows[number]["merged_into"]
            if into is None or into not in self.rows:
                break
            number = into
        return number


def _apart(one: datetime.date | None, other: datetime.date | None) -> int:
    return abs((one - other).days) if one and other else 0


def fresh(values: Iterable[str], than: Iterable[str]) -> bool:
    """Whether a non-empty list differs from the one that is known."""
    values = list(values)
    return bool(values) and values != list(than)
