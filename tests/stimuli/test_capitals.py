"""Stimuli of the contest between memory and context: what they must never contain, and how a set is split."""

import csv
import math
import os
from pathlib import Path

import numpy as np
import pytest
import wordfreq
from hypothesis import given
from hypothesis import strategies as st

from nullius.errors import UsageError
from nullius.stimuli import capitals, frequency
from nullius.stimuli.prompts import Stimuli


def first_word(text: str) -> int:
    """Stands for a tokenizer: one number for each first word."""
    return hash(text.split()[0])


def test_the_table_is_large_and_has_no_echoes():
    facts = capitals.facts()
    assert len(facts) > 140
    assert len(set(facts.field("country"))) == len(facts) == len(set(facts.field("capital")))
    names = set(facts.field("country"))
    assert not names & {"Singapore", "Luxembourg", "Mexico", "Guatemala", "Panama", "Kuwait", "El Salvador", "Tunisia"}
    assert {"Poland", "Japan", "Brazil"} <= names
    assert all(value == value.strip() and value for fact in facts for value in (fact.country, fact.capital, fact.language))


def test_the_table_agrees_with_another_one():
    folder = os.environ.get("NULLIUS_TEST_DATA")
    if not folder:
        pytest.skip("NULLIUS_TEST_DATA is not set")
    with (Path(folder) / "capitals" / "capitals.csv").open(encoding="utf-8") as file:
        theirs = {row["country"]: row["capital"] for row in csv.DictReader(file)}
    shared = [fact for fact in capitals.facts() if fact.country in theirs]
    assert len(shared) > 50
    different = {fact.country for fact in shared if fact.capital not in theirs[fact.country]}
    assert len(different) <= 8, different  # spellings (Yaoundé, Washington) and disputed seats


@pytest.mark.parametrize("relation", ["capital", "language"])
def test_a_conflict_contradicts_what_is_true(relation):
    known = capitals.facts().sample(40, np.random.default_rng(0))
    made = capitals.conflicts(known, 3, np.random.default_rng(1), first_word, relation)
    assert len(made) == 120
    assert len(set(made.field("template"))) >= 3
    for item in made:
        assert item.memory_answer == " " + item.fact.answer(relation)
        assert first_word(item.context_answer) != first_word(item.memory_answer)
        assert item.context_answer.strip() in item.prompt
        assert item.prompt.replace(item.context_answer.strip(), "").count(item.memory_answer.strip()) == 0 or relation == "language"
        assert item.prompt.endswith(item.fact.question(item.template, relation))
        assert item.prompt == item.prompt.strip()


def test_answers_that_share_a_first_token_are_never_paired():
    facts = Stimuli.of(capitals.Fact(*row) for row in [("A", "San José", "x"), ("B", "San Juan", "y"), ("C", "Oslo", "z")])
    made = capitals.conflicts(facts, 2, np.random.default_rng(0), first_word)
    pairs = {(item.country, item.context_answer) for item in made}
    assert pairs == {("A", " Oslo"), ("B", " Oslo"), ("C", " San José"), ("C", " San Juan")}


def test_a_capital_that_begins_like_its_country_is_dropped_for_that_vocabulary():
    facts = capitals.facts()
    kept = capitals.tellable(facts, lambda text: hash(text[:4]))
    assert "Algeria" in facts.field("country")
    assert "Algeria" not in kept.field("country")


def test_articles():
    named = {fact.country: fact for fact in capitals.facts()}
    assert named["Netherlands"].question().startswith("Q: What is the capital of the Netherlands?")
    assert named["France"].told("Rome") == "The capital of France is Rome. Q: What is the capital of France? A: The capital of France is"


@given(st.lists(st.integers(0, 6), min_size=2, max_size=40), st.floats(0.01, 0.99), st.integers(0, 99))
def test_a_split_keeps_groups_whole(countries, fraction, seed):
    items = Stimuli.of(capitals.Fact(str(country), str(i), "") for i, country in enumerate(countries))
    groups = len(set(countries))
    if not 0 < round(fraction * groups) < groups:
        with pytest.raises(ValueError, match="one side would be empty"):
            items.split(fraction, np.random.default_rng(seed), by="country")
        return
    first, second = items.split(fraction, np.random.default_rng(seed), by="country")
    assert not set(first.field("country")) & set(second.field("country"))
    assert len(set(first.field("country"))) == round(fraction * groups)
    assert sorted([*first.field("capital"), *second.field("capital")], key=int) == items.field("capital")


def test_samples_keep_their_order_and_repeat_with_the_seed():
    items = Stimuli.of(capitals.facts())
    one, two = (items.sample(20, np.random.default_rng(5)) for _ in range(2))
    assert one == two
    assert one.field("country") == sorted(one.field("country"))
    assert items.sample(10**6, np.random.default_rng(0)) == items


def test_frequencies(tmp_path):
    zipf, words = frequency.provider()
    assert "wordfreq" in words
    assert zipf(" Paris") == wordfreq.zipf_frequency("Paris", "en") > zipf("Ouagadougou") > 0
    path = tmp_path / "counts.csv"
    path.write_text("name,count\nParis,999\nNew Delhi,9\n", "utf-8")
    counts, words = frequency.provider(str(path))
    assert "counts.csv" in words
    assert (counts("Paris"), counts(" New Delhi"), counts("Oslo")) == (3.0, 1.0, 0.0)
    assert math.isfinite(counts("Oslo"))


@pytest.mark.parametrize("text", ["country,number\nFrance,3\n", "name,count\nFrance,many\n", "name,count\nFrance\n"])
def test_a_counts_file_of_another_shape_is_refused(tmp_path, text):
    path = tmp_path / "counts.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(UsageError, match="columns name and count"):
        frequency.from_counts(path)
    with pytest.raises(UsageError, match="cannot read"):
        frequency.from_counts(tmp_path / "absent.csv")
