"""In a real browser, with a server of its own: from the first visit to a verdict and its rerun; a figure that was stored."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import psutil
from playwright.sync_api import Error, expect
from tests.web import made
from tests.web.browsing import MARKS, Server, tab_to, wait_for, watched

from nullius.lab import drawing, journal, looks, queue
from nullius.lab.figures import Figure, Heatmap

pytestmark = MARKS


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


def running(run_id: str) -> int:
    """The process that executes a run, once it is under way."""
    import sqlalchemy as sa

    from nullius.lab.schema import reading, run

    with reading() as connection:
        state, pid = connection.execute(sa.select(run.c.state, run.c.pid).where(run.c.id == run_id)).one()
    return pid if state == "running" and journal.events(run_id) else 0
