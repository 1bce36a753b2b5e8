"""The study goes through; an unlearnable order is found where there is one, and nothing where words are independent."""

import numpy as np
import pytest
import torch

from nullius.errors import UsageError
from nullius.instruments.interchange import carried, interchange
from nullius.lab import runner
from nullius.lab.studies import get
from nullius.stimuli import agreement
from nullius.stimuli.agreement import Sentence
from nullius.stimuli.perturbations import PLURAL, SINGULAR, Perturbed
from nullius.studies.learning import impossible_languages as module
from nullius.training import languages, sentences
from nullius.training.languages import Lessons, School
from nullius.training.sentences import Size

SLUG = "impossible-languages"
TINY = Size(2, 32, 2, 48)
CPU = torch.device("cpu")
quiet = lambda label, done, total: None  # noqa: E731


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(module, "QUICK", module.Plan(Lessons(200, 30, 3, 8, 1e-2, TINY), 8))
    monkeypatch.delenv("NULLIUS_TEXT", raising=False)


def test_through_on_a_toy_and_again(toy, small):
    record = runner.run(get(SLUG), toy)
    words = {verdict.claim.id: verdict.word for verdict in record.verdicts}
    assert set(words) == {claim.id for claim in module.CLAIMS}
    assert words["released-models"] == "out of reach"
    assert "holds" not in {words[name] for name in ("marker-surprise", "number-moves", "token-hop-weaker")}  # three steps teach nothing
    assert words["counters-carry-it"] == "out of reach"  # nor do the counters know any number
    assert sum("against the other one, at the same place" in note for note in record.data["notes"]) == 3
    drawn = {entry["name"] for entry in record.data["artefacts"]}
    assert {"figure.svg", "figure-interchange.svg"} <= drawn
    again = runner.run(get(SLUG), toy)
    assert [v.effect for v in again.verdicts] == [v.effect for v in record.verdicts]


def test_a_file_of_ones_own_at_full_scale(toy, small, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "FULL", module.Plan(Lessons(150, 30, 2, 8, 1e-2, TINY, seeds=2), 6, ("LocalShuffle5",)))
    monkeypatch.setenv("NULLIUS_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UsageError, match="set NULLIUS_TEXT"):
        runner.run(get(SLUG), toy, full=True, options={"text": "file"})
    path = tmp_path / "text.txt"
    rng = np.random.default_rng(0)
    path.write_text(" ".join(" ".join(agreement.sentence(rng).words).capitalize() for _ in range(500)), "utf-8")
    monkeypatch.setenv("NULLIUS_TEXT", str(path))
    record = runner.run(get(SLUG), toy, full=True, options={"text": "file"})
    assert len(record.verdicts) == len(module.CLAIMS)
    alike = record.verdict("constituents-alike")  # "of every network" cannot be said of the hops alone
    assert alike.word == "out of reach"
    assert alike.note == "in TokenHop, WordHop"
    assert not list((tmp_path / "cache" / "trained").iterdir())


def source(name: str, n: int, seed: int) -> list[Sentence]:
    """Sentences of eight tokens: each the successor of the one before (order is everything), or drawn for itself (order is nothing)."""
    rng = np.random.default_rng(seed)
    rows = (rng.integers(12, size=(n, 1)) + np.arange(8)) % 12 if name == "chain" else rng.integers(12, size=(n, 8))
    return [Sentence(tuple(f"w{i}" for i in row), 0, 0, False, False, (), 0.0) for row in rows.tolist()]


def taught(name: str) -> School:
    lessons = Lessons(600, 60, 120, 24, 1e-2, Size(1, 32, 2, 20))
    return School(lessons, [f"w{i}" for i in range(12)], source(name, 600, 0), source(name, 60, 1), 0, CPU, quiet)


def test_order_is_found_where_it_is_and_the_floor_is_reached():
    """A chain has log 12 nats in its first token and none after it, whatever fixed order it is written in; a fresh order for each sentence adds
    the choice of the order."""
    school = taught("chain")
    none, rule, chance = (school.learn(name).final for name in ("NoShuffle", "EvenOddShuffle", "NondeterministicShuffle"))
    floor = np.log(12) / 9
    assert none.mean() == pytest.approx(floor, abs=0.05)
    assert rule.mean() == pytest.approx(floor, abs=0.12)
    assert chance.mean() > none.mean() + 0.5


def test_no_order_makes_a_difference_to_independent_words():
    school = taught("independent")
    none, rule, chance = (school.learn(name).final for name in ("NoShuffle", "DeterministicShuffle21", "NondeterministicShuffle"))
    floor = 8 * np.log(12) / 9
    assert none.mean() == pytest.approx(floor, abs=0.05)
    assert abs(rule.mean() - none.mean()) < 0.03
    assert abs(chance.mean() - none.mean()) < 0.03


def test_independent_words_keep_lengths_and_frequencies():
    school = languages.of_grammar(Lessons(400, 50, 1, 8, 1e-2, TINY), 0, CPU, quiet)
    chaos = school.independent()
    assert [len(s.words) for s in chaos.train] == [len(s.words) for s in school.train]
    before, after = (np.mean([word == "the" for s in part.train for word in s.words]) for part in (school, chaos))
    assert abs(before - after) < 0.03


def test_a_renamed_language_is_the_same_language():
    school = languages.of_grammar(Lessons(200, 20, 2, 8, 1e-2, TINY), 0, CPU, quiet)
    plain, renamed = school.learn("NoShuffle"), school.learn("NoShuffle", rename=True)
    assert [len(p.words) for p in plain.test] == [len(p.words) for p in renamed.test]
    pairs = {(a, b) for p, q in zip(plain.test, renamed.test, strict=True) for a, b in zip(p.words, q.words, strict=True)}
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def test_surprisals_are_those_of_the_model_one_by_one():
    model = sentences.fresh(["a", "b", "c"], TINY, 0)
    texts = [("a", "b"), ("c",), ("a", "a", "b", "c")]
    for text, found in zip(texts, sentences.surprisals(model, texts), strict=True):
        ids = [0, *({"a": 1, "b": 2, "c": 3}[word] for word in text), 0]
        scores = model.hf(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        assert found == pytest.approx([-float(scores[i, ids[i + 1]]) for i in range(len(ids) - 1)], rel=1e-4)


def test_the_other_number_is_surprising_at_the_same_place():
    """Trained on one number alone, whatever the words: the other is a surprise, and the sign follows the sentence's own number."""
    words = ["a", "b", SINGULAR, PLURAL]
    model = sentences.fresh(words, TINY, 0)
    sentences.train(model, sentences.rows(model, [("a", SINGULAR, "b")] * 40, 8), 30, rate=1e-2, batch=8, seed=0)
    test = [Perturbed(("a", SINGULAR, "b"), (0, 2), 1), Perturbed(("a", PLURAL, "b"), (0, 2), 1), Perturbed(("a", "b"), (0, 1))]
    own, other = languages.number_surprise(model, test)
    assert own > 1
    assert other == pytest.approx(-own, rel=1e-4)


def test_rows_hold_whole_sentences():
    model = sentences.fresh(["a", "b"], Size(1, 16, 2, 8), 0)
    packed = sentences.rows(model, [("a",) * 3, ("b",) * 2, ("a",) * 5, ("b",) * 20], 8)
    assert packed.tolist() == [[0, 1, 1, 1, 0, 2, 2, 0], [0, 1, 1, 1, 1, 1, 0, 0], [0, 2, 2, 2, 2, 2, 2, 2]]


def test_without_positions_the_last_state_is_of_a_bag_of_words():
    """One layer, no positions: the last token cannot tell the order of those before it."""
    blind, sighted = (sentences.fresh(["a", "b", "c"], Size(1, 16, 2, 8, positions), 0) for positions in (False, True))
    texts = [("a", "b", "c"), ("b", "a", "c")]
    for model, same in ((blind, True), (sighted, False)):
        one, two = (found[-1] for found in sentences.surprisals(model, texts))
        assert (abs(one - two) < 1e-5) == same
    sentences.train(blind, sentences.rows(blind, texts * 20, 8), 3, rate=1e-2, batch=2, seed=0)
    assert not blind.hf.transformer.wpe.weight.any()


def test_interchange_finds_the_place_that_decides(toy):
    """Wired: the answer hangs on one token alone, since the pairs differ there, and after the last block only the last token matters."""
    base, other = [[5, 6, 7, 8]] * 4, [[5, 9, 7, 8]] * 4
    last = toy.hf(input_ids=torch.tensor([base[0], other[0]])).logits[:, -1]
    gain = last[1] - last[0]
    answers = [(int(gain.argmax()), int(gain.argmin()))] * 4
    found = interchange(toy, base, other, answers)
    assert found.flipped.shape == (4, 3, 4)
    assert not found.flipped[:, :, 0].any()
    assert not found.flipped[:, -1, :-1].any()
    assert (found.flipped[:, -1, -1] == 1).all() == bool(found.correct.all())


def test_what_is_carried_is_chosen_on_one_half_and_tested_on_the_other():
    flipped = np.zeros((1, 10, 3, 6))
    flipped[:, :, 0, 1] = 1  # at the subject after the first block, at the end after the second
    flipped[:, :, 1:, 5] = 1
    there, between, best = carried(flipped, (1, 5))
    assert best == [0, 1]
    assert there.tolist() == [1.0] * 5
    assert between.tolist() == [0.0] * 5
    flipped[:, 5:, :, 3] = 1  # another way, in the second half
    assert carried(flipped, (1, 5))[1] == pytest.approx(np.full(5, 1 / 3))
    flipped[:, :5, 0, 5], flipped[:, :5, 0, 1] = 1, 0  # chosen wrongly
    assert carried(flipped, (1, 5))[0] == pytest.approx(np.full(5, 0.5))
