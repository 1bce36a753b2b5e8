"""Search as pages, JSON and assistants need it: one function, with the filters of the search box."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from nullius.errors import UsageError
from nullius.feed import catalogue, listings
from nullius.feed.search import engine
from nullius.web.problems import Problem

if TYPE_CHECKING:
    from nullius.web.who import Person


@dataclass(frozen=True)
class Wish:
    """Which papers are wanted: found by q, or of a day, week or month, or all; in which order, and with which verdicts."""

    q: str = ""
    day: str = ""
    week: str = ""
    month: str = ""
    sort: str = "newest"
    runnable: bool | None = None
    verdict: str = ""
    subject: str = ""
    cursor: str = ""
    limit: int = 50


def papers(person: Person, wish: Wish) -> dict[str, Any]:
    """Return cards, their total and the way on. Raises Problem 422 for a date that does not exist or a cursor of another list."""
    from nullius.web import shelf

    how: dict[str, Any] = {"subject": wish.subject, "account": shelf.whose(person), "limit": wish.limit, "cursor": wish.cursor}
    if wish.q:
        words = [f"runnable:{'yes' if wish.runnable else 'no'}"] if wish.runnable is not None else []
        words += [f"verdict:{wish.verdict.replace(' ', '-')}"] if wish.verdict else []
        found = search(person, " ".join([wish.q, *words]), wish.subject, cursor=wish.cursor, limit=wish.limit)
        return {name: found[name] for name in ("papers", "total", "cursor", "message")}
    try:
        if wish.sort == "trending":
            cards, cursor = shelf.trending(0, person, wish.subject, wish.limit, wish.cursor)
            return {"papers": cards, "total": len(cards), "cursor": cursor or None}
        order = shelf.order_of(wish.sort)
        if wish.day:
            listing = listings.day(date.fromisoformat(wish.day), order=order, **how).listing
        elif wish.week:
            listing = listings.week(int(wish.week[:4]), int(wish.week[6:]), order=order, **how).listing
        elif wish.month:
            listing = listings.month(int(wish.month[:4]), int(wish.month[5:]), order=order, **how).listing
        else:
            listing = listings.papers(
                order=order, runnable=wish.runnable, verdict=wish.verdict, on=wish.subject if wish.verdict else "", **how
            )
    except UsageError as error:
        raise Problem(422, f"{str(error)[:1].upper()}{str(error)[1:]}.") from None
    except ValueError:
        raise Problem(422, f"There is no day '{wish.day[:20]}'.") from None
    return {"papers": [shelf.shown(card, wish.subject) for card in listing.cards], "total": listing.total, "cursor": listing.cursor or None}


def search(person: Person, text: str, subject: str, *, cursor: str = "", limit: int = 20) -> dict[str, Any]:
    """Return what a query finds: papers (cards with `why` and marked words), total, cursor, milliseconds, message, filters, dropped.

    Raises Problem 422 for a cursor that is none.
    """
    from nullius.web import shelf, verdicts

    try:
        found = engine.search(text[:5000], limit=limit, cursor=cursor, subject=subject, account=shelf.whose(person))
    except UsageError as error:
        raise Problem(422, f"{str(error)[:1].upper()}{str(error)[1:]}.") from None
    words = catalogue.words(found.query.asked)
    rows = []
    for hit in found.hits:
        card = shelf.shown(hit.card, subject)
        marked = {"marked": mark(card["title"], words), "excerpt": mark(card["summary"], words)}
        came = {"everywhere": verdicts.everywhere(card["slug"])} if card["runnable"] else {"everywhere": None}
        rows.append({**card, **came, "why": {"known": "named", "both": "words and meaning"}.get(hit.why, hit.why), **marked})
    filters = [{"text": one.text, "without": found.query.without(one).text} for one in found.query.filters]
    dropped = [f"Without {name} there are {n:,}.".replace(",", " ") for name, n in found.removed.items()]
    return {
        "papers": rows,
        "total": found.total,
        "cursor": found.cursor or None,
        "milliseconds": found.milliseconds,
        "message": " ".join(f"{line[:1].upper()}{line[1:]}.".replace("`", "") for line in found.messages) or None,
        "meaning": found.meaning,
        "filters": filters,
        "dropped": dropped,
    }


def mark(text: str, stems: Sequence[str]) -> str:
    """Return a text as HTML, escaped, with the words of a query marked."""
    wanted = set(stems)

    def one(match: re.Match[str]) -> str:
        word = html.escape(match[0])
        return f"<mark>{word}</mark>" if wanted & set(catalogue.words(match[0])) else word

    parts, at = [], 0
    for match in re.finditer(r"\w+", text):
        parts += [html.escape(text[at : match.start()]), one(match)]
        at = match.end()
    return "".join([*parts, html.escape(text[at:])])
