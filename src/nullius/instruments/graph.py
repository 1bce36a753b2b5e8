"""A circuit as a graph: networkx for computing with it, node-link JSON to hand on, a figure to look at.

Nodes are components ("embed", "1.2", "mlp 1", "logits"), placed by layer. An edge says through which of a head's inputs it enters (q, k or v;
several where several do) and carries its weight: the estimated change of the metric.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence

import networkx as nx
import numpy as np

from nullius.errors import UsageError
from nullius.instruments.edges import Edge, Edges


def build(found: Edges, which: Sequence[Edge]) -> nx.DiGraph:
    """The graph of some edges. Nodes carry kind and layer; edges carry weight (mean score, summed over inputs) and inputs, a list.

    Several key-value readers of one group of heads belong to the first head of the group.
    """
    if not which:
        raise UsageError("no edge to draw: keep at least one")
    mean = found.scores.mean(0)
    found.nodes.mask(which)  # raises for edges that do not exist
    shared = _shared(found)
    graph = nx.DiGraph()
    for edge in which:
        into, kind = _component(edge.reader, shared)
        weight = float(mean[found.nodes.writers.index(edge.writer), found.nodes.readers.index(edge.reader)])
        for name in (edge.writer, into):
            graph.add_node(name, kind=_kind(name), layer=_layer(name, found))
        if graph.has_edge(edge.writer, into):
            there = graph.edges[edge.writer, into]
            there["weight"] += weight
            there["inputs"].append(kind)
        else:
            graph.add_edge(edge.writer, into, weight=weight, inputs=[kind])
    return graph


def connected(graph: nx.DiGraph) -> nx.DiGraph:
    """What lies on a way from the embedding to the logits; the rest neither hears nor is heard. Empty where there is no such way."""
    if "embed" not in graph or "logits" not in graph:
        return nx.DiGraph()
    on_the_way = (nx.descendants(graph, "embed") | {"embed"}) & (nx.ancestors(graph, "logits") | {"logits"})
    return graph.subgraph(on_the_way).copy() if {"embed", "logits"} <= on_the_way else nx.DiGraph()


def to_json(graph: nx.DiGraph) -> str:
    """Node-link JSON (networkx's own form, edges under "links")."""
    return json.dumps(nx.node_link_data(graph, edges="links"), indent=1, sort_keys=True)


def from_json(text: str) -> nx.DiGraph:
    """Undo `to_json`."""
    return nx.node_link_graph(json.loads(text), edges="links")


def to_svg(graph: nx.DiGraph, title: str = "") -> str:
    """The graph drawn by layer, from the embedding at the bottom to the logits at the top; an edge's width is its weight, its dash its sign."""
    import matplotlib

    matplotlib.use("agg", force=False)
    from matplotlib.figure import Figure

    rows: dict[int, list[str]] = {}
    for name, data in sorted(graph.nodes(data=True), key=lambda item: _order(item[0])):
        rows.setdefault(data["layer"], []).append(name)
    places = {}
    for height, layer in enumerate(sorted(rows)):
        for i, name in enumerate(rows[layer]):
            places[name] = ((i + 0.5) / len(rows[layer]), float(height))
    figure = Figure(figsize=(max(4.0, 0.9 * max(len(row) for row in rows.values())), 1.1 * len(rows) + 0.6))
    axes = figure.add_subplot()
    strongest = max((abs(data["weight"]) for _, _, data in graph.edges(data=True)), default=1.0) or 1.0
    for start, end, data in graph.edges(data=True):
        size = 0.4 + 2.6 * abs(data["weight"]) / strongest
        nx.draw_networkx_edges(
            graph, places, edgelist=[(start, end)], width=size, ax=axes, style="solid" if data["weight"] >= 0 else "dashed",
            connectionstyle="arc3,rad=0.08", edge_color="#555555", arrowsize=7,
        )  # fmt: skip
    nx.draw_networkx_nodes(graph, places, ax=axes, node_color="white", edgecolors="#222222", node_size=620)
    nx.draw_networkx_labels(graph, places, ax=axes, font_size=7)
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _shared(found: Edges) -> int:
    """How many query heads share a key-value head."""
    queries, keys = (sum(name.startswith(f"{site} 0.") for name in found.nodes.readers) for site in "qk")
    return queries // keys


def _component(reader: str, shared: int) -> tuple[str, str]:
    """The component that a reader belongs to, and its input."""
    if reader[0] in "qkv" and reader[1] == " ":
        layer, head = reader[2:].split(".")
        return (f"{layer}.{head}", "q") if reader[0] == "q" else (f"{layer}.{int(head) * shared}", reader[0])
    return reader, "in"


def _kind(name: str) -> str:
    return name if name in ("embed", "logits") else "mlp" if name.startswith("mlp") else "head"


def _layer(name: str, found: Edges) -> int:
    if name == "embed":
        return -1
    if name == "logits":
        return 1 + max(int(writer.split(".")[0]) for writer in found.nodes.writers if "." in writer)
    return int(name.removeprefix("mlp ").split(".")[0])


def _order(name: str) -> tuple[int, int]:
    return (int(np.iinfo(np.int32).max), 0) if "." not in name else (int(name.split(".")[0]), int(name.split(".")[1]))
