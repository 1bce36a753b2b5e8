"""Circuits by edge: a planted one is complete and minimal, padded ones are pruned to it, one that lacks a spare is seen to."""

import numpy as np
import pytest
import torch
from tests.instruments.test_patching import ANSWERS, pairs
from tests.instruments.test_paths import wired_chain

from nullius.errors import UsageError
from nullius.instruments import circuits, edge_circuits, edges
from nullius.instruments.edges import Edge


def wired(tokenizer):
    """0.2 tells the values of key-value head 0, which 2.1 reads at the last token, whose own word is the same in both texts."""
    model = wired_chain(tokenizer)
    base, source = pairs(model)
    base.input_ids[:, -1] = source.input_ids[:, -1]
    return model, base, source


def test_a_planted_circuit_is_complete_and_minimal(tokenizer):
    model, base, source = wired(tokenizer)
    found = edges.attribute(model, base, source, ANSWERS, steps=4)
    circuit = found.strongest(25)
    carried = circuits.edge_faithfulness(model, base, source, ANSWERS, found, [25])[0]
    least = edge_circuits.minimal(model, base, source, ANSWERS, circuit)
    assert 1 < len(least.circuit) < 15
    assert least.faithfulness == pytest.approx(carried, abs=0.1)
    assert min(abs(value) for value in least.missed.values()) >= 0.01 - 1e-6
    alive = ("embed", "0.2", "2.1")
    silent = [Edge("1.0", "q 2.1"), Edge("1.3", "logits"), Edge("mlp 0", "v 2.0"), Edge("mlp 1", "logits")]
    assert all(edge.writer in alive for edge in least.circuit)
    padded = edge_circuits.minimal(model, base, source, ANSWERS, [*least.circuit, *silent])
    assert padded.circuit == least.circuit  # null: what a silent part writes is never missed
    rng = np.random.default_rng(0)
    every = [edge for edge in found.nodes.edges() if edge.writer in alive]
    parts = edge_circuits.random_parts(every, 3, rng)
    assert edge_circuits.completeness(model, base, source, ANSWERS, every, parts).max() < 1e-4  # nothing outside stands in for it


def test_a_spare_that_the_circuit_lacks_is_seen(tokenizer):
    """Without the embedding's edge to the logits nothing is lost from a circuit that never had the heads; the model still has them."""
    model, base, source = wired(tokenizer)
    some = [edge for edge in edges.nodes(model).edges() if edge.writer == "embed"]
    lacking = edge_circuits.completeness(model, base, source, ANSWERS, some, [[]])
    assert lacking[0] > 0.1


def test_an_understudy_stays_when_its_twin_goes(toy):
    """A metric that is content with half of what either of two ways brings, straight or over a feed-forward block: one way goes, one is missed."""
    one, other = (toy.pad(batch.input_ids[:1].tolist()) for batch in pairs(toy))
    graph = edges.nodes(toy)
    straight, over = [Edge("embed", "logits")], [Edge("embed", "mlp 1"), Edge("mlp 1", "logits")]
    masks = torch.stack([graph.allowed, *(graph.mask(some) for some in ([], straight, over, [*straight, *over]))])
    answers = [[978, 3]]  # all of them speak for this word
    whole, nothing, *brought = edges.run(toy, one, other, answers, masks)[:, 0].tolist()
    enough = min(value - nothing for value in (whole, *brought)) / 2
    assert enough > 5e-3

    def content(logits):
        return (logits[:, 0] - logits[:, 1] - nothing).clamp(0, enough)

    found = edge_circuits.minimal(toy, one, other, answers, [*straight, *over], metric=content)
    assert found.circuit == tuple(straight)
    assert found.missed == {straight[0]: pytest.approx(1)}


def test_bad_input_is_one_line(tokenizer):
    model, base, source = wired(tokenizer)
    with pytest.raises(UsageError, match=r"no writer '9\.9'"):
        edge_circuits.completeness(model, base, source, ANSWERS, [Edge("9.9", "logits")], [[]])
    with pytest.raises(UsageError, match="nothing for a circuit to carry"):
        edge_circuits.minimal(model, base, base, ANSWERS, [Edge("embed", "logits")])
