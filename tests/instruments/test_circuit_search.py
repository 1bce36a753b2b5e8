"""The chain finds the wired tracker's heads in their order; with nothing wired to be found it finds nothing that matters."""

import numpy as np
import pytest

from nullius.instruments.circuit_search import Link, chain
from nullius.instruments.planted import tracker
from nullius.instruments.planted.tracker import DETECTOR, FETCHER, LABELS, OBJECTS, STRUCTURE, TRANSMITTER
from nullius.stimuli import boxes

CHAIN = (("fetchers", "logits"), ("transmitters", "q"), ("detectors", "v"), ("structure readers", "v"))


def links(items, places, size):
    previous, strange = (tuple(4 * index + 3 for index in indices) for indices in ([item.index for item in items], places))
    at = (-1, -1, 17, previous)
    return [
        Link(name, size, where, into, strange if where is previous else None) for (name, into), where in zip(CHAIN, at, strict=True)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(0)
    items = boxes.draw(rng, 60, 4, objects=OBJECTS, labels=LABELS, style="short")
    return items, *boxes.strangers(items, rng, objects=OBJECTS, labels=LABELS)


def search(model, prompts, size):
    items, others, places = prompts
    answers = [[model.first_token(answer)] for answer in items.field("answer")]
    return chain(
        model, items.field("prompt"), others.field("prompt"), answers, links(items, places, size), metric=lambda scores: scores[:, 0]
    )


def test_planted_chain(prompts):
    found = search(tracker.wired(4), prompts, 1)
    heads = [[(head.layer, head.head) for head in group.heads] for group in found.groups]
    assert heads == [[FETCHER], [TRANSMITTER], [DETECTOR], [STRUCTURE]]
    for group, effect in zip(found.groups, found.effects, strict=True):
        head = group.heads[0]
        assert float(effect[head.layer, head.head]) < -0.5
        effect[head.layer, head.head] = 0
        assert effect.abs().max() < 0.1  # all others are faint


def test_null_a_tracker_by_label_has_no_place_to_pass_on(prompts):
    """There the detector does nothing, so that the chain breaks at it."""
    found = search(tracker.wired(4, "label"), prompts, 1)
    assert [(head.layer, head.head) for head in found.groups[0].heads] == [FETCHER]
    assert float(found.effects[2].abs().max()) < 0.1
