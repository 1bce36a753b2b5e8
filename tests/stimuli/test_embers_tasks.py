"""The eleven tasks: right answers against the paper's own stimuli and worked cases, scoring rules, and how sets are built."""

import gzip
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullius.stimuli import embers, embers_items
from nullius.stimuli import embers_material as material
from nullius.stimuli import embers_scoring as scoring
from nullius.stimuli import embers_transforms as tf

words = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=8)
sentences = st.lists(words, min_size=1, max_size=8).map(lambda parts: " ".join(parts).capitalize() + ".")
SETS = embers.twins(np.random.default_rng(3), 20)


@given(st.text(), st.integers(-30, 30))
def test_shifting_back_undoes_a_shift(text, by):
    assert tf.shift(tf.shift(text, by), -by) == text
    assert tf.shift(text, 26) == text


@given(st.text("abcdefghijklmnopqrstuvwxyzABC .,!"))
def test_keyboard_ciphers_undo_each_other(text):
    assert tf.keyboard(tf.keyboard(text), -1) == text


@given(sentences)
def test_reversal_is_its_own_inverse(sentence):
    assert tf.reverse_words(tf.reverse_words(sentence)) == sentence


@pytest.mark.parametrize(("gold", "odd"), material.sentence_pairs())
def test_sentences_have_an_article_and_one_odd_word(gold, odd):
    assert tf.ARTICLES & set(re.findall(r"\w+", gold.lower()))
    assert sum(a != b for a, b in zip(gold.split(), odd.split(), strict=True)) == 1
    for sentence in (gold, odd):
        for there, back in (("next", "previous"), ("previous", "next")):
            moved = tf.swap_articles(sentence, there)
            first_word_is_article = there == "previous" and sentence.split()[0].lower() in tf.ARTICLES
            assert first_word_is_article or (moved != sentence and tf.swap_articles(moved, back) == sentence)


@pytest.mark.parametrize(
    ("computed", "by_hand"),
    [
        (tf.shift("Stay here!", 13), "Fgnl urer!"),
        (tf.shift("xyz", 1), "yza"),
        (tf.keyboard("Hello world!"), "Jraap eptaf!"),
        (tf.keyboard("p l m"), "q a z"),
        (tf.pig_latin("The frogs aren't noisy."), "ethay ogsfray aren'tay oisynay."),
        (tf.pig_latin("You try my string, please", "uv"), "ouyuv ytruv ymuv ingstruv, easepluv"),
        (tf.reverse_words("Open the door."), "door. the Open"),
        (tf.swap_articles("We saw the train, a red one.", "next"), "We saw train the, red a one."),
        (tf.swap_articles("We saw the train, a red one.", "previous"), "We the saw a, train red one."),
        (tf.initials(["any", "new", "tree"]), "ANT"),
        (tf.initials(["any", "new", "tree"], 1), "NER"),
        (tf.in_words(831), "eight hundred thirty-one"),
        (tf.in_words(700), "seven hundred"),
        (tf.in_words(12), "twelve"),
        (tf.alternating("thirty-one"), "tHiRtY-oNe"),
        (tf.linear(328, (9, 5), 32), "622.4"),
        (tf.linear(328, (7, 5), 31), "490.2"),
        (tf.linear(5, (9, 5), 32), "41"),
    ],
)
def test_right_answers_worked_by_hand(computed, by_hand):
    assert computed == by_hand


@given(st.text("ab", max_size=6), st.text("ab", max_size=6), st.text("ab", max_size=6))
def test_distance_is_a_metric(a, b, c):
    assert tf.distance(a, b) == tf.distance(b, a)
    assert (tf.distance(a, b) == 0) == (a == b)
    assert tf.distance(a, c) <= tf.distance(a, b) + tf.distance(b, c)


def test_distance_worked_by_hand():
    assert tf.distance("kitten", "sitting") == 3


@pytest.mark.parametrize(
    ("rule", "reply", "gold", "right"),
    [
        (scoring.contains, '"Stay here!"', "Stay here!", True),
        (scoring.contains, "The text reads: Stay here!\nDone.", "Stay here!", True),
        (scoring.contains, "Stay there!", "Stay here!", False),
        (scoring.contains, "", "Stay here!", False),
        (scoring.contains_any_case, "STAY HERE!", "Stay here!", True),
        (scoring.pig_latin_decoded, "The frogs aren't noisy.", "the frogs aren't noisy.", True),
        (scoring.pig_latin_decoded, "eth frogs aren't noisy.", "the frogs aren't noisy.", True),
        (scoring.pig_latin_decoded, "lake", "kale", False),
        (scoring.number, " 20\n\nList: more", "20", True),
        (scoring.number, "There are 20 words, so 21.", "20", False),
        (scoring.number, "1,292", "1292", True),
        (scoring.number, "622.40", "622.4", True),
        (scoring.number, "There are eleven words.", "11", True),
        (scoring.number, "None at all", "0", False),
        (scoring.date, "He was born on March 14th 1879.", "March 14, 1879", True),
        (scoring.date, "March 4, 1879", "March 14, 1879", False),
        (scoring.date, "", "March 14, 1879", False),
        (scoring.listed, "Sorted: ant, bee, cow.", "ant, bee, cow", True),
        (scoring.listed, "1. ant\n2. bee\n3. cow", "ant, bee, cow", True),
        (scoring.listed, "ant, cow, bee", "ant, bee, cow", False),
        (scoring.listed, "ant, bee, bee, cow", "ant, bee, cow", False),
        (scoring.last_line, "steps: Paf\nSo the message is zsq", "zsq", True),
        (scoring.last_line, "zsq\nno", "zsq", False),
    ],
)
def test_rules(rule, reply, gold, right):
    assert rule(reply, gold) is right


@pytest.mark.parametrize("name", SETS)
def test_twins_differ_where_they_should(name):
    made = SETS[name]
    assert len(made) >= 13
    for twin in made:
        assert twin.contexts[0] != twin.contexts[1]
        assert twin.outputs[0] != twin.outputs[1]
        assert all(output.strip() for output in twin.outputs)


def last_input(context):
    """The text between quotation marks of the open case."""
    return context.rsplit('"\n', 1)[0].rsplit(': "', 1)[1]


@pytest.mark.parametrize(
    ("name", "undo"),
    [
        ("copying", lambda text: text),
        ("reversal", lambda text: " ".join(text.split()[::-1])),
        ("reversal, equal", lambda text: " ".join(text.split()[::-1])),
        ("phrases encoding", lambda text: " ".join(text.split()[::-1])),
        ("rot-13", lambda text: tf.shift(text, 13)),
        ("rot-12", lambda text: tf.shift(text, 14)),
        ("rot-13 encoding, shuffled", lambda text: tf.shift(text, 13)),
        ("keyboard", lambda text: tf.keyboard(text, -1)),
        ("keyboard, left", tf.keyboard),
        ("swapping, undone", lambda text: tf.swap_articles(text, "previous")),
        ("acronyms", lambda text: "".join(word[0] for word in text.split()).upper()),
        ("acronyms, rare words", lambda text: "".join(word[0] for word in text.split()).upper()),
        ("acronyms, second letters", lambda text: "".join(word[1] for word in text.split()).upper()),
    ],
)
def test_outputs_answer_their_own_contexts(name, undo):
    for twin in SETS[name]:
        for context, output in zip(twin.contexts, twin.outputs, strict=True):
            assert undo(last_input(context)) + '"' == output


@pytest.mark.parametrize("name", ["counting", "counting, equal", "counting to ten", "counting to ten, rare"])
def test_lists_are_as_long_as_said(name):
    for twin in SETS[name]:
        for context, output in zip(twin.contexts, twin.outputs, strict=True):
            listed = context.rsplit("List: ", 1)[1].split("\n")[0]
            assert len(listed.split()) == len(set(listed.split())) == int(output)


def test_products_and_lines_are_right():
    for twin in SETS["multiplication, digits"]:
        for context, output in zip(twin.contexts, twin.outputs, strict=True):
            a, b = re.findall(r"(\d+) times (\d+)", context)[-1]
            assert int(a) * int(b) == int(output)
    for name, slope, offset in (("9/5", 1.8, 32), ("7/5", 1.4, 31), ("8/5", 1.6, 33)):
        for twin in SETS[f"linear {name}"]:
            for context, output in zip(twin.contexts, twin.outputs, strict=True):
                x = int(re.findall(r"Number: (\d+)", context)[-1])
                assert float(output) == pytest.approx(slope * x + offset)


def test_permutations_are_rarer_than_words():
    for twin in SETS["acronyms"]:
        word, odd = (output.strip('"').lower() for output in twin.outputs)
        assert sorted(word) == sorted(odd)
        assert embers.zipf(word) > embers.zipf(odd)


def test_equally_odd_pairs_share_all_but_one_word_and_either_order_is_as_frequent():
    pairs = list(material.sentence_pairs())
    odd = material.equally_odd(pairs, np.random.default_rng(0))
    own_first = [a == pair[1] for (a, _), pair in zip(odd, pairs, strict=True)]
    assert abs(sum(own_first) - len(pairs) / 2) <= 0.5
    assert all(pair[1] in two and pair[0] not in two for two, pair in zip(odd, pairs, strict=True))


def test_same_seed_same_sets():
    again = embers.twins(np.random.default_rng(3), 20)
    assert again == SETS


def test_items_cover_all_eleven_tasks_in_pairs():
    items = embers_items.items(np.random.default_rng(0), 6)
    assert len({item.task for item in items}) == 11
    for task in {(item.task, item.factor) for item in items}:
        high, low = ([i.group for i in items if (i.task, i.factor, i.level) == (*task, level)] for level in ("high", "low"))
        assert high == low
        assert len(high) == 6
    for i, item in enumerate(items):
        assert item.right(item.gold)
        assert not item.right("")
        assert not item.rule(item.gold, embers_items.another(items, i).gold)


RECOMPUTED = {
    "pigenc_ay_": tf.pig_latin,
    "rot13enc_": lambda text: tf.shift(text, 13),
    "rot12enc_": lambda text: tf.shift(text, 12),
    "rot13dec_": lambda text: tf.shift(text, -13),
    "revenc_": tf.reverse_words,
    "revdec_": tf.reverse_words,
    "swap_base_next_": lambda text: tf.swap_articles(text, "next"),
    "swap_base_prev_": lambda text: tf.swap_articles(text, "previous"),
    "keyboardcot_": tf.keyboard,
    "acronym1_": lambda text: tf.initials(text.split()),
    "acronym2_": lambda text: tf.initials(text.split(), 1),
    "multiplication_number": lambda text: str(np.prod([int(x) for x in text.split(" times ")])),
    "sorting_fwd": lambda text: ", ".join(sorted(text.split(", "))),
}


@pytest.mark.skipif("NULLIUS_TEST_DATA" not in os.environ, reason="NULLIUS_TEST_DATA is not set (a folder with embers/stimuli)")
@pytest.mark.parametrize("prefix", RECOMPUTED)
def test_the_papers_own_stimuli_are_answered_alike(prefix):
    paths = sorted((Path(os.environ["NULLIUS_TEST_DATA"]) / "embers/stimuli").glob(f"{prefix}*.jsonl.gz"))
    rows = [json.loads(line) for path in paths for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
    assert len(rows) >= 40
    wrong = [row["input"] for row in rows if RECOMPUTED[prefix](row["input"]) != row["correct_output"]]
    assert wrong == []


def test_sets_at_full_scale():
    full = embers.twins(np.random.default_rng(0), 100, acronym=7)
    assert full.keys() == SETS.keys()
    assert len(full["reversal"]) == 100
    assert all(len(twin.outputs[0]) == len('1234567"') for twin in full["acronyms"])
