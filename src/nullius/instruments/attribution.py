"""Attribution patching: the first-order estimate of a whole patching sweep from one backward pass (Nanda 2023; Syed et al. 2023).

effect of a cell ≈ ∂metric/∂activation · (source activation − base activation), at the base run. It is fast and approximate: where the metric or
an attention is saturated at the base run, its gradient is near zero and the estimate misses what the exact sweep shows. Averaging the
gradient along the straight line from the base's to the source's input (integrated gradients; Hanna et al. 2024) mends much of that. Which cells
matter should be read off an exact sweep (`patching`), or off exact cells chosen by this estimate (`screening`); `agreement` says how far to trust it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from nullius.errors import UsageError
from nullius.instruments import checks, patching, taps, wavefront
from nullius.instruments.patching import Cells, Metric, Sweep, Texts, difference
from nullius.models.language_model import LanguageModel


@dataclass(frozen=True)
class Agreement:
    """How well an estimate agrees with the exact sweep, over cells (means over pairs). spearman: of effects; top: share of the exact sweep's `k`
    largest effects that are among the estimate's `k` largest; sign: share of those for which the estimate has the right sign."""

    spearman: float
    top: float
    sign: float
    k: int


def attribution(
    model: LanguageModel,
    base: Texts,
    source: Texts,
    answers: Sequence[Sequence[int]],
    *,
    site: Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z"] = "resid_pre",
    metric: Metric = difference,
    steps: int = 1,
) -> Tensor:
    """Estimated change of the metric for every cell of `patching.residual` (or, for site "z", of `patching.heads`): [n, layers, columns].

    steps: 1 takes the gradient at the base run; more take the mean gradient at that many points between the inputs of base and source.
    Arguments and errors as in `patching.residual`; UsageError for less than one step.
    """
    if site == "z":
        return estimate(patching.head_grid(model, base, source, answers, metric), points(steps))
    return estimate(patching.residual_grid(model, base, source, answers, site, None, metric), points(steps))


def points(steps: int) -> tuple[float, ...]:
    """Where integrated gradients are taken on the line from the base's input to the source's: its start for one step, else the middles of as many
    parts."""
    checks.at_least(steps, 1, "steps")
    return (0.0,) if steps == 1 else tuple((step + 0.5) / steps for step in range(steps))


def estimate(cells: Cells, at: Sequence[float] = (0.0,)) -> Tensor:
    """Estimated change of the metric for every cell of any grid: [n, layers, columns].

    at: points on the line from the base's input (0) to the source's (1); the mean of the gradients there is taken. For each one forward and one
    backward pass over the suffix from the first difference.
    """
    pair, grid = cells.pair, cells.grid
    model, layers, start = pair.model, range(pair.model.anatomy.n_layers), pair.first
    total = torch.zeros(len(layers), pair.n, grid.columns, device=model.device)
    if start == pair.length:  # the same texts
        return total.transpose(0, 1)
    changes = [grid.change(layer)[:, start:] for layer in layers]  # before the first difference there is nothing to change
    bottom, way = pair.run.stream[0][:, start:], pair.source_bottom - pair.run.stream[0][:, start:]
    for point in at:
        nudges = [torch.zeros_like(change, requires_grad=True) for change in changes]
        with ExitStack() as stack, torch.enable_grad():
            if point:
                stack.enter_context(taps.edit(model, "resid_pre", 0, partial(_instead, bottom + point * way)))
            for layer in layers:
                stack.enter_context(taps.edit(model, grid.site, layer, partial(torch.add, nudges[layer])))
            last = wavefront.run_suffix(model, pair.run, pair.base.input_ids, start)[:, -1]
            gradients = torch.autograd.grad(pair.measure(last[None, None]).sum(), nudges)
        products = ((g * change).float() for g, change in zip(gradients, changes, strict=True))
        total += torch.stack([grid.by_column(_behind(start, product)) for product in products])
    return (total / len(at)).transpose(0, 1)


def agreement(estimated: Tensor, sweep: Sweep, k: int = 10) -> Agreement:
    """Compare an estimate [n, layers, columns] with the exact sweep of the same pairs. Cells that cannot matter (0 in both) are left out.

    Raises UsageError when fewer than k cells are left, for an estimate of another shape or not finite, and where all cells are alike, which no rank
    correlation tells apart.
    """
    checks.at_least(k, 1, "k")
    if estimated.shape != sweep.values.shape:
        raise UsageError(f"the estimate is of {list(estimated.shape)} cells, the exact sweep of {list(sweep.values.shape)}")
    checks.finite(estimated, "the estimates")
    effect = (sweep.values - sweep.base[:, None, None]).mean(0).flatten().cpu().double().numpy()
    guess = estimated.mean(0).flatten().cpu().double().numpy()
    matters = (effect != 0) | (guess != 0)
    effect, guess = effect[matters], guess[matters]
    if len(effect) < k:
        raise UsageError(f"the largest {k} cannot be compared: only {len(effect)} cells have an effect")
    if len(set(effect)) == 1 or len(set(guess)) == 1:
        raise UsageError("all cells have one effect, or one estimate: there is no order to agree about")
    best, guessed = (np.argsort(-np.abs(x), kind="stable")[:k] for x in (effect, guess))
    right = float(np.mean(np.sign(guess[best]) == np.sign(effect[best])))
    return Agreement(float(stats.spearmanr(effect, guess).statistic), len(set(best) & set(guessed)) / k, right, k)


def _behind(start: int, x: Tensor) -> Tensor:
    """Put zeros before a suffix: [n, T − start, ...] → [n, T, ...]."""
    return torch.cat([x.new_zeros(len(x), start, *x.shape[2:]), x], 1)


def _instead(value: Tensor, _old: Tensor) -> Tensor:
    return value
