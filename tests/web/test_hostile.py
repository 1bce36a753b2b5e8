"""Every door of the server, and what should not come through it: broken encodings, markup, huge bodies; as a visitor, a member, the owner.

Schemathesis throws at the API's operations, from their description (tests/web/test_api.py); here are all other routes, so that none is left out.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from urllib.parse import quote

import pytest
from starlette.routing import Route
from tests.web.made import HOSTILE, SCRIPT

from nullius.lab import journal, queue
from nullius.web import limiting, who
from nullius.web.settings import Settings, settings

EACH = 5  # requests to a route, by each who asks
MARKUP = '"><script>alert(1)</script>'
VALUES = [  # of the path, the query and forms, as they stand in an address
    *("", "0", "-1", "1e999", "9" * 40, "embers", HOSTILE, "2025-11-04", "2025-W45", "2025-11", "smollm2-135m", "true", "newest"),
    *(quote(MARKUP, safe=""), quote("{{7*7}}${7*7}", safe=""), quote("' OR 1=1; DROP TABLE run; --"), "..%2f..%2fetc%2fpasswd", "%2e%2e"),
    *("%00", "a%00b", "%ff%fe%80", "%ed%a0%80", "%f0%9f%99%88" * 300, "%0d%0aSet-Cookie:%20x=1", "%E2%80%AE", "x" * 3000, "%", "%zz"),
]
FIELDS = (
    "q order subject theme next on text about seed scale other_subject option-x into key email kind target schedule hour tz name sure days"
)


def doors(app) -> list[tuple[str, str]]:
    """Return method and path of every route that the description of the API does not hold."""
    described = {(method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods}
    plain = [route for route in app.routes if isinstance(route, Route)]
    # assistants (/mcp) are answered to POST; their GET is a stream without an end
    every = {(method, route.path) for route in plain for method in (route.methods or {"POST"}) - {"HEAD"}}
    assert not described & every
    return sorted(every)


@pytest.fixture(params=["visitor", "member", "owner"])
def asker(request, browse, alone, lab):
    """A client, and the settings of the server that it talks to."""
    if request.param == "owner":
        return browse(alone, who.enter(who.key_to_enter(alone), alone))
    return browse(lab, who.open_session(who.account_for("ada@example.org", lab)) if request.param == "member" else "")


def test_every_other_route_is_thrown_at(asker, monkeypatch):
    """Plain words and a status that blames the asker, never a 5xx (but for mail that is not sent here); what was sent is shown as text."""
    for name in ("NULLIUS_SMTP", "NULLIUS_MAIL_FROM"):
        monkeypatch.delenv(name, raising=False)
    found = doors(asker.app)
    assert len(found) > 100
    rng, seen = random.Random(0), Counter()
    for method, path in found:
        if path in ("/signout", "/account/delete"):  # or nobody would be left to ask
            continue
        for _ in range(EACH):
            address = re.sub(r"\{[^}]*\}", lambda _: rng.choice(VALUES) or "x", path)
            fields = "&".join(f"{name}={rng.choice(VALUES)}" for name in rng.sample(FIELDS.split(), 5))
            limiting.forget()
            headers = {"cookie": f"{asker.headers.get('cookie', 'x=y')}; subject={rng.choice(VALUES[:13])}; theme=%ff"}
            if method == "GET":
                answer = asker.get(f"{address}?{fields}", headers=headers)
            else:
                body = rng.choice([fields, MARKUP, "\x00=%00&&==", fields.replace("%", "")]).encode("utf-8", "surrogatepass")
                kind = "application/json" if path == "/mcp" else "application/x-www-form-urlencoded"
                answer = asker.post(address, content=body, headers={**headers, "content-type": kind})
            said = f"{method} {address[:200]}?{fields[:200]}: {answer.status_code} {answer.text[:200]}"
            assert answer.status_code < 500 or (answer.status_code == 503 and "mail" in answer.text), said
            assert "Traceback" not in answer.text, said
            assert "set-cookie: x=1" not in str(answer.headers).lower(), said
            if answer.headers.get("content-type", "").startswith(("text/html", "image/svg")):
                assert MARKUP not in answer.text, said
                assert "<script>alert" not in answer.text, said
            seen[answer.status_code] += 1
    assert seen[200] > 50
    assert seen[404] + seen[422] > 50
    for left in journal.list_runs(state="queued", limit=1000):
        queue.cancel(left["id"])


def test_a_huge_body_is_refused_at_every_door(browse):
    """Said to be huge, or huge without saying so: 413, before anything is read of it."""
    setup = settings(port=8000)
    small = Settings(**{**setup.__dict__, "body_bytes": 20_000, "import_bytes": 40_000})
    client = browse(small, who.enter(who.key_to_enter(small), small))
    spec = client.app.openapi()["paths"]
    every = [*doors(client.app), *((m.upper(), path) for path, methods in spec.items() for m in methods)]
    for method, path in every:
        if method == "GET":
            continue
        address = re.sub(r"\{[^}]*\}", "embers", path)
        kind = "application/json" if address.startswith(("/api/", "/mcp")) else "application/x-www-form-urlencoded"
        unread = path in spec and "requestBody" not in spec[path][method.lower()]  # what nobody reads is counted where its length is told
        for body in (b"x=" + b"a" * 50_000, (b"a" * 10_000 for _ in range(5))):
            limiting.forget()
            answer = client.request(method, address, content=body, headers={"content-type": kind})
            said = f"{method} {address}: {answer.status_code} {answer.text[:200]}"
            assert answer.status_code == 413 or (unread and not isinstance(body, bytes) and answer.status_code < 500), said
    assert journal.list_runs(state="queued") == []


BROKEN = [
    b'{"note": "\xff\xfe"}',
    b'{"note": "\\ud800"}',
    b'{"note": "a\\u0000b"}',
    '{"note": "é"}'.encode("utf-16"),
    '{"note": "é"}'.encode("latin-1"),
    b'\xef\xbb\xbf{"note": "x"}',
    b'{"note": "x"',
    b'{"note": NaN}',
    b'{"note": "x", "note": {}}',
    b"[" * 20_000,
    b"9" * 5000,
    b'{"\\ud800": 1}',
]


@pytest.mark.parametrize("body", BROKEN, ids=range(len(BROKEN)))
def test_broken_json_is_refused_or_kept_as_text(owner, body):
    json = {"content-type": "application/json"}
    for method, path in (("PUT", "/api/v1/saved/embers"), ("POST", "/api/v1/runs"), ("POST", "/api/v1/imports"), ("POST", "/mcp")):
        answer = owner.request(method, path, content=body, headers={**json, "accept": "application/json"})
        assert answer.status_code in (200, 400, 406, 422), (path, answer.status_code, answer.text[:300])
        answer.content.decode("utf-8")
    assert owner.get("/library").status_code == owner.get("/api/v1/saved").status_code == owner.get("/account/export").status_code == 200
    assert journal.list_runs(state="queued") == []


def test_a_script_in_a_title_is_text_wherever_the_title_stands(owner):
    """HTML and SVG show it escaped, in no other way; JSON and feeds hold it as it was given, with a type that no browser draws."""
    owner.post(f"/papers/{HOSTILE}/save", data={"on": "1"})
    owner.post(f"/library/{HOSTILE}", data={"note": SCRIPT, "collection": SCRIPT})
    owner.post("/papers/embers/notes", data={"text": SCRIPT})
    owner.post("/account/tokens", data={"name": SCRIPT, "scope-read": "1"})
    owner.post("/import", data={"text": f"@misc{{a, title={{{SCRIPT}}}, year=2024}}\n@misc{{{SCRIPT}, year=x"})
    shown = 0
    for path in (
        "/",
        "/day/2025-11-04",
        "/week/2025-W45",
        "/trending",
        "/search?q=script",
        f"/search?q={quote(SCRIPT)}",
        f"/papers/{HOSTILE}",
    ):
        shown += held(owner.get(path))
    for path in ("/library", "/account", "/papers/embers", "/import", "/runs", "/compare/embers", "/subscribe"):
        shown += held(owner.get(path))
    for path in (
        "/index.json",
        f"/papers/{HOSTILE}.json",
        "/feeds/daily.atom",
        "/library.json",
        "/library.csv",
        f"/papers/{HOSTILE}.bib",
        f"/papers/{HOSTILE}.ris",
    ):
        kind = owner.get(path).headers["content-type"]
        assert not kind.startswith(("text/html", "image/svg", "application/xhtml", "text/xml")), (path, kind)
    assert shown >= 8


def held(answer) -> bool:
    """Whether a page shows the title, and that it is text there."""
    assert answer.status_code == 200, answer.text[:300]
    assert "<img src=x" not in answer.text
    assert not re.search(r"<script(?![^>]*\b(src|type=\"application/ld\+json\"))", answer.text)
    return "&lt;script&gt;" in answer.text


OWN = "my secret thought 7141"


def test_nobody_sees_what_is_anothers_by_any_door(people, browse, lab):
    """What a member keeps (library, address, token, session, subscriptions, who asked for what) is on no page, feed or answer for others."""
    ada = people["member"]
    ada.post("/papers/embers/save", data={"on": "1"})
    ada.post("/library/embers", data={"note": OWN, "collection": OWN})
    ada.post("/account/tokens", data={"name": OWN, "scope-read": "1"})
    ada.post("/papers/factual-recall/run", data={"subject": "smollm2-135m"})
    (run,) = journal.list_runs(state="queued")
    bob = browse(lab, who.open_session(who.account_for("bob@example.org", lab)))
    secrets = (OWN, "ada@example.org", queue.asked(run["id"])["account"])
    assert all(OWN in ada.get(path).text for path in ("/library", "/account", "/account/export", "/api/v1/saved"))
    spec = ada.app.openapi()["paths"]
    every = {path for method, path in doors(ada.app) if method == "GET"} | {path for path, methods in spec.items() if "get" in methods}
    values = {"id": run["id"], "key": "embers", "slug": "embers", "name": "smollm2-135m", "day": "2025-11-04", "week": "2025-W45"}
    for path in sorted(every):
        address = re.sub(r"\{(\w+)[^}]*\}", lambda m: values.get(m[1], "x"), path)
        if address.endswith(("/events", "/live")):  # they go on as long as the run
            continue
        for name, client in (("visitor", people["visitor"]), ("another member", bob), ("maintainer", people["maintainer"])):
            limiting.forget()
            answer = client.get(address, params={"q": "secret thought"} if "search" in address else None)
            found = [secret for secret in secrets if secret in answer.text]
            assert not found, f"{name} sees {found} at {address}"
    queue.cancel(run["id"])
