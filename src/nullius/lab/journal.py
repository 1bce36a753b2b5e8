"""The journal of runs: what is written while a run goes on, and what can be asked of it afterwards.

A run is a row from the moment it is asked for. It becomes *done* in one transaction, after its artefacts lie on disk; a process that dies
leaves a row that says *running*, and the next start finds that its process is gone, marks it *aborted* and removes what it left on disk.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import psutil
import sqlalchemy as sa

from nullius.errors import NulliusError, UsageError
from nullius.lab import records
from nullius.lab.schema import artefact, finding, insert_new, reading, request, run, run_event, verdict, writing
from nullius.lab.schema import subject as _subject
from nullius.paths import data_dir

HEARTBEAT_SECONDS = 5
SILENT_SECONDS = 60


def now() -> str:
    """Return the time in UTC, ISO 8601 with milliseconds: as text it sorts by time."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def begin_run(values: Mapping[str, Any]) -> None:
    """Insert a run that starts now in this process."""
    process = psutil.Process()
    own = {"host": socket.gethostname(), "pid": process.pid, "pid_started": process.create_time()}
    with writing() as connection:
        connection.execute(run.insert().values(**values, **own, state="running", started=now(), heartbeat=now()))


def take_over(run_id: str) -> None:
    """Make a run that a worker has claimed this process's own. Raises NulliusError when it is no longer there to be run."""
    process = psutil.Process()
    own = {"host": socket.gethostname(), "pid": process.pid, "pid_started": process.create_time(), "heartbeat": now()}
    with writing() as connection:
        if not connection.execute(run.update().where(run.c.id == run_id, run.c.state == "running").values(**own)).rowcount:
            raise NulliusError(f"run {run_id} was cancelled before it began")


def identify(run_id: str, about: Mapping[str, Any]) -> None:
    """Say which subject a run turned out to have, once it is loaded. about: the columns of `subject`."""
    with writing() as connection:
        insert_new(connection, _subject, [about])  # another run may be naming the same subject at this moment
        connection.execute(run.update().where(run.c.id == run_id).values(subject_sha256=about["sha256"]))


def pulse(run_id: str, first: int, events: Sequence[Mapping[str, Any]]) -> None:
    """Say that a run is alive, and append its events (at, kind, payload), numbered from `first`."""
    rows = [{"run_id": run_id, "seq": first + i, **entry} for i, entry in enumerate(events)]
    with writing() as connection:
        connection.execute(run.update().where(run.c.id == run_id).values(heartbeat=now()))
        _add(connection, run_event, rows)


def finish_run(
    run_id: str,
    values: Mapping[str, Any],
    findings: Sequence[Mapping[str, Any]],
    verdicts: Sequence[Mapping[str, Any]],
    artefacts: Sequence[Mapping[str, Any]],
) -> None:
    """Close a run as done, its findings, verdicts and artefacts with it, in one transaction.

    A run that another machine took for dead and marked aborted is done all the same. Raises NulliusError when it was cancelled meanwhile.
    """
    change = run.update().where(run.c.id == run_id, run.c.state.in_(("running", "aborted")))
    with writing() as connection:
        if not connection.execute(change.values(**values, state="done", reason="", finished=now())).rowcount:
            state = connection.execute(sa.select(run.c.state).where(run.c.id == run_id)).scalar() or "gone from the journal"
            raise NulliusError(f"run {run_id} is {state}: its results were not kept")
        _add(connection, finding, [{"run_id": run_id, **entry} for entry in findings])
        rows = [
            {"run_id": run_id, "position": i, "detail": v, **{c: v[c] for c in ("claim", "digest", "word")}} for i, v in enumerate(verdicts)
        ]
        _add(connection, verdict, rows)
        _add(connection, artefact, [{"run_id": run_id, **entry} for entry in artefacts])


def end_run(run_id: str, values: Mapping[str, Any], artefacts: Sequence[Mapping[str, Any]] = ()) -> None:
    """Close a run that did not finish (failed, aborted), keeping the artefacts named and no other file. A run closed before stays as it is.

    One that was cancelled stays cancelled, and keeps what it can tell of the way so far: notes, costs, environment.
    """
    with writing() as connection:
        change = run.update().where(run.c.id == run_id, run.c.state == "running").values(**values, finished=now())
        closed_now = connection.execute(change).rowcount
        told = {name: value for name, value in values.items() if name not in ("state", "reason")}
        if told and not closed_now:
            connection.execute(run.update().where(run.c.id == run_id, run.c.state == "cancelled").values(**told))
        if closed_now and artefacts:
            _add(connection, artefact, [{"run_id": run_id, **entry} for entry in artefacts])
        elif closed_now or connection.execute(sa.select(run.c.state).where(run.c.id == run_id)).scalar() != "done":
            _remove_files(run_id)


def _add(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        connection.execute(table.insert(), rows)


def recover() -> list[str]:
    """Mark runs whose process is gone as aborted and remove the files they left; return their ids. Called before runs are read or begun."""
    with reading() as connection:
        if all(_alive(dict(row)) for row in connection.execute(sa.select(run).where(run.c.state == "running")).mappings()):
            return []
    gone = []
    with writing() as connection:  # looked at again with the lock in hand: a run may have finished, and its process ended, in between
        running = sa.select(run).where(run.c.state == "running").order_by(run.c.id).with_for_update()
        for row in connection.execute(running).mappings().all():
            if _alive(dict(row)):
                continue
            gone.append(row["id"])
            change = {"state": "aborted", "reason": "its process ended without a word", "finished": now()}
            connection.execute(run.update().where(run.c.id == row["id"]).values(**change))
            if row["host"] == socket.gethostname():  # a silent machine may only be asleep, and needs its files when it wakes
                _remove_files(row["id"])
    return gone


def _remove_files(run_id: str) -> None:
    """Remove what a run has on disk, published or half-written."""
    for name in (run_id, f".{run_id}"):
        shutil.rmtree(data_dir() / "runs" / name, ignore_errors=True)


def _alive(row: Mapping[str, Any]) -> bool:
    """Whether a running run's process still exists; on another machine: whether its heart has beaten within a minute."""
    age = (datetime.now(UTC) - datetime.fromisoformat(row["heartbeat"])).total_seconds()
    if row["host"] != socket.gethostname():
        return age < SILENT_SECONDS
    try:
        process = psutil.Process(row["pid"])
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        # start times move when the clock is set; a heart that beats says that it is the same process all the same
        return abs(process.create_time() - row["pid_started"]) < 1.0 or age < SILENT_SECONDS
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return age < SILENT_SECONDS


def _named(name: str) -> sa.ColumnElement[bool]:
    """Runs on a subject, by the name it was asked by, its own name, or its weights' hash (8 digits suffice); any name finds all its runs."""
    known = sa.select(run.c.subject_sha256).join(_subject, _subject.c.sha256 == run.c.subject_sha256)
    by_hash = _subject.c.sha256.startswith(name, autoescape=True) if len(name) >= 8 else sa.false()
    hashes = known.where(sa.or_(run.c.asked_subject == name, _subject.c.name == name, by_hash))
    return sa.or_(run.c.asked_subject == name, run.c.subject_sha256.in_(hashes))


def _records(connection: sa.Connection, query: sa.Select[Any]) -> list[dict[str, Any]]:
    """Return the records (nullius.run/1) of the runs that a query on `run` selects."""
    rows = [dict(row) for row in connection.execute(query).mappings()]
    ids = query.with_only_columns(run.c.id).subquery()
    of: dict[str, dict[str, list[Any]]] = {row["id"]: {"findings": [], "verdicts": [], "artefacts": []} for row in rows}
    for found in connection.execute(sa.select(finding).join(ids, ids.c.id == finding.c.run_id).order_by(finding.c.claim)).mappings():
        of[found["run_id"]]["findings"].append((found["claim"], found["samples"]))
    for found in connection.execute(sa.select(verdict).join(ids, ids.c.id == verdict.c.run_id).order_by(verdict.c.position)).mappings():
        of[found["run_id"]]["verdicts"].append(found["detail"])
    for found in connection.execute(sa.select(artefact).join(ids, ids.c.id == artefact.c.run_id).order_by(artefact.c.name)).mappings():
        of[found["run_id"]]["artefacts"].append({key: found[key] for key in ("name", "bytes", "sha256")})
    about = {found["sha256"]: dict(found) for found in connection.execute(sa.select(_subject)).mappings()}
    return [
        records.shape(
            row, about.get(row["subject_sha256"]), dict(of[row["id"]]["findings"]), of[row["id"]]["verdicts"], of[row["id"]]["artefacts"]
        )
        for row in rows
    ]


def list_runs(
    slug: str | None = None,
    subject: str | None = None,
    limit: int = 20,
    state: str | None = None,
    *,
    before: str = "",
    account: str | None = None,
) -> list[dict[str, Any]]:
    """Return records, newest first. subject: any of its names, or its hash. account: only what it asked a worker for.

    before: only runs asked for before this one (an id), in that order: for going through them page by page.
    """
    recover()
    query = sa.select(run).limit(limit)
    query = query.where(run.c.id < before).order_by(run.c.id.desc()) if before else query.order_by(run.c.started.desc(), run.c.id.desc())
    query = query if account is None else query.join(request, request.c.run_id == run.c.id).where(request.c.account == account)
    query = query if slug is None else query.where(run.c.slug == slug)
    query = query if subject is None else query.where(_named(subject))
    query = query if state is None else query.where(run.c.state == state)
    with reading() as connection:
        return _records(connection, query)


def get_run(key: str) -> dict[str, Any]:
    """Return the record of a run by its id or the beginning of one. Raises UsageError when none or several match, and for an empty key."""
    if not key:
        raise UsageError("a run has an id; `nullius runs` lists them")
    recover()
    query = sa.select(run).where(run.c.id.startswith(key.upper(), autoescape=True)).order_by(run.c.id)
    with reading() as connection:
        found = _records(connection, query.limit(3))
    if not found:
        raise UsageError(f"no run '{key}'; `nullius runs` lists them")
    if len(found) > 1:
        raise UsageError(f"'{key}' is the beginning of several runs: {', '.join(record['id'] for record in found)}")
    return found[0]


def pulse_of(run_id: str) -> tuple[str, str] | None:
    """Return a run's state and the time of its last sign of life; None when there is no such run."""
    with reading() as connection:
        found = connection.execute(sa.select(run.c.state, run.c.heartbeat).where(run.c.id == run_id)).first()
        return (found[0], found[1]) if found else None


def events(run_id: str, after: int = -1) -> list[dict[str, Any]]:
    """Return a run's events (seq, at, kind, payload) with seq > after, in order."""
    query = sa.select(run_event).where(run_event.c.run_id == run_id, run_event.c.seq > after).order_by(run_event.c.seq)
    with reading() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]


def latest_verdicts(slug: str | None = None, subject: str | None = None) -> list[dict[str, Any]]:
    """Return one entry per (claim digest, subject's weights): the newest full run's verdict, else the newest quick one's.

    Each: the verdict, plus slug, run, subject (as in a record), full, seed, finished, wall_seconds, cpu_seconds, `runs` (how many gave a verdict
    on it) and `agreeing` (how many of them said the same word).
    """
    recover()
    from_run = ("id", "slug", "full", "seed", "finished", "wall_seconds", "cpu_seconds", "subject_sha256")
    query = sa.select(verdict.c.detail, *(run.c[name] for name in from_run)).join(run, run.c.id == verdict.c.run_id)
    query = query.where(run.c.state == "done").order_by(run.c.started, run.c.id, verdict.c.position)
    query = query if slug is None else query.where(run.c.slug == slug)
    query = query if subject is None else query.where(_named(subject))
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    with reading() as connection:
        about = {found["sha256"]: dict(found) for found in connection.execute(sa.select(_subject)).mappings()}
        for row in connection.execute(query).mappings():
            own = {name: row[name] for name in ("slug", "full", "seed", "finished", "wall_seconds", "cpu_seconds")}
            entry = {**row["detail"], **own, "run": row["id"], "subject": about[row["subject_sha256"]]}
            groups.setdefault((row["slug"], entry["digest"], row["subject_sha256"]), []).append(entry)
    chosen = []
    for group in groups.values():
        newest = max(group, key=lambda entry: (entry["full"], entry["finished"]))
        chosen.append({**newest, "runs": len(group), "agreeing": sum(entry["word"] == newest["word"] for entry in group)})
    return chosen


def subjects() -> list[dict[str, Any]]:
    """Return every subject that was ever loaded for a run (the columns of `subject`, and `runs`: how many were done), by name."""
    done = sa.func.count(run.c.id).filter(run.c.state == "done")
    query = sa.select(_subject, done.label("runs")).outerjoin(run, run.c.subject_sha256 == _subject.c.sha256)
    with reading() as connection:
        rows = connection.execute(query.group_by(_subject.c.sha256).order_by(_subject.c.name, _subject.c.sha256)).mappings()
        return [dict(row) for row in rows]
