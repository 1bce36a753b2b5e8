"""Paths between sites, circuits by edge and their graph, on the tracker that was wired by hand: the four links of its chain, and no others."""

from __future__ import annotations

import numpy as np
import torch

from nullius.instruments import edge_circuits, edges, graph, site_paths
from nullius.instruments.edges import Edge, Edges
from nullius.instruments.planted.tracker import DETECTOR, FETCHER, HEADS, LABELS, LAYERS, OBJECTS, TRANSMITTER, wired
from nullius.instruments.where import Where
from nullius.lab.calibration import Trial, case
from nullius.models.language_model import LanguageModel
from nullius.stimuli import boxes

EFFECT = 0.2  # share of the whole difference: what counts as found
CHAIN = tuple(f"{layer}.{head}" for layer, head in (DETECTOR, TRANSMITTER, FETCHER))
LINKS = (Edge("embed", f"q {CHAIN[0]}"), Edge(CHAIN[0], f"v {CHAIN[1]}"), Edge(CHAIN[1], f"q {CHAIN[2]}"), Edge(CHAIN[2], "logits"))


def _pairs(model: LanguageModel, rng: np.random.Generator, n: int) -> tuple[list[str], list[str], list[list[int]]]:
    """Pairs that ask about different boxes of one list: only the label at the end differs."""
    items = boxes.draw(rng, n, 4, objects=OBJECTS, labels=LABELS, style="short")
    asked = [item.about(int((item.index + rng.integers(1, 4)) % 4)) for item in items]
    answers = [[model.first_token(item.answer), model.first_token(other.answer)] for item, other in zip(items, asked, strict=True)]
    return list(items.field("prompt")), [other.prompt for other in asked], answers


@case(
    "paths between sites",
    planted=f"along each of the four links of the wired chain its sender alone moves more than {EFFECT:.0%} of the whole difference",
    null="the embedding or the fifteen other heads that are not the link's sender, everything between being held",
    modules=("site_paths",),
    seeds=10,
)
def links_of_the_tracker(seed: int) -> Trial:
    """Senders: the embedding and every head's output; receivers: a query, a value, a query, the logits."""
    model = wired(4, seed=seed)
    pairs = _pairs(model, np.random.default_rng(seed), 4)
    senders = {"embed": Where("resid_pre", 0)} | {f"{i}.{j}": Where("z", i, heads=[j]) for i in range(LAYERS) for j in range(HEADS)}
    held = site_paths.all_but(model, range(LAYERS))
    total = Trial(0, 0, 0, 0)
    for link in LINKS:
        site, _, place = link.reader.partition(" ")
        layer, _, head = place.partition(".")
        receiver = Where(site, int(layer), heads=[int(head)]) if place else None
        found = site_paths.patch(model, *pairs[:2], list(senders.values()), pairs[2], receiver=receiver, held=held)
        share = (found.effect().mean(0) / (found.source - found.base).mean()).abs().tolist()
        called = {name for name, value in zip(senders, share, strict=True) if value > EFFECT}
        total += Trial(int(link.writer in called), 1, len(called - {link.writer}), len(senders) - 1)
    return total


@case(
    "circuits by edge",
    planted="pruning keeps the four edges of the wired chain; without them circuit and model fall alike",
    null="eight other edges, which pruning drops; a circuit of those alone, which lacks what the model has",
    modules=("edge_circuits",),
    seeds=6,
)
def edges_of_the_circuit(seed: int) -> Trial:
    """Kept: missed by at least a tenth of the whole difference. Complete: circuit and model differ by less than that share without half of it."""
    model, rng = wired(4, seed=seed), np.random.default_rng(seed)
    pairs = _pairs(model, rng, 4)
    others = [edge for edge in edges.nodes(model).edges() if edge not in LINKS]
    idle = [others[i] for i in rng.permutation(len(others))[:8]]
    left = edge_circuits.minimal(model, *pairs, [*LINKS, *idle], least=0.1).circuit
    complete, lacking = (
        edge_circuits.completeness(model, *pairs, circuit, [part])[0] for circuit, part in ((LINKS, LINKS[:2]), (idle, ()))
    )
    kept, added = len(set(left) & set(LINKS)), len(set(left) & set(idle))
    return Trial(kept + int(complete < 0.1), 5, added + int(lacking < EFFECT), 9)


@case(
    "circuit graph",
    planted="of the graph of the wired chain and of strange edges, written as JSON and read back, the four links lie on a way from the embedding to"
    " the logits; by what lies there the tracker answers as by all edges, to a tenth of the whole difference",
    null="eight strange edges that lie on no such way: out of components that hear nothing, or into some that nobody hears; what lies there"
    " without one link, each in turn, by which the tracker answers just as well",
    modules=("graph", "edges", "edge_runs"),
    seeds=20,
)
def graph_of_the_chain(seed: int) -> Trial:
    """Scores are drawn: which edges are there decides, not how strong they are said to be."""
    model, rng = wired(4, seed=seed), np.random.default_rng(seed)
    pairs, nodes = _pairs(model, rng, 2), edges.nodes(model)
    scores = torch.tensor(rng.normal(size=(1, *nodes.allowed.shape)), dtype=torch.float32) * nodes.allowed
    way = {"embed", *CHAIN, "logits"}
    idle = [name for name in nodes.writers if name not in way]
    deaf = {idle[i] for i in rng.permutation(len(idle))[: len(idle) // 2]}  # these write only, the others hear only
    ends = [(edge, edge.writer, edge.reader if " " not in edge.reader[:2] else edge.reader[2:]) for edge in nodes.edges()]
    strange = [edge for edge, start, end in ends if (start in deaf and end in way) or (start in way and end not in deaf | way)]
    strange = [strange[i] for i in rng.permutation(len(strange))[:8]]
    made = graph.from_json(graph.to_json(graph.build(Edges(nodes, scores), [*LINKS, *strange])))
    left = graph.to_edges(graph.connected(made))
    circuits = [left, *([edge for edge in left if edge != link] for link in LINKS)]
    masks = torch.stack([torch.ones_like(nodes.allowed), torch.zeros_like(nodes.allowed), *(nodes.mask(some) for some in circuits)])
    whole, nothing, *shares = edges.run(model, *pairs, masks).mean(1).tolist()
    alike = [abs(value - whole) < 0.1 * abs(whole - nothing) for value in shares]
    return Trial(len(set(left) & set(LINKS)) + alike[0], 5, len(set(left) - set(LINKS)) + sum(alike[1:]), len(strange) + len(LINKS))
