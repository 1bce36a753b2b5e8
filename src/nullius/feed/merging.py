"""Two rows that are one paper: the second takes all that belongs to the first, which then only redirects. Votes, saves, notes and runs stay."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from nullius.errors import UsageError
from nullius.feed import heat
from nullius.feed.database import writing
from nullius.feed.tables import (
    delivered_paper,
    embedding,
    heat_event,
    note,
    paper,
    paper_author,
    paper_category,
    paper_day,
    paper_name,
    paper_source,
    saved,
    signal,
    vote,
)
from nullius.lab.journal import now
from nullius.lab.schema import take_turns

MERGING = 0x696D70  # a batch of an import, or a merge: one at a time says which papers there are
_FILLED = [*("abstract", "summary", "their_summary", "their_summary_source", "published", "n_authors", "primary_category"), "version"]
_FILLED += ["question", "code", "comment", "journal_ref"]
_IDENTIFYING = ("slug", "arxiv_id", "doi")


def merge(source_id: int, target_id: int) -> None:
    """Merge a paper into another, for maintainers. Raises UsageError where both have a slug or both have an arXiv id of their own."""
    with writing() as connection:
        take_turns(connection, MERGING)
        merge_in(connection, source_id, target_id)


def merge_in(connection: sa.Connection, source_id: int, target_id: int) -> None:
    """Do as `merge` does, within the caller's transaction."""
    query = sa.select(paper).where(paper.c.id.in_([source_id, target_id]), paper.c.merged_into.is_(None)).order_by(paper.c.id)
    rows = {row["id"]: dict(row) for row in connection.execute(query.with_for_update()).mappings()}
    if len(rows) != 2:
        raise UsageError("two papers are needed that are there and were not merged before")
    source, target = rows[source_id], rows[target_id]
    for name in ("slug", "arxiv_id"):
        if source[name] and target[name]:
            raise UsageError(f"these are two papers: one is {source[name]}, the other {target[name]}")
    moved = {name: source[name] for name in _IDENTIFYING if source[name] and not target[name]}
    filled: dict[str, Any] = {name: source[name] for name in _FILLED if target[name] in (None, "") and source[name] not in (None, "")}
    if "published" in filled:
        filled["date_inferred"] = source["date_inferred"]
    gone = dict.fromkeys(moved) | {"merged_into": target_id, "changed": now()}
    connection.execute(paper.update().where(paper.c.id == source_id).values(**gone))
    connection.execute(paper.update().where(paper.c.merged_into == source_id).values(merged_into=target_id))
    connection.execute(paper.update().where(paper.c.id == target_id).values(**moved, **filled, changed=now()))
    outdated = [source_id, target_id] if "abstract" in filled else [source_id]
    connection.execute(embedding.delete().where(embedding.c.paper.in_(outdated)))
    for table in (vote, saved, paper_day, signal, heat_event, delivered_paper):
        _move(connection, table, source_id, target_id)
    for table in (paper_author, paper_category):
        if connection.execute(sa.select(table.c.paper).where(table.c.paper == target_id).limit(1)).first() is None:
            _move(connection, table, source_id, target_id)
    for table in (note, paper_source, paper_name):
        connection.execute(table.update().where(table.c.paper == source_id).values(paper=target_id))
    for number in (source_id, target_id):
        votes = sa.select(sa.func.count()).select_from(vote).where(vote.c.paper == number).scalar_subquery()
        notes = sa.select(sa.func.count()).select_from(note).where(note.c.paper == number, note.c.removed_at.is_(None)).scalar_subquery()
        connection.execute(paper.update().where(paper.c.id == number).values(votes=votes, notes=notes))
    heat.recompute(connection, [source_id, target_id])


def _move(connection: sa.Connection, table: sa.Table, source_id: int, target_id: int) -> None:
    """Move rows to the target, except those that it has already."""
    others = [column for column in table.primary_key if column.name != "paper"]
    twin = table.alias()
    same = sa.and_(twin.c.paper == target_id, *(twin.c[column.name] == column for column in others))
    mine = sa.and_(table.c.paper == source_id, ~sa.exists(sa.select(twin.c.paper).where(same)))
    connection.execute(table.update().where(mine).values(paper=target_id))
    connection.execute(table.delete().where(table.c.paper == source_id))
