"""What stays true of any input to the importers, and of merging papers."""

import datetime
import json
import unicodedata

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nullius.errors import UsageError
from nullius.feed import database as feed_database
from nullius.feed import library, merging, papers, tables
from nullius.feed.importers import arxiv, store
from nullius.feed.importers.jsonstream import items
from nullius.feed.importers.records import Record
from nullius.feed.text import clean, key

from .documents import ANY, DOCUMENTS, HF, everything, parsed
from .made import add_papers, paper

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


def told_by_all(number):
    """One paper as five sources tell it, two of them twice, under a title that changed with its second version."""
    arxiv_id, old, day = f"2401.0000{number}", f"On the matter number {number}", datetime.date(2024, 1, number)
    new, next_day = f"{old} indeed", datetime.date(2024, 1, number + 1)
    one = {"source": "arxiv", "arxiv_id": arxiv_id, "published": day, "days": (day,), "primary_category": "cs.CL"}
    page = {"source": "page", "published": day, "days": (next_day,)}
    return [
        Record(**one, external_id=f"{arxiv_id}v1", version=1, title=old, abstract="One.", authors=("A", "B"), categories=("cs.CL",)),
        Record(**one, external_id=f"{arxiv_id}v2", version=2, title=new, abstract="Two.", authors=("A", "C"), doi=f"10.1000/{number}"),
        Record(
            source="huggingface",
            external_id=arxiv_id,
            arxiv_id=arxiv_id,
            title=old,
            abstract="Hub.",
            days=(next_day,),
            signals={"hf_upvotes": 3},
        ),
        Record(source="bibtex", external_id=f"10.1000/{number}", doi=f"10.1000/{number}", title=new, journal_ref="J"),
        Record(**page, external_id=key(old), title=old, abstract="Page.", n_authors=2, signals={"unknown_count": 4}),
        Record(**page, external_id=key(new), title=new, abstract="Page.", n_authors=3),
    ]


@given(st.permutations(told_by_all(1) + told_by_all(2)), st.sampled_from([1, 3, 12]))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whoever_tells_of_a_paper_first_it_is_one_paper(database, records, size):
    with feed_database.writing() as connection:
        connection.execute(tables.paper.update().where(tables.paper.c.slug.is_(None)).values(merged_into=None))
        connection.execute(tables.paper.delete().where(tables.paper.c.slug.is_(None)))
        for start in range(0, len(records), size):
            store.write(connection, records[start : start + size])
    found = {name: own for name, own in everything().items() if own["arxiv_id"] and own["arxiv_id"].startswith("2401.0000")}
    with feed_database.reading() as connection:
        others = sa.and_(tables.paper.c.slug.is_(None), tables.paper.c.merged_into.is_(None), tables.paper.c.arxiv_id.is_(None))
        assert connection.execute(sa.select(tables.paper.c.title).where(others)).all() == []
    for number in (1, 2):
        own = found[f"2401.0000{number}"]
        assert (own["title"], own["abstract"], own["doi"]) == (f"On the matter number {number} indeed", "Two.", f"10.1000/{number}")
        assert len(own["paper_source"]) == 6
        assert {kind for kind, _ in own["signal"]} == {"hf_upvotes", "unknown_count"}
        assert len(own["paper_day"]) == 3
    assert found == test_whoever_tells_of_a_paper_first_it_is_one_paper.__dict__.setdefault("first", found)


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


@given(st.text(max_size=60) | st.text(st.characters(max_codepoint=127), max_size=60))
@settings(deadline=None)
def test_keys_are_letters_and_digits_of_the_decomposed_text(text):
    decomposed = unicodedata.normalize("NFKD", text).casefold()
    assert key(text) == "".join(character for character in decomposed if character.isalnum())
    kept = [c for c in text if c in "\t\n\r\x85" or unicodedata.category(c) not in ("Cc", "Cs")]
    assert clean(text) == "".join(kept)
