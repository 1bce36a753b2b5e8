"""Section by section of the table of rights on a shared server: who may do what, cell by cell."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest
import time_machine

from nullius.lab import journal, queue
from nullius.models.sources import sources
from nullius.web import mailing, verdicts, who

JSON = {"content-type": "application/json"}
NO, YES = (401, 403), (200, 202, 204, 303)


def run(client, **wish):
    return client.post("/api/v1/runs", json={"paper": "factual-recall", **wish})


WISH = {"email": "new@example.org", "kind": "daily", "schedule": "daily", "hour": "7", "at_most": "5", "tz": "UTC"}
LARGE = next(name for name, source in sources().items() if source.parameters > 1e9)
LIST_TOOLS = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
MAY = {
    # what: (how, visitor, member, maintainer)
    "read": (lambda c: c.get("/papers/embers"), YES, YES, YES),
    "search": (lambda c: c.get("/search?q=head"), YES, YES, YES),
    "feeds": (lambda c: c.get("/feeds/daily.atom"), YES, YES, YES),
    "json": (lambda c: c.get("/api/v1/papers"), YES, YES, YES),
    "subscribe page": (lambda c: c.get("/subscribe"), YES, YES, YES),
    "vote": (lambda c: c.post("/papers/embers/vote", data={"on": "1"}), NO, YES, YES),
    "vote by api": (lambda c: c.post("/api/v1/papers/embers/vote"), NO, YES, YES),
    "save": (lambda c: c.post("/papers/embers/save", data={"on": "1"}), NO, YES, YES),
    "save by api": (lambda c: c.put("/api/v1/saved/embers", json={"note": "x"}), NO, YES, YES),
    "note": (lambda c: c.post("/papers/embers/notes", data={"text": "x"}), NO, YES, YES),
    "library": (lambda c: c.get("/library"), NO, YES, YES),
    "account": (lambda c: c.get("/account"), NO, YES, YES),
    "quick run, listed": (lambda c: run(c), NO, YES, YES),
    "quick run by form": (lambda c: c.post("/papers/factual-recall/run", data={"subject": "smollm2-135m"}), NO, YES, YES),
    "full run": (lambda c: run(c, scale="full"), NO, NO, YES),
    "full run by form": (lambda c: c.post("/papers/factual-recall/run", data={"scale": "full"}), NO, NO, YES),
    "hub subject": (lambda c: run(c, subject="Qwen/Qwen3-0.6B"), NO, NO, YES),
    "local directory": (lambda c: run(c, subject="/srv/models/mine"), NO, NO, YES),
    "run everything": (lambda c: c.post("/subjects/run-all", data={"subject": "smollm2-135m"}), NO, NO, YES),
    "import": (lambda c: c.post("/import", data={"text": "@misc{a, title={A paper}, year=2024}"}), NO, NO, YES),
    "merge": (
        lambda c: c.post("/papers/2511.00001/merge", data={"into": "embers"}),
        NO,
        NO,
        (422,),
    ),  # both have an arXiv id: let in, refused
    "import by api": (lambda c: c.post("/api/v1/imports", json={"text": "@misc{c, title={Another paper}, year=2024}"}), NO, NO, YES),
    "bounces": (lambda c: c.get("/addresses"), NO, NO, YES),
    "bounces as json": (lambda c: c.get("/addresses.json"), NO, NO, YES),
    "own subscriptions by api": (lambda c: c.get("/api/v1/subscriptions"), NO, YES, YES),
    "subscribe": (lambda c: c.post("/subscribe", data=WISH), (503,), (503,), (503,)),  # let in; this server sends no mail
    "subscribe by api": (lambda c: c.post("/api/v1/subscriptions", json={"email": WISH["email"], "kind": "daily"}), (503,), (503,), (503,)),
    "library by api": (lambda c: c.get("/api/v1/saved"), NO, YES, YES),
    "a feed of a search": (lambda c: c.get("/feeds/search.atom?q=head"), YES, YES, YES),
    "listed subject above 1 B": (lambda c: run(c, subject=LARGE), NO, NO, YES),
    "anothers note": (lambda c: c.post("/notes/1/remove"), NO, NO, YES),
    "assistants": (lambda c: c.post("/mcp", json=LIST_TOOLS, headers={"accept": "application/json"}), YES, YES, YES),
    "import page": (lambda c: c.get("/import"), NO, NO, YES),
    "imports by api": (lambda c: c.get("/api/v1/imports"), NO, NO, YES),
}


@pytest.mark.parametrize("what", MAY)
def test_the_table(people, what, monkeypatch):
    for name in ("NULLIUS_SMTP", "NULLIUS_MAIL_FROM"):
        monkeypatch.delenv(name, raising=False)
    if what == "anothers note":
        people["maintainer"].post("/papers/embers/notes", data={"text": "of a maintainer"})
    for column, role in enumerate(("visitor", "member", "maintainer"), start=1):
        answer = MAY[what][0](people[role])
        assert answer.status_code in MAY[what][column], f"{role}: {answer.text[:300]}"
        if answer.status_code in NO:
            assert journal.list_runs(state="queued") == []
        for found in journal.list_runs(state="queued", limit=100):
            queue.cancel(found["id"])


def test_cancelling(people, lab):
    of_member = run(people["member"]).json()["id"]
    of_maintainer = run(people["maintainer"]).json()["id"]
    assert people["visitor"].delete(f"/api/v1/runs/{of_member}").status_code == 401
    assert people["member"].delete(f"/api/v1/runs/{of_maintainer}").status_code == 403
    assert people["member"].post(f"/runs/{of_maintainer}/cancel").status_code == 403
    assert people["member"].delete(f"/api/v1/runs/{of_member}").json()["state"] == "cancelled"
    assert people["member"].delete(f"/api/v1/runs/{of_member}").status_code == 409
    other = run(people["member"]).json()["id"]
    assert people["maintainer"].delete(f"/api/v1/runs/{other}").status_code == 200


def test_a_member_has_two_waiting_and_twenty_a_day(people):
    assert [run(people["member"], seed=i).status_code for i in range(3)] == [202, 202, 429]
    assert "Retry-After" in run(people["member"], seed=9).headers
    for i in range(18):
        for found in journal.list_runs(state="queued"):
            queue.cancel(found["id"])
        assert run(people["member"], seed=10 + i).status_code == 202, i
    for found in journal.list_runs(state="queued", limit=100):
        queue.cancel(found["id"])
    last = run(people["member"], seed=99)
    assert last.status_code == 429
    assert "20 runs a day" in last.json()["detail"]
    assert [run(people["maintainer"], seed=i).status_code for i in range(4)] == [202] * 4


def test_a_visitor_has_sixty_searches_and_three_hundred_pages_a_minute(people):
    with time_machine.travel(datetime.now(UTC), tick=False):
        codes = [people["visitor"].get(f"/search?q=head{i % 3}").status_code for i in range(62)]
        assert codes == [200] * 60 + [429] * 2
        answer = people["visitor"].get("/search?q=more")
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        codes = [people["visitor"].get("/about").status_code for _ in range(240)]
        assert codes == [200] * (300 - 63) + [429] * 3, "a search is a page too"
        for role in ("member", "maintainer"):
            assert {people[role].get("/about").status_code for _ in range(5)} == {200}
            assert {people[role].get("/search?q=head").status_code for _ in range(65)} == {200}


def test_a_member_has_thirty_changes_a_minute(people):
    with time_machine.travel(datetime.now(UTC), tick=False):
        for role, expected in (("member", [303] * 30 + [429] * 2), ("maintainer", [303] * 32)):
            codes = [people[role].post("/papers/embers/vote", data={"on": str(i % 2)}).status_code for i in range(32)]
            assert codes == expected, role


def test_scopes_of_tokens(people, lab, browse):
    account = who.account_for("ada@example.org", lab)
    clients = {scope: browse(lab, token=who.make_token(account, scope, [scope])) for scope in who.SCOPES}
    for scope, client in clients.items():
        assert client.get("/api/v1/papers").status_code == (200 if scope == "read" else 403)
    both = browse(lab, token=who.make_token(account, "both", ["read", "vote"]))
    assert both.post("/api/v1/papers/embers/vote").json() == {"votes": 1, "voted": True}
    assert both.delete("/api/v1/papers/embers/vote").json() == {"votes": 0, "voted": False}
    assert run(both).status_code == 403
    runs = browse(lab, token=who.make_token(account, "runs", ["read", "run"]))
    assert run(runs).status_code == 202
    assert runs.post("/api/v1/papers/embers/vote").status_code == 403
    assert runs.get("/account").status_code == 403
    assert runs.post("/account/tokens", data={"name": "more", "scope-vote": "1"}).status_code == 403


@pytest.mark.parametrize("token", ["x", "nullius_x", "", "Bearer", "nullius_" + "a" * 5000])
def test_a_token_that_is_none(people, browse, lab, token):
    client = browse(lab, token=token or " ")
    answer = client.get("/api/v1/papers")
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_token_is_shown_once_and_can_be_revoked(people, lab, browse):
    html = people["member"].post("/account/tokens", data={"name": "assistant", "scope-read": "1", "scope-run": "1"}).text
    token = re.search(r"nullius_[\w-]{30,}", html)[0]
    assert token not in people["member"].get("/account").text
    client = browse(lab, token=token)
    assert client.get("/api/v1/papers").status_code == 200
    (listed,) = people["member"].get("/account.json").json()["tokens"]
    assert listed["scopes"] == ["read", "run"]
    assert people["maintainer"].post(f"/account/tokens/{listed['id']}/revoke").status_code == 303
    assert client.get("/api/v1/papers").status_code == 200, "somebody else's"
    people["member"].post(f"/account/tokens/{listed['id']}/revoke")
    assert client.get("/api/v1/papers").status_code == 401


def test_sign_in_by_a_mailed_link(people, lab, browse, monkeypatch):
    sent = []
    monkeypatch.setattr(mailing, "send", lambda settings, to, subject, text: sent.append((to, subject, text)))
    nobody = people["visitor"]
    assert "on its way" in nobody.post("/signin", data={"email": "new@example.org"}).text
    assert "on its way" in nobody.post("/signin", data={"email": "ada@example.org"}).text
    assert nobody.post("/signin", data={"email": "no address"}).status_code == 422
    ((to, _, text), _) = sent
    assert to == "new@example.org"
    link = re.search(r"https://papers\.example\.org(/signin/link\?key=\S+)", text)[1]
    page = nobody.get(link)
    assert page.status_code == 200
    assert "set-cookie" not in page.headers, "a mail program that follows the link signs nobody in"
    key = link.split("=")[1]
    answer = nobody.post("/signin/link", data={"key": key})
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("__Host-nullius=")
    assert "Secure" in cookie
    assert "HttpOnly" in cookie
    assert nobody.post("/signin/link", data={"key": key}).status_code == 403
    mine = browse(lab, cookie.split("=", 1)[1].split(";")[0])
    assert "new@example.org" in mine.get("/account").text


def test_the_session_changes_at_sign_in_and_ends_at_sign_out(lab, browse, changing):
    account = who.account_for("ada@example.org", lab)
    first = who.open_session(account)
    second = who.open_session(account, instead_of=who.digest(first))
    assert browse(lab, first).get("/account").status_code == 401
    client = browse(lab, second)
    assert client.get("/account").status_code == 200
    client.post("/signout")
    assert client.get("/account").status_code == 401


def test_no_page_shows_anothers_data(people):
    people["member"].post("/papers/embers/save", data={"on": "1"})
    people["member"].post("/library/embers", data={"note": "my secret thought"})
    for path in ("/library", "/account", "/account/export", "/papers/embers", "/"):
        for role in ("visitor", "maintainer"):
            assert "my secret thought" not in people[role].get(path).text
            assert "ada@example.org" not in people[role].get(path).text
    assert "my secret thought" in people["member"].get("/account/export").text


def test_deleting_an_account(people, lab, browse):
    member = people["member"]
    member.post("/papers/embers/vote", data={"on": "1"})
    member.post("/papers/embers/notes", data={"text": "I was here"})
    assert member.post("/account/delete", data={"sure": "yes"}).status_code == 422
    assert member.post("/account/delete", data={"sure": "delete"}).status_code == 303
    assert member.get("/account").status_code == 401
    paper = people["maintainer"].get("/papers/embers.json").json()
    assert paper["card"]["votes"] == 0
    assert paper["notes"][0]["by"] == "somebody who left"
    assert "ada@example.org" not in people["maintainer"].get("/papers/embers").text


def test_names_of_the_table_are_those_of_the_rights():
    assert {"read", "vote", "run", "run-full", "run-any", "cancel-any", "import"} <= set(who.RIGHTS)
    nobody, member = who.NOBODY, who.Person("member", "x")
    assert [nobody.may(action) for action in ("read", "vote", "run")] == [True, False, False]
    assert [member.may(action) for action in ("run", "run-full", "import", "merge")] == [True, False, False, False]
    verdicts.forget()
