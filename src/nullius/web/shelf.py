"""Papers as pages need them: cards of a day, one paper with everything on it, votes and saves. All reading of the feed passes here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from nullius.errors import nearest
from nullius.feed import heat, tables
from nullius.feed.database import reading, writing
from nullius.feed.readable import readable
from nullius.feed.text import clean, first_sentences, one_line
from nullius.lab import journal
from nullius.models.sources import sources
from nullius.web import finding, registry, verdicts
from nullius.web.problems import Problem
from nullius.web.who import Person

ORDERS = ("newest", "votes", "contested", "untested")
_ARXIV = re.compile(r"(?:arxiv:)?(\d{4}\.\d{4,5}|[a-z-]+(?:\.[a-z]{2})?/\d{7})(v\d+)?", re.IGNORECASE)
_P = tables.paper


def key_of(row: Mapping[str, Any]) -> str:
    """The name of a paper in addresses: its slug, else its arXiv id, else its number."""
    return str(row["slug"] or row["arxiv_id"] or f"p{row['id']}")


def subject_names(mine: str = "") -> list[str]:
    """Return the subjects to choose from: those known by name, those that were ever tested, and the one that is chosen."""
    tested = [s["name"] for s in journal.subjects() if s["runs"]]
    return list(dict.fromkeys([*sources(), *tested, *([mine] if mine else [])]))


def locate(key: str) -> Mapping[str, Any]:
    """Find a paper by slug, arXiv id (any version), number (p12) or a former name.

    Raises Problem 301 to its one address for another name than that, 404 with the nearest for none.
    """
    arxiv = _ARXIV.fullmatch(key)
    conditions = [_P.c.slug == key]
    if arxiv:
        conditions.append(_P.c.arxiv_id == arxiv[1].lower())
    if re.fullmatch(r"p\d{1,9}", key):
        conditions.append(_P.c.id == int(key[1:]))
    with reading() as connection:
        row = connection.execute(sa.select(_P).where(sa.or_(*conditions))).mappings().first()
        if row is None:
            named = sa.select(_P).join(tables.paper_name, tables.paper_name.c.paper == _P.c.id).where(tables.paper_name.c.name == key)
            row = connection.execute(named).mappings().first()
        for _ in range(5):  # a paper that was merged into another is that other
            if row is not None and row["merged_into"]:
                row = connection.execute(sa.select(_P).where(_P.c.id == row["merged_into"])).mappings().first()
        if row is None:
            slugs = connection.execute(sa.select(_P.c.slug).where(_P.c.slug.is_not(None))).scalars().all()
            close = nearest(key, slugs, 1).removeprefix("; nearest: ")
            link = (f"/papers/{close}", close) if close else ("/search", "Search")
            raise Problem(404, f"There is no paper '{key[:80]}' here.", "", link)
    return row


def paper(key: str) -> dict[str, Any]:
    """Return a paper's row as plain data, with `key` and `runnable`."""
    row = locate(key)
    return {**_plain(row), "key": key_of(row), "runnable": row["slug"] in registry.described()}


def brief(slug: str) -> dict[str, Any]:
    """Return key and title of a paper, by slug; a study whose paper is not in the feed is known by its slug."""
    with reading() as connection:
        row = connection.execute(sa.select(_P).where(_P.c.slug == slug)).mappings().first()
    return {
        "key": slug,
        "title": readable(row["title"]) if row else slug,
        "arxiv_id": row["arxiv_id"] if row else None,
        "known": row is not None,
    }


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    data = {name: value.isoformat() if isinstance(value, date) else value for name, value in row.items()}
    data["abstract"] = readable(row["abstract"]) if row["abstract"] else None
    data["title"] = readable(row["title"])
    return data


def authors(paper_id: int) -> list[str]:
    """Return the names of a paper's authors, in order; none where they were never imported."""
    query = sa.select(tables.paper_author.c.name).where(tables.paper_author.c.paper == paper_id)
    with reading() as connection:
        return list(connection.execute(query.order_by(tables.paper_author.c.position)).scalars())


def categories(paper_id: int) -> list[str]:
    query = sa.select(tables.paper_category.c.category).where(tables.paper_category.c.paper == paper_id)
    with reading() as connection:
        return sorted(connection.execute(query).scalars())


# ----------------------------------------------------------------------------------------------------------------------- cards


def cards(ids: Sequence[int], person: Person, subject: str) -> list[dict[str, Any]]:
    """Return the cards of papers, in the order of their numbers given."""
    if not ids:
        return []
    with reading() as connection:
        rows = {row["id"]: row for row in connection.execute(sa.select(_P).where(_P.c.id.in_(ids))).mappings()}
        voted, kept = set(), set()
        if person.role != "visitor":
            mine = (tables.vote.c.account == person.account, tables.vote.c.paper.in_(ids))
            voted = set(connection.execute(sa.select(tables.vote.c.paper).where(*mine)).scalars())
            mine = (tables.saved.c.account == person.account, tables.saved.c.paper.in_(ids))
            kept = set(connection.execute(sa.select(tables.saved.c.paper).where(*mine)).scalars())
        newest = sa.select(tables.signal).where(tables.signal.c.paper.in_(ids)).order_by(tables.signal.c.day)
        signals: dict[int, dict[str, int]] = {}
        for row in connection.execute(newest).mappings():
            signals.setdefault(row["paper"], {})[row["kind"]] = row["value"]
    return [_card(rows[i], i in voted, i in kept, signals.get(i, {}), subject) for i in ids if i in rows]


def _card(row: Mapping[str, Any], voted: bool, kept: bool, signals: Mapping[str, int], subject: str) -> dict[str, Any]:
    summary, by = row["summary"], "nullius"
    if not summary and row["their_summary"]:
        summary, by = row["their_summary"], row["their_summary_source"] or "its source"
    elif not summary:
        summary, by = first_sentences(row["abstract"] or "", 2), "its abstract"
    slug = row["slug"] if row["slug"] in registry.described() else None
    return {
        "key": key_of(row),
        "title": readable(row["title"]),
        "summary": readable(summary or ""),
        "summary_by": by,
        "authors": row["n_authors"],
        "published": row["published"].isoformat() if row["published"] else None,
        "date_inferred": row["date_inferred"],
        "category": row["primary_category"],
        "question": row["question"],
        "withdrawn": row["withdrawn"],
        "votes": row["votes"],
        "notes": row["notes"],
        "signals": dict(signals),
        "voted": voted,
        "saved": kept,
        "runnable": slug is not None,
        "seconds": verdicts.expected_seconds(slug, subject) if slug else None,
        "chips": verdicts.chips(slug, subject),
    }


def newest_day() -> date | None:
    """Return the newest day that has papers."""
    with reading() as connection:
        return connection.execute(sa.select(sa.func.max(tables.paper_day.c.day))).scalar()


def around(day: date) -> tuple[date | None, date | None]:
    """Return the days with papers before and after a day."""
    column = tables.paper_day.c.day
    with reading() as connection:
        older = connection.execute(sa.select(sa.func.max(column)).where(column < day)).scalar()
        return older, connection.execute(sa.select(sa.func.min(column)).where(column > day)).scalar()


def ids_between(first: date, last: date, order: str = "newest") -> list[int]:
    """Return the papers that stood on the pages of some days, each once. order: see ORDERS; untested first says what nobody has run."""
    column = tables.paper_day.c.day
    query = sa.select(_P.c.id, _P.c.slug, _P.c.votes).join(tables.paper_day, tables.paper_day.c.paper == _P.c.id)
    query = query.where(column >= first, column <= last, _P.c.merged_into.is_(None)).distinct().add_columns(_P.c.published)
    query = query.order_by(_P.c.published.desc().nulls_last(), _P.c.id)
    with reading() as connection:
        rows = connection.execute(query).mappings().all()
    return [row["id"] for row in _ordered(rows, order)]


def _ordered(rows: Sequence[Mapping[str, Any]], order: str) -> list[Mapping[str, Any]]:
    """Sort what is sorted by date already; papers that are equal stay in that order."""
    if order == "votes":
        return sorted(rows, key=lambda row: -row["votes"])
    if order == "contested":
        return sorted(rows, key=lambda row: -contest(row["slug"]))
    if order == "untested":
        runnable = registry.described()
        return sorted(rows, key=lambda row: (row["slug"] not in runnable, len(verdicts.subjects_of(row["slug"] or ""))))
    return list(rows)


def contest(slug: str | None) -> float:
    """How much subjects disagree: Σ over claims of min(holds, fails) / (holds + fails + 1)."""
    by_claim: dict[str, list[str]] = {}
    for verdict in verdicts.index().by_slug.get(slug or "", []):
        by_claim.setdefault(verdict["digest"], []).append(verdict["word"])
    pairs = [(words.count("holds"), words.count("fails")) for words in by_claim.values()]
    return sum(min(h, f) / (h + f + 1) for h, f in pairs)


def trending(days: int, limit: int = 50) -> list[dict[str, Any]]:
    """Return the papers published in the last so many days (0: ever) by heat, hottest first: id, key, heat now and its parts."""
    query = sa.select(_P.c.id, _P.c.slug, _P.c.arxiv_id).where(
        _P.c.merged_into.is_(None), _P.c.heat.is_not(None), _P.c.withdrawn.is_(False)
    )
    if days:
        query = query.where(_P.c.published >= datetime.now(UTC).date() - timedelta(days=days))
    with reading() as connection:
        rows = connection.execute(query.order_by(_P.c.heat.desc(), _P.c.id).limit(limit)).mappings().all()
        parts = heat.parts(connection, [row["id"] for row in rows], heat.current())
    found = []
    for row in rows:
        own = asdict(parts[row["id"]])
        found.append({"id": row["id"], "key": key_of(row), "heat": own.pop("score"), "parts": own})
    return found


# --------------------------------------------------------------------------------------------------------------- votes and saves


def set_vote(person: Person, paper_id: int, on: bool) -> None:
    """Vote for a paper, or take the vote back; twice is once. The count and the heat change in the same transaction."""
    vote = tables.vote
    own = sa.and_(vote.c.account == person.account, vote.c.paper == paper_id)
    with writing() as connection:
        connection.execute(sa.select(_P.c.id).where(_P.c.id == paper_id).with_for_update())  # one vote at a time on a paper
        there = connection.execute(sa.select(vote.c.paper).where(own)).first() is not None
        if on == there:
            return
        if on:
            moment = journal.now()
            connection.execute(vote.insert().values(account=person.account, paper=paper_id, created=moment))
            heat.add(connection, paper_id, "vote", person.account, moment, heat.VOTE)
        else:
            connection.execute(vote.delete().where(own))
            heat.remove(connection, paper_id, "vote", person.account)
        count = sa.select(sa.func.count()).where(vote.c.paper == paper_id).scalar_subquery()
        connection.execute(_P.update().where(_P.c.id == paper_id).values(votes=count))


def set_saved(person: Person, paper_id: int, on: bool) -> None:
    """Put a paper into a person's library or take it out; twice is once."""
    saved = tables.saved
    own = sa.and_(saved.c.account == person.account, saved.c.paper == paper_id)
    with writing() as connection:
        there = connection.execute(sa.select(saved.c.paper).where(own)).first() is not None
        if on and not there:
            connection.execute(saved.insert().values(account=person.account, paper=paper_id, created=journal.now()))
        elif there and not on:
            connection.execute(saved.delete().where(own))


def library(person: Person) -> list[dict[str, Any]]:
    """Return what a person saved, newest first: paper, note, read_at, collection, created."""
    saved = tables.saved
    query = sa.select(saved).where(saved.c.account == person.account).order_by(saved.c.created.desc())
    with reading() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]


def annotate(person: Person, paper_id: int, *, note: str, collection: str, read: bool) -> None:
    """Change what a person keeps beside a saved paper. Raises Problem 404 when it is not in the library."""
    saved = tables.saved
    own = sa.and_(saved.c.account == person.account, saved.c.paper == paper_id)
    with writing() as connection:
        found = connection.execute(sa.select(saved).where(own)).mappings().first()
        if found is None:
            raise Problem(404, "This paper is not in your library.", "Save it first.")
        read_at = (found["read_at"] or journal.now()) if read else None
        values = {"note": clean(note)[:5000], "collection": one_line(collection)[:100], "read_at": read_at}
        connection.execute(saved.update().where(own).values(**values))


def full(paper_id: int) -> dict[str, Any]:
    """Return a paper with its authors, as citations need it."""
    with reading() as connection:
        row = connection.execute(sa.select(_P).where(_P.c.id == paper_id)).mappings().one()
    return {**_plain(row), "key": key_of(row), "authors": authors(paper_id)}


def similar(found: Mapping[str, Any], by: str, person: Person, subject: str) -> list[dict[str, Any]]:
    """Return ten papers like one: by meaning (or by words where there are no vectors), the newest of those, or those on the same instruments."""
    if by == "instrument":
        own = {name for claim in registry.claims(found["slug"]) for name in claim["rests_on"]}
        slugs = [s for s, study in registry.described().items() if s != found["slug"] and own & _instruments(study)]
        with reading() as connection:
            ids = list(connection.execute(sa.select(_P.c.id).where(_P.c.slug.in_(slugs)).order_by(_P.c.published.desc())).scalars())
        return cards(ids[:10], person, subject)
    ids = finding.like(found, 10)
    near = cards(ids, person, subject)
    return sorted(near, key=lambda card: card["published"] or "", reverse=True) if by == "newest" else near


def _instruments(study: Mapping[str, Any]) -> set[str]:
    return {name for claim in study["claims"] for name in claim["rests_on"]}
