"""A local server is guarded against other users, other programs and other sites; a lab's server against everybody."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from nullius.errors import UsageError
from nullius.lab import journal
from nullius.web import who
from nullius.web.problems import Problem
from nullius.web.settings import Settings, secret, settings

CHANGES = [
    ("POST", "/papers/embers/vote", {"on": "1"}),
    ("POST", "/papers/embers/save", {"on": "1"}),
    ("POST", "/papers/embers/notes", {"text": "x"}),
    ("POST", "/papers/factual-recall/run", {"subject": "smollm2-135m"}),
    ("POST", "/account/tokens", {"name": "x", "scope-read": "1"}),
    ("POST", "/import", {"text": "x"}),
    ("POST", "/subjects/run-all", {"subject": "smollm2-135m"}),
]


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", "127.0.0.1:8001", "localhost:8000.evil.example", "", "127.0.0.1:8000@evil", "[::2]:8000"]
)
@pytest.mark.parametrize(
    "path", ["/", "/index.json", "/api/v1/papers", "/static/000000000000/style.css", "/mcp", "/feeds/daily.atom", "/enter?key=x"]
)
def test_another_host_is_not_answered(visitor, host, path):
    answer = visitor.get(path, headers={"host": host})
    assert answer.status_code == 421
    assert "Factual" not in answer.text
    assert answer.headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "[::1]:8000", "LOCALHOST:8000"])
def test_ones_own_hosts_are(visitor, host):
    assert visitor.get("/about", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:8001"},
        {"origin": "https://127.0.0.1:8000"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site", "origin": "http://127.0.0.1:8000"},
    ],
)
@pytest.mark.parametrize(("method", "path", "data"), CHANGES[:4])
def test_another_site_changes_nothing(owner, headers, method, path, data):
    answer = owner.request(method, path, data=data, headers=headers)
    assert answer.status_code == 403
    assert owner.get("/api/v1/papers/embers").json()["card"]["votes"] == 0
    assert journal.list_runs(state="queued") == []


@pytest.mark.parametrize(
    "headers", [{}, {"origin": "http://127.0.0.1:8000"}, {"sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}]
)
def test_ones_own_site_does(owner, headers):
    assert owner.post("/papers/embers/vote", data={"on": "1"}, headers=headers).status_code == 303


@pytest.mark.parametrize(("method", "path", "data"), CHANGES)
@pytest.mark.usefixtures("changing")
def test_without_the_one_time_address_nothing_is_changed_or_run(visitor, method, path, data):
    answer = visitor.request(method, path, data=data)
    assert answer.status_code == 401
    assert "one-time address" in answer.text
    assert journal.list_runs(state="queued") == []


@pytest.mark.usefixtures("changing")
def test_the_one_time_address_works_once(visitor, alone):
    key = who.key_to_enter(alone)
    first = visitor.get(f"/enter?key={key}")
    assert first.status_code == 303
    cookie = first.headers["set-cookie"]
    assert cookie.startswith("nullius-8000=")
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert visitor.get(f"/enter?key={key}").status_code == 403
    for wrong in ("", "x", key[:-1], key + "x"):
        assert visitor.get("/enter", params={"key": wrong}).status_code == 403


@pytest.mark.usefixtures("changing")
def test_a_forged_cookie_is_nobody(browse, alone):
    good = who.enter(who.key_to_enter(alone), alone)
    assert browse(alone, good).get("/account").status_code == 200
    for i in range(0, len(good), 7):
        forged = good[:i] + ("A" if good[i] != "A" else "B") + good[i + 1 :]
        assert browse(alone, forged).get("/account").status_code == 401, i
    other = Settings(secret=b"another secret, of another server")
    assert browse(alone, who._signer(other, "owner").dumps("owner")).get("/account").status_code == 401


def test_a_private_server_cannot_even_be_read(browse):
    setup = settings(port=8000, private=True)
    nobody = browse(setup)
    run = journal.list_runs(limit=1)[0]["id"]
    for path in (
        "/",
        "/papers/embers",
        "/api/v1/papers",
        "/feeds/daily.atom",
        f"/runs/{run}",
        f"/runs/{run}/live",
        f"/api/v1/runs/{run}/events",
    ):
        answer = nobody.get(path)
        assert answer.status_code == 401, path
    assert nobody.get("/health").status_code == 200
    assert browse(setup, who.enter(who.key_to_enter(setup), setup)).get("/").status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", "10.0.0.1", ""])
def test_other_addresses_need_shared(host):
    with pytest.raises(UsageError, match="--shared"):
        settings(host)


def test_the_command_refuses_other_addresses_too():
    answer = subprocess.run(
        [sys.executable, "-m", "nullius.cli.main", "web", "--host", "0.0.0.0", "--no-browser"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 2
    assert answer.stderr.count("\n") <= 3
    assert "Traceback" not in answer.stderr


def test_every_address_to_listen_on_is_answered(browse):
    """127.0.0.5 is this machine too; and browsers leave port 80 out."""
    for setup, hosts in (
        (settings("127.0.0.5", 8000), ("127.0.0.5:8000", "127.0.0.1:8000", "localhost:8000")),
        (settings("::1", 8000), ("[::1]:8000",)),
        (settings(port=80), ("127.0.0.1", "127.0.0.1:80", "localhost", "[::1]")),
    ):
        assert set(hosts) <= setup.hosts
        assert {f"http://{host}" for host in hosts} <= setup.origins
        assert not {"", ":8000", "127.0.0.6:8000", "evil.example"} & setup.hosts
        if setup.port == 8000:
            assert "127.0.0.1" not in setup.hosts
    assert browse(settings("127.0.0.5", 8000)).get("/about", headers={"host": "127.0.0.5:8000"}).status_code == 200
    with pytest.raises(UsageError, match="--private"):
        settings("0.0.0.0", shared=True, private=True, base_url="https://papers.example.org")
    shared = settings("0.0.0.0", shared=True, base_url="https://Papers.example.org:443/")
    assert (shared.hosts, shared.origins) == ({"papers.example.org"}, {"https://papers.example.org"})


WRONG = ["https://me@papers.example.org", "https://papers.example.org?x=1", "https://papers.example.org#x", "https://pápers.example.org"]
WRONG += [
    "",
    "http://papers.example.org",
    "https://",
    "papers.example.org",
    "https://papers.example.org/sub",
    "https://papers.example.org:x",
]


@pytest.mark.parametrize("url", WRONG)
def test_a_shared_server_needs_https(url):
    with pytest.raises(UsageError, match="https"):
        settings("0.0.0.0", shared=True, base_url=url)
    assert settings("0.0.0.0", shared=True, base_url="https://papers.example.org").cookie == "__Host-nullius"


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "application/jsonp"]
)
@pytest.mark.parametrize("path", ["/api/v1/runs", "/mcp"])
def test_json_comes_as_json(owner, kind, path):
    body = b'{"paper": "factual-recall"}'
    assert owner.post(path, content=body, headers={"content-type": kind}).status_code == 415
    assert journal.list_runs(state="queued") == []


def test_forms_come_as_forms(owner):
    assert owner.post("/papers/embers/vote", content=b"{}", headers={"content-type": "application/json"}).status_code == 415
    assert owner.post("/papers/embers/vote", content=b"on=1", headers={"content-type": "text/plain"}).status_code == 415


def test_bodies_have_a_limit(owner):
    big = b"on=1&x=" + b"a" * 1_100_000
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert owner.post("/papers/embers/vote", content=big, headers=form).status_code == 413

    def pieces():
        for _ in range(12):
            yield b"a" * 100_000

    assert owner.post("/papers/embers/vote", content=pieces(), headers=form).status_code == 413
    assert owner.post("/api/v1/runs", content=b"[" * 1_100_000, headers={"content-type": "application/json"}).status_code == 413
    deep = owner.post("/api/v1/runs", content=b"[" * 100_000, headers={"content-type": "application/json"})
    assert deep.status_code == 400


def test_every_answer_is_dressed(visitor):
    for path in ("/", "/nothing", "/index.json", "/api/v1/papers", "/feeds/daily.atom", "/static/000000000000/style.css"):
        headers = visitor.get(path).headers
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert "unsafe-inline" not in headers["content-security-policy"]


def test_the_secret_is_for_this_user_only(changing):
    made = secret()
    assert len(made) == 32
    assert secret() == made
    path = journal.data_dir() / "web-secret"
    assert os.stat(path).st_mode & 0o077 == 0


def test_tickets_are_for_one_purpose(changing):
    key = who.make_ticket("signin", "ada@example.org", minutes=15)
    assert who.use_ticket(key, "confirm") is None
    assert who.use_ticket(key, "signin")["email"] == "ada@example.org"
    assert who.use_ticket(key, "signin") is None
    old = who.make_ticket("signin", "ada@example.org", minutes=-1)
    assert who.use_ticket(old, "signin") is None


def test_secrets_are_kept_as_hashes_only(changing, lab, own_data_folder):
    account = who.account_for("ada@example.org", lab)
    kept = [who.open_session(account), who.make_token(account, "x", ["read"]), who.make_ticket("signin", "ada@example.org", minutes=5)]
    held = b"".join(path.read_bytes() for path in own_data_folder.glob("nullius.db*"))
    assert not any(secret_.encode() in held for secret_ in kept)
    with pytest.raises(Problem):
        who.make_token(account, "x", ["everything"])
    with pytest.raises(Problem):
        who.make_token(account, " ", ["read"])
