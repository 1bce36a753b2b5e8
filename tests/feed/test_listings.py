"""Lists of papers: days that have papers, orders, pages, what was decided; each on both databases."""

import contextlib
import datetime
import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nullius.errors import UsageError
from nullius.feed import catalogue, claims, listings, papers
from nullius.feed import database as feed_database
from nullius.feed.shapes import ORDERS
from nullius.lab import studies

from .made import add_papers, add_run, paper

DAY = datetime.date(2024, 1, 10)


def all_pages(ask, limit):
    cursor, found = "", []
    for _ in range(100):
        listing = ask(cursor, limit)
        assert len(listing.cards) <= limit
        found += [card.id for card in listing.cards]
        cursor = listing.cursor
        if not cursor:
            return found, listing
    raise AssertionError("no end")


def test_the_newest_day_and_its_neighbours_skip_days_without_papers(database):
    add_papers(paper(1, days=(DAY,)), paper(2, days=(DAY - datetime.timedelta(days=9),)))
    newest = listings.day()
    assert (newest.name, newest.older, newest.newer) == ("2025-11-04", "2024-01-10", None)
    assert newest.listing.total == len(catalogue.papers())
    assert newest.listing.runnable == len(studies.modules())
    between = listings.day(DAY - datetime.timedelta(days=3))
    assert (between.listing.total, between.older, between.newer) == (0, "2024-01-01", "2024-01-10")
    assert listings.days(datetime.date(2024, 1, 1), datetime.date(2024, 1, 31)) == {datetime.date(2024, 1, 1): 1, DAY: 1}


@pytest.mark.parametrize("order", ORDERS)
def test_pages_are_a_partition_in_one_order(database, order):
    add_run("embers", "a", {"x": "holds"})
    add_run("embers", "b", {"x": "fails"})
    add_run("factual-recall", "b", {"x": "fails"})
    with feed_database.writing() as connection:
        connection.exec_driver_sql("UPDATE paper SET votes = id - 4 * (id / 4)")
    whole = [card.id for card in listings.day(order=order, limit=200).listing.cards]
    found, _ = all_pages(lambda cursor, limit: listings.day(order=order, cursor=cursor, limit=limit).listing, 7)
    assert found == whole
    assert len(set(found)) == len(catalogue.papers())


def test_what_each_order_puts_first(database):
    for subject, word in (("a", "holds"), ("b", "fails"), ("c", "holds")):
        add_run("embers", subject, {"x": word})
    add_run("factual-recall", "a", {"x": "holds"})
    with feed_database.writing() as connection:
        connection.exec_driver_sql("UPDATE paper SET votes = 3 WHERE slug = 'gla'")
    first = {order: listings.day(order=order).listing.cards[0] for order in ORDERS}
    newest = catalogue.papers()[0]
    assert first["newest"].published == newest.date
    assert first["voted"].slug == "gla"
    assert first["contested"].slug == "embers"
    untested = first["untested"]
    assert untested.runnable
    assert untested.subjects == 0
    for order in ("contested", "untested"):
        cards = listings.day(order=order).listing.cards
        assert [card.runnable for card in cards] == sorted((card.runnable for card in cards), reverse=True), order


def test_contested_is_the_sum_over_claims_of_the_smaller_side(database):
    """min(h, f) / (h + f + 1), by claim: two subjects against two on one claim, one against one on each of two, one against none, no study."""
    for subject, word in (("a", "holds"), ("b", "holds"), ("c", "fails"), ("d", "fails")):
        add_run("embers", subject, {"x": word})  # 2 / 5
    for subject, word in (("a", "holds"), ("b", "fails"), ("c", "inconclusive")):
        add_run("factual-recall", subject, {"x": word, "y": word})  # 1 / 3 + 1 / 3
    add_run("gla", "a", {"x": "holds", "y": "fails"})  # 0: each subject says one thing of each claim
    add_papers(paper(1, days=(catalogue.day(),), published=catalogue.day()))  # newer than all, without a study
    cards = listings.day(order="contested").listing.cards
    assert [card.slug for card in cards[:2]] == ["factual-recall", "embers"]
    middle = [card.published for card in cards[2:] if card.runnable]
    assert middle == sorted(middle, reverse=True), "where nothing is contested, the newest first"
    assert [card.slug for card in cards[2 + len(middle) :] if card.slug is None], "and after them what has no study"


def test_cards_carry_verdicts_on_my_subject(database):
    add_run("embers", "a", {"x": "holds", "y": "out of reach"})
    add_run("embers", "b", {"x": "fails"})
    cards = {card.slug: card for card in listings.day(subject="a").listing.cards}
    assert [(cell.claim, cell.word) for cell in cards["embers"].cells] == [("x", "holds"), ("y", "out of reach")]
    assert cards["embers"].cells[0].effect.value == 0.4
    assert cards["embers"].cells[1].effect is None
    assert cards["embers"].subjects == 2
    assert cards["gla"].cells == ()


@pytest.mark.parametrize(
    ("year", "week", "nearest"), [(2025, 53, "2025-W52"), (2025, 0, "2025-W01"), (99999, 3, "9998-W03"), (-4, 60, "0001-W52")]
)
def test_a_week_that_does_not_exist_names_the_nearest(sqlite, year, week, nearest):
    with pytest.raises(UsageError, match=nearest):
        listings.week(year, week)


def test_weeks_and_months_with_what_was_decided_in_them(database):
    add_run("embers", "a", {"x": "holds", "y": "fails"}, finished="2025-11-09T23:59:59.000+00:00")
    add_run("embers", "b", {"x": "holds"}, finished="2025-11-10T00:00:00.000+00:00")
    add_papers(paper(1, days=(DAY,)))
    week = listings.week(2025, 45)
    assert (week.first, week.last) == (datetime.date(2025, 11, 3), datetime.date(2025, 11, 9))
    assert week.decided == {"holds": 1, "fails": 1, "inconclusive": 0, "out of reach": 0}
    assert week.older == "2024-W02"
    month = listings.month(2025, 11)
    assert month.decided["holds"] == 2
    assert month.older == "2024-01"
    with pytest.raises(UsageError, match="2025-12"):
        listings.month(2025, 13)


def test_all_papers_by_study_and_verdict(database):
    add_run("embers", "a", {"x": "fails"})
    add_run("gla", "b", {"x": "fails"})
    assert listings.papers(runnable=True).total == len(studies.modules())
    assert listings.papers(runnable=False).total == len(catalogue.papers()) - len(studies.modules())
    assert {card.slug for card in listings.papers(verdict="fails").cards} == {"embers", "gla"}
    assert {card.slug for card in listings.papers(verdict="fails", on="a").cards} == {"embers"}


def test_all_papers_newest_first_the_undated_last_and_merged_ones_not_at_all(database):
    numbers = add_papers(*(paper(i, published=DAY if i % 3 else None) for i in range(1, 9)))
    with feed_database.writing() as connection:
        connection.exec_driver_sql(f"UPDATE paper SET merged_into = {numbers[0]} WHERE id = {numbers[1]}")
    found, last = all_pages(lambda cursor, limit: listings.papers(cursor=cursor, limit=limit), 2)
    assert found == [card.id for card in listings.papers(limit=200).cards]
    assert len(set(found)) == len(found) == last.total == len(catalogue.papers()) + 7
    assert last.runnable == len(studies.modules())
    assert found[-2:] == [numbers[5], numbers[2]]  # of 3 and 6 nobody knows the day
    dated = [card.published for card in listings.papers(limit=200).cards][:-2]
    assert dated == sorted(dated, reverse=True)


@given(st.text(max_size=60))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_cursor_is_a_place_or_an_error_for_people(sqlite, cursor):
    with contextlib.suppress(UsageError):
        listings.papers(cursor=cursor)


@pytest.mark.parametrize(
    "cursor",
    [
        "WzEsMl0",
        "W251bGwsIDFd",
        "WyIyMDI0LTAxLTAxIiwgTmFOXQ",
        "WyIyMDI0LTAxLTAxIiwgNDAwMDAwMDAwMF0",
        "WyIyMDI0LTAxLTAxIiwgMTAwMDAwMDAwMDAwMDAwMDAwMDAwXQ",
    ],
)
def test_forged_cursors_are_refused(database, cursor):
    with pytest.raises(UsageError):
        listings.papers(cursor=cursor)


def test_a_paper_by_any_of_its_names(database):
    with feed_database.writing() as connection:
        number = papers.find_in(connection, "embers").id
        connection.exec_driver_sql(f"INSERT INTO paper_name (name, paper) VALUES ('old-name', {number})")
    assert papers.find("embers") == papers.Found(number, "embers", redirect=False)
    for name in ("2309.13638", "arXiv:2309.13638v3", "old-name", f"p{number}", "EMBERS"):
        assert papers.find(name) == papers.Found(number, "embers", redirect=True)
    with pytest.raises(papers.UnknownPaper, match="nearest: embers"):
        papers.find("embres")
    for name in ("p999999999", "p" + "9" * 15, "2401.99999", "x" * 5000, ""):
        with pytest.raises(papers.UnknownPaper):
            papers.find(name)


def test_the_matrix_shows_the_newest_full_run_else_the_newest_quick_one(database):
    add_run("embers", "a", {"x": "holds"}, finished="2026-01-01T00:00:00.000+00:00", full=True, effect=0.9)
    add_run("embers", "a", {"x": "fails"}, finished="2026-01-03T00:00:00.000+00:00", effect=0.1)
    add_run("embers", "a", {"x": "holds"}, finished="2026-01-02T00:00:00.000+00:00")
    add_run("embers", "b", {"x": "holds"}, finished="2026-01-01T00:00:00.000+00:00", effect=0.2)
    newest = add_run("embers", "b", {"x": "holds"}, finished="2026-01-02T00:00:00.000+00:00", effect=0.3)
    add_run("embers", "b", {"x": "fails"}, state="aborted", finished="2026-01-09T00:00:00.000+00:00")
    matrix = papers.matrix("embers")
    cells = {cell.subject_sha256[0]: cell for cell in matrix.cells.values()}
    assert (cells["a"].word, cells["a"].full, cells["a"].effect.value, cells["a"].note) == ("holds", True, 0.9, "2 of 3 hold")
    assert (cells["b"].run, cells["b"].runs, cells["b"].note) == (newest, 2, "")
    assert {column.name for column in matrix.subjects} == {"a", "b"}
    assert matrix.to_dict()["cells"][0]["note"] == "2 of 3 hold"


def test_claims_are_in_the_matrix_before_any_run_and_old_wordings_after(database):
    about = claims.read("factual-recall")
    with feed_database.writing() as connection:
        claims.write(connection, "factual-recall", "1" * 64, about)
    first = papers.matrix("factual-recall")
    assert [row.claim for row in first.claims] == [entry["id"] for entry in about["claims"]]
    assert first.cells == {}
    old = about["claims"][0]
    add_run("factual-recall", "a", {(old["id"], old["digest"]): "holds"})
    reworded = {**about, "claims": [{**old, "wording": "Other words", "digest": "f" * 16}, *about["claims"][1:]]}
    with feed_database.writing() as connection:
        claims.write(connection, "factual-recall", "2" * 64, reworded)
    second = papers.matrix("factual-recall")
    assert [(row.wording, row.retired) for row in second.claims][:: len(second.claims) - 1] == [
        ("Other words", False),
        (old["wording"], True),
    ]
    assert papers.study_of("factual-recall").minutes == about["study"]["minutes"]


def test_studies_are_read_once_in_a_process_of_their_own(sqlite, monkeypatch):
    monkeypatch.setattr(studies, "modules", lambda: {"factual-recall": "nullius.studies.mechanisms.factual_recall"})
    assert claims.refresh() == ["factual-recall"]
    assert claims.refresh() == []
    assert papers.matrix("factual-recall").claims


def test_a_page_of_fifty_cards_takes_a_fixed_number_of_queries(sqlite):
    import sqlalchemy as sa

    from nullius.lab.schema import _engine, url

    add_run("embers", "a", {"x": "holds"})
    asked = itertools.count()
    sa.event.listen(_engine(url()), "before_cursor_execute", lambda *_: next(asked))
    listings.day(subject="a", account="", limit=5)
    few = next(asked)
    listings.day(subject="a", account="", limit=50)
    assert next(asked) - few - 1 == few
