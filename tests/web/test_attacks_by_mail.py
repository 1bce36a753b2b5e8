"""What somebody who means no good tries by mail: addresses, confirmations, links that are old, subscriptions of others."""

from __future__ import annotations

import re

import sqlalchemy as sa
from tests.web.asking import asked
from tests.web.test_subscribing import WISH

from nullius.feed import tables
from nullius.feed.database import reading
from nullius.feed.digest import subscriptions
from nullius.web import limiting, mailing

EMAILS = [
    "ä@example.org",
    "a\x01b@example.org",
    "a\x7f@example.org",
    "ada@example.org\r\nBcc: all@example.org",
    "ada@example.org\nSubject: x",
    "ada@example.org%0aBcc: x@example.org",
    "a b@example.org",
    ".ada@example.org",
    "a..b@example.org",
    "ada@-example.org",
    "ada@example..org",
    "ada@example.org, eve@example.org",
    "<ada@example.org>",
    '"ada eve"@example.org',
    "ada@[127.0.0.1]",
    "ada@exämple.org",
    "=?utf-8?q?ada?=@example.org",
    "x" * 65 + "@example.org",
]


def test_an_address_that_would_break_a_mail_is_refused(people, box):
    for email in EMAILS:
        for path, form in (("/subscribe", {**WISH, "email": email}), ("/signin", {"email": email})):
            limiting.forget()
            assert people["visitor"].post(path, data=form).status_code == 422, email
        limiting.forget()
        assert people["visitor"].post("/api/v1/subscriptions", json={"email": email, "kind": "daily"}).status_code == 422, email
    assert box.mails == []


def test_a_confirmation_carries_no_text_of_whoever_asked(people, box):
    """It goes to somebody who may not have asked: nothing in it may be a link, a line or a header of somebody else's."""
    targets = (
        "heads\r\nBcc: all@example.org",
        "heads\x00\x1b[31m",
        "win at https://evil.example/now",
        "www.evil.example",
        "<a href=x>heads</a>",
    )
    for target in targets:
        limiting.forget()
        form = {**WISH, "kind": "search", "target": target, "email": f"new{len(target)}@example.org"}
        assert people["visitor"].post("/subscribe", data=form).status_code == (200 if target.isprintable() else 422)
    assert len(box.mails) == 3
    for mail in box.mails:
        text = mail.get_payload(decode=True).decode()
        assert mail["Bcc"] is None
        assert re.findall(r"https?://\S+", text) == re.findall(r"https://papers\.example\.org/subscribe/confirm/\S+", text)
        assert "evil.example" not in text
        assert "<" not in text


def test_what_is_not_there_cannot_be_subscribed_to(people, box):
    for kind, target in (("paper", "no-such-paper"), ("paper", "2511.00001"), ("subject", "no-such-model")):
        limiting.forget()
        answer = people["visitor"].post("/subscribe", data={**WISH, "kind": kind, "target": target})
        assert answer.status_code == 422, target
    assert box.mails == []
    limiting.forget()
    assert people["visitor"].post("/subscribe", data={**WISH, "kind": "paper", "target": "2310.15910"}).status_code == 200
    path = re.search(r"papers\.example\.org(/subscribe/confirm/\S+)", box.mails[0].get_payload(decode=True).decode())[1]
    people["visitor"].post(path)
    assert subscriptions.of_email(WISH["email"])[0]["target"] == "factual-recall", "known by its arXiv id, kept by its name"


def test_one_address_gets_five_links_an_hour_whoever_asks(people, box, lab):
    """Each from an address of its own, the limit by address of the asker does not help: the answer stays the same, no mail leaves."""
    for _ in range(8):
        limiting.forget()
        answer = people["visitor"].post("/signin", data={"email": "ada@example.org"})
        assert answer.status_code == 200
        assert "on its way" in answer.text
    assert len(box.mails) == 5
    limiting.forget()
    people["visitor"].post("/signin", data={"email": "bob@example.org"})
    assert len(box.mails) == 6


def test_a_yes_after_the_account_is_gone(people, box):
    path = asked(people, box)
    assert people["member"].post("/account/delete", data={"sure": "delete"}).status_code == 303
    assert people["visitor"].post(path).status_code == 200
    (found,) = subscriptions.of_email(WISH["email"])
    assert (found["state"], found["account"]) == ("active", None)


def test_nothing_of_a_deleted_account_is_left(people, box):
    """Neither its address nor its id, in any table, but for runs that it asked for."""
    member = people["member"]
    member.post("/signin", data={"email": "ada@example.org"})
    member.post("/papers/embers/vote", data={"on": "1"})
    member.post("/papers/embers/save", data={"on": "1"})
    member.post("/papers/embers/notes", data={"text": "mine"})
    member.post("/account/tokens", data={"name": "mine", "scope-read": "1"})
    with reading() as connection:
        own = connection.execute(sa.select(tables.account.c.id).where(tables.account.c.email == "ada@example.org")).scalar_one()
    assert member.post("/account/delete", data={"sure": "delete"}).status_code == 303
    with reading() as connection:
        for table in tables.metadata.sorted_tables:
            for row in connection.execute(sa.select(table)):
                assert own not in row, table.name
                assert "ada@example.org" not in str(row), table.name


def test_a_yes_said_again_after_leaving_brings_nothing_back(people, box, lab):
    first, second = asked(people, box), asked(people, box)
    assert people["visitor"].post(first).status_code == 200
    (found,) = subscriptions.of_email(WISH["email"])
    token = mailing.setup(lab).unsubscribe_token(found["id"])
    assert people["visitor"].post(f"/u/{token}", data={"List-Unsubscribe": "One-Click"}).status_code == 200
    for path in (first, second, second):
        people["visitor"].post(path)
        assert subscriptions.of_email(WISH["email"])[0]["state"] == "left", "an older link is no new yes"
    third = asked(people, box)
    assert people["visitor"].post(third).status_code == 200
    assert subscriptions.of_email(WISH["email"])[0]["state"] == "active"


def test_whoever_only_looks_leaves_nothing(people, box, lab):
    """Mail scanners and prefetchers follow links, with what methods they like, and some with a cookie."""
    people["visitor"].post(asked(people, box))
    (found,) = subscriptions.of_email(WISH["email"])
    token = mailing.setup(lab).unsubscribe_token(found["id"])
    for method in ("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"):
        for query in ("", "?List-Unsubscribe=One-Click", "?action=leave"):
            for headers in ({}, {"purpose": "prefetch"}, {"sec-purpose": "prefetch"}):
                answer = people["visitor"].request(method, f"/u/{token}{query}", headers=headers)
                assert answer.status_code in (200, 405), (method, answer.status_code)
    assert people["visitor"].get(f"/u/{token}.json").status_code == 200
    assert subscriptions.of_email(WISH["email"])[0]["state"] == "active"


def test_one_click_is_never_too_many(people, box, lab):
    """A mail provider posts for all its readers from a few addresses."""
    people["visitor"].post(asked(people, box))
    (found,) = subscriptions.of_email(WISH["email"])
    token = mailing.setup(lab).unsubscribe_token(found["id"])
    limiting.forget()
    codes = {people["visitor"].post(f"/u/{token}", data={"List-Unsubscribe": "One-Click"}).status_code for _ in range(35)}
    assert codes == {200}
