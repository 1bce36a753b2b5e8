"""Sentences whose probability is known, and languages that can be undone; what counts tokens counts tokens, what counts words counts words."""

import math
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nullius.errors import UsageError
from nullius.stimuli import agreement, perturbations, sentence_files
from nullius.stimuli.agreement import Sentence
from nullius.stimuli.perturbations import LANGUAGES, MARKERS, generator, restore, room


def sentences(n: int, seed: int = 0) -> list[Sentence]:
    rng = np.random.default_rng(seed)
    return [agreement.sentence(rng) for _ in range(n)]


def plain(words) -> Sentence:
    return Sentence(tuple(words), 0, 0, False, False, (), 0.0)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), name=st.sampled_from([name for name, each in LANGUAGES.items() if each.reversible]))
def test_rules_can_be_undone(seed, name):
    sentence = sentences(1, seed)[0]
    deformed = LANGUAGES[name].perturb(sentence, generator(1, seed))
    words = list(sentence.words)
    if LANGUAGES[name].family == "hop" and sentence.present:
        words[sentence.verb] = agreement.lemma(words[sentence.verb])
    assert restore(name, deformed.words) == tuple(words)


@settings(max_examples=60, deadline=None)
@given(words=st.lists(st.text("abc", min_size=1, max_size=2), min_size=1, max_size=40), name=st.sampled_from(sorted(LANGUAGES)))
def test_places_say_where_each_token_went(words, name):
    deformed = LANGUAGES[name].perturb(plain(words), generator(0, 7))
    assert [deformed.words[place] for place in deformed.places] == words
    extra = [word for i, word in enumerate(deformed.words) if i not in set(deformed.places)]
    assert extra == (["[R]"] if LANGUAGES[name].family == "reverse" else [])


def test_deterministic_shuffles_hang_on_length_alone():
    words = [f"w{i}" for i in range(12)]
    first, second = (LANGUAGES["DeterministicShuffle21"].perturb(plain(words), generator(0, i)).words for i in (1, 2))
    assert first == second != tuple(words)
    assert LANGUAGES["DeterministicShuffle57"].perturb(plain(words), generator(0, 1)).words != first
    drawn = {LANGUAGES["NondeterministicShuffle"].perturb(plain(words), generator(0, i)).words for i in range(20)}
    assert len(drawn) == 20


def test_windows_share_one_order():
    order = perturbations.local(11, 3)
    first = np.array(order[:3])
    assert all((np.array(order[k : k + 3]) - k == first).all() for k in (0, 3, 6))
    assert sorted(order[9:]) == [9, 10]
    assert perturbations.even_odd(5) == [0, 2, 4, 1, 3]


def test_markers_of_reversals_stand_at_the_same_place():
    for i, sentence in enumerate(sentences(30)):
        none, part, full = (LANGUAGES[name].perturb(sentence, generator(3, i)) for name in ("NoReverse", "PartialReverse", "FullReverse"))
        assert none.marker == part.marker == len(sentence.words) - full.marker
        assert part.words[: part.marker + 1] == none.words[: none.marker + 1]
        assert part.words[part.marker + 1 :] == none.words[: none.marker : -1]
        assert full.words == none.words[::-1]


@pytest.mark.parametrize(
    ("text", "counted", "at"),
    [
        ("it sees a b c d e .", "none", 2),
        ("it sees a b c d e .", "tokens", 6),
        ("it sees a b c d e .", "words", 6),
        ("it sees a ##x b , c d ##y e .", "tokens", 6),
        ("it sees a ##x b , c d ##y e .", "words", 9),
        ("it sees a b c .", "tokens", -1),
        ("it sees a b c .", "words", -1),
    ],
)
def test_tokens_and_words_are_counted(text, counted, at):
    assert room(text.split(), 1, counted) == at


def test_hops_move_the_number_only():
    differ = 0
    for i, sentence in enumerate(sentences(200)):
        none, tokens, words = (LANGUAGES[name].perturb(sentence, generator(0, i)) for name in ("NoHop", "TokenHop", "WordHop"))
        bare = [[word for word in each.words if word not in MARKERS] for each in (none, tokens, words)]
        assert bare[0] == bare[1] == bare[2]
        assert (none.marker >= 0) == sentence.present
        if sentence.present:
            assert none.marker == sentence.verb + 1
            assert tokens.marker == sentence.verb + 5
            assert none.words[none.marker] == ("[pl]" if sentence.plural else "[sg]")
            differ += tokens.marker != words.marker
    assert differ > 40


def test_probabilities_are_those_of_the_sampler():
    """Frequencies of the grammar's most probable beginnings, and of a whole class of sentences, agree with the probabilities it states."""
    drawn = sentences(4000)
    assert all(each.nats > 0 for each in drawn)
    weights = np.arange(1, len(agreement.NOUNS) + 1) ** -0.7
    counts = Counter(agreement.NOUNS.index(each.words[each.subject].removesuffix("s")) for each in drawn)
    share = weights[0] / weights.sum()
    assert abs(counts[0] / 4000 - share) < 4 * math.sqrt(share / 4000)
    by_number = [np.mean([each.nats for each in drawn if each.plural == plural]) for plural in (True, False)]
    assert abs(by_number[0] - by_number[1]) < 0.5
    rng = np.random.default_rng(0)
    given_number = agreement.sentence(rng, plural=True, present=True)
    rng = np.random.default_rng(0)
    assert given_number.nats == agreement.sentence(rng, plural=False, present=True).nats


def test_total_probability_of_a_corner_of_the_grammar():
    """E[1/p] over a set of sentences is their number: an estimate of it for the noun phrases of the subject, whose number is known."""
    drafts = []
    rng = np.random.default_rng(0)
    for _ in range(6000):
        draft = agreement._Draft(rng)
        draft.noun_phrase(True, 0.0)
        drafts.append(draft.nats)
    expected = len(agreement.DETERMINERS) * len(agreement.NOUNS)
    # without an adjective: nats hold the choice against one too, whose probability is 1
    assert np.mean(np.exp(drafts)) == pytest.approx(expected, rel=0.05)


def test_twins_differ_in_number_alone():
    for one in sentences(100):
        other = agreement.with_other_number(one)
        assert agreement.with_other_number(other) == one
        different = {i for i, (a, b) in enumerate(zip(one.words, other.words, strict=True)) if a != b}
        assert different == ({one.subject, one.verb} if one.present else {one.subject})
        assert set(other.words) <= set(agreement.vocabulary())
    for singular, plural in agreement.minimal_pairs(20, np.random.default_rng(0)):
        markers = {LANGUAGES[name].perturb(singular, None).marker for name in ("TokenHop", "WordHop")}
        assert markers == {agreement.VERB_AT + 5}
        assert plural.words[agreement.SUBJECT_AT] == singular.words[agreement.SUBJECT_AT] + "s"


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=6))
def test_arrangements_are_counted(words):
    assert math.exp(perturbations.arrangements(words)) == pytest.approx(len(set(permutations(words))))


def test_languages_by_name():
    with pytest.raises(UsageError, match="nearest: TokenHop"):
        perturbations.language("TokenHopp")
    with pytest.raises(UsageError, match="cannot be undone"):
        restore("NondeterministicShuffle", ["a"])


def test_sentences_of_a_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("One. Two? “Three!” Four\nno. 5 is not an end.\n\nSix", "utf-8")
    assert sentence_files.read(path, at_least=3) == ["One.", "Two?", "“Three!", "Four", "no. 5 is not an end.", "Six"]
    with pytest.raises(UsageError, match="holds 6 sentences, 9 are needed"):
        sentence_files.read(path, at_least=9)
    path.write_bytes(b"good\nb\xe4d")
    with pytest.raises(UsageError, match="line 2: not UTF-8"):
        sentence_files.read(path, at_least=1)
