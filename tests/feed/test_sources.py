"""Importing over the network: all pages, all tokens, and every fault of a source; against a real server on the loopback."""

import datetime
import gzip
import json

import pytest
import sqlalchemy as sa

from nullius.feed import database as feed_database
from nullius.feed import papers, tables
from nullius.feed.importers import fetch, running, sources, syncing
from nullius.feed.importers.fetch import Fetcher

from .source_server import atom_error, daily, entry, oai, serving

BUSY = (429, {"Retry-After": "7"}, b"slow down")
DOWN = (503, {"Retry-After": "120"}, b"later")


@pytest.fixture
def source():
    with serving() as source:
        source.papers = [entry(number) for number in range(1, 8)]
        yield source


class Clocked(Fetcher):
    """A fetcher that may ask the test's server, and sleeps without sleeping."""

    def __init__(self, source, **values):
        self.slept = []
        self.lines = []
        super().__init__(
            say=self.lines.append, sleep=self.slept.append, hosts=frozenset({source.address.removeprefix("http://")}), **values
        )


def count(table):
    with feed_database.reading() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(table)).scalar()


def fetch_all(source, path, fetcher=None):
    return running.import_from(source.address + path, fetcher=fetcher or Clocked(source))


PATHS = ["/api/daily_papers?date=2025-11-04&limit=3", "/api/query?search_query=cat:cs.CL&max_results=3", "/oai?set=cs:cs:CL"]


@pytest.mark.parametrize("path", [PATHS[0], PATHS[2]])
def test_all_pages_are_read_and_a_second_time_changes_nothing(database, source, path):
    before = count(tables.paper)
    report = fetch_all(source, path)
    assert (report.imported, report.new, report.rejected, report.error) == (7, 7, 0, "")
    assert count(tables.paper) == before + 7
    again = fetch_all(source, path)
    assert (again.imported, again.new, again.changed) == (7, 0, 0)
    assert len(source.requests) == 6


def test_a_search_is_read_as_far_as_was_asked(sqlite, source):
    assert fetch_all(source, PATHS[1]).imported == 3
    assert fetch_all(source, "/api/query?search_query=cat:cs.CL").imported == 7


def test_a_search_that_finds_too_much_says_where_the_rest_is(sqlite, source, monkeypatch):
    monkeypatch.setattr(sources, "ATOM_WINDOW", 4)
    monkeypatch.setattr(sources, "ATOM_PAGE", 2)
    fetcher = Clocked(source)
    assert fetch_all(source, "/api/query?search_query=cat:cs.CL", fetcher).imported == 4
    assert [line for line in fetcher.lines if "OAI-PMH" in line] == fetcher.lines != []


def test_what_each_source_tells_of_a_paper(database, source):
    for path in PATHS:
        fetch_all(source, path)
    found = papers.get(papers.find("2401.00003").id)
    assert found.card.authors == ("Ada Lovelace", "Kurt Gödel")
    assert found.card.published == datetime.date(2024, 1, 4)
    assert found.abstract == "We do thing 3. It works."
    assert found.card.signals == {"hf_upvotes": 12, "hf_comments": 3, "github_stars": 5}
    assert (found.their_summary, found.their_summary_source) == ("A machine says so.", "Hugging Face")
    assert found.card.summary_source == "abstract"
    assert found.categories == ("cs.CL", "cs.LG")
    assert found.doi == "10.1000/2401.00003"
    assert found.days == (datetime.date(2024, 1, 4), datetime.date(2025, 11, 4))
    assert {origin.source for origin in found.origins} == {"huggingface", "arxiv"}


def test_one_record_of_oai_pmh(sqlite, source):
    source.faults = [(200, {}, oai([entry(5)], "").replace("ListRecords", "GetRecord").encode())]
    assert fetch_all(source, "/oai?verb=GetRecord&identifier=oai:arXiv.org:2401.00005&metadataPrefix=arXivRaw").imported == 1
    assert source.requests == ["/oai?verb=GetRecord&identifier=oai:arXiv.org:2401.00005&metadataPrefix=arXivRaw"]


def test_a_flat_paper_by_its_address(sqlite, source):
    assert fetch_all(source, "/papers/2401.00005").imported == 1
    assert papers.get(papers.find("2401.00005").id).card.signals["hf_upvotes"] == 12


@pytest.mark.parametrize("fault", [BUSY, (500, {}, b""), "hang up", "truncate"])
@pytest.mark.parametrize("path", PATHS)
def test_what_passes_is_got_over(sqlite, source, path, fault):
    source.faults = [None, fault, fault]
    fetcher = Clocked(source)
    report = fetch_all(source, path, fetcher)
    assert report.error == ""
    assert report.imported == (3 if "query" in path else 7)
    if path != PATHS[1]:
        assert len(fetcher.slept) == 2
        assert fetcher.slept[0] >= (7 if fault is BUSY else 2)
        assert "trying again" in fetcher.lines[0]


def test_retry_after_is_obeyed_and_a_long_one_ends_the_import_saying_when(sqlite, source):
    source.faults = [DOWN]
    fetcher = Clocked(source)
    assert fetch_all(source, PATHS[2], fetcher).imported == 7
    assert fetcher.slept == [120]
    source.faults = [(503, {"Retry-After": "86400"}, b"")]
    report = fetch_all(source, PATHS[2])
    assert "come back in 86400 s" in report.error


def test_a_source_that_stays_away_keeps_the_cursor_and_the_next_import_goes_on(database, source):
    source.faults = [None, None, *[DOWN] * fetch.TRIES]
    report = fetch_all(source, PATHS[2])
    assert (report.imported, report.cursor) == (6, "from-6")
    assert "503" in report.error
    source.requests.clear()
    again = fetch_all(source, PATHS[2])
    assert (again.imported, again.new, again.error) == (1, 1, "")
    assert source.requests == ["/oai?verb=ListRecords&resumptionToken=from-6"]


def test_an_expired_token_begins_the_list_again(sqlite, source):
    source.tokens_expire_after = 3
    fetcher = Clocked(source)
    report = fetch_all(source, PATHS[2], fetcher)
    assert (report.imported, report.new, report.error) == (10, 7, "")
    assert "expired" in fetcher.lines[0]


def test_no_records_is_no_error(sqlite, source):
    source.papers = []
    report = fetch_all(source, PATHS[2])
    assert (report.imported, report.error) == (0, "")


def test_an_error_in_the_feed_is_said(sqlite, source):
    source.faults = [(200, {"Content-Type": "application/atom+xml"}, atom_error().encode())]
    assert "incorrect id format" in fetch_all(source, PATHS[1]).error


@pytest.mark.parametrize(
    ("path", "said"), [("/nothing", "404"), ("/moved?to=http://localhost.example/x", "only"), ("/moved?to=/moved", "leads")]
)
def test_what_will_not_pass_is_said_at_once(sqlite, source, path, said):
    if path.endswith("to=/moved"):
        path = f"/moved?to={source.address}/moved%3Fto=/nothing"
        said = "404"
    fetcher = Clocked(source)
    report = fetch_all(source, path, fetcher)
    assert said in report.error
    assert fetcher.slept == []


@pytest.mark.parametrize(
    "address", ["http://169.254.169.254/latest", "http://127.0.0.1:1/", "http://[::1]/", "https://huggingface.co.evil.example/api"]
)
def test_only_hosts_on_the_list_are_asked(sqlite, source, address):
    report = running.import_from(address, fetcher=Clocked(source))
    assert "importers fetch from" in report.error
    assert source.requests == []


PAGE = b"<!doctype html><html><head><title>Sorry, we are\n moving</title></head><body><p>Back soon</p></body></html>"
XHTML = b'<?xml version="1.0"?><portal><p>Accept our terms</p></portal>'


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("body", "said"),
    [(PAGE, "titled “Sorry, we are moving”, not with"), (XHTML, ""), (b'{"error": "Too many"}', ""), (b"", "nothing"), (b"ok", "“ok”")],
)
def test_what_is_no_answer_is_an_error_and_the_cursor_stays(sqlite, source, path, body, said):
    """Sources in trouble answer 200 with something else; it is no list that happens to be empty."""
    source.faults = [None, (200, {}, body)]
    report = fetch_all(source, path.replace("&max_results=3", ""))
    if "query" in path:
        source.faults = [(200, {}, body)]
        report = fetch_all(source, path)
        assert report.cursor == ""
    else:
        assert (report.imported, report.cursor) == (3, "1" if "daily" in path else "from-3")
    assert said in report.error
    assert report.error
    assert running.imports()[0]["state"] == "failed"


@pytest.mark.parametrize(
    ("path", "cut"), [(PATHS[0], b'"2401.00006"'), (PATHS[1], b"2401.00003v1"), (PATHS[2], b"oai:arXiv.org:2401.00006")]
)
def test_whole_records_before_a_break_in_an_answer_are_kept(database, source, path, cut):
    """The answer is as long as it says, but what was put into it broke off."""
    fetch_all(source, path)
    address, query = source.requests[1 if "query" not in path else 0].split("?")
    status, headers, body = source.answer(address, dict(part.split("=") for part in query.split("&")))
    with feed_database.writing() as connection:
        connection.execute(tables.paper.delete().where(tables.paper.c.arxiv_id.like("2401.%")))
    source.faults = [*([None] if "query" not in path else []), (status, headers, body[: body.index(cut)])]
    report = fetch_all(source, path)
    assert (report.imported, "breaks off" in report.error) == (5 if "query" not in path else 2, True)
    assert fetch_all(source, path).error == ""


def test_rejects_are_counted_through_all_pages(sqlite, source):
    source.papers[4]["id"] = source.papers[6]["id"] = "nonsense"
    for path in (PATHS[0], PATHS[2], "/api/query?search_query=x"):
        report = fetch_all(source, path)
        assert [reject["position"] for reject in report.rejects] == ["record 5", "record 7"]


def test_an_answer_that_never_ends_is_given_up(sqlite, source):
    moments = iter(range(0, 1_000_000, 700))
    fetcher = Clocked(source, clock=lambda: next(moments))
    assert "takes more than 600 s" in fetch_all(source, PATHS[0], fetcher).error
    assert len(fetcher.slept) == fetch.TRIES - 1


def test_the_mirror_that_is_set_may_be_asked(sqlite, source, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", f"{source.address}/")
    reports = syncing.sync(days=1, oai_set="", api=f"{source.address}/api/query", fetcher=Fetcher(sleep=lambda seconds: None))
    assert [report.error for report in reports] == [""] * 3
    assert source.requests[0].startswith("/api/daily_papers?date=")


def test_an_answer_that_is_too_large_is_refused(sqlite, source):
    report = fetch_all(source, PATHS[0], Clocked(source, most=500))
    assert "answers with more than" in report.error


@pytest.mark.parametrize("headers", [{"Content-Encoding": "gzip"}, {"Content-Type": "application/gzip"}])
def test_an_answer_that_unpacks_to_too_much_is_refused(sqlite, source, headers):
    source.faults = [(200, headers, gzip.compress(b"[" + b" " * 30_000_000, 1))]
    assert "more than 10 MB" in (report := fetch_all(source, PATHS[0])).error or "larger than 10 MB unpacked" in report.error


def test_what_is_asked_of_the_daily_papers_is_asked_on_every_page(sqlite, source):
    for asked in ("week=2025-W45&sort=trending", "month=2025-11&submitter=f"):
        source.requests.clear()
        assert fetch_all(source, f"/api/daily_papers?{asked}&limit=3").imported == 7
        assert [path.split("?")[1] for path in source.requests] == [f"{asked}&limit=3&p={number}" for number in range(3)]


def test_papers_found_by_the_hubs_own_search(sqlite, source):
    assert fetch_all(source, "/api/papers/search?q=paper&limit=5").imported == 5
    assert papers.get(papers.find("2401.00005").id).days == ()


def test_a_missing_count_is_unknown(sqlite, source):
    item = daily(source.papers[0])
    del item["numComments"], item["paper"]["githubStars"]
    item["paper"]["upvotes"] = None
    source.faults = [(200, {}, json.dumps([item]).encode())]
    fetch_all(source, PATHS[0])
    assert papers.get(papers.find("2401.00001").id).card.signals == {}


def test_arxiv_is_asked_once_in_three_seconds():
    moments = iter([100.0, 100.0, 101.0, 103.0])
    slept = []
    fetcher = Fetcher(sleep=slept.append, clock=lambda: next(moments))
    address = fetcher._checked("https://export.arxiv.org/api/query")
    fetcher._wait(address)
    fetcher._wait(address)
    assert slept == [pytest.approx(2.0)]


def synced(source, today, **how):
    """The days and the address of arXiv that a sync asks for."""
    source.requests.clear()
    where = {"hub": source.address, "oai": f"{source.address}/oai", "api": f"{source.address}/api/query", "fetcher": Clocked(source)}
    syncing.sync(**where, days=3, today=today, **how)
    days = [path.split("date=")[1][:10] for path in source.requests if "daily" in path]
    return [(today - datetime.date.fromisoformat(day)).days for day in days], [path for path in source.requests if "/oai" in path][:1]


def began(day, address=""):
    """As if the imports of an address, or all, had begun on another day."""
    same = tables.import_run.c.address.contains(address)
    with feed_database.writing() as connection:
        connection.execute(tables.import_run.update().where(same).values(started=f"{day.isoformat()}T10:00:00.000+00:00"))


def test_sync_passes_over_no_day_and_no_set(sqlite, source):
    today = datetime.datetime.now(datetime.UTC).date()
    first = today - datetime.timedelta(days=20)
    source.papers = []
    assert synced(source, first)[0] == [3, 2, 1, 0]
    began(first)
    fetch_all(source, "/api/daily_papers?date=2024-01-05&limit=100")  # today, by hand: an old day, today's page, a span of arXiv's
    fetch_all(source, f"/api/daily_papers?date={today}&p=0&limit=100")
    fetch_all(source, "/oai?set=cs:cs:CL&from=2020-01-01&until=2020-02-01")
    days, (oai,) = synced(source, today)
    assert days == list(range(21, -1, -1))  # all since the last time, which is longer ago than --days
    assert f"from={first - datetime.timedelta(days=1)}" in oai
    assert synced(source, today)[0] == [1, 0]
    assert (
        f"from={today - datetime.timedelta(days=3)}" in synced(source, today, oai_set="cs:cs:LG")[1][0]
    )  # of which nothing was ever asked
    assert f"from={today - datetime.timedelta(days=1)}" in synced(source, today, oai_set="cs:cs:LG")[1][0]


def test_sync_fetches_what_is_new_and_goes_on_where_it_stopped(database, source):
    today = datetime.datetime.now(datetime.UTC).date()
    where = {
        "hub": source.address,
        "oai": f"{source.address}/oai",
        "api": f"{source.address}/api/query",
        "days": 2,
        "fetcher": Clocked(source),
    }
    with feed_database.writing() as connection:  # of the catalogue, one abstract is missing
        connection.execute(tables.paper.update().where(tables.paper.c.slug != "embers").values(abstract="There."))
    reports = syncing.sync(**where)
    assert [report.error for report in reports] == [""] * 5
    assert "id_list=2309.13638" in source.requests.pop(3)
    assert papers.get(papers.find("embers").id).abstract == "What 2309.13638 says."
    days = [(today - datetime.timedelta(days=ago)).isoformat() for ago in (2, 1, 0)]
    assert [path.split("&")[0] for path in source.requests[:3]] == [f"/api/daily_papers?date={day}" for day in days]
    assert f"from={days[0]}" in source.requests[3]
    source.requests.clear()
    source.faults = [None] * 4 + [DOWN] * fetch.TRIES  # two days, two answers of arXiv's, and then nothing
    assert syncing.sync(**where)[-1].error
    assert [path.split("&")[0] for path in source.requests[:2]] == [f"/api/daily_papers?date={day}" for day in days[1:]]
    source.requests.clear()
    assert syncing.sync(**where)[-1].error == ""
    assert source.requests[-1] == "/oai?verb=ListRecords&resumptionToken=from-6"
