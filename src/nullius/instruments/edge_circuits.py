"""Circuits by edge: are they complete, and is every edge of them needed? (Wang et al. 2023 and Conmy et al. 2023, by edge.)

A circuit is a mask of edges (`edges`); those outside carry what their writer wrote in the run on the source. F is the mean metric, M all edges, ∅
none (the source run); everything is a share of F(M) − F(∅). How faithful a circuit is: `circuits.edge_faithfulness`.

- completeness: without a part K, circuit and model must do alike, |F(C∖K) − F(M∖K)| small: else the model has a spare that the circuit lacks;
- minimality: without any one of its edges the circuit must do worse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nullius.errors import UsageError
from nullius.instruments import edges
from nullius.instruments.edges import Edge
from nullius.instruments.patching import Metric, difference
from nullius.models.language_model import Batch, LanguageModel


def random_parts(circuit: Sequence[Edge], n: int, rng: np.random.Generator) -> list[list[Edge]]:
    """Draw n parts of a circuit: each edge is in with probability one half."""
    return [[edge for edge in circuit if rng.random() < 0.5] for _ in range(n)]


def completeness(
    model: LanguageModel,
    base: Sequence[str] | Batch,
    source: Sequence[str] | Batch,
    answers: Sequence[Sequence[int]],
    circuit: Sequence[Edge],
    taken: Sequence[Sequence[Edge]],
    *,
    metric: Metric = difference,
) -> NDArray[np.float64]:
    """|F(C∖K) − F(M∖K)| / |F(M) − F(∅)| for each part K taken away from circuit and model alike [parts].

    Raises UsageError for edges that do not exist and where base and source do not differ.
    """
    graph = edges.nodes(model)
    inside = graph.mask(circuit)
    parts = [graph.mask(part) for part in taken]
    masks = [*(inside & ~part for part in parts), *(graph.allowed & ~part for part in parts)]
    found = _shares(model, base, source, answers, masks, metric)
    return np.abs(found[: len(parts)] - found[len(parts) :])


@dataclass(frozen=True)
class Minimal:
    """A circuit no edge of which can go, the strongest first, and how much each is missed: (F(C) − F(C∖e)) / (F(M) − F(∅)). faithfulness: of the
    circuit, (F(C) − F(∅)) / (F(M) − F(∅))."""

    circuit: tuple[Edge, ...]
    missed: dict[Edge, float]
    faithfulness: float


def minimal(
    model: LanguageModel,
    base: Sequence[str] | Batch,
    source: Sequence[str] | Batch,
    answers: Sequence[Sequence[int]],
    circuit: Sequence[Edge],
    *,
    least: float = 0.01,
    metric: Metric = difference,
) -> Minimal:
    """Drop the edges of a circuit that are not missed, from its end (the weakest of `Edges.strongest`), one by one.

    An edge goes where F without it differs by less than `least` of F(M) − F(∅) from F with it, the others that are left being there: of two that can
    stand in for each other one stays. Then every edge that is left is taken away alone once more. Errors as in `completeness`.
    """
    graph = edges.nodes(model)
    left = list(dict.fromkeys(circuit))

    def share(masks: list[Tensor]) -> NDArray[np.float64]:
        return _shares(model, base, source, answers, masks, metric)

    (now,) = share([graph.mask(left)])
    for edge in tuple(reversed(left)):
        (without,) = share([graph.mask([one for one in left if one != edge])])
        if abs(now - without) < least:
            left.remove(edge)
            now = without
    without_each = share([graph.mask([one for one in left if one != edge]) for edge in left]) if left else np.zeros(0)
    return Minimal(tuple(left), {edge: float(now - value) for edge, value in zip(left, without_each, strict=True)}, float(now))


def _shares(
    model: LanguageModel,
    base: Sequence[str] | Batch,
    source: Sequence[str] | Batch,
    answers: Sequence[Sequence[int]],
    masks: Sequence[Tensor],
    metric: Metric,
) -> NDArray[np.float64]:
    """(F(mask) − F(∅)) / (F(M) − F(∅)) of each mask."""
    everything = torch.ones_like(edges.nodes(model).allowed)
    keep = torch.stack([everything, ~everything, *masks])
    whole, nothing, *found = edges.run(model, base, source, answers, keep, metric=metric).mean(1).tolist()
    if abs(whole - nothing) < 1e-6:
        raise UsageError("base and source give the same metric: there is nothing for a circuit to carry")
    return (np.array(found) - nothing) / (whole - nothing)
