"""Sign-in with an account elsewhere, against a provider that speaks OpenID Connect on loopback, with its faults."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, RSAKey

from nullius.web import openid

KEY, OTHER = (RSAKey.generate_key(2048, {"use": "sig", "kid": name}) for name in ("first", "second"))


class Provider(ThreadingHTTPServer):
    """Knows one user; checks the code, the secret and the PKCE verifier, and signs what it says with `key`. asked: how often for what."""

    user: ClassVar[dict] = {"sub": "42", "preferred_username": "ada", "email": "ada@example.org", "email_verified": True}
    key: Any = KEY
    algorithm = "RS256"
    challenge = nonce = ""
    fault = ""
    issuer_told = ""

    def server_activate(self) -> None:
        super().server_activate()
        self.claims: dict[str, Any] = {}  # of the ID token, in place of the right ones; None: left out
        self.told: dict[str, Any] = {}  # of the description
        self.asked: list[str] = []

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def id_token(self) -> str:
        now = int(time.time())
        half = base64.urlsafe_b64encode(hashlib.sha256(b"good").digest()[:16]).rstrip(b"=").decode()
        own = {"iss": self.base, "aud": "us", "sub": "42", "iat": now, "exp": now + 60, "nonce": self.nonce, "at_hash": half, **self.claims}
        own = {name: value for name, value in own.items() if value is not None}
        return jwt.encode({"alg": self.algorithm, "kid": self.key.kid}, own, self.key, algorithms=[self.algorithm])


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
        self.server.asked.append(self.path)
        if self.path == "/.well-known/openid-configuration":
            places = {
                "authorization_endpoint": "/authorize",
                "token_endpoint": "/token",
                "userinfo_endpoint": "/userinfo",
                "jwks_uri": "/keys",
            }
            ways = {"token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"]}
            self.say(
                {"issuer": self.server.base, **{name: self.server.base + path for name, path in places.items()}, **ways, **self.server.told}
            )
        elif self.path == "/keys":
            self.say({"keys": [self.server.key.as_dict(private=False), {"kty": "a kind of tomorrow"}]})
        elif self.path == "/userinfo" and self.headers["Authorization"] == "Bearer good":
            self.say("not JSON at all" if self.server.fault == "userinfo" else self.server.user)
        else:
            self.say({"error": "invalid"}, 401)

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        made = base64.urlsafe_b64encode(hashlib.sha256(form["code_verifier"][0].encode()).digest()).rstrip(b"=").decode()
        right = form["code"] == ["the-code"] and made == self.server.challenge and self.server.fault != "token"
        right = right and form["client_id"] == ["us"] and form["client_secret"] == ["s+h %h"]
        good = {"access_token": "good", "token_type": "Bearer", "id_token": self.server.id_token()}
        self.say(good if right else {"error": "invalid_grant"}, 200 if right else 400)


@pytest.fixture
def provider(monkeypatch) -> Iterator[Provider]:
    server = Provider(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    for name, value in {"ID": "us", "SECRET": "s+h %h", "ISSUER": server.base}.items():
        monkeypatch.setenv(f"NULLIUS_OIDC_LAB_{name}", value)
    openid.forget()
    yield server
    server.shutdown()
    server.server_close()


def leave(client, provider) -> tuple[str, dict[str, str]]:
    """Go to the provider; return the cookie that remembers it and the query that was sent along."""
    answer = client.get("/signin/lab/go")
    assert answer.status_code == 303
    query = {name: values[0] for name, values in parse_qs(urlsplit(answer.headers["location"]).query).items()}
    provider.challenge, provider.nonce = query["code_challenge"], query["nonce"]
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
    assert "s+h" not in answer.text


def test_a_provider_that_is_not_set_up(people):
    assert people["visitor"].get("/signin/github/go").status_code == 404
    assert people["visitor"].get("/signin/nothing/back").status_code == 404
    assert "With" not in people["visitor"].get("/signin").text


def test_alone_there_is_no_sign_in(visitor):
    for path in ("/signin", "/signin/lab/go", "/signin/lab/back"):
        assert visitor.get(path).status_code == 404


def come_back(client, provider, **query):
    """The whole way; returns the answer at its end."""
    cookie, sent = leave(client, provider)
    return client.get("/signin/lab/back", params={"code": "the-code", "state": sent["state"], **query}, headers={"cookie": cookie})


WRONG = {
    "another provider's": {"iss": "https://evil.example"},
    "for another": {"aud": "them"},
    "for several, ours unnamed": {"aud": ["us", "them"]},
    "for several, another's": {"aud": ["us", "them"], "azp": "them"},
    "another's, though for us": {"azp": "them"},
    "of another sign-in": {"nonce": "x"},
    "without a nonce": {"nonce": None},
    "a nonce that is no text": {"nonce": 1},
    "over": {"exp": 1},
    "just over": {"exp": int(time.time()) - openid.LEEWAY - 60},
    "without an end": {"exp": None},
    "of tomorrow": {"iat": int(time.time()) + 86400},
    "without a date": {"iat": None},
    "not yet": {"nbf": int(time.time()) + 86400},
    "of nobody": {"sub": None},
    "of an empty name": {"sub": ""},
    "of somebody else than the user": {"sub": "43"},
    "of another access token": {"at_hash": "AAAAAAAAAAAAAAAAAAAAAA"},
    "a list for a name": {"sub": ["42"]},
    "a date that is none": {"exp": "tomorrow"},
}


def test_an_id_token_that_is_not_for_us_now(people, provider, lab, browse):
    for what, claims in WRONG.items():
        provider.claims = claims
        answer = come_back(browse(lab), provider)
        assert answer.status_code == 503, what
        assert "__Host-nullius=" not in str(answer.headers)


@pytest.mark.parametrize(
    "claims", [{"aud": ["us"]}, {"aud": ["us", "them"], "azp": "us"}, {"at_hash": None}, {"iat": int(time.time()) + 60}]
)
def test_an_id_token_that_is(people, provider, lab, browse, claims):
    provider.claims = claims
    assert come_back(browse(lab), provider).status_code == 303


def test_keys_change_and_algorithms_are_those_of_a_provider(people, provider, lab, browse):
    assert [come_back(browse(lab), provider).status_code for _ in range(2)] == [303, 303]
    assert provider.asked.count("/keys") == provider.asked.count("/.well-known/openid-configuration") == 1
    provider.key = OTHER
    assert come_back(browse(lab), provider).status_code == 303, "a new key is asked for"
    assert provider.asked.count("/keys") == 2
    provider.key = RSAKey.import_key({**KEY.as_dict(private=True), "kid": "second"})  # the old key under the new one's name
    assert come_back(browse(lab), provider).status_code == 303, "whose signature does not fit is looked up anew, once"
    provider.key, provider.algorithm = ECKey.generate_key("P-256", {"kid": "third"}), "ES256"
    assert come_back(browse(lab), provider).status_code == 303
    provider.key, provider.algorithm = OctKey.import_key("s+h %h" + "x" * 30, {"kid": "third"}), "HS256"
    assert come_back(browse(lab), provider).status_code == 503, "what both know signs nothing"


def test_a_token_signed_by_somebody_else(people, provider, lab, browse, monkeypatch):
    mine = KEY.as_dict(private=True)
    forger = RSAKey.generate_key(2048, {"kid": "first"})
    for made in (
        lambda: jwt.encode(
            {"alg": "RS256", "kid": "first"}, {"iss": provider.base, "aud": "us", "sub": "42", "iat": 1, "exp": 9**10}, forger
        ),
        lambda: base64.urlsafe_b64encode(b'{"alg":"none"}').decode().rstrip("=") + "." + Provider.id_token(provider).split(".")[1] + ".",
        lambda: Provider.id_token(provider)[:-8] + "AAAAAAAA",
        lambda: "x",
        lambda: "",
        lambda: None,
        lambda: {"sub": "42"},
        lambda: "." * 1000,
        lambda: base64.urlsafe_b64encode(b"[" * 100_000).decode(),
    ):
        monkeypatch.setattr(provider, "id_token", made)
        assert come_back(browse(lab), provider).status_code == 503
    assert mine["kid"] == "first"


def test_a_description_that_leads_elsewhere(people, provider, lab, browse):
    for told in (
        {"issuer": "https://evil.example"},
        {"issuer": None},
        {"token_endpoint": "http://evil.example/token"},
        {"authorization_endpoint": "javascript:alert(1)"},
        {"jwks_uri": None},
        {"userinfo_endpoint": ["https://x.example"]},
    ):
        provider.told = told
        openid.forget()
        answer = browse(lab).get("/signin/lab/go")
        assert answer.status_code == 503, told
        assert "evil" not in answer.text


def test_who_answered_is_looked_at(people, provider, lab, browse):
    """RFC 9207: a provider that says so names itself in the answer; an answer of another is refused, whoever says so."""
    assert come_back(browse(lab), provider, iss=provider.base).status_code == 303
    assert come_back(browse(lab), provider, iss="https://evil.example").status_code == 503
    openid.forget()
    provider.told = {"authorization_response_iss_parameter_supported": True}
    assert come_back(browse(lab), provider).status_code == 503
    assert come_back(browse(lab), provider, iss=provider.base).status_code == 303


def test_whoever_is_signed_in_connects_their_own(people, provider, lab, browse):
    """A sign-in that was begun as one is not ended as another; one that is connected with another account here connects with no second one."""
    from nullius.web import who

    provider.user = {"sub": "42", "preferred_username": "ada"}
    ada, bob = (browse(lab, who.open_session(who.account_for(f"{name}@example.org", lab))) for name in ("ada", "bob"))

    def ends(began, ended):
        cookie, sent = leave(began, provider)
        both = f"{cookie}; {ended.headers.get('cookie', '')}"
        return ended.get("/signin/lab/back", params={"code": "the-code", "state": sent["state"]}, headers={"cookie": both}).status_code

    nobody = browse(lab)
    assert [ends(nobody, ada), ends(ada, bob), ends(ada, nobody)] == [403, 403, 403]
    assert ends(ada, ada) == 303, "no address is needed where an account is there"
    assert ends(bob, bob) == 409
    assert bob.get("/account.json").json()["identities"] == []


def test_only_what_is_verified_is(people, provider, lab, browse):
    for verified in ("false", "no", 0, None, "1", []):
        provider.user = {**Provider.user, "email": "mia@example.org", "email_verified": verified}
        answer = come_back(browse(lab), provider)
        assert (answer.status_code, "no verified" in answer.text) == (403, True), verified


def test_the_cookie_of_the_way_is_of_this_host_alone(people, provider, lab, browse):
    answer = browse(lab).get("/signin/lab/go")
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("__Host-nullius-signin=")
    assert all(flag in cookie for flag in ("Secure", "HttpOnly", "Path=/", "SameSite=lax"))
    assert "us" in answer.headers["location"]
    assert "s%2Bh" not in answer.headers["location"]
