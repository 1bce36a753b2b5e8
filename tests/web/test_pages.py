"""Pages: each in HTML and as JSON, complete without script, nothing from another host, nothing of others' text executed."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest
from tests.web import made
from tests.web.outlines import outline

from nullius.lab import journal
from nullius.web import assets, page_shapes, registry, words

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


def test_the_page_of_a_paper_is_found_by_reference_managers(visitor):
    html = visitor.get("/papers/2511.00001").text
    assert '<meta name="citation_author" content="Ada &lt;i&gt;Lovelace&lt;/i&gt;">' in html
    assert 'name="citation_arxiv_id" content="2511.00001"' in html
    (block,) = re.findall(r'<script type="application/ld\+json">(.*?)</script>', html, re.DOTALL)
    assert json.loads(block)["headline"] == made.SCRIPT
    assert visitor.get("/papers/embers", headers={"accept": "application/x-bibtex"}).text.startswith("@misc{embers-2023,")
    assert visitor.get("/papers/embers", headers={"accept": "text/html,application/x-bibtex"}).text.startswith("<!doctype")


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
