"""Search by words: a tantivy index (BM25, English stems, no boost for titles) beside the database, rebuilt from it at will.

One process writes at a time, under a lock; readers see each commit. A paper is indexed anew when its row has changed since.
"""

from __future__ import annotations

import datetime
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
import tantivy
from tantivy import Filter as Step
from tantivy import Occur, Query, TextAnalyzerBuilder, Tokenizer

from nullius.errors import NulliusError
from nullius.feed import catalogue
from nullius.feed.database import reading
from nullius.feed.readable import readable
from nullius.feed.tables import claim, paper, paper_author, paper_category, paper_day, paper_source
from nullius.lab import schema
from nullius.paths import data_dir

if TYPE_CHECKING:
    from tantivy import Searcher

LAYOUT = "2"  # of the index: another one is built anew
BATCH = 2_000
AT_ONCE = 5_000  # changed papers that a search indexes before it answers; more are left to `nullius feed index`
_EPOCH = datetime.date(1970, 1, 1)
_COMMON = """
a about an and are as at be been but by can could did do does for from had has have he her his how i if in into is it its may me might my no not
of on or our out she should so some such than that the their them then there these they this to up us was we were what when where which who
whose why will with would you your
"""
STOP_WORDS = frozenset(_COMMON.split())
_IDEOGRAPH = re.compile("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff])")


def folder() -> Path:
    """Return where the index of this database lies."""
    address = schema.url()
    name = "search" if address.get_backend_name() == "sqlite" else f"search-{hashlib.sha256(str(address).encode()).hexdigest()[:12]}"
    if address.get_backend_name() == "sqlite" and address.database and address.database != ":memory:":
        return Path(address.database).resolve().parent / name
    return data_dir() / name


def day_number(day: datetime.date) -> int:
    """Return a date as the index has it: days since 1970."""
    return (day - _EPOCH).days


class WordIndex:
    """The index in a folder. Open one with `open_index`."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self.where.mkdir(parents=True, exist_ok=True)
        self.schema = _schema()
        try:
            self.index = tantivy.Index(self.schema, path=str(self.where))
        except ValueError as error:  # damaged, or of another layout: it holds nothing that the database does not
            said = re.search(r"os error (\d+)", str(error))
            if said and int(said[1]) in (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EMFILE):  # the index is not to blame
                raise NulliusError(f"the search index {self.where} cannot be opened: {os.strerror(int(said[1]))}") from None
            shutil.rmtree(self.where)
            self.where.mkdir(parents=True)
            self.index = tantivy.Index(self.schema, path=str(self.where))
        for name, analyzer in (("stems", self.stems), ("names", self.names)):
            self.index.register_tokenizer(name, analyzer)

    @cached_property
    def stems(self) -> tantivy.TextAnalyzer:
        """How words of titles and abstracts become terms."""
        steps = TextAnalyzerBuilder(Tokenizer.simple()).filter(Step.remove_long(60)).filter(Step.lowercase()).filter(Step.ascii_fold())
        return steps.filter(Step.stemmer("english")).build()

    @cached_property
    def names(self) -> tantivy.TextAnalyzer:
        """How names become terms: no stems."""
        return TextAnalyzerBuilder(Tokenizer.simple()).filter(Step.lowercase()).filter(Step.ascii_fold()).build()

    def searcher(self) -> Searcher:
        """Return a view of the last commit."""
        self.index.reload()
        return self.index.searcher()

    # --- writing ---------------------------------------------------------------------------------------------------------------------------

    def watermark(self) -> str:
        """The `changed` of the newest paper in the index."""
        try:
            return str(json.loads((self.where / "state.json").read_text("utf-8"))["changed"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def behind(self, connection: sa.Connection, most: int) -> int:
        """Return how many papers changed since the index was written, counted up to `most`."""
        mark = self.watermark()
        newest = connection.execute(sa.select(sa.func.max(paper.c.changed))).scalar() or ""
        if newest <= mark:
            return 0
        changed = sa.select(paper.c.id).where(paper.c.changed > mark).limit(most).subquery()
        return connection.execute(sa.select(sa.func.count()).select_from(changed)).scalar() or 0

    def catch_up(self, connection: sa.Connection) -> bool:
        """Index what changed where that is quick; return whether the index is up to date (or another process is at it)."""
        behind = self.behind(connection, AT_ONCE + 1)
        if 0 < behind <= AT_ONCE:
            self.update()
        return behind <= AT_ONCE

    def update(self, *, threads: int = 1, heap: int = 30_000_000, wait: bool = False, every: int = 200_000) -> int:
        """Index the papers that changed since the last time; return how many. Does nothing while another process writes, unless `wait`."""
        from filelock import FileLock, Timeout

        try:
            with FileLock(self.where / "writing.lock", timeout=-1 if wait else 0):
                return self._update(threads, heap, every)
        except Timeout:
            return 0

    def _update(self, threads: int, heap: int, every: int) -> int:
        mark = self.watermark()
        with reading() as connection:
            present = connection.execute(sa.select(sa.func.max(paper.c.changed))).scalar() or ""
        empty = self.searcher().num_docs == 0  # asked of the index: a process killed between its commit and its mark leaves no mark
        total, last = 0, mark
        writer = self.index.writer(heap, threads)
        self._sweep(writer)
        for rows, newest in _changed(mark):
            for row in rows:
                if not empty or row["changed"] > present:  # it may be in the index already
                    writer.delete_documents_by_term("id", row["id"])
                if row["merged_into"] is None:
                    writer.add_document(_document(row))
            total += len(rows)
            if total % every < len(rows):
                writer.commit()
                self._mark(newest)
            last = newest
        if total:
            writer.commit()
            self._mark(last)
        writer.wait_merging_threads()
        return total

    def _sweep(self, writer: tantivy.IndexWriter) -> None:
        """Remove what a writer that was killed in its commit left behind: the next commit would write files of the same names, and be refused."""
        writer.garbage_collect_files()
        for path in self.where.glob(".tmp*"):
            path.unlink(missing_ok=True)

    def _mark(self, changed: str) -> None:
        from nullius.lab.artefacts import write_text

        write_text(str(self.where / "state.json"), json.dumps({"changed": changed}))

    # --- reading ---------------------------------------------------------------------------------------------------------------------------

    def terms(self, text: str) -> list[str]:
        """Return the terms of a text, in order."""
        return list(self.stems.analyze(_apart(text)))

    def any_of(self, words: Sequence[str], searcher: Searcher) -> tuple[Query | None, list[str]]:
        """Return the query for papers with any of the words, and the words that no paper has (searched for one letter away)."""
        content = [word for word in words if word.lower() not in STOP_WORDS] or list(words)
        parts, missing = [], []
        for term, word in {term: one for one in content for term in self.terms(one)}.items():
            if searcher.doc_freq("body", term):
                parts.append((Occur.Should, Query.term_query(self.schema, "body", term, "freq")))
            elif len(term) >= 3:
                missing.append(word)
                parts.append((Occur.Should, Query.fuzzy_term_query(self.schema, "body", term, distance=1)))
        return (Query.boolean_query(parts) if parts else None), missing

    def phrase(self, field: str, text: str) -> Query | None:
        """Return the query for papers with a phrase in a field."""
        terms = self.terms(text)
        if len(terms) < 2:
            return Query.term_query(self.schema, field, terms[0], "freq") if terms else None
        return Query.phrase_query(self.schema, field, list(terms))

    def all_of(self, field: str, terms: Iterable[str]) -> Query:
        """Return the query for papers with all terms in a field."""
        return Query.boolean_query([(Occur.Must, Query.term_query(self.schema, field, term, "freq")) for term in terms])

    def named(self, field: str, text: str) -> Query | None:
        """Return the query for papers with all words of a name in a field of names."""
        parts = [(Occur.Must, Query.term_query(self.schema, field, term, "freq")) for term in self.names.analyze(text)]
        return Query.boolean_query(parts) if parts else None

    def days(self, field: str, first: datetime.date | None, last: datetime.date | None) -> Query:
        """Return the query for papers with a day of a field in a span."""
        bounds = [None if day is None else day_number(day) for day in (first, last)]
        return Query.range_query(self.schema, field, tantivy.FieldType.Integer, bounds[0], bounds[1])

    def ids(self, numbers: Sequence[int]) -> Query:
        """Return the query for papers by their numbers."""
        return Query.term_set_query(self.schema, "id", list(numbers)) if numbers else Query.empty_query()

    def term(self, field: str, value: str) -> Query:
        """Return the query for papers with exactly this value of a field."""
        return Query.term_query(self.schema, field, value, "basic")

    def top(self, searcher: Searcher, query: Query, limit: int, *, newest: bool = False) -> tuple[list[int], list[float]]:
        """Return the numbers and scores of the best papers (or the newest)."""
        if limit < 1 or searcher.num_docs == 0:
            return [], []
        found = searcher.search(query, limit, count=False, order_by_field="published" if newest else None).hits
        numbers = searcher.fast_field_values("id", [address for _, address in found])
        return [int(number or 0) for number in numbers], [float(score) for score, _ in found]

    def count(self, searcher: Searcher, query: Query) -> int:
        """Return how many papers match."""
        found: Any = searcher.search(query, 1, count=True)  # `count` is missing in its type hints
        return int(found.count or 0)


def _schema() -> tantivy.Schema:
    builder = tantivy.SchemaBuilder()
    builder.add_integer_field("id", indexed=True, fast=True)  # an unsigned one makes deleting by it panic
    builder.add_text_field("body", tokenizer_name="stems", index_option="position")  # a query for words does not read the positions
    builder.add_text_field("title", tokenizer_name="stems", index_option="position")
    builder.add_text_field("author", tokenizer_name="names", index_option="freq")
    builder.add_text_field("category", tokenizer_name="raw", index_option="basic")
    builder.add_text_field("source", tokenizer_name="raw", index_option="basic")
    builder.add_text_field("has", tokenizer_name="raw", index_option="basic")
    builder.add_text_field("instrument", tokenizer_name="names", index_option="freq")
    builder.add_integer_field("published", indexed=True, fast=True)
    builder.add_integer_field("day", indexed=True)
    return builder.build()


def _apart(text: str) -> str:
    """Make a word of every character of Chinese and Japanese, which put no spaces between words.

    >>> _apart("日本語 BERT").split()
    ['日', '本', '語', 'BERT']
    """
    return text if text.isascii() else _IDEOGRAPH.sub(r" \1 ", text)


def _document(row: dict[str, Any]) -> tantivy.Document:
    title = _apart(readable(row["title"]))
    about = catalogue.abouts().get(row["slug"], "")
    text = f"{row['summary'] or ''}\n{about}\n{row['abstract'] or row['their_summary'] or ''}\n{row['claims']}"
    document = tantivy.Document()
    document.add_integer("id", row["id"])
    document.add_text("body", f"{title}\n{_apart(text)}\n{' '.join(row['authors'])}\n{(row['slug'] or '').replace('-', ' ')}")
    document.add_text("title", title)
    for name in row["authors"]:
        document.add_text("author", name)
    for field in ("category", "source"):
        for value in row[field]:
            document.add_text(field, value.lower())
    if row["code"]:
        document.add_text("has", "code")
    for name in row["instruments"]:
        document.add_text("instrument", name)
    document.add_integer("published", day_number(row["published"]) if row["published"] else -719_162)  # undated papers come last
    for day in row["days"]:
        document.add_integer("day", day_number(day))
    return document


def _changed(mark: str) -> Iterator[tuple[list[dict[str, Any]], str]]:
    """Give the papers that changed since a moment, in batches by (changed, id), each with the `changed` of its last."""
    columns = [
        paper.c[name]
        for name in ("id", "slug", "title", "summary", "abstract", "their_summary", "code", "published", "merged_into", "changed")
    ]
    at, number = mark, -1  # those of the mark's own millisecond once more: others of it may have been written since
    while True:
        rows: list[dict[str, Any]] = []
        with reading() as connection:
            # asked for together, as (changed, id) after (at, number), SQLite would read its index from the beginning for each batch
            for after in (sa.and_(paper.c.changed == at, paper.c.id > number), paper.c.changed > at):
                query = sa.select(*columns).where(after).order_by(paper.c.changed, paper.c.id).limit(BATCH - len(rows))
                rows += [dict(row) for row in connection.execute(query).mappings()]
            if not rows:
                return
            _complete(connection, rows)
        at, number = rows[-1]["changed"], rows[-1]["id"]
        yield rows, at


def _complete(connection: sa.Connection, rows: list[dict[str, Any]]) -> None:
    """Add to rows what stands in other tables."""
    by_id = {row["id"]: row for row in rows}
    for row in rows:
        row |= {"authors": [], "category": [], "source": [], "days": [], "claims": "", "instruments": []}
    kinds = (
        (paper_author.c.name, "authors"),
        (paper_category.c.category, "category"),
        (paper_source.c.source, "source"),
        (paper_day.c.day, "days"),
    )
    for column, name in kinds:
        table = column.table
        for number, value in connection.execute(sa.select(table.c.paper, column).where(table.c.paper.in_(by_id)).distinct()):
            by_id[number][name].append(readable(value) if name == "authors" else value)
    by_slug = {row["slug"]: row for row in rows if row["slug"]}
    if by_slug:
        query = sa.select(claim.c.slug, claim.c.description).where(claim.c.slug.in_(by_slug), claim.c.retired_at.is_(None))
        for slug, about in connection.execute(query.order_by(claim.c.slug, claim.c.position)):
            by_slug[slug]["claims"] += f"{about['wording']}\n"
            by_slug[slug]["instruments"] += [name for name in about["rests_on"] if name not in by_slug[slug]["instruments"]]


@lru_cache(maxsize=4)
def _open(where: Path, _inode: int) -> WordIndex:
    return WordIndex(where)


def open_index() -> WordIndex:
    """Return the index of this database, made where there is none; opened again where another process threw it away."""
    own = folder() / f"words-{LAYOUT}"
    own.mkdir(parents=True, exist_ok=True)
    return _open(own, own.stat().st_ino)


def throw_away() -> None:
    """Remove the index and the vector files of this database; the database has all that they hold."""
    from filelock import FileLock

    folder().mkdir(parents=True, exist_ok=True)
    with FileLock(folder() / "throwing.lock"):
        for path in folder().iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
    _open.cache_clear()
