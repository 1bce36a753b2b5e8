"""Subscribing by mail, through the pages: asking, saying yes, and leaving with one click."""

from __future__ import annotations

import re

import pytest

from nullius.feed.digest import subscriptions
from nullius.feed.digest.settings import MailSettings
from nullius.web import mailing

WISH = {
    "kind": "search",
    "target": "quokkas",
    "schedule": "weekdays",
    "hour": "8",
    "tz": "Europe/Rome",
    "at_most": "5",
    "email": "ada@reader.org",
}


@pytest.fixture
def sent(monkeypatch):
    mails = []
    monkeypatch.setattr(mailing, "send", lambda to, subject, text: mails.append((to, subject, text)))
    return mails


def token_of(text):
    return re.search(r"https://papers\.example\.org/subscribe/confirm/(\S+)", text)[1]


def test_from_the_form_to_leaving(people, sent, lab):
    nobody = people["visitor"]
    assert 'name="email"' in nobody.get("/subscribe").text
    asked = nobody.post("/subscribe", data=WISH)
    assert asked.status_code == 200
    assert "on its way" in asked.text
    assert asked.text == nobody.post("/subscribe", data=WISH).text, "known or not, the answer is the same"
    to, _, text = sent[0]
    assert to == "ada@reader.org"
    token = token_of(text)
    shown = nobody.get(f"/subscribe/confirm/{token}")
    assert "the search “quokkas”" in shown.text
    assert subscriptions.of_email("ada@reader.org") == [], "a link that is only looked at confirms nothing"
    assert nobody.post(f"/subscribe/confirm/{token}").status_code == 200
    assert nobody.post(f"/subscribe/confirm/{token}").status_code == 410
    (kept,) = subscriptions.of_email("ada@reader.org")
    assert (kept["state"], kept["schedule"], kept["hour"], kept["tz"], kept["at_most"]) == ("active", "weekdays", 8, "Europe/Rome", 5)

    leave = "/u/" + MailSettings("", "", lab.base_url, lab.secret).unsubscribe_token(kept["id"])
    assert "Pause for 30 days" in nobody.get(leave).text
    assert subscriptions.describe(kept["id"])["state"] == "active", "looking changes nothing"
    nobody.post(leave, data={"do": "weekly"})
    assert subscriptions.describe(kept["id"])["schedule"] == "weekly"
    nobody.post(leave, data={"do": "pause"})
    assert subscriptions.describe(kept["id"])["state"] == "paused"
    for how in ({"data": {"List-Unsubscribe": "One-Click"}}, {"files": {"List-Unsubscribe": (None, "One-Click")}}):
        clicked = nobody.post(leave, headers={"Origin": "https://mail.example"}, **how)
        assert clicked.status_code == 200
        assert "set-cookie" not in clicked.headers
    assert subscriptions.describe(kept["id"])["state"] == "left"
    assert nobody.get(leave[:-1] + ("A" if leave[-1] != "A" else "B")).status_code == 404


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"email": "nobody"}, "no e-mail address"),
        ({"tz": "Mars/Olympus"}, "no time zone"),
        ({"kind": "hourly"}, "no subscription"),
        ({"target": " "}, "needs a target"),
        ({"hour": "25"}, "hour is 0 to 23"),
        ({"at_most": "many"}, "At most is a number"),
    ],
)
def test_what_cannot_be_is_said(people, sent, wrong, says):
    answer = people["visitor"].post("/subscribe", data={**WISH, **wrong})
    assert answer.status_code == 422
    assert says in answer.text
    assert sent == []


def test_a_server_without_mail_says_so(people, monkeypatch):
    monkeypatch.setattr(mailing, "send", None)
    assert "sends no mail" in people["visitor"].get("/subscribe").text
    assert people["visitor"].post("/subscribe", data=WISH).status_code == 503


def test_alone_only_the_owner_subscribes(visitor, owner, sent, changing):
    assert visitor.post("/subscribe", data=WISH).status_code == 401
    assert owner.post("/subscribe", data=WISH).status_code == 200
