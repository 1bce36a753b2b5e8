"""The sender of digests: each subscription's mail of a period is taken once by the SMTP server, or its delivery says that nobody knows."""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from killed.processes import LONGEST, Child, Span, afresh, arm, must, passed, sound

EPISODE = 60
READERS = 12
START = datetime(2026, 2, 10, 9, 0, tzinfo=UTC)


class Sender:
    """Kills senders. Each day has a paper of its own and a mail for each reader; a day ends when all its mails are accounted for."""

    def __init__(self, folder: Path, log: Path, rng: random.Random) -> None:
        from nullius.feed.digest.settings import MailSettings

        self.folder, self.log, self.rng = folder, log, rng
        self.taken = folder / "taken.jsonl"
        self.taken.touch()
        receiving, sending = os.pipe()
        self.server = Child(_receive, sending, self.taken, log=log)
        os.close(sending)
        with os.fdopen(receiving) as incoming:
            port = incoming.readline().strip()
        self.others = {self.server.pid}
        self.mail = MailSettings(f"smtp://127.0.0.1:{port}", "digest@lab.example", "https://lab.example", b"s" * 32)
        self.kills = self.days = self.unknown = 0
        self.at = START
        afresh(_subscribe, START - timedelta(days=2), log=log)
        self._day()
        child = Child(_send, self.mail, self.at, 0, log=log)
        must(child.over(LONGEST) and child.status == 0, f"a sender that nobody kills fails; see {log}")
        self.span = Span(time.monotonic() - child.started, passed())
        self._end()

    def _day(self) -> None:
        """A new day, with a paper."""
        self.days += 1
        self.at = START + timedelta(days=self.days)
        afresh(_stand, self.at.date(), log=self.log)

    def kill(self) -> str:
        """Kill once; returns how, or '' when the sender had ended before."""
        kill = self.span.draw(self.rng)
        child = Child(_send, self.mail, self.at, kill.point, log=self.log)
        killed = child.kill_at(kill)
        if not killed:
            must(child.status == 0, f"a sender fails after one that was killed; see {self.log}")
        left = afresh(_check, self.folder, self.taken, log=self.log)
        self.at += timedelta(minutes=11)
        self.kills += killed
        if left == 0 and not killed:
            self._end()
        return kill.by if killed else ""

    def _end(self) -> None:
        """The day is over: nothing is planned or half sent any more."""
        afresh(_forget, self.at + timedelta(minutes=11), log=self.log)
        must(afresh(_check, self.folder, self.taken, log=self.log) == 0, "a mail was never sent")
        found = afresh(_account, READERS * self.days, log=self.log)
        self.unknown = found
        self._day()

    def finish(self) -> None:
        """A last sender sends what is left."""
        child = Child(_send, self.mail, self.at, 0, log=self.log)
        must(child.over(LONGEST) and child.status == 0, f"the last sender fails; see {self.log}")
        self._end()
        self.server.kill()


def _receive(out: int, taken: Path) -> None:
    """An SMTP server that writes down what it takes before it says so."""
    import asyncio
    import email
    import socket

    from aiosmtpd.smtp import SMTP

    handle = os.open(taken, os.O_WRONLY | os.O_APPEND)

    class Take:
        async def handle_DATA(self, _server: object, _session: object, envelope: object) -> str:
            message = email.message_from_bytes(envelope.content)  # type: ignore[attr-defined]
            line = json.dumps({"to": envelope.rcpt_tos[0], "id": message["Message-ID"].strip()})  # type: ignore[attr-defined]
            os.write(handle, f"{line}\n".encode())
            return "250 taken"

    async def serve() -> None:
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            server = await asyncio.get_running_loop().create_server(lambda: SMTP(Take()), sock=listening)
            os.write(out, f"{listening.getsockname()[1]}\n".encode())
            os.close(out)
            await server.serve_forever()

    asyncio.run(serve())


def _send(mail: object, at: datetime, point: int) -> None:
    from nullius.feed.digest import deliveries
    from nullius.feed.digest.transport import Transport

    arm(point)
    deliveries.plan(mail, at)  # type: ignore[arg-type]
    deliveries.send(mail, now=lambda: at, transport=Transport(mail, per_second=1e6))  # type: ignore[arg-type]


def _forget(at: datetime) -> None:
    from nullius.feed.digest import deliveries

    deliveries.forget(at)


def _subscribe(at: datetime) -> None:
    from nullius.feed import tables
    from nullius.feed.database import writing
    from nullius.feed.digest.clock import moment

    with writing() as connection:
        for i in range(READERS):
            row = {"email": f"reader{i}@reader.example", "created": moment(at), "confirmed_at": moment(at)}
            owner = connection.execute(tables.address.insert().values(**row).returning(tables.address.c.id)).scalar_one()
            wish = {"kind": "daily", "schedule": "daily", "hour": 7, "tz": "UTC", "state": "active"}
            connection.execute(tables.subscription.insert().values(id=f"{i:026}", address=owner, created=moment(at), **wish))


def _stand(day: date) -> None:
    """Put a paper on a day's page."""
    from nullius.feed import tables
    from nullius.feed.database import writing

    with writing() as connection:
        at = f"{day}T00:00:00.000+00:00"
        row = {"title": f"A paper of {day}", "title_key": f"apaperof{day}", "summary": "Something.", "added": at, "changed": at}
        number = connection.execute(tables.paper.insert().values(**row).returning(tables.paper.c.id)).scalar_one()
        connection.execute(tables.paper_day.insert().values(paper=number, day=day, source="test"))


def _check(folder: Path, taken: Path) -> int:
    """See that no mail came twice and that every delivery agrees with what came. Returns how many are still to be sent or half sent."""
    import sqlalchemy as sa

    from nullius.feed import tables
    from nullius.feed.database import reading

    sound(folder)
    came = Counter(json.loads(line)["id"] for line in taken.read_text().splitlines())
    must(set(came.values()) <= {1}, "a mail came twice")
    with reading() as connection:
        states = dict(connection.execute(sa.select(tables.delivery.c.message_id, tables.delivery.c.state)).all())
        pairs = connection.execute(sa.select(tables.delivery.c.subscription, tables.delivery.c.period_key)).all()
        given = connection.execute(sa.select(tables.delivered_paper.c.subscription, tables.delivered_paper.c.paper)).all()
    must(len(set(pairs)) == len(pairs), "a period was planned twice")
    must(len(set(given)) == len(given), "a paper was given twice to one reader")
    must(came.keys() <= states.keys(), "a mail came that nobody planned")
    for name, state in states.items():
        must(state in ("planned", "sending", "sent", "unknown"), f"a delivery is {state}")
        must(state != "sent" or came[name], "a delivery says sent, and no mail came")
        must(state != "planned" or not came[name], "a mail came whose delivery would be sent again")
    return sum(state in ("planned", "sending") for state in states.values())


def _account(expected: int) -> int:
    """See that all mails so far are sent or unknown, and that the unknown ones are shown to whoever runs the site. Returns how many those are."""
    import sqlalchemy as sa

    from nullius.feed import tables
    from nullius.feed.database import reading
    from nullius.feed.digest import watching

    with reading() as connection:
        states = Counter(connection.execute(sa.select(tables.delivery.c.state)).scalars())
    must(states["sent"] + states["unknown"] == expected == sum(states.values()), f"{expected} mails were due, there are {dict(states)}")
    must(len(watching.unknown(10_000)) == states["unknown"], "an unknown outcome is not shown")
    return states["unknown"]
