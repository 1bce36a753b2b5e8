"""An SMTP server that takes digests, and what puts them on their way."""

from __future__ import annotations

import asyncio
import email
import socket
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from email import policy

import pytest
import sqlalchemy as sa

pytest.importorskip("aiosmtpd", reason="the SMTP server of the tests is not installed")

from aiosmtpd.controller import Controller

from nullius.feed import tables
from nullius.feed.database import reading, writing
from nullius.feed.digest import clock, deliveries, subscriptions
from nullius.feed.digest.clock import Schedule
from nullius.feed.digest.settings import MailSettings
from nullius.feed.digest.subscriptions import Wish
from nullius.feed.digest.transport import Transport

NOW = datetime(2026, 2, 10, 9, 0, tzinfo=UTC)
DAILY = Wish("daily", "", Schedule("daily", 7, "Europe/Rome"))


class Server:
    """Takes mail; answers of RCPT and DATA can be set, and the connection dropped after the text."""

    def __init__(self) -> None:
        self.mails: list[tuple[str, str, bytes]] = []
        self.peers: list[tuple[str, int]] = []
        self.rcpt: list[str] = []
        self.data: list[str] = []
        self.drop = False
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.port = port
        self.start()
        self.settings = MailSettings(f"smtp://127.0.0.1:{port}", "digest@lab.example", "https://lab.example", b"s" * 32)

    def start(self, **how) -> None:
        self.controller = Controller(self, hostname="127.0.0.1", port=self.port, **how)
        self.controller.start()

    async def handle_RCPT(self, server, session, envelope, address, options):
        answer = self.rcpt.pop(0) if self.rcpt else "250 OK"
        if answer.startswith("250"):
            envelope.rcpt_tos.append(address)
        return answer

    async def handle_DATA(self, server, session, envelope):
        self.peers.append(session.peer)
        if self.drop:
            self.mails.append((envelope.mail_from, envelope.rcpt_tos[0], envelope.content))
            server.transport.abort()
            await asyncio.sleep(0)
            return "250 nobody hears this"
        answer = self.data.pop(0) if self.data else "250 OK"
        if answer.startswith("250"):
            self.mails.append((envelope.mail_from, envelope.rcpt_tos[0], envelope.content))
        return answer

    def parsed(self):
        return [email.message_from_bytes(content, policy=policy.default) for _, _, content in self.mails]


def subscribe(smtp: Server, to: str = "ada@reader.example", wish: Wish = DAILY, at: datetime = NOW - timedelta(days=1)) -> str:
    """Subscribe and confirm through the link that was mailed."""
    sent: list[str] = []
    subscriptions.request(to, wish, smtp.settings, lambda _to, _subject, text: sent.append(text), now=at)
    token = sent[0].split("/subscribe/confirm/")[1].split()[0]
    number = subscriptions.confirm(token, at)
    assert number
    return number


def states() -> Counter:
    with reading() as connection:
        return Counter(connection.execute(sa.select(tables.delivery.c.state)).scalars())


def send(smtp: Server, at: datetime = NOW) -> deliveries.Report:
    return deliveries.send(smtp.settings, now=lambda: at, transport=Transport(smtp.settings, per_second=1e6))


def stand_on(day: date, titles: list[str]) -> list[int]:
    """Put papers on a day's page."""
    numbers = []
    with writing() as connection:
        for title in titles:
            own = {
                "title": title,
                "title_key": f"{title}{day}".casefold().replace(" ", ""),
                "added": clock.moment(NOW),
                "changed": clock.moment(NOW),
            }
            number = connection.execute(
                tables.paper.insert().values(**own, summary=f"About {title}.").returning(tables.paper.c.id)
            ).scalar_one()
            connection.execute(tables.paper_day.insert().values(paper=number, day=day, source="test"))
            numbers.append(number)
    return numbers
