"""Votes and saved papers: what an account does with a paper. Doing something twice is doing it once."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from nullius.feed import cards, heat
from nullius.feed.database import reading, writing
from nullius.feed.shapes import SavedPaper
from nullius.feed.tables import paper, saved
from nullius.feed.tables import vote as _vote
from nullius.lab.journal import now


def vote(account: str, paper_id: int) -> int:
    """Vote for a paper; return its votes."""
    with writing() as connection:
        found = connection.execute(sa.select(paper.c.id).where(paper.c.id == paper_id).with_for_update()).first()
        mine = sa.select(_vote.c.paper).filter_by(account=account, paper=paper_id)
        if found is not None and connection.execute(mine).first() is None:
            at = now()
            connection.execute(_vote.insert().values(account=account, paper=paper_id, created=at))
            heat.add(connection, paper_id, "vote", account, at, heat.VOTE)
        return _count(connection, paper_id)


def unvote(account: str, paper_id: int) -> int:
    """Take a vote back; return the paper's votes. Its heat is as if the vote had never been."""
    with writing() as connection:
        connection.execute(sa.select(paper.c.id).where(paper.c.id == paper_id).with_for_update())
        if connection.execute(_vote.delete().where(_vote.c.account == account, _vote.c.paper == paper_id)).rowcount:
            heat.remove(connection, paper_id, "vote", account)
        return _count(connection, paper_id)


def _count(connection: sa.Connection, paper_id: int) -> int:
    number = connection.execute(sa.select(sa.func.count()).select_from(_vote).where(_vote.c.paper == paper_id)).scalar() or 0
    connection.execute(paper.update().where(paper.c.id == paper_id, paper.c.votes != number).values(votes=number))
    return number


def save(account: str, paper_id: int, *, note: str | None = None, collection: str | None = None, read: bool | None = None) -> None:
    """Save a paper, or change what is kept with it; what is None stays as it is (new: no note, no collection, unread)."""
    change: dict[str, str | None] = {name: value for name, value in (("note", note), ("collection", collection)) if value is not None}
    if read is not None:
        change["read_at"] = now() if read else None
    with writing() as connection:
        found = connection.execute(sa.select(paper.c.id).where(paper.c.id == paper_id).with_for_update()).first()  # two tabs take turns
        mine = sa.and_(saved.c.account == account, saved.c.paper == paper_id)
        if connection.execute(sa.select(saved.c.paper).where(mine)).first() is None:
            if found is not None:
                connection.execute(saved.insert().values(account=account, paper=paper_id, created=now(), **change))
        elif change:
            connection.execute(saved.update().where(mine).values(**change))


def unsave(account: str, paper_id: int) -> None:
    """Take a paper out of the library, its note with it."""
    with writing() as connection:
        connection.execute(saved.delete().where(saved.c.account == account, saved.c.paper == paper_id))


def saved_papers(
    account: str, *, collection: str | None = None, unread: bool = False, subject: str = "", limit: int = 200, after: str = ""
) -> tuple[SavedPaper, ...]:
    """Return the library of an account, saved last first. after: the `created` of the last entry of the page before."""
    query = sa.select(saved).where(saved.c.account == account).order_by(saved.c.created.desc(), saved.c.paper.desc()).limit(limit)
    query = query if collection is None else query.where(saved.c.collection == collection)
    query = query.where(saved.c.read_at.is_(None)) if unread else query
    query = query.where(saved.c.created < after) if after else query
    with reading() as connection:
        rows = connection.execute(query).mappings().all()
        found = {card.id: card for card in cards.by_ids(connection, [row["paper"] for row in rows], subject=subject, account=account)}
    return tuple(_entry(dict(row), found[row["paper"]]) for row in rows)


def _entry(row: Mapping[str, str], card: cards.Card) -> SavedPaper:
    return SavedPaper(card, **{name: row[name] for name in ("created", "note", "read_at", "collection")})


def collections(account: str) -> dict[str, int]:
    """Return the names of an account's collections with their number of papers; '' holds what is in none."""
    query = sa.select(saved.c.collection, sa.func.count()).where(saved.c.account == account).group_by(saved.c.collection)
    with reading() as connection:
        return {row[0]: row[1] for row in connection.execute(query.order_by(saved.c.collection))}
