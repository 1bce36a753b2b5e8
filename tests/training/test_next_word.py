"""Next-word networks: causality, determinism, early stopping, and planted classes that they must, or cannot, come to represent."""

import numpy as np
import pytest
import torch

from nullius.instruments import separation
from nullius.stimuli import grammar
from nullius.stimuli.windows import Vocabulary, windows
from nullius.training import next_word
from nullius.training.next_word import Schedule, Size

TINY = Size(16, (32, 16), 16)
KINDS = ["lstm", "transformer", "bag"]


@pytest.mark.parametrize("kind", KINDS)
def test_no_position_sees_what_comes_after(kind):
    network = next_word.build(kind, 30, TINY, 0)
    words = torch.randint(0, 30, (4, 9), generator=torch.Generator().manual_seed(0))
    other = words.clone()
    other[:, 5] = (other[:, 5] + 1) % 30
    a, b = network(words), network(other)
    assert torch.allclose(a[:, :5], b[:, :5], atol=1e-6)
    assert (a[:, 5] - b[:, 5]).abs().max() > 1e-4


def test_a_bag_of_words_knows_no_order_and_an_lstm_does():
    words = torch.tensor([[1, 2, 3, 4, 5]])
    turned = torch.tensor([[4, 3, 2, 1, 5]])
    bag, lstm = (next_word.build(kind, 10, TINY, 0) for kind in ("bag", "lstm"))
    assert torch.allclose(bag(words)[:, -1], bag(turned)[:, -1], atol=1e-6)
    assert not torch.allclose(lstm(words)[:, -1], lstm(turned)[:, -1], atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_stages_are_those_of_the_network(kind):
    network = next_word.build(kind, 30, TINY, 1)
    contexts = np.random.default_rng(0).integers(0, 30, (700, 9))  # more than one batch
    stages = next_word.record(network, contexts)
    assert next(iter(stages)) == "input"
    assert list(stages)[-1] == "dense"
    assert len(stages) == 4
    embedded = network.embed(torch.from_numpy(contexts)).flatten(1)
    assert np.allclose(stages["input"], embedded.detach().numpy())
    logits = network.unembed(torch.from_numpy(stages["dense"]))
    assert torch.allclose(logits, network(torch.from_numpy(contexts))[:, -1], atol=1e-5)
    full = np.hstack([contexts, np.full((700, 1), 7)])
    assert next_word.log_probability(network, full) == pytest.approx(logits.log_softmax(-1)[:, 7].detach().double().numpy(), abs=1e-5)


def chain(p, words_per_class=5, classes=4, length=20_000, seed=0):
    text = grammar.markov_text(grammar.class_chain(classes, p), words_per_class, length, np.random.default_rng(seed))
    vocabulary = Vocabulary(text, 1000)
    return text, vocabulary, vocabulary.encode(text.words)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_weights(kind):
    _, vocabulary, ids = chain(0.5)
    how = Schedule(3, max_steps=12, every=5)
    before = torch.random.get_rng_state()
    networks = [next_word.build(kind, len(vocabulary), TINY, 3) for _ in range(2)]
    fits = [next_word.fit(network, ids[:15_000], ids[15_000:], how) for network in networks]
    assert fits[0] == fits[1]
    assert fits[0].steps == (0, 5, 10, 12)
    assert all(torch.equal(a, b) for a, b in zip(networks[0].parameters(), networks[1].parameters(), strict=True))
    assert torch.equal(before, torch.random.get_rng_state())


def test_training_stops_when_there_is_nothing_to_learn_and_keeps_the_best():
    _, vocabulary, ids = chain(0.0)
    network = next_word.build("lstm", len(vocabulary), TINY, 0)
    seen, shots = [], []
    fitted = next_word.fit(
        network,
        ids[:300],
        ids[10_000:],
        Schedule(0, max_steps=5000, every=20, patience=2, rate=0.02),
        on_step=lambda done, total: seen.append((done, total)),
        snapshots=(0, 7),
        on_snapshot=lambda step, net: shots.append((step, net is network)),
    )
    assert len(seen) == fitted.steps[-1] == fitted.kept + 40 < 5000
    assert shots == [(0, True), (7, True)]
    held_out = np.lib.stride_tricks.sliding_window_view(ids[10_000:], 10)
    chosen = held_out[np.unique(np.linspace(0, len(held_out) - 1, 2000).astype(int))]
    assert -next_word.log_probability(network, chosen).mean() == pytest.approx(fitted.best, abs=1e-9)


def separated(p, kind="lstm"):
    """GDV by class to come and by class read, at the last hidden layer; and by class read at the word itself."""
    text, vocabulary, ids = chain(p)
    network = next_word.build(kind, len(vocabulary), TINY, 1)
    fitted = next_word.fit(network, ids[:15_000], ids[15_000:17_000], Schedule(1, max_steps=250, every=50, rate=0.01))
    found = windows(text)[np.arange(17_000, 19_900, 3)]
    states = next_word.record(network, vocabulary.encode(found.context))
    word = states["input"][:, -16:]
    by = {name: separation.gdv(states["dense"], labels) for name, labels in (("to come", found.next_class), ("read", found.read_class))}
    return fitted, by, separation.gdv(word, found.read_class)


def test_certain_classes_are_separated_as_far_as_can_be():
    fitted, by, _ = separated(1.0)
    assert fitted.best == pytest.approx(np.log(5), abs=0.05)  # the class is known, the word within it is not
    assert by["to come"] < -0.6  # four corners of a simplex: −0.82
    assert by["to come"] == pytest.approx(by["read"])  # one class follows from the other


def test_separation_follows_predictability():
    values = [separated(p)[1]["to come"] for p in (0.0, 0.5, 0.9)]
    assert values[0] > -0.02
    assert values[0] > values[1] + 0.05 > values[2] + 0.1


def test_unpredictable_classes_are_not_separated_but_the_word_read_is_still_there():
    fitted, by, word = separated(0.0)
    assert fitted.best == pytest.approx(np.log(20), abs=0.05)
    assert abs(by["to come"]) < 0.02
    assert word < -0.03  # five vectors per class: the same word is close to itself
