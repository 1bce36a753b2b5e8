"""Pages of runs and verdicts: where a verdict is shown, and with what; figures, badges, dossiers, comparisons."""

from __future__ import annotations

import re

import pytest
import sqlalchemy as sa
from markupsafe import escape
from tests.web.outlines import outline

from nullius.feed import tables
from nullius.feed.database import writing
from nullius.lab import journal, schema
from nullius.web import assets, registry, verdicts, words
from nullius.web.pages import runs, subjects


def test_a_verdict_is_on_the_day_the_paper_and_the_run(visitor):
    (found,) = [r for r in journal.list_runs("factual-recall", limit=10) if r["subject"]["name"] == "smollm2-135m"]
    holds = next(v for v in found["verdicts"] if v["word"] == "holds")
    shown = words.interval(holds["effect"])
    day = visitor.get("/index.json").json()
    card = next(card for card in day["cards"] if card["key"] == "factual-recall")
    assert holds["claim"] in [chip["claim"] for chip in card["chips"]]
    for path in ("/papers/factual-recall", f"/runs/{found['id']}"):
        html = visitor.get(path).text
        assert shown in html
        assert holds["claim"] in html
    assert f"nullius rerun {found['id']}" in visitor.get(f"/runs/{found['id']}").text


def test_a_run_is_expected_to_take_its_own_time_not_what_it_waited_for_others(changing):
    found = verdicts.index().verdicts[0]
    asked = found["slug"], found["subject"]["name"], found["full"]
    for own, expected in ((90.0, 90.0), (900.0, 600.0), (None, 600.0)):  # more than the clock: several threads at once
        with writing() as connection:
            connection.execute(sa.update(schema.run).values(wall_seconds=600.0, cpu_seconds=own))
        verdicts._index = verdicts.Index()
        verdicts.forget()
        assert verdicts.expected_seconds(*asked) == expected


def test_the_matrix_has_a_cell_for_each_claim_and_subject(visitor):
    matrix = visitor.get("/papers/factual-recall.json").json()["matrix"]
    assert [s["name"] for s in matrix["subjects"]] == ["smollm2-135m", "gemma3-270m"]
    assert all(len(claim["cells"]) == 2 for claim in matrix["claims"])
    words_seen = {cell["word"] for claim in matrix["claims"] for cell in claim["cells"]}
    assert {"holds", "fails"} <= words_seen | {"inconclusive"}
    mine = visitor.get("/papers/factual-recall.json?subject=gemma3-270m").json()["matrix"]
    assert mine["subjects"][0]["name"] == "gemma3-270m"


def test_a_run_that_failed_says_why_and_shows_its_log(visitor):
    (failed,) = journal.list_runs("embers")
    html = visitor.get(f"/runs/{failed['id']}").text
    assert "no more &lt;b&gt;memory" in html
    log = visitor.get(f"/runs/{failed['id']}/files/log.txt")
    assert "RuntimeError" in log.text
    assert log.headers["content-type"].startswith("text/plain")


def test_files_of_a_run_can_do_nothing(visitor):
    (found,) = [r for r in journal.list_runs("factual-recall") if r["subject"]["name"] == "smollm2-135m"]
    figure = visitor.get(f"/runs/{found['id']}/files/figure.svg")
    assert figure.headers["content-type"] == "image/svg+xml"
    assert "script-src" not in figure.headers["content-security-policy"]
    interactive = visitor.get(f"/runs/{found['id']}/files/figure.html")
    assert interactive.headers["content-security-policy"].startswith("sandbox allow-scripts;")
    assert visitor.get(f"/runs/{found['id']}/files/..%2F..%2Fnullius.db").status_code == 404
    assert visitor.get(f"/runs/{found['id']}/files/nullius.db").status_code == 404
    assert visitor.get(f"/runs/{found['id']}/all.zip").content[:2] == b"PK"
    assert str(journal.data_dir()) not in visitor.get(f"/runs/{found['id']}.json").text


def test_a_dossier_as_one_file(visitor):
    answer = visitor.get("/subjects/smollm2-135m/download")
    assert "attachment" in answer.headers["content-disposition"]
    page = outline(answer.text)
    assert page.loads == []
    assert "factual-recall" in answer.text
    assert "alone" not in answer.text[:200]


def test_badges(visitor):
    matrix = visitor.get("/papers/factual-recall.json").json()["matrix"]
    claim = matrix["claims"][0]
    answer = visitor.get(f"/badge/factual-recall.{claim['id']}/smollm2-135m.svg")
    assert answer.headers["content-type"] == "image/svg+xml"
    assert claim["cells"][0]["word"] in answer.text
    assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
    assert visitor.get("/badge/factual-recall.nothing/smollm2-135m.svg").status_code == 404
    assert visitor.get(f"/badge/{claim['id']}/nobody.svg").status_code == 404


def test_a_paper_without_a_study_has_no_runs_of_others(visitor):
    found = visitor.get("/papers/norming.json").json()
    assert (found["study"], found["run_count"], found["runs"], found["figure"]) == (None, 0, [], None)
    assert "Not runnable yet" in visitor.get("/papers/norming").text


def test_every_verdict_leads_to_the_calibration_of_what_it_rests_on(visitor):
    (found,) = [r for r in journal.list_runs("factual-recall") if r["subject"]["name"] == "smollm2-135m"]
    resting = {name for v in found["verdicts"] for name in v["rests_on"]}
    assert resting
    for path in ("/papers/factual-recall", f"/runs/{found['id']}", "/compare/factual-recall", "/subjects/smollm2-135m"):
        linked = {link.split("#")[1] for link in outline(visitor.get(path).text).links if link.startswith("/calibration#")}
        assert linked >= {name.replace(" ", "-") for name in resting}, path
    assert {name.replace(" ", "-") for name in resting} <= set(outline(visitor.get("/calibration").text).ids)


def test_verdicts_on_earlier_wordings_stay_with_them(owner, monkeypatch):
    """A claim that is reworded has no verdict yet: not on the day, not in the dossier; the old one stays on the paper's page, with the old words."""
    with writing() as connection:
        change = {"digest": "another", "description": {**registry.claims("factual-recall")[0], "digest": "another"}}
        first = tables.claim.c.claim_id == registry.claims("factual-recall")[0]["id"]
        connection.execute(tables.claim.update().where(tables.claim.c.slug == "factual-recall", first).values(**change))
    registry._held.clear()
    data = owner.get("/papers/factual-recall.json").json()
    assert [cell for cell in data["matrix"]["claims"][0]["cells"] if cell] == []
    assert len(data["matrix"]["earlier"]) == 2
    reworded = data["matrix"]["claims"][0]["id"]
    assert reworded not in [chip["claim"] for chip in data["card"]["chips"]]
    (row,) = [row for row in owner.get("/subjects/smollm2-135m.json").json()["questions"]["mechanisms"] if row["slug"] == "factual-recall"]
    assert (row["earlier"], reworded in [v["claim"] for v in row["verdicts"]]) == (1, False)
    registry._held.clear()


def test_a_comparison_has_one_wording_of_a_claim(owner):
    """What was found with other words is not put beside it: there the subject was not run."""
    one, other = (
        next(r for r in journal.list_runs("factual-recall") if r["subject"]["name"] == name) for name in ("smollm2-135m", "gemma3-270m")
    )
    assert one["finished"] < other["finished"]
    claim = one["verdicts"][0]["claim"]
    own = sa.and_(schema.verdict.c.run_id == one["id"], schema.verdict.c.claim == claim)
    with schema.writing() as connection:
        detail = connection.execute(sa.select(schema.verdict.c.detail).where(own)).scalar_one()
        connection.execute(schema.verdict.update().where(own).values(detail={**detail, "digest": "of other words"}))
    subjects.compared.cache_clear()  # a verdict never changes, but for tests
    claims = owner.get("/compare/factual-recall.json").json()["claims"]
    shown = {c["claim"]: [row["subject"] for row in c["subjects"]] for c in claims}
    assert shown.pop(claim) == ["gemma3-270m"]
    assert {tuple(sorted(names)) for names in shown.values()} == {("gemma3-270m", "smollm2-135m")}
    assert owner.get("/compare/factual-recall").text.count("not run") == 1
    subjects.compared.cache_clear()


def test_a_verdict_leads_to_its_row_on_the_page_of_its_run(visitor):
    links = {link for link in outline(visitor.get("/papers/factual-recall").text).links if re.match(r"/runs/\w+#", link)}
    assert len(links) > 10
    for run_id in {link.split("/")[2].split("#")[0] for link in links}:
        there = set(outline(visitor.get(f"/runs/{run_id}").text).ids)
        assert {link.split("#")[1] for link in links if run_id in link} <= there


def test_a_figure_has_its_size_and_is_told_in_words(visitor):
    """The page does not jump when it comes; who does not see it reads what it shows."""
    (found,) = [r for r in journal.list_runs("factual-recall") if r["subject"]["name"] == "smollm2-135m"]
    page = visitor.get(f"/runs/{found['id']}.json").json()
    html = visitor.get(f"/runs/{found['id']}").text
    assert len(page["figures"]) == 2
    for figure in page["figures"]:
        width, height = figure["size"]
        assert 400 < width < 1200
        assert f'width="{width}" height="{height}"' in html
        assert len(figure["words"]) > 20
        assert str(escape(figure["words"])) in html


def test_differences_of_two_runs_are_told_in_words():
    pairs = {
        "seed": (0, 1),
        "full": (False, True),
        "options": ({}, {"task": "sum"}),
        "torch": ("2.11", "2.13"),
        "instruments/heads.py": (None, "5787c58c14bc5c6e"),
    }
    told, sources = runs._told(pairs)
    assert told == ["seed 0 → 1", "options none → task sum", "torch 2.11 → 2.13", "scale quick → full"]
    assert sources == ["instruments/heads.py"]


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({"estimate": 0.41, "lo": 0.3, "hi": 0.52}, "0.41 [0.30, 0.52]"),
        ({"estimate": -0.0688, "lo": -0.144, "hi": -0.00103}, "−0.069 [−0.144, −0.001]"),
        ({"estimate": 0.2, "lo": 0.1, "hi": None}, "0.20 [0.10, ∞]"),
        ({"estimate": 0.0, "lo": 0.0, "hi": 0.0}, "0.00 [0.00, 0.00]"),
        (None, "–"),
    ],
)
def test_an_interval_shows_on_which_side_of_zero_it_ends(found, told):
    assert words.interval(found) == told


def test_runs_that_disagree_say_so():
    cell = {"word": "holds", "runs": 3, "agreeing": 2}
    assert [words.together({**cell, **change}) for change in ({}, {"agreeing": 3}, {"runs": 1})] == ["2 of 3 hold", "3 runs", ""]


def test_a_figure_to_explore_is_small_and_keeps_its_values(visitor):
    """The library is loaded once, from here, into a sandbox; the stored file, which needs nothing else, stays whole."""
    (found,) = [r for r in journal.list_runs("factual-recall") if r["subject"]["name"] == "smollm2-135m"]
    small, whole = (
        visitor.get(f"/runs/{found['id']}/explore/figure-verdicts.html"),
        visitor.get(f"/runs/{found['id']}/files/figure-verdicts.html"),
    )
    assert len(small.content) < 60_000 < 500_000 < len(whole.content) < 700_000
    drawn = whole.text[whole.text.index('<script id="drawing"') :]
    assert small.text.endswith(drawn)
    policy = small.headers["content-security-policy"]
    assert policy.startswith("sandbox allow-scripts; script-src 'unsafe-inline' http://127.0.0.1:8000/static/")
    assert assets.address("plotly-basic.min.js") in policy
    assert visitor.get(assets.address("plotly-basic.min.js")).headers["cross-origin-resource-policy"] == "cross-origin"
    assert visitor.get(f"/runs/{found['id']}/explore/nothing.html").status_code == 404
    html = visitor.get("/papers/factual-recall").text
    assert "plotly" not in html, "only on click"
