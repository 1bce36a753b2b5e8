"""Exactly one mail for each subscription and period, though the sender be killed at any instruction.

`plan` inserts deliveries, unique by subscription and period. `send` claims one in a transaction of its own (planned → sending), offers it to the
server, and writes down what became of it. A crash after the server's 250 leaves `sending`; after ten minutes that becomes `unknown`, which is
never sent again by itself. Papers are noted as sent in the claim, so that no later mail repeats them; they are given free again when the
period is given up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from nullius.feed.database import reading, writing
from nullius.feed.digest import contents
from nullius.feed.digest.clock import LATE_HOURS, Schedule, current, in_time, moment
from nullius.feed.digest.message import compose, fitting
from nullius.feed.digest.settings import MailSettings
from nullius.feed.digest.transport import PermanentFailure, TemporaryFailure, Transport, UnknownOutcome
from nullius.feed.tables import address, bounce, delivered_paper, delivery, subscription
from nullius.lab.schema import insert_new

RETRY_AFTER = (timedelta(minutes=5), timedelta(minutes=30), timedelta(hours=2), timedelta(hours=8))
UNKNOWN_AFTER = timedelta(minutes=10)
LONGEST_MADE_UP_FOR = timedelta(days=31)
BATCH = 500
NOTHING = "nothing new"
log = logging.getLogger("nullius.feed")
_TOLD = sa.or_(delivery.c.state.in_(("sent", "unknown")), sa.and_(delivery.c.state == "skipped", delivery.c.error == NOTHING))
_LAST = sa.select(sa.func.max(delivery.c.due)).where(
    delivery.c.subscription == subscription.c.id, delivery.c.due < sa.bindparam("due"), _TOLD
)
_WANTED = (  # made once, since it is asked for each mail: the subscription, its address, and up to when it was told what there is
    sa.select(subscription, address.c.email, address.c.suppressed_at, _LAST.correlate(subscription).scalar_subquery().label("told_until"))
    .join(address, address.c.id == subscription.c.address)
    .where(subscription.c.id == sa.bindparam("number"))
)


@dataclass
class Report:
    """What a round of sending did, by outcome."""

    counts: dict[str, int] = field(default_factory=dict)

    def add(self, outcome: str) -> None:
        self.counts[outcome] = self.counts.get(outcome, 0) + 1

    def __str__(self) -> str:
        return ", ".join(f"{n} {word}" for word, n in sorted(self.counts.items())) or "nothing was due"


def plan(settings: MailSettings, now: datetime | None = None) -> int:
    """Plan what is due now. Returns how many deliveries are new; planned twice, they are the same."""
    now = now or datetime.now(UTC)
    with writing() as connection:
        over = (subscription.c.state == "paused", subscription.c.paused_until <= moment(now))
        connection.execute(subscription.update().where(*over).values(state="active", paused_until=None, created=moment(now)))
    query = sa.select(subscription).join(address, address.c.id == subscription.c.address)
    query = query.where(subscription.c.state == "active", address.c.confirmed_at.is_not(None), address.c.suppressed_at.is_(None))
    with reading() as connection:
        wanted = [dict(row) for row in connection.execute(query.order_by(subscription.c.id)).mappings()]
    rows = []
    for one in wanted:
        period = current(_schedule(one), now)
        if in_time(period, now, datetime.fromisoformat(one["created"])):
            own = {"subscription": one["id"], "period_key": period.key, "due": moment(period.due), "next_try": moment(now)}
            rows.append({**own, "state": "planned", "message_id": settings.message_id(one["id"], period.key)})
    new = 0
    for start in range(0, len(rows), BATCH):
        with writing() as connection:
            new += insert_new(connection, delivery, rows[start : start + BATCH])
    return new


def send(
    settings: MailSettings,
    *,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    transport: Transport | None = None,
    most: int | None = None,
) -> Report:
    """Send what is planned, one by one, over one connection. Several senders may work at once: each delivery is one's alone."""
    report, shared = Report(), contents.Shared()
    forget(now())
    with transport or Transport(settings) as line:
        while most is None or sum(report.counts.values()) < most:
            claimed = _claim(now(), shared)
            if claimed is None:
                return report
            report.add(_deliver(settings, line, claimed, now))
    return report


def forget(now: datetime) -> int:
    """Deliveries that a sender left half done ten minutes ago become `unknown`: the mail may have been taken. Returns how many."""
    stale = (delivery.c.state == "sending", delivery.c.claimed_at < moment(now - UNKNOWN_AFTER))
    with writing() as connection:
        told = {"state": "unknown", "error": "its sender ended before it could say whether the mail was taken"}
        return connection.execute(delivery.update().where(*stale).values(**told)).rowcount


@dataclass(frozen=True)
class _Claimed:
    row: dict[str, Any]
    wanted: dict[str, Any]
    to: str
    what: contents.Contents


def _claim(now: datetime, shared: contents.Shared) -> _Claimed | None:
    """Take one delivery and note its papers, in one transaction. Ones that must not or need not be sent end here."""
    while True:
        with writing() as connection:
            due = sa.select(delivery.c.id).where(delivery.c.state == "planned", delivery.c.next_try <= moment(now))
            due = due.order_by(delivery.c.next_try, delivery.c.id).limit(1)
            if connection.dialect.name == "postgresql":
                due = due.with_for_update(skip_locked=True)
            number = connection.execute(due).scalar()
            if number is None:
                return None
            mine = delivery.update().where(delivery.c.id == number, delivery.c.state == "planned")
            mine = mine.values(state="sending", claimed_at=moment(now), attempts=delivery.c.attempts + 1).returning(delivery)
            row = connection.execute(mine).mappings().first()
            if row is None:
                continue
            wanted = dict(connection.execute(_WANTED, {"number": row["subscription"], "due": row["due"]}).mappings().one())
            if wanted["state"] != "active" or wanted["suppressed_at"]:
                _end(connection, number, "skipped", "left, paused or suppressed since it was planned")
                continue
            due_at = datetime.fromisoformat(row["due"])
            if row["attempts"] == 1 and now - due_at >= timedelta(hours=LATE_HOURS):
                _end(connection, number, "skipped", "too late: it comes with the next")
                continue
            what = contents.of(connection, wanted, _since(wanted, due_at), due_at, number, shared)
            if what.empty:
                _end(connection, number, "skipped", NOTHING)
                continue
            connection.execute(delivered_paper.delete().where(delivered_paper.c.delivery == number))
            if what.papers:
                noted = [{"subscription": row["subscription"], "paper": card.id, "delivery": number} for card in what.papers]
                connection.execute(delivered_paper.insert(), noted)
            return _Claimed(dict(row), wanted, wanted["email"], what)


def _deliver(settings: MailSettings, line: Transport, claimed: _Claimed, now: Callable[[], datetime]) -> str:
    row, number = claimed.row, claimed.row["id"]
    try:
        message, shown = fitting(settings, claimed.wanted, claimed.what, row["message_id"], claimed.to, now())
    except Exception as error:  # one that cannot be written must not keep the others from being sent
        log.warning("delivery %s cannot be written: %s", number, type(error).__name__)  # no address stands in a log
        with writing() as connection:
            _give_up(connection, number, f"it cannot be written: {type(error).__name__}")
        return "failed"
    if len(shown) < len(claimed.what.papers):  # what did not fit was not sent
        with writing() as connection:
            mine = (delivered_paper.c.delivery == number, delivered_paper.c.paper.not_in([card.id for card in shown]))
            connection.execute(delivered_paper.delete().where(*mine))
    try:
        line.send(message, settings.envelope_sender(number), claimed.to)
    except TemporaryFailure as failure:
        return _later(number, row["attempts"], str(failure), now())
    except PermanentFailure as failure:
        with writing() as connection:
            _give_up(connection, number, str(failure))
            if failure.address:
                _suppress(connection, claimed.wanted["address"], number, str(failure), now())
        return "refused"
    except UnknownOutcome as failure:
        with writing() as connection:
            _end(connection, number, "unknown", str(failure))
        return "unknown"
    with writing() as connection:
        connection.execute(delivery.update().where(delivery.c.id == number).values(state="sent", sent_at=moment(now()), error=""))
    return "sent"


def _later(number: int, attempts: int, reason: str, now: datetime) -> str:
    """Offer it again after 5 and 30 minutes, 2 and 8 hours; then give this period up."""
    with writing() as connection:
        if attempts > len(RETRY_AFTER):
            _give_up(connection, number, reason)
            return "given up"
        again = {"state": "planned", "next_try": moment(now + RETRY_AFTER[attempts - 1]), "error": reason}
        connection.execute(delivery.update().where(delivery.c.id == number).values(**again))
    return "put off"


def _end(connection: sa.Connection, number: int, state: str, reason: str) -> None:
    connection.execute(delivery.update().where(delivery.c.id == number).values(state=state, error=reason))


def _give_up(connection: sa.Connection, number: int, reason: str) -> None:
    """The mail did not arrive: its papers may come with the next one."""
    _end(connection, number, "failed", reason)
    connection.execute(delivered_paper.delete().where(delivered_paper.c.delivery == number))


def _suppress(connection: sa.Connection, owner: int, number: int, reason: str, now: datetime) -> None:
    connection.execute(
        address.update()
        .where(address.c.id == owner, address.c.suppressed_at.is_(None))
        .values(suppressed_at=moment(now), suppressed_reason=reason)
    )
    own = {"address": owner, "delivery": number, "class_": "hard", "diagnostic": reason, "at": moment(now)}
    connection.execute(bounce.insert().values(**own, report_sha256=f"refused at delivery {number}"))


def _schedule(wanted: Any) -> Schedule:
    return Schedule(wanted["schedule"], wanted["hour"], wanted["tz"], wanted["weekday"])


def _since(wanted: Any, due: datetime) -> datetime:
    """From when on a delivery tells: since the one before it was due, or since the last that was sent, or had nothing to say, where it was not.

    What was given up, or missed while nobody sent, is made up for; what came before the subscription, or while it was paused, is not.
    """
    before = current(_schedule(wanted), due - timedelta(seconds=1)).due
    since = max(wanted["created"], wanted["told_until"] or "")
    return max(min(before, datetime.fromisoformat(since)), before - LONGEST_MADE_UP_FOR)


def preview(settings: MailSettings, number: str, now: datetime | None = None) -> str:
    """Return the mail that a subscription would get now, as text; an empty string where there is nothing to say."""
    now = now or datetime.now(UTC)
    with reading() as connection:
        wanted = connection.execute(sa.select(subscription).where(subscription.c.id == number)).mappings().first()
        if wanted is None:
            return ""
        period = current(_schedule(wanted), now)
        what = contents.of(connection, wanted, period.since, now)
    if what.empty:
        return ""
    return compose(settings, wanted, what, settings.message_id(number, period.key), f"preview@{settings.host}", now).as_string()
