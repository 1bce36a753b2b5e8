"""Desiderata-based component masking (DCM; Davies et al. 2023, Prakash et al. 2024): which heads carry a stated piece of information.

A desideratum is a set of pairs of texts with an answer that the base text should get when one piece of information comes from the source: the
object that stands at the source's position, say. A mask m in [0, 1] for each head mixes its output, z ← m z + (1 − m) z_source, and is learned to
make that answer likely with as few heads as possible. Rounded, it names the heads; how often the answer then comes out, on pairs that were
not used, says whether they carry it.

Attention is causal: what stands before the heads' positions is run once, without gradients, and each step runs the rest only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from nullius.errors import UsageError
from nullius.instruments import checks, taps, wavefront
from nullius.instruments.heads import Head
from nullius.instruments.interchange import check_read_out, read_out
from nullius.instruments.patching import check_lengths
from nullius.instruments.path_runs import positions
from nullius.models.language_model import Batch, LanguageModel


@dataclass(frozen=True)
class Desideratum:
    """Pairs of texts of one length. targets: the token that should come out [n], its id or a string of one token; at, source_at: the heads' position
    in base and source, for each pair."""

    base: Batch
    source: Batch
    targets: tuple[int | str, ...]
    at: tuple[int, ...]
    source_at: tuple[int, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.base, Batch) or not isinstance(self.source, Batch):
            raise UsageError("a desideratum takes batches of texts: model.encode(texts)")
        n = len(self.base.input_ids)
        if not len(self.targets) == len(self.at) == len(self.source_at) == len(self.source.input_ids) == n:
            raise UsageError(f"{n} base texts need as many sources, targets and positions")

    def __len__(self) -> int:
        return len(self.targets)

    def part(self, rows: Sequence[int]) -> Desideratum:
        """Some of the pairs."""
        chosen = list(rows)
        base, source = (Batch(side.input_ids[chosen], side.attention_mask[chosen]) for side in (self.base, self.source))
        targets = tuple(self.targets[i] for i in chosen)
        return Desideratum(base, source, targets, *(tuple(places[i] for i in chosen) for places in (self.at, self.source_at)))

    def split(self, rng: np.random.Generator, shares: tuple[float, float] = (0.5, 0.25)) -> tuple[Desideratum, Desideratum, Desideratum]:
        """Split at random into training, validation and test pairs."""
        order = rng.permutation(len(self)).tolist()
        first, second = round(shares[0] * len(self)), round((shares[0] + shares[1]) * len(self))
        return self.part(order[:first]), self.part(order[first:second]), self.part(order[second:])

    def shuffled(self, rng: np.random.Generator) -> Desideratum:
        """The same pairs with each other's targets: a null desideratum."""
        return Desideratum(self.base, self.source, tuple(self.targets[i] for i in rng.permutation(len(self))), self.at, self.source_at)


@dataclass(frozen=True)
class Mask:
    """A learned mask over candidate heads. values: m of each [heads]. found: the heads whose rounded mask takes the source's value.

    validation: share of validation pairs whose target came out, with the rounded mask.
    """

    heads: tuple[Head, ...]
    values: np.ndarray
    found: tuple[Head, ...]
    validation: float


def learn(
    model: LanguageModel,
    train: Desideratum,
    validation: Desideratum,
    heads: Sequence[Head],
    *,
    l1: float = 0.01,
    rate: float = 0.1,
    epochs: int = 2,
    batch_size: int = 32,
    rng: np.random.Generator,
    on_step: Callable[[int, int], None] | None = None,
) -> Mask:
    """Learn which of `heads` to take from the source. Starts at m = 1 (all heads their own); Adam, m clamped to [0, 1] before each step.

    Loss: −mean target logit + l1 · Σ(1 − m). After each epoch the rounded mask is tried on the validation pairs; the best one is
    returned, on a tie the one that takes fewer heads. Raises UsageError for heads that do not exist and pairs of unequal length.
    """
    if not heads:
        raise UsageError("no candidate heads: give at least one")
    checks.at_least_one(epochs=epochs, batch_size=batch_size)
    pairs = _Ready(model, train, heads)
    tried = _Ready(model, validation, heads)
    m = torch.ones(len(heads), device=model.device, requires_grad=True)
    optimiser = torch.optim.Adam([m], lr=rate)
    steps = max(1, -(-len(train) // batch_size))
    best: tuple[float, int, np.ndarray] | None = None
    for epoch in range(epochs):
        order = rng.permutation(len(train)).tolist()
        for step in range(steps):
            rows = order[step * batch_size : (step + 1) * batch_size]
            with torch.no_grad():
                m.clamp_(0, 1)
            logits = pairs.logits(rows, m)
            targets = torch.tensor([pairs.targets[i] for i in rows], device=model.device)
            loss = -logits.gather(1, targets[:, None]).mean() + l1 * (1 - m).sum()
            (m.grad,) = torch.autograd.grad(loss, m)
            optimiser.step()
            if on_step is not None:
                on_step(epoch * steps + step + 1, epochs * steps)
        values = m.detach().clamp(0, 1).cpu().numpy().copy()
        rounded = torch.tensor(values, device=model.device).round()
        score, taken = float((_greedy(tried, rounded) == np.array(tried.targets)).mean()), int((rounded == 0).sum())
        if best is None or (score, -taken) > best[:2]:
            best = (score, -taken, values)
    assert best is not None
    found = tuple(head for head, value in zip(heads, best[2], strict=True) if round(float(value)) == 0)
    return Mask(tuple(heads), best[2], found, best[0])


def accuracy(model: LanguageModel, pairs: Desideratum, heads: Sequence[Head], batch_size: int = 64) -> np.ndarray:
    """1 where the target is the greedy next token when these heads come from the source [n]; no heads: what the model says anyway.

    Raises UsageError for heads that do not exist, no pairs, and pairs of unequal length.
    """
    return (said(model, pairs, heads, batch_size) == np.array(_tokens(model, pairs))).astype(float)


@torch.no_grad()
def said(model: LanguageModel, pairs: Desideratum, heads: Sequence[Head], batch_size: int = 64) -> np.ndarray:
    """The greedy next token when these heads come from the source [n]. Errors as in `accuracy`."""
    out = []
    for start in range(0, max(len(pairs), 1), batch_size):
        ready = _Ready(model, pairs.part(range(start, min(start + batch_size, len(pairs)))), heads)
        out.append(_greedy(ready, torch.zeros(len(heads), device=model.device)))
    return np.concatenate(out)


@torch.no_grad()
def _greedy(pairs: _Ready, m: Tensor, batch_size: int = 64) -> np.ndarray:
    """The greedy next token under a mask [n]."""
    rows = [range(start, min(start + batch_size, len(pairs.targets))) for start in range(0, len(pairs.targets), batch_size)]
    return torch.cat([pairs.logits(some, m).argmax(-1).cpu() for some in rows]).numpy()


class _Ready:
    """Pairs whose unmasked part has been run: keys and values of the base texts, and what the candidate heads say in the sources."""

    @torch.no_grad()
    def __init__(self, model: LanguageModel, pairs: Desideratum, heads: Sequence[Head], batch_size: int = 64) -> None:
        _check(model, heads)
        if not len(pairs):
            raise UsageError("a desideratum without pairs: give at least one")
        self.model, self.heads, self.targets = model, tuple(heads), _tokens(model, pairs)
        pairs = replace(pairs, base=model.batch(pairs.base), source=model.batch(pairs.source))
        check_lengths(model, pairs.base, pairs.source)
        self.ids = pairs.base.input_ids
        n, length = self.ids.shape
        here, there = (positions(at, n, length) for at in (pairs.at, pairs.source_at))
        assert here is not None
        assert there is not None
        self.at = here.to(model.device)
        layers = sorted({head.layer for head in heads})
        runs, values = [], []
        for start in range(0, n, batch_size):
            rows = slice(start, start + batch_size)
            base, source = (Batch(side.input_ids[rows], side.attention_mask[rows]) for side in (pairs.base, pairs.source))
            runs.append(
                replace(wavefront.run_base(model, base), stream=base.input_ids, end=base.input_ids)
            )  # these are not needed: let go of them
            check_read_out(model, runs[-1])
            if layers:
                z = taps.read(model, source, ["z"], layers, positions="all")["z"]
                values.append(z[:, torch.arange(z.shape[1], device=model.device), there[rows].to(model.device)])
        whole = torch.cat(values, 1) if layers else None  # [layers, n, heads, d_head]
        self.layers = {layer: [i for i, head in enumerate(self.heads) if head.layer == layer] for layer in layers}
        self.values = {
            layer: whole[place][:, [self.heads[i].head for i in numbers]]
            for place, (layer, numbers) in enumerate(self.layers.items())
            if whole is not None
        }
        keys, cached = (
            tuple(torch.cat(parts) for parts in zip(*(getattr(run, name) for run in runs), strict=True)) for name in ("keys", "values")
        )
        self.base = replace(runs[0], keys=keys, values=cached)

    def logits(self, rows: Sequence[int], m: Tensor) -> Tensor:
        """Logits [rows, V] at the last position with z ← m z + (1 − m) z_source for each head at the pairs' positions. Differentiable in m."""
        model, chosen = self.model, torch.tensor(list(rows), device=self.ids.device)
        ids, at = self.ids[chosen], self.at[chosen]
        start, row = int(at.min()), torch.arange(len(chosen), device=model.device)
        with ExitStack() as stack:
            for layer, numbers in self.layers.items():
                own = torch.tensor([self.heads[i].head for i in numbers], device=model.device)
                index = (row[:, None], (at - start)[:, None], own[None, :])

                def mix(z: Tensor, index: tuple[Tensor, ...] = index, layer: int = layer, numbers: list[int] = numbers) -> Tensor:
                    weight = m[numbers][None, :, None].to(z.dtype)
                    return z.index_put(index, weight * z[index] + (1 - weight) * self.values[layer][chosen])

                stack.enter_context(taps.edit(model, "z", layer, mix))
            keys, values = (tuple(part[chosen] for part in side) for side in (self.base.keys, self.base.values))
            base = replace(self.base, keys=keys, values=values)
            return read_out(model, wavefront.run_suffix(model, base, ids, start)[:, -1])


def _tokens(model: LanguageModel, pairs: Desideratum) -> list[int]:
    return model.token_ids(list(pairs.targets)).tolist()


def _check(model: LanguageModel, heads: Sequence[Head]) -> None:
    if isinstance(heads, Head) or len(set(heads)) < len(heads):
        raise UsageError(f"candidate heads stand in a list, each once: {heads}")
    for head in heads:
        if not (0 <= head.layer < model.anatomy.n_layers and 0 <= head.head < model.anatomy.n_heads):
            raise UsageError(
                f"head {head} does not exist: {model.name} has {model.anatomy.n_layers} layers of {model.anatomy.n_heads} heads"
            )
