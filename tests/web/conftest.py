"""A feed with runs in it: made once, copied for each test that changes something.

On SQLite, and a handful of tests on PostgreSQL too; NULLIUS_TEST_DATABASE=postgres runs all of them there, but for those in a browser.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from aiosmtpd.controller import Controller
from filelock import FileLock
from starlette.testclient import TestClient
from tests.databases import ON_POSTGRES, leave, order, own_database
from tests.web import made
from tests.web.browsing import browser, context, key, server
from tests.web.letterbox import Box, free_port

from nullius.feed import database, tables
from nullius.lab import schema
from nullius.web import limiting, verdicts, who
from nullius.web.app import create
from nullius.web.settings import Settings, settings

__all__ = ["browser", "context", "key", "server"]
PORT = 8000
ON_BOTH = {  # what reads and writes most of the tables
    "test_pages_of_ones_own",
    "test_a_verdict_is_on_the_day_the_paper_and_the_run",
    "test_votes_and_saves_without_script_and_with_htmx",
    "test_notes_are_threaded_counted_and_removed",
    "test_one_idempotency_key_one_run",
    "test_cursors_reach_everything_once",
    "test_the_library_by_api",
    "test_cancelling",
    "test_sign_in_by_a_mailed_link",
    "test_deleting_an_account",
    "test_from_the_form_to_leaving",
    "test_imports_by_api",
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Say on which databases a test runs."""
    if "browser" in metafunc.fixturenames or "test_browser" in metafunc.module.__name__:
        return
    if ON_POSTGRES or metafunc.function.__name__ in ON_BOTH:
        both = [] if ON_POSTGRES else ["sqlite"]
        metafunc.parametrize("database_kind", [*both, pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True)


@pytest.fixture
def database_kind(request: pytest.FixtureRequest) -> str:
    """The kind of database that a test runs on."""
    return str(getattr(request, "param", "sqlite"))


@pytest.fixture(scope="session")
def library_postgres(postgres: sa.URL, library_folder: Path) -> sa.URL:
    """What is in the library's database, on PostgreSQL: the database `library`, to be copied, and `looked_at`, which nobody changes."""
    order(postgres, "CREATE DATABASE library")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NULLIUS_DATABASE", postgres.set(database="library").render_as_string(hide_password=False))
        database.make_ready(schema.url())
        source = sa.create_engine(f"sqlite:///{library_folder / 'nullius.db'}")
        with source.connect() as old, schema.writing() as new:
            copy(old, new)
        source.dispose()
        schema._engine(schema.url()).dispose()
    leave(postgres, "library")
    order(postgres, "CREATE DATABASE looked_at TEMPLATE library")
    return postgres


def copy(old: sa.Connection, new: sa.Connection) -> None:
    """Copy all rows of one database into another, which has the tables."""
    every = [*schema.metadata.sorted_tables, *tables.metadata.sorted_tables]
    for table in reversed(every):
        new.execute(table.delete())
    for table in every:
        rows = [dict(zip(table.c.keys(), row, strict=True)) for row in old.execute(sa.select(table))]
        if rows:
            new.execute(table.insert(), rows)
        if "id" in table.c and isinstance(table.c.id.type, sa.Integer):
            sequence = sa.func.pg_get_serial_sequence(table.name, "id")
            new.execute(sa.select(sa.func.setval(sequence, max([1, *(row["id"] for row in rows)]), bool(rows))))


@pytest.fixture(scope="session")
def library_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with verdicts of two papers on two subjects, a failed run, and papers with hostile titles."""
    parallel = "PYTEST_XDIST_WORKER" in os.environ  # workers share what takes a while to make
    shared = tmp_path_factory.getbasetemp().parent if parallel else tmp_path_factory.mktemp("library")
    folder = shared / "library"
    before = os.environ.get("NULLIUS_DATA")
    os.environ["NULLIUS_DATA"] = str(folder)
    try:
        with FileLock(shared / "library.lock"):
            if not (shared / "library-is-made").exists():
                shutil.rmtree(folder, ignore_errors=True)
                made.fill()
                (shared / "library-is-made").touch()
    finally:
        os.environ.pop("NULLIUS_DATA") if before is None else os.environ.__setitem__("NULLIUS_DATA", before)
    return folder


CHANGING = {"owner", "people", "browse", "changing"}


@pytest.fixture
def changing() -> None:
    """Asked for by a test that changes something itself: it works on a copy."""


@pytest.fixture(autouse=True)
def own_data_folder(
    request: pytest.FixtureRequest, library_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database_kind: str
) -> Iterator[Path]:
    """Each test that may change something works on a copy."""
    folder, changing = library_folder, bool(CHANGING & set(request.fixturenames))
    if changing:
        folder = tmp_path / "data"
        made.copied(library_folder, folder)
    monkeypatch.setenv("NULLIUS_DATA", str(folder))
    monkeypatch.delenv("NULLIUS_DATABASE", raising=False)
    with contextlib.ExitStack() as kept:
        if database_kind == "postgres":
            server = request.getfixturevalue("library_postgres")
            if changing:
                kept.enter_context(own_database(server, "TEMPLATE library", monkeypatch))
            else:
                monkeypatch.setenv("NULLIUS_DATABASE", server.set(database="looked_at").render_as_string(hide_password=False))
        verdicts.forget()
        limiting.forget()
        yield folder
        verdicts.forget()


@pytest.fixture
def alone() -> Settings:
    """A server for its owner."""
    return settings(port=PORT)


@pytest.fixture
def lab() -> Settings:
    """A server for a lab."""
    return settings(shared=True, base_url="https://papers.example.org", maintainers=frozenset({"mia@example.org"}))


Browse = Callable[..., TestClient]


@pytest.fixture
def browse() -> Iterator[Browse]:
    """Make a client of a server: as nobody, or as whoever the cookie names."""
    opened: dict[Settings, TestClient] = {}  # the first client of an app runs its life

    def open_(setup: Settings, cookie: str = "", token: str = "") -> TestClient:
        how: dict[str, Any] = {"base_url": setup.base_url, "follow_redirects": False, "raise_server_exceptions": False}
        if setup not in opened:
            opened[setup] = TestClient(create(setup), **how).__enter__()
        client = TestClient(opened[setup].app, **how)
        if cookie:
            client.headers["cookie"] = f"{setup.cookie}={cookie}"
        if token:
            client.headers["authorization"] = f"Bearer {token}"
        return client

    yield open_
    for client in opened.values():
        client.__exit__(None, None, None)


@pytest.fixture(scope="session")
def reading(library_folder: Path) -> Iterator[TestClient]:
    """A server that nobody changes, for all tests together."""
    before = os.environ.get("NULLIUS_DATA")
    os.environ["NULLIUS_DATA"] = str(library_folder)
    with TestClient(create(settings(port=PORT)), base_url=f"http://127.0.0.1:{PORT}", follow_redirects=False) as client:
        yield client
    os.environ.pop("NULLIUS_DATA") if before is None else os.environ.__setitem__("NULLIUS_DATA", before)


@pytest.fixture
def visitor(request: pytest.FixtureRequest, reading: TestClient, alone: Settings) -> httpx.Client:
    """Somebody who has not opened the one-time address."""
    if CHANGING & set(request.fixturenames):
        client: httpx.Client = request.getfixturevalue("browse")(alone)
        return client
    reading.cookies.clear()
    reading.app.state.site.kept.clear()  # type: ignore[attr-defined]  # pages of another database
    return reading


@pytest.fixture
def owner(browse: Browse, alone: Settings) -> httpx.Client:
    """The owner of a local server."""
    return browse(alone, who.enter(who.key_to_enter(alone), alone))


@pytest.fixture
def people(browse: Browse, lab: Settings) -> dict[str, TestClient]:
    """A visitor, a member and a maintainer of a lab's server."""
    keys = {
        "member": who.open_session(who.account_for("ada@example.org", lab)),
        "maintainer": who.open_session(who.account_for("mia@example.org", lab)),
    }
    return {"visitor": browse(lab), **{role: browse(lab, key) for role, key in keys.items()}}


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    port = free_port()
    handler = Box()
    controller = Controller(handler, hostname="127.0.0.1", port=port)
    controller.start()
    monkeypatch.setenv("NULLIUS_SMTP", f"smtp://127.0.0.1:{port}")
    monkeypatch.setenv("NULLIUS_MAIL_FROM", "digest@papers.example.org")
    yield handler
    controller.stop()
