"""The filters of a query as a condition on the index. What the lab knows (verdicts, studies) becomes a set of papers first: it is small."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

import sqlalchemy as sa
from tantivy import Occur
from tantivy import Query as Condition

from nullius.feed import verdicts
from nullius.feed.search.query import Filter, Query
from nullius.feed.search.words import WordIndex
from nullius.feed.tables import paper
from nullius.lab import studies


def everything() -> Condition:
    """Return the condition that all papers meet."""
    return Condition.all_query()


def both(one: Condition, other: Condition | None) -> Condition:
    """Return what meets both conditions; None is no condition. The second gives no score."""
    if other is None:
        return one
    return Condition.boolean_query([(Occur.Must, one), (Occur.Must, Condition.const_score_query(other, 0.0))])


def condition(connection: sa.Connection, index: WordIndex, query: Query) -> Condition | None:
    """Return the condition for the filters, quoted phrases and excluded words of a query; None when there are none."""
    parts = []
    lab = [one for one in query.filters if one.name in ("runnable", "verdict", "subject")]
    if lab:
        parts += _of_the_lab(connection, index, lab)
    for one in query.filters:
        if one not in lab and (found := _of_the_index(connection, index, one)) is not None:
            parts.append((Occur.MustNot if one.negated else Occur.Must, found))
    for phrase in query.phrases:
        if (found := index.phrase("body", phrase)) is not None:
            parts.append((Occur.Must, found))
    for word in query.excluded:
        for term in index.terms(word):
            parts.append((Occur.MustNot, Condition.term_query(index.schema, "body", term, "freq")))
    if not parts:
        return None
    if all(occur == Occur.MustNot for occur, _ in parts):
        parts.append((Occur.Must, Condition.all_query()))
    return Condition.boolean_query(parts)


def _of_the_index(connection: sa.Connection, index: WordIndex, one: Filter) -> Condition | None:
    value = one.value
    if isinstance(value, datetime.date):
        if one.name == "day":
            return index.days("day", value, value)
        return index.days("published", value if one.name == "after" else None, value if one.name == "before" else None)
    text = str(value)
    if one.name in ("author", "instrument"):
        return index.named(one.name, text)
    if one.name == "cat":
        return index.term("category", text.lower())
    if one.name == "has":
        return index.term("has", "code")
    if one.name == "source":
        return index.term("source", text.lower())
    return index.ids(numbers_of(connection, [text.lower()]))  # id: one that is left out, or something that is no arXiv id


def _of_the_lab(connection: sa.Connection, index: WordIndex, wanted: Sequence[Filter]) -> list[tuple[Occur, Condition]]:
    """Papers by study and by verdicts. verdict: and subject: together mean such a verdict on that subject; so do -verdict: and -subject:."""
    parts = []
    for negated in (False, True):
        mine = [one for one in wanted if one.negated == negated and one.name != "runnable"]
        words = {str(one.value) for one in mine if one.name == "verdict"}
        hashes = [verdicts.hashes_of(connection, str(one.value)) for one in mine if one.name == "subject"]
        if words or hashes:
            on = set.intersection(*map(set, hashes)) if hashes else None
            cells = verdicts.cells(connection, hashes=on)
            slugs = {cell.slug for cell in cells if not words or cell.word in words}
            parts.append((Occur.MustNot if negated else Occur.Must, index.ids(_numbers(connection, slugs))))
    for one in wanted:
        if one.name == "runnable":
            within = Occur.Must if one.value != one.negated else Occur.MustNot
            parts.append((within, index.ids(_numbers(connection, set(studies.modules())))))
    return parts


def _numbers(connection: sa.Connection, slugs: set[str]) -> list[int]:
    return list(connection.execute(sa.select(paper.c.id).where(paper.c.slug.in_(slugs))).scalars()) if slugs else []


def numbers_of(connection: sa.Connection, names: Sequence[str]) -> list[int]:
    """Return the papers that are named by arXiv id or slug, in the order of the names."""
    query = sa.select(paper.c.id, paper.c.arxiv_id, paper.c.slug).where(sa.or_(paper.c.arxiv_id.in_(names), paper.c.slug.in_(names)))
    found = {name: row.id for row in connection.execute(query) for name in (row.arxiv_id, row.slug) if name}
    return list(dict.fromkeys(found[name] for name in names if name in found))
