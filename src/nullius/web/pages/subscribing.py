"""Subscribing: what, when, how much; by Atom, which needs no address, or by mail, which needs a yes (double opt-in) and one click to leave."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from starlette.responses import Response

from nullius.feed.digest import message, subscriptions, watching
from nullius.feed.digest.clock import SCHEDULES, Schedule
from nullius.feed.digest.settings import unsubscribed
from nullius.web import limiting, mailing, shelf
from nullius.web.problems import Problem
from nullius.web.site import Answer, Visit, get, page, post, see

KINDS = {
    "daily": "papers of the day",
    "trending": "what is trending",
    "search": "a search",
    "author": "an author",
    "paper": "new verdicts on a paper",
    "subject": "new verdicts on a subject",
}
MOST_OF_TARGET = 1000  # longer ones are refused as such
ONE_CLICK = "One-Click"
CHANGES = {"leave": subscriptions.leave, "pause": subscriptions.pause, "weekly": subscriptions.weekly, "resume": subscriptions.resume}


@page("/subscribe", "subscribe.html")
def subscribe(visit: Visit) -> Answer:
    """Feeds by Atom, and by mail where this server sends any."""
    return _shown(visit)


def _shown(visit: Visit, sent: bool = False) -> dict[str, Any]:
    kind = visit.query("kind") if visit.query("kind") in KINDS else "daily"
    target = visit.query("target")[:500]
    feeds: list[dict[str, Any]] = [
        {"title": "Papers of the day", "path": "/feeds/daily.atom"},
        {"title": "Trending", "path": "/feeds/trending.atom"},
        {"title": "Papers of the week", "path": "/feeds/weekly.atom"},
        {"title": "New verdicts on anything", "path": "/feeds/verdicts.atom"},
    ]
    feeds += [{"title": f"New verdicts on {name}", "path": f"/feeds/subjects/{quote(name)}.atom"} for name in shelf.subject_names()]
    if kind not in ("daily", "trending") and target:
        feeds.insert(0, {"title": message.what(kind, target), "path": atom(kind, target)})
    about = {"kinds": KINDS, "kind": kind, "target": target, "schedules": list(SCHEDULES), "feeds": feeds, "mine": own(visit), "sent": sent}
    return {"schema": "nullius.web.subscribe/1", **about, "mail": mailing.setup(visit.settings) is not None, "email": visit.person.email}


def own(visit: Visit) -> list[dict[str, Any]]:
    """The subscriptions of whoever asks, each with its Atom address: by the address of the account; all of them for the owner of a local server."""
    if visit.settings.shared:
        found = subscriptions.of_email(visit.person.email) if visit.person.email else []
    else:
        found = watching.listed() if visit.person.role == "maintainer" else []
    names = ("id", "kind", "target", "schedule", "hour", "weekday", "tz", "at_most", "state", "created")
    return [{**{name: row[name] for name in names}, "atom": atom(row["kind"], row["target"])} for row in found]


def atom(kind: str, target: str) -> str:
    """Where a subscription is read without mail."""
    if kind in ("daily", "trending"):
        return f"/feeds/{kind}.atom"
    if kind in ("search", "author"):
        text = target if kind == "search" else f'author:"{target}"' if " " in target else f"author:{target}"
        return f"/feeds/search.atom?q={quote(text)}"
    return f"/feeds/{kind}s/{quote(target)}.atom"


def asked(visit: Visit, email: str, wish: subscriptions.Wish) -> None:
    """Ask the owner of an address whether they want this. Raises Problem 422 for what cannot be, 503 where no mail leaves."""
    visit.need("subscribe")
    limiting.mail(visit.request, visit.settings)
    how = mailing.setup(visit.settings)
    if how is None:
        raise Problem(503, "This server sends no mail.", "Every subscription has an Atom address too.", ("/subscribe", "Atom addresses"))

    def send(to: str, subject: str, text: str) -> None:
        mailing.send(visit.settings, to, subject, text)

    subscriptions.request(mailing.address(email), _known(wish), how, send, account=shelf.whose(visit.person) or None)


def _known(wish: subscriptions.Wish) -> subscriptions.Wish:
    """The wish with its target by its own name. Raises Problem 422 for a paper or subject that is not there, or can have no verdicts."""
    if wish.kind == "paper" and wish.target:
        try:
            found = shelf.paper(wish.target)
        except Problem as problem:
            raise Problem(422, problem.detail, problem.advice, problem.link) from None
        if not found["slug"]:
            raise Problem(422, f"{found['key']} has no study yet, and so no verdicts.", "", (f"/papers/{found['key']}", found["title"]))
        return dataclasses.replace(wish, target=found["slug"])
    if wish.kind == "subject" and wish.target and wish.target not in shelf.subject_names():
        raise Problem(422, f"There is no subject '{wish.target[:80]}' here.", "Choose one of the list.", ("/subjects", "Subjects"))
    return wish


@get("/subscribe/feed")
def feed(visit: Visit) -> Response:
    """Where a choice is read by Atom; asked by its button."""
    return _feed(visit.request.query_params)


@post("/subscribe/feed")
def feed_of_form(visit: Visit) -> Response:
    """The same, asked from within the form of a subscription by mail."""
    return _feed(visit.form)


def _feed(fields: Mapping[str, str]) -> Response:
    kind = fields.get("of", "")
    if kind not in KINDS:
        raise Problem(404, f"There is no feed of '{kind[:40]}'.", "", ("/subscribe", "Subscribe"))
    target = _target(fields, kind)
    if not target and kind not in ("daily", "trending"):
        raise Problem(422, f"Say which {kind} the feed is to be about.", "", (f"/subscribe?kind={kind}", "Subscribe"))
    return see(atom(kind, target))


def _target(fields: Mapping[str, str], kind: str) -> str:
    """What a subscription is about: each kind has a field of its own beside it, `target` serves programs and links."""
    return (fields.get("target") or fields.get(f"target-{kind}") or "").strip()[:MOST_OF_TARGET]


@post("/subscribe")
def ask(visit: Visit) -> Answer:
    """Ask the owner of an address. The answer is the same whether the address is known or not."""
    form = visit.form
    numbers = [form.get(name, default) for name, default in (("hour", "7"), ("at_most", "10"), ("weekday", "0"))]
    if not all(text.isascii() and text.isdecimal() and len(text) < 4 for text in numbers):
        raise Problem(422, "Hour, weekday and number of papers are whole numbers.", "", ("/subscribe", "Subscribe"))
    hour, at_most, weekday = map(int, numbers)
    when = Schedule(form.get("schedule", "daily"), hour, form.get("tz", "").strip() or "UTC", weekday)
    kind = form.get("kind", "")
    target = _target(form, kind)
    asked(visit, form.get("email", ""), subscriptions.Wish(kind, "" if kind in ("daily", "trending") else target, when, at_most))
    return {"template": "subscribe.html", **_shown(visit, sent=True)}


@post("/subscriptions/{id}")
def change(visit: Visit) -> Response:
    """Leave, pause, take up again, or get one of one's own subscriptions weekly."""
    visit.need("account")
    action = visit.form.get("action", "")
    if action not in CHANGES:
        raise Problem(422, "One can leave, pause, resume, or get it weekly.")
    CHANGES[action](owned(visit, visit.params["id"]))
    return visit.back("/subscribe")


def owned(visit: Visit, number: str) -> str:
    """The id of a subscription of one's own. Raises Problem 404 for any other."""
    if number not in {row["id"] for row in own(visit)}:
        raise Problem(404, "You have no such subscription.", "", ("/subscribe", "Subscribe"))
    return number


@page("/subscribe/confirm/{token}", "confirm.html")
def confirming(visit: Visit) -> Answer:
    """Where the link in the mail leads: a button, since mail scanners follow links."""
    what = subscriptions.waiting(visit.params["token"])
    if what is None:
        raise Problem(410, "This link was used already, or is older than 48 hours.", "Ask again.", ("/subscribe", "Subscribe"))
    return {"schema": "nullius.web.confirm/1", "what": what, "token": visit.params["token"]}


@post("/subscribe/confirm/{token}")
def confirm(visit: Visit) -> Answer:
    """Say yes."""
    number = subscriptions.confirm(visit.params["token"])
    if number is None:
        raise Problem(410, "This link was used already, or is older than 48 hours.", "Ask again.", ("/subscribe", "Subscribe"))
    about = subscriptions.describe(number)
    return {"template": "subscribed.html", "subscription": about, "token": None, "done": "confirmed"}


def _subscription(visit: Visit) -> dict[str, Any]:
    number = unsubscribed(visit.params["token"], visit.settings.secret)
    found = subscriptions.describe(number) if number else None
    if found is None:
        raise Problem(404, "This link is none of ours.", "", ("/subscribe", "Subscribe"))
    return found


@page("/u/{token}", "subscribed.html")
def leaving(visit: Visit) -> Answer:
    """Where the link to leave leads, for people: leave, pause, weekly instead."""
    return {"schema": "nullius.web.subscription/1", "subscription": _subscription(visit), "token": visit.params["token"], "done": ""}


@post("/u/{token}")
def leave(visit: Visit) -> Answer:
    """Leave. One click of a mail program (RFC 8058) needs no cookie, gets no redirect, and may come twice."""
    found = _subscription(visit)
    if visit.form.get("List-Unsubscribe") == ONE_CLICK:
        subscriptions.leave(found["id"])
        return Response("You will get no more of these.\n", media_type="text/plain")
    action = visit.form.get("action", "leave")
    if action not in CHANGES or action == "resume":
        raise Problem(422, "One can leave, pause, or get it weekly.")
    CHANGES[action](found["id"])
    return {
        "template": "subscribed.html",
        "subscription": subscriptions.describe(found["id"]),
        "token": visit.params["token"],
        "done": action,
    }
