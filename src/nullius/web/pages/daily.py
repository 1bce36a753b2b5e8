"""The feed by time: a day, a week, a month, and what is talked about now."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

from starlette.responses import RedirectResponse, Response

from nullius.errors import UsageError
from nullius.feed import listings
from nullius.feed.shapes import ORDERS, Period
from nullius.web import shelf, verdicts
from nullius.web.problems import Problem
from nullius.web.site import Answer, Visit, get, page

SPANS = (0, 7, 30, 365)
ON_A_PAGE = 100
SHOWN_DECIDED = 15


@page("/", "day.html")
def today(visit: Visit) -> Answer:
    """The newest day that has papers."""
    return _day(visit, None)


@get("/day")
def pick(visit: Visit) -> Response:
    """The date picker is a form: it asks for /day?date=."""
    return RedirectResponse(f"/day/{_date(visit.query('date')).isoformat()}", 303)


@page("/day/{day}", "day.html")
def day(visit: Visit) -> Answer:
    """The papers of a day."""
    return _day(visit, _date(visit.params["day"]))


def _date(text: str) -> date:
    try:
        if len(text) != 10:
            raise ValueError
        return date.fromisoformat(text)
    except ValueError:
        raise Problem(404, f"'{text[:40]}' is no date; write 2025-11-04.", "", ("/", "The newest day")) from None


def _how(visit: Visit) -> dict[str, Any]:
    """What a list of papers is asked for with."""
    order = shelf.order_of(visit.query("order", "newest"))
    who = {"subject": visit.subject, "account": shelf.whose(visit.person)}
    return {"order": order, **who, "limit": ON_A_PAGE, "cursor": visit.query("cursor")[:500]}


def _listed(visit: Visit, period: Period) -> dict[str, Any]:
    listing = period.listing
    return {
        "first": period.first.isoformat(),
        "last": period.last.isoformat(),
        "older": period.older,
        "newer": period.newer,
        "order": visit.query("order", "newest"),
        "orders": list(ORDERS),
        "count": listing.total,
        "runnable": listing.runnable,
        "cursor": listing.cursor,
        "subject": visit.subject,
        "cards": [shelf.shown(card, visit.subject) for card in listing.cards],
    }


def _day(visit: Visit, when: date | None) -> dict[str, Any]:
    period = listings.day(when, **_how(visit))
    listed = _listed(visit, period)
    totals = verdicts.decisive([chip for card in listed["cards"] for chip in card["chips"]])
    return {"schema": "nullius.web.day/1", "day": period.name, **listed, "totals": totals if any(totals.values()) else None}


@page("/week", "span.html")
def this_week(visit: Visit) -> Answer:
    """The week of the newest day."""
    year, number, _ = listings.day(limit=1).first.isocalendar()
    return _span(visit, "week", listings.week(year, number, **_how(visit)))


@page("/week/{week}", "span.html")
def week(visit: Visit) -> Answer:
    """The papers of an ISO week, and what was decided in it."""
    match = re.fullmatch(r"([0-9]{4})-W([0-9]{2})", visit.params["week"])
    if not match:
        raise Problem(404, f"There is no week '{visit.params['week'][:40]}'; write 2025-W45.", "", ("/week", "The newest week"))
    year, number = int(match[1]), int(match[2])
    try:
        return _span(visit, "week", listings.week(year, number, **_how(visit)))
    except UsageError:
        close = listings.nearest_week(year, number)
        raise Problem(404, f"There is no week {match[0]}.", "", (f"/week/{close}", f"The nearest: {close}")) from None


@page("/month", "span.html")
def this_month(visit: Visit) -> Answer:
    """The month of the newest day."""
    newest = listings.day(limit=1).first
    return _span(visit, "month", listings.month(newest.year, newest.month, **_how(visit)))


@page("/month/{month}", "span.html")
def month(visit: Visit) -> Answer:
    """The papers of a month, and what was decided in it."""
    match = re.fullmatch(r"([0-9]{4})-([0-9]{2})", visit.params["month"])
    if not match:
        raise Problem(404, f"There is no month '{visit.params['month'][:40]}'; write 2025-11.", "", ("/month", "The newest month"))
    year, number = int(match[1]), int(match[2])
    try:
        return _span(visit, "month", listings.month(year, number, **_how(visit)))
    except UsageError:
        close = f"{min(max(year, 1), 9998):04}-{min(max(number, 1), 12):02}"
        raise Problem(404, f"There is no month {match[0]}.", "", (f"/month/{close}", f"The nearest: {close}")) from None


def _span(visit: Visit, kind: str, period: Period) -> dict[str, Any]:
    decided = verdicts.recent(period.first.isoformat(), period.last.isoformat())
    return {
        "schema": f"nullius.web.{kind}/1",
        "kind": kind,
        "name": period.name,
        **_listed(visit, period),
        "decided": verdicts.decisive(decided),
        "papers_decided": _by_paper(decided),
        "verdicts": [
            {**{n: v[n] for n in ("slug", "claim", "word", "effect", "run")}, "subject": v["subject"]["name"]} for v in decided[:12]
        ],
    }


def _by_paper(decided: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Verdicts by paper and subject, those of the newest runs first: what came out, and the run."""
    together: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for verdict in decided:
        together.setdefault((verdict["slug"], verdict["subject"]["name"]), []).append(verdict)
    rows = []
    for (slug, subject), own in list(together.items())[:SHOWN_DECIDED]:
        about = {"slug": slug, "title": shelf.brief(slug)["title"], "subject": subject}
        rows.append({**about, "run": own[0]["run"], "tally": verdicts.decisive(own)})
    return rows


@page("/trending", "trending.html")
def trending(visit: Visit) -> Answer:
    """Papers by heat: what is voted for, run and decided now; the parts are shown."""
    days = visit.query("days", "0")
    if days not in {str(span) for span in SPANS}:
        raise Problem(422, f"Trending is of the last 7, 30 or 365 days, or of all (0), not '{days[:20]}'.")
    cards, cursor = shelf.trending(int(days), visit.person, visit.subject, cursor=visit.query("cursor")[:500])
    return {
        "schema": "nullius.web.trending/1",
        "days": int(days),
        "spans": list(SPANS),
        "subject": visit.subject,
        "as_of": datetime.now(UTC).replace(second=0, microsecond=0).isoformat(),
        "cursor": cursor,
        "cards": cards,
    }
