"""Subscribing by mail: nothing is sent to an address until its owner has said yes (double opt-in); leaving takes one click.

A request is answered alike whether the address is known or not. The confirmation is a link that works once, within 48 hours; it only shows a
button, since mail scanners follow links.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from ulid import ULID

from nullius.errors import UsageError
from nullius.feed.database import reading, writing
from nullius.feed.digest.clock import Schedule, moment
from nullius.feed.digest.message import KINDS, what
from nullius.feed.digest.settings import MailSettings
from nullius.feed.tables import account, address, subscription, ticket
from nullius.lab.schema import insert_new

CONFIRM_HOURS = 48
CONFIRMATIONS_A_DAY = 3
PAUSE_DAYS = 30
PURPOSE = "confirm subscription"
SendText = Callable[[str, str, str], None]  # to, subject, text


@dataclass(frozen=True)
class Wish:
    """What is asked for: a kind with its target (a search, an author, a paper's slug, a subject's name), when, and how many at most."""

    kind: str
    target: str
    schedule: Schedule
    at_most: int = 10

    def check(self) -> None:
        """Raise UsageError for a wish that cannot be fulfilled."""
        if self.kind not in KINDS:
            raise UsageError(f"there is no subscription to '{self.kind[:40]}'; there are {', '.join(KINDS)}")
        if (self.kind in ("daily", "trending")) == bool(self.target.strip()):
            raise UsageError(f"'{self.kind}' {'takes no target' if self.target.strip() else 'needs a target'}")
        if not self.target.isprintable():
            raise UsageError("a target is one line of text")
        if len(self.target) > 500 or not 1 <= self.at_most <= 50:
            raise UsageError("a target has at most 500 characters, a digest 1 to 50 papers")
        self.schedule.check()

    def values(self) -> dict[str, Any]:
        """Return the columns of `subscription`."""
        when = self.schedule
        own = {"kind": self.kind, "target": self.target.strip(), "at_most": self.at_most}
        return {**own, "schedule": when.kind, "hour": when.hour, "weekday": when.weekday, "tz": when.tz}


def request(
    email: str, wish: Wish, settings: MailSettings, send: SendText, *, account: str | None = None, now: datetime | None = None
) -> None:
    """Ask the owner of an address whether they want this. Says nothing about what was known of the address.

    At most three such mails go to an address in a day, none to one that bounced or complained. Raises UsageError for a bad wish.
    """
    wish.check()
    now = now or datetime.now(UTC)
    token = secrets.token_urlsafe(32)
    with writing() as connection:
        insert_new(connection, address, [{"email": email, "created": moment(now)}])
        own_row = sa.select(address).where(sa.func.lower(address.c.email) == email.lower())
        found = connection.execute(own_row.with_for_update()).mappings().one()  # two that ask at once take turns: no fourth mail
        recent = sa.select(sa.func.count()).where(ticket.c.purpose == PURPOSE, ticket.c.email == email.lower())
        asked = connection.execute(recent.where(ticket.c.created > moment(now - timedelta(days=1)))).scalar_one()
        if asked >= CONFIRMATIONS_A_DAY or found["suppressed_at"]:
            return
        payload = {**wish.values(), "account": account}
        expires = moment(now + timedelta(hours=CONFIRM_HOURS))
        own = {"sha256": _sha(token), "purpose": PURPOSE, "email": email.lower(), "payload": payload}
        connection.execute(ticket.insert().values(**own, created=moment(now), expires=expires))
    text = (
        f"Somebody, you we hope, asked nullius to send you {_harmless(what(wish.kind, wish.target))} ({wish.schedule.kind}).\n\n"
        f"Yes, send it:\n{settings.base_url}/subscribe/confirm/{token}\n\n"
        f"The link works once, for {CONFIRM_HOURS} hours. If you did not ask, do nothing: no other mail will come.\n"
    )
    send(found["email"], "Confirm your subscription", text)


def _harmless(text: str) -> str:
    """A text of whoever asked, for a mail to somebody who may not have: nothing in it is a link or a line of its own. The page shows it as it is."""
    return re.sub(r"[^\w “”-]+", " ", text).strip()


def waiting(token: str, now: datetime | None = None) -> str | None:
    """Return in words what a confirmation link is for; None when it was used, is too old, or was never made."""
    with reading() as connection:
        found = connection.execute(_open_ticket(token, now or datetime.now(UTC))).mappings().first()
    return what(found["payload"]["kind"], found["payload"]["target"]) if found else None


def confirm(token: str, now: datetime | None = None) -> str | None:
    """Say yes: the subscription becomes active. Returns its id, None for a link that no longer works."""
    now = now or datetime.now(UTC)
    with writing() as connection:
        found = connection.execute(_open_ticket(token, now)).mappings().first()
        if found is None:
            return None
        used = ticket.update().where(ticket.c.sha256 == found["sha256"], ticket.c.used_at.is_(None)).values(used_at=moment(now))
        if connection.execute(used).rowcount != 1:
            return None
        own_row = sa.select(address).where(sa.func.lower(address.c.email) == found["email"]).with_for_update()
        owner = connection.execute(own_row).mappings().one()  # two links for one wish take turns
        if owner["suppressed_at"]:
            return None
        payload = found["payload"]
        if connection.execute(sa.select(account.c.id).where(account.c.id == payload["account"])).scalar() is None:
            payload = {**payload, "account": None}  # whoever asked has left meanwhile
        connection.execute(
            address.update().where(address.c.id == owner["id"], address.c.confirmed_at.is_(None)).values(confirmed_at=moment(now))
        )
        values = {**payload, "state": "active", "created": moment(now), "paused_until": None}
        same = (subscription.c.address == owner["id"], subscription.c.kind == values["kind"], subscription.c.target == values["target"])
        known = connection.execute(sa.select(subscription.c.id).where(*same)).scalar()
        if known:
            connection.execute(subscription.update().where(subscription.c.id == known).values(**values))
            return str(known)
        number = str(ULID())
        connection.execute(subscription.insert().values(id=number, address=owner["id"], **values))
        return number


def leave(number: str) -> bool:
    """End a subscription, for good; asked again, nothing more happens. Returns whether there is such a subscription.

    Confirmations that were asked for earlier and still wait are worth nothing from here on: only a new wish brings it back.
    """
    with writing() as connection:
        query = sa.select(subscription.c.kind, subscription.c.target, address.c.email).join(address)
        found = connection.execute(query.where(subscription.c.id == number)).mappings().first()
        if found is None:
            return False
        connection.execute(subscription.update().where(subscription.c.id == number).values(state="left", paused_until=None))
        open_ = (ticket.c.purpose == PURPOSE, ticket.c.email == found["email"].lower(), ticket.c.used_at.is_(None))
        for sha, payload in connection.execute(sa.select(ticket.c.sha256, ticket.c.payload).where(*open_)).all():
            if (payload["kind"], payload["target"]) == (found["kind"], found["target"]):
                connection.execute(ticket.update().where(ticket.c.sha256 == sha).values(used_at=moment(datetime.now(UTC))))
    return True


def pause(number: str, now: datetime | None = None) -> bool:
    """Send nothing for thirty days. One that was left stays so."""
    until = (now or datetime.now(UTC)) + timedelta(days=PAUSE_DAYS)
    return _change(number, ("active", "paused"), state="paused", paused_until=moment(until))


def weekly(number: str) -> bool:
    """Send once a week instead, on Mondays."""
    return _change(number, ("active", "paused"), schedule="weekly", weekday=0)


def resume(number: str) -> bool:
    """Send again what was paused, or suspended since mail came back: its owner says that the address works. One that was left stays so."""
    began = moment(datetime.now(UTC))  # what came meanwhile is not made up for
    return _change(number, ("paused", "suspended"), state="active", paused_until=None, created=began)


def describe(number: str) -> dict[str, Any] | None:
    """Return what a page says of a subscription: its id, state and words; None when there is none."""
    with reading() as connection:
        found = connection.execute(sa.select(subscription).where(subscription.c.id == number)).mappings().first()
    if found is None:
        return None
    return {"id": number, "state": found["state"], "schedule": found["schedule"], "what": what(found["kind"], found["target"])}


def of_email(email: str) -> list[dict[str, Any]]:
    """Return the subscriptions of an address, as rows."""
    query = (
        sa.select(subscription).join(address, address.c.id == subscription.c.address).where(sa.func.lower(address.c.email) == email.lower())
    )
    with reading() as connection:
        return [dict(row) for row in connection.execute(query.order_by(subscription.c.id)).mappings()]


def _change(number: str, only: tuple[str, ...] = (), **values: Any) -> bool:
    with writing() as connection:
        query = subscription.update().where(subscription.c.id == number)
        changed = connection.execute((query.where(subscription.c.state.in_(only)) if only else query).values(**values))
    return bool(changed.rowcount)


def _open_ticket(token: str, now: datetime) -> sa.Select[Any]:
    alive = (ticket.c.used_at.is_(None), ticket.c.expires > moment(now))
    return sa.select(ticket).where(ticket.c.sha256 == _sha(token), ticket.c.purpose == PURPOSE, *alive)


def _sha(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
