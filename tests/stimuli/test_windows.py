"""Windows, vocabularies, draws, and CoNLL-U files."""

import gzip
import lzma
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nullius.errors import NulliusError
from nullius.stimuli import conllu, grammar
from nullius.stimuli.windows import Vocabulary, balanced, blocks, frequent_enough, sharing_the_word_read, tagged, windows

SMALL = tagged([("the", "DET"), ("cat", "NOUN"), ("slept", "VERB"), (".", "PUNCT"), ("it", "PRON"), ("dreamt", "VERB"), (".", "PUNCT")])


def test_windows_of_a_small_text():
    found = windows(SMALL, 4)
    assert len(found) == 4
    assert found.context[1].tolist() == ["cat", "slept", "."]
    assert found.next_word.tolist() == [".", "it", "dreamt", "."]
    assert found.next_class.tolist() == ["PUNCT", "PRON", "VERB", "PUNCT"]
    assert found.read_word.tolist() == ["slept", ".", "it", "dreamt"]
    assert found.read_class.tolist() == ["VERB", "PUNCT", "PRON", "VERB"]
    assert windows(SMALL, 6).render() == ["the cat slept. It", "cat slept. It dreamt"]


def test_too_short_a_text():
    with pytest.raises(NulliusError, match="no two windows of 10"):
        windows(SMALL)


def test_parts_and_shuffling():
    text = grammar.english_text(1000, np.random.default_rng(0))
    parts = [text.part(0, 0.8), text.part(0.8, 0.85), text.part(0.85, 1)]
    assert np.concatenate([part.words for part in parts]).tolist() == text.words.tolist()
    mixed = text.shuffled(np.random.default_rng(1))
    assert Counter(zip(mixed.words.tolist(), mixed.tags.tolist(), strict=True)) == Counter(
        zip(text.words.tolist(), text.tags.tolist(), strict=True)
    )
    assert mixed.words.tolist() != text.words.tolist()


def test_vocabulary_ranks_by_frequency_and_keeps_shape():
    vocabulary = Vocabulary(SMALL, 3)
    assert vocabulary.words == ("<unk>", ".", "cat")
    assert vocabulary.encode(np.array([["cat", "dog"], [".", "the"]])).tolist() == [[2, 0], [1, 0]]
    assert np.exp(vocabulary.log_frequency) == pytest.approx(np.array([5, 3, 2]) / 10)  # 4, 2, 1 times, each raised by one


@settings(max_examples=50, deadline=None)
@given(n=st.integers(2, 500), count=st.integers(1, 20))
def test_blocks_are_contiguous_and_nearly_equal(n, count):
    block = blocks(n, min(n, count))
    assert np.all(np.diff(block) >= 0)
    sizes = np.bincount(block)
    assert len(sizes) == min(n, count)
    assert sizes.max() - sizes.min() <= 1


def test_balanced_draws():
    found = windows(grammar.english_text(12_000, np.random.default_rng(2)))
    block = blocks(len(found), 4)
    among = found.next_class != "PUNCT"
    drawn, classes = balanced(found.next_class, block, 30, np.random.default_rng(3), among=among, types=found.next_word)
    assert "PUNCT" not in classes
    for number, chosen in enumerate(drawn):
        assert set(block[chosen].tolist()) == {number}
        assert len(np.unique(chosen)) == len(chosen)
        assert Counter(found.next_class[chosen].tolist()) == dict.fromkeys(classes, 30)
        nouns = chosen[found.next_class[chosen] == "NOUN"]
        assert max(Counter(found.next_word[nouns].tolist()).values()) == 1  # more nouns than 30: none is drawn twice
    with pytest.raises(NulliusError, match="too short: 0 word classes"):
        balanced(found.next_class, block, 5000, np.random.default_rng(3), among=among, types=found.next_word)


def test_sets_that_share_the_word_read():
    found = windows(grammar.english_text(20_000, np.random.default_rng(4)))
    among = (found.next_class != "PUNCT") & (found.read_class != "PUNCT")
    sets = sharing_the_word_read(found, 5, 10, np.random.default_rng(5), among=among)
    assert len(sets) == 10
    for word, chosen in sets.items():
        assert set(found.read_word[chosen].tolist()) == {word}
        counts = Counter(found.next_class[chosen].tolist())
        assert len(counts) >= 2
        assert set(counts.values()) == {5}
        assert among[chosen].all()


def test_frequent_enough_repeats_until_stable():
    a = np.array(["x", "x", "x", "y", "y"])
    b = np.array(["p", "p", "q", "p", "r"])
    assert frequent_enough(np.arange(5), (a, b), 2).tolist() == [0, 1]  # q and r go, then y is alone


CONLLU = """# text = Im Haus ruht er.
1-2\tIm\t_\t_\t_\t_\t_\t_\t_\t_
1\tIn\tin\tADP\t_\t_\t3\tcase\t_\t_
2\tdem\tder\tDET\t_\t_\t3\tdet\t_\t_
3\tHaus\tHaus\tNOUN\t_\t_\t4\tobl\t_\t_
4\truht\truhen\tVERB\t_\t_\t0\troot\t_\t_
4.1\t_\t_\tVERB\t_\t_\t_\t_\t_\t_
5\ter\ter\tPRON\t_\t_\t4\tnsubj\t_\t_
6\t.\t.\tPUNCT\t_\t_\t4\tpunct\t_\t_

1\tJa\tja\tINTJ\t_\t_\t0\troot\t_\t_

"""


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_conllu(tmp_path, suffix):
    path = tmp_path / f"a.conllu{suffix}"
    path.write_bytes(gzip.compress(CONLLU.encode()) if suffix else CONLLU.replace("\n", "\r\n").encode())
    text = conllu.read(path)
    assert text.words.tolist() == ["in", "dem", "haus", "ruht", "er", ".", "ja", "."]
    assert text.tags.tolist() == ["ADP", "DET", "NOUN", "VERB", "PRON", "PUNCT", "INTJ", "PUNCT"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1\tno\ttabs", "line 1: 3 fields"),
        ("# only a comment\n", "holds no words"),
        ("1\ta\ta\t_\t_\t_\t0\troot\t_\t_\n", "line 1: expected a word number and a word class"),
    ],
)
def test_conllu_refuses(tmp_path, content, message):
    path = tmp_path / "bad.conllu"
    path.write_text(content, "utf-8")
    with pytest.raises(NulliusError, match=message):
        conllu.read(path)


def test_conllu_that_is_not_there_or_damaged(tmp_path):
    with pytest.raises(NulliusError, match="No such file"):
        conllu.read(tmp_path / "none.conllu")
    broken = tmp_path / "broken.conllu.gz"
    broken.write_bytes(gzip.compress(CONLLU.encode())[:40])
    with pytest.raises(NulliusError, match="cannot read"):
        conllu.read(broken)


@pytest.mark.skipif("NULLIUS_TEST_DATA" not in os.environ, reason="NULLIUS_TEST_DATA names no folder of public data sets")
def test_a_real_treebank():
    path = Path(os.environ["NULLIUS_TEST_DATA"]) / "treebanks" / "en_ewt-ud-dev.conllu.xz"
    if not path.exists():
        pytest.skip(f"{path.name} is not in NULLIUS_TEST_DATA")
    text = conllu.read(path)
    sentences = [block for block in lzma.decompress(path.read_bytes()).decode().split("\n\n") if block.strip()]
    classes = [{line.split("\t")[3] for line in block.split("\n") if line and line[0] != "#"} for block in sentences]
    assert Counter(text.tags.tolist())["PUNCT"] == sum(bool(found - {"PUNCT", "SYM", "_"}) for found in classes)
    assert {"NOUN", "VERB", "ADJ", "DET"} <= set(text.tags.tolist())
