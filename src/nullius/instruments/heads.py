"""Attention heads: what each writes towards an answer (direct logit attribution), and what happens when it is turned up, down or off.

Everything here is about a *contrast*: prompts with two rival answers, `first` and `second`, of one token each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nullius.errors import UsageError
from nullius.instruments import checks, interventions, resume
from nullius.instruments.direct_effects import decompose
from nullius.instruments.where import Where
from nullius.models.language_model import Batch, LanguageModel


@dataclass(frozen=True, order=True)
class Head:
    """A query head; written 15.7 for layer 15, head 7."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"{self.layer}.{self.head}"


@dataclass(frozen=True, order=True)
class Scaling:
    """One head's value output times a factor."""

    head: Head
    factor: float

    def __str__(self) -> str:
        return f"head {self.head} × {self.factor:g}"


Setting = Scaling | None  # None: the subject as it is


@dataclass(frozen=True)
class Contrast:
    """Prompts [n], each with two rival next tokens [n]. Raises UsageError where there are not as many of each."""

    prompts: tuple[str, ...]
    first: tuple[int, ...]
    second: tuple[int, ...]

    def __post_init__(self) -> None:
        if isinstance(self.prompts, str) or not len(self.prompts) == len(self.first) == len(self.second):
            raise UsageError(
                f"a contrast has two tokens for each prompt of a list; got {len(self.prompts)} prompts, {len(self.first)} and {len(self.second)}"
            )

    def __len__(self) -> int:
        return len(self.prompts)

    def against(self, first: Sequence[int], second: Sequence[int]) -> Contrast:
        """Return the same prompts with other answers."""
        return Contrast(self.prompts, tuple(first), tuple(second))

    def with_others(self, tokens: Sequence[int], rng: np.random.Generator) -> Contrast:
        """Return the same prompts, each with two different answers drawn from `tokens` that are neither of its own: a null contrast.

        Raises UsageError where fewer than two are left.
        """
        pool = sorted(set(tokens))
        for own in zip(self.first, self.second, strict=True):
            checks.at_least(len(set(pool) - set(own)), 2, "the number of other tokens to draw answers from")
        pairs = [
            rng.choice([token for token in pool if token not in own], 2, replace=False).tolist()
            for own in zip(self.first, self.second, strict=True)
        ]
        return self.against([pair[0] for pair in pairs], [pair[1] for pair in pairs])


@dataclass(frozen=True)
class Outcome:
    """What a subject answers under each setting, by prompt: greedy next token and logit(first) − logit(second) [settings, n]."""

    contrast: Contrast
    token: np.ndarray
    difference: np.ndarray

    @property
    def first(self) -> np.ndarray:
        """1 where the greedy answer is `first` [settings, n]."""
        return (self.token == np.array(self.contrast.first)).astype(float)

    @property
    def second(self) -> np.ndarray:
        """1 where the greedy answer is `second` [settings, n]."""
        return (self.token == np.array(self.contrast.second)).astype(float)


def attribution(model: LanguageModel, contrast: Contrast, batch_size: int = 32) -> Tensor:
    """Direct logit attribution at the last position: what each head writes for `first` over `second`, in logits [n, layers, heads].

    The heads' part of `direct_effects.decompose`, whose parts sum to the logit difference itself (before a soft-cap). What later layers make of
    a head's output is not in it: check with `effect_of_ablation`. Raises UsageError for what is no token of the subject.
    """
    checks.at_least(batch_size, 1, "batch_size")
    out = torch.zeros(len(contrast), model.anatomy.n_layers, model.anatomy.n_heads)
    for chosen in model.by_length(contrast.prompts, batch_size):
        first, second = ([side[i] for i in chosen] for side in (contrast.first, contrast.second))
        out[chosen] = decompose(model, [contrast.prompts[i] for i in chosen], first, second).heads
    return out


@contextmanager
def scaled(model: LanguageModel, rows: Sequence[Setting], around: Tensor | None = None) -> Iterator[None]:
    """While open, scale one head's value output z at all positions, z ← μ + α (z − μ): a setting for each row of the batch.

    around: μ [layers, heads, d_head], 0 when None. α = 0 is then zero ablation, or mean ablation with μ from `interventions.means`. Scaling z
    equals scaling the values that this one query head reads, also where several share them (grouped-query attention).
    """
    chosen: dict[Head, list[tuple[int, float]]] = {}
    for i, row in enumerate(rows):
        if row is not None:
            chosen.setdefault(row.head, []).append((i, row.factor))
    changes = []
    for one, pairs in chosen.items():
        where = Where("z", one.layer, heads=[one.head], rows=[i for i, _ in pairs])
        centre = None if around is None else around[one.layer, [one.head]]
        changes.append(interventions.scale(where, torch.tensor([factor for _, factor in pairs]), centre))
    with interventions.applied(model, changes):
        yield


@torch.no_grad()
def sweep(
    model: LanguageModel, contrast: Contrast, settings: Sequence[Setting | Sequence[Setting]], around: Tensor | None = None, rows: int = 0
) -> Outcome:
    """Run every prompt under every setting. Layers below a scaled head are run once for all settings (`nullius.instruments.resume`).

    settings: each one for all prompts, or a sequence with one for each prompt. around: see `scaled`. rows: sequences in one forward
    pass (0: 16 on a CPU, where larger ones leave the cache, 256 elsewhere). Raises UsageError for heads that do not exist, factors that are not
    finite, another number of settings than prompts, means of another shape, and what is no token.
    """
    checks.at_least(rows, 0, "rows")
    for tokens in (contrast.first, contrast.second):
        model.token_ids(list(tokens))
    rows = rows or (16 if model.device.type == "cpu" else 256)
    n = len(contrast)
    table = [[setting] * n if setting is None or isinstance(setting, Scaling) else list(setting) for setting in settings]
    _there(model, table, n, around)
    token = np.zeros((len(table), n), dtype=np.int64)
    difference = np.zeros((len(table), n))
    for chosen in model.by_length(contrast.prompts, rows):
        jobs: dict[int, list[tuple[int, int]]] = {}  # layer (−1: nothing scaled) → pairs of setting and row of this batch
        for s, per_prompt in enumerate(table):
            for row, i in enumerate(chosen):
                setting = per_prompt[i]
                jobs.setdefault(setting.head.layer if setting else -1, []).append((s, row))
        batch = model.encode([contrast.prompts[i] for i in chosen])
        last, below = resume.run_keeping(model, batch, sorted(jobs.keys() - {-1}))
        for layer, pairs in jobs.items():
            for start in range(0, len(pairs), rows):
                some, at = (list(part) for part in zip(*pairs[start : start + rows], strict=True))
                items = [chosen[row] for row in at]
                hidden = last[at]
                if layer >= 0:
                    here = [table[s][i] for s, i in zip(some, items, strict=True)]
                    with resume.from_layer(model, layer, below[layer][at]), scaled(model, here, around):
                        hidden = model.hidden(Batch(batch.input_ids[at], batch.attention_mask[at]))[:, -1]
                token[some, items], difference[some, items] = _read_answers(model, hidden, contrast, items)
    return Outcome(contrast, token, difference)


def _there(model: LanguageModel, table: Sequence[Sequence[Setting]], n: int, around: Tensor | None) -> None:
    """A layer −1 would be taken for "nothing scaled", a short row of settings for the prompts that it has."""
    layers, heads = model.anatomy.n_layers, model.anatomy.n_heads
    for row in table:
        if len(row) != n:
            raise UsageError(f"{n} prompts need a setting each, not {len(row)}")
        for head, factor in ((one.head, one.factor) for one in row if one is not None):
            if not (0 <= head.layer < layers and 0 <= head.head < heads):
                raise UsageError(f"head {head} does not exist: {model.name} has layers 0 to {layers - 1} of heads 0 to {heads - 1}")
            if not np.isfinite(factor):
                raise UsageError(f"head {head} cannot be scaled by {factor}")
    if around is not None and tuple(around.shape[:2]) != (layers, heads):
        raise UsageError(f"means to scale around must be [{layers}, {heads}, d_head]; got {list(around.shape)}")


def _read_answers(model: LanguageModel, hidden: Tensor, contrast: Contrast, items: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Greedy token and logit(first) − logit(second) [rows] from the decoder's last output [rows, d_model]."""
    logits = model.anatomy.logits(hidden)
    two = logits.gather(1, torch.tensor([(contrast.first[i], contrast.second[i]) for i in items], device=logits.device))
    return logits.argmax(-1).cpu().numpy(), (two[:, 0] - two[:, 1]).cpu().numpy()


def effect_of_ablation(model: LanguageModel, contrast: Contrast, heads: Sequence[Head], around: Tensor | None = None) -> np.ndarray:
    """How much logit(first) − logit(second) falls when each head is replaced by 0 (or by its mean, `around`): [heads, n]."""
    settings: list[Setting | Sequence[Setting]] = [None, *(Scaling(head, 0.0) for head in heads)]
    difference = sweep(model, contrast, settings, around).difference
    return difference[0] - difference[1:]


def attribution_and_effect(
    model: LanguageModel, contrast: Contrast, heads: Sequence[Head], around: Tensor | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Mean over prompts of what each head writes by attribution, and of what its ablation takes away: two arrays [heads]."""
    table = attribution(model, contrast).mean(0)
    written = np.array([float(table[head.layer, head.head]) for head in heads])
    return written, effect_of_ablation(model, contrast, heads, around).mean(-1)


def all_heads(model: LanguageModel) -> list[Head]:
    """Every head, layer by layer."""
    return [Head(layer, head) for layer in range(model.anatomy.n_layers) for head in range(model.anatomy.n_heads)]


def extremes(scores: Tensor, top: int) -> list[Head]:
    """The `top` heads with the highest scores of a [layers, heads] table and the `top` with the lowest, without repetition."""
    order = scores.flatten().argsort(descending=True, stable=True).tolist()
    chosen = dict.fromkeys(order[:top] + order[::-1][:top])
    return [Head(*divmod(i, scores.shape[1])) for i in chosen]


def random_heads(model: LanguageModel, like: Sequence[Head], n: int, rng: np.random.Generator) -> list[Head]:
    """`n` heads drawn from the layers of `like`, never one of them; from the nearest layers where those have too few, and fewer where the model has
    no more. Raises UsageError where there is no head to be like."""
    if not like:
        raise UsageError("random heads are drawn in the layers of others: give one at least")
    layers = {head.layer for head in like}
    others = [head for head in all_heads(model) if head not in set(like)]
    others = [others[i] for i in rng.permutation(len(others))]
    others.sort(key=lambda head: min(abs(head.layer - layer) for layer in layers))  # stable: random within a distance
    return others[:n]
