"""What other programs read: Atom, citations, live events, and the copy for a static host."""

from __future__ import annotations

import re
import threading
import time
from urllib.parse import unquote

import feedparser
import pytest
import sqlalchemy as sa
from tests.web import made

from nullius.errors import UsageError
from nullius.feed import tables
from nullius.feed.database import reading
from nullius.feed.tables import LOCAL
from nullius.lab import journal, queue
from nullius.lab import runner as lab_runner
from nullius.web import atom, citing
from nullius.web.export import export

FEEDS = ["daily", "weekly", "trending", "verdicts", "papers/factual-recall", "subjects/smollm2-135m"]


@pytest.mark.parametrize("name", FEEDS)
def test_a_feed_is_atom(visitor, name):
    answer = visitor.get(f"/feeds/{name}.atom")
    assert answer.headers["content-type"].startswith("application/atom+xml")
    assert answer.headers["etag"]
    assert answer.headers["last-modified"].endswith("GMT")
    feed = feedparser.parse(answer.content)
    assert not feed.bozo, feed.get("bozo_exception")
    assert feed.version == "atom10"
    assert 1 <= len(feed.entries) <= 50
    ids = [entry.id for entry in feed.entries]
    assert len(set(ids)) == len(ids)
    assert all(entry_id.startswith("tag:127.0.0.1,2025-01-01:") for entry_id in ids)
    assert all(entry.authors and entry.updated and entry.summary and entry.link for entry in feed.entries)


@pytest.mark.parametrize("name", ["daily", "weekly"])
def test_the_archive_of_a_feed_leaves_nobody_out(visitor, name, monkeypatch):
    """By `prev-archive` from page to page: a day with more papers than a feed holds goes on before the day before it does."""
    monkeypatch.setattr(atom, "ENTRIES", 3)
    path, seen, pages = f"/feeds/{name}.atom", [], 0
    while path and pages < 100:
        feed = feedparser.parse(visitor.get(path).content)
        seen += [unquote(entry.id).split(":paper:")[1] for entry in feed.entries]
        assert len(feed.entries) <= 3
        path, pages = (
            next((link.href.removeprefix("http://127.0.0.1:8000") for link in feed.feed.links if link.rel == "prev-archive"), ""),
            pages + 1,
        )
    with reading() as connection:
        every = connection.execute(sa.select(tables.paper_day.c.paper).distinct()).scalars().all()
    assert pages < 100
    assert len(set(seen)) == len(every) > 50
    assert visitor.get(f"/feeds/{name}.atom?cursor=nonsense").status_code in (404, 422)


def test_a_feed_of_a_search_and_of_an_earlier_day(visitor):
    feed = feedparser.parse(visitor.get("/feeds/search.atom?q=bound+entities").content)
    assert "Mixing Mechanisms" in feed.entries[0].title
    daily = visitor.get("/feeds/daily.atom").text
    assert 'rel="prev-archive"' in daily
    assert "2025-11-03" in daily
    assert visitor.get("/feeds/search.atom").status_code == 422
    assert visitor.get("/feeds/daily.atom?day=yesterday").status_code == 422
    assert visitor.get("/feeds/subjects/nobody.atom").status_code == 404


def test_ids_stay_and_updated_moves_only_with_verdicts(owner):
    def entries() -> dict[str, str]:
        feed = feedparser.parse(owner.get("/feeds/daily.atom").content)
        return {entry.id: entry.updated for entry in feed.entries}

    before = entries()
    owner.post("/papers/factual-recall/vote", data={"on": "1"})
    time.sleep(1.1)
    assert entries() == before
    lab_runner.run(made.standing_in("factual-recall", seed=9), made.subject("smollm2-135m"), seed=9)
    time.sleep(1.1)
    after = entries()
    assert after.keys() == before.keys()
    changed = [name for name in after if after[name] != before[name]]
    assert [name.rsplit(":", 1)[1] for name in changed] == ["paper%3Afactual-recall"]


def test_control_characters_do_not_break_a_feed():
    from nullius.web.atom import _clean

    assert _clean("a\x00b\x0bc\ud800d\te") == "abcd\te"


PAPER = {
    "id": 1,
    "key": "k",
    "slug": None,
    "title": r"50 % of {braces} & $\alpha$ #1_2",
    "authors": ["Ada Lovelace", "Knuth, Donald", "Plato"],
    "published": "2024-02-29",
    "arxiv_id": "2402.00001",
    "doi": "10.1/x",
    "journal_ref": None,
    "abstract": "One\r\nER  - \r\nTY  - HACK",
    "primary_category": "cs.CL",
}


def test_citations():
    bib = citing.bibtex(PAPER)
    assert bib.startswith("@misc{lovelace-braces-2024,")
    assert r"50 \% of \{braces\} \& \$\textbackslash{}alpha\$ \#1\_2" in bib
    assert bib.count("{") == bib.count("}")
    ris = citing.ris(PAPER)
    assert ris.count("\r\nER  - ") == 1, "a line break in a text begins no new tag"
    assert "AU  - Lovelace, Ada\r\nAU  - Knuth, Donald\r\nAU  - Plato" in ris
    item = citing.csl(PAPER)
    assert item["author"] == [{"family": "Lovelace", "given": "Ada"}, {"family": "Knuth", "given": "Donald"}, {"literal": "Plato"}]
    assert item["issued"] == {"date-parts": [[2024, 2, 29]]}


def test_bibtex_is_read_back():
    bibtexparser = pytest.importorskip("bibtexparser")
    library = bibtexparser.parse_string(citing.many([PAPER, {**PAPER, "slug": "other"}], "bibtex")[0])
    assert [entry.key for entry in library.entries] == ["lovelace-braces-2024", "other-2024"]
    assert library.failed_blocks == []


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("application/x-bibtex", "bibtex"),
        ("application/vnd.citationstyles.csl+json", "csl"),
        ("*/*", None),
        ("text/html, application/x-bibtex", None),
        ("", None),
    ],
)
def test_citations_by_accept(accept, form):
    assert citing.wanted(accept) == form


def test_a_run_is_watched_live(owner):
    """Events arrive as they happen, resume by number, and end with the run; the page's fragments show the progress."""
    values = {"slug": "factual-recall", "asked_subject": "smollm2-135m", "full": False, "seed": 0, "options": {}, "rerun_of": None}
    run_id = "01JZZZZZZZZZZZZZZZZZZZZZZZ"
    journal.begin_run({"id": run_id, **values})

    def go_on() -> None:
        for i in range(4):
            time.sleep(0.4)
            journal.pulse(run_id, i, [{"at": journal.now(), "kind": "step", "payload": {"label": "<b>tuning", "done": i, "total": 4}}])
        journal.end_run(run_id, {"state": "aborted", "reason": "enough"})

    page = owner.get(f"/runs/{run_id}").text
    assert f'hx-sse:connect="/runs/{run_id}/live"' in page
    assert '<noscript><meta http-equiv="refresh" content="2">' in page
    thread = threading.Thread(target=go_on)
    thread.start()
    events = owner.get(f"/api/v1/runs/{run_id}/events").text
    thread.join()
    assert re.findall(r"^id: (\d+)$", events, re.MULTILINE) == ["0", "1", "2", "3"]
    assert events.rstrip().endswith('event: ended\ndata: {"state": "aborted"}')
    piece = owner.get(f"/runs/{run_id}/live").text
    assert piece.endswith("event: ended\ndata: \n\n")
    assert "enough" in owner.get(f"/runs/{run_id}").text


def test_a_queued_run_says_how_long_it_waits(owner):
    first = queue.enqueue("factual-recall", "smollm2-135m", account=LOCAL)
    second = queue.enqueue("concept-depth", "smollm2-135m", account=LOCAL)
    assert "Next in line" in owner.get(f"/runs/{first}").text
    html = owner.get(f"/runs/{second}").text
    assert "1 run before this one" in html
    assert "nullius worker" in html, "nobody is at work here"
    assert owner.post(f"/runs/{second}/cancel").status_code == 303
    assert "Cancelled." in owner.get(f"/runs/{second}").text


def test_a_copy_for_a_static_host(tmp_path, own_data_folder):
    folder = tmp_path / "site"
    count = export(str(folder), "https://papers.example.org")
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert count == len(files) > 100
    for name in (
        "index.html",
        "papers/factual-recall/index.html",
        "papers/factual-recall.json",
        "feeds/daily.atom",
        "subjects/smollm2-135m/index.html",
    ):
        assert (folder / name).is_file(), name
    html = (folder / "papers/factual-recall/index.html").read_text()
    assert "<form" not in html
    assert "<script src" not in html
    assert 'href="https://papers.example.org/papers/factual-recall"' in html
    assert not (folder / "account").exists()
    (figure, *_) = folder.rglob("explore/figure-verdicts.html")
    library = re.search(r'<script src="(/static/[^"]+)"', figure.read_text())[1]
    assert b"plotly.js (basic" in (folder / library.lstrip("/")).read_bytes()[:200], "figures can be explored there too"
    broken = set()
    for page in folder.rglob("*.html"):
        for link in re.findall(r'(?:href|src)="(/[^"#?]*)["#]', page.read_text()):
            target = folder / link.lstrip("/")
            if not (target.is_file() or (target / "index.html").is_file()):
                broken.add(link)
    assert {link for link in broken if not link.startswith(("/search", "/health", "/api", "/account"))} == set()
    with pytest.raises(UsageError, match="not empty"):
        export(str(folder), "https://papers.example.org")
