"""A circuit as a graph: networkx for computing with it, node-link JSON to hand on, a figure to look at.

Nodes are components ("embed", "1.2", "mlp 1", "logits"), placed by layer. An edge says through which of a head's inputs it enters (q, k or v;
several where several do) and carries its weight: the estimated change of the metric. Nothing is lost: `to_edges` gives back the edges, by which
`edges.run` runs the circuit, also from a graph that was read back from JSON.
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
    """The graph of some edges. Nodes carry kind and layer; edges carry weight (mean score, summed over inputs), inputs and weights, lists.

    Where several query heads share a key or value (grouped-query attention) the edge goes to each of them, since each hears it; its weight is that of
    all of them together. The graph's own `heads_per_key` says how many do. Raises UsageError for no edge, and for edges that do not exist.
    """
    which = list(dict.fromkeys(which))
    if not which:
        raise UsageError("no edge to draw: keep at least one")
    mean = found.scores.mean(0)
    found.nodes.mask(which)  # raises for edges that do not exist
    shared = _shared(found)
    graph = nx.DiGraph(heads_per_key=shared)
    for edge in which:
        hearing, kind = _components(edge.reader, shared)
        weight = float(mean[found.nodes.writers.index(edge.writer), found.nodes.readers.index(edge.reader)])
        for into in hearing:
            for name in (edge.writer, into):
                graph.add_node(name, kind=_kind(name), layer=_layer(name, found))
            if not graph.has_edge(edge.writer, into):
                graph.add_edge(edge.writer, into, weight=0.0, inputs=[], weights=[])
            there = graph.edges[edge.writer, into]
            there["weight"] += weight
            there["inputs"].append(kind)
            there["weights"].append(weight)
    return graph


def to_edges(graph: nx.DiGraph) -> list[Edge]:
    """The edges that a graph was built from, or that are left of it, the strongest first (several inputs of one head may be apart then).

    A shared key or value counts where any head of its group still hears it. Raises UsageError for a graph that `build` did not make.
    """
    found: dict[Edge, float] = {}
    try:
        for writer, into, data in graph.edges(data=True):
            for kind, weight in zip(data["inputs"], data["weights"], strict=True):
                found[Edge(writer, _reader(into, kind, int(graph.graph["heads_per_key"])))] = float(weight)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        raise UsageError("this is no graph of a circuit as graph.build makes it: its edges lack inputs or weights") from None
    return sorted(found, key=lambda edge: -abs(found[edge]))


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
    """Undo `to_json`. Raises UsageError for anything else."""
    try:
        return nx.node_link_graph(json.loads(text), edges="links")
    except (ValueError, KeyError, TypeError, AttributeError, nx.NetworkXError):
        raise UsageError("this is no graph in node-link JSON, as graph.to_json writes it") from None


def to_svg(graph: nx.DiGraph, title: str = "") -> str:
    """The graph drawn by layer, from the embedding at the bottom to the logits at the top; an edge's width is its weight, its dash its sign.

    Raises UsageError for a graph without nodes.
    """
    if not len(graph):
        raise UsageError("no edge to draw: keep at least one")
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
    queries, keys = (sum(name.startswith(f"{site} ") for name in found.nodes.readers) for site in "qk")
    return queries // max(keys, 1)


def _components(reader: str, shared: int) -> tuple[list[str], str]:
    """The components that hear what a reader reads, and through which input."""
    if reader[0] in "qkv" and reader[1] == " ":
        layer, head = reader[2:].split(".")
        if reader[0] == "q":
            return [f"{layer}.{head}"], "q"
        return [f"{layer}.{int(head) * shared + i}" for i in range(shared)], reader[0]
    return [reader], "in"


def _reader(component: str, kind: str, shared: int) -> str:
    """Undo `_components`."""
    if kind == "in":
        return component
    layer, head = component.split(".")
    return f"{kind} {layer}.{int(head) // (1 if kind == 'q' else shared)}"


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
