"""Trending: the heat that is stored orders papers exactly as the sum over all events does, at any time."""

import datetime
import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nullius.feed import database as feed_database
from nullius.feed import heat, library, listings, papers
from nullius.feed.importers import store
from nullius.feed.importers.records import Record

from .made import add_papers, add_run, paper

EVENTS = st.lists(st.tuples(st.floats(0, 20_000), st.sampled_from([0.2, 0.6, 1.0, 2.0])), max_size=8)


def brute(events, at):
    return sum(weight * 2 ** ((moment - at) / heat.HALF_LIFE_HOURS) for moment, weight in events)


@given(st.lists(EVENTS, min_size=2, max_size=6), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_by_heat_is_the_order_by_score_and_does_not_depend_on_the_order_of_events(all_events, random):
    at = max((moment for events in all_events for moment, _ in events), default=0.0)
    heats = []
    for events in all_events:
        value = shuffled = None
        for moment, weight in events:
            value = heat.combine(value, weight, moment)
        for moment, weight in random.sample(events, len(events)):
            shuffled = heat.combine(shuffled, weight, moment)
        assert (value is None) == (not events)
        if value is not None:
            assert math.isclose(value, shuffled, rel_tol=1e-12, abs_tol=1e-6)
            assert math.isclose(heat.score(value, at), brute(events, at), rel_tol=1e-6)
        heats.append((heat.score(value, at), brute(events, at)))
    for one, other in itertools.pairwise(heats):
        if not math.isclose(one[1], other[1], rel_tol=1e-6):
            assert (one[0] < other[0]) == (one[1] < other[1])


def heats():
    with feed_database.reading() as connection:
        return dict(connection.exec_driver_sql("SELECT slug, heat FROM paper WHERE slug IS NOT NULL").all())


def test_a_vote_taken_back_leaves_no_trace(database):
    before = heats()
    number = papers.find("embers").id
    assert library.vote("", number) == library.vote("", number) == 1
    assert heats()["embers"] > before["embers"]
    assert library.unvote("", number) == library.unvote("", number) == 0
    assert heats() == before


def test_the_score_is_the_sum_of_its_parts(database):
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    add_run("embers", "a", {"x": "holds", "y": "inconclusive"}, finished=now, account="")
    add_run("embers", "a", {"x": "fails"}, finished=now, account="")  # the same account, the same day: one run, one first verdict
    library.vote("", papers.find("embers").id)
    assert heat.catch_up() == 2
    assert heat.catch_up() == 0
    trending = listings.trending(limit=1)
    (card,), (parts,) = trending.listing.cards, trending.heats
    assert card.slug == "embers"
    assert parts.votes == pytest.approx(1, abs=0.01)
    assert parts.runs == pytest.approx(2, abs=0.01)
    assert parts.verdicts == pytest.approx(1, abs=0.01)
    with feed_database.reading() as connection:
        stored = connection.exec_driver_sql("SELECT heat FROM paper WHERE slug = 'embers'").scalar()
    assert heat.score(stored, heat.current()) == pytest.approx(parts.score, rel=1e-3)


def test_imported_upvotes_count_when_new_and_at_most_five_a_day(database):
    def upvotes(value, day):
        record = Record(source="huggingface", external_id="2401.00001", arxiv_id="2401.00001", title="T", signals={"hf_upvotes": value})
        with feed_database.writing() as connection:
            store.write(connection, [record], datetime.date(2026, 1, day))

    for value, day in ((3, 1), (3, 1), (40, 2), (40, 3), (41, 4)):
        upvotes(value, day)
    with feed_database.reading() as connection:
        found = connection.exec_driver_sql("SELECT key, weight FROM heat_event WHERE kind = 'upvotes' ORDER BY key").all()
    assert [(key, pytest.approx(weight)) for key, weight in found] == [("2026-01-01", 0.6), ("2026-01-02", 1.0), ("2026-01-04", 0.2)]


def test_trending_within_days_leaves_older_papers_out(database):
    today = datetime.datetime.now(datetime.UTC).date()
    add_papers(paper(1, published=today - datetime.timedelta(days=3)), paper(2, published=today - datetime.timedelta(days=20)))
    assert [card.arxiv_id for card in listings.trending(within=7).listing.cards] == ["2401.00001"]
    assert [card.arxiv_id for card in listings.trending(within=30).listing.cards] == ["2401.00001", "2401.00002"]
