"""Atom feeds: the day, the week, what is trending, verdicts, a search, one paper, one subject. Ids never change; `updated` moves with verdicts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any
from urllib.parse import quote, urlsplit

from feedgen.feed import FeedGenerator
from starlette.responses import Response

from nullius.feed import listings
from nullius.web import finding, shelf, verdicts, words
from nullius.web.pages import searching
from nullius.web.problems import Problem
from nullius.web.site import Visit, get

ENTRIES = 50
EPOCH = "2025-01-01"  # of the tag: addresses
_FORBIDDEN = {i: None for i in range(32) if i not in (9, 10, 13)} | {0xFFFE: None, 0xFFFF: None}


def _clean(text: str) -> str:
    """XML has no control characters."""
    return text.translate(_FORBIDDEN).encode("utf-8", "ignore").decode()


class _Feed:
    def __init__(self, visit: Visit, path: str, title: str, page: str) -> None:
        self.base = visit.settings.base_url
        self.visit, self.host, self.dates = visit, urlsplit(self.base).hostname or "localhost", []  # type: ignore[var-annotated]
        self.made = FeedGenerator()
        self.made.id(f"tag:{self.host},{EPOCH}:feed:{quote(path)}")
        self.made.title(_clean(title))
        self.made.link(href=f"{self.base}{path}", rel="self", type="application/atom+xml")
        self.made.link(href=f"{self.base}{page}", rel="alternate", type="text/html")
        self.made.generator("nullius")

    def earlier(self, path: str) -> None:
        self.made.link(href=f"{self.base}{path}", rel="prev-archive")

    def paper(self, card: Mapping[str, Any], authors: Sequence[str] = ()) -> None:
        """An entry for a paper; updated when it appeared, or when the newest verdict on it was given."""
        newest = max((v["finished"] for v in verdicts.index().by_slug.get(card["slug"] or "", [])), default="")
        published = f"{card['published'] or EPOCH}T00:00:00+00:00"
        entry = self._entry(f"paper:{card['key']}", card["title"], f"/papers/{quote(card['key'])}", max(newest, published))
        entry.published(published)
        told = ", ".join(f"{c['word']} {c['claim']} {words.interval(c['effect'])}" for c in card["chips"][:6])
        entry.summary(_clean(f"{card['summary']}{f' On {self.visit.subject}: {told}.' if told else ''}"))
        for name in authors or ["unknown"]:
            entry.author(name=_clean(name))
        for term in dict.fromkeys(name for name in (card["category"], card["question"]) if name):
            entry.category(term=_clean(term))

    def verdict(self, found: Mapping[str, Any]) -> None:
        """An entry for a verdict: one for each claim's wording and subject, updated when a newer run speaks."""
        subject = found["subject"]
        title = f"{found['word']}: {found['claim']} on {subject['name']}"
        entry = self._entry(f"verdict:{found['digest']}:{subject['sha256'][:16]}", title, f"/runs/{found['run']}", found["finished"])
        effect = f"{words.interval(found['effect'])}, control {words.interval(found['control'])}. " if found["effect"] else ""
        entry.summary(_clean(f"{found['wording']}. {effect}{found['reason']}"))
        entry.author(name="nullius")
        entry.category(term=found["word"])
        entry.category(term=found["slug"])

    def _entry(self, name: str, title: str, path: str, updated: str) -> Any:
        entry = self.made.add_entry(order="append")
        entry.id(f"tag:{self.host},{EPOCH}:{quote(name)}")
        entry.title(_clean(title))
        entry.link(href=f"{self.base}{path}", rel="alternate", type="text/html")
        entry.updated(updated)
        self.dates.append(datetime.fromisoformat(updated))
        return entry

    def response(self) -> Response:
        newest = max(self.dates, default=datetime(2025, 1, 1, tzinfo=UTC))
        self.made.updated(newest)
        text = self.made.atom_str(pretty=True).decode()
        site = self.visit.request.app.state.site
        response: Response = site.reply(self.visit.request, text, "application/atom+xml; charset=utf-8")
        response.headers["Last-Modified"] = format_datetime(newest.astimezone(UTC).replace(microsecond=0), usegmt=True)
        return response


def _papers(feed: _Feed, cards: Sequence[Mapping[str, Any]], names: Mapping[str, Sequence[str]]) -> None:
    for card in cards[:ENTRIES]:
        feed.paper(card, names.get(card["key"], ()))


def _lead_on(feed: _Feed, path: str, cursor: str, older: str | None) -> None:
    """Where the archive goes on: with what else stood on that day or in that week, then with the one before."""
    if cursor:
        feed.earlier(f"{path}&cursor={quote(cursor)}")
    elif older:
        feed.earlier(older)


@get("/feeds/daily.atom")
def daily(visit: Visit) -> Response:
    """Papers of the newest day, or of ?day=."""
    when = None
    if visit.query("day"):
        try:
            when = datetime.strptime(visit.query("day"), "%Y-%m-%d").date()
        except ValueError:
            raise Problem(422, "day is a date such as 2025-11-04.") from None
    period = listings.day(when, subject=visit.subject, limit=ENTRIES, cursor=visit.query("cursor"))
    feed = _Feed(visit, "/feeds/daily.atom", "nullius: papers of the day", "/")
    _lead_on(feed, f"/feeds/daily.atom?day={period.name}", period.listing.cursor, period.older and f"/feeds/daily.atom?day={period.older}")
    _papers(feed, *_shown(period.listing.cards, visit))
    return feed.response()


def _shown(cards: Sequence[Any], visit: Visit) -> tuple[list[dict[str, Any]], dict[str, Sequence[str]]]:
    return [shelf.shown(card, visit.subject) for card in cards], {card.key: card.authors for card in cards}


@get("/feeds/weekly.atom")
def weekly(visit: Visit) -> Response:
    """Papers of the newest week, or of ?week=."""
    wanted = re.fullmatch(r"([0-9]{4})-W([0-9]{2})", visit.query("week"))
    if visit.query("week") and not wanted:
        raise Problem(422, "week is an ISO week such as 2025-W45.")
    year, number = (int(wanted[1]), int(wanted[2])) if wanted else listings.day(limit=1).first.isocalendar()[:2]
    period = listings.week(year, number, order="voted", subject=visit.subject, limit=ENTRIES, cursor=visit.query("cursor"))
    feed = _Feed(visit, "/feeds/weekly.atom", "nullius: papers of the week", "/week")
    _lead_on(
        feed, f"/feeds/weekly.atom?week={period.name}", period.listing.cursor, period.older and f"/feeds/weekly.atom?week={period.older}"
    )
    _papers(feed, *_shown(period.listing.cards, visit))
    return feed.response()


@get("/feeds/trending.atom")
def trending(visit: Visit) -> Response:
    """What is voted for, run and decided now."""
    found = listings.trending(subject=visit.subject, limit=ENTRIES)
    feed = _Feed(visit, "/feeds/trending.atom", "nullius: trending", "/trending")
    _papers(feed, *_shown(found.listing.cards, visit))
    return feed.response()


@get("/feeds/verdicts.atom")
def newest_verdicts(visit: Visit) -> Response:
    """The newest verdicts on anything."""
    return _verdicts(visit, "/feeds/verdicts.atom", "nullius: verdicts", "/runs", verdicts.index().verdicts)


def _verdicts(visit: Visit, path: str, title: str, page: str, found: Sequence[Mapping[str, Any]]) -> Response:
    feed, before = _Feed(visit, path, title, page), visit.query("before")[:40]
    newest = sorted((v for v in found if not before or v["finished"] < before), key=lambda v: v["finished"], reverse=True)
    shown = newest[:ENTRIES]
    if len(newest) > ENTRIES:  # a run gives its verdicts at one moment: all of them stand on one page, or an archive would leave some out
        last = shown[-1]["finished"]
        shown += [v for v in newest[ENTRIES:] if v["finished"] == last]
        if len(shown) < len(newest):
            feed.earlier(f"{path}?before={quote(last)}")
    for verdict in shown:
        feed.verdict(verdict)
    return feed.response()


@get("/feeds/search.atom")
def search(visit: Visit) -> Response:
    """What a search finds, best first."""
    text = searching.asked(visit)
    if not text:
        raise Problem(422, "A search feed needs ?q=.", "", ("/search", "Search"))
    found = finding.search(visit.person, text, visit.subject, limit=ENTRIES)["papers"]
    feed = _Feed(visit, f"/feeds/search.atom?q={quote(text)}", f"nullius: {text[:100]}", f"/search?q={quote(text)}")
    _papers(feed, found, {})
    return feed.response()


@get("/feeds/papers/{key:path}.atom")
def paper(visit: Visit) -> Response:
    """New verdicts on one paper."""
    found = shelf.paper(visit.params["key"])
    own = verdicts.index().by_slug.get(found["slug"] or "", [])
    return _verdicts(visit, f"/feeds/papers/{found['key']}.atom", f"nullius: {found['title']}", f"/papers/{found['key']}", own)


@get("/feeds/subjects/{name:path}.atom")
def subject(visit: Visit) -> Response:
    """New verdicts on one subject."""
    name = visit.params["name"]
    if name not in shelf.subject_names():
        raise Problem(404, f"There is no subject '{name[:80]}' here.", "", ("/subjects", "Subjects"))
    own = [v for v in verdicts.index().verdicts if v["subject"]["name"] == name]
    return _verdicts(visit, f"/feeds/subjects/{quote(name)}.atom", f"nullius: verdicts on {name}", f"/subjects/{quote(name)}", own)
