"""Whatever happens to a run's process or its disk, the journal is consistent, and a person reads one line.

The runs stand in processes of their own, forked from one that has everything loaded. NULLIUS_FAULTS=200 kills that many at random moments.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import random
import signal
import sqlite3
import sys
import time
from pathlib import Path

import pytest
from tests.lab import tiny

from nullius.errors import NulliusError
from nullius.lab import artefacts, journal
from nullius.lab.schema import SCHEMA_VERSION

KILLS = int(os.environ.get("NULLIUS_FAULTS", "20"))
pytestmark = [pytest.mark.skipif(os.name == "nt", reason="needs fork and signals"), pytest.mark.timeout(600 + 20 * KILLS)]
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.lab.tiny"])


@pytest.fixture
def folder() -> Path:
    return Path(os.environ["NULLIUS_DATA"])


def start(folder: Path, **how: object) -> multiprocessing.Process:
    Path(f"{folder}.line").touch()
    Path(f"{folder}.line").chmod(0o666)
    process = PROCESSES.Process(target=tiny.run_tiny, args=(str(folder), os.environ.get("NULLIUS_DATABASE")), kwargs=how)
    process.start()
    return process


def finish(process: multiprocessing.Process) -> int | None:
    process.join(120)
    return process.exitcode


def line(folder: Path) -> str:
    text = Path(f"{folder}.line").read_text()
    assert "\n" not in text
    assert "Traceback" not in text
    return text


def assert_consistent(folder: Path) -> list[dict]:
    """Every run is either whole or marked, and nothing else lies about. Returns the records."""
    records = journal.list_runs(limit=10_000)
    if "NULLIUS_DATABASE" not in os.environ:
        with sqlite3.connect(folder / "nullius.db") as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    expected = set()
    for record in records:
        if record["state"] == "done":
            assert {verdict["claim"] for verdict in record["verdicts"]} == {"said-before", "seen-twice"} == record["samples"].keys()
            assert len(record["artefacts"]) == 8
            assert artefacts.damaged(record) == []
            assert record["tokens"] > 0
            expected.add(record["id"])
        else:
            assert record["state"] == "aborted"
            assert record["reason"]
            assert record["verdicts"] == record["artefacts"] == []
    lying = {path.name for path in (folder / "runs").iterdir()} if (folder / "runs").is_dir() else set()
    assert lying == expected
    return records


def test_killed_at_random_moments(folder):
    for _ in range(2):  # the first loads everything, the second shows how long a run takes
        started = time.monotonic()
        assert finish(start(folder)) == 0
        whole = time.monotonic() - started
    rng = random.Random(0)
    for _ in range(KILLS):
        process = start(folder)
        time.sleep(rng.uniform(0, whole * 1.1))
        process.kill()
        process.join()
        assert_consistent(folder)
    assert finish(start(folder)) == 0, "a run after all that goes through"
    assert journal.list_runs(limit=1)[0]["state"] == "done"


def test_killed_at_each_kind_of_moment(folder):
    """Before every statement, commit, fsync and move of files, from the first on, until a run is no longer reached by its killer."""
    step = 1 if KILLS > 100 else 4
    points, states = 0, set()
    for point in range(1, 1000, step):
        code = finish(start(folder, before=functools.partial(tiny.die_at, point)))
        records = assert_consistent(folder)
        states |= {record["state"] for record in records}
        if code == 0:
            break
        assert code == -signal.SIGKILL
        points += 1
    assert code == 0
    assert points >= 10
    assert states == {"aborted", "done"}


def test_two_runs_at_once_on_a_new_journal(folder):
    both = [start(folder) for _ in range(3)]
    assert [finish(process) for process in both] == [0, 0, 0]
    records = assert_consistent(folder)
    assert [record["state"] for record in records] == ["done"] * 3
    assert len({record["environment"]["samples"] for record in records}) == 1


def test_a_running_run_is_left_alone(folder):
    process = start(folder, which="endless")
    wait_for_note(folder)
    (record,) = journal.list_runs()
    assert (record["state"], record["finished"]) == ("running", None)
    assert journal.recover() == []
    process.kill()  # not waited for: a zombie is as dead as one that is gone
    time.sleep(0.2)
    assert journal.recover() == [record["id"]]
    process.join()


def test_ctrl_c_marks_the_run_aborted_and_keeps_its_notes(folder):
    process = start(folder, which="endless")
    wait_for_note(folder)
    os.kill(process.pid, signal.SIGINT)
    assert finish(process) == 130
    (record,) = journal.list_runs()
    assert (record["state"], record["reason"], record["notes"]) == ("aborted", "interrupted", ["begun"])
    assert record["subject"]["sha256"] == tiny.SUBJECT.weights_sha256
    assert record["wall_seconds"] > 0
    assert not list((folder / "runs").glob("*")) if (folder / "runs").is_dir() else True


def wait_for_note(folder: Path) -> None:
    """Until the run says its note in the journal: it is under way then."""
    for _ in range(600):
        if "NULLIUS_DATABASE" in os.environ or (folder / "nullius.db").exists():
            runs = journal.list_runs()
            if runs and any(event["kind"] == "note" for event in journal.events(runs[0]["id"])):
                return
        time.sleep(0.05)
    raise AssertionError("the run never began")


@pytest.mark.usefixtures("only_sqlite")
@pytest.mark.parametrize("limit", [4096, 100_000, 400_000])
def test_files_that_may_not_grow(folder, limit):
    """A quota: the journal itself, its log, or the artefacts do not fit."""
    assert finish(start(folder, limit=limit)) == 1
    said = line(folder)
    assert "File too large" in said or "disk" in said
    assert str(folder) in said
    for record in journal.list_runs():
        assert record["state"] in ("failed", "aborted")
        assert record["verdicts"] == record["artefacts"] == []
    assert not list((folder / "runs").glob(".*"))
    assert finish(start(folder)) == 0, "with room again, a run goes through on the same journal"


@pytest.mark.usefixtures("only_sqlite")
@pytest.mark.skipif(sys.platform != "linux", reason="mount namespaces are Linux's")
@pytest.mark.parametrize("size", ["64k", "600k", "1100k"])
def test_full_disk(folder, size):
    """A real disk that is full: the journal does not fit, or the samples, or the figures."""
    code = finish(start(folder, before=functools.partial(tiny.small_disk, str(folder), size)))
    if code == 77:
        pytest.skip("no right to mount a small disk")
    assert code == 1
    said = line(folder)
    assert "disk is full" in said or "No space left on device" in said or "disk I/O error" in said
    assert str(folder) in said


@pytest.mark.usefixtures("only_sqlite")
def test_a_damaged_journal(folder):
    for content in (b"not a database at all, " * 400, b""):
        path = folder / "nullius.db"
        path.write_bytes(content)
        if content:
            with pytest.raises(NulliusError, match=r"nullius\.db\): it is damaged, or no database: move it away"):
                journal.list_runs()
        else:  # SQLite takes an empty file for a new database
            assert journal.list_runs() == []


@pytest.mark.usefixtures("only_sqlite")
def test_a_journal_damaged_in_the_middle(folder):
    assert finish(start(folder)) == 0
    path = folder / "nullius.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(path.read_bytes())
    content[4096:] = random.Random(0).randbytes(len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(NulliusError, match="it is damaged: move it away"):
        journal.list_runs()


@pytest.mark.usefixtures("only_sqlite")
@pytest.mark.parametrize(("version", "advice"), [(SCHEMA_VERSION + 1, "upgrade nullius"), (-1, "move it away")])
def test_a_journal_of_another_version(folder, version, advice):
    with sqlite3.connect(folder / "nullius.db") as connection:
        connection.execute("CREATE TABLE run (id TEXT)")
        connection.execute(f"PRAGMA user_version={version}")
    with pytest.raises(NulliusError, match=f"has schema {version}, this nullius writes {SCHEMA_VERSION}: {advice}"):
        journal.list_runs()


@pytest.mark.usefixtures("only_sqlite")
def test_some_other_programs_database(folder):
    with sqlite3.connect(folder / "nullius.db") as connection:
        connection.execute("CREATE TABLE bookmarks (id TEXT)")
    with pytest.raises(NulliusError, match="some other program's database"):
        journal.list_runs()


@pytest.mark.parametrize("address", ["nonsense", "postgresql+psycopg://me:secret@127.0.0.1:1/x", "martian://host/db"])
def test_a_database_that_cannot_be_used(address, monkeypatch):
    monkeypatch.setenv("NULLIUS_DATABASE", address)
    with pytest.raises(NulliusError) as caught:
        journal.list_runs()
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def as_nobody(folder: str) -> None:
    """Give up the right to write anywhere."""
    if os.getuid() == 0:
        os.setuid(65534)


@pytest.mark.usefixtures("only_sqlite")
@pytest.mark.parametrize("what", ["folder", "journal"])
def test_read_only(folder, what):
    assert finish(start(folder)) == 0
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o444)
    if what == "folder":
        folder.chmod(0o555)
    for path in folder.parents:
        if path.stat().st_uid == os.getuid() and not path.stat().st_mode & 0o001:
            path.chmod(path.stat().st_mode | 0o011)
    code = finish(start(folder, before=functools.partial(as_nobody, str(folder))))
    assert code == 1
    assert "read-only" in line(folder)
