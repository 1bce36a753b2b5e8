"""Sign-in with an account elsewhere, against a provider that speaks OpenID Connect on loopback, with its faults."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest


class Provider(ThreadingHTTPServer):
    """Knows one user; checks the code, the secret and the PKCE verifier."""

    user: ClassVar[dict] = {"sub": "42", "preferred_username": "ada", "email": "ada@example.org", "email_verified": True}
    challenge = ""
    fault = ""


class Answers(BaseHTTPRequestHandler):
    server: Provider

    def log_message(self, *_arguments: object) -> None:
        pass

    def say(self, data: object, status: int = 200) -> None:
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        base = f"http://127.0.0.1:{self.server.server_port}"
        if self.path == "/.well-known/openid-configuration":
            places = {"authorization_endpoint": "/authorize", "token_endpoint": "/token", "userinfo_endpoint": "/userinfo"}
            self.say({name: base + path for name, path in places.items()})
        elif self.path == "/userinfo" and self.headers["Authorization"] == "Bearer good":
            self.say("not JSON at all" if self.server.fault == "userinfo" else self.server.user)
        else:
            self.say({"error": "invalid"}, 401)

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        made = base64.urlsafe_b64encode(hashlib.sha256(form["code_verifier"][0].encode()).digest()).rstrip(b"=").decode()
        right = form["code"] == ["the-code"] and made == self.server.challenge and self.server.fault != "token"
        self.say({"access_token": "good", "token_type": "Bearer"} if right else {"error": "invalid_grant"}, 200 if right else 400)


@pytest.fixture
def provider(monkeypatch) -> Iterator[Provider]:
    server = Provider(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    for name, value in {"ID": "us", "SECRET": "shh", "ISSUER": f"http://127.0.0.1:{server.server_port}"}.items():
        monkeypatch.setenv(f"NULLIUS_OIDC_LAB_{name}", value)
    monkeypatch.setenv("AUTHLIB_INSECURE_TRANSPORT", "1")  # a provider on loopback has no certificate
    yield server
    server.shutdown()
    server.server_close()


def leave(client, provider) -> tuple[str, dict[str, str]]:
    """Go to the provider; return the cookie that remembers it and the query that was sent along."""
    answer = client.get("/signin/lab/go")
    assert answer.status_code == 303
    query = {name: values[0] for name, values in parse_qs(urlsplit(answer.headers["location"]).query).items()}
    provider.challenge = query["code_challenge"]
    return answer.headers["set-cookie"].split(";")[0], query


def test_there_and_back(people, provider, lab, browse):
    client = browse(lab)
    assert "With the lab&#39;s account" in client.get("/signin").text
    cookie, query = leave(client, provider)
    assert query["redirect_uri"] == "https://papers.example.org/signin/lab/back"
    assert set(query["scope"].split()) == {"openid", "profile", "email"}
    assert query["code_challenge_method"] == "S256"
    back = client.get("/signin/lab/back", params={"code": "the-code", "state": query["state"]}, headers={"cookie": cookie})
    assert back.status_code == 303
    session = next(value for value in back.headers.get_list("set-cookie") if value.startswith("__Host-nullius="))
    mine = browse(lab, session.split("=", 1)[1].split(";")[0])
    account = mine.get("/account.json").json()
    assert account["me"]["email"] == "ada@example.org", "the account with that verified address"
    assert [i["provider"] for i in account["identities"]] == ["lab"]
    assert mine.post("/account/identities/lab/disconnect").status_code == 303
    assert mine.get("/account.json").json()["identities"] == []


@pytest.mark.parametrize("forged", ["state", "cookie", "no cookie", "another browser"])
def test_somebody_elses_sign_in_is_refused(people, provider, lab, browse, forged):
    client = browse(lab)
    cookie, query = leave(client, provider)
    other, _ = leave(client, provider)
    cookie = {"state": cookie, "cookie": cookie[:-3] + "abc", "no cookie": "x=y", "another browser": other}[forged]
    state = "forged" if forged == "state" else query["state"]
    answer = client.get("/signin/lab/back", params={"code": "the-code", "state": state}, headers={"cookie": cookie})
    assert answer.status_code == 403
    assert "__Host-nullius=" not in str(answer.headers)


@pytest.mark.parametrize(("fault", "status"), [("token", 503), ("userinfo", 503), ("unverified", 403), ("nobody", 503), ("refused", 403)])
def test_faults_of_the_provider(people, provider, lab, browse, fault, status):
    client = browse(lab)
    provider.fault = fault
    if fault == "unverified":
        provider.user = {**provider.user, "email_verified": False}
    if fault == "nobody":
        provider.user = {"email": "ada@example.org", "email_verified": True}
    cookie, query = leave(client, provider)
    sent = {"state": query["state"], **({"error": "access_denied"} if fault == "refused" else {"code": "the-code"})}
    answer = client.get("/signin/lab/back", params=sent, headers={"cookie": cookie, "accept": "text/html"})
    assert answer.status_code == status
    assert "__Host-nullius=" not in str(answer.headers)
    assert "shh" not in answer.text


def test_a_provider_that_is_not_set_up(people):
    assert people["visitor"].get("/signin/github/go").status_code == 404
    assert people["visitor"].get("/signin/nothing/back").status_code == 404
    assert "With" not in people["visitor"].get("/signin").text


def test_alone_there_is_no_sign_in(visitor):
    for path in ("/signin", "/signin/lab/go", "/signin/lab/back"):
        assert visitor.get(path).status_code == 404
