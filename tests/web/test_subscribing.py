"""Subscribing by mail, through a real SMTP server on loopback: asked once, confirmed by a button, left by one click."""

from __future__ import annotations

import re

import pytest

from nullius.feed.digest import subscriptions
from nullius.web import mailing

WISH = {
    "kind": "subject",
    "target": "smollm2-135m",
    "schedule": "weekdays",
    "hour": "7",
    "tz": "Europe/Rome",
    "at_most": "5",
    "email": "new@example.org",
}


def test_from_the_form_to_leaving(people, lab, box):
    nobody = people["visitor"]
    assert "is on its way" in nobody.post("/subscribe", data=WISH).text
    (mail,) = box.mails
    assert mail["To"] == "new@example.org"
    path = re.search(r"https://papers\.example\.org(/subscribe/confirm/\S+)", mail.get_payload(decode=True).decode())[1]
    assert "new verdicts on smollm2-135m" in nobody.get(path).text
    assert subscriptions.of_email("new@example.org") == [], "a scanner that follows the link confirms nothing"
    assert "You will get it" in nobody.post(path).text
    (found,) = subscriptions.of_email("new@example.org")
    assert (found["state"], found["tz"], found["at_most"]) == ("active", "Europe/Rome", 5)
    assert nobody.post(path).status_code == 410
    assert nobody.get(path).status_code == 410
    token = mailing.setup(lab).unsubscribe_token(found["id"])
    assert "Pause for 30 days" in nobody.get(f"/u/{token}").text
    assert subscriptions.of_email("new@example.org")[0]["state"] == "active", "looking is not leaving"
    nobody.post(f"/u/{token}", data={"action": "weekly"})
    assert subscriptions.of_email("new@example.org")[0]["schedule"] == "weekly"
    for kind in ("form", "multipart"):
        sent = {"data": {"List-Unsubscribe": "One-Click"}} if kind == "form" else {"files": {"List-Unsubscribe": (None, "One-Click")}}
        answer = nobody.post(f"/u/{token}", headers={"origin": "https://mail.example"}, **sent)
        assert (answer.status_code, "location" in answer.headers) == (200, False)
    assert subscriptions.of_email("new@example.org")[0]["state"] == "left"


def test_forged_links(people, lab, box):
    token = mailing.setup(lab).unsubscribe_token("01JZZZZZZZZZZZZZZZZZZZZZZZ")
    for wrong in (token, token[:-1] + ("A" if token[-1] != "A" else "B"), "x", token + "x"):
        assert people["visitor"].post(f"/u/{wrong}", data={"List-Unsubscribe": "One-Click"}).status_code == 404
    assert people["visitor"].get("/subscribe/confirm/x").status_code == 410


@pytest.mark.parametrize(
    "change",
    [
        {"email": "nobody"},
        {"kind": "everything"},
        {"target": ""},
        {"hour": "25"},
        {"hour": "x"},
        {"tz": "Mars/Olympus"},
        {"at_most": "900"},
        {"schedule": "hourly"},
    ],
)
def test_what_cannot_be_subscribed_to(people, box, change):
    assert people["visitor"].post("/subscribe", data={**WISH, **change}).status_code == 422
    assert box.mails == []


def test_without_mail(people, monkeypatch):
    monkeypatch.delenv("NULLIUS_SMTP", raising=False)
    monkeypatch.delenv("NULLIUS_MAIL_FROM", raising=False)
    assert people["visitor"].post("/subscribe", data=WISH).status_code == 503
    assert "sends no mail" in people["visitor"].get("/subscribe").text


def test_a_server_that_does_not_answer(people, monkeypatch):
    monkeypatch.setenv("NULLIUS_SMTP", "smtp://127.0.0.1:9")
    monkeypatch.setenv("NULLIUS_MAIL_FROM", "digest@papers.example.org")
    assert people["visitor"].post("/subscribe", data=WISH).status_code == 503
