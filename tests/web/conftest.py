"""A feed with runs in it: made once, copied for each test that changes something."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient
from tests.web import made

from nullius.web import limiting, verdicts, who
from nullius.web.app import create
from nullius.web.settings import Settings, settings

PORT = 8000


@pytest.fixture(scope="session")
def library_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with verdicts of two papers on two subjects, a failed run, and papers with hostile titles."""
    folder = tmp_path_factory.mktemp("library")
    before = os.environ.get("NULLIUS_DATA")
    os.environ["NULLIUS_DATA"] = str(folder)
    try:
        made.fill()
    finally:
        os.environ.pop("NULLIUS_DATA") if before is None else os.environ.__setitem__("NULLIUS_DATA", before)
    return folder


CHANGING = {"owner", "people", "browse", "changing"}


@pytest.fixture
def changing() -> None:
    """Asked for by a test that changes something itself: it works on a copy."""


@pytest.fixture(autouse=True)
def own_data_folder(
    request: pytest.FixtureRequest, library_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Each test that may change something works on a copy."""
    folder = library_folder
    if CHANGING & set(request.fixturenames):
        folder = tmp_path / "data"
        shutil.copytree(library_folder, folder)
    monkeypatch.setenv("NULLIUS_DATA", str(folder))
    monkeypatch.delenv("NULLIUS_DATABASE", raising=False)
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
