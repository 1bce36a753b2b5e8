"""Attribution patching: the first-order estimate of a whole patching sweep from one backward pass (Nanda 2023; Syed et al. 2023).

effect of a cell ≈ ∂metric/∂activation · (source activation − base activation), at the base run. It is fast and approximate: where the metric or
an attention is saturated at the base run, its gradient is near zero and the estimate misses what the exact sweep shows. Averaging the
gradient along the straight line from the base's to the source's input (integrated gradients; Hanna et al. 2024) mends much of that. Which cells
matter should be read off an exact sweep (`patching`); this tells where to look.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from nullius.instruments import taps
from nullius.instruments.patching import Metric, Pair, difference
from nullius.models.language_model import Batch, LanguageModel


def attribution(
    model: LanguageModel,
    base: Sequence[str] | Batch,
    source: Sequence[str] | Batch,
    answers: Sequence[Sequence[int]],
    *,
    site: Literal["resid_pre", "attn_out", "mlp_out", "z"] = "resid_pre",
    metric: Metric = difference,
    steps: int = 1,
) -> Tensor:
    """Estimated change of the metric for every cell of `patching.residual` (or, for site "z", of `patching.heads`): [n, layers, columns].

    steps: 1 takes the gradient at the base run; more take the mean gradient at that many points between the inputs of base and source.
    Arguments and errors as in `patching.residual`.
    """
    pair = Pair(model, base, source, answers, metric)
    layers = range(model.anatomy.n_layers)
    there, here = (taps.read(model, batch, [site], positions="all")[site] for batch in (pair.source, pair.base))
    inputs = [taps.read(model, batch, ["resid_pre"], [0], positions="all")["resid_pre"][0] for batch in (pair.source, pair.base)]
    total = torch.zeros_like(here)
    for step in range(steps):
        nudges = [torch.zeros_like(here[layer], requires_grad=True) for layer in layers]
        with ExitStack() as stack, torch.enable_grad():
            if steps > 1:
                point = inputs[1] + (step + 0.5) / steps * (inputs[0] - inputs[1])
                stack.enter_context(taps.edit(model, "resid_pre", 0, partial(_instead, point)))
            for layer in layers:
                stack.enter_context(taps.edit(model, site, layer, partial(torch.add, nudges[layer])))
            last = model.hidden(pair.base)[:, -1]
            value = pair.measure(last[None, None]).sum()
            total += torch.stack(torch.autograd.grad(value, nudges))
    estimate = (total / steps * (there - here)).sum(-1)  # [layers, n, T] or [layers, n, T, heads]
    if site == "z":
        estimate = estimate.sum(2)
    return estimate.transpose(0, 1).float()


def _instead(value: Tensor, _old: Tensor) -> Tensor:
    return value
