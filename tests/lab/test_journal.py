"""What can be asked of the journal, on both kinds of database."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from nullius.errors import NulliusError, UsageError
from nullius.lab import journal, schema

pytestmark = pytest.mark.usefixtures("journal_database")
SUBJECT = {"sha256": "ab" * 32, "name": "a", "parameters": 10, "architecture": "llama", "chat": False, "provenance": {"source": "here"}}
OTHER = {**SUBJECT, "sha256": "cd" * 32, "name": "b"}
INTERVAL = {"estimate": 0.5, "lo": 0.4, "hi": 0.6, "n": 9, "n_clusters": 9}


def begin(run_id: str, slug: str = "p", asked: str = "a", full: bool = False) -> str:
    run_id = run_id.ljust(26, "0")
    journal.begin_run({"id": run_id, "slug": slug, "asked_subject": asked, "full": full, "seed": 0, "options": {}})
    return run_id


def done(run_id: str, word: str = "holds", about: dict = SUBJECT, digest: str = "d1", **how) -> str:
    run_id = begin(run_id, **how)
    journal.identify(run_id, about)
    finding = {"claim": "c", "digest": digest, "n": 9, "n_clusters": 9, "samples": "s"}
    finding |= dict.fromkeys(("effect", "lo", "hi", "control", "control_lo", "control_hi"), 0.5)
    verdict = {"claim": "c", "digest": digest, "word": word, "effect": INTERVAL, "control": INTERVAL}
    journal.finish_run(run_id, {"wall_seconds": 1.0}, [finding], [verdict], [{"name": "f", "bytes": 1, "sha256": "e"}])
    return run_id


def test_a_run_from_row_to_record():
    run_id = begin("01A", asked="./a")
    record = journal.get_run("01a")
    assert (record["state"], record["subject"], record["verdicts"]) == ("running", {"name": "./a"}, [])
    journal.identify(run_id, SUBJECT)
    journal.pulse(run_id, 0, [{"at": journal.now(), "kind": "note", "payload": {"text": "x"}}])
    journal.pulse(run_id, 1, [{"at": journal.now(), "kind": "step", "payload": {"label": "l", "done": 1, "total": 2}}])
    assert [event["payload"] for event in journal.events(run_id, after=0)] == [{"label": "l", "done": 1, "total": 2}]
    journal.finish_run(run_id, {}, [], [{"claim": "c", "digest": "d", "word": "fails"}], [{"name": "f", "bytes": 1, "sha256": "e"}])
    record = journal.get_run(run_id)
    assert (record["state"], record["subject"], record["asked_subject"]) == ("done", SUBJECT, "./a")
    assert record["artefacts"][0]["path"] == str(Path(os.environ["NULLIUS_DATA"]) / "runs" / run_id / "f")


def test_a_prefix_must_be_known_and_unambiguous():
    first, second = done("01AB"), done("01AC")
    assert journal.get_run("01ab")["id"] == first
    with pytest.raises(UsageError, match=f"the beginning of several runs: {first}, {second}"):
        journal.get_run("01A")
    for unknown in ("01Z", "%", "_1AB", "'"):
        with pytest.raises(UsageError, match="no run"):
            journal.get_run(unknown)


def test_a_closed_run_stays_closed():
    finished, failed = done("01A"), begin("01B")
    journal.end_run(finished, {"state": "aborted", "reason": "too late"})
    assert journal.get_run(finished)["state"] == "done"
    journal.end_run(failed, {"state": "cancelled", "reason": "by hand"})
    with pytest.raises(NulliusError, match=r"is cancelled: its results were not kept"):
        journal.finish_run(failed, {}, [], [{"claim": "c", "digest": "d", "word": "fails"}], [])
    assert journal.get_run(failed)["verdicts"] == []


def test_one_transaction_or_nothing():
    run_id = begin("01A")
    twice = [{"claim": "c", "digest": "d", "word": "fails"}] * 2
    with pytest.raises(NulliusError):
        journal.finish_run(run_id, {"wall_seconds": 1.0}, [], twice, [])
    record = journal.get_run(run_id)
    assert (record["state"], record["wall_seconds"], record["verdicts"]) == ("running", None, [])


def test_a_state_must_be_one_of_six():
    with pytest.raises(NulliusError):
        journal.end_run(begin("01A"), {"state": "dreaming"})


def test_runs_are_found_by_paper_state_and_any_name_of_their_subject():
    first, second, third = done("01A"), done("01B", asked="../checkpoint", slug="q"), done("01C", about=OTHER, asked="b")
    waiting = begin("01D", asked="b")

    def found(**how: object) -> list[str]:
        return [record["id"] for record in journal.list_runs(**how)]

    assert found() == [waiting, third, second, first]
    assert found(limit=2) == [waiting, third]
    assert found(slug="q") == [second]
    assert found(subject="a") == found(subject="../checkpoint") == found(subject="abababab") == [second, first]
    assert found(subject="b", state="done") == [third]
    assert found(subject="b") == [waiting, third]
    assert found(subject="abab") == []


def test_latest_verdicts_prefer_full_runs_and_count_agreement():
    done("01A", "holds", full=True)
    done("01B", "fails")
    newest = done("01C", "holds", full=True)
    done("01D", "holds", digest="d2")  # reworded: old words keep their own verdicts
    done("01E", "inconclusive", about=OTHER, asked="b")
    begin("01F")
    entries = journal.latest_verdicts()
    assert [(e["digest"], e["subject"]["name"], e["word"], e["runs"], e["agreeing"]) for e in entries] == [
        ("d1", "a", "holds", 3, 2),
        ("d2", "a", "holds", 1, 1),
        ("d1", "b", "inconclusive", 1, 1),
    ]
    assert (entries[0]["run"], entries[0]["full"], entries[0]["slug"]) == (newest, True, "p")
    assert [e["word"] for e in journal.latest_verdicts(subject="b")] == ["inconclusive"]
    assert journal.latest_verdicts(slug="q") == []


def test_subjects():
    assert journal.subjects() == []
    done("01A"), done("01B"), done("01C", about=OTHER)
    journal.identify(begin("01D"), {**OTHER, "sha256": "ef" * 32, "name": "c"})
    assert [(s["name"], s["runs"]) for s in journal.subjects()] == [("a", 2), ("b", 1), ("c", 0)]


@pytest.mark.parametrize(
    ("change", "alive"),
    [
        ({}, True),
        ({"pid": 2**22 + 1}, False),
        ({"pid_started": 1.0, "heartbeat": "old"}, False),
        ({"pid_started": 1.0}, True),  # the clock was set; the heart still beats
        ({"host": "elsewhere"}, True),
        ({"host": "elsewhere", "heartbeat": "old"}, False),
    ],
)
def test_recovery_knows_the_dead(change, alive):
    run_id = begin("01A")
    if "heartbeat" in change:
        change = {**change, "heartbeat": (datetime.now(UTC) - timedelta(seconds=61)).isoformat()}
    with schema.writing() as connection:
        connection.execute(schema.run.update().values(**{"reason": "", **change}))
    assert journal.recover() == ([] if alive else [run_id])
    record = journal.get_run(run_id)
    assert (record["state"], record["reason"]) == (("running", "") if alive else ("aborted", "its process ended without a word"))


def test_a_run_taken_for_dead_by_another_machine_may_still_finish():
    run_id = begin("01A")
    with schema.writing() as connection:
        connection.execute(schema.run.update().values(state="aborted", reason="its process ended without a word"))
    journal.finish_run(run_id, {}, [], [{"claim": "c", "digest": "d", "word": "fails"}], [])
    record = journal.get_run(run_id)
    assert (record["state"], record["reason"]) == ("done", "")


def test_this_process_is_alive():
    assert psutil.Process().create_time() > 0
    assert journal.recover() == []
