"""Records into rows, a batch in the caller's transaction. Writing a batch twice changes nothing the second time.

What is empty never overwrites what is full. Between sources arXiv is believed before Hugging Face, that before BibTeX, that before a page;
within a source the newer version. A paper of the catalogue keeps the catalogue's title, date and number of authors.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import sqlalchemy as sa

from nullius.feed import heat
from nullius.feed.importers.matching import FORMER, RANK, Known, fresh, title_key
from nullius.feed.importers.records import Record
from nullius.feed.merging import merge_in
from nullius.feed.readable import readable
from nullius.feed.tables import embedding, paper, paper_author, paper_category, paper_day, paper_name, paper_source, signal
from nullius.feed.text import key
from nullius.lab.journal import now
from nullius.lab.schema import insert_new

_OF_THE_CATALOGUE = ("title", "title_key", "published", "date_inferred", "n_authors", "code")


@dataclass
class Tally:
    """What became of records."""

    seen: int = 0
    new: int = 0
    changed: int = 0

    def __iadd__(self, other: Tally) -> Tally:
        self.seen, self.new, self.changed = self.seen + other.seen, self.new + other.new, self.changed + other.changed
        return self


def write(connection: sa.Connection, batch: Sequence[Record], today: datetime.date | None = None) -> Tally:
    """Write records. today: the day of the counts that they bring (default: today, UTC)."""
    return _Writer(connection, batch, today or datetime.datetime.now(datetime.UTC).date()).write()


class _Writer:
    def __init__(self, connection: sa.Connection, batch: Sequence[Record], today: datetime.date) -> None:
        self.connection, self.batch, self.today, self.moment = connection, batch, today, now()
        self.known = Known(connection, batch)
        self.tally = Tally()
        self.touched: set[int] = set()
        self.reheat: set[int] = set()
        self.upvoted: set[int] = set()
        self.days: dict[tuple[int, datetime.date, str], None] = {}
        self.signals: dict[tuple[int, str], int] = {}
        self.aliases: dict[str, int] = {}  # titles that papers had, by their keys
        self.origins: dict[tuple[str, str], dict[str, Any]] = {}

    def write(self) -> Tally:
        waiting: list[Record] = []  # new papers, inserted together; a second record of one of them needs it to be there first
        names: set[str] = set()
        for record in self.batch:
            self.tally.seen += 1
            own = {name for name in (record.arxiv_id, record.doi, f"title {title_key(record.title)}") if name}
            if own & names:
                self._insert(waiting)
                waiting, names = [], set()
            number = self.known.find(record)
            if number is not None:
                self._update(number, record)
            elif record.title:  # else: the source says that a paper is gone, of which nothing is known here
                waiting.append(record)
                names |= own
        self._insert(waiting)
        self._attach()
        return self.tally

    def _insert(self, batch: Sequence[Record]) -> None:
        if not batch:
            return
        rows = [{**self._values(record), "added": self.moment, "changed": self.moment} for record in batch]
        for row in rows:
            row["heat"] = None if row["published"] is None else heat.publication(row["published"], self.moment)
            if self.known.has_doi(row["doi"]):
                row["doi"] = None  # of another paper on arXiv, which came first
        # in whatever order they come back: rows that must come back in order go to SQLite one by one
        statement = paper.insert().returning(paper.c.title_key, paper.c.id)
        numbers = {row.title_key: row.id for row in self.connection.execute(statement, rows)}
        authors, categories = [], []
        for record, row in zip(batch, rows, strict=True):
            number = numbers[row["title_key"]]  # no two of a batch have the same: `write` sees to it
            self.known.add({**row, "id": number, "merged_into": None, "slug": None})
            authors += _authors(number, record)
            categories += [{"paper": number, "category": name} for name in record.categories]
            self._note(number, record)
        for table, values in ((paper_author, authors), (paper_category, categories)):
            if values:
                self.connection.execute(table.insert(), values)
        self.tally.new += len(batch)

    def _values(self, record: Record) -> dict[str, Any]:
        values: dict[str, Any] = {
            name: getattr(record, name) or None for name in ("arxiv_id", "doi", "abstract", "published", "primary_category")
        }
        values |= {name: getattr(record, name) or None for name in ("version", "comment", "journal_ref", "code", "their_summary")}
        values |= {"title": record.title, "title_key": title_key(record.title), "n_authors": len(record.authors) or record.n_authors}
        values |= {"date_inferred": record.date_inferred, "withdrawn": record.withdrawn}
        values["their_summary_source"] = "Hugging Face" if record.their_summary else None
        return values

    def _update(self, number: int, record: Record) -> None:
        self._absorb(number, record)
        row = self.known.rows[number]
        believed = (RANK[record.source], record.version or 0) >= self.known.ranks.get(number, (-1, 0))
        change = self._change(row, record, believed)
        if "doi" in change and (other := self.known.find(Record(record.source, "", doi=change["doi"]))) not in (None, number):
            if self._mergeable(other, number):
                self._merge(other, number)  # the same paper, known by its DOI on one side and its arXiv id on the other
                row = self.known.rows[number]
                change = self._change(row, record, believed)
            else:
                del change["doi"]
        if "arxiv_id" not in change and "title_key" in change and self._title_taken(number, row, change["title_key"]):
            del change["title_key"]
        people = self._people(number, record, believed)
        if change or people:
            self.touched.add(number)
            if "published" in change:
                self.reheat.add(number)
            self.connection.execute(paper.update().where(paper.c.id == number).values(**change, changed=self.moment))
            if change.keys() & {"title", "abstract", "their_summary"}:  # its vector is of the old text
                self.connection.execute(embedding.delete().where(embedding.c.paper == number))
            self.known.add({**row, **change})
        for title in {row["title_key"], title_key(record.title) if record.title else row["title_key"]} - {
            self.known.rows[number]["title_key"]
        }:
            self.aliases[title] = number
            self.known.also(title, number)
        self._note(number, record)

    def _absorb(self, number: int, record: Record) -> None:
        """Merge papers without an id that have the title of a record with one: it is they, though its paper was known under another title."""
        if record.arxiv_id and record.title:
            for other in self.known.of_its_title(record):
                if other != number and self._mergeable(other, number):
                    self._merge(other, number)

    def _merge(self, other: int, number: int) -> None:
        merge_in(self.connection, other, number)
        self.known.merged(self.connection, other, number)
        self.touched.add(number)

    def _change(self, row: Mapping[str, Any], record: Record, believed: bool) -> dict[str, Any]:
        said = self._values(record) if record.title else {"withdrawn": True}
        change = {}
        for name, value in said.items():
            if value is None or value == row[name] or (row["slug"] and name in _OF_THE_CATALOGUE and row[name] is not None):
                continue
            if name in ("arxiv_id", "doi"):
                wanted = row[name] is None
            elif name in ("withdrawn", "date_inferred"):
                wanted = believed and (name == "withdrawn" or record.published is not None)
            elif name == "version":
                wanted = row["version"] is None or value > row["version"]
            elif name in ("their_summary", "their_summary_source"):
                wanted = True  # one source alone has them
            else:
                wanted = believed or row[name] is None
            if wanted:
                change[name] = value
        if "published" in change and row["published"] is None:
            change["date_inferred"] = record.date_inferred
        if not record.title and not row["withdrawn"]:
            change["withdrawn"] = True
        return change

    def _mergeable(self, other: int | None, number: int) -> TypeGuard[int]:
        return other is not None and not self.known.rows[other]["arxiv_id"] and not self.known.rows[other]["slug"]

    def _title_taken(self, number: int, row: Mapping[str, Any], wanted: str) -> bool:
        """Whether a paper without arXiv id would get a title that another one without has: they stay two, told apart by the old key."""
        if row["arxiv_id"]:
            return False
        same = sa.and_(paper.c.title_key == wanted, paper.c.arxiv_id.is_(None), paper.c.merged_into.is_(None), paper.c.id != number)
        return self.connection.execute(sa.select(paper.c.id).where(same)).first() is not None

    def _people(self, number: int, record: Record, believed: bool) -> bool:
        """Replace authors and categories where the record has others and is believed, or where there are none yet."""
        changed = False
        for table, column, values in (
            (paper_author, paper_author.c.name, record.authors),
            (paper_category, paper_category.c.category, record.categories),
        ):
            if not values:
                continue
            order = paper_author.c.position if table is paper_author else column
            present = self.connection.execute(sa.select(column).where(table.c.paper == number).order_by(order)).scalars().all()
            wanted = values if table is paper_author else sorted(values)
            if fresh(wanted, present) and (believed or not present):
                self.connection.execute(table.delete().where(table.c.paper == number))
                rows = _authors(number, record) if table is paper_author else [{"paper": number, "category": name} for name in values]
                self.connection.execute(table.insert(), rows)
                changed = True
        return changed

    def _note(self, number: int, record: Record) -> None:
        """Remember what is written at the end of the batch: days, counts, where it was read."""
        self.known.rank(number, record.source, record.version)
        for day in record.days:
            self.days[number, day, record.source] = None
        for kind, value in record.signals.items():
            self.signals[number, kind] = max(value, self.signals.get((number, kind), 0))
        values = {"paper": number, "version": record.version, "payload_sha256": record.digest, "fetched_at": self.moment}
        self.origins[record.source, record.external_id] = values

    def _attach(self) -> None:
        final = self.known.final  # what was noted of a paper that was merged since is its successor's
        self.days = {(final(number), day, source): None for number, day, source in self.days}
        signals: dict[tuple[int, str], int] = {}
        for (number, kind), value in self.signals.items():
            signals[final(number), kind] = max(value, signals.get((final(number), kind), 0))
        self.signals = signals
        self.touched, self.reheat, self.upvoted = (
            {final(number) for number in found} for found in (self.touched, self.reheat, self.upvoted)
        )
        if self.aliases:
            names = [{"name": FORMER + key, "paper": final(number)} for key, number in self.aliases.items()]
            insert_new(self.connection, paper_name, names)
        numbers = sorted({number for number, *_ in self.days} | {number for number, _ in self.signals})
        held = set()
        if numbers:
            query = sa.select(paper_day.c.paper, paper_day.c.day, paper_day.c.source).where(paper_day.c.paper.in_(numbers))
            held = {(row.paper, row.day, row.source) for row in self.connection.execute(query)}
        if missing := [one for one in self.days if one not in held]:
            self.connection.execute(paper_day.insert(), [{"paper": one[0], "day": one[1], "source": one[2]} for one in missing])
            self.touched |= {one[0] for one in missing}
        self._count()
        fresh_origins = []
        for (source, name), values in self.origins.items():
            values["paper"] = final(values["paper"])
            old = self.known.sources.get((source, name))
            if old is None:
                fresh_origins.append({"source": source, "external_id": name, **values})
            elif old["payload_sha256"] != values["payload_sha256"] or old["paper"] != values["paper"]:
                self.connection.execute(paper_source.update().where(paper_source.c.id == old["id"]).values(**values))
        if fresh_origins:
            self.connection.execute(paper_source.insert(), fresh_origins)
        if self.upvoted:
            heat.count_upvotes(self.connection, self.upvoted)
        if self.reheat - self.upvoted:
            heat.recompute(self.connection, self.reheat - self.upvoted)
        old_ones = {number for number in self.touched if number in self.known.rows and self.known.rows[number].get("added") != self.moment}
        self.tally.changed += len(old_ones)

    def _count(self) -> None:
        """Write today's counts; the larger one stays when a day is imported twice."""
        if not self.signals:
            return
        numbers = sorted({number for number, _ in self.signals})
        query = sa.select(signal.c.paper, signal.c.kind, signal.c.value).where(signal.c.paper.in_(numbers), signal.c.day == self.today)
        held = {(row.paper, row.kind): row.value for row in self.connection.execute(query)}
        rows = []
        for (number, kind), value in self.signals.items():
            if (number, kind) not in held:
                rows.append({"paper": number, "kind": kind, "day": self.today, "value": value})
            elif value > held[number, kind]:
                same = sa.and_(signal.c.paper == number, signal.c.kind == kind, signal.c.day == self.today)
                self.connection.execute(signal.update().where(same).values(value=value))
            else:
                continue
            if kind == "hf_upvotes":
                self.upvoted.add(number)
        if rows:
            self.connection.execute(signal.insert(), rows)


def _authors(number: int, record: Record) -> list[dict[str, Any]]:
    return [{"paper": number, "position": i, "name": name, "name_key": key(readable(name))[:300]} for i, name in enumerate(record.authors)]
