"""The JSON API: true to its description, whatever is thrown at it, for a visitor and for a member."""

from __future__ import annotations

from collections import Counter

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi import checks

from nullius.lab import journal, queue
from nullius.web import limiting, who
from nullius.web.app import create

CASES = 25  # for each operation


def test_the_description_is_openapi_31(visitor):
    found = visitor.get("/api/v1/openapi.json").json()
    assert found["openapi"].startswith("3.1")
    wanted = (
        "papers papers/{key} papers/{key}/matrix papers/{key}/similar papers/{key}/vote claims subjects subjects/{name}/dossier compare "
    )
    wanted += "calibration runs runs/{id} runs/{id}/events runs/{id}/samples.parquet saved imports subscriptions"
    assert {f"/api/v1/{name}" for name in wanted.split()} <= set(found["paths"])
    assert set(found["paths"]["/api/v1/papers/{key}/vote"]) == {"post", "delete"}
    assert set(found["paths"]["/api/v1/imports"]) == set(found["paths"]["/api/v1/subscriptions"]) == {"get", "post"}
    assert {"PageDay", "PageOnePaper", "PageOneRun"} <= set(found["components"]["schemas"])


def test_cursors_reach_everything_once(visitor):
    seen, cursor = [], ""
    for _ in range(20):
        page = visitor.get("/api/v1/papers", params={"limit": 10, "cursor": cursor}).json()
        seen += [card["key"] for card in page["papers"]]
        cursor = page["cursor"]
        if not cursor:
            break
    assert len(seen) == len(set(seen)) == page["total"] == 55


def test_runs_go_on_by_cursor(visitor):
    first = visitor.get("/api/v1/runs?limit=2").json()
    second = visitor.get("/api/v1/runs", params={"limit": 2, "cursor": first["cursor"]}).json()
    ids = [r["id"] for r in first["runs"] + second["runs"]]
    assert ids == sorted(ids, reverse=True)
    assert len(set(ids)) == 4
    assert "path" not in first["runs"][0]["artefacts"][0]


@pytest.mark.parametrize(
    ("query", "keys"),
    [
        ("q=who+is+bound+to+what", "mixing-mechanisms"),
        ("day=2025-11-03", "2511.00002"),
        ("week=2025-W45&limit=100", "embers"),
        ("month=2025-11&limit=100", "embers"),
        ("runnable=true", "factual-recall"),
        ("verdict=holds", "factual-recall"),
        ("sort=contested", "factual-recall"),
        ("sort=trending&limit=100", "embers"),
    ],
)
def test_which_papers(visitor, query, keys):
    found = visitor.get(f"/api/v1/papers?{query}").json()
    assert keys in [card["key"] for card in found["papers"]]


@pytest.mark.parametrize(
    "query",
    [
        "sortt=newest",
        "limit=0",
        "limit=101",
        "day=2025-02-30",
        "week=2025-W60",
        "month=2025-13",
        "q=a&day=2025-11-04",
        "cursor=zzz",
        "runnable=perhaps",
    ],
)
def test_what_cannot_be_asked_is_a_problem(visitor, query):
    answer = visitor.get(f"/api/v1/papers?{query}")
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"]


def test_one_idempotency_key_one_run(owner):
    wish = {"paper": "factual-recall", "seed": 5}
    first = owner.post("/api/v1/runs", json=wish, headers={"idempotency-key": "k1"})
    again = owner.post("/api/v1/runs", json=wish, headers={"idempotency-key": "k1"})
    assert first.status_code == again.status_code == 202
    assert first.json()["id"] == again.json()["id"]
    assert first.json()["page"].endswith(f"/runs/{first.json()['id']}")
    assert owner.post("/api/v1/runs", json={**wish, "seed": 6}, headers={"idempotency-key": "k1"}).status_code == 409
    assert owner.post("/api/v1/runs", json=wish).json()["id"] != first.json()["id"]


@pytest.mark.parametrize(
    "wish",
    [
        {},
        {"paper": "no-such-paper"},
        {"paper": "mixing-mechanisms-nope"},
        {"paper": "factual-recall", "options": {"colour": "red"}},
        {"paper": "concept-depth", "options": {"prompt": "; rm -rf /"}},
        {"paper": "factual-recall", "seed": -1},
        {"paper": "factual-recall", "seed": 2**63},
        {"paper": "factual-recall", "subject": "nobody"},
        {"paper": "factual-recall", "scale": "enormous"},
        {"paper": "factual-recall", "shell": "sh"},
        [],
        None,
    ],
)
def test_what_cannot_be_run(owner, wish):
    answer = owner.post("/api/v1/runs", json=wish)
    assert answer.status_code in (404, 422)
    assert journal.list_runs(state="queued") == []


def test_a_paper_without_a_study_is_not_runnable(owner):
    answer = owner.post("/api/v1/runs", json={"paper": "2511.00001"})
    assert answer.status_code == 422
    assert "CONTRIBUTING" in answer.json()["advice"]


def test_samples_and_events_of_a_run_that_is_over(visitor):
    (found,) = journal.list_runs("factual-recall", subject="smollm2-135m")
    answer = visitor.get(f"/api/v1/runs/{found['id']}/samples.parquet")
    assert answer.content[:4] == b"PAR1"
    events = visitor.get(f"/api/v1/runs/{found['id']}/events").text
    assert "event: note" in events
    assert events.rstrip().endswith('data: {"state": "done"}')
    numbers = [int(line[4:]) for line in events.splitlines() if line.startswith("id: ")]
    assert numbers == sorted(set(numbers))
    rest = visitor.get(f"/api/v1/runs/{found['id']}/events", headers={"last-event-id": str(numbers[-2])}).text
    assert [int(line[4:]) for line in rest.splitlines() if line.startswith("id: ")] == numbers[-1:]
    assert visitor.get(f"/api/v1/runs/{found['id']}/events", headers={"last-event-id": "x"}).status_code == 422


def test_the_library_by_api(owner):
    assert owner.put("/api/v1/saved/embers", json={"note": "n", "collection": "c", "read": True}).status_code == 200
    (entry,) = owner.get("/api/v1/saved").json()["saved"]
    assert (entry["paper"]["key"], entry["note"], entry["collection"]) == ("embers", "n", "c")
    owner.put("/api/v1/saved/embers", json={"read": False})
    assert owner.get("/api/v1/saved").json()["saved"][0]["read_at"] is None
    assert owner.delete("/api/v1/saved/embers").status_code == 204
    assert owner.get("/api/v1/saved").json()["saved"] == []


@pytest.mark.parametrize("asker", ["visitor", "member"])
def test_whatever_is_thrown_at_it(lab, asker, changing, monkeypatch):
    """No answer is a 5xx but for mail that this server does not send, and each is as the description says: status, type, shape."""
    for name in ("NULLIUS_SMTP", "NULLIUS_MAIL_FROM"):
        monkeypatch.delenv(name, raising=False)
    headers = {"host": "papers.example.org"}
    if asker == "member":
        headers["cookie"] = f"{lab.cookie}={who.open_session(who.account_for('ada@example.org', lab))}"
    wanted = [checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance]
    seen: Counter[int] = Counter()

    def answer(case) -> None:
        limiting.forget()  # what is thrown here is more than anybody may
        response = case.call(base_url=lab.base_url, headers=headers)
        case.validate_response(response, checks=wanted)
        assert response.status_code < 500 or (response.status_code, case.path) == (503, "/api/v1/subscriptions")
        seen[response.status_code] += 1

    for found in schemathesis.openapi.from_asgi("/api/v1/openapi.json", create(lab), headers=headers).get_all_operations():
        operation = found.ok()
        how = settings(max_examples=CASES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
        how(given(case=operation.as_strategy())(answer))()
        for left in journal.list_runs(state="queued", limit=1000):
            queue.cancel(left["id"])
    assert sum(seen.values()) >= 500, "a thousand for both"
    assert seen[200] >= 25
    assert (seen[401] > 0) is (asker == "visitor")


NONSENSE = [
    "/search?q=%ff%fe%00%80",
    "/search?q=" + "%F0%9F%99%88" * 400,
    "/papers/%ff%fe",
    "/papers/a%00b",
    "/papers/" + "x" * 3000,
    "/day/%E0%A5%A6%E0%A5%A6",
    "/week/2025-W%D9%A4%D9%A5",
    "/runs/%2e%2e%2f%2e%2e",
    "/subjects/..%2f..%2fetc%2fpasswd",
    "/compare/embers?m=%ff&m=%00",
    "/feeds/search.atom?q=%00%01%ff",
    "/badge/%ff.%00/x.svg",
    "/trending?days=1e9",
    "/?cursor=%ff&order=%00",
    "/runs?before=%00&paper=%ff",
    "/u/%ff",
    "/static/%ff/%00",
    "/api/v1/papers?q=%ff%00&cursor=%ff",
]


@pytest.mark.parametrize("path", NONSENSE)
def test_nonsense_is_answered_in_plain_words(visitor, path):
    answer = visitor.get(path, headers={"cookie": b"subject=\xff\x80; theme=%00", "accept": b"text/html"})
    assert answer.status_code in (200, 301, 404, 422), answer.text[:300]
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/x-www-form-urlencoded", b"text=%ff%fe%00&about=%80"),
        ("application/x-www-form-urlencoded", b"\xff\xfe\x00=\x80&&==&text"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="text"\r\n\r\n\xff\x00'),
        ("multipart/form-data; boundary=x", b"no boundary at all"),
        ("multipart/form-data", b"--x--"),
        ("application/x-www-form-urlencoded; charset=utf-7", b"text=+ADw-script+AD4-"),
    ],
)
def test_broken_forms_are_refused_or_kept_as_text(owner, kind, body):
    for path in ("/papers/embers/notes", "/import", "/choices", "/account/tokens"):
        answer = owner.post(path, content=body, headers={"content-type": kind})
        assert answer.status_code in (200, 303, 400, 422), (path, answer.text[:300])
    assert "<script" not in owner.get("/papers/embers").text.split('id="notes"')[1].split("</main>")[0]
