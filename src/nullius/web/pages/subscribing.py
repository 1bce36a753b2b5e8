"""Subscribing: what, when, how much; beside each the Atom address, which needs no e-mail."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from nullius.web import mailing, shelf
from nullius.web.site import Answer, Visit, page

KINDS = {
    "daily": "papers of the day",
    "trending": "what is trending",
    "search": "a search",
    "author": "an author",
    "paper": "new verdicts on a paper",
    "subject": "new verdicts on a subject",
}


@page("/subscribe", "subscribe.html")
def subscribe(visit: Visit) -> Answer:
    """Feeds by Atom, and by mail where this server sends any."""
    kind = visit.query("kind") if visit.query("kind") in KINDS else "daily"
    target = visit.query("target")[:500]
    feeds: list[dict[str, Any]] = [
        {"title": "Papers of the day", "path": "/feeds/daily.atom"},
        {"title": "Papers of the week", "path": "/feeds/weekly.atom"},
        {"title": "Trending", "path": "/feeds/trending.atom"},
        {"title": "New verdicts on anything", "path": "/feeds/verdicts.atom"},
    ]
    feeds += [{"title": f"New verdicts on {name}", "path": f"/feeds/subjects/{quote(name)}.atom"} for name in shelf.subject_names()]
    if kind == "search" and target:
        feeds.insert(0, {"title": f"The search “{target[:80]}”", "path": f"/feeds/search.atom?q={quote(target)}"})
    return {"schema": "nullius.web.subscribe/1", "kinds": KINDS, "kind": kind, "target": target, "feeds": feeds, "mail": mailing.possible()}
