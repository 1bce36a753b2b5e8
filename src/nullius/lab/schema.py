"""The journal's tables and its database: SQLite in WAL mode under the user's data folder, or the one that NULLIUS_DATABASE names.

Reading never waits for a writer. On SQLite writers take turns: a transaction that writes begins with the write lock in hand (BEGIN
IMMEDIATE), so that two runs at once wait for each other instead of failing halfway. On PostgreSQL they write side by side: what two may
write at once is written by `insert_new` or `upsert`, or with the rows that it depends on locked, in the order of their keys.
"""

from __future__ import annotations

import os
import random
import re
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from nullius.errors import NulliusError
from nullius.paths import data_dir

SCHEMA_VERSION = 1
STATES = ("queued", "running", "done", "failed", "cancelled", "aborted")
PATIENCE_SECONDS = 30
_LOCK = 0x6D616B65  # one process makes the tables
MOST_CONNECTIONS = 80  # of one process: a server answers on 40 threads, and a search reads the database while it is read for the index

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
    sa.Column("id", sa.String(26), primary_key=True),  # a ULID: sorts by time
    sa.Column("slug", sa.String, nullable=False, index=True),
    sa.Column("asked_subject", sa.String, nullable=False),
    sa.Column("subject_sha256", sa.String(64), sa.ForeignKey("subject.sha256")),
    sa.Column("full", sa.Boolean, nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("options", sa.JSON, nullable=False),
    sa.Column("state", sa.String, sa.CheckConstraint(f"state IN {STATES}"), nullable=False, index=True),
    sa.Column("reason", sa.String, nullable=False, default=""),
    sa.Column("rerun_of", sa.String(26)),
    sa.Column("started", sa.String, nullable=False),
    sa.Column("finished", sa.String),
    sa.Column("heartbeat", sa.String, nullable=False),
    sa.Column("host", sa.String, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("pid_started", sa.Float, nullable=False),  # a process number is used again, its start time is not
    sa.Column("wall_seconds", sa.Float),
    sa.Column("cpu_seconds", sa.Float),
    sa.Column("tokens", sa.BigInteger),
    sa.Column("peak_bytes", sa.BigInteger),
    sa.Column("environment", sa.JSON),
    sa.Column("gates", sa.JSON),
    sa.Column("notes", sa.JSON),
)
finding = sa.Table(
    "finding",
    metadata,
    sa.Column("run_id", sa.ForeignKey("run.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("claim", sa.String, primary_key=True),
    sa.Column("digest", sa.String(16), nullable=False, index=True),
    sa.Column("n", sa.Integer, nullable=False),
    sa.Column("n_clusters", sa.Integer, nullable=False),
    sa.Column("effect", sa.Float, nullable=False),
    sa.Column("lo", sa.Float, nullable=False),
    sa.Column("hi", sa.Float, nullable=False),
    sa.Column("control", sa.Float, nullable=False),
    sa.Column("control_lo", sa.Float, nullable=False),
    sa.Column("control_hi", sa.Float, nullable=False),
    sa.Column("samples", sa.String(16), nullable=False),  # digest of the samples themselves
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
    sa.UniqueConstraint("run_id", "claim"),
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
    sa.Column("kind", sa.String, nullable=False),  # step or note
    sa.Column("payload", sa.JSON, nullable=False),
)

request = sa.Table(  # who asked for a run that a worker is to execute, and how; runs begun in a terminal have none
    "request",
    metadata,
    sa.Column("run_id", sa.ForeignKey("run.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("account", sa.String, nullable=False),
    sa.Column("key", sa.String),  # the same key asks for the same run
    sa.Column("device", sa.String),
    sa.Column("threads", sa.Integer),
    sa.Column("asked", sa.String, nullable=False),
    sa.UniqueConstraint("account", "key"),
)

calibration = sa.Table(  # of instruments; a row for each time that one was calibrated
    "calibration",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("instrument", sa.String, nullable=False, index=True),
    sa.Column("at", sa.String, nullable=False),
    sa.Column("code", sa.String(16), nullable=False),  # digest of the instrument's code then
    sa.Column("detail", sa.JSON, nullable=False),
)

# What SQLite and drivers say → what a person can do
_ADVICE = {
    "disk is full": "the disk is full: free some space and run again",
    "disk I/O error": "it cannot be written: the disk is full, over quota or failing",
    "readonly": "it is read-only: set NULLIUS_DATA to a folder you can write to",
    "unable to open": "it cannot be opened: set NULLIUS_DATA to a folder you can write to",
    "not a database": "it is damaged, or no database: move it away to start a new one",
    "malformed": "it is damaged: move it away to start a new one",
    "locked": f"another process has held it for {PATIENCE_SECONDS} seconds: look for one that is stopped or stuck",
}


def url() -> sa.URL:
    """Return the database's address. Raises NulliusError when NULLIUS_DATABASE is none, or one of a database that nullius does not write to."""
    named = os.environ.get("NULLIUS_DATABASE")
    if not named:
        return sa.URL.create("sqlite", database=str(data_dir() / "nullius.db"))
    try:
        address = sa.make_url(named)
    except (ArgumentError, ValueError):  # the latter for a port that is no number
        shown = re.sub(r"(://[^/@]*:)[^/@]*@", r"\1***@", named)
        raise NulliusError(f"NULLIUS_DATABASE is '{shown}', which is no address of a database such as sqlite:////path/nullius.db") from None
    if address.get_backend_name() not in ("sqlite", "postgresql"):
        raise NulliusError(
            f"NULLIUS_DATABASE names a database of kind {address.get_backend_name()}; nullius writes to sqlite and postgresql"
        )
    return address


@contextmanager
def writing() -> Iterator[sa.Connection]:
    """Open the journal in one transaction, all or nothing. Raises NulliusError with one line for whatever the database says."""
    with _one_line(), _engine(url()).begin() as connection:
        yield connection


@contextmanager
def reading() -> Iterator[sa.Connection]:
    """Open the journal at one consistent moment; waits for nobody. Raises NulliusError as `writing` does."""
    with _one_line():
        engine = _engine(url())
        on_a_server = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        how = {"reading": True} if engine.dialect.name == "sqlite" else on_a_server
        with engine.execution_options(**how).begin() as connection:
            yield connection


def take_turns(connection: sa.Connection, *number: Any) -> None:
    """Wait until no other transaction holds this number (or pair of numbers), and hold it to the end. SQLite's writers take turns anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(*number)))


def insert_new(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> int:
    """Insert rows, but none whose key is there already or is being written at this moment; return how many were new."""
    if not rows:
        return 0
    new = _insert(connection, table).values([dict(row) for row in rows]).on_conflict_do_nothing()
    return len(connection.execute(new.returning(*table.primary_key)).all())


def upsert(connection: sa.Connection, table: sa.Table, row: Mapping[str, Any]) -> None:
    """Insert a row, or give the one with its primary key these values, whoever wrote it and be it at this moment."""
    keys = list(table.primary_key)
    new = _insert(connection, table).values(dict(row))
    change = {name: new.excluded[name] for name in row if table.c[name] not in keys}
    connection.execute(new.on_conflict_do_update(index_elements=keys, set_=change))


def _insert(connection: sa.Connection, table: sa.Table) -> Any:
    return (postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert)(table)


@contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except (DBAPIError, sqlite3.Error) as error:
        said = str(getattr(error, "orig", error)).strip() or type(error).__name__
        advice = next((advice for sign, advice in _ADVICE.items() if sign in said), said.splitlines()[0])
        raise NulliusError(f"the journal of runs ({_shown(url())}): {advice}") from None


def _shown(address: sa.URL) -> str:
    """A file by its path, any other database by its address without the password."""
    return str(address.database) if address.get_backend_name() == "sqlite" else address.render_as_string(hide_password=True)


@lru_cache(maxsize=4)
def _engine(address: sa.URL) -> sa.Engine:
    try:
        local = address.get_backend_name() == "sqlite"
        # isolation_level None: transactions are begun by hand, in _begin
        how: dict[str, Any] = {"connect_args": {"timeout": PATIENCE_SECONDS, "isolation_level": None}} if local else {"pool_pre_ping": True}
        if not local or address.database not in (None, "", ":memory:"):  # a database in memory has one connection for each thread
            how |= {"pool_size": 10, "max_overflow": MOST_CONNECTIONS - 10}
        engine = sa.create_engine(address, hide_parameters=True, **how)  # an error that is logged shows nobody's address or token
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise NulliusError(f"the database {_shown(address)} cannot be used here: {str(error).splitlines()[0]}") from None
    if not local:
        sa.event.listen(engine, "connect", _drop_nul)
        sa.event.listen(engine, "handle_error", _without_values)
        with engine.begin() as connection:
            if not metadata.tables.keys() <= set(sa.inspect(connection).get_table_names()):
                take_turns(connection, _LOCK)  # of two that find it empty, one makes the tables
                metadata.create_all(connection)
        return engine
    sa.event.listen(engine, "connect", _prepare)
    sa.event.listen(engine, "begin", _begin)
    with engine.execution_options(reading=True).begin() as connection:
        complete = _is_complete(connection, address)
    if not complete:
        with engine.begin() as connection:
            if not _is_complete(connection, address):  # another process may have been first
                metadata.create_all(connection)
                connection.exec_driver_sql(f"PRAGMA user_version={SCHEMA_VERSION}")
    return engine


def _prepare(connection: Any, _record: Any) -> None:
    """Set up a connection. Turning a new file to WAL needs it alone for a moment, and SQLite does not wait for that by itself."""
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.02)
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _without_values(context: sa.engine.ExceptionContext) -> None:
    """Leave out of an error the row that PostgreSQL shows in its second line."""
    first = getattr(getattr(context.original_exception, "diag", None), "message_primary", None)
    for error in (context.original_exception, context.sqlalchemy_exception):
        if first and error is not None:
            error.args = (first,)


def _drop_nul(connection: Any, _record: Any) -> None:
    """PostgreSQL's text has no NUL: what is asked for or written with one is taken without it, as importers take it."""
    from psycopg.types.string import StrDumperUnknown

    class Dumper(StrDumperUnknown):
        def dump(self, obj: str) -> Any:
            return super().dump(obj.replace("\0", ""))

    connection.adapters.register_dumper(str, Dumper)


def _begin(connection: sa.Connection) -> None:
    """Begin a transaction. SQLite's own waiting asks the less often the longer it has waited, and among many writers one waits for ever."""
    driver: Any = connection.connection.driver_connection
    if connection.get_execution_options().get("reading"):
        driver.execute("BEGIN")
        return
    began, pause = time.monotonic(), 0.001
    driver.execute("PRAGMA busy_timeout=0")
    try:
        while True:
            try:
                driver.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                waited = time.monotonic() - began
                if "locked" not in str(error) or waited > PATIENCE_SECONDS:
                    raise
            time.sleep(pause)
            pause = random.uniform(0.002, 0.02) / (1 + waited)  # the more often the longer
    finally:
        driver.execute(f"PRAGMA busy_timeout={1000 * PATIENCE_SECONDS}")


def _is_complete(connection: sa.Connection, address: sa.URL) -> bool:
    """Whether every table is there; a database that is not this version's is refused."""
    found = connection.exec_driver_sql("PRAGMA user_version").scalar() or 0
    tables = set(sa.inspect(connection).get_table_names())
    if found == 0 and tables:
        raise NulliusError(f"{_shown(address)} is some other program's database; set NULLIUS_DATA to another folder")
    if found not in (0, SCHEMA_VERSION):
        advice = "upgrade nullius" if found > SCHEMA_VERSION else "move it away to start a new one"
        raise NulliusError(f"the journal of runs ({_shown(address)}) has schema {found}, this nullius writes {SCHEMA_VERSION}: {advice}")
    return metadata.tables.keys() <= tables
