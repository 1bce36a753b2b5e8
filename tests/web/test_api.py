"""The JSON API: true to its description, whatever is thrown at it, for a visitor and for a member."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks
from tests.web.conftest import PORT

from nullius.lab import journal, queue
from nullius.web import who
from nullius.web.app import create

CASES = 25  # for each operation


def test_the_description_is_openapi_31(visitor):
    found = visitor.get("/api/v1/openapi.json").json()
    assert found["openapi"].startswith("3.1")
    wanted = (
        "papers papers/{key} papers/{key}/matrix papers/{key}/similar papers/{key}/vote claims subjects subjects/{name}/dossier compare "
    )
    wanted += "calibration runs runs/{id} runs/{id}/events runs/{id}/samples.parquet saved imports"
    assert {f"/api/v1/{name}" for name in wanted.split()} <= set(found["paths"])
    assert set(found["paths"]["/api/v1/papers/{key}/vote"]) == {"post", "delete"}


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


@pytest.mark.parametrize("asker", ["visitor", "owner"])
def test_whatever_is_thrown_at_it(alone, asker, changing):
    """No answer is a 5xx, and each is as the description says: status, type, shape."""
    cookie = {"cookie": f"{alone.cookie}={who.enter(who.key_to_enter(alone), alone)}"} if asker == "owner" else {}
    headers = {"host": f"127.0.0.1:{PORT}", **cookie}
    wanted = [checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance, not_a_server_error]
    seen = 0

    def answer(case) -> None:
        nonlocal seen
        response = case.call(base_url=f"http://127.0.0.1:{PORT}", headers=headers)
        case.validate_response(response, checks=wanted)
        seen += 1

    for found in schemathesis.openapi.from_asgi("/api/v1/openapi.json", create(alone), headers=headers).get_all_operations():
        operation = found.ok()
        how = settings(max_examples=CASES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
        how(given(case=operation.as_strategy())(answer))()
        for left in journal.list_runs(state="queued", limit=1000):
            queue.cancel(left["id"])
    assert seen >= 300
