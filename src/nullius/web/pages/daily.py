"""The feed by time: a day, a week, a month, and what is talked about now."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

from starlette.responses import RedirectResponse, Response

from nullius.web import shelf, verdicts, words
from nullius.web.problems import Problem
from nullius.web.site import Answer, Visit, get, page

SPANS = (7, 30, 365, 0)


@page("/", "day.html")
def today(visit: Visit) -> Answer:
    """The newest day that has papers."""
    newest = shelf.newest_day()
    return _day(visit, newest or datetime.now(UTC).date())


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


def _order(visit: Visit) -> str:
    order = visit.query("order", "newest")
    if order not in shelf.ORDERS:
        raise Problem(422, f"Papers are ordered by {', '.join(shelf.ORDERS)}, not by '{order[:40]}'.")
    return order


def _day(visit: Visit, when: date) -> dict[str, Any]:
    order = _order(visit)
    ids = shelf.ids_between(when, when, order)
    older, newer = shelf.around(when)
    found = shelf.cards(ids[:200], visit.person, visit.subject)
    return {
        "schema": "nullius.web.day/1",
        "day": when.isoformat(),
        "older": older.isoformat() if older else None,
        "newer": newer.isoformat() if newer else None,
        "order": order,
        "orders": list(shelf.ORDERS),
        "count": len(ids),
        "runnable": sum(card["runnable"] for card in found),
        "subject": visit.subject,
        "cards": found,
    }


@page("/week", "span.html")
def this_week(visit: Visit) -> Answer:
    """The week of the newest day."""
    newest = shelf.newest_day() or datetime.now(UTC).date()
    return _span(visit, "week", words.week_name(newest), *words.week(words.week_name(newest)))


@page("/week/{week}", "span.html")
def week(visit: Visit) -> Answer:
    """The papers of an ISO week, and what was decided in it."""
    name = visit.params["week"]
    try:
        if len(name) != 8:
            raise ValueError
        return _span(visit, "week", name, *words.week(name))
    except (ValueError, OverflowError):
        now = words.week_name(shelf.newest_day() or datetime.now(UTC).date())
        raise Problem(
            404, f"There is no week '{name[:40]}'; write 2025-W45.", "", (f"/week/{_near_week(name) or now}", "The nearest week")
        ) from None


def _near_week(name: str) -> str:
    """Week 53 of a year that has 52 is near its last."""
    year = name[:4]
    if not (year.isascii() and year.isdecimal() and 1 <= int(year) <= 9998):
        return ""
    return words.week_name(date(int(year), 12, 28))


@page("/month", "span.html")
def this_month(visit: Visit) -> Answer:
    """The month of the newest day."""
    name = (shelf.newest_day() or datetime.now(UTC).date()).isoformat()[:7]
    return _span(visit, "month", name, *words.month(name))


@page("/month/{month}", "span.html")
def month(visit: Visit) -> Answer:
    """The papers of a month, and what was decided in it."""
    name = visit.params["month"]
    try:
        if len(name) != 7:
            raise ValueError
        return _span(visit, "month", name, *words.month(name))
    except (ValueError, OverflowError):
        now = (shelf.newest_day() or datetime.now(UTC).date()).isoformat()[:7]
        raise Problem(404, f"There is no month '{name[:40]}'; write 2025-11.", "", (f"/month/{now}", "The newest month")) from None


def _span(visit: Visit, kind: str, name: str, first: date, last: date) -> dict[str, Any]:
    order = _order(visit)
    ids = shelf.ids_between(first, last, order)
    older, newer = shelf.around(first)[0], shelf.around(last)[1]

    def label(when: date | None) -> str | None:
        return None if when is None else words.week_name(when) if kind == "week" else when.isoformat()[:7]

    decided = verdicts.recent(first.isoformat(), last.isoformat())
    return {
        "schema": f"nullius.web.{kind}/1",
        "kind": kind,
        "name": name,
        "first": first.isoformat(),
        "last": last.isoformat(),
        "older": label(older),
        "newer": label(newer),
        "order": order,
        "orders": list(shelf.ORDERS),
        "count": len(ids),
        "decided": verdicts.decisive(decided),
        "verdicts": [
            {**{n: v[n] for n in ("slug", "claim", "word", "effect", "run")}, "subject": v["subject"]["name"]} for v in decided[:12]
        ],
        "subject": visit.subject,
        "cards": shelf.cards(ids[:200], visit.person, visit.subject),
    }


@page("/trending", "trending.html")
def trending(visit: Visit) -> Answer:
    """Papers by heat: what is voted for, run and decided now; the parts are shown."""
    days = visit.query("days", "0")
    if days not in {str(span) for span in SPANS}:
        raise Problem(422, f"Trending is of the last {', '.join(str(s) for s in SPANS if s)} days, or of all (0), not '{days[:20]}'.")
    found = shelf.trending(int(days), 50)
    shown = {card["key"]: card for card in shelf.cards([entry["id"] for entry in found], visit.person, visit.subject)}
    cards = [{**shown[entry["key"]], "heat": entry["heat"], "parts": entry["parts"]} for entry in found if entry["key"] in shown]
    return {
        "schema": "nullius.web.trending/1",
        "days": int(days),
        "spans": list(SPANS),
        "subject": visit.subject,
        "as_of": datetime.now(UTC).replace(second=0, microsecond=0).isoformat(),
        "cards": cards,
    }
