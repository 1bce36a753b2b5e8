"""The graph of a circuit: what is in it, there and back through JSON, and drawn."""

import json

import pytest
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
    assert set(made) == {"embed", "0.2", "2.0", "2.1", "2.2", "logits", "mlp 1"}  # two query heads share a key-value head
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


def test_there_and_back_and_drawn(found):
    made = graph.build(found, found.strongest(12))
    again = graph.from_json(graph.to_json(made))
    assert dict(again.nodes(data=True)) == dict(made.nodes(data=True))
    assert sorted(again.edges(data="weight")) == sorted(made.edges(data="weight"))
    assert set(json.loads(graph.to_json(made))) >= {"nodes", "links"}
    svg = graph.to_svg(made, "a circuit")
    assert svg.startswith("<?xml")
    assert svg == graph.to_svg(made, "a circuit") or len(svg) == len(graph.to_svg(made, "a circuit"))


def test_refusals(found):
    with pytest.raises(UsageError, match="no edge to draw"):
        graph.build(found, [])
    with pytest.raises(UsageError, match="runs before"):
        graph.build(found, [Edge("2.1", "q 1.0")])
