"""What can go wrong while digests are sent: servers that refuse or break off, two senders, crashes."""

from __future__ import annotations

import ipaddress
import ssl
import threading
from collections import Counter
from datetime import date, datetime, timedelta
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from nullius.feed import tables
from nullius.feed.database import reading
from nullius.feed.digest import deliveries, subscriptions, transport
from nullius.feed.digest.subscriptions import Wish
from nullius.feed.digest.transport import Transport

from .postbox import DAILY, NOW, send, stand_on, states, subscribe


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
