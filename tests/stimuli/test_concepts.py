"""The sets are balanced in every way they promise, and the readers of the paper's files read them."""

import gzip
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullius.errors import NulliusError, UsageError
from nullius.stimuli import concept_files, concepts, noise

DATA = os.environ.get("NULLIUS_TEST_DATA")


@pytest.fixture
def made():
    return {concept.name: concept for concept in concepts.in_package(np.random.default_rng(0))}


def test_sizes_and_kinds(made):
    assert {name: concept.kind for name, concept in made.items()} == {
        "city": "factual", "sentiment": "emotional", "comparison": "inferential", "coin-2": "inferential", "coin-4": "inferential",
    }  # fmt: skip
    for concept in made.values():
        assert len(concept) == 240 == len(set(concept.texts)) or concept.name.startswith("coin")
        assert concept.labels.mean() == 0.5
        assert len(set(concept.groups)) >= 15


def test_every_word_of_a_group_is_as_often_with_either_label(made):
    """What makes the label an exclusive-or: no word tells it, within a group or overall."""
    for concept in made.values():
        counts = {0: Counter(), 1: Counter()}
        for text, label, group in zip(concept.texts, concept.labels, concept.groups, strict=True):
            counts[label].update((group, word) for word in text.replace(".", "").split())
        if concept.name != "coin-2":
            assert counts[0] == counts[1], concept.name


def test_coin_words_balance_in_number_and_length(made):
    """Turning twice or never gives heads: words are balanced, stories of a group equally long."""
    for name in ("coin-2", "coin-4"):
        concept = made[name]
        for group in set(concept.groups):
            members = [(text, label) for text, label, g in zip(concept.texts, concept.labels, concept.groups, strict=True) if g == group]
            assert len({len(text.split()) for text, _ in members}) == 1
            turns = {label: sum(text.count("turns") for text, given in members if given == label) for label in (0, 1)}
            assert turns[0] == turns[1]


def test_labels_by_an_independent_reading(made):
    for text, label in zip(made["comparison"].texts, made["comparison"].labels, strict=True):
        left, _, word, _, right = text.rstrip(".").split()
        assert (int(left) > int(right) if word == "larger" else int(left) < int(right)) == bool(label)
    for name in ("coin-2", "coin-4"):
        for text, label in zip(made[name].texts, made[name].labels, strict=True):
            heads = True
            for sentence in text.split(". ")[1:]:
                heads ^= "turns" in sentence
            assert heads == bool(label)
    city = dict(zip(made["city"].texts, made["city"].labels, strict=True))
    assert sum(city.values()) == 120
    facts = {text for text, label in city.items() if label}
    table = dict(
        line.split(",", 1) for line in (Path(concepts.__file__).parent / "data" / "cities.csv").read_text("utf-8").splitlines()[1:]
    )
    assert all(fact == f"The city of {place} is in {table[place]}." for fact in facts for place in [fact[12:].split(" is in ")[0]])
    sentiment = dict(zip(made["sentiment"].texts, made["sentiment"].labels, strict=True))
    good = {pair.split("/")[0] for pair in concepts.ADJECTIVES}
    for text, label in sentiment.items():
        negated = any(word in text.split() for word in ("not", "hardly", "never"))
        assert (text.rstrip(".").split()[-1] in good) ^ negated == bool(label)


@given(st.integers(4, 400), st.integers(0, 2**31))
def test_sample_takes_whole_groups(n, seed):
    rng = np.random.default_rng(seed)
    concept = concepts.sentiment(rng, 240)
    items = concept.sample(n, rng)
    part = concept.select(items)
    assert min(n, 240) <= len(part) < n + 8 or len(part) == 240
    assert not set(part.groups) & set(np.delete(concept.groups, items))
    assert part.labels.mean() == 0.5
    assert [concept.texts[i] for i in items] == list(part.texts)


def test_same_seed_same_stimuli():
    one, two = (concepts.in_package(np.random.default_rng(7), 40) for _ in range(2))
    assert [c.texts for c in one] == [c.texts for c in two]


def test_noise_leaves_the_text_behind_the_prefix():
    assert noise.glue(["It is."], "aaa") == ["aaaIt is."]
    assert noise.lead(["It is."], "Note:") == ["Note: It is."]


def write_sets(folder):
    rows = "".join(f"The city of C{i} is in X.,{i % 2},C{i // 2}\n" for i in range(40))
    (folder / "cities.csv").write_text("statement,label,city\n" + rows, "utf-8")
    claims = "".join(f'{i},"Claim, {i}",{("True", "False", "Neither")[i % 3]},1\n' for i in range(60))
    with gzip.open(folder / "common_claim.csv.gz", "wt", encoding="utf-8") as file:
        file.write(",examples,label,agreement\n" + claims)
    (folder / "stsa.binary.train").write_text("".join(f"{i % 2} a film of kind {i}\n" for i in range(50)), "utf-8")
    (folder / "hateeval.tsv").write_text("text\tHS\tTR\tAG\n" + "".join(f"tweet {i}\t{i % 2}\t0\t0\n" for i in range(30)), "utf-8")
    headlines = (json.dumps({"headline": f"area man {i}", "is_sarcastic": i % 2}) for i in range(30))
    (folder / "sarcasm.json").write_text("\n".join(headlines), "utf-8")
    strategy = [{"input": f"Would {i} sink?", "target": f"{'Yes' if i % 2 else 'No'}. It weighs {i}."} for i in range(30)]
    (folder / "StrategyQA_task.json").write_text(json.dumps({"examples": strategy}), "utf-8")
    coins = [{"question": f"A coin {i}?", "answer": "yes" if i % 2 else "no"} for i in range(30)]
    (folder / "coin_flip.json").write_text(json.dumps({"examples": coins}), "utf-8")


def test_files_of_the_paper(tmp_path):
    write_sets(tmp_path)
    found = {concept.name: concept for concept in concept_files.from_folder(tmp_path, np.random.default_rng(0))}
    assert list(found) == ["cities", "common-claim", "stsa", "sarcasm", "hateeval", "strategyqa", "coinflip"]
    assert all(concept.labels.mean() == 0.5 for concept in found.values())
    assert len(set(found["cities"].groups)) == 20
    assert all(int(text.split(", ")[1]) % 3 == (0 if label else 1) for text, label in
               zip(found["common-claim"].texts, found["common-claim"].labels, strict=True))  # fmt: skip
    for text, label in zip(found["strategyqa"].texts, found["strategyqa"].labels, strict=True):
        assert "Yes" not in text
        assert "No" not in text
        assert int(text.split()[1]) % 2 == label
    limited = concept_files.from_folder(tmp_path, np.random.default_rng(0), limit=20)
    assert {len(concept) for concept in limited} == {20}


def test_clear_errors(tmp_path):
    with pytest.raises(UsageError, match="no folder"):
        concept_files.from_folder(tmp_path / "nowhere", np.random.default_rng(0))
    with pytest.raises(UsageError, match=r"holds none of the concept data sets: cities\.csv"):
        concept_files.from_folder(tmp_path, np.random.default_rng(0))
    (tmp_path / "cities.csv").write_text("sentence,label\nx,1\n", "utf-8")
    with pytest.raises(NulliusError, match=r"cannot read .*cities\.csv as the data set 'cities': KeyError"):
        concept_files.from_folder(tmp_path, np.random.default_rng(0))
    (tmp_path / "cities.csv").unlink()
    (tmp_path / "coin_flip.json.xz").write_bytes(b"not xz")
    with pytest.raises(NulliusError, match="cannot read"):
        concept_files.from_folder(tmp_path, np.random.default_rng(0))
    (tmp_path / "coin_flip.json.xz").unlink()
    (tmp_path / "coin_flip.json").write_text(json.dumps([{"question": "one?", "answer": "yes"}]), "utf-8")
    with pytest.raises(NulliusError, match="fewer than 10 usable items"):
        concept_files.from_folder(tmp_path, np.random.default_rng(0))


@pytest.mark.skipif(not DATA, reason="NULLIUS_TEST_DATA names no folder of public data sets")
def test_the_real_files():
    rng = np.random.default_rng(0)
    found = {}
    for folder in ("truth", "concept_depth"):
        found |= {concept.name: concept for concept in concept_files.from_folder(Path(DATA) / folder, rng)}
    assert {"cities", "counterfact", "common-claim", "stsa", "imdb", "sarcasm", "strategyqa", "coinflip"} <= set(found)
    sizes = {name: len(concept) for name, concept in found.items()}
    assert sizes["cities"] >= 700
    assert sizes["counterfact"] == 4000
    assert sizes["strategyqa"] > 1500
    assert all(len(text) > 3 for concept in found.values() for text in concept.texts)
    assert all(concept.labels.mean() == 0.5 for concept in found.values())
    assert not any(text.startswith(("Yes", "No.")) for text in found["strategyqa"].texts)
