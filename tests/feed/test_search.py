"""Search: the query language, words, words and meaning together where the weights are here, and filters inside them."""

import datetime
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nullius.errors import UsageError
from nullius.feed import catalogue, claims, papers
from nullius.feed import database as feed_database
from nullius.feed.importers import store
from nullius.feed.search import embedding, engine, vectors, weights, words
from nullius.feed.search.query import Filter, parse
from nullius.lab import studies

from .made import add_papers, add_run, paper
from .searching import fill, keys

NAMED = [
    ("who is bound to what", "mixing-mechanisms"),
    ("shift ciphers probability", "embers"),
    ("train adapters while serving", "flexllm"),
    ("Merullo 2310.15910", "factual-recall"),
    ("arXiv:2310.15910v2", "factual-recall"),
    ("id:2310.15910", "factual-recall"),
    ("https://arxiv.org/abs/2310.15910", "factual-recall"),
    ("arxiv.org/pdf/2310.15910v2.pdf", "factual-recall"),
    ("https://huggingface.co/papers/2310.15910", "factual-recall"),
    ("https://doi.org/10.48550/arXiv.2310.15910", "factual-recall"),
    ('"Gated Linear Attention"', "gla"),
    ("gated linear attention", "gla"),
    ("embers", "embers"),
    ("factual-recall", "factual-recall"),
    ("Mission: Impossible Language Models", "impossible-languages"),
    ("finetunes while it serves", "flexllm"),
]


def test_queries_that_must_work_by_words(sqlite, no_weights):
    assert {query: keys(query)[0] for query, _ in NAMED} == dict(NAMED)


@pytest.mark.subject
@pytest.mark.skipif(not weights.here(), reason="the weights of MiniLM are not here (nullius feed index)")
def test_queries_that_must_work_by_words_and_meaning(sqlite):
    embedding.embed()
    assert engine.search("who is bound to what").meaning
    assert {query: keys(query)[0] for query, _ in NAMED} == dict(NAMED)


def test_a_paragraph_of_ours_is_searched_and_shown(sqlite, no_weights):
    about = papers.get(papers.find("gla").id).about
    assert about == catalogue.paper("gla").about
    assert keys(f'"{" ".join(about.split()[5:12])}"') == ["gla"]


def test_odd_queries_find_something_or_nothing(sqlite, no_weights):
    something = ("a", "the of and", "A " * 2500, "author:", "-zebra")
    nothing = ("x" * 5000, "😀", "日本語の文法", '"', "-", ":", '""', "\x00", "\ud800", "author:nobody-at-all")
    for query in something:
        found = engine.search(query, limit=10)
        assert found.total >= len(found.hits) > 0, query
    for query in nothing:
        assert engine.search(query).hits == (), query
    assert "only the first 2,000 characters were read" in engine.search("x" * 5000).messages
    with_letter = {hit.card.key for hit in engine.search("-a", limit=100).hits}
    assert with_letter.isdisjoint(keys("a", limit=100))


def test_japanese_is_found_by_parts_of_what_has_no_spaces(database, no_weights):
    add_papers(paper(1, title="日本語の文法とBERT", abstract="鯨。"), paper(2, title="Whales", abstract="中文语法"))
    assert keys("日本語") == ["2401.00001"]
    assert keys('"文法と"') == ["2401.00001"]
    assert keys("语法")[0] == "2401.00002"
    assert keys('"法文"') == []


def test_a_word_in_no_paper_is_tried_one_letter_away(sqlite, no_weights):
    found = engine.search("atention")
    assert "deconstructing-attention" in [hit.card.key for hit in found.hits]
    assert "one letter away" in " ".join(found.messages)
    assert keys("zzzzz") == []


def test_without_weights_search_goes_by_words_and_says_so(sqlite, no_weights):
    found = engine.search("attention heads")
    assert found.hits
    assert not found.meaning
    assert engine.NO_WEIGHTS in found.messages
    assert {hit.why for hit in found.hits} <= {"words", "known"}


def test_without_vectors_too(sqlite, bag):
    assert engine.NO_VECTORS in engine.search("attention heads").messages


PIECES = ["author:", "cat:x", "-", '"', "after:2024", "day:x", "id:", "has:code", "a", " ", "verdict:fails"]


@given(st.text(max_size=120) | st.lists(st.sampled_from(PIECES)).map("".join))
@settings(deadline=None)
def test_any_text_is_a_query(text):
    query = parse(text)
    assert all(query.words)
    assert all(isinstance(one, Filter) for one in query.filters)
    for one in query.filters:
        assert one not in query.without(one).filters


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("after:2024", "after", datetime.date(2024, 1, 1)),
        ("before:2024", "before", datetime.date(2024, 12, 31)),
        ("before:2024-02", "before", datetime.date(2024, 2, 29)),
        ("day:2025-11-04", "day", datetime.date(2025, 11, 4)),
        ('author:"Ada Lovelace"', "author", "Ada Lovelace"),
        ("runnable:no", "runnable", False),
        ("verdict:out-of-reach", "verdict", "out of reach"),
        ("-cat:cs.CL", "cat", "cs.CL"),
    ],
)
def test_filters_are_read(text, name, value):
    (one,) = parse(text).filters
    assert (one.name, one.value, one.negated) == (name, value, text.startswith("-"))


def test_taking_a_filter_out_leaves_the_others():
    query = parse("-cat:cs.CL whales cat:cs.CL after:2024")
    assert [query.without(one).text for one in query.filters] == [
        "whales cat:cs.CL after:2024",
        "-cat:cs.CL whales after:2024",
        "-cat:cs.CL whales cat:cs.CL",
    ]


@pytest.mark.parametrize(
    "text", ["after:2024-13", "day:2025-02-30", "day:2025-11", "-day:2025", "runnable:perhaps", "verdict:maybe", "has:money", "colour:red"]
)
def test_what_is_no_filter_is_said_and_left_out(text):
    query = parse(f"attention {text}")
    assert query.words == ("attention",)
    assert query.filters == ()
    assert "searched without it" in query.messages[0]


def test_two_endings_with_or_between_them_are_words_and_leave_nothing_out():
    query = parse("-ity or -ness for nonce adjectives")
    assert query.words[:3] == ("ity", "or", "ness")
    assert query.excluded == ()
    assert "endings" in query.messages[0]
    for text in ("adjectives -ity -ness", "adjectives -ity and -ness", "first-order or second-order -ness", '-"a b" or -c'):
        assert parse(text).excluded
        assert parse(text).messages == ()


FILTERED = [
    ("whales", {1, 2, 3}),
    ("whales author:godel", {2}),
    ("whales author:ada", {1, 3}),
    ('whales author:"ada byron"', {3}),
    ("whales cat:cs.CL", {1, 3}),
    ("whales after:2023", {1, 2}),
    ("whales before:2022", {3}),
    ("whales day:2024-03-05", {1}),
    ("whales has:code", {2}),
    ("whales source:arxiv", {1, 2, 3}),
    ("whales source:bibtex", set()),
    ("whales -memory", {1, 3}),
    ('"on whales"', {3}),
    ("author:ada", {1, 3}),
    ("-whales author:ada", set()),
    ("whales runnable:yes", set()),
    ("whales runnable:no", {1, 2, 3}),
    ("whales -runnable:yes", {1, 2, 3}),
    ("whales -runnable:no", set()),
    ("whales -author:ada", {2}),
    ("whales -cat:cs.CL", {2}),
    ("whales -has:code", {1, 3}),
    ("whales -after:2023", {3}),
    ("whales -day:2024-03-05", {2, 3}),
    ("whales -id:2401.00002", {1, 3}),
    ("whales -cat:cs.CL after:2023 -after:2024", {2}),
]


@pytest.mark.parametrize("way", ["words", "both"])
@pytest.mark.parametrize("many", [False, True])
def test_filters_act_inside_words_and_meaning(database, bag, monkeypatch, way, many):
    fill()
    words.open_index().update()
    if way == "both":
        embedding.embed()
    if many:  # as if there were too many papers to score all that pass, or to score any without a look at their signs
        monkeypatch.setattr(engine, "ALIKE", 0)
        monkeypatch.setattr(vectors, "EXACT", 3)
    for query, found in FILTERED:
        result = engine.search(query, by=way)
        assert {int(hit.card.arxiv_id[-1]) for hit in result.hits if hit.card.arxiv_id.startswith("2401.0000")} == found, query
        assert {hit.card.arxiv_id[:8] for hit in result.hits} <= {"2401.000"} or not found or way == "both", query


def test_verdicts_and_subjects_filter(database, no_weights):
    add_run("embers", "a", {"x": "fails"})
    add_run("gla", "a", {"x": "holds"})
    add_run("gla", "b", {"x": "fails"})
    assert set(keys("verdict:fails")) == {"embers", "gla"}
    assert keys("verdict:fails subject:smollm2-135m") == []
    add_run("gla", "smollm2-135m", {"x": "fails"})
    assert keys("verdict:fails subject:smollm2-135m") == ["gla"]
    assert set(keys("verdict:fails subject:a")) == {"embers"}
    assert set(keys("subject:b")) == {"gla"}
    assert keys("attention verdict:fails subject:b") == ["gla"]
    assert set(keys("subject:a -verdict:holds")) == {"embers"}
    assert keys("verdict:fails -subject:a") == []
    add_run("flexllm", "b", {"x": "fails"})
    assert keys("verdict:fails -subject:a") == ["flexllm"]
    assert set(keys("runnable:yes", limit=100)) == set(studies.modules())


def test_instruments_of_claims_filter(sqlite, no_weights):
    study = {"question": "mechanisms", "minutes": 1.0, "subject": "smollm2-135m", "trains_its_own": False, "options": []}
    claim = {"id": "one", "digest": "d" * 16, "wording": "Capitals are remembered by one whale", "rests_on": ["path patching"]}
    with feed_database.writing() as connection:
        claims.write(connection, "factual-recall", "1" * 64, {"study": study, "claims": [claim]})
    assert keys('instrument:"path patching"') == ["factual-recall"]
    assert keys("whale") == ["factual-recall"]  # a claim's wording is searched too


def test_without_hits_it_is_said_which_filter_removed_how_many(sqlite, no_weights):
    found = engine.search("embers before:2020 runnable:yes")
    assert found.hits == ()
    assert found.removed["before:2020"] >= 1
    without = engine.search("embers").total
    assert engine.search("embers before:2010 cat:cs.XX").removed == {"before:2010": without, "cat:cs.XX": without}
    assert engine.search("zzzzz before:2010 cat:cs.XX").removed == {}
    assert found.query.without(found.query.filters[0]).text == "embers runnable:yes"


def test_known_items_come_first_and_at_most_five_by_their_titles(sqlite, no_weights):
    add_papers(*(paper(number, title=f"Whales and {name}", abstract="Whales. " * 3) for number, name in enumerate("abcdefgh")))
    found = engine.search("whales")
    assert [hit.why for hit in found.hits] == ["known"] * 5 + ["words"] * 3
    assert engine.search("Whales and c").hits[0].card.title == "Whales and c"
    add_papers(paper(20, title="Do they “feel”?"), *(paper(number, title=f"Feel {number}", abstract="Feel.") for number in range(21, 29)))
    assert engine.search('Do they "feel"?').hits[0].card.title == "Do they “feel”?"  # a title, quotation marks and all


def test_pages_and_their_cursor(sqlite, no_weights):
    whole = keys("language models", limit=200)
    paged, cursor = [], ""
    while True:
        found = engine.search("language models", limit=7, cursor=cursor)
        paged += [hit.card.key for hit in found.hits]
        cursor = found.cursor
        if not cursor:
            break
    assert paged == whole
    with pytest.raises(UsageError):
        engine.search("x", cursor="nowhere")


def test_the_index_follows_the_database(database, no_weights):
    assert "2401.00001" not in keys("whales")
    fill()
    assert len(keys("whales")) == 3
    with feed_database.writing() as connection:
        store.write(connection, [paper(1, version=2, title="Sharks")])
    assert len(keys("whales")) == 2
    assert keys("sharks") == ["2401.00001"]
    words.throw_away()
    assert keys("sharks") == ["2401.00001"]


def test_an_index_that_another_process_rebuilt_is_opened_again(sqlite, no_weights):
    assert keys("embers")
    code = "from nullius.feed.search import words; words.throw_away(); words.open_index().update()"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert keys("embers")[0] == "embers"


def test_a_damaged_index_is_built_anew(sqlite, no_weights):
    assert keys("embers")
    words._open.cache_clear()
    (words.open_index().where / "meta.json").write_text("{", "utf-8")
    words._open.cache_clear()
    assert keys("embers")[0] == "embers"


def test_results_are_plain_data(sqlite, no_weights):
    data = engine.search("embers after:2020").to_dict()
    assert data["hits"][0]["slug"] == "embers"
    assert data["hits"][0]["published"] == "2023-09-24"
    assert data["filters"] == [{"name": "after", "value": "2020-01-01", "text": "after:2020"}]
