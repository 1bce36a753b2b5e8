"""In a real browser: from the first visit to a verdict and its rerun; without script, by keyboard, on a phone, for a screen reader."""

from __future__ import annotations

import contextlib
import inspect
import json
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
from datetime import UTC, datetime
from pathlib import Path

import axe_playwright_python
import psutil
import pytest
from playwright.sync_api import Browser, BrowserContext, Error, Locator, Page, expect, sync_playwright
from tests.web import made

from nullius.lab import drawing, journal, looks, queue
from nullius.lab.figures import Figure, Heatmap
from nullius.web import assets

CHROMIUM = os.environ.get("NULLIUS_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
pytestmark = [pytest.mark.skipif(CHROMIUM is None, reason="no chromium found (set NULLIUS_CHROMIUM to one)"), pytest.mark.timeout(600)]
AXE = Path(os.environ.get("NULLIUS_AXE") or Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text("utf-8")
PAGES = [
    "/",
    "/week",
    "/week/NOW",
    "/month",
    "/trending",
    "/search?q=one+head+decides",
    "/search",
    "/papers/factual-recall",
    "/papers/embers",
    "/papers/2511.00001",
    "/subjects",
    "/subjects/smollm2-135m",
    "/subjects/qwen2.5-coder-0.5b",
    "/compare/factual-recall",
    "/runs",
    "/runs/RUN",
    "/runs/FAILED",
    "/calibration",
    "/subscribe",
    "/library",
    "/account",
    "/import",
    "/addresses",
    "/about",
    "/contributing",
    "/health",
    "/api/v1/docs",
    "/no/such/page",
]


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


def addresses(server: Server) -> list[str]:
    runs = json.load(urllib.request.urlopen(f"{server.base}/api/v1/runs"))["runs"]
    of = {r["state"]: r["id"] for r in runs}
    week = datetime.now(UTC).strftime("%G-W%V")  # in which its verdicts were given
    return [path.replace("RUN", of["done"]).replace("FAILED", of["failed"]).replace("NOW", week) for path in PAGES]


def violations(page: Page, *only: str) -> list[str]:
    """What axe-core finds: by all its rules, or only by those named."""
    rules = "rules: {'target-size': {enabled: true}}"  # 24 px, which axe leaves out by default
    wanted = f"runOnly: {list(only)}" if only else rules
    found = page.evaluate(f"axe.run(document, {{resultTypes: ['violations'], {wanted}}}).then(r => r.violations)")
    return [f"{v['id']}: {n['html'][:160]} {n['failureSummary'][:160]}" for v in found for n in v["nodes"]]


def test_every_page_for_everybody(browser, server, key):
    """axe-core finds nothing in either theme, nothing scrolls sideways at three widths, nothing is loaded from elsewhere."""
    opened = browser.new_context(viewport={"width": 1280, "height": 900}, base_url=server.base)
    opened.add_cookies([key])
    watched(opened, server.base)
    page, wrong = opened.new_page(), []
    for number, path in enumerate(addresses(server)):
        page.goto(path)
        for width in (360, 820, 1280):
            page.set_viewport_size({"width": width, "height": 900})
            over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            if over > 0:
                wrong.append(f"{path}: {over} px too wide at {width}")
        page.evaluate(AXE)
        for theme, width in (("light", 1280), ("dark", 360)) if number % 2 else (("light", 360), ("dark", 1280)):
            page.emulate_media(color_scheme=theme, reduced_motion="reduce")
            page.set_viewport_size({"width": width, "height": 900})
            # what a theme changes everywhere; on a phone a matrix is another piece of the page
            only = ("color-contrast", "target-size") if width == 1280 and not page.locator(".narrow").count() else ()
            wrong += [f"{path} ({theme}, {width}): {line}" for line in violations(page, *only)]
    assert wrong + opened.faults == []
    opened.close()


def test_by_keyboard_only(context):
    page = context.new_page()
    page.goto("/")
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("/")
    expect(page.locator("#q")).to_be_focused()
    page.keyboard.type("embers")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search?q=embers")
    page.keyboard.press("j")
    first = page.locator(".cards > li").first
    expect(first).to_have_class(re.compile("now"))
    votes = int(first.locator(".vote button").inner_text().split()[-1])
    page.keyboard.press("u")
    expect(first.locator(".vote button")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("status")).to_have_text("Voted")
    assert int(first.locator(".vote button").inner_text().split()[-1]) == votes + 1
    page.keyboard.press("u")
    expect(first.locator(".vote button")).to_have_attribute("aria-pressed", "false")
    page.keyboard.press("s")
    expect(first.locator(".save button")).to_contain_text("saved")
    page.keyboard.press("s")
    expect(first.locator(".save button")).not_to_contain_text("saved")
    expect(page.get_by_role("status")).to_have_text("Saved no more")
    page.keyboard.press("Enter")
    page.wait_for_url("**/papers/embers")
    page.go_back()
    page.wait_for_url("**/search?q=embers")


def test_keys_take_nobody_where_they_did_not_want_to_go(context):
    """Arrow keys in a choice choose, its button applies; a vote keeps the focus; single letters can be turned off, and stay off."""
    page = context.new_page()
    page.goto("/about")
    page.get_by_label("Theme").focus()
    page.keyboard.press("ArrowDown")
    assert page.get_by_label("Theme").input_value() == "light"
    assert page.evaluate("document.documentElement.dataset.theme") == "auto"
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Set theme")).to_be_focused()
    page.keyboard.press("Enter")
    page.wait_for_function("document.documentElement.dataset.theme === 'light'")
    page.goto("/search?q=embers")
    for pressed in ("true", "false"):
        page.locator(".vote button").first.focus()
        page.keyboard.press("Enter")
        expect(page.locator(".vote button").first).to_have_attribute("aria-pressed", pressed)
        expect(page.locator(".vote button").first).to_be_focused()
    page.get_by_role("button", name="turn keys off").click()
    page.reload()
    page.keyboard.press("j")
    page.keyboard.press("/")
    assert page.locator(".now, #q:focus").count() == 0
    page.get_by_role("button", name="turn keys on").click()
    page.keyboard.press("j")
    assert page.locator(".now").count() == 1


def test_what_a_screen_reader_is_told(context, server):
    """A verdict once and not twice; a row by its claim's name; a figure in words; lists that are lists; one heading above all others."""
    page = context.new_page()
    page.goto("/papers/factual-recall")
    matrix = page.get_by_role("table")
    told = matrix.aria_snapshot()
    cell = page.locator(".matrix .cell").filter(has=page.locator(".plot")).first
    number = cell.locator(".num").first.inner_text()
    row = next(line for line in told.splitlines() if number in line and "- cell " in line)
    assert row.count(number) == 1
    assert "img" not in told
    assert matrix.locator("tbody th[scope=row]").first.get_attribute("abbr") == page.locator(".matrix strong").first.inner_text()
    figure = page.locator("figure")
    figure.get_by_text("The figure in words").click()
    assert figure.locator("details p").inner_text().startswith("rise against item.")
    page.goto("/week/2025-W45")
    assert page.get_by_role("main").get_by_role("list").first.get_by_role("listitem").count() > 2
    assert [page.locator(f"h{level}").count() > 0 for level in (1, 2)] == [True, True]
    assert page.locator("h1").count() == 1


READ_ALOUD = {
    "/day/2025-11-03": """
        - main:
          - heading "Mon 3 November 2025" [level=1]
          - 'link "Newer: Tue 4 Nov"'
          - paragraph: 1 paper, 0 runnable
          - group "Order"
          - combobox "my subject"
          - list:
            - listitem:
              - 'button "Vote for A paper of an earlier day O(n²): 0"'
              - heading "A paper of an earlier day O(n²)" [level=2]
              - paragraph
              - paragraph:
                - text: /1 author/
              - link "not runnable yet , how to add a study of A paper of an earlier day O(n²)"
              - button "save A paper of an earlier day O(n²)"
        """,
    "/papers/factual-recall": """
        - main:
          - heading "Characterizing Mechanisms for Factual Recall in Language Models" [level=1]
          - 'button "Vote for Characterizing Mechanisms for Factual Recall in Language Models: 0"'
          - region "Run it":
            - combobox "Subject"
            - textbox "or a hub id, directory or GGUF file"
            - group "Scale":
              - radio "quick" [checked]
              - radio "full"
            - textbox "Seed": "0"
            - button /Run · ~\\d+ s/
          - region "Claims":
            - group "Claims and subjects":
              - table:
                - rowgroup:
                  - row:
                    - columnheader "Claim, and its control"
                    - columnheader "Published"
                    - columnheader "smollm2-135m"
                    - columnheader "gemma3-270m"
                - rowgroup:
                  - row:
                    - rowheader /one-head-to-context/
                    - cell "no number"
                    - cell /(holds|fails|inconclusive) .*\\[.*\\] control .*quick/
          - figure:
            - group "Figure, as large as it was drawn":
              - link:
                - img "rise"
          - region "Notes":
            - textbox "Write a note (markdown)"
          - region "Similar"
        """,
    "/runs/RUN": """
        - main:
          - heading [level=1]
          - region "Verdicts":
            - group "Verdicts":
              - table:
                - rowgroup:
                  - row "Verdict Claim Effect and control, 95 % intervals Published n, p after Holm"
                - rowgroup:
                  - row:
                    - cell /holds|fails|inconclusive/
                    - rowheader
                    - cell /\\[.*\\]/
          - region "Rerun":
            - button "copy the command"
            - button "Run again here"
          - region "Environment"
        """,
    "/compare/factual-recall": """
        - main:
          - heading [level=1]
          - group "Subjects":
            - checkbox "gemma3-270m" [checked]
            - checkbox "smollm2-135m" [checked]
          - button "Compare"
          - region "one-head-to-context":
            - img /Forest plot of 2 subjects/
            - group "one-head-to-context":
              - table:
                - rowgroup:
                  - row "Subject Verdict Effect Control Scale"
        """,
    "/subscribe": """
        - main:
          - heading "Subscribe" [level=1]
          - group "What":
            - link "Atom feed of papers of the day"
            - textbox "Which search"
            - button "Atom feed of a search"
            - combobox "Which subject"
            - button "Atom feed of new verdicts on a subject"
        """,
}


@pytest.mark.parametrize("path", READ_ALOUD)
def test_a_page_read_aloud(context, server, path):
    """Names, order and kinds of what a screen reader meets, as the browser hands them out."""
    page = context.new_page()
    page.goto(next(found for found, asked in zip(addresses(server), PAGES, strict=True) if asked == path) if path in PAGES else path)
    expect(page.locator("body")).to_match_aria_snapshot(inspect.cleandoc(READ_ALOUD[path]))


def test_a_stored_figure_needs_nothing_else(browser):
    """Its library is packed inside; a heatmap has a cell for each value, in the colours of the one on paper. It offers to send itself nowhere."""
    heat = Heatmap("h", "head", "layer", [[-2.0, None, 1.0], [0.0, 2.0, 0.5]], "effect", mark=((0, 0),))
    opened = browser.new_context(offline=True)
    watched(opened, "about:blank")
    page = opened.new_page()
    page.set_content(drawing.html(Figure("f", "title </script>", (heat,), "caption")))
    cells = page.locator(".bars .point path")
    expect(cells).to_have_count(5)
    colours = cells.evaluate_all("cells => cells.map(cell => getComputedStyle(cell).fill)")
    ends = [tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)) for colour in (looks.SIGNED_SCALE[0], looks.SIGNED_SCALE[-1])]
    assert [colours[0], colours[3]] == [f"rgb({r}, {g}, {b})" for r, g, b in ends]
    expect(page.locator(".cbtitle")).to_have_text("effect")
    assert page.locator(".modebar-btn[data-title*='Share']").count() == 0
    assert opened.faults == []
    opened.close()


def test_the_theme_stays(context):
    page = context.new_page()
    page.goto("/")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_label("Theme").select_option("dark")
    page.wait_for_function("document.documentElement.dataset.theme === 'dark'")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    page.goto("/about")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_a_figure_to_explore_is_loaded_on_click_only(context, server):
    page = context.new_page()
    asked = []
    page.on("request", lambda r: asked.append(r.url))
    page.goto("/papers/factual-recall")
    assert not any("/explore/" in url or "plotly" in url for url in asked)
    page.get_by_role("link", name="interactive").click()
    frame = page.frame_locator("iframe")
    expect(frame.locator(".plotly").first).to_be_visible(timeout=20_000)
    assert page.locator("iframe").get_attribute("sandbox") == "allow-scripts"
    assert [url for url in asked if "plotly" in url] == [server.base + assets.address("plotly-basic.min.js")]


def test_back_leads_to_what_was_there(context):
    """From a paper back to the list: same search, and the vote that was given on the way is still given."""
    page = context.new_page()
    page.goto("/search?q=embers")
    page.locator(".vote button").first.click()
    expect(page.locator(".vote button").first).to_have_attribute("aria-pressed", "true")
    page.get_by_role("link", name="Embers of Autoregression").first.click()
    page.wait_for_url("**/papers/embers")
    page.go_back()
    assert page.locator("#q").input_value() == "embers"
    expect(page.locator(".vote button").first).to_have_attribute("aria-pressed", "true")
    page.go_forward()
    page.locator(".vote button").click()
    expect(page.locator(".vote button")).to_have_attribute("aria-pressed", "false")


def test_a_server_that_cannot_be_reached_is_said(context):
    """With the cable out a vote changes nothing and says so; once the server answers, it works and nothing is said any more."""
    page = context.new_page()
    page.goto("/papers/concept-depth")
    votes = page.locator(".vote button")
    context.set_offline(True)
    votes.click()
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    expect(votes).to_have_attribute("aria-pressed", "false")
    context.set_offline(False)
    votes.click()
    expect(votes).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("alert")).to_have_count(0)
    votes.click()
    expect(votes).to_have_attribute("aria-pressed", "false")
    context.faults[:] = [line for line in context.faults if "ERR_INTERNET_DISCONNECTED" not in line and "Failed to fetch" not in line]


def test_on_paper(context, tmp_path):
    """Printed, a paper's page has its table of verdicts with words, no forms and no menus, in black on white."""
    page = context.new_page()
    page.goto("/papers/factual-recall")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.locator(".matrix .v b").first.is_visible()
    for gone in (".nav", ".find", "form", ".narrow"):
        assert not any(page.locator(gone).nth(i).is_visible() for i in range(page.locator(gone).count())), gone
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.querySelector('.v')).color") == "rgb(0, 0, 0)"


def test_two_tabs_vote_once(context):
    one, two = context.new_page(), context.new_page()
    for page in (one, two):
        page.goto("/papers/concept-depth")
    for page in (one, two):
        page.locator(".vote button").click()
        expect(page.locator(".vote button")).to_have_attribute("aria-pressed", "true")
        assert page.locator(".vote button").inner_text().split()[-1] == "1"
    one.goto("/papers/concept-depth")
    one.locator(".vote button").click()
    expect(one.locator(".vote button")).to_have_attribute("aria-pressed", "false")


def test_without_script(browser, server, key):
    opened = browser.new_context(java_script_enabled=False, base_url=server.base)
    opened.add_cookies([key])
    page = opened.new_page()
    page.goto("/search")
    page.locator("#q").fill("one head decides")
    page.get_by_role("button", name="Search", exact=True).click()
    page.get_by_role("link", name="Characterizing Mechanisms").click()
    page.locator(".vote button").click()
    assert page.url.endswith("/papers/factual-recall")
    assert page.locator(".vote button").get_attribute("aria-pressed") == "true"
    page.locator(".vote button").click()
    page.get_by_label("Write a note").fill("*looks right*")
    page.get_by_role("button", name="Add note").click()
    assert page.locator(".note em").inner_text() == "looks right"
    page.goto("/")
    page.get_by_label("my subject").select_option("gemma3-270m")
    page.locator("form.bar").filter(has=page.get_by_label("my subject")).get_by_role("button", name="Set").click()
    expect(page.locator("main")).to_contain_text("on gemma3-270m")
    opened.close()


def test_read_only_until_the_address_is_opened(browser, server):
    opened = browser.new_context(base_url=server.base)
    page = opened.new_page()
    page.goto("/papers/factual-recall")
    assert "open for reading only" in page.content()
    assert page.locator("form[action$='/run']").count() == 0
    opened.close()


def test_from_the_first_visit_to_a_verdict_and_its_rerun(browser, library_folder, tmp_path, toy, monkeypatch):
    """A run on a toy subject, by keyboard alone, live; meanwhile a second one waits in another tab, and is cancelled; the copied command gives the
    same numbers; a third run is killed and says so, where events come and where none get through; after it the worker: the page says that as
    well, and its button runs the paper again.
    """
    folder, model = tmp_path / "live", tmp_path / "toy"
    made.copied(library_folder, folder)
    toy.hf.save_pretrained(model)
    toy.tokenizer.save_pretrained(model)
    monkeypatch.setenv("NULLIUS_DATA", str(folder))
    server = Server(folder)
    try:
        opened = browser.new_context(base_url=server.base, permissions=["clipboard-read", "clipboard-write"])
        watched(opened, server.base)
        page = opened.new_page()
        page.goto(server.entrance)
        assert page.url == f"{server.base}/"
        page.keyboard.press("/")  # from here to the verdict nothing but keys
        page.keyboard.type("which concepts are readable at which layer")
        page.keyboard.press("Enter")
        page.wait_for_url("**/search?*")
        page.keyboard.press("j")
        expect(page.get_by_role("link", name="Exploring Concept Depth").first).to_be_focused()
        page.keyboard.press("Enter")
        page.wait_for_url("**/papers/concept-depth")
        tab_to(page, page.get_by_label("or a hub id"))
        page.keyboard.type(str(model))
        tab_to(page, page.get_by_label("Seed"))
        page.keyboard.type("11")  # what was in it is selected
        tab_to(page, page.get_by_role("button", name=re.compile("^Run")))
        page.keyboard.press("Space")
        page.wait_for_url("**/runs/*")
        run_id = page.url.rsplit("/", 1)[1]
        other = opened.new_page()
        other.goto("/papers/concept-depth")
        other.get_by_label("or a hub id").fill(str(model))
        other.get_by_role("button", name="Run", exact=False).first.click()
        other.wait_for_url("**/runs/*")
        expect(other.locator("#progress strong")).to_have_text("Waiting.")
        other.get_by_role("button", name="Cancel this run").click()
        expect(other.get_by_text("Cancelled.")).to_be_visible(timeout=20_000)
        seen, shown, said = set(), set(), set()
        end = time.monotonic() + 300
        while page.locator("#progress").count() and time.monotonic() < end:
            with contextlib.suppress(Error):  # it may have ended in between
                seen.add(page.locator("#progress strong").inner_text(timeout=2000))
                shown.add(page.locator("#progress p").first.inner_text(timeout=2000))
                said.add(page.get_by_role("status").inner_text(timeout=2000))
            page.wait_for_timeout(100)
        expect(page.get_by_role("heading", name="Verdicts")).to_be_visible(timeout=60_000)
        assert len(seen) >= 2, seen
        assert len(said) < len(shown), "aloud less often than on the screen"
        assert all(share in ("", "0") or int(share) % 10 == 0 for line in said for share in re.findall(r", (\d+) %$", line)), said
        command = page.locator("#rerun-command").inner_text().removeprefix("$ ")
        assert page.title().endswith(": concept-depth on toy · nullius")
        assert re.match(r"\d+ (holds?|fails?|inconclusive|out of reach)\b", page.title()), "the end of a run is told by its title"
        tab_to(page, page.get_by_role("button", name="copy the command"))
        page.keyboard.press("Enter")
        expect(page.get_by_role("status")).to_have_text("Copied")
        assert page.evaluate("navigator.clipboard.readText()") == command == f"nullius rerun {run_id}"
        rerun = [sys.executable, "-m", "nullius.cli.main", *command.split()[1:], "--json"]
        again = subprocess.Popen(rerun, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        page.goto("/papers/concept-depth")
        page.get_by_label("or a hub id").fill(str(model))
        page.get_by_role("button", name="Run", exact=False).first.click()
        page.wait_for_url("**/runs/*")
        third = page.url.rsplit("/", 1)[1]
        visits = []
        other.on("request", lambda request: visits.append(request.url) if request.is_navigation_request() else None)
        other.route("**/live", lambda route: route.abort())  # as where a proxy lets no events through
        other.goto(page.url)
        wait_for(lambda: other.wait_for_timeout(50) or len(visits) > 1, 30)
        pid = wait_for(lambda: running(third), 60)
        os.kill(pid, signal.SIGKILL)
        for tab in (page, other):
            expect(tab.get_by_text("Aborted.")).to_be_visible(timeout=60_000)
        opened.faults[:] = [line for line in opened.faults if "Failed to fetch" not in line]
        out, wrong = again.communicate(timeout=240)
        assert again.returncode == 0, wrong
        assert json.loads(out)["same"] is True

        page.get_by_role("button", name="Run it again").click()  # and now the worker itself is killed
        page.wait_for_url(lambda url: third not in url)
        fourth = page.url.rsplit("/", 1)[1]
        wait_for(lambda: queue.state(fourth) == "running", 60)
        expect(page.locator("#progress strong")).to_be_visible(timeout=20_000)
        (worker,) = [p for p in psutil.Process(server.process.pid).children() if "nullius.web.working" in p.cmdline()]
        worker.kill()
        expect(page.get_by_text("Aborted.")).to_be_visible(timeout=60_000)
        expect(page.get_by_text("its process ended without a word")).to_be_visible()
        page.get_by_role("button", name="Run it again").click()
        page.wait_for_url(lambda url: fourth not in url)
        fifth = page.url.rsplit("/", 1)[1]
        wait_for(lambda: queue.state(fifth) == "running", 60)  # another worker came after the one that was killed
        assert worker.pid not in [p.pid for p in psutil.Process(server.process.pid).children()]
        page.get_by_role("button", name="Cancel this run").click()
        expect(page.get_by_text("Cancelled.")).to_be_visible(timeout=20_000)
        assert opened.faults == []
        opened.close()
    finally:
        server.stop()


def tab_to(page: Page, wanted: Locator) -> None:
    """Go to something by the tabulator, as often as it takes."""
    for _ in range(80):
        page.keyboard.press("Tab")
        if wanted.evaluate("element => element === document.activeElement"):
            return
    raise AssertionError(f"{wanted} cannot be reached by keyboard")


def running(run_id: str) -> int:
    """The process that executes a run, once it is under way."""
    import sqlalchemy as sa

    from nullius.lab.schema import reading, run

    with reading() as connection:
        state, pid = connection.execute(sa.select(run.c.state, run.c.pid).where(run.c.id == run_id)).one()
    return pid if state == "running" and journal.events(run_id) else 0


def wait_for(what, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = what()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError("it never came to that")
