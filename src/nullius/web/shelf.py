"""Papers as pages need them: the feed's cards with what a reader may do beside them, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import sqlalchemy as sa

from nullius.errors import nearest
from nullius.feed import cards as feed_cards
from nullius.feed import catalogue, library, listings, tables
from nullius.feed import papers as feed_papers
from nullius.feed import similar as feed_similar
from nullius.feed.database import reading
from nullius.feed.readable import language, readable
from nullius.feed.shapes import ORDERS, Card, Cell, Estimate, Order
from nullius.lab import journal
from nullius.models.sources import sources
from nullius.web import registry, verdicts
from nullius.web.problems import Problem
from nullius.web.who import Person

_P = tables.paper
_DECIDED = {"holds": 0, "fails": 1, "inconclusive": 2, "out of reach": 3}


def subject_names(mine: str = "") -> list[str]:
    """Return the subjects to choose from: those known by name, those that were ever tested, and the one that is chosen."""
    tested = [s["name"] for s in journal.subjects() if s["runs"]]
    return list(dict.fromkeys([*sources(), *tested, *([mine] if mine else [])]))


def order_of(name: str) -> Order:
    """Check the name of an order. Raises Problem 422."""
    if name not in ORDERS:
        raise Problem(422, f"Papers are ordered by {', '.join(ORDERS)}, not by '{name[:40]}'.")
    return name


def whose(person: Person) -> str | None:
    """The account whose votes and saves are shown; None for nobody."""
    return None if person.role == "visitor" else person.account


# ---------------------------------------------------------------------------------------------------------------------- papers


def paper(key: str) -> dict[str, Any]:
    """Return a paper by any of its names, as plain data with `key`, its proper name, and `runnable`. Raises Problem 404 with the nearest."""
    try:
        found = feed_papers.find(key)
    except feed_papers.UnknownPaper:
        with reading() as connection:
            slugs = connection.execute(sa.select(_P.c.slug).where(_P.c.slug.is_not(None))).scalars().all()
        close = nearest(key[:80], [slug for slug in slugs if slug], 1).removeprefix("; nearest: ")
        link = (f"/papers/{close}", f"You may mean {close}") if close else ("/search", "Search")
        raise Problem(404, f"There is no paper '{key[:80]}' here.", "", link) from None
    return by_id(found.id)


def by_id(paper_id: int) -> dict[str, Any]:
    """Return a paper by its number: the columns of `paper`, texts made readable, with `key` and `runnable`; `lang` of a foreign title and `about`,
    our paragraph on it.
    """
    with reading() as connection:
        row = connection.execute(sa.select(_P).where(_P.c.id == paper_id)).mappings().first()
    if row is None:
        raise Problem(404, "There is no such paper.")
    data = {name: value.isoformat() if isinstance(value, date) else value for name, value in row.items()}
    data |= {"title": readable(row["title"]), "abstract": readable(row["abstract"]) if row["abstract"] else None}
    data |= {"lang": language(data["title"]), "about": catalogue.abouts().get(row["slug"] or "", "")}
    data["abstract_lang"] = language(data["abstract"]) if data["abstract"] else None
    return {**data, "key": feed_cards.key_of(dict(row)), "runnable": row["slug"] in registry.described()}


def full(paper_id: int) -> dict[str, Any]:
    """Return a paper with its authors, as citations need it."""
    return {**by_id(paper_id), "authors": authors(paper_id)}


def brief(slug: str) -> dict[str, Any]:
    """Return key and title of a paper, by slug; a study whose paper is not in the feed is known by its slug."""
    with reading() as connection:
        row = connection.execute(sa.select(_P.c.title, _P.c.arxiv_id).where(_P.c.slug == slug)).first()
    return {"key": slug, "title": readable(row.title) if row else slug, "arxiv_id": row.arxiv_id if row else None, "known": row is not None}


def authors(paper_id: int) -> list[str]:
    """Return the names of a paper's authors, in order; none where they were never imported."""
    query = sa.select(tables.paper_author.c.name).where(tables.paper_author.c.paper == paper_id)
    with reading() as connection:
        return [readable(name) for name in connection.execute(query.order_by(tables.paper_author.c.position)).scalars()]


def categories(paper_id: int) -> list[str]:
    """Return the categories that a paper was filed under."""
    query = sa.select(tables.paper_category.c.category).where(tables.paper_category.c.paper == paper_id)
    with reading() as connection:
        return sorted(connection.execute(query).scalars())


# ----------------------------------------------------------------------------------------------------------------------- cards


def shown(card: Card, subject: str) -> dict[str, Any]:
    """Return a card of the feed as templates and JSON have it."""
    own = {name: getattr(card, name) for name in ("key", "slug", "title", "summary", "date_inferred", "category", "question", "withdrawn")}
    own |= {name: getattr(card, name) for name in ("votes", "notes", "voted", "saved", "runnable")}
    chips = sorted((chip(cell) for cell in card.cells), key=lambda c: _DECIDED[c["word"]])
    return {
        **own,
        "summary_by": {"": "nullius", "abstract": "its abstract"}.get(card.summary_source, card.summary_source),
        "lang": language(card.title),
        "summary_lang": language(card.summary),
        "authors": card.n_authors,
        "published": card.published.isoformat() if card.published else None,
        "signals": dict(card.signals),
        "subjects": card.subjects,
        "seconds": verdicts.expected_seconds(card.slug, subject) if card.runnable and card.slug else None,
        "chips": chips,
    }


def chip(cell: Cell) -> dict[str, Any]:
    """Return a verdict as a card shows it."""
    return {"claim": cell.claim, "word": cell.word, "effect": _numbers(cell.effect), "run": cell.run, "reason": cell.reason}


def _numbers(found: Estimate | None) -> dict[str, float] | None:
    return {"estimate": found.value, "lo": found.lo, "hi": found.hi} if found else None


def cards(ids: Sequence[int], person: Person, subject: str) -> list[dict[str, Any]]:
    """Return the cards of papers, in the order of their numbers given."""
    with reading() as connection:
        found = feed_cards.by_ids(connection, ids, subject=subject, account=whose(person))
    return [shown(card, subject) for card in found]


def trending(days: int, person: Person, subject: str, limit: int = 50, cursor: str = "") -> tuple[list[dict[str, Any]], str]:
    """Return the papers published in the last so many days (0: ever) by heat, hottest first, with its parts; and the way on."""
    found = listings.trending(within=days or None, subject=subject, account=whose(person), limit=limit, cursor=cursor)
    rows = []
    for card, heat in zip(found.listing.cards, found.heats, strict=True):
        parts = {name: getattr(heat, name) for name in ("votes", "runs", "verdicts", "upvotes", "publication")}
        rows.append({**shown(card, subject), "heat": heat.score, "parts": parts})
    return rows, found.listing.cursor


def similar(found: Mapping[str, Any], by: feed_similar.By, person: Person, subject: str) -> list[dict[str, Any]]:
    """Return ten papers like one: by meaning (or by words where there are no vectors), the newest of those, or those on the same instruments."""
    near = feed_similar.similar(found["id"], by=by, subject=subject, account=whose(person))
    return [shown(card, subject) for card in near]


def set_vote(person: Person, paper_id: int, on: bool) -> None:
    """Vote for a paper, or take the vote back."""
    (library.vote if on else library.unvote)(person.account, paper_id)


def set_saved(person: Person, paper_id: int, on: bool) -> None:
    """Put a paper into a person's library, or take it out."""
    if on:
        library.save(person.account, paper_id)
    else:
        library.unsave(person.account, paper_id)
