"""Texts with word classes known by construction."""

from collections import defaultdict
from itertools import pairwise

import numpy as np
import pytest

from nullius.stimuli import grammar


@pytest.mark.parametrize(("p", "bits"), [(0.0, 0.0), (1.0, 2.0)])
def test_information_at_the_ends(p, bits):
    assert grammar.information(grammar.class_chain(4, p)) == pytest.approx(bits, abs=1e-12)


def test_information_rises_with_predictability():
    values = [grammar.information(grammar.class_chain(5, p)) for p in np.linspace(0, 1, 6)]
    assert np.all(np.diff(values) > 0)


@pytest.mark.parametrize(("classes", "p"), [(1, 0.5), (3, 1.2), (3, -0.1)])
def test_chain_refuses(classes, p):
    with pytest.raises(ValueError, match="two classes"):
        grammar.class_chain(classes, p)


def test_markov_text_follows_its_chain():
    chain = grammar.class_chain(4, 0.6)
    text = grammar.markov_text(chain, 5, 40_000, np.random.default_rng(0))
    states = np.array([int(tag[1:]) for tag in text.tags])
    counts = np.zeros((4, 4))
    np.add.at(counts, (states[:-1], states[1:]), 1)
    assert counts / counts.sum(1, keepdims=True) == pytest.approx(chain, abs=0.02)
    assert all(word.startswith(tag.lower() + "w") for word, tag in zip(text.words.tolist(), text.tags.tolist(), strict=True))
    assert len(np.unique(text.words)) == 20


def test_a_certain_chain_is_certain():
    text = grammar.markov_text(grammar.class_chain(3, 1.0), 2, 30, np.random.default_rng(1))
    states = np.array([int(tag[1:]) for tag in text.tags])
    assert np.array_equal(states[1:], (states[:-1] + 1) % 3)


@pytest.fixture(scope="module")
def english():
    return grammar.english_text(20_000, np.random.default_rng(0))


def test_every_word_has_one_class(english):
    classes = defaultdict(set)
    for word, tag in zip(english.words.tolist(), english.tags.tolist(), strict=True):
        classes[word].add(tag)
    assert {word: tags for word, tags in classes.items() if len(tags) > 1} == {}
    universal = {"NOUN", "PROPN", "VERB", "ADJ", "ADV", "DET", "PRON", "AUX", "ADP", "CCONJ", "SCONJ", "PUNCT"}
    assert set(english.tags.tolist()) == universal


def test_sentences_are_grammatical_where_it_can_be_seen(english):
    words, tags = english.words.tolist(), english.tags.tolist()
    assert words[-1] == "."
    followers = defaultdict(set)
    for a, b in pairwise(tags):
        followers[a].add(b)
    assert followers["DET"] == {"NOUN", "ADJ", "ADV"}
    assert followers["ADP"] == {"DET", "PRON", "PROPN"}
    articles = [(a, b) for a, b in pairwise(words) if a in ("a", "an")]
    assert all((a == "an") == (b[0] in "aeiou") for a, b in articles)


def test_the_class_after_a_noun_hangs_on_more_than_the_noun(english):
    """Subject or object: after "the teacher" a verb is likely when no verb came before in the sentence, else unlikely."""
    verb_came, counts = False, {True: [0, 0], False: [0, 0]}
    tags = english.tags.tolist()
    for a, b in pairwise(tags):
        if a == "PUNCT":
            verb_came = False
        if a == "NOUN":
            counts[verb_came][b == "VERB"] += 1
        verb_came |= a == "VERB"
    after_none, after_some = (counts[came][1] / sum(counts[came]) for came in (False, True))
    assert after_none > 2 * after_some


def test_the_same_seed_gives_the_same_text():
    a, b, c = (grammar.english_text(500, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(a.words, b.words)
    assert a.words.tolist() != c.words.tolist()
