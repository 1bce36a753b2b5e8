"""The queue: a run that is asked for is a row, which a worker claims and executes in a process of its own.

Whoever asks (a page, an assistant, another program) writes the same row, and reads the same record afterwards.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

import psutil
import sqlalchemy as sa
from ulid import ULID

from nullius.errors import UsageError
from nullius.lab import environment, journal
from nullius.lab.schema import reading, request, run, take_turns, writing

OPEN = ("queued", "running")
_LOCK = 0x72756E  # an account asks for one run at a time


def enqueue(
    slug: str,
    subject: str,
    *,
    seed: int = 0,
    full: bool = False,
    options: Mapping[str, str] | None = None,
    device: str | None = None,
    threads: int | None = None,
    rerun_of: str | None = None,
    account: str = "",
    key: str | None = None,
    waiting: int | None = None,
) -> str:
    """Ask for a run and return its id. The study's name and options must have been checked by the caller, who knows them.

    subject: a name for `nullius.load`. account: who asks ('' for the one user of a local nullius). key: asking twice with one key gives the
    first run again. waiting: refuse when the account has that many open already. Raises UsageError for a bad seed, for a key that was used to
    ask for something else, and when too many are waiting.
    """
    environment.check_seed(seed)
    values: dict[str, Any] = {"slug": slug, "asked_subject": subject, "full": full, "seed": seed, "options": dict(options or {})}
    values["rerun_of"] = rerun_of
    with writing() as connection:
        take_turns(connection, _LOCK, sa.func.hashtext(account))  # two wishes of an account must not both be the first, or the last allowed
        if key is not None and (found := _by_key(connection, account, key)) is not None:
            if any(found[name] != value for name, value in values.items()):
                raise UsageError(f"the key '{key[:40]}' was used to ask for another run ({found['id']}); choose a new one")
            return str(found["id"])
        if waiting is not None and _open(connection, account) >= waiting:
            raise UsageError(f"{waiting} of your runs are waiting or running already; wait for one to end or cancel it")
        run_id = str(ULID())
        nobody = {"host": "", "pid": 0, "pid_started": 0.0, "heartbeat": journal.now(), "started": journal.now()}
        connection.execute(run.insert().values(id=run_id, state="queued", **values, **nobody))
        asked = {"account": account, "key": key, "device": device, "threads": threads, "asked": journal.now()}
        connection.execute(request.insert().values(run_id=run_id, **asked))
        return run_id


def _by_key(connection: sa.Connection, account: str, key: str) -> dict[str, Any] | None:
    query = sa.select(run).join(request, request.c.run_id == run.c.id).where(request.c.account == account, request.c.key == key)
    found = connection.execute(query).mappings().first()
    return dict(found) if found else None


def _open(connection: sa.Connection, account: str) -> int:
    query = sa.select(sa.func.count()).select_from(run.join(request, request.c.run_id == run.c.id))
    return connection.execute(query.where(request.c.account == account, run.c.state.in_(OPEN))).scalar() or 0


def claim(device: str | None = None) -> str | None:
    """Claim the oldest queued run for this process, which then answers for it, and return its id; None when none is waiting.

    device: what this worker runs on; a run that asks for another device is left to another worker. Two workers never get the same run.
    """
    process = psutil.Process()
    own = {"host": socket.gethostname(), "pid": process.pid, "pid_started": process.create_time()}
    waiting = (
        sa.select(run.c.id).outerjoin(request, request.c.run_id == run.c.id).where(run.c.state == "queued").order_by(run.c.id).limit(1)
    )
    if device is not None:
        waiting = waiting.where(sa.or_(request.c.device.is_(None), request.c.device == device))
    with reading() as connection:  # looking costs nothing; the lock is taken only where there is something to claim
        if connection.execute(waiting).first() is None:
            return None
    chosen = waiting.with_for_update(skip_locked=True, of=run).scalar_subquery()
    change = run.update().where(run.c.id == chosen, run.c.state == "queued").returning(run.c.id)
    with writing() as connection:
        return connection.execute(change.values(**own, state="running", started=journal.now(), heartbeat=journal.now())).scalar()


def asked(run_id: str) -> dict[str, Any] | None:
    """Return who asked for a run and how (the columns of `request`); None for one begun in a terminal."""
    with reading() as connection:
        found = connection.execute(sa.select(request).where(request.c.run_id == run_id)).mappings().first()
        return dict(found) if found else None


def count(account: str, *, since: str = "", open_only: bool = False) -> int:
    """Return how many runs an account asked for since a time (ISO 8601, UTC); open_only: only those that wait or run."""
    query = sa.select(sa.func.count()).select_from(run.join(request, request.c.run_id == run.c.id))
    query = query.where(request.c.account == account, request.c.asked >= since)
    with reading() as connection:
        return connection.execute(query.where(run.c.state.in_(OPEN)) if open_only else query).scalar() or 0


def cancel(run_id: str, reason: str = "cancelled") -> bool:
    """Cancel a run that waits or runs: the row says so at once, and whoever executes it stops. Returns whether there was anything to cancel."""
    change = run.update().where(run.c.id == run_id, run.c.state.in_(OPEN))
    with writing() as connection:
        return bool(connection.execute(change.values(state="cancelled", reason=reason, finished=journal.now())).rowcount)


def explain(run_id: str, reason: str) -> None:
    """Say why a run was aborted, where the run itself knows only that it was interrupted."""
    with writing() as connection:
        connection.execute(run.update().where(run.c.id == run_id, run.c.state == "aborted").values(reason=reason))


def state(run_id: str) -> str:
    """Return the state of a run; '' when there is none."""
    with reading() as connection:
        return connection.execute(sa.select(run.c.state).where(run.c.id == run_id)).scalar() or ""


def position(run_id: str) -> int | None:
    """Return how many queued or running runs stand before a queued one; None when it does not wait."""
    before = sa.select(sa.func.count()).where(sa.or_(run.c.state == "running", sa.and_(run.c.state == "queued", run.c.id < run_id)))
    with reading() as connection:
        waits = connection.execute(sa.select(run.c.state).where(run.c.id == run_id)).scalar() == "queued"
        return connection.execute(before).scalar() if waits else None
