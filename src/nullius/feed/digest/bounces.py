"""Reports that mail did not arrive (RFC 3464) or was not wanted (RFC 5965), and mails that unsubscribe, from a file, a mailbox or a pipe."""

from __future__ import annotations

import email
import hashlib
import logging
import mailbox
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email import policy
from email.message import Message
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from flufl.bounce import all_failures

from nullius.errors import UsageError
from nullius.feed.database import writing
from nullius.feed.digest.clock import moment
from nullius.feed.digest.settings import MailSettings, unsubscribed
from nullius.feed.digest.subscriptions import leave
from nullius.feed.tables import address, bounce, delivery, subscription
from nullius.lab.schema import insert_new

logging.getLogger("flufl.bounce").setLevel(logging.CRITICAL)  # it logs tracebacks of detectors that a report is not for
HARD, SOFT = 1, 3  # reports within `WITHIN` that suspend an address
RECIPIENTS = ("To", "Delivered-To", "X-Original-To", "Envelope-To")
WITHIN = timedelta(days=14)


def read(source: str) -> Iterator[bytes]:
    """Yield reports as bytes. source: a message file, an mbox file, a maildir, or - for one message on standard input.

    Raises UsageError for what is none of these.
    """
    if source == "-":
        yield sys.stdin.buffer.read()
        return
    path = Path(source)
    if path.is_dir():
        if not (path / "new").is_dir() or not (path / "cur").is_dir():
            raise UsageError(f"{source} is a folder, but no maildir (it has no new/ and cur/)")
        yield from (bytes(message) for message in mailbox.Maildir(path, create=False))
    elif path.is_file():
        if path.open("rb").read(5) == b"From ":
            yield from (bytes(message) for message in mailbox.mbox(path, create=False))
        else:
            yield path.read_bytes()
    else:
        raise UsageError(f"there is no {source} to read reports from")


def take(settings: MailSettings, report: bytes, now: datetime | None = None) -> str:
    """Take note of one report. Returns what it was: hard, soft, complaint, left (a mail to the address that List-Unsubscribe names), known (read
    before), or ignored.

    One hard bounce, or three soft ones in 14 days, suspend the address's subscriptions; a complaint ends them.
    """
    now = now or datetime.now(UTC)
    message = email.message_from_bytes(report, policy=policy.compat32)
    if ended := _leaving(settings, message):
        return "left" if leave(ended) else "ignored"
    kind, status, told, recipients = _complaint(message) or _failure(message)
    if not kind:
        return "ignored"
    with writing() as connection:
        owner, number = _owner(connection, settings, message, recipients)
        if owner is None:
            return "ignored"
        sha = hashlib.sha256(report).hexdigest()
        own = {"class_": kind, "status": status, "diagnostic": told[:500], "report_sha256": sha, "at": moment(now)}
        if not insert_new(connection, bounce, [{"address": owner, "delivery": number, **own}]):
            return "known"
        theirs = subscription.update().where(subscription.c.address == owner)
        if kind == "complaint":
            connection.execute(theirs.values(state="left"))
        elif _count(connection, owner, "hard", now) >= HARD or _count(connection, owner, "soft", now) >= SOFT:
            connection.execute(theirs.where(subscription.c.state.in_(("active", "paused"))).values(state="suspended"))
    return kind


def _leaving(settings: MailSettings, message: Message) -> str | None:
    """The subscription that a mail to unsubscribe@ ends: its subject holds the signed token that the digest's own header named."""
    sent_to = " ".join(str(value) for name in RECIPIENTS for value in message.get_all(name, []))
    if f"unsubscribe@{settings.host}".lower() not in sent_to.lower():
        return None
    for token in re.findall(r"[\w-]+\.[\w-]+", "".join(str(message.get("Subject", "")).split())):
        if number := unsubscribed(token, settings.secret):
            return number
    return None


def _count(connection: sa.Connection, owner: int, kind: str, now: datetime) -> int:
    query = sa.select(sa.func.count()).where(bounce.c.address == owner, bounce.c.class_ == kind, bounce.c.at > moment(now - WITHIN))
    return int(connection.execute(query).scalar_one())


def _owner(connection: sa.Connection, settings: MailSettings, message: Message, recipients: list[str]) -> tuple[int | None, int | None]:
    """Whose mail it was: by the address that the report was sent to (it names the delivery), else by the recipient it names."""
    for header in RECIPIENTS:
        for value in message.get_all(header, []):
            number = settings.bounced(str(value))
            if number is not None:
                query = sa.select(subscription.c.address).join(delivery, delivery.c.subscription == subscription.c.id)
                owner = connection.execute(query.where(delivery.c.id == number)).scalar()
                if owner is not None:
                    return owner, number
    for recipient in recipients:
        owner = connection.execute(sa.select(address.c.id).where(sa.func.lower(address.c.email) == recipient.lower())).scalar()
        if owner is not None:
            return owner, None
    return None, None


def _complaint(message: Message) -> tuple[str, str, str, list[str]] | None:
    """An abuse report (ARF), with the recipients that it names."""
    if message.get_content_type() != "multipart/report" or message.get_param("report-type") != "feedback-report":
        return None
    found: list[str] = []
    for part in message.walk():
        if part.get_content_type() == "message/feedback-report":
            fields = email.message_from_string(_text(part))
            found += [str(value).strip(" <>") for value in fields.get_all("Original-Rcpt-To", [])]
        if part.get_content_type() in ("message/rfc822", "text/rfc822-headers"):
            found += [str(inner["To"]).strip(" <>") for inner in part.walk() if inner["To"] and inner is not message]
    return "complaint", "", "reported as unwanted", found


def _failure(message: Message) -> tuple[str, str, str, list[str]]:
    """A delivery status notification: hard or soft, with its status code and what the other server said."""
    try:
        temporary, permanent = all_failures(message)
    except Exception:  # its detectors stumble over mails without the headers that they look for
        temporary, permanent = frozenset(), frozenset()
    status, told = "", ""
    for part in message.walk():
        if part.get_content_type() == "message/delivery-status":
            blocks: Any = part.get_payload() if part.is_multipart() else []
            for block in blocks:
                status = str(block.get("Status", status)).split()[0] if block.get("Status") else status
                told = " ".join(str(block.get("Diagnostic-Code", told)).split())
    named = sorted(_name(one) for one in {*temporary, *permanent})
    if status.startswith("5") or (permanent and not status.startswith("4")):
        return "hard", status, told, named
    if status.startswith("4") or temporary:
        return "soft", status, told, named
    return "", "", "", []


def _name(found: Any) -> str:
    return found.decode("ascii", "replace") if isinstance(found, bytes) else str(found)


def _text(part: Message) -> str:
    payload: Any = part.get_payload()
    if isinstance(payload, list):
        return "\n".join(str(one) for one in payload)
    return str(payload)
