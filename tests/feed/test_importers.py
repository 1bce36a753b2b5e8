"""Importing documents: every format, everything that can be wrong with one, and what stays true of any."""

import datetime
import gzip
import io
import json
import random
import string

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nullius.errors import NulliusError, UsageError
from nullius.feed import database as feed_database
from nullius.feed import library, listings, merging, papers, tables
from nullius.feed.importers import arxiv, running, sources, store
from nullius.feed.importers.decode import Document
from nullius.feed.importers.jsonstream import items
from nullius.feed.importers.records import Record
from nullius.feed.text import key

from .made import add_papers, paper
from .source_server import atom, daily, entry, oai

ANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def parsed(content, day=None):
    """Records, rejects and the error, if any, of a document."""
    records, rejects, error = [], [], ""
    try:
        for found in sources.parse(Document.of(content if isinstance(content, bytes) else content.encode()), day):
            (records if isinstance(found, Record) else rejects).append(found)
    except NulliusError as problem:
        error = str(problem)
        assert "\n" not in error
    return records, rejects, error


def everything():
    """What the database holds of papers, without moments and numbers."""
    own = (
        "slug",
        "arxiv_id",
        "doi",
        "title",
        "abstract",
        "published",
        "n_authors",
        "version",
        "withdrawn",
        "heat",
        "their_summary",
        "primary_category",
    )
    with feed_database.reading() as connection:
        rows = [dict(row) for row in connection.execute(sa.select(tables.paper)).mappings()]
        names = {row["id"]: row["arxiv_id"] or row["title_key"] for row in rows}
        found = {names[row["id"]]: {name: row[name] for name in own} for row in rows}
        for table, columns in (
            (tables.paper_author, ("position", "name")),
            (tables.paper_category, ("category",)),
            (tables.paper_day, ("day", "source")),
            (tables.paper_source, ("source", "external_id", "payload_sha256")),
            (tables.signal, ("kind", "value")),
        ):
            for row in connection.execute(sa.select(table)).mappings():
                found[names[row["paper"]]].setdefault(table.name, set()).add(tuple(row[name] for name in columns))
        return found


HF = json.dumps([daily(entry(number)) for number in range(1, 6)])
DOCUMENTS = {
    "json": HF,
    "atom": atom([entry(number) for number in range(1, 6)], 5, 0),
    "oai": oai([entry(number) for number in range(1, 6)], ""),
    "bibtex": "".join(f"@article{{k{number}, title={{Paper number {number}}}, author={{A B}}, year=2024}}\n" for number in range(1, 6)),
}


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_importing_twice_is_importing_once(database, kind):
    document = DOCUMENTS[kind].encode()
    first = running.import_document(Document.of(document))
    assert (first.imported, first.new, first.rejected, first.error) == (5, 5, 0, "")
    before = everything()
    second = running.import_document(Document.of(document))
    assert (second.imported, second.new, second.changed) == (5, 0, 0)
    assert everything() == before


@pytest.mark.parametrize("kind", DOCUMENTS)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252", "utf-8"])
def test_encodings_marks_and_line_ends(kind, encoding):
    text = (
        DOCUMENTS[kind]
        .replace("Paper number 2", "Größe – “2”")
        .replace("\\u00f6", "ö")
        .replace("\n", "\r\n")
        .replace(' encoding="UTF-8"', "")
    )
    document = Document.of(text.encode(encoding))
    found = [one for one in sources.parse(document) if isinstance(one, Record)]
    assert len(found) == 5
    assert found[1].title == "Größe – “2”"
    assert bool(document.warnings) == (encoding == "cp1252")


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_nuls_and_lone_surrogates_are_dropped(kind):
    text = DOCUMENTS[kind].replace("number 3", "num\0ber 3")
    records, rejects, error = parsed(text.replace("number 4", "number\\ud800 4") if kind == "json" else text)
    assert (len(records), rejects, error) == (5, [], "")
    assert records[2].title == "Paper number 3"
    assert records[3].title == "Paper number 4"


def test_bytes_that_are_no_utf8_in_the_middle(sqlite):
    content = HF.encode().replace(b"Paper number 3", b"Caf\xe9 number 3")
    report = running.import_document(Document.of(content))
    assert report.imported == 5
    assert papers.get(papers.find("2401.00003").id).card.title == "Café number 3"
    assert "Windows-1252" in report.warnings[0]


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_whole_records_before_a_break_are_kept(kind):
    text = DOCUMENTS[kind]
    for cut in range(0, len(text) - 1, 97):
        records, rejects, error = parsed(text[:cut])
        assert len(records) <= 5
        assert kind == "bibtex" or error, cut
        assert [record.title for record in records] == [f"Paper number {number}" for number in range(1, len(records) + 1)]
        assert kind == "bibtex" or not rejects
    records, _, error = parsed(text[: text.index("Paper number 4")])
    assert len(records) == 3


BAD = [
    ({"id": "nonsense"}, "no arXiv id"),
    ({"id": None}, "no id"),
    ({"title": ""}, "no title"),
    ({"title": 7}, "title is int"),
    ({"publishedAt": "2024-02-31T00:00:00Z"}, "is no day"),
    ({"publishedAt": "99999-01-01"}, "is no day"),
    ({"upvotes": "many"}, "is no count"),
    ({"upvotes": -1}, "is no count"),
    ({"authors": "A and B"}, "not a list"),
    ({"summary": ["x"]}, "abstract is list"),
]


@pytest.mark.parametrize(("change", "reason"), BAD)
def test_one_bad_record_among_good_ones(database, change, reason):
    listed = json.loads(HF)
    listed[2]["paper"] |= change
    if "title" in change or "summary" in change:
        listed[2] |= dict.fromkeys(change, None)
    report = running.import_document(Document.of(json.dumps(listed).encode()))
    assert (report.imported, report.rejected, report.error) == (4, 1, "")
    (reject,) = running.rejects_of(report.id)
    assert reject["position"] == "record 3"
    assert reason in reject["reason"]
    assert 0 < len(reject["head"]) <= 200
    assert report.summary.startswith("4 imported, 1 rejected")


def test_a_deleted_record_marks_a_known_paper_and_no_other(database):
    add_papers(paper(1), paper(2))
    listed = [entry(1, deleted=True), entry(9, deleted=True)]
    for _ in range(2):
        running.import_document(Document.of(oai(listed, "").encode()))
        assert papers.get(papers.find("2401.00001").id).card.withdrawn
        assert not papers.get(papers.find("2401.00002").id).card.withdrawn
        with pytest.raises(papers.UnknownPaper):
            papers.find("2401.00009")


@pytest.mark.parametrize(
    "words", ["This paper has been withdrawn by the author", "Withdrawn due to an error", "This submission was withdrawn"]
)
def test_withdrawn_papers_say_so(words):
    (record,), _, _ = parsed(atom([entry(1, comment=words)], 1, 0))
    assert record.withdrawn
    (record,), _, _ = parsed(atom([entry(1, comment="We study withdrawn papers")], 1, 0))
    assert not record.withdrawn


def test_the_newest_version_wins_in_any_order_and_empty_overwrites_nothing(database):
    versions = [
        entry(1, version=number, title=f"Title {number}", abstract=f"Abstract {number}." if number != 3 else "") for number in (1, 2, 3)
    ]
    found = []
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        with feed_database.writing() as connection:
            connection.execute(tables.paper.delete().where(tables.paper.c.arxiv_id == "2401.00001"))
        for i in order:
            running.import_document(Document.of(atom([versions[i]], 1, 0).encode()))
        known = papers.get(papers.find("2401.00001").id)
        found.append((known.raw_title, known.version))
        assert known.abstract
        assert {origin.external_id for origin in known.origins} == {f"2401.00001v{number}" for number in (1, 2, 3)}
    assert found == [("Title 3", 3)] * 3


def test_markup_is_stored_as_it_came(sqlite):
    title = '<script>alert(1)</script> & $O(n^2)$ by Schr\\"odinger'
    running.import_document(Document.of(atom([entry(1, title=title)], 1, 0).encode()))
    found = papers.get(papers.find("2401.00001").id)
    assert found.raw_title == title
    assert found.card.title == "<script>alert(1)</script> & O(n²) by Schrödinger"


def test_addresses_are_http_or_nothing(sqlite):
    listed = json.loads(HF)
    listed[0]["paper"]["githubRepo"] = "javascript:alert(1)"
    running.import_document(Document.of(json.dumps(listed).encode()))
    assert papers.get(papers.find("2401.00001").id).card.code is None
    assert papers.get(papers.find("2401.00002").id).card.code == "https://github.com/x/y"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n\t", "is empty"),
        (b"hello world, this is prose", "no list of papers"),
        (b"<!doctype html><title>502 Bad Gateway</title><p>oops", "502 Bad Gateway"),
        (b"<rss><channel></channel></rss>", "neither an Atom feed"),
        (b'<!DOCTYPE f [<!ENTITY a "b">]><feed><entry>&a;</entry></feed>', "entities"),
        (b'<!DOCTYPE f SYSTEM "file:///etc/passwd"><feed/>', "entities"),
        (b"[" * 100_000, "breaks off"),
        (gzip.compress(b"x" * 300_000_000, 1), "larger than 200 MB unpacked"),
        (gzip.compress(HF.encode())[:-200], "damaged gzip"),
    ],
    ids=str,
)
def test_what_is_not_a_list_of_papers_is_said_in_one_line(content, said):
    records, _, error = parsed(content[:20] if content[:3] == b"x" else content)
    assert records == []
    assert said in error


def test_gzip_is_unpacked():
    assert len(parsed(gzip.compress(HF.encode()))[0]) == 5


def test_files_and_standard_input(sqlite, tmp_path):
    path = tmp_path / "papers.json"
    path.write_text(HF, "utf-8")
    assert running.import_from(str(path)).new == 5
    assert running.import_from("-", stdin=io.BytesIO(HF.encode())).imported == 5
    with pytest.raises(UsageError, match="there is no file"):
        running.import_from(str(tmp_path / "none"))
    assert [row["state"] for row in running.imports()] == ["done", "done"]


def test_a_killed_import_goes_on_behind_its_last_batch(sqlite, tmp_path, monkeypatch):
    path = tmp_path / "many.json"
    path.write_text(json.dumps([daily(entry(number)) for number in range(1, 1201)]), "utf-8")
    written = store.write

    def killed(connection, batch, today):
        if killed.batches == 2:
            raise KeyboardInterrupt
        killed.batches += 1
        return written(connection, batch, today)

    killed.batches = 0
    monkeypatch.setattr(store, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        running.import_from(str(path))
    monkeypatch.setattr(store, "write", written)
    report = running.import_from(str(path))
    assert (report.imported, report.new) == (200, 200)


# --- BibTeX ----------------------------------------------------------------------------------------------------------------------------------

BIBTEX = r"""
@string{nips = "NeurIPS"}
@article{one, title={Gated {Linear} {A}ttention}, author={Yang, Songlin and {The Team} and others}, year=2023, month=dec, eprint={2312.06635v2},
  archivePrefix={arXiv}, primaryClass={cs.LG}}
@article{one, title={The same key again}}
@misc{open, title={Never closed, year=2023
@inproceedings{two, title={Schr{\"o}dinger at $n^2$}, author={Ada Lovelace}, date={2021-05-06}, booktitle=nips, doi={https://doi.org/10.1000/XYZ.}}
@misc{three, title={By its address}, url={https://arxiv.org/abs/2310.15910}, year={2023}}
@misc{four, title={In the journal}, journal={arXiv preprint arXiv:2501.00001}}
@misc{five, year={2020}}
@misc{six, title={An impossible day}, date={2021-02-31}}
"""


def test_bibtex_entries_and_what_is_wrong_with_others():
    records, rejects, error = parsed(BIBTEX)
    assert error == ""
    one, two, three, four = records
    assert (one.title, one.arxiv_id, one.version, one.primary_category) == ("Gated Linear Attention", "2312.06635", 2, "cs.LG")
    assert one.authors == ("Songlin Yang", "The Team")
    assert (one.published, one.date_inferred) == (datetime.date(2023, 12, 1), True)
    assert (two.title, two.doi, two.journal_ref) == (r"Schr{\"o}dinger at $n^2$", "10.1000/xyz", "NeurIPS")
    assert (two.published, two.date_inferred) == (datetime.date(2021, 5, 6), False)
    assert (three.arxiv_id, four.arxiv_id) == ("2310.15910", "2501.00001")
    assert [(reject.position, reject.reason.split("'")[0]) for reject in rejects] == [
        ("line 5", "the key "),
        ("line 6", "the entry is not closed or not well formed"),
        ("line 10", "no title"),
        ("line 11", "date "),
    ]


def test_a_long_bibliography_is_read_in_parts_with_its_lines_and_keys():
    lines = [
        "@string{j = {Journal}}",
        *(f"@misc{{k{number}, title={{T {number}}}, journal=j}}" for number in range(450)),
        "@misc{k3, title={Again}}",
    ]
    records, rejects, _ = parsed("\n".join(lines))
    assert [record.title for record in records] == [f"T {number}" for number in range(450)]
    assert records[-1].journal_ref == "Journal"
    assert [(reject.position, reject.reason) for reject in rejects] == [("line 452", "the key 'k3' was used before")]


# --- the saved page --------------------------------------------------------------------------------------------------------------------------

MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
FURNITURE = "new\n\nGet trending papers in your email inbox once a day!\n\nSubscribe\n\nDaily Papers\n\nby AK and the research community\n\nNov 4\n\n"


def rendered(entries, day=datetime.date(2025, 11, 4)):
    """A page of text as a browser copies it. entries: (title, abstract, footer), a footer is (authors, date, print the year, count) or None."""
    parts = []
    for title, abstract, footer in entries:
        parts.append(f"{title}\n\n{abstract}")
        if footer is not None:
            authors, date, year, count = footer
            when = f"{MONTHS[date.month - 1]} {date.day}{f', {date.year}' if year else ''}{f' {count}' if count is not None else ''}"
            parts[-1] += f"\n\n• {authors} authors\n·\n{when}"
    head = FURNITURE.replace("Nov 4", f"{MONTHS[day.month - 1]} {day.day}")
    return head + "\n\n".join(parts)


def awkward_page(seed=0):
    """53 entries: 49 footers, 19 counts, 24 dates without year, 4 without footer (the last one too), titles up to 159 characters, one "1 authors"."""
    draw = random.Random(seed)
    words = "models language attention of the probing heads in which circuits scaling memory retrieval with for agents neurons tokens we"
    words = words.split(" ")

    def sentence(n):
        return " ".join(draw.choice(words) for _ in range(n))

    bare, counted, yearless = {7, 20, 41, 52}, set(draw.sample([i for i in range(53) if i not in {7, 20, 41, 52}], 19)), set()
    yearless = set(draw.sample([i for i in range(53) if i not in bare], 24))
    entries = []
    for i in range(53):
        title = f"Entry {i}: {sentence(6).title()}"
        title = title if i != 30 else (f"{title} {sentence(40)}")[:159].strip()
        title += "?" if i in (9, 21) else ""
        abstract = ". ".join(sentence(14).capitalize() for _ in range(4)) + "."
        if i in (5, 41):
            abstract += "\n\n" + ". ".join(sentence(12).capitalize() for _ in range(3)) + "."
        date = (
            datetime.date(2025, draw.randint(1, 10), draw.randint(1, 28))
            if i in yearless
            else datetime.date(draw.choice([2023, 2024]), 5, 6)
        )
        if i == 0:
            date = datetime.date(2024, 2, 28)
            yearless.discard(0)
        count = draw.randint(1, 90) if i in counted else None
        entries.append((title, abstract, None if i in bare else (1 if i == 13 else draw.randint(2, 40), date, i not in yearless, count)))
    return entries


def as_told(records):
    return [
        (one.title, one.abstract, None if one.n_authors is None else (one.n_authors, one.published, one.signals.get("unknown_count")))
        for one in records
    ]


def as_meant(entries):
    return [(title, abstract, footer and (footer[0], footer[1], footer[3])) for title, abstract, footer in entries]


@pytest.mark.parametrize("seed", range(4))
def test_an_awkward_page_of_53_entries(seed):
    entries = awkward_page(seed)
    text = rendered(entries)
    assert not text.endswith("\n")
    records, rejects, error = parsed(text)
    assert (rejects, error) == ([], "")
    assert as_told(records) == as_meant(entries)
    assert {one.days for one in records} == {(datetime.date(2025, 11, 4),)}
    footers = [footer for _, _, footer in entries if footer]
    assert sum(one.date_inferred for one in records) == sum(not footer[2] for footer in footers)
    given = parsed(text, datetime.date(2025, 11, 4))[0]
    assert not any(one.date_inferred for one in given)
    assert as_told(given) == as_meant(entries)


def test_the_page_is_imported_once_and_matched_by_title(database):
    text = rendered(awkward_page()).encode()
    report = running.import_document(Document.of(text))
    assert (report.imported, report.new) == (53, 53)
    before = everything()
    assert running.import_document(Document.of(text)).changed == 0
    assert everything() == before
    listing = listings.day(datetime.date(2025, 11, 4), limit=200).listing
    assert listing.total == 2 * 53
    assert sum("unknown_count" in card.signals for card in listing.cards) == 19
    assert not any("hf_upvotes" in card.signals for card in listing.cards)


def test_a_later_arxiv_record_fills_the_id_in_and_votes_stay(database):
    entries = awkward_page()
    running.import_document(Document.of(rendered(entries).encode()))
    title, _, footer = entries[1]
    with feed_database.reading() as connection:
        number = connection.execute(sa.select(tables.paper.c.id).where(tables.paper.c.title == title)).scalar()
    library.vote("", number)
    record = entry(77, title=title.upper(), abstract="From arXiv.", day=footer[1].isoformat())
    with feed_database.writing() as connection:
        (found,) = sources.parse(Document.of(atom([record], 1, 0).encode()))
        store.write(connection, [found])
    assert papers.find("2401.00077").id == number
    known = papers.get(number)
    assert (known.card.votes, known.raw_title, known.abstract) == (1, title.upper(), "From arXiv.")
    assert known.card.n_authors == 2


def test_a_record_of_another_time_under_the_same_title_is_another_paper(database):
    (first,) = add_papers(paper(1, title="A Survey", published=datetime.date(2019, 1, 1)))
    with feed_database.writing() as connection:
        record = Record(source="page", external_id="asurvey", title="A Survey", published=datetime.date(2024, 1, 1))
        store.write(connection, [record])
        store.write(connection, [record])
        rows = connection.execute(sa.select(tables.paper.c.id).where(tables.paper.c.title_key == "asurvey")).scalars().all()
    assert len(rows) == 2
    assert first in rows


@pytest.mark.parametrize(
    ("page_day", "written", "expected"),
    [
        ("Jan 3", "Dec 30", "2024-12-30"),
        ("Jan 3", "Jan 2", "2025-01-02"),
        ("Nov 4", "Oct 13", "2025-10-13"),
        ("Nov 4", "Nov 5", "2024-11-05"),
    ],
)
def test_a_date_without_year_is_of_the_pages_year_or_the_one_before(page_day, written, expected):
    text = f"Daily Papers\n\n{page_day}\n\nOld\n\nAn abstract.\n\n• 2 authors\n·\nFeb 28, 2024\n\nNew\n\nAn abstract.\n\n• 2 authors\n·\n{written} 7"
    (_, record), _, _ = parsed(text)
    assert record.published.isoformat() == expected
    assert record.signals == {"unknown_count": 7}


def test_an_impossible_date_is_a_reject():
    text = "Daily Papers\n\nA\n\nAn abstract.\n\n• 2 authors\n·\nFeb 31, 2024\n\nB\n\nAn abstract.\n\n• 2 authors\n·\nFeb 28, 2024"
    records, rejects, _ = parsed(text)
    assert [record.title for record in records] == ["B"]
    assert "is no day" in rejects[0].reason


def article(title, abstract, footer):
    """An entry of a page in HTML without its data."""
    html = f"<article><h3><a href='/x'>{title}</a></h3><p>{abstract.replace(chr(10) * 2, '</p><p>')}</p>"
    if footer:
        date = f"{MONTHS[footer[1].month - 1]} {footer[1].day}, {footer[1].year}"
        html += f"<ul><li>•<span> {footer[0]} authors</span></li></ul><div>·</div><time>{date}</time>"
    return f"{html}</article>"


def test_a_saved_html_page_by_its_data_and_by_its_text():
    props = json.dumps({"date": "2025-11-04", "dailyPapers": [daily(entry(number)) for number in (1, 2)]})
    escaped = props.replace("&", "&amp;").replace('"', "&quot;")
    html = f'<!doctype html><html><body><div class="x" data-target="DailyPapers" data-props="{escaped}"></div></body></html>'
    records, _, error = parsed(html)
    assert ([record.arxiv_id for record in records], error) == (["2401.00001", "2401.00002"], "")
    articles = "".join(article(*entry) for entry in awkward_page())
    html = "<html><head><title>Daily Papers</title><script>var x = 1</script></head><body><h1>Daily Papers</h1><div>Nov 4</div>"
    html += f"{articles}</body></html>"
    records, _, error = parsed(html)
    assert error == ""
    assert [record.title for record in records] == [title for title, _, _ in awkward_page()]
    assert [record.n_authors for record in records] == [footer and footer[0] for _, _, footer in awkward_page()]


# --- what stays true of any input --------------------------------------------------------------------------------------------------------------

SENTENCE = st.lists(st.text(string.ascii_letters, min_size=1, max_size=9), min_size=30, max_size=40).map(
    lambda words: " ".join(words) + "."
)
TITLE = st.lists(st.text(string.ascii_letters, min_size=2, max_size=9), min_size=2, max_size=9).map(lambda words: "T " + " ".join(words))
LATELY = st.dates(datetime.date(2025, 1, 1), datetime.date(2025, 11, 4))
EARLIER = st.dates(datetime.date(2020, 1, 1), datetime.date(2024, 12, 31))
FOOTER = st.tuples(st.integers(1, 99), LATELY | EARLIER, st.booleans(), st.none() | st.integers(0, 999))


@given(st.lists(st.tuples(TITLE, SENTENCE, st.none() | FOOTER), min_size=1, max_size=6))
@ANY
def test_rendering_and_parsing_a_page_gives_it_back(entries):
    entries = [(t, a, f and (f[0], f[1], f[2] or f[1].year != 2025, f[3])) for t, a, f in entries]
    records, rejects, error = parsed(rendered(entries), datetime.date(2025, 11, 4))
    assert (rejects, error) == ([], "")
    assert as_told(records) == as_meant(entries)


FRAGMENTS = [
    HF[:300],
    "[{",
    "}]",
    '"paper"',
    "<feed>",
    "<entry>",
    "</entry>",
    "<OAI-PMH>",
    "<record>",
    "@article{",
    "title={x}",
    "}",
    "• 3 authors\n",
    "·\n",
]
FRAGMENTS += [
    "Oct 13 2\n",
    "Daily Papers\n\n",
    "<html>",
    '<div data-target="DailyPapers" data-props="{}">',
    "\x00",
    "\ufeff",
    "A title\n\n",
    "\\",
]


@given(
    st.binary(max_size=400)
    | st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=20), max_size=12).map(
        lambda parts: "".join(parts).encode("utf-8", "surrogatepass")
    )
)
@settings(max_examples=150, deadline=None)
def test_any_bytes_give_papers_rejects_or_one_line(content):
    for record in parsed(content)[0]:
        assert record.title or record.withdrawn
        assert all(len(name) > 0 for name in record.authors)


@given(st.randoms(use_true_random=False), st.sampled_from(sorted(DOCUMENTS)), st.integers(1, 8))
@ANY
def test_any_damage_to_a_good_document_gives_papers_rejects_or_one_line(draw, kind, times):
    content = bytearray(DOCUMENTS[kind].encode())
    for _ in range(times):
        at = draw.randrange(len(content))
        what = draw.randrange(3)
        if what == 0:
            content[at] = draw.randrange(256)
        elif what == 1:
            del content[at : at + draw.randrange(1, 40)]
        else:
            content[at:at] = bytes(draw.randrange(256) for _ in range(draw.randrange(1, 20)))
    records, _, _ = parsed(bytes(content))
    assert len(records) <= 12


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["paper", "id", "title", "authors", "publishedAt", "name", "hidden", "upvotes"]), inner, max_size=4
            )
        ),
        max_leaves=12,
    )
)
@settings(max_examples=150, deadline=None)
def test_any_json_gives_papers_rejects_or_one_line(value):
    parsed(json.dumps(value))


@given(
    st.lists(st.integers() | st.text(max_size=5) | st.dictionaries(st.text(max_size=3), st.integers(), max_size=3), max_size=8),
    st.integers(1, 9),
    st.integers(0, 3),
)
@settings(deadline=None)
def test_the_stream_gives_the_items_of_the_list_however_it_is_cut(values, size, indent):
    text = json.dumps(values, indent=indent or None)
    assert list(items(iter([text[i : i + size] for i in range(0, len(text), size)]), "x")) == values


@given(st.permutations(range(8)))
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_order_of_records_does_not_matter(sqlite, order):
    records = [
        paper(number % 5, version=number // 5 + 1, title=f"Paper {number % 5}", abstract=f"Version {number // 5}.") for number in range(8)
    ]
    for numbers in (range(8), order):
        with feed_database.writing() as connection:
            connection.execute(tables.paper.delete().where(tables.paper.c.slug.is_(None)))
            store.write(connection, [records[i] for i in numbers])
        found = everything()
        assert found == test_the_order_of_records_does_not_matter.__dict__.setdefault("first", found)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=30), st.integers(1, 7))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_batches_of_any_size_come_to_the_same(sqlite, numbers, size):
    records = [paper(number, title=f"Paper {number}", authors=("A",), days=(datetime.date(2024, 1, number),)) for number in numbers]
    found = []
    for step in (size, len(records)):
        with feed_database.writing() as connection:
            connection.execute(tables.paper.delete().where(tables.paper.c.slug.is_(None)))
            for start in range(0, len(records), step):
                store.write(connection, records[start : start + step])
        found.append(everything())
    assert found[0] == found[1]


# --- merging -----------------------------------------------------------------------------------------------------------------------------------


def test_merging_keeps_votes_saves_and_names(database):
    first, second = add_papers(paper(1, authors=("A",)), paper(2))
    with feed_database.writing() as connection:
        connection.execute(
            tables.paper.update().where(tables.paper.c.id == second).values(arxiv_id=None, doi="10.1000/x", abstract="Kept.")
        )
    for number in (first, second):
        library.vote("", number)
        library.save("", number, note=f"note {number}")
    merging.merge(second, first)
    assert papers.find("10.1000/x") == papers.Found(first, "2401.00001", redirect=True)
    assert papers.find(f"p{second}").id == first
    known = papers.get(first)
    assert (known.card.votes, known.abstract, known.card.authors) == (1, "Kept.", ("A",))
    assert [entry.note for entry in library.saved_papers("")] == [f"note {first}"]
    with pytest.raises(UsageError):
        merging.merge(second, first)


def test_two_papers_are_not_merged(database):
    with pytest.raises(UsageError, match="two papers"):
        merging.merge(*add_papers(paper(1), paper(2)))


def test_a_doi_that_two_rows_share_makes_them_one(database):
    with feed_database.writing() as connection:
        store.write(connection, [Record(source="bibtex", external_id="10.1/x", doi="10.1000/x", title="As printed", journal_ref="J")])
        store.write(connection, [paper(3, title="As on arXiv")])
        store.write(connection, [paper(3, title="As on arXiv", doi="10.1000/x")])
    known = papers.get(papers.find("2401.00003").id)
    assert (known.doi, known.journal_ref) == ("10.1000/x", "J")
    assert papers.find("10.1000/x").id == known.card.id


def test_names_in_arxivs_one_string():
    assert arxiv.names("A. B. (X (Y), Z), C D and E, F G") == ("A. B.", "C D", "E", "F G")
    assert arxiv.names("") == ()


def test_titles_compare_without_their_form():
    assert key("Do LLMs “Feel”? Émotion") == key("DO LLMS FEEL emotion")
