"""The journal of runs: SQLite in WAL mode under the user's data folder (or a database named by NULLIUS_DATABASE).

A run is a row from the moment it is asked for. It becomes *done* in one transaction, after its artefacts lie on disk; a process that dies
leaves a row that says *running*, and the next start finds that its process is gone and marks it *aborted*.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import psutil
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from nullius.errors import NulliusError, UsageError
from nullius.paths import data_dir

SCHEMA_VERSION = 1
HEARTBEAT_SECONDS = 5
SILENT_SECONDS = 60

metadata = sa.MetaData()
subject = sa.Table(
    "subject",
    metadata,
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("parameters", sa.BigInteger, nullable=False),
    sa.Column("architecture", sa.String, nullable=False),
    sa.Column("chat", sa.Boolean, nullable=False),
    sa.Column("provenance", sa.JSON, nullable=False),
)
run = sa.Table(
    "run",
    metadata,
    sa.Column("id", sa.String(26), primary_key=True),
    sa.Column("slug", sa.String, nullable=False, index=True),
    sa.Column("asked_subject", sa.String, nullable=False),
    sa.Column("subject_sha256", sa.String(64), sa.ForeignKey("subject.sha256")),
    sa.Column("full", sa.Boolean, nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("options", sa.JSON, nullable=False),
    sa.Column("state", sa.String, nullable=False, index=True),
    sa.Column("reason", sa.String, nullable=False, default=""),
    sa.Column("rerun_of", sa.String(26)),
    sa.Column("started", sa.String, nullable=False),
    sa.Column("finished", sa.String),
    sa.Column("heartbeat", sa.String, nullable=False),
    sa.Column("host", sa.String, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("pid_started", sa.Float, nullable=False),
    sa.Column("wall_seconds", sa.Float),
    sa.Column("cpu_seconds", sa.Float),
    sa.Column("tokens", sa.BigInteger),
    sa.Column("peak_bytes", sa.BigInteger),
    sa.Column("environment", sa.JSON),
    sa.Column("gates", sa.JSON),
    sa.Column("notes", sa.JSON),
)
verdict = sa.Table(
    "verdict",
    metadata,
    sa.Column("run_id", sa.ForeignKey("run.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("claim", sa.String, nullable=False),
    sa.Column("digest", sa.String(16), nullable=False, index=True),
    sa.Column("word", sa.String, nullable=False),
    sa.Column("detail", sa.JSON, nullable=False),
)
artefact = sa.Table(
    "artefact",
    metadata,
    sa.Column("run_id", sa.ForeignKey("run.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
)
run_event = sa.Table(
    "run_event",
    metadata,
    sa.Column("run_id", sa.ForeignKey("run.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("at", sa.String, nullable=False),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("payload", sa.JSON, nullable=False),
)


def now() -> str:
    """Return the time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def url() -> str:
    """Return the database's URL."""
    return os.environ.get("NULLIUS_DATABASE") or f"sqlite:///{data_dir() / 'nullius.db'}"


@lru_cache(maxsize=4)
def _engine(address: str) -> sa.Engine:
    if not address.startswith("sqlite"):
        engine = sa.create_engine(address, pool_pre_ping=True)
    else:
        # Transactions are begun by hand: IMMEDIATE takes the write lock at once, so that two runs wait for each other instead of failing
        engine = sa.create_engine(address, connect_args={"timeout": 30, "isolation_level": None})

        @sa.event.listens_for(engine, "connect")
        def prepare(connection: Any, _record: Any) -> None:
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000"):
                connection.execute(f"PRAGMA {pragma}")

        @sa.event.listens_for(engine, "begin")
        def begin(connection: sa.Connection) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            found = connection.exec_driver_sql("PRAGMA user_version").scalar() or 0
            if found not in (0, SCHEMA_VERSION):
                raise NulliusError(f"the journal {address} has schema {found}; this nullius writes {SCHEMA_VERSION}: upgrade nullius")
            metadata.create_all(connection)
            connection.exec_driver_sql(f"PRAGMA user_version={SCHEMA_VERSION}")
        else:
            metadata.create_all(connection)
    return engine


@contextmanager
def transaction() -> Iterator[sa.Connection]:
    """Open the journal in one transaction: all or nothing. Database errors become one clear line."""
    try:
        with _engine(url()).begin() as connection:
            yield connection
    except DBAPIError as error:
        text = str(error.orig)
        hint = {
            "full": "the disk is full: free some space and run again",
            "readonly": "it is read-only: set NULLIUS_DATA to a folder you can write to",
            "not a database": "it is damaged: move it away to start a new one",
            "malformed": "it is damaged: move it away to start a new one",
            "unable to open": "it cannot be opened: set NULLIUS_DATA to a folder you can write to",
        }
        what = next((advice for sign, advice in hint.items() if sign in text), text)
        raise NulliusError(f"the journal of runs ({url()}): {what}") from None


def begin_run(values: Mapping[str, Any]) -> None:
    """Insert a run that starts now in this process."""
    process = psutil.Process()
    own = {"host": socket.gethostname(), "pid": process.pid, "pid_started": process.create_time()}
    with transaction() as connection:
        connection.execute(run.insert().values(**values, **own, state="running", started=now(), heartbeat=now()))


def beat(run_id: str) -> None:
    """Say that a run is alive."""
    with transaction() as connection:
        connection.execute(run.update().where(run.c.id == run_id).values(heartbeat=now()))


def add_events(run_id: str, first: int, events: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Append progress and notes, numbered from `first`."""
    rows = [
        {"run_id": run_id, "seq": first + i, "at": now(), "kind": kind, "payload": dict(payload)}
        for i, (kind, payload) in enumerate(events)
    ]
    with transaction() as connection:
        connection.execute(run_event.insert(), rows)


def finish_run(
    run_id: str,
    values: Mapping[str, Any],
    about_subject: Mapping[str, Any] | None = None,
    verdicts: Sequence[Mapping[str, Any]] = (),
    artefacts: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Close a run: its subject, verdicts, artefacts and final state in one transaction."""
    with transaction() as connection:
        if about_subject:
            known = connection.execute(sa.select(subject.c.sha256).where(subject.c.sha256 == about_subject["sha256"])).first()
            if known is None:
                connection.execute(subject.insert().values(**about_subject))
            values = {**values, "subject_sha256": about_subject["sha256"]}
        connection.execute(run.update().where(run.c.id == run_id).values(**values, finished=now()))
        if verdicts:
            columns = ("claim", "digest", "word")
            rows = [{"run_id": run_id, "position": i, "detail": v, **{c: v[c] for c in columns}} for i, v in enumerate(verdicts)]
            connection.execute(verdict.insert(), rows)
        if artefacts:
            connection.execute(artefact.insert(), [{"run_id": run_id, **entry} for entry in artefacts])


def recover() -> list[str]:
    """Mark runs whose process is gone as aborted; return their ids. Called at every start of a command that reads or writes runs."""
    gone = []
    with transaction() as connection:
        for row in connection.execute(sa.select(run).where(run.c.state == "running")).mappings():
            if not _alive(row):
                gone.append(row["id"])
                change = {"state": "aborted", "reason": "its process ended without a word", "finished": now()}
                connection.execute(run.update().where(run.c.id == row["id"]).values(**change))
    return gone


def _alive(row: Mapping[str, Any]) -> bool:
    if row["host"] == socket.gethostname():
        try:
            return abs(psutil.Process(row["pid"]).create_time() - row["pid_started"]) < 1.0
        except psutil.NoSuchProcess:
            return False
    silent = datetime.now(UTC) - datetime.fromisoformat(row["heartbeat"])
    return silent.total_seconds() < SILENT_SECONDS


def _records(connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Build the documented JSON shape nullius.run/1 (docs/records.md) for rows of `run`."""
    ids = [row["id"] for row in rows]
    verdicts: dict[str, list[Any]] = {run_id: [] for run_id in ids}
    files: dict[str, list[Any]] = {run_id: [] for run_id in ids}
    for found in connection.execute(sa.select(verdict).where(verdict.c.run_id.in_(ids)).order_by(verdict.c.position)).mappings():
        verdicts[found["run_id"]].append(found["detail"])
    for found in connection.execute(sa.select(artefact).where(artefact.c.run_id.in_(ids)).order_by(artefact.c.name)).mappings():
        path = str(data_dir() / "runs" / found["run_id"] / found["name"])
        files[found["run_id"]].append({"name": found["name"], "path": path, "bytes": found["bytes"], "sha256": found["sha256"]})
    hashes = {row["subject_sha256"] for row in rows if row["subject_sha256"]}
    about = {
        found["sha256"]: dict(found) for found in connection.execute(sa.select(subject).where(subject.c.sha256.in_(hashes))).mappings()
    }
    hidden = ("asked_subject", "subject_sha256", "host", "pid", "pid_started", "heartbeat")
    return [
        {
            "schema": "nullius.run/1",
            **{key: value for key, value in row.items() if key not in hidden},
            "subject": about.get(row["subject_sha256"]) or {"name": row["asked_subject"]},
            "gates": row["gates"] or [],
            "notes": row["notes"] or [],
            "verdicts": verdicts[row["id"]],
            "artefacts": files[row["id"]],
            "rerun": f"nullius rerun {row['id']}",
        }
        for row in rows
    ]


def list_runs(slug: str | None = None, subject: str | None = None, limit: int = 20, state: str | None = None) -> list[dict[str, Any]]:
    """Return records, newest first. subject: the name it was asked by."""
    recover()
    query = sa.select(run).order_by(run.c.started.desc(), run.c.id.desc()).limit(limit)
    for column, value in ((run.c.slug, slug), (run.c.asked_subject, subject), (run.c.state, state)):
        if value is not None:
            query = query.where(column == value)
    with transaction() as connection:
        return _records(connection, [dict(row) for row in connection.execute(query).mappings()])


def get_run(key: str) -> dict[str, Any]:
    """Return the record of a run by id or by the beginning of one. Raises UsageError when none or several match."""
    recover()
    with transaction() as connection:
        found = connection.execute(sa.select(run).where(run.c.id.startswith(key.upper(), autoescape=True)).limit(3)).mappings().all()
        if not found:
            raise UsageError(f"no run '{key}'; `nullius runs` lists them")
        if len(found) > 1:
            raise UsageError(f"'{key}' is the beginning of several runs: {', '.join(row['id'] for row in found)}")
        return _records(connection, [dict(found[0])])[0]


def events(run_id: str, after: int = -1) -> list[dict[str, Any]]:
    """Return a run's events with seq > after."""
    query = sa.select(run_event).where(run_event.c.run_id == run_id, run_event.c.seq > after).order_by(run_event.c.seq)
    with transaction() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]


def latest_verdicts(slug: str | None = None, subject: str | None = None) -> list[dict[str, Any]]:
    """Return one entry per (claim digest, subject): the newest full run's verdict, else the newest quick one's.

    Each: the verdict, plus slug, run, subject (its row), full, finished, `runs` (how many decided) and `agreeing` (how many said the same).
    """
    entries: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for record in reversed(list_runs(slug=slug, subject=subject, limit=100_000, state="done")):
        for found in record["verdicts"]:
            context = {"slug": record["slug"], "run": record["id"], "subject": record["subject"], "full": record["full"]}
            key = (record["slug"], found["digest"], record["subject"]["sha256"])
            entries.setdefault(key, []).append({**found, **context, "finished": record["finished"], "wall_seconds": record["wall_seconds"]})
    chosen = []
    for group in entries.values():
        newest = max(group, key=lambda entry: (entry["full"], entry["finished"]))
        same = sum(entry["word"] == newest["word"] for entry in group)
        chosen.append({**newest, "runs": len(group), "agreeing": same})
    return chosen
