"""Trending: every event adds its weight, which halves every 48 hours.

The score at time t is Σ w·2^((tₑ−t)/H). All scores fade alike, so that their order never changes between events, and a paper keeps only
heat = H·log2 Σ w·2^(tₑ/H) (hours since 1970), to which an event is added by log-sum-exp; the score now is 2^((heat−t)/H). The publication is
an event of weight 1 that stands in the paper itself (`published`), all others are rows of `heat_event`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta

import sqlalchemy as sa

from nullius.feed.database import reading, writing
from nullius.feed.shapes import Heat
from nullius.feed.tables import heat_event, paper, signal
from nullius.lab.journal import now
from nullius.lab.schema import request, run, verdict

HALF_LIFE_HOURS = 48.0
VOTE, RUN, VERDICT, PUBLICATION, UPVOTE = 1.0, 2.0, 1.0, 1.0, 0.2
UPVOTES_A_DAY = 5
DECISIVE = ("holds", "fails")
_PARTS = {"vote": "votes", "run": "runs", "verdict": "verdicts", "upvotes": "upvotes"}


def hours(moment: str | date) -> float:
    """Return hours since 1970 of a moment (ISO 8601, UTC) or of the beginning of a day."""
    if isinstance(moment, date):
        return datetime.combine(moment, time(), UTC).timestamp() / 3600
    return datetime.fromisoformat(moment).timestamp() / 3600


def combine(heat: float | None, weight: float, at: float) -> float | None:
    """Return the heat of a paper after one more event at a time in hours; None is the heat of no event at all.

    >>> combine(combine(None, 1, 0.0), 1, 0.0)  # two at once: one doubling
    48.0
    """
    if weight <= 0:
        return heat
    event = at + HALF_LIFE_HOURS * math.log2(weight)
    if heat is None:
        return event
    high, low = max(heat, event), min(heat, event)
    return high + HALF_LIFE_HOURS * math.log1p(2 ** ((low - high) / HALF_LIFE_HOURS)) / math.log(2)


def score(heat: float | None, at: float) -> float:
    """Return the score at a time in hours."""
    return 0.0 if heat is None else 2 ** ((heat - at) / HALF_LIFE_HOURS)


def hold(connection: sa.Connection, paper_ids: Iterable[int]) -> None:
    """Lock papers until the transaction ends, in the order of their numbers: two that need several of the same never wait for each other."""
    locked = sa.select(paper.c.id).where(paper.c.id.in_(list(paper_ids))).order_by(paper.c.id).with_for_update()
    connection.execute(locked).all()


def add(connection: sa.Connection, paper_id: int, kind: str, key: str, at: str, weight: float) -> bool:
    """Add an event (kind: vote, run, verdict) unless its key was counted before; return whether it was added."""
    same = sa.and_(heat_event.c.paper == paper_id, heat_event.c.kind == kind, heat_event.c.key == key)
    found = connection.execute(sa.select(paper.c.heat).where(paper.c.id == paper_id).with_for_update()).first()
    if found is None or connection.execute(sa.select(heat_event.c.paper).where(same)).first() is not None:
        return False
    connection.execute(heat_event.insert().values(paper=paper_id, kind=kind, key=key, at=at, weight=weight))
    connection.execute(paper.update().where(paper.c.id == paper_id).values(heat=combine(found.heat, weight, hours(at))))
    return True


def remove(connection: sa.Connection, paper_id: int, kind: str, key: str) -> None:
    """Take an event back; the paper's heat is computed anew from those that are left."""
    same = sa.and_(heat_event.c.paper == paper_id, heat_event.c.kind == kind, heat_event.c.key == key)
    if connection.execute(heat_event.delete().where(same)).rowcount:
        recompute(connection, [paper_id])


def publication(published: date, added: str) -> float:
    """Return when a paper's publication counts, in hours: on its day, or when we came to know of it if that day is yet to come."""
    return min(hours(published), hours(added))


def recompute(connection: sa.Connection, paper_ids: Iterable[int]) -> None:
    """Compute the heat of papers from their publication and their events."""
    ids = list(paper_ids)
    hold(connection, ids)
    events: dict[int, list[tuple[float, float]]] = {number: [] for number in ids}
    query = sa.select(heat_event.c.paper, heat_event.c.at, heat_event.c.weight).where(heat_event.c.paper.in_(ids))
    for number, at, weight in connection.execute(query.order_by(heat_event.c.at, heat_event.c.kind, heat_event.c.key)):
        events[number].append((hours(at), weight))
    dates = sa.select(paper.c.id, paper.c.published, paper.c.added)
    for number, published, added in connection.execute(dates.where(paper.c.id.in_(ids))).all():
        heat = None if published is None else combine(None, PUBLICATION, publication(published, added))
        for at_hours, weight in events[number]:
            heat = combine(heat, weight, at_hours)
        connection.execute(paper.update().where(paper.c.id == number).values(heat=heat))


def count_upvotes(connection: sa.Connection, paper_ids: Iterable[int]) -> None:
    """Derive the events of imported upvotes from the counts as they stand in `signal`: at most five new ones a day count."""
    ids = list(paper_ids)
    query = sa.select(signal.c.paper, signal.c.day, signal.c.value).where(signal.c.paper.in_(ids), signal.c.kind == "hf_upvotes")
    highest: dict[int, int] = {}
    events = []
    for number, day, value in connection.execute(query.order_by(signal.c.paper, signal.c.day)):
        fresh = min(UPVOTES_A_DAY, value - highest.get(number, 0))
        highest[number] = max(value, highest.get(number, 0))
        if fresh > 0:
            at = datetime.combine(day, time(), UTC).isoformat(timespec="milliseconds")
            events.append({"paper": number, "kind": "upvotes", "key": day.isoformat(), "at": at, "weight": UPVOTE * fresh})
    connection.execute(heat_event.delete().where(heat_event.c.paper.in_(ids), heat_event.c.kind == "upvotes"))
    if events:
        connection.execute(heat_event.insert(), events)
    recompute(connection, ids)


def parts(connection: sa.Connection, paper_ids: Sequence[int], at: float) -> dict[int, Heat]:
    """Return the score of papers at a time in hours, in its parts."""
    sums: dict[int, dict[str, float]] = {number: dict.fromkeys([*_PARTS.values(), "publication"], 0.0) for number in paper_ids}
    dates = sa.select(paper.c.id, paper.c.published, paper.c.added)
    for number, published, added in connection.execute(dates.where(paper.c.id.in_(paper_ids))):
        if published is not None:
            sums[number]["publication"] = PUBLICATION * score(publication(published, added), at)
    query = sa.select(heat_event.c.paper, heat_event.c.kind, heat_event.c.at, heat_event.c.weight)
    for number, kind, event_at, weight in connection.execute(query.where(heat_event.c.paper.in_(paper_ids))):
        sums[number][_PARTS[kind]] += weight * score(hours(event_at), at)
    return {number: Heat(score=sum(own.values()), **own) for number, own in sums.items()}


def catch_up() -> int:
    """Count the lab's finished runs and first decisive verdicts that were not counted yet; return how many events were added.

    A run counts once per account, paper and day; a verdict when it is the first decisive one of its claim's wording on a subject. Calling it
    twice adds nothing.
    """
    with reading() as connection:
        newest = connection.execute(sa.select(sa.func.max(heat_event.c.at)).where(heat_event.c.kind == "run")).scalar()
        # a day of grace: machines that share a database do not share a clock
        since = (datetime.fromisoformat(newest) - timedelta(days=1)).isoformat(timespec="milliseconds") if newest else ""
        query = sa.select(run.c.id, run.c.slug, run.c.finished, run.c.subject_sha256, request.c.account)
        query = query.outerjoin(request, request.c.run_id == run.c.id).where(run.c.state == "done", run.c.finished > since)
        rows = connection.execute(query.order_by(run.c.finished)).all()
        papers = _by_slug(connection, {row.slug for row in rows})
        decided = sa.select(verdict.c.run_id, verdict.c.digest).where(
            verdict.c.word.in_(DECISIVE), verdict.c.run_id.in_([r.id for r in rows])
        )
        digests: dict[str, list[str]] = {}
        for run_id, digest in connection.execute(decided):
            digests.setdefault(run_id, []).append(digest)
    added = 0
    with writing() as connection:
        hold(connection, papers.values())
        for row in rows:
            if (number := papers.get(row.slug)) is None:
                continue
            added += add(connection, number, "run", f"{row.account or ''} {row.finished[:10]}", row.finished, RUN)
            for digest in digests.get(row.id, []):
                added += add(connection, number, "verdict", f"{digest} {row.subject_sha256}", row.finished, VERDICT)
    return added


def _by_slug(connection: sa.Connection, slugs: set[str]) -> Mapping[str, int]:
    return {row.slug: row.id for row in connection.execute(sa.select(paper.c.id, paper.c.slug).where(paper.c.slug.in_(slugs)))}


def current() -> float:
    """Return the present moment in hours since 1970."""
    return hours(now())
