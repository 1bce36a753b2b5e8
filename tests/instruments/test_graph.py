"""The graph of a circuit: what is in it, there and back through JSON, and drawn."""

import json

import networkx as nx
import pytest
import torch
from tests.instruments.test_patching import ANSWERS, pairs
from tests.instruments.test_paths import wired_chain

from nullius.errors import UsageError
from nullius.instruments import edges, graph
from nullius.instruments.edges import Edge


@pytest.fixture(scope="module")
def found(tokenizer):
    model = wired_chain(tokenizer)
    return edges.attribute(model, *pairs(model), ANSWERS)


def test_planted_graph(found):
    which = [
        Edge("embed", "q 0.2"), Edge("embed", "v 0.1"), Edge("0.2", "q 2.1"), Edge("0.2", "k 2.0"), Edge("2.1", "logits"), Edge("mlp 1", "v 2.1"),
    ]  # fmt: skip
    made = graph.build(found, which)
    assert set(made) == {"embed", "0.2", "0.3", "2.0", "2.1", "2.2", "2.3", "logits", "mlp 1"}  # two query heads share a key-value head
    assert made.edges["0.2", "2.0"]["inputs"] == ["k"]  # key 2.0 is heard by heads 2.0 and 2.1, and value 2.1 by 2.2 and 2.3
    assert made.edges["0.2", "2.1"]["inputs"] == ["q", "k"]
    assert set(made.successors("mlp 1")) == {"2.2", "2.3"}
    assert made.nodes["logits"] == {"kind": "logits", "layer": 3}
    assert made.nodes["mlp 1"] == {"kind": "mlp", "layer": 1}
    mean = found.scores.mean(0)
    weight = float(mean[found.nodes.writers.index("embed"), found.nodes.readers.index("q 0.2")])
    more = float(mean[found.nodes.writers.index("embed"), found.nodes.readers.index("v 0.1")])
    assert made.edges["embed", "0.2"]["inputs"] == ["q", "v"]
    assert made.edges["embed", "0.2"]["weight"] == pytest.approx(weight + more)
    way = graph.connected(made)
    assert set(way) == {"embed", "0.2", "2.1", "logits"}
    assert len(graph.connected(graph.build(found, which[:1]))) == 0


def test_a_head_that_shares_its_value_hears_it(found):
    """The way goes through the value that head 2.3 shares with 2.2: it was drawn to 2.2 alone, and nothing seemed to lead to the logits."""
    which = [Edge("embed", "mlp 1"), Edge("mlp 1", "v 2.1"), Edge("2.3", "logits")]
    assert set(graph.connected(graph.build(found, which))) == {"embed", "mlp 1", "2.3", "logits"}
    twice = graph.build(found, which * 2)
    assert dict(twice.edges["embed", "mlp 1"]) == dict(graph.build(found, which).edges["embed", "mlp 1"])


def test_there_and_back_and_drawn(found):
    made = graph.build(found, found.strongest(12))
    again = graph.from_json(graph.to_json(made))
    assert dict(again.nodes(data=True)) == dict(made.nodes(data=True))
    assert sorted(again.edges(data="weight")) == sorted(made.edges(data="weight"))
    assert graph.to_edges(again) == graph.to_edges(made)
    assert set(graph.to_edges(again)) == set(found.strongest(12))
    assert torch.equal(found.nodes.mask(graph.to_edges(again)), found.keep(12))
    assert set(json.loads(graph.to_json(made))) >= {"nodes", "links"}
    svg = graph.to_svg(made, "a circuit")
    assert svg.startswith("<?xml")
    assert svg == graph.to_svg(made, "a circuit") or len(svg) == len(graph.to_svg(made, "a circuit"))


def test_refusals(found):
    with pytest.raises(UsageError, match="no edge to draw"):
        graph.build(found, [])
    with pytest.raises(UsageError, match="runs before"):
        graph.build(found, [Edge("2.1", "q 1.0")])
    for text in ("garbage", "[]", "{}", '{"nodes": 3, "links": 4}'):
        with pytest.raises(UsageError, match="no graph in node-link JSON"):
            graph.from_json(text)
    with pytest.raises(UsageError, match="no edge to draw"):
        graph.to_svg(graph.connected(graph.build(found, [Edge("embed", "q 0.2")])))
    with pytest.raises(UsageError, match="lack inputs or weights"):
        graph.to_edges(nx.DiGraph([("embed", "logits")]))
