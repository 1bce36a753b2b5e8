"""Subscribing by mail: asking, saying yes, leaving with one click (RFC 8058)."""

from __future__ import annotations

from starlette.responses import PlainTextResponse

from nullius.errors import UsageError
from nullius.feed.digest import subscriptions
from nullius.feed.digest.clock import Schedule
from nullius.feed.digest.settings import MailSettings, unsubscribed
from nullius.feed.digest.subscriptions import Wish
from nullius.web import mailing
from nullius.web.problems import Problem
from nullius.web.site import Answer, Visit, page, post

ASKED = "If this address can be reached, a mail is on its way to it. Nothing else is sent before its link has been followed."


@post("/subscribe")
def ask(visit: Visit) -> Answer:
    """Ask for a digest. Answered alike whether the address is known or not."""
    visit.need("subscribe")
    form = visit.form
    email = mailing.address(form.get("email", ""))
    try:
        schedule = Schedule(
            form.get("schedule", "daily"), _number(form, "hour", 7), form.get("tz", "UTC").strip(), _number(form, "weekday", 0)
        )
        kind = form.get("kind", "daily")
        target = "" if kind in ("daily", "trending") else form.get("target", "")
        wish = Wish(kind, target, schedule, _number(form, "at_most", 10))
        wish.check()
    except UsageError as error:
        raise Problem(422, f"{str(error)[:1].upper()}{str(error)[1:]}.", "", ("/subscribe", "Subscribe")) from None
    if not mailing.possible():
        raise Problem(503, "This server cannot send mail.", "Subscribe by Atom, or tell who runs it: mail is not set up.")
    account = visit.person.account if visit.settings.shared and visit.person.role != "visitor" else None
    links = MailSettings("", "", visit.settings.base_url, visit.settings.secret)
    subscriptions.request(email, wish, links, mailing.deliver, account=account or None)
    return {"template": "mailed.html", "schema": "nullius.web.mailed/1", "heading": "Look into your mail", "text": ASKED, "token": ""}


def _number(form: dict[str, str], name: str, default: int) -> int:
    text = form.get(name, "").strip() or str(default)
    if not (text.isascii() and text.isdecimal() and len(text) < 4):
        raise UsageError(f"{name.replace('_', ' ')} is a number, not '{text[:20]}'")
    return int(text)


@page("/subscribe/confirm/{token}", "mailed.html")
def confirming(visit: Visit) -> Answer:
    """What a confirmation link shows: a button, since mail scanners follow links."""
    token = visit.params["token"][:200]
    what = subscriptions.waiting(token)
    if what is None:
        raise Problem(410, "This link was used already, or is too old.", "Ask again.", ("/subscribe", "Subscribe"))
    return {"schema": "nullius.web.mailed/1", "heading": "Confirm", "text": f"Send me {what}.", "token": token}


@post("/subscribe/confirm/{token}")
def confirmed(visit: Visit) -> Answer:
    """Say yes."""
    if subscriptions.confirm(visit.params["token"][:200]) is None:
        raise Problem(410, "This link was used already, or is too old.", "Ask again.", ("/subscribe", "Subscribe"))
    text = "It is on: the first mail comes when its hour comes, and there is something new. Each mail has a link to leave."
    return {"template": "mailed.html", "schema": "nullius.web.mailed/1", "heading": "Subscribed", "text": text, "token": ""}


@page("/u/{token}", "leave.html")
def leaving(visit: Visit) -> Answer:
    """What an unsubscribe link shows: buttons. Nothing changes by looking."""
    return {"schema": "nullius.web.leave/1", "token": visit.params["token"], "done": "", **_known(visit)}


@post("/u/{token}")
def left(visit: Visit) -> Answer:
    """Leave, pause or get it weekly instead. One click from a mail program: no cookie, no redirect, as often as it likes."""
    known = _known(visit)
    number, wish = known["id"], visit.form.get("do", "leave")
    if wish == "pause":
        done = "Paused for 30 days." if subscriptions.pause(number) else "It was left already."
    elif wish == "weekly":
        done = "Once a week from now on." if subscriptions.weekly(number) else "It was left already."
    else:
        subscriptions.leave(number)
        done = "You have left. Nothing more will come."
    if visit.form.get("List-Unsubscribe") == "One-Click":
        return PlainTextResponse(f"{done}\n")
    return {"template": "leave.html", "schema": "nullius.web.leave/1", "token": visit.params["token"], "done": done, **_known(visit)}


def _known(visit: Visit) -> dict[str, str]:
    number = unsubscribed(visit.params["token"][:500], visit.settings.secret)
    found = subscriptions.describe(number) if number else None
    if found is None:
        raise Problem(404, "This link leads to no subscription.", "It may have been cut off: copy all of it from the mail.")
    return found
