"""The saved Daily Papers page, as text and as HTML, with the awkwardness of a real one."""

import datetime
import json
import random
import string

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from nullius.feed import catalogue, library, listings, papers, tables
from nullius.feed import database as feed_database
from nullius.feed.importers import running, sources, store
from nullius.feed.importers.decode import Document
from nullius.feed.importers.records import Record

from .documents import ANY, everything, parsed
from .made import add_papers, paper
from .source_server import atom, daily, entry

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


HEADINGS = [
    "by\n\nAK and the research community",
    "by\nAK\nand the research community",
    "byAKand the research community",
    "by AK, and others",
]


def catalogue_page(heading, menu=""):
    """The real 53 titles, "1 authors" among them, in the order of their slugs; four footers are missing. Returns what is meant, too."""
    parts, meant = [f"{menu}{FURNITURE.replace('by AK and the research community', heading).strip()}"], []
    for i, one in enumerate(sorted(catalogue.papers(), key=lambda one: one.slug)):
        day = datetime.date.fromisoformat(str(one.date))
        about = catalogue.abouts()[one.slug]
        if i % 5 == 0:
            about = about.replace(". ", ".\n\n", 1)
        footer = None if i in (7, 20, 41, 52) else (one.authors, day, i if i % 3 == 0 else None)
        parts.append(f"{one.title}\n\n{about}")
        meant.append((one.title, about, footer))
        if footer:
            year = "" if day.year == 2025 else f", {day.year}"
            parts[-1] += f"\n\n• {one.authors} authors\n·\n{MONTHS[day.month - 1]} {day.day}{year}{f' {i}' if i % 3 == 0 else ''}"
    return "\n\n".join(parts), meant


@pytest.mark.parametrize("heading", HEADINGS)
@pytest.mark.parametrize("menu", ["", "Hugging Face\n\nModels\n\nDatasets\n\nLog In\n\n"])
def test_the_catalogue_as_a_page_of_its_day(heading, menu):
    text, meant = catalogue_page(heading, menu)
    assert "1 authors" in text
    records, rejects, error = parsed(text)
    assert (as_told(records), rejects, error) == (meant, [], "")


def test_the_catalogues_own_page_brings_no_new_paper(database):
    report = running.import_document(Document.of(catalogue_page(HEADINGS[0])[0].encode()))
    assert (report.imported, report.new) == (53, 0)
    assert papers.get(papers.find("agent-channels").id).card.signals == {}
    assert papers.get(papers.find("bilingual-orthography").id).card.signals == {"unknown_count": 3}


def test_a_name_and_a_number_are_a_title_and_no_date():
    text = "Daily Papers\n\nNovember 4\n\nLlama 2\n\nAn abstract.\n\n• 2 authors\n·\nSept. 13 5\n\nMars 12\n\nAnother.\n\n• 1 authors\n·\nOct 3, 2024"
    records, rejects, _ = parsed(text)
    assert [(record.title, record.published.isoformat(), dict(record.signals)) for record in records] == [
        ("Llama 2", "2025-09-13", {"unknown_count": 5}),
        ("Mars 12", "2024-10-03", {}),
    ]
    assert (rejects, records[0].days) == ([], (datetime.date(2025, 11, 4),))


def test_a_line_of_its_own_is_no_paper():
    text = "Daily Papers\n\nNov 4\n\nA title\n\nAn abstract.\n\n• 2 authors\n·\nOct 13, 2024\n\nTerms of use"
    records, rejects, _ = parsed(text)
    assert [record.title for record in records] == ["A title"]
    assert [(reject.position, reject.head) for reject in rejects] == [("line 13", "Terms of use")]


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


@given(st.dates(datetime.date(2005, 1, 1), datetime.date(2026, 3, 1)), st.lists(st.tuples(st.integers(0, 900), st.booleans()), max_size=6))
@ANY
def test_the_year_of_a_page_is_told_by_the_years_that_it_prints(day, ages):
    """Dates of the page's own year print none. Nor need those of the year before that would lie after the page's day if they were of its year."""
    entries = [("An older one", "An abstract.", (2, datetime.date(day.year - 1, 1, 1), True, None))]
    for i, (age, silent) in enumerate(ages):
        date = day - datetime.timedelta(days=age)
        could_be_later = date.year == day.year - 1 and (date.month, date.day) > (day.month, day.day)
        entries.append((f"Entry {i}", "An abstract.", (3, date, date.year != day.year and not (silent and could_be_later), i)))
    records, rejects, error = parsed(rendered(entries, day))
    assert (as_told(records), rejects, error) == (as_meant(entries), [], "")
    assert [record.date_inferred for record in records] == [not footer[2] for _, _, footer in entries]
    assert {record.days for record in records} == {(day,)}
