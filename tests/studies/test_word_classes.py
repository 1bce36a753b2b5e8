"""The study goes through on a toy; planted truth is found, and nothing where there is nothing."""

import gzip

import numpy as np
import pytest

from nullius.errors import NulliusError, UsageError
from nullius.instruments import next_class
from nullius.lab import runner
from nullius.lab.studies import get
from nullius.stimuli import grammar
from nullius.stimuli.windows import Vocabulary, windows
from nullius.studies.learning import word_classes as module
from nullius.training.next_word import Size

SLUG = "word-classes"
SMALL = module.Plan(30_000, 1, Size(32, (48, 32), 32), 300, (0, 100), (12, 5, 6, 12), (4, 4, 6, 4))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(module, "QUICK", SMALL)
    monkeypatch.delenv(module.FILE, raising=False)


def test_through_on_a_toy_and_again(toy):
    record = runner.run(get(SLUG), toy)
    words = {verdict.claim.id: verdict.word for verdict in record.verdicts}
    assert set(words) == {claim.id for claim in module.CLAIMS}
    assert words["next-class-clusters"] == words["learned"] == words["open-classes"] == "holds"
    assert record.verdict("next-class-clusters").effect.estimate < -0.1
    assert {claim: word for claim, word in words.items() if claim.startswith("subject") and word == "holds"} == {}  # random weights
    assert words["in-a-novel"] == words["acquisition"] == "out of reach"
    again = runner.run(get(SLUG), toy)
    assert [v.effect for v in again.verdicts] == [v.effect for v in record.verdicts]


def test_on_text_in_random_order_nothing_holds(toy, monkeypatch):
    make = grammar.english_text
    monkeypatch.setattr(grammar, "english_text", lambda length, rng: make(length, rng).shuffled(rng))
    record = runner.run(get(SLUG), toy)
    assert [verdict.claim.id for verdict in record.verdicts if verdict.word == "holds" and verdict.claim.id != "absent-at-input"] == []


def test_conllu_text_and_other_networks(toy, monkeypatch, tmp_path):
    text = grammar.english_text(25_000, np.random.default_rng(0))
    lines, number = [], 0
    for word, tag in zip(text.words.tolist(), text.tags.tolist(), strict=True):
        number += 1
        lines.append("\t".join([str(number), word, "_", tag, *"______"]))
        if word == ".":
            lines.append("")
            number = 0
    path = tmp_path / "text.conllu.gz"
    path.write_bytes(gzip.compress("\n".join([*lines, ""]).encode()))
    with pytest.raises(UsageError, match="set NULLIUS_CONLLU"):
        runner.run(get(SLUG), toy, options={"text": "conllu"})
    monkeypatch.setenv(module.FILE, str(path))
    record = runner.run(get(SLUG), toy, options={"text": "conllu", "network": "transformer"})
    assert any("text.conllu.gz" in note for note in record.data["notes"])
    assert record.verdict("next-class-clusters").effect.estimate < -0.05


def drawn_and_held_out(n=12_000):
    held_out = windows(grammar.english_text(n, np.random.default_rng(1)))
    rank = Vocabulary(grammar.english_text(n, np.random.default_rng(2)), 5000).encode(held_out.next_word)
    drawn = next_class.draw(held_out, rank, np.random.default_rng(3), n_blocks=4, per_class=10, same_word=6, words=10)
    return drawn, held_out, rank


def test_what_is_drawn():
    drawn, _, _ = drawn_and_held_out()
    assert not set(drawn.windows.next_class.tolist()) & {"PUNCT", "X"}
    for chosen in drawn.blocks:
        assert sorted(drawn.permuted[chosen].tolist()) == sorted(drawn.windows.next_class[chosen].tolist())
    for chosen in drawn.open_blocks:
        assert set(drawn.windows.next_class[chosen].tolist()) <= set(grammar.OPEN)
    for word, chosen in drawn.same_word.items():
        assert set(drawn.windows.read_word[chosen].tolist()) == {word}


def test_planted_states_are_told_apart():
    """One reader holds the class to come, one only the word read, one nothing."""
    drawn, _, _ = drawn_and_held_out()
    rng = np.random.default_rng(4)
    names, code = np.unique(drawn.windows.next_class, return_inverse=True)
    word = np.unique(drawn.windows.read_word, return_inverse=True)[1]
    noise = rng.normal(size=(len(code), 12))
    knows, echo = noise + 6 * np.eye(12)[code], noise + 3 * rng.normal(size=(word.max() + 1, 12))[word]
    assert len(names) <= 12
    reading = drawn.measure({"input": noise, "echo": echo, "knows": knows})
    assert abs(reading.to_come["input"].mean()) < 0.02
    assert abs(reading.same_word["echo"].mean()) < 0.02  # the word read cannot separate what shares it
    assert reading.same_word["knows"].mean() < -0.1
    assert reading.to_come["knows"].mean() < -0.1
    assert abs(reading.permuted["knows"].mean()) < 0.03
    assert reading.slope().mean() < -0.1
    assert reading.giving_way().mean() < reading.slope().mean() + 0.1
    assert drawn.probe(knows).mean() > 0.95
    assert drawn.probe(noise).mean() == pytest.approx(1 / len(names), abs=0.06)
    assert drawn.probe(noise).shape == drawn.block_of().shape
    assert drawn.describe(knows, rng, 99)["p by permuted runs"] == pytest.approx(0.01)
    assert drawn.describe(noise, rng, 99)["p by permuted runs"] > 0.05


def test_exchanged_contexts_keep_only_the_word_read():
    drawn, held_out, _ = drawn_and_held_out()
    other = next_class.exchanged(drawn.windows, held_out, np.random.default_rng(5))
    assert np.array_equal(other[:, -1], drawn.windows.read_word)
    pool = {tuple(row) for row in held_out.context.tolist()}
    assert all(tuple(row) in pool for row in other.tolist())
    assert (other[:, :-1] == drawn.windows.context[:, :-1]).mean() < 0.2


def test_too_short_a_text_is_one_line():
    held_out = windows(grammar.english_text(400, np.random.default_rng(1)))
    with pytest.raises(NulliusError, match="the text is too short"):
        next_class.draw(held_out, np.full(len(held_out), 99), np.random.default_rng(0), n_blocks=4, per_class=10, same_word=6, words=10)
