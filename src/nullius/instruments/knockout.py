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
from nullius.instruments import alike, questions, resume, taps, wavefront
from nullius.instruments.heads import Head
from nullius.instruments.questions import Questions
from nullius.models import hooks
from nullius.models.language_model import Batch, LanguageModel


@torch.no_grad()
def mean_by_position(model: LanguageModel, batch: Batch | Sequence[str]) -> Tensor:
    """Mean over texts of every head's output z, position by position: [layers, T, heads, d_head]. Raises UsageError where texts are padded."""
    batch = model.batch(batch)
    if not bool(batch.attention_mask.all()):
        raise UsageError("a mean by position wants texts of one length: some are padded")
    if alike.beginning(batch) and questions.runs_from_middle(model):  # what all texts begin with is run once
        return alike.run_base(model, batch, ["z"]).sites["z"].mean(1)
    return taps.read(model, batch, ["z"], positions="all")["z"].mean(1)


@torch.no_grad()
def last_logits(model: LanguageModel, batch: Batch | Sequence[str], sets: Sequence[Sequence[Head]], mean: Tensor | None = None) -> Tensor:
    """Logits at the last position [n, V], on the CPU, with a set of heads knocked out in each text.

    sets: for each text its heads, maybe none. mean: what they give instead, [layers, T, heads, d_head] (`mean_by_position`), or
    [layers, heads, d_head] for any length (`interventions.means`); None: zeros. Raises UsageError where numbers, sizes or lengths do not fit, for
    padded texts with a mean by position, or for a head that does not exist.
    """
    batch = model.batch(batch)
    n, length = batch.input_ids.shape
    anatomy = model.anatomy
    if len(sets) != n:
        raise UsageError(f"{len(sets)} sets of heads for {n} texts")
    if mean is not None and mean.ndim == 4 and mean.shape[1] != length:
        raise UsageError(f"the mean by position is for texts of {mean.shape[1]} tokens, these have {length}")
    if mean is not None:
        _check(model, mean)
        if mean.ndim == 4 and not bool(batch.attention_mask.all()):
            raise UsageError("a mean by position is for texts of one length: some are padded")
    out = _out(model, sets)
    with ExitStack() as stack:
        for layer in range(anatomy.n_layers):
            if bool(out[layer].any()):
                given = torch.zeros(1, 1, 1, 1) if mean is None else mean[layer] if mean.ndim == 4 else mean[layer][None]
                stack.enter_context(taps.edit(model, "z", layer, partial(_instead, out[layer].to(model.device), given.to(model.device))))
        return model.logits(batch).float().cpu()


def _check(model: LanguageModel, mean: Tensor) -> None:
    z, layers = model.anatomy.site("z", 0), model.anatomy.n_layers
    if mean.ndim not in (3, 4) or (mean.shape[0], *mean.shape[-2:]) != (layers, z.heads, z.width):
        sizes = f"[{layers}, {z.heads}, {z.width}] or [{layers}, T, {z.heads}, {z.width}]"
        raise UsageError(f"the mean of heads must be {sizes}; got {list(mean.shape)}")


def _out(model: LanguageModel, sets: Sequence[Sequence[Head]]) -> Tensor:
    """Which heads are knocked out in each text [layers, n, heads]."""
    anatomy = model.anatomy
    out = torch.zeros(anatomy.n_layers, len(sets), anatomy.n_heads, dtype=torch.bool)
    if any(isinstance(heads, Head) for heads in sets):
        raise UsageError("a set of heads for each text: a list of lists")
    for text, heads in enumerate(sets):
        for head in heads:
            if not (0 <= head.layer < anatomy.n_layers and 0 <= head.head < anatomy.n_heads):
                raise UsageError(f"head {head} does not exist: {model.name} has {anatomy.n_layers} layers of {anatomy.n_heads} heads")
            out[head.layer, text, head.head] = True
    return out


def falls(model: LanguageModel, asked: Questions, mean: Tensor, sets: Sequence[Sequence[Head]]) -> list[NDArray[np.float64]]:
    """Return the fall of accuracy, by question, with each set of heads knocked out to `mean` (see `last_logits`): [sets][n].

    Layers below all of the heads are run once for all sets; so is what all texts begin with, where heads do there what they do on average. Errors as
    in `last_logits`.
    """
    _check(model, mean)
    batch, targets = asked.batch(model), asked.targets
    fits = mean.ndim == 4 and mean.shape[1] == batch.input_ids.shape[1] and bool(batch.attention_mask.all())
    if fits and questions.runs_from_middle(model):
        base = alike.run_base(model, batch, ["z"])
        if questions.reads_alike(model, base):
            before = base.logits.argmax(-1).cpu().numpy() == targets
            start = _unmoved(base.sites["z"], mean.to(model.device))
            return [before - (_behind(model, base, start, mean, chosen) == targets).astype(float) for chosen in sets]
    lowest = min((head.layer for chosen in sets for head in chosen), default=0)
    below: list[Tensor] = []
    with torch.no_grad(), ExitStack() as stack:
        stack.callback(hooks.on_read(model.anatomy, model.anatomy.site("resid_pre", lowest), below.append).remove)
        before = (model.logits(batch).argmax(-1).cpu().numpy() == targets).astype(float)
    with resume.from_layer(model, lowest, below[0]):
        out = [last_logits(model, batch, [chosen] * len(before), mean).argmax(-1).numpy() for chosen in sets]
    return [before - (token == targets) for token in out]


def _unmoved(z: Tensor, mean: Tensor) -> int:
    """At how many positions, from the first on, every head of every text does what it does on average; z: [layers, n, T, heads, d_head]."""
    room = 1e-5 * z.abs().amax((1, 2, 3, 4))  # rounding, layer by layer
    gap = ((z - mean[:, None]).abs().amax((1, 3, 4)) > room[:, None]).any(0)
    return min(int(gap.int().argmax()) if bool(gap.any()) else len(gap), len(gap) - 1)


@torch.no_grad()
def _behind(model: LanguageModel, base: wavefront.Base, start: int, mean: Tensor, chosen: Sequence[Head]) -> NDArray[np.int64]:
    """The greedy token of each text [n] without some heads, run from a position on: before it nothing changes."""
    if not chosen:
        return base.logits.argmax(-1).cpu().numpy()
    out = _out(model, [chosen]).to(model.device)
    layers = sorted({head.layer for head in chosen})
    with ExitStack() as stack:
        for layer in layers:
            given = mean[layer, start:][None].to(model.device)
            stack.enter_context(taps.edit(model, "z", layer, partial(_instead, out[layer], given)))
        last = wavefront.wave(model, base, start, layers[:1], 1, "resid_pre", lambda _layer, _x: None)[0, 0]
    return model.anatomy.logits(last).argmax(-1).cpu().numpy()


def _instead(out: Tensor, given: Tensor, z: Tensor) -> Tensor:
    return torch.where(out[:, None, :, None], given.to(z.dtype), z)
