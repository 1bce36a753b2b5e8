"""The queue and its worker: each run is executed once, in a process with limits, and its row says how it ended, whoever is killed."""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from tests.lab.test_faults import assert_consistent

from nullius.errors import NulliusError, UsageError
from nullius.lab import journal, queue
from nullius.lab.worker import Limits, Worker

pytestmark = [pytest.mark.skipif(os.name == "nt", reason="needs signals"), pytest.mark.timeout(300)]
CHILD = (sys.executable, "-m", "tests.lab.queued")
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def children_find_the_tests(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def worker(**how) -> Worker:
    return Worker(child=CHILD, limits=Limits(**{"quick_seconds": 60.0, "nice": 0, **how}))


def until(what, seconds=60.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = what()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("it never came to that")


def noted(run_id: str) -> str:
    return next((event["payload"]["text"] for event in journal.events(run_id) if event["kind"] == "note"), "")


def in_thread(target, *arguments):
    thread = threading.Thread(target=target, args=arguments)
    thread.start()
    return thread


def test_a_queued_run_becomes_the_same_record_as_one_from_the_terminal():
    first = queue.enqueue("tiny-study", "tiny", seed=3, account="ada")
    assert journal.get_run(first)["state"] == "queued"
    assert queue.position(first) == 0
    assert worker().once()
    record = journal.get_run(first)
    assert (record["state"], record["seed"], record["reason"]) == ("done", 3, "")
    assert {v["claim"] for v in record["verdicts"]} == {"said-before", "seen-twice"}
    again = queue.enqueue("tiny-study", "tiny", seed=3)
    assert worker().once()
    assert journal.get_run(again)["environment"]["samples"] == record["environment"]["samples"]
    assert queue.position(first) is None
    assert not worker().once(), "nothing is left"


def test_runs_are_claimed_in_the_order_they_were_asked_for_and_once():
    asked = [queue.enqueue("tiny-study", "tiny", seed=seed) for seed in range(40)]
    assert [queue.position(run_id) for run_id in asked[:3]] == [0, 1, 2]
    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(lambda _: queue.claim(), range(60)))
    got = [run_id for run_id in claimed if run_id]
    assert sorted(got) == sorted(asked)
    assert claimed.count(None) == 20


def test_a_worker_leaves_runs_for_other_devices():
    other = queue.enqueue("tiny-study", "tiny", device="cuda:7")
    mine = queue.enqueue("tiny-study", "tiny", device="cpu")
    assert queue.claim("cpu") == mine
    assert queue.claim("cpu") is None
    assert queue.claim("cuda:7") == other


def test_one_key_one_run():
    first = queue.enqueue("tiny-study", "tiny", account="ada", key="k")
    assert queue.enqueue("tiny-study", "tiny", account="ada", key="k") == first
    assert queue.enqueue("tiny-study", "tiny", account="bob", key="k") != first
    with pytest.raises(UsageError, match="used to ask for another run"):
        queue.enqueue("tiny-study", "tiny", account="ada", key="k", seed=1)


def test_no_more_than_so_many_wait():
    queue.enqueue("tiny-study", "tiny", account="ada", waiting=2)
    second = queue.enqueue("tiny-study", "tiny", account="ada", waiting=2)
    with pytest.raises(UsageError, match="2 of your runs"):
        queue.enqueue("tiny-study", "tiny", account="ada", waiting=2)
    queue.enqueue("tiny-study", "tiny", account="bob", waiting=2)
    assert queue.cancel(second)
    queue.enqueue("tiny-study", "tiny", account="ada", waiting=2)
    assert queue.count("ada") == 3
    assert queue.count("ada", open_only=True) == 2
    assert queue.count("ada", since="9999") == 0


def test_a_bad_seed_is_refused_before_anything_is_written():
    with pytest.raises(UsageError, match="a seed is"):
        queue.enqueue("tiny-study", "tiny", seed=-1)
    assert journal.list_runs() == []


def test_cancelled_while_it_waits():
    run_id = queue.enqueue("tiny-study", "tiny")
    assert queue.cancel(run_id, "cancelled by ada")
    assert not queue.cancel(run_id)
    assert not worker().once()
    assert (journal.get_run(run_id)["state"], journal.get_run(run_id)["reason"]) == ("cancelled", "cancelled by ada")


def test_cancelled_while_it_runs_it_keeps_what_it_had():
    run_id = queue.enqueue("endless", "tiny")
    thread = in_thread(worker().once)
    until(lambda: noted(run_id))
    assert queue.cancel(run_id)
    thread.join(30)
    assert not thread.is_alive()
    record = journal.get_run(run_id)
    assert (record["state"], record["notes"], record["verdicts"]) == ("cancelled", ["begun"], [])
    assert record["wall_seconds"] > 0
    assert_no_child_left()


def test_a_deaf_child_is_killed_with_all_that_it_started(monkeypatch):
    monkeypatch.setattr("nullius.lab.worker.GRACE_SECONDS", 1.0)
    run_id = queue.enqueue("deaf", "tiny")
    thread = in_thread(worker().once)
    helper = int(until(lambda: noted(run_id)).split()[1])
    queue.cancel(run_id)
    thread.join(30)
    assert journal.get_run(run_id)["state"] == "cancelled"
    assert not psutil.pid_exists(helper) or psutil.Process(helper).status() == psutil.STATUS_ZOMBIE


def test_too_long():
    run_id = queue.enqueue("endless", "tiny")
    worker(quick_seconds=6.0).once()
    record = journal.get_run(run_id)
    assert record["state"] == "aborted"
    assert record["reason"] == "it took longer than the 0.1 minutes that are allowed"
    assert_no_child_left()


def test_too_much_memory():
    run_id = queue.enqueue("hungry", "tiny")
    worker(memory_bytes=1_500_000_000).once()
    record = journal.get_run(run_id)
    assert record["state"] in ("failed", "aborted")
    assert "memory" in record["reason"].lower()
    assert_no_child_left()


def test_no_network_and_no_secrets(monkeypatch):
    monkeypatch.setenv("NULLIUS_SECRET_KEY", "x")
    monkeypatch.setenv("SOME_TOKEN", "x")
    run_id = queue.enqueue("talkative", "tiny")
    worker().once()
    record = journal.get_run(run_id)
    assert record["state"] == "failed"
    assert "no network" in record["reason"]
    assert noted(run_id) == "secrets: "


def test_a_crash_and_a_study_that_does_not_exist():
    crash, unknown = queue.enqueue("crashing", "tiny"), queue.enqueue("no-such-study", "tiny")
    one = worker()
    one.once(), one.once()
    assert journal.get_run(crash)["state"] == "aborted"
    assert "signal 11" in journal.get_run(crash)["reason"]
    assert (journal.get_run(unknown)["state"], journal.get_run(unknown)["reason"]) == ("failed", "no study for 'no-such-study'")


def test_two_workers_on_one_device_are_refused():
    one, gate = worker(), threading.Event()
    thread = in_thread(one.work, lambda: not gate.is_set())
    until(lambda: list(Path(os.environ["NULLIUS_DATA"]).glob("worker-*.lock")))
    time.sleep(0.2)
    with pytest.raises(NulliusError, match="another worker is at work"):
        worker().work()
    gate.set()
    one.stop()
    thread.join(10)


def serve(folder: str) -> None:
    """A worker process that goes on until it is killed."""
    os.environ["NULLIUS_DATA"] = folder
    Worker(child=CHILD, limits=Limits(nice=0)).work()


def test_killed_worker(tmp_path):
    """A worker that is killed takes its child with it; the next one starts clean and goes on with the queue."""
    folder = os.environ["NULLIUS_DATA"]
    kills = int(os.environ.get("NULLIUS_FAULTS", "1"))
    spawn = multiprocessing.get_context("spawn")
    asked = [queue.enqueue("tiny-study", "tiny", seed=seed) for seed in range(kills + 1)]
    rng = random.Random(0)
    for _ in range(kills):
        process = spawn.Process(target=serve, args=(folder,))
        process.start()
        time.sleep(rng.uniform(1.0, 8.0))
        process.kill()
        process.join()
        until(lambda: not children(), 10)
        assert {record["state"] for record in journal.list_runs(limit=1000)} <= {"queued", "done", "aborted"}
    one = worker()
    while one.once():
        pass
    assert {record["id"] for record in journal.list_runs(limit=1000)} == set(asked)
    assert [r for r in assert_consistent(Path(folder)) if r["state"] == "done"], "the last ones went through"
    assert not list((Path(folder) / "runs").glob(".*"))


def children() -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if "tests.lab.queued" in (p.info["cmdline"] or []) and own(p)]


def own(process: psutil.Process) -> bool:
    try:
        return process.environ().get("NULLIUS_DATA") == os.environ["NULLIUS_DATA"] and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def assert_no_child_left() -> None:
    assert children() == []


def test_a_stopped_worker_stops_its_run():
    run_id = queue.enqueue("endless", "tiny")
    one = worker()
    thread = in_thread(one.work)
    until(lambda: noted(run_id))
    one.stop()
    thread.join(30)
    assert not thread.is_alive()
    assert journal.get_run(run_id)["state"] == "aborted"
    assert_no_child_left()
