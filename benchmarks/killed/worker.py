"""The worker and its run: whichever is killed, a run is whole or marked, none is lost, none is done twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from killed.processes import LONGEST, Child, Kill, Span, afresh, arm, must, passed, reap, sound
from nullius.errors import UsageError
from nullius.feed import database
from nullius.lab import artefacts, journal, queue, runner, schema, studies
from nullius.lab import worker as lab_worker

EPISODE = 25  # kills on one database
CLAIMS = {"said-before", "seen-twice"}
FILES = 8  # of a whole run
_POPEN = subprocess.Popen


def load() -> None:
    """Load what the processes to be killed need, and put a study of a fraction of a second in the place of the real ones."""
    from tests.lab import tiny

    def get(slug: str) -> studies.Study:
        if slug != "tiny-study":
            raise UsageError(f"no study for '{slug}'")
        return tiny.tiny_study

    studies.get = get
    runner._load = lambda subject, device: tiny.SUBJECT
    lab_worker._fetch = lambda subject, device: None


class _Forked:
    """In the place of subprocess.Popen: the worker's child is forked from the worker, where everything is loaded. It lives as the real one does."""

    point = 0  # at which it kills itself

    def __init__(self, command: list[str], *, env: dict[str, str], stdout: Any, start_new_session: bool, **_how: Any) -> None:
        schema._engine(schema.url()).dispose()  # SQLite's locks must not be inherited
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        code = 1
        try:
            if start_new_session:
                os.setsid()
            os.dup2(stdout.fileno(), 1), os.dup2(stdout.fileno(), 2)
            subprocess.Popen = _POPEN  # type: ignore[misc]
            os.environ.clear()
            os.environ.update(env)
            schema._engine.cache_clear()
            if _Forked.point:
                arm(_Forked.point)
            code = lab_worker.child(command[-1])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)

    def wait(self, timeout: float | None = None) -> int:
        end = time.monotonic() + (LONGEST if timeout is None else timeout)
        while self.returncode is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                self.returncode = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                raise subprocess.TimeoutExpired("a run", timeout or LONGEST)
            else:
                time.sleep(0.005)
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def _work(whose_point: str, point: int) -> None:
    """The worker: goes on until nothing waits."""
    subprocess.Popen = _Forked  # type: ignore[assignment, misc]
    _Forked.point = point if whose_point == "run" else -1 if whose_point == "count" else 0
    if whose_point == "worker":
        arm(point)
    limits = lab_worker.Limits(quick_seconds=LONGEST, nice=0)
    lab_worker.Worker(child=("run",), limits=limits).work(idle=lambda: False)


class Worker:
    """Kills workers, their runs, or both at once."""

    def __init__(self, folder: Path, log: Path, rng: random.Random) -> None:
        self.folder, self.log, self.rng = folder, log, rng
        self.asked: set[str] = set()
        self.kills = 0
        self.others: set[int] = set()
        database_ready = afresh(_ask, 1, log=log)
        self.asked |= set(database_ready)
        _finish(self, "count")
        self.span = Span(points=passed())
        self.asked |= set(afresh(_ask, 1, log=log))
        self.span.seconds = _finish(self, "")
        must(not afresh(_check, folder, self.asked, True, log=log), f"a run that nobody kills fails; see {log}")

    def kill(self) -> str:
        """Kill once; returns how, or '' when everything had ended before."""
        waiting = afresh(_ask, 1 if self.rng.random() < 0.7 else 2, log=self.log)
        self.asked |= set(waiting)
        kill, what = self.span.draw(self.rng), self.rng.choice(("worker", "run", "both"))
        whose = {"worker": "worker", "both": "worker"}.get(what, "run") if kill.point else ""
        point = kill.point if whose != "worker" else self.rng.randint(1, 12)  # a worker alone does little
        child = Child(_work, whose, point, log=self.log)
        if what == "run" and not kill.point:
            killed = self._kill_run(child, kill)
        elif what == "run":
            must(child.over(LONGEST), "the worker does not come to its end after its run was killed")
            killed = True  # whether the run reached its point is seen by the check
        else:
            killed = child.kill_at(Kill(kill.seconds, point if kill.point else 0))
        if what == "run":
            must(child.over(LONGEST) and child.status == 0, f"the worker did not outlive its run; see {self.log}")
        reap(10, self.others)
        states = afresh(_check, self.folder, self.asked, what == "run", log=self.log)
        if what == "run" and not any("killed by signal 9" in reason for run_id, reason in states.items() if run_id in waiting):
            killed = False
        self.kills += killed
        return f"{what}, {kill.by}" if killed else ""

    def _kill_run(self, child: Child, kill: Kill) -> bool:
        import psutil

        child.over(kill.seconds)
        if child.over():
            return False
        try:
            for run in psutil.Process(child.pid).children():
                run.send_signal(signal.SIGKILL)
                return True
        except psutil.NoSuchProcess:
            return False
        return False

    def finish(self) -> None:
        """Let a last worker do what is left: everything ends as whole or marked, and the worker starts clean."""
        _finish(self, "")
        afresh(_check, self.folder, self.asked, True, log=self.log)


def _finish(one: Worker, whose: str) -> float:
    child = Child(_work, whose, 0, log=one.log)
    must(child.over(LONGEST) and child.status == 0, f"a worker that nobody kills does not come to its end; see {one.log}")
    return time.monotonic() - child.started


def _ask(n: int) -> list[str]:
    database.make_ready(schema.url())
    return [queue.enqueue("tiny-study", "tiny", seed=number) for number in range(n)]


def _check(folder: Path, asked: set[str], all_done: bool) -> dict[str, str]:
    """See that every run is whole, marked or waiting. Returns the reasons of those that were aborted."""
    records = {record["id"]: record for record in journal.list_runs(limit=10_000)}
    sound(folder)
    must(records.keys() == asked, "a run was lost, or is there that nobody asked for")
    whole = set()
    for run_id, record in records.items():
        if record["state"] == "done":
            whole.add(run_id)
            verdicts = [verdict["claim"] for verdict in record["verdicts"]]
            must(set(verdicts) == CLAIMS == set(record["samples"]) and len(verdicts) == len(CLAIMS), "a done run lacks verdicts")
            must(len(record["artefacts"]) == FILES and not artefacts.damaged(record), "a done run lacks files")
        elif record["state"] == "aborted":
            must(record["reason"] and record["finished"], "an aborted run does not say why")
            must(not record["verdicts"] and not record["artefacts"], "an aborted run has results")
        else:
            must(record["state"] == "queued" and not all_done, f"a run is left {record['state']}")
    runs = folder / "runs"
    lying = {path.name for path in runs.iterdir()} if runs.is_dir() else set()
    must(lying == whole, "files of no whole run lie about, or a whole run has none")
    return {run_id: record["reason"] for run_id, record in records.items() if record["state"] == "aborted"}
