"""Attacks that were tried, each with what it must not get: another's data by an id, a right that was taken back, mail to others, a closed server."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
import time_machine
from starlette.requests import Request
from starlette.websockets import WebSocketDisconnect
from tests.web.asking import CALL, JSON, asked, tool

from nullius.feed import discussion, tables
from nullius.feed.database import reading, writing
from nullius.feed.digest import subscriptions
from nullius.lab import journal, queue, schema
from nullius.web import limiting, live, mailing, shelf, who
from nullius.web.settings import settings


def test_a_private_server_is_closed_to_assistants_too(browse):
    setup = settings(port=8000, private=True)
    nobody = browse(setup)
    for answer in (
        nobody.post("/mcp", json={"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}, headers=JSON),
        tool(nobody, "get_paper", key="embers"),
        nobody.post("/mcp", json={**CALL, "method": "resources/read", "params": {"uri": "nullius://papers/embers"}}, headers=JSON),
    ):
        assert answer.status_code == 401, answer.text[:200]
    owner = browse(setup, who.enter(who.key_to_enter(setup), setup))
    assert "embers" in tool(owner, "get_paper", key="embers").text


def test_an_assistant_runs_with_a_token_only(browse, alone):
    """A cookie in the browser of somebody who is signed in starts nothing here."""
    owner = browse(alone, who.enter(who.key_to_enter(alone), alone))
    for name, arguments in (("start_run", {"paper": "factual-recall"}), ("cancel_run", {"run_id": journal.list_runs(limit=1)[0]["id"]})):
        assert "needs a token" in tool(owner, name, **arguments).text
    tokens = {scope: browse(alone, token=who.make_token(tables.LOCAL, scope, [scope])) for scope in who.SCOPES}
    assert "queued" in tool(tokens["run"], "start_run", paper="factual-recall").text
    (found,) = journal.list_runs(state="queued")
    for scope in ("read", "vote"):
        assert "no scope for that (run)" in tool(tokens[scope], "cancel_run", run_id=found["id"]).text
        assert ("quoted_title" in tool(tokens[scope], "get_paper", key="embers").text) == (scope == "read")
    assert "cancelled" in tool(tokens["run"], "cancel_run", run_id=found["id"]).text


def test_another_site_changes_nothing_by_any_method(owner):
    """PUT, PATCH, DELETE and assistants' POST, from elsewhere: refused before anything looks at them."""
    owner.put("/api/v1/saved/embers", json={"note": "mine"})
    tried = [
        ("PUT", "/api/v1/saved/embers", {"note": "not mine"}),
        ("DELETE", "/api/v1/saved/embers", None),
        ("PATCH", "/api/v1/saved/embers", {"note": "x"}),
        ("POST", "/api/v1/runs", {"paper": "factual-recall"}),
        ("POST", "/mcp", {**CALL, "params": {"name": "get_paper", "arguments": {"key": "embers"}}}),
        ("PROPFIND", "/", None),
    ]
    for method, path, body in tried:
        for headers in ({"origin": "http://evil.example:8000"}, {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}):
            assert owner.request(method, path, json=body, headers=headers).status_code == 403, (method, path, headers)
    assert [entry["note"] for entry in owner.get("/api/v1/saved").json()["saved"]] == ["mine"]
    assert journal.list_runs(state="queued") == []


def test_sessions_end_after_thirty_days(browse, lab, alone, changing):
    account = who.account_for("ada@example.org", lab)
    key, own = who.open_session(account), who.enter(who.key_to_enter(alone), alone)
    for days, status in ((29, 200), (31, 401)):
        with time_machine.travel(datetime.now(UTC) + timedelta(days=days)):
            assert browse(lab, key).get("/account").status_code == status
            assert browse(alone, own).get("/account").status_code == status


def test_a_link_to_sign_in_ends_after_fifteen_minutes(people, monkeypatch):
    sent = []
    monkeypatch.setattr(mailing, "send", lambda settings, to, subject, text: sent.append(text))
    for minutes, status in ((14, 303), (16, 403)):
        people["visitor"].post("/signin", data={"email": "ada@example.org"})
        key = re.search(r"key=(\S+)", sent[-1])[1]
        with time_machine.travel(datetime.now(UTC) + timedelta(minutes=minutes)):
            assert people["visitor"].post("/signin/link", data={"key": key}).status_code == status


def test_searches_by_assistants_count_as_searches(people):
    with time_machine.travel(datetime.now(UTC), tick=False):  # within one minute, however long it takes
        said = [tool(people["visitor"], "search_papers", query=f"head {i % 2}", limit=1).text for i in range(62)]
    assert sum("quoted_title" in text for text in said) == 60
    assert "60 searches" in said[-1]
    assert "quoted_title" in tool(people["member"], "search_papers", query="head").text


def test_a_seed_that_no_database_holds_is_said(owner):
    for seed in (2**63, 10**30, -1):
        answer = tool(owner, "start_run", paper="factual-recall", seed=seed)
        assert answer.status_code == 200
        assert answer.json()["result"]["isError"]
        assert "seed" in answer.text
        assert owner.post("/api/v1/runs", json={"paper": "factual-recall", "seed": seed}).status_code == 422
    assert journal.list_runs(state="queued") == []


def test_every_id_of_another_is_refused(people, browse, lab, box):
    """What a member owns, tried by another through every address that takes an id."""
    ada = people["member"]
    bob = browse(lab, who.open_session(who.account_for("bob@example.org", lab)))
    ada.post(asked(people, box, email="ada@example.org"))
    (subscription,) = subscriptions.of_email("ada@example.org")
    ada.post("/account/tokens", data={"name": "mine", "scope-read": "1"})
    (token,) = ada.get("/account.json").json()["tokens"]
    session = ada.get("/account.json").json()["sessions"][0]["id"]
    ada.post("/papers/embers/notes", data={"text": "mine"})
    (note,) = ada.get("/papers/embers.json").json()["notes"]
    ada.post("/papers/embers/save", data={"on": "1"})
    run = ada.post("/api/v1/runs", json={"paper": "factual-recall"}, headers={"idempotency-key": "one"}).json()["id"]
    tried = [
        ("POST", f"/subscriptions/{subscription['id']}", {"action": "leave"}),
        ("DELETE", f"/api/v1/subscriptions/{subscription['id']}", None),
        ("POST", f"/account/tokens/{token['id']}/revoke", {}),
        ("POST", f"/account/sessions/{session}/end", {}),
        ("POST", f"/notes/{note['id']}/remove", {}),
        ("POST", f"/notes/{note['id']}", {"text": "not mine"}),
        ("POST", "/library/embers", {"note": "not mine"}),
        ("DELETE", "/api/v1/saved/embers", None),
        ("POST", f"/runs/{run}/cancel", {}),
        ("DELETE", f"/api/v1/runs/{run}", None),
        ("POST", "/papers/embers/vote", {"on": "0"}),
        ("DELETE", "/api/v1/papers/embers/vote", None),
    ]
    ada.post("/papers/embers/vote", data={"on": "1"})
    for client in (bob, people["visitor"]):
        for method, path, form in tried:
            limiting.forget()
            client.request(method, path, data=form)
    assert subscriptions.of_email("ada@example.org")[0]["state"] == "active"
    account = ada.get("/account.json").json()
    assert [t["id"] for t in account["tokens"]] == [token["id"]]
    assert session in [s["id"] for s in account["sessions"]]
    paper = ada.get("/papers/embers.json").json()
    assert (paper["notes"][0]["text"], paper["notes"][0]["removed"], paper["card"]["votes"]) == ("mine", False, 1)
    assert len(ada.get("/api/v1/saved").json()["saved"]) == 1
    assert journal.get_run(run)["state"] == "queued"
    other = bob.post("/api/v1/runs", json={"paper": "factual-recall"}, headers={"idempotency-key": "one"}).json()["id"]
    assert other != run, "a key is its owner's alone"
    for found in (run, other):
        queue.cancel(found)


def test_a_maintainer_who_is_none_any_more(people, browse, lab):
    """Rights are those of the settings now, not of the day of signing in; sessions and tokens lose them alike."""
    key = who.open_session(who.account_for("mia@example.org", lab))
    token = who.make_token(who.account_for("mia@example.org", lab), "x", ["read", "run"])
    after = settings(shared=True, base_url="https://papers.example.org", maintainers=frozenset({"bob@example.org"}))
    assert people["maintainer"].get("/addresses").status_code == 200
    assert browse(after, key).get("/addresses").status_code == 403
    assert browse(after, key).get("/account.json").json()["me"]["role"] == "member"
    assert browse(after, token=token).post("/api/v1/runs", json={"paper": "factual-recall", "scale": "full"}).status_code == 403
    bob = who.open_session(who.account_for("bob@example.org", lab))
    assert browse(after, bob).get("/addresses").status_code == 200


def test_a_session_that_was_put_into_a_browser_is_worth_nothing(people, browse, lab, monkeypatch):
    """Fixation: signing in never makes the name that a cookie came with a session."""
    sent = []
    monkeypatch.setattr(mailing, "send", lambda settings, to, subject, text: sent.append(text))
    fixed = browse(lab, "f" * 43)
    fixed.post("/signin", data={"email": "ada@example.org"})
    answer = fixed.post("/signin/link", data={"key": re.search(r"key=(\S+)", sent[0])[1]})
    assert answer.status_code == 303
    assert answer.headers["location"] == "/"
    assert f"={'f' * 43}" not in answer.headers["set-cookie"]
    assert browse(lab, "f" * 43).get("/account").status_code == 401


@pytest.mark.parametrize(
    "next_page", ["https://evil.example", "//evil.example", "/\\evil.example", "/%2f/evil.example", "http:evil.example"]
)
def test_signing_in_leads_nowhere_else(people, lab, monkeypatch, next_page):
    sent = []
    monkeypatch.setattr(mailing, "send", lambda settings, to, subject, text: sent.append(text))
    nobody = people["visitor"]
    nobody.post(f"/signin?next={next_page}", data={"email": "ada@example.org", "next": next_page})
    assert "evil" not in sent[0]
    key = re.search(r"key=(\S+)", sent[0])[1]
    assert nobody.post(f"/signin/link?next={next_page}", data={"key": key, "next": next_page}).headers["location"] == "/"


def test_there_are_no_websockets(visitor):
    for path in ("/", "/mcp", "/api/v1/runs/x/events", "/runs/x/live"):
        for headers in ({}, {"host": "evil.example"}, {"origin": "https://evil.example"}):
            with pytest.raises(WebSocketDisconnect), visitor.websocket_connect(path, headers=headers):
                pass


NAMES = ["../../nullius.db", "..%2f..%2fnullius.db", "%2e%2e/%2e%2e/web-secret", "....//web-secret", "/etc/passwd", "figure.svg%00.html"]


def test_files_of_runs_are_those_of_the_record(visitor):
    run = journal.list_runs(limit=1, state="done")[0]["id"]
    places = ("/runs/{0}/files/{1}", "/runs/{1}", "/runs/{1}/all.zip", "/api/v1/runs/{1}/samples.parquet", "/static/x/{1}")
    for path in (place.format(run, name) for place in places for name in NAMES):
        answer = visitor.get(path)
        assert answer.status_code in (404, 405), path
        assert b"SQLite" not in answer.content
        assert b"root:" not in answer.content


RAW = [
    ("cookie", b"nullius-8000=\xff\xfe; subject=\xe2\x82\xac; theme=\x80"),
    ("user-agent", b"\xf0\x9f\x92\xa9" * 100),
    ("accept", b"\xff/\xff"),
    ("if-none-match", b'W/"\xff", "\xe2\x82\xac"'),
    ("idempotency-key", b"\xe2\x82\xac"),
    ("authorization", b"Bearer \xff\xfe"),
    ("last-event-id", b"\xd9\xa3"),
    ("referer", b"http://\xff/"),
    ("accept-language", b"\xff"),
    ("hx-request", b"\xff"),
    ("x-forwarded-for", b"\xff, 1.1.1.1"),
]


def test_letters_of_other_alphabets_in_a_head(owner):
    run = journal.list_runs(limit=1, state="done")[0]["id"]
    for name, value in RAW:
        own = [] if name in ("cookie", "authorization") else [(b"cookie", owner.headers["cookie"].encode())]
        for method, path in (
            ("GET", "/about"),
            ("GET", f"/api/v1/runs/{run}/events"),
            ("POST", "/papers/embers/vote"),
            ("GET", "/papers/x"),
        ):
            answer = owner.request(method, path, headers=[*own, (name.encode(), value)])
            assert answer.status_code < 500, (name, path, answer.text[:200])


@pytest.mark.parametrize(
    ("host", "counted"),
    [
        ("2001:db8::1", "2001:db8::"),
        ("2001:db8:0:0:ffff::7", "2001:db8::"),
        ("2001:db8:0:1::1", "2001:db8:0:1::"),
        ("fe80::1%eth0", "fe80::"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("192.0.2.7", "192.0.2.7"),
        ("testclient", "testclient"),
    ],
)
def test_one_network_is_one_visitor(host, counted):
    assert limiting._address(Request({"type": "http", "client": (host, 1), "headers": []})) == counted


def test_a_page_that_was_kept_is_no_citation_and_the_other_way_round(visitor):
    forms = {
        "text/html": "text/html",
        "application/x-bibtex": "application/x-bibtex",
        "application/x-research-info-systems": "application/x-research",
    }
    for _ in range(2):
        for accept, kind in forms.items():
            answer = visitor.get("/papers/embers", headers={"accept": accept})
            assert answer.headers["content-type"].startswith(kind)
            assert "Accept" in answer.headers["vary"].split(", ")


def test_an_error_of_the_database_holds_no_address(owner, monkeypatch):
    """What is written down of an error, or shown, has its statement and not its values."""
    row = {"id": "x", "email": "ada@example.org", "name": "x", "created": None, "role": "member"}
    with pytest.raises(sa.exc.IntegrityError) as told, schema._engine(schema.url()).connect() as connection:
        connection.execute(tables.account.insert().values(**row))
    assert "INSERT INTO account" in str(told.value)
    assert "ada@example.org" not in str(told.value)

    def breaks(*_what):
        with writing() as connection:
            connection.execute(tables.account.insert().values(**row))

    monkeypatch.setattr(shelf, "set_vote", breaks)
    answer = owner.post("/papers/embers/vote", data={"on": "1"})
    assert answer.status_code == 503
    assert "ada@example.org" not in answer.text


def test_no_note_is_many_times_its_text():
    """A table's rows get cells that they leave out: 5,000 characters would be 667,000, drawn for everybody who looks."""
    wide = "|a" * 800 + "\n" + "|-" * 800 + "\n" + "a\n" * 900
    for text in (
        wide,
        "> " * 2400 + "a",
        "[" * 5000,
        "`a" * 2500,
        "*a_ " * 1250,
        "![a](" * 1000,
        "\n".join(" " * i + "- a" for i in range(90)),
    ):
        assert len(discussion.html(text[:5000])) < 40_000
    assert "<td>2</td>" in discussion.html("|a|b|\n|-|-|\n|1|2|\n")


def test_links_of_notes_lead_to_pages():
    for address in ("https://example.org/x", "http://example.org", "/papers/embers", "#run"):
        assert f'href="{address}"' in discussion.html(f"[x]({address})")
    for address in (
        "//evil.example",
        "http:evil",
        "javascript:x",
        "&#106;avascript:x",
        "JAVASCRIPT:x",
        "data:text/html,x",
        "x",
    ):
        for text in (f"[x]({address})", f"[x][1]\n\n[1]: {address}", f"<{address}>"):
            assert "href" not in discussion.html(text), text
    quoted = discussion.html('[a](http://x "\\" onmouseover=\\"alert(1)") &lt;script&gt; &#60;script&#62;')
    assert 'onmouseover="' not in quoted
    assert "<script" not in quoted


def test_a_watcher_who_leaves_at_once_leaves_nothing(monkeypatch):
    """Whoever comes after one who went away before the first look was done sees the run, not a picture that stands still."""
    lives = live.Live(lambda _run: "")

    async def main():
        looked = asyncio.Event()

        async def slow(_watch):
            looked.set()
            await asyncio.sleep(60)

        monkeypatch.setattr(lives, "_look", slow)
        joining = asyncio.create_task(lives._join("01JZZZZZZZZZZZZZZZZZZZZZZZ"))
        await looked.wait()
        joining.cancel()
        with pytest.raises(asyncio.CancelledError):
            await joining

    asyncio.run(main())
    assert lives.watches == {}


def test_a_comment_keeps_a_quiet_stream_open(monkeypatch):
    assert live.COMMENT_SECONDS == 15
    monkeypatch.setattr(live, "COMMENT_SECONDS", 0.02)

    async def main():
        beats = live._wait(live._Watch("01JZZZZZZZZZZZZZZZZZZZZZZZ"), lambda: False)
        said = [await anext(beats) for _ in range(2)]
        await beats.aclose()
        return said

    assert asyncio.run(main()) == [b": still there\n\n"] * 2


def test_a_name_is_one_line(people, lab):
    """What is kept of an account's name is what can be shown on one line."""
    account = who.account_for("eve@example.org", lab, "Eve\r\nBcc: x\x00\u202e" + "e" * 500)
    with reading() as connection:
        (name,) = connection.execute(sa.select(tables.account.c.name).where(tables.account.c.id == account)).one()
    assert name.isprintable()
    assert len(name) <= 100
