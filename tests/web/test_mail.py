"""Mail as maintainers and programs see it: subscriptions by API, addresses with what came back, signatures that a stranger can check."""

from __future__ import annotations

import logging
import subprocess

import dkim
import pytest
import sqlalchemy as sa

from nullius.feed import tables
from nullius.feed.database import writing
from nullius.feed.digest import bounces, signing, subscriptions
from nullius.feed.digest.settings import from_environment
from nullius.web import mailing, who

WISH = {"email": "ada@example.org", "kind": "search", "target": "attention heads", "schedule": "weekly"}


def confirmed(lab, email="ada@example.org", kind="daily", target=""):
    """A subscription whose owner has said yes."""
    links = []
    wish = subscriptions.Wish(kind, target, subscriptions.Schedule("daily", 7, "UTC"))
    subscriptions.request(email, wish, mailing.setup(lab), lambda _to, _subject, text: links.append(text))
    return subscriptions.confirm(links[0].split("/subscribe/confirm/")[1].split()[0])


def test_subscriptions_by_api(people, lab, box, browse):
    asked = people["visitor"].post("/api/v1/subscriptions", json=WISH)
    assert (asked.status_code, asked.json()) == (202, {"asked": True, "atom": "/feeds/search.atom?q=attention%20heads"})
    assert people["visitor"].post("/api/v1/subscriptions", json=WISH).json() == asked.json(), "known or not, the answer is the same"
    assert people["member"].get("/api/v1/subscriptions").json() == {"subscriptions": []}, "nobody has said yes yet"
    path = box.mails[0].get_payload(decode=True).decode().split("https://papers.example.org")[1].split()[0]
    people["visitor"].post(path)
    (found,) = people["member"].get("/api/v1/subscriptions").json()["subscriptions"]
    assert (found["kind"], found["target"], found["schedule"], found["state"]) == ("search", "attention heads", "weekly", "active")
    assert people["maintainer"].delete(f"/api/v1/subscriptions/{found['id']}").status_code == 404, "somebody else's"
    reading, voting = (browse(lab, token=who.make_token(who.account_for(WISH["email"], lab), "t", s)) for s in (["read"], ["read", "vote"]))
    assert reading.get("/api/v1/subscriptions").status_code == 403
    assert voting.delete(f"/api/v1/subscriptions/{found['id']}").status_code == 204
    assert people["member"].get("/api/v1/subscriptions").json()["subscriptions"][0]["state"] == "left"


@pytest.mark.parametrize(
    "change", [{"email": "nobody"}, {"kind": "all"}, {"target": ""}, {"hour": 24}, {"tz": "Mars"}, {"at_most": 0}, {"to": "x"}]
)
def test_what_cannot_be_subscribed_to_by_api(people, box, change):
    answer = people["visitor"].post("/api/v1/subscriptions", json={**WISH, **change})
    assert (answer.status_code, answer.headers["content-type"], box.mails) == (422, "application/problem+json", [])


def test_imports_by_api(people):
    text = "@misc{a, title={A paper of a program}, year=2024, eprint={2401.00042}, archivePrefix={arXiv}}\n@misc{b, year=2024}"
    made = people["maintainer"].post("/api/v1/imports", json={"text": text})
    assert (made.status_code, made.json()["new"], made.json()["rejected"]) == (200, 1, 1)
    assert people["visitor"].get("/api/v1/papers/2401.00042").status_code == 200
    (row,) = people["maintainer"].get("/api/v1/imports?limit=1").json()["imports"]
    assert (row["id"], row["state"]) == (made.json()["id"], "done")
    for wish, told in (({}, "nothing"), ({"address": "/etc/passwd"}, "no web address"), ({"address": "http://127.0.0.1/"}, "127.0.0.1")):
        answer = people["maintainer"].post("/api/v1/imports", json=wish)
        assert answer.status_code == 422
        assert told in answer.json()["detail"]


def test_a_maintainer_sees_what_came_back(people, lab, box, monkeypatch):
    number = confirmed(lab)
    with writing() as connection:
        for state, key in (("unknown", "2025-11-04"), ("sent", "2025-11-03")):
            row = {"subscription": number, "period_key": key, "state": state, "message_id": f"<{key}@papers>", "attempts": 1}
            connection.execute(tables.delivery.insert().values(**row, due="2025-11-04T07:00:00.000+00:00", error="the connection broke"))
        row = connection.execute(sa.select(tables.delivery.c.id).where(tables.delivery.c.state == "sent")).scalar()
    how = mailing.setup(lab)
    report = (
        f"To: {how.envelope_sender(row)}\r\nSubject: failed\r\nContent-Type: multipart/report; report-type=delivery-status; boundary=x\r\n\r\n"
        "--x\r\nContent-Type: text/plain\r\n\r\nno\r\n--x\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; m\r\n\r\n"
        "Final-Recipient: rfc822; ada@example.org\r\nAction: failed\r\nStatus: 5.1.1\r\nDiagnostic-Code: smtp; 550 <b>nobody</b>\r\n--x--\r\n"
    )
    assert bounces.take(how, report.encode()) == "hard"
    for role in ("visitor", "member"):
        assert people[role].get("/addresses").status_code in (401, 403)
        assert people[role].get("/addresses.json").status_code in (401, 403)
    html = people["maintainer"].get("/addresses").text
    assert "550 &lt;b&gt;nobody" in html
    assert "&lt;2025-11-04@papers&gt;" in html
    assert "one-click" not in html, "this site's address is https"
    seen = people["maintainer"].get("/addresses.json?troubled=1").json()
    assert (seen["counts"]["unknown"], seen["counts"]["sent"], len(seen["unknown"])) == (1, 1, 1)
    (address,) = seen["addresses"]
    assert (address["email"], address["subscriptions"], address["bounces"][0]["status"]) == ("ada@example.org", {"suspended": 1}, "5.1.1")
    # the owner of the address is told at the next sign-in, and can take it up again
    assert "mail to ada@example.org came back" in people["member"].get("/about").text
    assert "came back" not in people["maintainer"].get("/about").text
    assert people["maintainer"].post(f"/subscriptions/{number}", data={"action": "resume"}).status_code == 404
    assert people["member"].post(f"/subscriptions/{number}", data={"action": "resume"}).status_code == 303
    assert "came back" not in people["member"].get("/about").text
    assert subscriptions.of_email("ada@example.org")[0]["state"] == "active"


def test_without_https_a_maintainer_is_warned(owner, monkeypatch):
    assert "sends no mail" in owner.get("/addresses").text
    monkeypatch.setenv("NULLIUS_SMTP", "smtp://127.0.0.1:9")
    monkeypatch.setenv("NULLIUS_MAIL_FROM", "digest@papers.example.org")
    assert "without one-click unsubscription" in owner.get("/addresses").text
    monkeypatch.setenv("NULLIUS_DKIM_KEY", "/nowhere/key.pem")
    assert "/nowhere/key.pem cannot be read" in owner.get("/addresses").text
    assert "sends no mail" in owner.get("/subscribe").text


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A private key of RSA in a file, and the record that the DNS would have."""
    path = tmp_path_factory.mktemp("dkim") / "key.pem"
    subprocess.run(["openssl", "genrsa", "-traditional", "-out", path, "2048"], check=True, capture_output=True)
    public = subprocess.run(["openssl", "rsa", "-in", path, "-pubout", "-outform", "DER"], check=True, capture_output=True).stdout
    import base64

    return path, b"v=DKIM1; k=rsa; p=" + base64.b64encode(public)


def test_mail_is_signed_with_the_domains_own_key(people, lab, box, keys, monkeypatch):
    """The signature that arrives verifies, covers both List- headers, and breaks when one is changed, taken away, or added a second time."""
    path, record = keys
    monkeypatch.setenv("NULLIUS_DKIM_KEY", str(path))
    monkeypatch.setenv("NULLIUS_DKIM_SELECTOR", "s1")
    how = from_environment(lab.base_url, lab.secret)
    confirmed(lab)
    (found,) = subscriptions.of_email("ada@example.org")
    from datetime import UTC, datetime

    from nullius.feed.digest.contents import Contents
    from nullius.feed.digest.message import compose
    from nullius.feed.digest.transport import Transport

    with Transport(how) as line:
        line.send(
            compose(how, found, Contents((), (), ""), "<a.b@papers.example.org>", "ada@example.org", datetime.now(UTC)),
            how.sender,
            "ada@example.org",
        )
    (raw,) = box.raw

    def good(message: bytes) -> bool:
        return dkim.verify(message, dnsfunc=lambda name, timeout=5: record if name == b"s1._domainkey.papers.example.org." else None)

    assert good(raw)
    assert raw.lower().split(b"h=")[1].split(b";")[0].count(b"list-unsubscribe-post") == 2
    assert not good(raw.replace(b"One-Click", b"Two-Click"))
    assert not good(raw.replace(b"List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n", b""))
    assert not good(b"List-Unsubscribe: <https://evil.example/>\r\n" + raw)
    assert not good(raw.replace(b"papers of the day", b"papers of the may"))


def test_a_key_that_signs_nothing_is_said_before_anything_is_sent(lab, tmp_path, monkeypatch):
    monkeypatch.setenv("NULLIUS_SMTP", "smtp://127.0.0.1:9")
    monkeypatch.setenv("NULLIUS_MAIL_FROM", "digest@papers.example.org")
    (tmp_path / "key.pem").write_text("no key")
    for name, value, told in (("KEY", str(tmp_path / "key.pem"), "signs nothing"), ("SELECTOR", "a b", "name of the DNS")):
        monkeypatch.setenv(f"NULLIUS_DKIM_{name}", value)
        with pytest.raises(signing.UsageError, match=told):
            from_environment(lab.base_url, lab.secret)
        monkeypatch.delenv(f"NULLIUS_DKIM_{name}")


def test_the_log_holds_no_link_that_works_by_itself(people, monkeypatch, caplog):
    monkeypatch.setattr("nullius.web.pages.subscribing.subscriptions.waiting", lambda _token: 1 / 0)
    with caplog.at_level(logging.ERROR):
        answer = people["visitor"].get("/subscribe/confirm/a-secret-token", headers={"accept": "text/html"})
    assert answer.status_code == 500
    assert "written down" in answer.text
    assert "ZeroDivisionError" in caplog.text
    assert "a-secret-token" not in caplog.text
