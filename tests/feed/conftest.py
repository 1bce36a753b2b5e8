"""A database of its own for each test: SQLite, and PostgreSQL where a server can be started from its wheel."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from nullius.feed import database as feed_database
from nullius.lab import schema
from tests.databases import KINDS, ON_POSTGRES, leave, of_kind, order, own_database
from tests.feed.searching import bag, no_weights

__all__ = ["bag", "no_weights"]


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
    order(postgres, "CREATE DATABASE ready")
    address = postgres.set(database="ready")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NULLIUS_DATABASE", address.render_as_string(hide_password=False))
        feed_database.make_ready(schema.url())
        schema._engine(schema.url()).dispose()
    leave(postgres, "ready")
    return postgres


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A database with the catalogue in it, which the code under test finds by itself. Gives its kind."""
    if request.param == "sqlite":
        request.getfixturevalue("sqlite")
        yield "sqlite"
    else:
        with own_database(request.getfixturevalue("ready_postgres"), "TEMPLATE ready", monkeypatch):
            yield "postgres"


@pytest.fixture(params=KINDS)
def empty_database(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A database with nothing in it. Gives its kind."""
    with of_kind(request, "postgres", "", monkeypatch) as kind:
        yield kind


@pytest.fixture
def sqlite(request: pytest.FixtureRequest, ready_file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One kind of database, with the catalogue in it: for what has nothing to do with the kind."""
    if ON_POSTGRES:
        with own_database(request.getfixturevalue("ready_postgres"), "TEMPLATE ready", monkeypatch):
            yield
        return
    monkeypatch.delenv("NULLIUS_DATABASE", raising=False)
    shutil.copy(ready_file, Path(os.environ["NULLIUS_DATA"]) / "nullius.db")
    yield


@pytest.fixture
def smtp() -> Iterator[object]:
    """A server that takes digests (`postbox.Server`)."""
    from tests.feed.postbox import Server  # where aiosmtpd is not installed the tests that ask for it are skipped

    server = Server()
    yield server
    server.controller.stop()
