"""A real browser, and `nullius web` in a process of its own for it to visit."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import axe_playwright_python
import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, sync_playwright
from tests.web import made

CHROMIUM = os.environ.get("NULLIUS_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
MARKS = [pytest.mark.skipif(CHROMIUM is None, reason="no chromium found (set NULLIUS_CHROMIUM to one)"), pytest.mark.timeout(600)]
AXE = Path(os.environ.get("NULLIUS_AXE") or Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text("utf-8")


class Server:
    """`nullius web` in a process of its own, on a port that was free."""

    def __init__(self, folder: Path, *more: str) -> None:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = one.getsockname()[1]
        self.base = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "nullius.cli.main", "web", "--port", str(self.port), "--no-browser", *more]
        environment = {**os.environ, "NULLIUS_DATA": str(folder), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.log = folder.parent / f"web-{self.port}.log"
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
        end = time.monotonic() + 90
        while time.monotonic() < end and self.process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.base}/health", timeout=2)
                break
            except OSError:
                time.sleep(0.2)
        self.entrance = re.search(r"http://\S+/enter\?key=\S+", self.log.read_text())[0]

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        how = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=how)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def server(library_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all tests that only look, vote and save."""
    folder = tmp_path_factory.mktemp("web") / "data"
    made.copied(library_folder, folder)
    started = Server(folder, "--no-worker")
    yield started
    started.stop()


@pytest.fixture(scope="module")
def key(server: Server, browser: Browser) -> dict:
    """The owner's cookie."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(server.entrance)
    (cookie,) = [c for c in context.cookies() if c["name"].startswith("nullius")]
    context.close()
    return {"name": cookie["name"], "value": cookie["value"], "url": server.base}


@pytest.fixture
def context(browser: Browser, server: Server, key: dict) -> Iterator[BrowserContext]:
    """The owner's browser, which notes every request that leaves the host and every error of a script."""
    opened = browser.new_context(viewport={"width": 1280, "height": 900}, base_url=server.base)
    opened.add_cookies([key])
    watched(opened, server.base)
    yield opened
    assert opened.faults == []
    opened.close()


def watched(opened: BrowserContext, base: str) -> None:
    opened.faults = []
    opened.on(
        "request", lambda r: opened.faults.append(f"left the host: {r.url}") if not r.url.startswith((base, "data:", "blob:")) else None
    )
    opened.on("weberror", lambda e: opened.faults.append(f"script: {e.error}"))
    opened.on("console", lambda m: opened.faults.append(m.text) if m.type == "error" and "Failed to load resource" not in m.text else None)


def violations(page: Page, *only: str) -> list[str]:
    """What axe-core finds: by all its rules, or only by those named."""
    rules = "rules: {'target-size': {enabled: true}}"  # 24 px, which axe leaves out by default
    wanted = f"runOnly: {list(only)}" if only else rules
    found = page.evaluate(f"axe.run(document, {{resultTypes: ['violations'], {wanted}}}).then(r => r.violations)")
    return [f"{v['id']}: {n['html'][:160]} {n['failureSummary'][:160]}" for v in found for n in v["nodes"]]


def tab_to(page: Page, wanted: Locator) -> None:
    """Go to something by the tabulator, as often as it takes."""
    for _ in range(80):
        page.keyboard.press("Tab")
        if wanted.evaluate("element => element === document.activeElement"):
            return
    raise AssertionError(f"{wanted} cannot be reached by keyboard")


def wait_for(what, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = what()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError("it never came to that")
