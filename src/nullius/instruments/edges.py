"""Edges: who tells whom. A model as a graph of components that write to the residual stream and components that read it.

Writers: the embedding, each head, each feed-forward block. Readers: the query of each head, key and value of each key-value head, each
feed-forward block, the logits. What a reader reads is the sum of what all writers before it wrote, so every pair of them is an edge, and an
edge can be cut: `run` lets each reader hear some writers as they are in this run and the others as they were in another text's. Cutting one
edge is path patching with everything else held (Wang et al. 2023; Goldowsky-Dill et al. 2023); keeping few is a circuit (Conmy et al. 2023).

`attribute` estimates the effect of every edge from one backward pass: (writer in source − writer in base) · ∂metric/∂(what the reader reads)
(edge attribution patching, Syed et al. 2023), or with the gradient averaged along the way from the base's to the source's embeddings
(integrated gradients, Hanna et al. 2024). `exact` is what it estimates.

Where a norm follows the attention (Gemma 2 and 3, OLMo 2) a head's share of its output is taken with the scale that the norm had in that run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from nullius.errors import UsageError
from nullius.instruments import checks, taps
from nullius.instruments.edge_runs import Nodes, contributions, nodes, split
from nullius.instruments.patching import Metric, Pair, difference
from nullius.models.language_model import Batch, LanguageModel

__all__ = ["Agreement", "Edge", "Edges", "Nodes", "agreement", "attribute", "exact", "nodes", "run"]


@dataclass(frozen=True, order=True)
class Edge:
    """From a writer to a reader, by their names ("embed", "1.2", "mlp 1" → "q 2.0", "k 2.0", "v 2.0", "mlp 2", "logits")."""

    writer: str
    reader: str

    def __str__(self) -> str:
        return f"{self.writer} → {self.reader}"


@dataclass(frozen=True)
class Edges:
    """scores: estimated change of the metric when the edge alone carries the source's value [n, writers, readers], 0 where there is no edge."""

    nodes: Nodes
    scores: Tensor

    def strongest(self, n: int) -> list[Edge]:
        """The edges with the largest mean score, in size, the strongest first."""
        mean = self.scores.mean(0).abs().masked_fill(~self.nodes.allowed, -1)
        order = mean.flatten().argsort(descending=True, stable=True)[: min(n, int(self.nodes.allowed.sum()))]
        return [self.nodes.edge(int(i)) for i in order]

    def keep(self, n: int) -> Tensor:
        """A mask of the n strongest edges [writers, readers], for `run`."""
        return self.nodes.mask(self.strongest(n))


def attribute(
    model: LanguageModel,
    base: Sequence[str] | Batch,
    source: Sequence[str] | Batch,
    answers: Sequence[Sequence[int]],
    *,
    metric: Metric = difference,
    steps: int = 1,
    pairs_at_once: int = 8,
) -> Edges:
    """Estimate the effect of every edge. steps: 1 takes the gradient at the base run; more average it along the way to the source's.

    Arguments and errors as in `patching.residual`; the metric must be differentiable.
    """
    checks.at_least_one(steps=steps, pairs_at_once=pairs_at_once)
    graph = nodes(model)
    whole = Pair(model, base, source, answers, metric)
    scores = []
    for start in range(0, whole.n, pairs_at_once):
        pair = _part(model, whole, start, pairs_at_once, answers, metric)
        change = contributions(model, pair.source, graph) - contributions(model, pair.base, graph)  # [writers, n, T, d]
        far, near = (taps.read(model, batch, ["resid_pre"], [0], positions="all")["resid_pre"][0] for batch in (pair.source, pair.base))
        total = torch.zeros(pair.n, len(graph.writers), len(graph.readers), device=model.device)
        for step in range(steps):
            nudge = torch.zeros(len(graph.readers), *near.shape, device=model.device, dtype=model.dtype, requires_grad=True)
            point = near if steps == 1 else near + (step + 0.5) / steps * (far - near)
            with torch.enable_grad(), taps.edit(model, "resid_pre", 0, partial(_instead, point)):
                with split(model, graph, partial(_nudged, nudge), None):
                    value = pair.measure(model.hidden(pair.base)[:, -1][None, None]).sum()
                (slope,) = torch.autograd.grad(value, nudge)
            total += torch.einsum("untd,vntd->nuv", change.float(), slope.float()) / steps
        scores.append((total * graph.allowed.to(total.device)).cpu())
    return Edges(graph, torch.cat(scores))


@torch.no_grad()
def run(
    model: LanguageModel,
    base: Sequence[str] | Batch,
    source: Sequence[str] | Batch,
    answers: Sequence[Sequence[int]],
    keep: Tensor,
    *,
    metric: Metric = difference,
    max_rows: int = 64,
) -> Tensor:
    """The metric with only some edges kept: the others carry what their writer wrote in the run on the source.

    keep: bool [writers, readers], or [copies, writers, readers] for several circuits at once. Returns [n], or [copies, n].
    All edges kept is the base run, none the source run. max_rows: sequences in one forward pass. Errors as in `patching.residual`, and
    UsageError for a mask of another shape.
    """
    graph = nodes(model)
    masks = keep if keep.ndim == 3 else keep[None]
    if masks.dtype != torch.bool or tuple(masks.shape[1:]) != tuple(graph.allowed.shape):
        raise UsageError(f"keep must be a mask of {list(graph.allowed.shape)} writers and readers; got {list(keep.shape)} of {keep.dtype}")
    whole = Pair(model, base, source, answers, metric)
    out = torch.zeros(len(masks), whole.n)
    few = max(1, min(whole.n, max_rows))
    for start in range(0, whole.n, few):
        pair = _part(model, whole, start, few, answers, metric)
        there = contributions(model, pair.source, graph)
        size = max(1, max_rows // pair.n)
        for first in range(0, len(masks), size):
            cut = (~masks[first : first + size] & graph.allowed).to(model.device, model.dtype)
            copies = len(cut)
            rows = cut.repeat_interleave(pair.n, 0)  # [copies · n, writers, readers], copy by copy
            change = there.repeat(1, copies, 1, 1)  # becomes source − this run, writer by writer

            def heard(readers: slice, rows: Tensor = rows, change: Tensor = change) -> Tensor:
                return torch.einsum("ruv,urtd->rvtd", rows[:, :, readers], change)

            def write(writers: slice, value: Tensor, change: Tensor = change) -> None:
                change[writers] -= value

            batch = Batch(pair.base.input_ids.repeat(copies, 1), pair.base.attention_mask.repeat(copies, 1))
            with split(model, graph, heard, write):
                last = model.hidden(batch)[:, -1].unflatten(0, (copies, pair.n))
            out[first : first + size, start : start + few] = pair.measure(last[None])[0].cpu()
    return out if keep.ndim == 3 else out[0]


def exact(
    model: LanguageModel,
    base: Sequence[str] | Batch,
    source: Sequence[str] | Batch,
    answers: Sequence[Sequence[int]],
    which: Sequence[Edge],
    *,
    metric: Metric = difference,
    max_rows: int = 64,
) -> Tensor:
    """Change of the metric when each edge alone carries the source's value [n, edges]: what `attribute` estimates."""
    graph = nodes(model)
    masks = torch.stack([torch.ones_like(graph.allowed), *(~graph.mask([edge]) for edge in which)])
    values = run(model, base, source, answers, masks, metric=metric, max_rows=max_rows)
    return (values[1:] - values[0]).T


@dataclass(frozen=True)
class Agreement:
    """How far an estimate can be trusted. rho: Spearman's, of estimated and exact mean effects over `which`, the strongest by estimate and others.

    missed: share of the others, drawn at random, whose exact effect is larger than that of the median of the strongest.
    """

    which: tuple[Edge, ...]
    estimated: np.ndarray
    exact: np.ndarray
    rho: float
    missed: float


def agreement(
    model: LanguageModel,
    base: Sequence[str] | Batch,
    source: Sequence[str] | Batch,
    answers: Sequence[Sequence[int]],
    found: Edges,
    rng: np.random.Generator,
    *,
    strongest: int = 20,
    others: int = 40,
    metric: Metric = difference,
) -> Agreement:
    """Measure the exact effect of the strongest edges of an estimate and of as many random others; see `Agreement`."""
    top = found.strongest(strongest)
    rest = [edge for edge in found.nodes.edges() if edge not in set(top)]
    which = [*top, *(rest[i] for i in rng.permutation(len(rest))[:others])]
    real = exact(model, base, source, answers, which, metric=metric).mean(0).numpy()
    mean = found.scores.mean(0)
    guess = np.array([float(mean[found.nodes.writers.index(edge.writer), found.nodes.readers.index(edge.reader)]) for edge in which])
    bar = float(np.median(np.abs(real[: len(top)])))
    missed = float((np.abs(real[len(top) :]) > bar).mean()) if len(which) > len(top) else 0.0
    return Agreement(tuple(which), guess, real, float(stats.spearmanr(guess, real).statistic), missed)


def _nudged(nudge: Tensor, readers: slice) -> Tensor:
    return nudge[readers].transpose(0, 1)


def _instead(value: Tensor, _old: Tensor) -> Tensor:
    return value


def _part(model: LanguageModel, whole: Pair, start: int, n: int, answers: Sequence[Sequence[int]], metric: Metric) -> Pair:
    if whole.n <= n:
        return whole
    rows = slice(start, start + n)
    base, source = (Batch(side.input_ids[rows], side.attention_mask[rows]) for side in (whole.base, whole.source))
    return Pair(model, base, source, answers[rows], metric)
