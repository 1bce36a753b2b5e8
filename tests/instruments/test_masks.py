"""Desiderata-based masks: exactly the wired heads are found, with the right desideratum and none with another; shuffled targets find nothing."""

import numpy as np
import pytest
import torch
from tests.instruments.test_patching import pairs

from nullius.errors import UsageError
from nullius.instruments import masks, taps
from nullius.instruments.heads import Head
from nullius.instruments.masks import Desideratum
from nullius.instruments.planted import tracker
from nullius.instruments.planted.tracker import DETECTOR, FETCHER, HEADS, LABELS, LAYERS, OBJECTS, TRANSMITTER
from nullius.stimuli import boxes

EVERY = [Head(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
QUERY_LABEL, LAST = 17, 18


def desideratum(model, n=6):
    base, source = pairs(model, n=n, first=2)
    return Desideratum(base, source, tuple(range(20, 20 + n)), tuple(3 + i % 4 for i in range(n)), tuple(2 + i % 5 for i in range(n)))


def test_accuracy_is_the_plain_interchange(toys):
    for family in ("llama", "gpt2", "phi3"):
        model = toys[family]
        pair = desideratum(model)
        heads = [Head(0, 1), Head(1, 3), Head(1, 0)]
        theirs = taps.read(model, pair.source, ["z"], positions="all")["z"]

        def paste(z, layer, pair=pair, theirs=theirs):
            z = z.clone()
            for i in range(6):
                for head in {0: [1], 1: [0, 3]}[layer]:
                    z[i, pair.at[i], head] = theirs[layer][i, pair.source_at[i], head]
            return z

        with torch.no_grad(), taps.edit(model, "z", 0, lambda z: paste(z, 0)), taps.edit(model, "z", 1, lambda z: paste(z, 1)):
            said = model.logits(pair.base).argmax(-1)
        own = Desideratum(pair.base, pair.source, tuple(said.tolist()), pair.at, pair.source_at)
        assert masks.accuracy(model, own, heads).tolist() == [1.0] * 6
        assert masks.accuracy(model, own, heads, batch_size=4).tolist() == [1.0] * 6
        said = tuple(model.logits(pair.base).argmax(-1).tolist())
        assert masks.accuracy(model, Desideratum(pair.base, pair.source, said, pair.at, pair.source_at), []).mean() == 1


def test_splits_and_refusals(toy):
    pair = desideratum(toy)
    parts = pair.split(np.random.default_rng(0))
    assert [len(part) for part in parts] == [3, 1, 2] or [len(part) for part in parts] == [3, 2, 1]
    assert sorted(sum((part.targets for part in parts), ())) == sorted(pair.targets)
    assert sorted(pair.shuffled(np.random.default_rng(0)).targets) == sorted(pair.targets)
    with pytest.raises(UsageError, match="no candidate heads"):
        masks.learn(toy, pair, pair, [], rng=np.random.default_rng(0))
    with pytest.raises(UsageError, match=r"head 5\.0 does not exist"):
        masks.learn(toy, pair, pair, [Head(5, 0)], rng=np.random.default_rng(0))
    with pytest.raises(UsageError, match="as many sources"):
        Desideratum(pair.base, pair.source, (1,), pair.at, pair.source_at)


def swaps(model, kind, n=128, seed=0):
    """A desideratum on the wired tracker, at the label asked about or at the last token."""
    drawn = boxes.swaps(kind, np.random.default_rng(seed), n, 4, objects=OBJECTS, labels=LABELS, style="short")
    base, source = (model.encode([side.prompt for side in drawn.field(name)]) for name in ("base", "source"))
    targets = tuple(model.first_token(target) for target in drawn.field("target"))

    def at(place):
        return Desideratum(base, source, targets, (place,) * n, (place,) * n)

    return at


def learned(model, pairs, seed=0):
    train, validation, test = pairs.split(np.random.default_rng(seed))
    mask = masks.learn(model, train, validation, EVERY, epochs=6, rng=np.random.default_rng(seed))
    return mask, float(masks.accuracy(model, test, mask.found).mean())


@pytest.fixture(scope="module")
def by_place():
    return tracker.wired(4)


@pytest.fixture(scope="module")
def by_label():
    return tracker.wired(4, "label")


@pytest.mark.parametrize(
    ("kind", "place", "heads"),
    [("position", QUERY_LABEL, {DETECTOR}), ("position", LAST, {TRANSMITTER}), ("object", LAST, {FETCHER})],
)
def test_planted_heads_by_place(by_place, kind, place, heads):
    mask, score = learned(by_place, swaps(by_place, kind)(place))
    assert {(head.layer, head.head) for head in mask.found} == heads
    assert score == 1.0


def test_planted_heads_by_label(by_label):
    """The tracker by label carries the label in the transmitter, and no position anywhere."""
    mask, score = learned(by_label, swaps(by_label, "label")(LAST))
    assert {(head.layer, head.head) for head in mask.found} == {TRANSMITTER}
    assert score == 1.0
    for place in (QUERY_LABEL, LAST):  # a label that the base does not have leaves it to guess among four
        assert learned(by_label, swaps(by_label, "position")(place))[1] < 0.45


def test_null_desiderata(by_place):
    """The tracker by place carries no label; and targets of other pairs come out of no mask."""
    assert learned(by_place, swaps(by_place, "label")(LAST))[1] < 0.1
    pairs = swaps(by_place, "position")(QUERY_LABEL).shuffled(np.random.default_rng(1))
    assert learned(by_place, pairs)[1] < 0.2
