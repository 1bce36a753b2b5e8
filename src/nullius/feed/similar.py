"""Papers like a paper: by meaning where it has a vector, else by the words of its title and summary."""

from __future__ import annotations

from typing import Literal

import sqlalchemy as sa

from nullius.errors import UsageError
from nullius.feed import cards
from nullius.feed.database import reading
from nullius.feed.search import vectors, words
from nullius.feed.shapes import Card
from nullius.feed.tables import claim, paper

By = Literal["meaning", "newest", "instrument"]
HOW_MANY = 10


def similar(paper_id: int, *, by: By = "meaning", subject: str = "", account: str | None = None, limit: int = HOW_MANY) -> tuple[Card, ...]:
    """Return the papers most like one: nearest first, newest first, or those first whose studies rest on the same instruments.

    Raises UsageError for another order.
    """
    if by not in ("meaning", "newest", "instrument"):
        raise UsageError(f"similar papers are ordered by meaning, newest or instrument, not '{by}'")
    numbers = _nearest(paper_id, limit)
    with reading() as connection:
        found = cards.by_ids(connection, numbers, subject=subject, account=account)
        if by == "instrument":
            instruments = _instruments(connection)
            slug = connection.execute(sa.select(paper.c.slug).where(paper.c.id == paper_id)).scalar()
            own = instruments.get(slug or "", set())
            return tuple(sorted(found, key=lambda card: -len(own & instruments.get(card.slug or "", set()))))
    if by == "newest":
        return tuple(sorted(found, key=lambda card: str(card.published or ""), reverse=True))
    return found


def _nearest(paper_id: int, limit: int) -> list[int]:
    held = vectors.open_vectors(words.folder() / "vectors")
    own = held.of(paper_id)
    if own is not None:
        numbers = [number for number in held.nearest(own, 2 * limit + 1)[0] if number != paper_id]
        with reading() as connection:  # a vector may be of a paper that was merged since
            there = set(connection.execute(sa.select(paper.c.id).where(paper.c.id.in_(numbers), paper.c.merged_into.is_(None))).scalars())
        return [number for number in numbers if number in there][:limit]
    index = words.open_index()
    with reading() as connection:
        index.catch_up(connection)
        row = connection.execute(sa.select(paper.c.title, paper.c.summary).where(paper.c.id == paper_id)).first()
    if row is None:
        return []
    searcher = index.searcher()
    wanted, _ = index.any_of(f"{row.title} {row.summary or ''}".split()[:60], searcher)
    ranked = index.top(searcher, wanted, limit + 1)[0] if wanted is not None else []
    return [number for number in ranked if number != paper_id][:limit]


def _instruments(connection: sa.Connection) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for slug, about in connection.execute(sa.select(claim.c.slug, claim.c.description).where(claim.c.retired_at.is_(None))):
        found.setdefault(slug, set()).update(about["rests_on"])
    return found
