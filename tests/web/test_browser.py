"""In a real browser: every page in both themes and at three widths, by keyboard, on paper, without script, for a screen reader."""

from __future__ import annotations

import inspect
import json
import re
import urllib.request
from datetime import UTC, datetime

import pytest
from playwright.sync_api import expect
from tests.web.browsing import AXE, MARKS, Server, violations, watched

from nullius.web import assets

pytestmark = MARKS
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


def addresses(server: Server) -> list[str]:
    runs = json.load(urllib.request.urlopen(f"{server.base}/api/v1/runs"))["runs"]
    of = {r["state"]: r["id"] for r in runs}
    week = datetime.now(UTC).strftime("%G-W%V")  # in which its verdicts were given
    return [path.replace("RUN", of["done"]).replace("FAILED", of["failed"]).replace("NOW", week) for path in PAGES]


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
