"""What pages show beside lists and tables: all that came out, feeds beside choices, plots, authors of notes, and what to do about a problem."""

from __future__ import annotations

import math
import re
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.web.outlines import outline

from nullius.feed import discussion, papers
from nullius.web import lines, problems, verdicts, who
from nullius.web.words import coded, near


def test_a_hit_counts_what_came_out_on_every_subject(visitor):
    hits = {hit["slug"]: hit for hit in visitor.get("/search.json?q=head+concept&subject=smollm2-135m").json()["papers"]}
    came = hits["factual-recall"]["everywhere"]
    own = verdicts.index().by_slug["factual-recall"]
    assert came["on"] == ["gemma3-270m", "smollm2-135m"]
    assert sum(came["tally"].values()) == len(own)
    assert came["tally"]["holds"] == sum(v["word"] == "holds" for v in own) > 0
    shown = visitor.get("/search?q=head+concept").text
    assert "on 2 subjects" in shown
    assert next(hit for hit in hits.values() if not hit["runnable"])["everywhere"] is None


def test_a_week_begins_with_what_was_decided_paper_by_paper(visitor):
    when = max(v["finished"] for v in verdicts.index().verdicts)[:10]
    year, number, _ = date.fromisoformat(when).isocalendar()
    week = visitor.get(f"/week/{year}-W{number:02}.json").json()
    rows = {(row["slug"], row["subject"]): row["tally"] for row in week["papers_decided"]}
    assert set(rows) == {(slug, name) for slug in ("factual-recall", "concept-depth") for name in ("smollm2-135m", "gemma3-270m")}
    assert sum(sum(tally.values()) for tally in rows.values()) == sum(week["decided"].values())
    assert f"{sum(week['decided'].values())} verdicts:" in visitor.get(f"/week/{year}-W{number:02}").text


def test_the_guide_to_adding_a_study_is_a_page(visitor):
    """What is not runnable leads to the whole guide, which the package brings along, with its worked example."""
    assert 'href="/contributing"' in visitor.get("/papers/2511.00001").text
    page = visitor.get("/contributing").text
    assert "Add a study in twenty minutes" in page
    assert "def word_repetition" in page


@pytest.mark.parametrize(
    ("fields", "leads"),
    [
        ({"of": "daily"}, "/feeds/daily.atom"),
        ({"of": "search", "target-search": "one head", "target-author": "Merullo"}, "/feeds/search.atom?q=one%20head"),
        ({"of": "author", "target-author": "Merullo"}, "/feeds/search.atom?q=author%3AMerullo"),
        ({"of": "paper", "target-paper": "embers"}, "/feeds/papers/embers.atom"),
        ({"of": "subject", "target-subject": "smollm2-135m"}, "/feeds/subjects/smollm2-135m.atom"),
    ],
)
def test_each_choice_has_its_feed_beside_it(visitor, fields, leads):
    assert (answer := visitor.get("/subscribe/feed", params=fields)).status_code == 303
    assert answer.headers["location"] == leads
    assert visitor.get(leads).status_code == 200
    assert 'Atom<span class="hidden"> feed of' in visitor.get("/subscribe").text


def test_a_feed_of_nothing_says_what_is_missing(visitor):
    assert visitor.get("/subscribe/feed?of=search").status_code == 422
    assert visitor.get("/subscribe/feed?of=everything").status_code == 404


def test_a_note_has_its_author_and_a_removed_one_its_place(people, lab):
    """Who signed in by mail has no name but an address: what stands before the @ is theirs, as the header greets them."""
    member = people["member"]
    member.post("/papers/embers/notes", data={"text": "first"})
    paper = papers.find("embers").id
    (note,) = discussion.thread(paper)
    member.post("/papers/embers/notes", data={"text": "an answer", "parent": str(note.id)})
    assert [n.author for n in discussion.thread(paper)] == ["ada"]
    page = member.get("/papers/embers").text
    assert "<strong>ada</strong>" in page
    assert "example.org" not in re.search(r'<h2 id="notes">.*?</section>', page, re.S)[0].replace("papers.example.org", "")
    member.post(f"/notes/{note.id}/remove", data={})
    assert "(removed)" in member.get("/papers/embers").text
    assert who.account_for("ada@example.org", lab) == note.account


SCALE = {"low": -0.2, "high": 0.8}
ROWS = [
    {"subject": "a<b>", "effect": {"estimate": 0.3, "lo": 0.05, "hi": None}, "control": {"estimate": 0.0, "lo": -0.1, "hi": 0.1}},
    {"subject": "b", "effect": {"estimate": -0.1, "lo": -0.2, "hi": 0.0}, "control": None},
]


def test_a_forest_plot_puts_everything_where_it_is():
    """Places across are shares of the width: 0.3 of a scale from -0.2 to 0.8 lies in the middle; an open end reaches the edge."""
    drawn = str(lines.forest(ROWS, 0.55, SCALE))
    assert '<line class="eff at" x1="50.00%" x2="50.00%"' in drawn
    assert '<line class="eff" x1="25.00%" x2="100.00%"' in drawn
    assert '<line class="pub" x1="75.00%"' in drawn
    assert "published 0.55" in drawn
    assert '<line class="zero" x1="20.00%"' in drawn
    assert drawn.count('class="ctl at"') == 1
    assert "a&lt;b&gt;" in drawn
    assert "<b>" not in drawn
    assert 'role="img"' in drawn
    assert "2 subjects" in drawn


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_round_few_and_within(low, width):
    found = lines.ticks(low, low + width)
    assert 1 <= len(found) <= 6
    slack = 1e-6 * width + 4 * math.ulp(abs(low) + width)
    assert all(low - slack <= value <= low + width + slack for value in found)


@pytest.mark.parametrize("status", sorted(problems.TITLES))
def test_every_problem_says_what_to_do_next(status):
    told = problems.Problem(status, "What was wrong.", "" if status in problems.NEXT else "What to do.")
    assert told.to_dict()["advice"]
    assert problems.Problem(status, "x", "", ("/", "There")).to_dict().get("advice") is None


def test_a_page_about_a_problem_is_no_json_of_another(visitor):
    page = visitor.get("/no/such/page", headers={"accept": "text/html"}).text
    assert not any(link.endswith(".json") for link in outline(page).links)
    assert "Check the address" in page
    assert "You may mean factual-recall" in visitor.get("/papers/factual-recal", headers={"accept": "text/html"}).text


def test_words():
    assert str(coded("open `nullius <web>` & go")) == "open <code>nullius &lt;web&gt;</code> &amp; go"
    assert (near("2025-11-04", "2025-12-31"), near("2024-12-30", "2025-01-01")) == ("4 Nov", "30 Dec 2024")
