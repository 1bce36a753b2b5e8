"""Mail that comes back: bounces, complaints, mails to the address that unsubscribes."""

from __future__ import annotations

import email
from datetime import date, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nullius.errors import UsageError
from nullius.feed.digest import bounces, deliveries, subscriptions
from nullius.feed.digest.settings import MailSettings

from .postbox import NOW, send, stand_on, subscribe


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
