"""The digest against a real SMTP server on loopback: what is sent, to whom, when, and that it is sent once."""

from __future__ import annotations

import asyncio
import email
import ipaddress
import re
import socket
import ssl
import threading
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from email import policy
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("aiosmtpd", reason="the SMTP server of the tests is not installed")

from aiosmtpd.controller import Controller
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from nullius.errors import UsageError
from nullius.feed import cards, tables
from nullius.feed.database import reading, writing
from nullius.feed.digest import bounces, clock, contents, deliveries, message, subscriptions, transport
from nullius.feed.digest.clock import Schedule, current
from nullius.feed.digest.settings import MailSettings, unsubscribed
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


@pytest.fixture
def smtp():
    server = Server()
    yield server
    server.controller.stop()


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


# --- clock --------------------------------------------------------------------------------------------------------------------------------

ZONES = ["UTC", "Europe/Rome", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe", "Pacific/Apia"]


@pytest.mark.parametrize("zone", ZONES)
def test_a_day_has_one_period_for_400_days(zone):
    """Asked every half hour for 400 days, the moments that come due are one for each local day, whatever the clocks do."""
    schedule, seen = Schedule("daily", 2, zone), {}
    start = datetime(2025, 1, 1, tzinfo=UTC)
    for half_hours in range(48 * 400):
        period = current(schedule, start + timedelta(minutes=30 * half_hours))
        seen.setdefault(period.key, set()).add(period.due)
    assert all(len(dues) == 1 for dues in seen.values())
    days = sorted(date.fromisoformat(key) for key in seen)
    assert all((b - a).days == 1 for a, b in pairwise(days))
    local = [next(iter(seen[day.isoformat()])).astimezone(ZoneInfo(zone)) for day in days]
    assert all(moment.hour == 2 or (moment.hour, moment.minute) in ((3, 0), (2, 30)) for moment in local)


def test_skipped_hour_is_the_next_valid_one_and_a_doubled_hour_comes_once():
    assert clock.due(date(2025, 3, 30), 2, "Europe/Rome") == datetime(2025, 3, 30, 1, tzinfo=UTC)  # 03:00 there
    assert clock.due(date(2025, 10, 26), 2, "Europe/Rome") == datetime(2025, 10, 26, 0, tzinfo=UTC)  # the first of two


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["daily", "weekdays", "weekly"]),
    st.integers(0, 23),
    st.integers(0, 6),
    st.sampled_from(ZONES),
    st.datetimes(datetime(2024, 1, 1), datetime(2027, 1, 1)),
)
def test_periods_follow_one_another(kind, hour, weekday, zone, at):
    schedule = Schedule(kind, hour, zone, weekday)
    now = at.replace(tzinfo=UTC)
    period = current(schedule, now)
    assert period.since < period.due <= now
    before = current(schedule, period.due - timedelta(seconds=1))
    assert before.due == period.since
    assert before.key != period.key
    assert now - period.due < timedelta(days={"daily": 1, "weekdays": 3, "weekly": 7}[kind], hours=25)


def test_late_start_sends_if_less_than_twelve_hours_late():
    period = current(Schedule("daily", 7, "UTC"), NOW)
    began = NOW - timedelta(days=3)
    assert clock.in_time(period, period.due + timedelta(hours=11, minutes=59), began)
    assert not clock.in_time(period, period.due + timedelta(hours=12), began)
    assert not clock.in_time(period, NOW, period.due)


def test_a_schedule_that_no_calendar_has_is_refused():
    for wrong in (Schedule("hourly", 7, "UTC"), Schedule("daily", 24, "UTC"), Schedule("daily", 7, "Mars/Olympus")):
        with pytest.raises(UsageError):
            wrong.check()


# --- subscribing --------------------------------------------------------------------------------------------------------------------------


def test_nothing_is_sent_before_its_owner_said_yes(database, smtp):
    asked: list[str] = []
    subscriptions.request(
        "ada@reader.example", DAILY, smtp.settings, lambda to, _subject, text: asked.append(text), now=NOW - timedelta(days=1)
    )
    stand_on(date(2026, 2, 10), ["A paper"])
    assert deliveries.plan(smtp.settings, NOW) == 0
    token = asked[0].split("/subscribe/confirm/")[1].split()[0]
    assert "papers of the day" in (subscriptions.waiting(token, NOW) or "")
    assert subscriptions.confirm(token[:-1] + ("A" if token[-1] != "A" else "B"), NOW) is None
    assert subscriptions.confirm(token, NOW - timedelta(hours=20))
    assert subscriptions.confirm(token, NOW) is None  # once
    assert deliveries.plan(smtp.settings, NOW) == 1


def test_links_end_after_48_hours_and_three_a_day_are_all(sqlite, smtp):
    asked: list[str] = []
    for _ in range(5):
        subscriptions.request("ada@reader.example", DAILY, smtp.settings, lambda _to, _subject, text: asked.append(text), now=NOW)
    assert len(asked) == 3
    token = asked[0].split("/subscribe/confirm/")[1].split()[0]
    assert subscriptions.confirm(token, NOW + timedelta(hours=48, seconds=1)) is None


@pytest.mark.parametrize(
    "wish",
    [
        Wish("hourly", "", DAILY.schedule),
        Wish("search", " ", DAILY.schedule),
        Wish("daily", "x", DAILY.schedule),
        Wish("daily", "", DAILY.schedule, 0),
    ],
)
def test_a_wish_that_cannot_be_is_refused(wish):
    with pytest.raises(UsageError):
        wish.check()


def test_leaving_is_for_good_and_may_be_said_twice(sqlite, smtp):
    number = subscribe(smtp)
    token = smtp.settings.unsubscribe_token(number)
    assert unsubscribed(token, smtp.settings.secret) == number
    for i in range(0, len(token), 7):  # no other text leads anywhere
        flipped = token[:i] + ("A" if token[i] != "A" else "B") + token[i + 1 :]
        assert unsubscribed(flipped, smtp.settings.secret) is None
    assert subscriptions.leave(number)
    assert subscriptions.leave(number)
    assert not subscriptions.pause(number)
    stand_on(date(2026, 2, 10), ["A paper"])
    assert deliveries.plan(smtp.settings, NOW) == 0


def test_pausing_ends_by_itself(sqlite, smtp):
    number = subscribe(smtp)
    assert subscriptions.pause(number, NOW)
    assert deliveries.plan(smtp.settings, NOW) == 0
    later = NOW + timedelta(days=31)
    assert deliveries.plan(smtp.settings, later) == 0  # it begins again, with the next period
    assert deliveries.plan(smtp.settings, later + timedelta(days=1)) == 1


# --- the mail -----------------------------------------------------------------------------------------------------------------------------


def test_the_mail_as_it_arrives(database, smtp):
    number = subscribe(smtp)
    stand_on(date(2026, 2, 10), ["Heads that <script>alert(1)</script> decide", "Another one"])
    assert deliveries.plan(smtp.settings, NOW) == 1
    assert deliveries.plan(smtp.settings, NOW) == 0
    assert send(smtp).counts == {"sent": 1}
    assert send(smtp).counts == {}
    sender, to, content = smtp.mails[0]
    assert to == "ada@reader.example"
    mail = smtp.parsed()[0]
    assert mail.get_content_type() == "multipart/alternative"
    text, html = mail.iter_parts()
    assert (text.get_content_type(), html.get_content_type()) == ("text/plain", "text/html")
    assert "<script>" in text.get_content()  # text is text
    assert "<script>" not in html.get_content()
    assert "http" not in html.get_content().replace("https://lab.example", "")  # no remote image, no other host
    assert len(content) < 90_000
    assert mail["Subject"] == "2 papers · Tue 10 Feb"
    assert mail["From"].addresses[0].addr_spec == "digest@lab.example"
    assert mail["To"] == "ada@reader.example"
    assert mail["Message-ID"] == smtp.settings.message_id(number, "2026-02-10")
    link = f"https://lab.example/u/{smtp.settings.unsubscribe_token(number)}"
    assert mail["List-Unsubscribe"].replace("\r\n", "").startswith(f"<{link}>, <mailto:")
    assert mail["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert (mail["Auto-Submitted"], mail["Precedence"], mail["Content-Language"]) == ("auto-generated", "bulk", "en")
    assert mail["List-Id"] == "nullius daily <daily.lab.example>"
    assert mail["Date"]
    assert smtp.settings.bounced(sender) is not None
    assert smtp.settings.bounced(sender.replace("bounces+", "bounces+7")) is None


def test_without_https_there_is_no_one_click(smtp):
    plain = MailSettings(smtp.settings.smtp, "digest@lab.example", "http://127.0.0.1:8000", b"s" * 32)
    wanted = {"id": "01X", "kind": "daily", "target": "", "tz": "UTC"}
    verdict = contents.NewVerdict("embers", "copying", "Copying", "holds", "smollm2-135m", "01R", 0.4, 0.3, None)
    mail = message.compose(plain, wanted, contents.Contents((verdict,), (), "smollm2-135m"), "<a@b>", "ada@reader.example", NOW)
    assert mail["List-Unsubscribe-Post"] is None
    assert mail["List-Unsubscribe"].startswith("<mailto:")
    assert mail["Subject"] == "1 verdict on smollm2-135m · Tue 10 Feb"
    assert "0.40 [0.30, …]" in mail.get_body(("plain",)).get_content()


def test_new_verdicts_come_before_new_papers(sqlite, smtp):
    numbers = tuple(stand_on(date(2026, 2, 10), ["First"]))
    verdict = contents.NewVerdict("embers", "copying", "Copying", "holds", "smollm2-135m", "01R", 0.4, 0.3, 0.5)
    with reading() as connection:
        both = contents.Contents((verdict,), cards.by_ids(connection, numbers, subject=""), "smollm2-135m")
    wanted = {"id": "01X", "kind": "daily", "target": "", "tz": "UTC"}
    mail = message.compose(smtp.settings, wanted, both, "<a@b>", "ada@reader.example", NOW)
    assert mail["Subject"] == "1 paper, 1 verdict on smollm2-135m · Tue 10 Feb"
    for kind, first, then in (("plain", "NEW VERDICTS", "PAPERS"), ("html", ">New verdicts<", ">Papers<")):
        text = mail.get_body((kind,)).get_content()
        assert 0 < text.index(first) < text.index(then)
    html = mail.get_body(("html",)).get_content()
    assert "prefers-color-scheme: dark" in html
    assert not re.search(r"<(img|link|script|iframe)|url\(|@import", html), "nothing remote, nothing that tells that it was read"


def test_a_paper_comes_once_and_an_empty_period_brings_no_mail(database, smtp):
    subscribe(smtp)
    stand_on(date(2026, 2, 10), ["First"])
    deliveries.plan(smtp.settings, NOW)
    send(smtp)
    tomorrow = NOW + timedelta(days=1)
    deliveries.plan(smtp.settings, tomorrow)
    assert send(smtp, tomorrow).counts == {}
    assert states() == {"sent": 1, "skipped": 1}
    assert len(smtp.mails) == 1


def test_a_search_an_author_and_what_is_trending(sqlite, smtp):
    for wish in (
        Wish("search", "quokkas", DAILY.schedule),
        Wish("author", "Ada Lovelace", DAILY.schedule),
        Wish("trending", "", DAILY.schedule),
    ):
        subscribe(smtp, wish=wish)
    found, other = stand_on(date(2026, 2, 9), ["Quokkas in language models", "Wombats"])
    with writing() as connection:
        connection.execute(
            tables.paper.update().where(tables.paper.c.id.in_((found, other))).values(added=clock.moment(NOW - timedelta(hours=5)))
        )
        connection.execute(tables.paper.update().values(heat=None))
        connection.execute(tables.paper.update().where(tables.paper.c.id == other).values(heat=1.0))
        connection.execute(tables.paper_author.insert().values(paper=other, position=0, name="Ada Lovelace", name_key="adalovelace"))
    with reading() as connection:
        rows = {row["kind"]: row for row in connection.execute(sa.select(tables.subscription)).mappings()}
        got = {kind: [card.id for card in contents.of(connection, row, NOW - timedelta(days=1), NOW).papers] for kind, row in rows.items()}
    assert got == {"search": [found], "author": [other], "trending": [other]}


# --- what can go wrong --------------------------------------------------------------------------------------------------------------------


def test_refused_for_good_the_address_gets_nothing_more(database, smtp):
    subscribe(smtp)
    stand_on(date(2026, 2, 10), ["First"])
    smtp.rcpt = ["550 no such user"]
    deliveries.plan(smtp.settings, NOW)
    assert send(smtp).counts == {"refused": 1}
    assert states() == {"failed": 1}
    asked: list[str] = []
    subscriptions.request("ada@reader.example", DAILY, smtp.settings, lambda _to, _subject, text: asked.append(text), now=NOW)
    assert asked == []
    assert deliveries.plan(smtp.settings, NOW + timedelta(days=1)) == 0


def test_refused_for_now_it_is_offered_again_and_then_given_up(sqlite, smtp):
    subscribe(smtp)
    numbers = stand_on(date(2026, 2, 10), ["First"])
    deliveries.plan(smtp.settings, NOW)
    smtp.data = ["451 try later"]
    assert send(smtp).counts == {"put off": 1}
    assert send(smtp, NOW + timedelta(minutes=4)).counts == {}
    assert send(smtp, NOW + timedelta(minutes=6)).counts == {"sent": 1}
    assert len(smtp.mails) == 1
    # the next day it never gets through: the paper is free for the day after
    tomorrow = NOW + timedelta(days=1)
    stand_on(date(2026, 2, 11), ["Second"])
    deliveries.plan(smtp.settings, tomorrow)
    smtp.rcpt = ["450 greylisted"] * 5
    at = tomorrow
    for wait in (0, 6, 31, 121, 481):
        at += timedelta(minutes=wait)
        send(smtp, at)
    assert states() == {"sent": 1, "failed": 1}
    with reading() as connection:
        assert list(connection.execute(sa.select(tables.delivered_paper.c.paper)).scalars()) == numbers
    assert len(smtp.mails) == 1


def test_what_was_missed_or_given_up_comes_with_the_next(sqlite, smtp):
    """The sender rested from one day's mail to three days later: too late for that mail, whose papers come with the next one."""
    subscribe(smtp)
    numbers = stand_on(date(2026, 2, 10), ["First"])
    assert deliveries.plan(smtp.settings, NOW) == 1
    later = NOW + timedelta(days=3)
    numbers += stand_on(date(2026, 2, 12), ["Second"]) + stand_on(date(2026, 2, 13), ["Third"])
    before = stand_on(date(2026, 2, 7), ["From before the subscription"])
    assert send(smtp, later).counts == {}
    assert states() == {"skipped": 1}
    assert deliveries.plan(smtp.settings, later) == 1
    smtp.rcpt = ["450 greylisted"] * 5
    for minutes in (0, 6, 37, 160, 650):
        send(smtp, later + timedelta(minutes=minutes))
    assert states() == {"skipped": 1, "failed": 1}
    last = NOW + timedelta(days=5)
    deliveries.plan(smtp.settings, last)
    assert send(smtp, last).counts == {"sent": 1}
    assert smtp.parsed()[0]["Subject"] == "3 papers · Sun 15 Feb"
    with reading() as connection:
        assert sorted(connection.execute(sa.select(tables.delivered_paper.c.paper)).scalars()) == numbers
    assert before[0] not in numbers


def test_one_that_cannot_be_written_keeps_no_other_back(sqlite, smtp, caplog):
    """An address from before addresses were checked, say."""
    subscribe(smtp, "ädä@reader.example")
    subscribe(smtp, "bob@reader.example")
    stand_on(date(2026, 2, 10), ["First"])
    deliveries.plan(smtp.settings, NOW)
    assert send(smtp).counts == {"failed": 1, "sent": 1}
    assert [to for _, to, _ in smtp.mails] == ["bob@reader.example"]
    assert states() == {"failed": 1, "sent": 1}
    assert "cannot be written" in caplog.text


def test_a_mail_is_less_than_90_kb_in_any_script(sqlite, smtp):
    """As it travels: three bytes for each that is not plain. What does not fit is not said to be in it, nor noted as sent."""
    subscribe(smtp, wish=Wish("daily", "", DAILY.schedule, 50))
    stand_on(date(2026, 2, 10), [f"{i} 言語モデルの注意機構の解析と介入による因果的な検証" * 4 for i in range(50)])
    deliveries.plan(smtp.settings, NOW)
    assert send(smtp).counts == {"sent": 1}
    assert 60_000 < len(smtp.mails[0][2]) < 90_000
    shown = int(smtp.parsed()[0]["Subject"].split()[0])
    assert smtp.parsed()[0].get_body(("plain",)).get_content().count("https://lab.example/papers/") == shown < 50
    with reading() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(tables.delivered_paper)).scalar() == shown


def test_a_connection_that_breaks_after_the_text_is_never_tried_again(sqlite, smtp):
    subscribe(smtp)
    stand_on(date(2026, 2, 10), ["First"])
    deliveries.plan(smtp.settings, NOW)
    smtp.drop = True
    assert send(smtp).counts == {"unknown": 1}
    smtp.drop = False
    assert send(smtp, NOW + timedelta(hours=9)).counts == {}
    assert len(smtp.mails) == 1


def test_all_mails_go_over_one_connection_ten_a_second(sqlite, smtp, monkeypatch):
    for i in range(4):
        subscribe(smtp, f"reader{i}@reader.example")
    stand_on(date(2026, 2, 10), ["First"])
    deliveries.plan(smtp.settings, NOW)
    slept: list[float] = []
    monkeypatch.setattr(transport, "time", SimpleNamespace(monotonic=lambda: 100.0, sleep=slept.append))  # a clock that stands still
    assert deliveries.send(smtp.settings, now=lambda: NOW).counts == {"sent": 4}
    assert slept == pytest.approx([0, 0.1, 0.1, 0.1])
    assert len(smtp.peers) == 4
    assert len(set(smtp.peers)) == 1


def test_mail_leaves_this_machine_encrypted_or_not_at_all(sqlite, smtp, monkeypatch, tmp_path):
    """A server elsewhere that offers no encryption, or whose certificate is nobody's, gets neither the mail nor the password."""
    subscribe(smtp)
    stand_on(date(2026, 2, 10), ["First"])
    deliveries.plan(smtp.settings, NOW)
    elsewhere = transport.Server("127.0.0.1", smtp.port, "", "", tls=False, local=False)
    monkeypatch.setattr(transport.Server, "of", lambda _settings: elsewhere)
    assert send(smtp).counts == {"put off": 1}
    with reading() as connection:
        assert "offers no encryption" in connection.execute(sa.select(tables.delivery.c.error)).scalar_one()
    smtp.controller.stop()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    key = ec.generate_private_key(ec.SECP256R1())
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    made = made.not_valid_before(datetime(2020, 1, 1)).not_valid_after(datetime(2099, 1, 1))
    made = made.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(key, hashes.SHA256())
    public = made.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "public.pem").write_bytes(public)
    (tmp_path / "both.pem").write_bytes(public + private)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "both.pem")
    smtp.start(tls_context=context, require_starttls=True)
    assert send(smtp, NOW + timedelta(minutes=6)).counts == {"put off": 1}
    assert smtp.mails == []
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "public.pem"))
    assert send(smtp, NOW + timedelta(minutes=37)).counts == {"sent": 1}


def test_no_server_puts_off(sqlite, smtp):
    subscribe(smtp)
    stand_on(date(2026, 2, 10), ["First"])
    deliveries.plan(smtp.settings, NOW)
    smtp.controller.stop()
    assert send(smtp).counts == {"put off": 1}
    smtp.start()
    assert send(smtp, NOW + timedelta(minutes=6)).counts == {"sent": 1}


def test_two_senders_share_the_work(database, smtp):
    """Each delivery is one sender's alone: as many mails as subscriptions."""
    for i in range(60):
        subscribe(smtp, f"reader{i}@reader.example")
    stand_on(date(2026, 2, 10), ["First"])
    assert deliveries.plan(smtp.settings, NOW) == 60
    senders = [threading.Thread(target=send, args=(smtp,)) for _ in range(2)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert Counter(to for _, to, _ in smtp.mails) == {f"reader{i}@reader.example": 1 for i in range(60)}
    assert states() == {"sent": 60}


def test_a_crash_between_taken_and_written_down_becomes_unknown(sqlite, smtp, monkeypatch):
    subscribe(smtp)
    stand_on(date(2026, 2, 10), ["First"])
    deliveries.plan(smtp.settings, NOW)

    class Crash(BaseException):
        pass

    real = Transport.send

    def crash(self, *what):
        real(self, *what)
        raise Crash

    monkeypatch.setattr(Transport, "send", crash)
    with pytest.raises(Crash):
        send(smtp)
    monkeypatch.setattr(Transport, "send", real)
    assert states() == {"sending": 1}
    assert send(smtp, NOW + timedelta(minutes=9)).counts == {}
    assert send(smtp, NOW + timedelta(minutes=11)).counts == {}
    assert states() == {"unknown": 1}
    assert len(smtp.mails) == 1


# --- bounces ------------------------------------------------------------------------------------------------------------------------------


def report(to: str, status: str, recipient: str = "ada@reader.example", extra: str = "") -> bytes:
    action = "failed" if status.startswith("5") else "delayed"
    return (
        f"From: MAILER-DAEMON@mx.example\r\nTo: {to}\r\nSubject: Undelivered{extra}\r\nMIME-Version: 1.0\r\n"
        'Content-Type: multipart/report; report-type=delivery-status; boundary="b"\r\n\r\n'
        "--b\r\nContent-Type: text/plain\r\n\r\nIt did not arrive.\r\n"
        f"--b\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; mx.example\r\n\r\nFinal-Recipient: rfc822; {recipient}\r\n"
        f"Action: {action}\r\nStatus: {status}\r\nDiagnostic-Code: smtp; no\r\n\r\n--b--\r\n"
    ).encode()


def test_one_hard_bounce_suspends_and_counts_once(sqlite, smtp, tmp_path):
    number = subscribe(smtp)
    stand_on(date(2026, 2, 10), ["First"])
    deliveries.plan(smtp.settings, NOW)
    send(smtp)
    path = tmp_path / "bounce.eml"
    path.write_bytes(report(smtp.mails[0][0], "5.1.1"))
    assert [bounces.take(smtp.settings, one, NOW) for one in bounces.read(str(path))] == ["hard"]
    assert [bounces.take(smtp.settings, one, NOW) for one in bounces.read(str(path))] == ["known"]
    assert subscriptions.describe(number)["state"] == "suspended"


def test_three_soft_bounces_in_fourteen_days_suspend(sqlite, smtp):
    number = subscribe(smtp)
    for day in (0, 20, 21):
        assert bounces.take(smtp.settings, report("x@lab.example", "4.2.2", extra=str(day)), NOW + timedelta(days=day)) == "soft"
    assert subscriptions.describe(number)["state"] == "active"
    bounces.take(smtp.settings, report("x@lab.example", "4.2.2", extra="again"), NOW + timedelta(days=22))
    assert subscriptions.describe(number)["state"] == "suspended"


def test_a_complaint_ends_it(sqlite, smtp):
    number = subscribe(smtp)
    complaint = (
        b"From: fbl@isp.example\r\nTo: abuse@lab.example\r\nMIME-Version: 1.0\r\n"
        b'Content-Type: multipart/report; report-type=feedback-report; boundary="b"\r\n\r\n'
        b"--b\r\nContent-Type: text/plain\r\n\r\nA complaint.\r\n"
        b"--b\r\nContent-Type: message/feedback-report\r\n\r\nFeedback-Type: abuse\r\nUser-Agent: isp/1\r\nVersion: 1\r\n"
        b"Original-Rcpt-To: ada@reader.example\r\n\r\n--b--\r\n"
    )
    assert bounces.take(smtp.settings, complaint, NOW) == "complaint"
    assert subscriptions.describe(number)["state"] == "left"


def test_a_mail_to_the_address_that_unsubscribes_does(sqlite, smtp):
    """What List-Unsubscribe offers beside the link: an empty mail with the token in its subject, from whoever holds it."""
    number = subscribe(smtp)
    stand_on(date(2026, 2, 10), ["First"])
    deliveries.plan(smtp.settings, NOW)
    send(smtp)
    offered = smtp.parsed()[0]["List-Unsubscribe"].replace("\r\n", "").split("<mailto:")[1].rstrip(">")
    to, _, subject = offered.partition("?subject=")
    changed = subject[:-5] + ("A" if subject[-5] != "A" else "B") + subject[-4:]  # not the last letter, of which some bits mean nothing
    for wrong in ("unsubscribe", changed, ""):
        assert bounces.take(smtp.settings, f"To: {to}\r\nSubject: {wrong}\r\n\r\n".encode(), NOW) == "ignored"
    assert bounces.take(smtp.settings, f"To: list@lab.example\r\nSubject: {subject}\r\n\r\n".encode(), NOW) == "ignored"
    assert subscriptions.describe(number)["state"] == "active"
    folded = f"From: eve@reader.example\r\nTo: <{to.upper()}>\r\nSubject: Re:\r\n {subject}\r\n\r\nbye".encode()
    assert [bounces.take(smtp.settings, folded, NOW) for _ in range(2)] == ["left", "left"]
    assert subscriptions.describe(number)["state"] == "left"


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_a_report_or_ignored(data):
    mail = MailSettings("smtp://127.0.0.1", "digest@lab.example", "https://lab.example", b"s" * 32)
    assert bounces._failure(email.message_from_bytes(data))[0] in ("", "hard", "soft")
    assert mail.bounced(data.decode("latin-1")) is None


def test_what_is_no_mailbox_is_said(tmp_path):
    for wrong in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UsageError):
            list(bounces.read(str(wrong)))
    (tmp_path / "mbox").write_bytes(b"From a@b Tue Nov  4 09:00:00 2025\n" + report("x@lab.example", "5.0.0").replace(b"\r\n", b"\n"))
    assert len(list(bounces.read(str(Path(tmp_path / "mbox"))))) == 1
