"""Pages: each in HTML and as JSON, complete without script, nothing from another host, nothing of others' text executed."""

from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser

import pytest
import sqlalchemy as sa
from markupsafe import escape
from tests.web import made

from nullius.feed import tables
from nullius.feed.database import writing
from nullius.lab import journal, schema
from nullius.web import assets, page_shapes, registry, verdicts, words
from nullius.web.pages import runs, subjects

PAGES = [
    "/",
    "/day/2025-11-04",
    "/day/2025-11-03",
    "/day/2020-01-01",
    "/week",
    "/week/2025-W45",
    "/month",
    "/month/2025-11",
    "/trending",
    "/trending?days=30",
    "/search",
    "/search?q=head",
    "/papers/factual-recall",
    "/papers/embers",
    "/papers/2511.00001",
    "/subjects",
    "/subjects/smollm2-135m",
    "/subjects/gemma3-270m",
    "/compare/factual-recall",
    "/compare/factual-recall?m=smollm2-135m&m=gemma3-270m",
    "/runs",
    "/runs?state=failed",
    "/calibration",
    "/subscribe",
    "/about",
    "/contributing",
    "/health",
    "/api/v1/docs",
    "/?order=contested",
    "/?order=untested",
    "/?order=voted",
    "/papers/factual-recall?similar=newest",
    "/papers/factual-recall?similar=instrument",
]
PERSONAL = ["/library", "/account", "/import", "/addresses"]


class Outline(HTMLParser):
    """What a page loads and links, and its headings."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.inline = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        if "id" in found:
            self.ids.append(str(found["id"]))
        if tag == "script" and "src" not in found and "json" not in str(found.get("type")):
            self.inline += 1
        self.inline += sum(name == "style" or name.startswith("on") for name in found)
        if tag == "a":
            self.links.append(found.get("href") or "")
        elif ("src" in found or tag == "link") and found.get("rel") != "canonical":
            self.loads.append(found.get("src") or found.get("href") or "")


def outline(html: str) -> Outline:
    parser = Outline()
    parser.feed(html)
    return parser


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_whole_in_both_forms(visitor, path):
    answer = visitor.get(path)
    assert answer.status_code == 200, answer.text[:300]
    page = outline(answer.text)
    assert page.tags.count("h1") == 1
    assert page.inline == 0, "the content security policy would stop it"
    assert all(address.startswith("/") and not address.startswith("//") for address in page.loads)
    assert len(set(page.ids)) == len(page.ids)
    assert "undefined" not in answer.text.lower()
    bare, _, query = path.partition("?")
    data = visitor.get(f"{'/index' if bare == '/' else bare}.json?{query}")
    assert data.status_code == 200
    assert data.headers["content-type"] == "application/json"
    page_shapes.PAGES[data.json()["schema"]].model_validate_json(data.content)


@pytest.mark.parametrize("path", PERSONAL)
def test_pages_of_ones_own(visitor, owner, path):
    assert visitor.get(path).status_code == 401
    assert owner.get(path).status_code == 200
    data = owner.get(f"{path}.json")
    page_shapes.PAGES[data.json()["schema"]].model_validate_json(data.content)


def test_every_link_of_the_site_leads_somewhere(owner):
    """From the first page on, at most a dozen pages of a kind."""
    waiting = ["/", "/papers/factual-recall", "/search?q=embers"]
    seen, broken, kinds = set(waiting), [], Counter()
    while waiting:
        path = waiting.pop(0)
        kind = path.split("/")[1].split("?")[0]
        if kinds[kind] >= 12 or "/files/figure" in path or path.startswith("/api/v1/openapi"):
            continue
        kinds[kind] += 1
        answer = owner.get(path)
        if answer.status_code not in (200, 301, 303):
            broken.append((path, answer.status_code))
        if answer.headers.get("content-type", "").startswith("text/html"):
            for link in (link.split("#")[0] for link in outline(answer.text).links):
                if link.startswith("/") and "cursor=" not in link and link not in seen:
                    seen.add(link)
                    waiting.append(link)
    assert broken == []
    assert sum(kinds.values()) > 70
    assert {"papers", "runs", "subjects", "compare", "feeds", "search", "week", "addresses", "import"} <= set(kinds)


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


@pytest.mark.parametrize("path", ["/", "/papers/2511.00001", "/search?q=script", "/feeds/daily.atom", "/trending", "/library"])
def test_titles_of_others_are_never_markup(owner, path):
    owner.post("/papers/2511.00001/save", data={"on": "1"})
    text = owner.get(path).text
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert "<i>Lovelace" not in text


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "[x](javascript:alert(1))",
        "![x](http://evil.example/pixel.png)",
        "<img src=x onerror=alert(1)>",
        "[a](data:text/html,x)",
    ],
)
def test_notes_are_never_markup(owner, text):
    assert owner.post("/papers/embers/notes", data={"text": text}).status_code == 303
    html = owner.get("/papers/embers").text
    notes = html[html.index('id="notes"') : html.index("</main>")]
    assert "<script" not in notes
    assert "<img" not in notes
    assert 'href="javascript' not in notes
    assert 'href="data:' not in notes


def test_notes_are_threaded_counted_and_removed(owner):
    owner.post("/papers/embers/notes", data={"text": "**first**"})
    (note,) = owner.get("/papers/embers.json").json()["notes"]
    assert "<strong>first</strong>" in note["html"]
    owner.post("/papers/embers/notes", data={"text": "second", "parent": note["id"]})
    (note,) = owner.get("/papers/embers.json").json()["notes"]
    assert [reply["text"] for reply in note["replies"]] == ["second"]
    assert owner.get("/api/v1/papers/embers").json()["card"]["notes"] == 2
    assert owner.post(f"/notes/{note['replies'][0]['id']}/remove").status_code == 303
    assert owner.get("/api/v1/papers/embers").json()["card"]["notes"] == 1
    assert owner.post("/papers/embers/notes", data={"text": "  "}).status_code == 422
    assert owner.post("/papers/embers/notes", data={"text": "x", "about": "nonsense/claim"}).status_code == 422


def test_other_names_lead_to_the_one_address(visitor):
    for name in ("2309.13638", "2309.13638v2", "arxiv:2309.13638", "old-name"):
        answer = visitor.get(f"/papers/{name}")
        assert (answer.status_code, answer.headers["location"]) == (301, "/papers/embers")
    assert visitor.get("/papers/2309.13638.json").headers["location"] == "/papers/embers.json"


@pytest.mark.parametrize(
    ("path", "status", "link"),
    [
        ("/papers/factual-recal", 404, "/papers/factual-recall"),
        ("/subjects/smollm2-135", 404, "/subjects/smollm2-135m"),
        ("/runs/nonsense", 404, "/runs"),
        ("/week/2025-W53", 404, "/week/2025-W52"),
        ("/week/2025-W60", 404, "/week/2025-W52"),
        ("/week/nonsense", 404, "/week"),
        ("/month/2025-13", 404, "/month/2025-12"),
        ("/day/2025-02-30", 404, "/"),
        ("/nothing/here", 404, "/"),
        ("/?order=sideways", 422, "/"),
        ("/trending?days=8", 422, "/"),
        ("/compare/factual-recall?m=nobody", 404, "/papers/factual-recall"),
        ("/papers/factual-recall?similar=colour", 422, "/"),
        ("/runs?state=sleeping", 422, "/runs"),
    ],
)
def test_what_is_not_there_says_where_to_go(visitor, path, status, link):
    answer = visitor.get(path, headers={"accept": "text/html"})
    assert answer.status_code == status
    assert f'href="{link}"' in answer.text
    assert "Traceback" not in answer.text
    problem = visitor.get(path, headers={"accept": "application/json"})
    assert problem.headers["content-type"] == "application/problem+json"
    assert problem.json()["status"] == status


def test_older_and_newer_skip_empty_days(visitor):
    day = visitor.get("/day/2025-11-04.json").json()
    assert (day["older"], day["newer"]) == ("2025-11-03", None)
    assert 'rel="prev" href="/day/2025-11-03"' in visitor.get("/day/2025-11-04").text
    empty = visitor.get("/day/2025-11-20").text
    assert "No papers stood" in empty
    assert visitor.get("/day?date=2025-11-03").headers["location"] == "/day/2025-11-03"


def test_what_a_reader_has_already_is_not_sent_again(visitor):
    for path in ("/", "/papers/factual-recall.json", "/feeds/daily.atom", "/api/v1/papers"):
        first = visitor.get(path)
        again = visitor.get(path, headers={"if-none-match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


def test_assets_are_kept_for_ever_under_their_hash(visitor):
    html = visitor.get("/").text
    for name in ("style.css", "app.js", "htmx.js"):
        address = assets.address(name)
        assert address in html
        answer = visitor.get(address)
        assert "immutable" in answer.headers["cache-control"]
    assert "immutable" not in visitor.get("/static/000000000000/style.css").headers["cache-control"]
    assert visitor.get("/static/000000000000/nothing.css").status_code == 404
    assert visitor.get("/static/000000000000/..%2F..%2Fapp.py").status_code == 404


def test_budgets(visitor):
    assert len(assets.assets()["style.css"].packed) <= 10_000
    answer = visitor.get("/", headers={"accept-encoding": "gzip"})
    page = int(answer.headers["content-length"])
    loads = [path for path in outline(answer.text).loads if path.startswith("/static/")]
    total = page + sum(len(assets.assets()[path.rsplit("/", 1)[1]].packed) for path in set(loads))
    assert total <= 60_000
    assert 1 + len(set(loads)) <= 6


def test_vendored_files_are_what_they_were():
    hashes = {name: asset.sha256 for name, asset in assets.assets().items() if name.endswith(".min.js")}
    assert hashes == {
        "htmx.min.js": "a0abb04f2f45a1f89d1d4844023245537e5e6014c87b144553e0607b4cc32130",
        "hx-sse.min.js": "18ef2761356ec1fe0bb6d92612315b37517a7c1e9856b661c5ae81fef239d103",
        "plotly-basic.min.js": "99784e3abfb07b142a15e521a439e6d9addceadb3f79553fd24c72774f0649ba",
    }


def test_votes_and_saves_without_script_and_with_htmx(owner):
    answer = owner.post("/papers/embers/vote", data={"on": "1", "next": "/week"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/week")
    owner.post("/papers/embers/vote", data={"on": "1"})
    assert owner.get("/api/v1/papers/embers").json()["card"]["votes"] == 1
    piece = owner.post("/papers/embers/vote", data={"on": "0", "next": "/"}, headers={"hx-request": "true"})
    assert piece.status_code == 200
    assert "<html" not in piece.text
    assert 'aria-pressed="false"' in piece.text
    owner.post("/papers/embers/save", data={"on": "1"})
    owner.post("/library/embers", data={"note": "=read this", "collection": "to do", "read": "1"})
    (entry,) = owner.get("/library.json").json()["saved"]
    assert (entry["note"], entry["collection"], bool(entry["read_at"])) == ("=read this", "to do", True)
    assert "'=read this" in owner.get("/library.csv").text
    assert "Embers" in owner.get("/library.bib").text
    assert owner.get("/library.ris").text.startswith("TY  - ")
    assert json.loads(owner.get("/library.csl").text)[0]["title"].startswith("Embers")


@pytest.mark.parametrize("next_page", ["https://evil.example/", "//evil.example/", "/\\evil.example", "javascript:alert(1)", "/a\\b", ""])
def test_a_form_never_leads_to_another_site(owner, next_page):
    answer = owner.post("/papers/embers/vote", data={"on": "1", "next": next_page})
    assert answer.headers["location"] == "/papers/embers"


def test_choices_are_kept_in_the_browser(visitor):
    answer = visitor.post("/choices", data={"subject": "gemma3-270m", "theme": "dark", "next": "/trending"})
    assert answer.headers["location"] == "/trending"
    html = visitor.get("/").text
    assert 'data-theme="dark"' in html
    assert "on gemma3-270m" in html
    assert visitor.post("/choices", data={"subject": "nobody"}).status_code == 422
    assert visitor.post("/choices", data={"theme": "pink"}).status_code == 422


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


def test_the_page_of_a_paper_is_found_by_reference_managers(visitor):
    html = visitor.get("/papers/2511.00001").text
    assert '<meta name="citation_author" content="Ada &lt;i&gt;Lovelace&lt;/i&gt;">' in html
    assert 'name="citation_arxiv_id" content="2511.00001"' in html
    (block,) = re.findall(r'<script type="application/ld\+json">(.*?)</script>', html, re.DOTALL)
    assert json.loads(block)["headline"] == made.SCRIPT
    assert visitor.get("/papers/embers", headers={"accept": "application/x-bibtex"}).text.startswith("@misc{embers-2023,")
    assert visitor.get("/papers/embers", headers={"accept": "text/html,application/x-bibtex"}).text.startswith("<!doctype")


def test_a_paper_without_a_study_has_no_runs_of_others(visitor):
    found = visitor.get("/papers/norming.json").json()
    assert (found["study"], found["run_count"], found["runs"], found["figure"]) == (None, 0, [], None)
    assert "Not runnable yet" in visitor.get("/papers/norming").text


def test_a_study_that_is_not_read_yet_is_said_to_be_on_its_way(visitor, changing, monkeypatch):
    """A server reads what studies say of themselves in its first seconds: until then their papers must not look as if nobody had written one."""
    monkeypatch.setattr(registry, "described", dict)
    shown = visitor.get("/papers/factual-recall").text
    assert "Not runnable yet" not in shown
    assert "is being read" in shown
    ours = {run["id"] for run in visitor.get("/papers/factual-recall.json").json()["runs"]}
    assert ours == {run["id"] for run in journal.list_runs("factual-recall", limit=20)}


def test_a_foreign_title_says_its_language(owner):
    """For those who hear the page; an English title says nothing, nor one that could be anything."""
    french = "@misc{a, title={Les mod{\\`e}les de langue et la m{\\'e}moire}, year=2024, eprint={2401.00044}, archivePrefix={arXiv}}"
    japanese = "@misc{b, title={大規模言語モデルにおける事実の想起}, year=2024, eprint={2401.00045}, archivePrefix={arXiv}}"
    owner.post("/import", data={"text": f"{french}\n{japanese}"})
    assert '<h1 lang="fr">' in owner.get("/papers/2401.00044").text
    assert 'lang="ja">大規模' in owner.get("/search?q=id:2401.00045").text
    assert owner.get("/api/v1/papers/2401.00045").json()["card"]["lang"] == "ja"
    assert "lang=" not in owner.get("/papers/embers").text.split("<body>")[1].split("</main>")[0]


def test_our_paragraph_on_a_paper_is_there(visitor):
    html = visitor.get("/papers/factual-recall").text
    assert "In our words" in html
    assert visitor.get("/papers/factual-recall.json").json()["paper"]["about"] in html.replace("&#39;", "'")
    assert "In our words" not in visitor.get("/papers/2511.00001").text


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
    ("first", "last", "told"),
    [
        ("2025-11-03", "2025-11-09", "3–9 Nov 2025"),
        ("2025-09-29", "2025-10-05", "29 Sep – 5 Oct 2025"),
        ("2025-12-29", "2026-01-04", "29 Dec 2025 – 4 Jan 2026"),
    ],
)
def test_a_span_of_days_says_no_more_than_it_must(first, last, told):
    assert words.days(first, last) == told


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
