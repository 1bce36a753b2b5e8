"""Knock-out: many heads at once replaced by what they do on average, another set of them for each text of a batch.

The average is taken position by position over texts of one length, such as counterfactuals of the same template: what the template says at a
position stays, what this one text says there goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nullius.errors import UsageError
from nullius.instruments import resume, taps
from nullius.instruments.heads import Head
from nullius.instruments.questions import Questions
from nullius.models.language_model import Batch, LanguageModel


@torch.no_grad()
def mean_by_position(model: LanguageModel, batch: Batch) -> Tensor:
    """Mean over texts of every head's output z, position by position: [layers, T, heads, d_head]. Raises UsageError where texts are padded."""
    if not bool(batch.attention_mask.all()):
        raise UsageError("a mean by position wants texts of one length: some are padded")
    return taps.read(model, batch, ["z"], positions="all")["z"].mean(1)


@torch.no_grad()
def last_logits(model: LanguageModel, batch: Batch, sets: Sequence[Sequence[Head]], mean: Tensor | None = None) -> Tensor:
    """Logits at the last position [n, V], on the CPU, with a set of heads knocked out in each text.

    sets: for each text its heads, maybe none. mean: what they give instead, [layers, T, heads, d_head] (`mean_by_position`), or
    [layers, heads, d_head] for any length (`interventions.means`); None: zeros. Raises UsageError where numbers or lengths do not fit, or for a
    head that does not exist.
    """
    n, length = batch.input_ids.shape
    anatomy = model.anatomy
    if len(sets) != n:
        raise UsageError(f"{len(sets)} sets of heads for {n} texts")
    if mean is not None and mean.ndim == 4 and mean.shape[1] != length:
        raise UsageError(f"the mean by position is for texts of {mean.shape[1]} tokens, these have {length}")
    out = torch.zeros(anatomy.n_layers, n, anatomy.n_heads, dtype=torch.bool)
    for text, heads in enumerate(sets):
        for head in heads:
            if not (0 <= head.layer < anatomy.n_layers and 0 <= head.head < anatomy.n_heads):
                raise UsageError(f"head {head} does not exist: {model.name} has {anatomy.n_layers} layers of {anatomy.n_heads} heads")
            out[head.layer, text, head.head] = True
    with ExitStack() as stack:
        for layer in range(anatomy.n_layers):
            if bool(out[layer].any()):
                given = torch.zeros(1, 1, 1, 1) if mean is None else mean[layer] if mean.ndim == 4 else mean[layer][None]
                stack.enter_context(taps.edit(model, "z", layer, partial(_instead, out[layer].to(model.device), given.to(model.device))))
        return model.logits(batch).float().cpu()


def _instead(out: Tensor, given: Tensor, z: Tensor) -> Tensor:
    return torch.where(out[:, None, :, None], given.to(z.dtype), z)


def falls(model: LanguageModel, asked: Questions, mean: Tensor, sets: Sequence[Sequence[Head]]) -> list[NDArray[np.float64]]:
    """Return the fall of accuracy, by question, with each set of heads knocked out to `mean` (see `last_logits`): [sets][n].

    Layers below all of the heads are run once for all sets.
    """
    batch, before = asked.batch(model), asked.right(model)
    lowest = min((head.layer for chosen in sets for head in chosen), default=0)
    _, below = resume.run_keeping(model, batch, [lowest])
    with resume.from_layer(model, lowest, below[lowest]):
        out = [last_logits(model, batch, [chosen] * len(before), mean).argmax(-1).numpy() for chosen in sets]
    return [before - (token == asked.targets) for token in out]
