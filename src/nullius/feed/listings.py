"""Lists of papers: a day, a week, a month, what is trending, all of it; each in four orders and page by page."""

from __future__ import annotations

import base64
import binascii
import calendar
import datetime
import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from nullius.errors import UsageError
from nullius.feed import cards, heat, verdicts
from nullius.feed.database import reading
from nullius.feed.shapes import ORDERS, Heat, Listing, Order, Period, Trending
from nullius.feed.tables import paper, paper_day, standing
from nullius.lab import studies

MOST = 200  # papers on one page of a list
UNDATED = datetime.date(1, 1, 1)  # where a paper without a date stands in the order of dates


def day(
    which: datetime.date | None = None,
    *,
    order: Order = "newest",
    subject: str = "",
    account: str | None = None,
    limit: int = 100,
    cursor: str = "",
) -> Period:
    """Return the papers of a day's page (None: the newest day that has papers) with the nearest days that have papers before and after."""
    with reading() as connection:
        which = which or connection.execute(sa.select(sa.func.max(paper_day.c.day))).scalar() or datetime.datetime.now(datetime.UTC).date()
        older, newer = _neighbours(connection, which, which)
        listing = _period(connection, which, which, order, subject, account, limit, cursor)
    return Period(which.isoformat(), which, which, listing, _iso(older), _iso(newer))


def week(
    year: int, number: int, *, order: Order = "newest", subject: str = "", account: str | None = None, limit: int = 100, cursor: str = ""
) -> Period:
    """Return the papers of an ISO week and what was decided in it. Raises UsageError, with the nearest week, for one that does not exist."""
    try:
        first = datetime.date.fromisocalendar(year, number, 1)
        last = first + datetime.timedelta(days=6)
    except (ValueError, OverflowError):
        raise UsageError(f"there is no week {year}-W{number:02}; nearest: {nearest_week(year, number)}") from None
    return _span(f"{year}-W{number:02}", first, last, week_name, order, subject, account, limit, cursor)


def month(
    year: int, number: int, *, order: Order = "newest", subject: str = "", account: str | None = None, limit: int = 100, cursor: str = ""
) -> Period:
    """Return the papers of a month and what was decided in it. Raises UsageError, with the nearest month, for one that does not exist."""
    if not (1 <= number <= 12 and 1 <= year <= 9998):
        raise UsageError(f"there is no month {year}-{number:02}; nearest: {min(max(year, 1), 9998):04}-{min(max(number, 1), 12):02}")
    last = datetime.date(year, number, calendar.monthrange(year, number)[1])
    return _span(f"{year:04}-{number:02}", last.replace(day=1), last, month_name, order, subject, account, limit, cursor)


def week_name(of: datetime.date) -> str:
    """Return the ISO week that a day lies in, as 2025-W45."""
    year, number, _ = of.isocalendar()
    return f"{year}-W{number:02}"


def month_name(of: datetime.date) -> str:
    """Return the month that a day lies in, as 2025-11."""
    return of.isoformat()[:7]


def nearest_week(year: int, number: int) -> str:
    """Return the existing ISO week nearest to one that does not exist, as 2025-W52."""
    year = min(max(year, 1), 9998)
    weeks = datetime.date(year, 12, 28).isocalendar().week  # 28 December always lies in the last week
    return f"{year:04}-W{min(max(number, 1), weeks):02}"


def trending(
    *, within: int | None = None, subject: str = "", account: str | None = None, limit: int = 50, cursor: str = "", at: float | None = None
) -> Trending:
    """Return papers by heat, each with the parts of its score. within: only those published in the last so many days."""
    at = heat.current() if at is None else at
    counted: sa.ColumnElement[bool] = paper.c.heat.is_not(None)
    condition = counted
    if within is not None:
        since = datetime.datetime.fromtimestamp(at * 3600, datetime.UTC).date() - datetime.timedelta(days=within)
        counted = paper.c.published >= since
        condition = sa.and_(counted, paper.c.heat >= heat.hours(since))  # publication alone makes it so hot, and of heat there is an index
    with reading() as connection:
        listing = _listing(connection, condition, [paper.c.heat, paper.c.id], subject, account, limit, cursor, counted)
        parts = heat.parts(connection, [card.id for card in listing.cards], at)
    nothing = Heat(0, 0, 0, 0, 0, 0)
    return Trending(listing, tuple(parts.get(card.id, nothing) for card in listing.cards))


def papers(
    *,
    order: Order = "newest",
    runnable: bool | None = None,
    verdict: str = "",
    on: str = "",
    subject: str = "",
    account: str | None = None,
    limit: int = 50,
    cursor: str = "",
) -> Listing:
    """Return all papers. runnable: only those with (or without) a study. verdict: only those with such a verdict, `on` a subject where one is named.

    With a query to search for, and its filters, see `nullius.feed.search`.
    """
    with reading() as connection:
        conditions: list[sa.ColumnElement[bool]] = []
        if runnable is not None:
            has_study = sa.and_(paper.c.slug.is_not(None), paper.c.slug.in_(list(studies.modules())))
            conditions.append(has_study if runnable else sa.not_(has_study))
        if verdict:
            hashes = verdicts.hashes_of(connection, on) if on else None
            conditions.append(paper.c.slug.in_({cell.slug for cell in verdicts.cells(connection, hashes=hashes) if cell.word == verdict}))
        if order == "newest":
            return _newest(connection, conditions, subject, account, limit, cursor)
        return _listing(connection, sa.and_(sa.true(), *conditions), _keys(connection, order), subject, account, limit, cursor)


def days(first: datetime.date, last: datetime.date) -> dict[datetime.date, int]:
    """Return how many papers stood on each day's page, for a calendar; days without papers are left out."""
    with reading() as connection:
        query = sa.select(paper_day.c.day, sa.func.count(paper_day.c.paper.distinct())).where(paper_day.c.day.between(first, last))
        return {row[0]: row[1] for row in connection.execute(query.group_by(paper_day.c.day).order_by(paper_day.c.day))}


def _span(
    name: str,
    first: datetime.date,
    last: datetime.date,
    naming: Any,
    order: Order,
    subject: str,
    account: str | None,
    limit: int,
    cursor: str,
) -> Period:
    with reading() as connection:
        older, newer = _neighbours(connection, first, last)
        listing = _period(connection, first, last, order, subject, account, limit, cursor)
        decided = verdicts.decided(connection, first.isoformat(), last.isoformat())
    return Period(name, first, last, listing, naming(older) if older else None, naming(newer) if newer else None, decided)


def _neighbours(connection: sa.Connection, first: datetime.date, last: datetime.date) -> tuple[datetime.date | None, datetime.date | None]:
    older = connection.execute(sa.select(sa.func.max(paper_day.c.day)).where(paper_day.c.day < first)).scalar()
    newer = connection.execute(sa.select(sa.func.min(paper_day.c.day)).where(paper_day.c.day > last)).scalar()
    return older, newer


def _iso(of: datetime.date | None) -> str | None:
    return of.isoformat() if of else None


def _period(
    connection: sa.Connection,
    first: datetime.date,
    last: datetime.date,
    order: Order,
    subject: str,
    account: str | None,
    limit: int,
    cursor: str,
) -> Listing:
    condition = paper.c.id.in_(sa.select(paper_day.c.paper).where(paper_day.c.day.between(first, last)))
    return _listing(connection, condition, _keys(connection, order), subject, account, limit, cursor)


def _keys(connection: sa.Connection, order: Order) -> list[sa.ColumnElement[Any]]:
    """Return what a list is sorted by, each from large to small. Raises UsageError for an order that does not exist."""
    published = sa.func.coalesce(paper.c.published, UNDATED, type_=sa.Date())
    if order == "newest":
        return [published, paper.c.id]
    if order == "voted":
        return [paper.c.votes, published, paper.c.id]
    if order == "contested":  # papers without a study, which nobody can contest, come last
        scores = dict.fromkeys(studies.modules(), 0.0) | verdicts.contested(connection)
        return [_by_slug(scores, -1.0), published, paper.c.id]
    if order == "untested":  # papers without a study come last
        fewest = {slug: -number for slug, number in verdicts.subjects_tested(connection).items()}
        return [_by_slug({slug: float(fewest.get(slug, 0)) for slug in studies.modules()}, -1e9), published, paper.c.id]
    raise UsageError(f"papers are ordered by {', '.join(ORDERS)}, not '{order}'")


def _by_slug(values: dict[str, float], otherwise: float) -> sa.ColumnElement[Any]:
    if not values:
        return sa.cast(sa.literal(otherwise), sa.Float)
    return sa.case(values, value=paper.c.slug, else_=otherwise)


def _listing(
    connection: sa.Connection,
    condition: sa.ColumnElement[bool],
    keys: Sequence[sa.ColumnElement[Any]],
    subject: str,
    account: str | None,
    limit: int,
    cursor: str,
    counted: sa.ColumnElement[bool] | None = None,
) -> Listing:
    """The papers that meet a condition. counted: the same papers, said so that an index counts them without a look at each."""
    total, runnable = _counts(connection, condition if counted is None else counted)
    limit = min(max(limit, 1), MOST)
    labelled = [key.label(f"k{i}") for i, key in enumerate(keys)]
    query = sa.select(paper, *labelled).where(condition, standing).order_by(*(key.desc() for key in keys)).limit(limit + 1)
    if cursor:
        query = query.where(_after(keys, _decode(cursor, keys)))
    rows = [dict(row) for row in connection.execute(query).mappings()]
    more = len(rows) > limit
    rows = rows[:limit]
    found = cards.from_rows(connection, rows, subject=subject, account=account)
    return Listing(found, total, runnable, _encode([rows[-1][f"k{i}"] for i in range(len(keys))]) if more else "")


def _newest(
    connection: sa.Connection, conditions: Sequence[sa.ColumnElement[bool]], subject: str, account: str | None, limit: int, cursor: str
) -> Listing:
    """The newest of all papers: the dated ones in the order of their index, which no single sort together with the undated could use."""
    total, runnable = _counts(connection, sa.and_(*conditions) if conditions else None)
    limit = min(max(limit, 1), MOST)
    keys = [paper.c.published, paper.c.id]
    day, number = _decode(cursor, keys) if cursor else (datetime.date.max, 0)
    dated = sa.select(paper).where(*conditions, standing, paper.c.published.is_not(None)).order_by(*(key.desc() for key in keys))
    undated = sa.select(paper).where(*conditions, standing, paper.c.published.is_(None)).order_by(paper.c.id.desc())
    if cursor and day == UNDATED:
        parts = [undated.where(paper.c.id < number)]
    else:
        parts = [dated.where(_after(keys, [day, number])) if cursor else dated, undated]
    rows: list[dict[str, Any]] = []
    for query in parts:
        rows += [dict(row) for row in connection.execute(query.limit(limit + 1 - len(rows))).mappings()]
    more = len(rows) > limit
    rows = rows[:limit]
    found = cards.from_rows(connection, rows, subject=subject, account=account)
    return Listing(found, total, runnable, _encode([rows[-1]["published"] or UNDATED, rows[-1]["id"]]) if more else "")


def _counts(connection: sa.Connection, condition: sa.ColumnElement[bool] | None) -> tuple[int, int]:
    """How many papers meet a condition (None: all), and how many of them have a study; without reading rows where an index will do."""

    def count(*conditions: sa.ColumnElement[bool]) -> int:
        return connection.execute(sa.select(sa.func.count()).select_from(paper).where(*conditions)).scalar_one()

    has_study = paper.c.slug.in_(list(studies.modules()))
    if condition is None:
        return count(paper.c.merged_into.is_(None)), count(has_study, standing)
    return count(condition) - count(condition, paper.c.merged_into > 0), count(condition, has_study, standing)


def _after(keys: Sequence[sa.ColumnElement[Any]], values: Sequence[Any]) -> sa.ColumnElement[bool]:
    """What comes after a row in an order from large to small. The first step is for an index to begin at."""
    steps = []
    for i, (key, value) in enumerate(zip(keys, values, strict=True)):
        steps.append(sa.and_(*(earlier == values[j] for j, earlier in enumerate(keys[:i])), key < value))
    return sa.and_(keys[0] <= values[0], sa.or_(*steps))


def _encode(values: Sequence[Any]) -> str:
    words = [value.isoformat() if isinstance(value, datetime.date) else value for value in values]
    return base64.urlsafe_b64encode(json.dumps(words).encode()).decode().rstrip("=")


def _decode(cursor: str, keys: Sequence[sa.ColumnElement[Any]]) -> list[Any]:
    try:
        values = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if not isinstance(values, list):
            raise ValueError
        return [_value(value, key) for value, key in zip(values, keys, strict=True)]
    except (ValueError, TypeError, OverflowError, binascii.Error, RecursionError):
        raise UsageError(f"'{cursor[:40]}' is no place in this list; begin at its first page") from None


def _value(value: Any, key: sa.ColumnElement[Any]) -> Any:
    """A value of a cursor as its column has them, or ValueError."""
    if isinstance(key.type, sa.Date):
        return datetime.date.fromisoformat(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**31:
        raise ValueError
    return int(value) if isinstance(key.type, sa.Integer) else float(value)
