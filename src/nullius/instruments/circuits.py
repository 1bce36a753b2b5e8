"""Circuits: components at positions that do a task alone, and how well they do it.

A circuit is a set of groups; a group is a set of heads (and feed-forward blocks) at one position of each text: "the heads that fetch, at the last
token". To run a circuit is to run the model with every head that is not in it replaced by its mean over other texts, at the same position
(Wang et al. 2023; Prakash et al. 2024). By edge, see `edges.run`.

- faithfulness: what the circuit scores alone, as a share of what the model scores;
- completeness: taking a part K away must hurt circuit and model alike, |F(C∖K) − F(M∖K)| small: else the model has a spare that the circuit lacks;
- minimality: every head must be missed once its understudies are gone too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from nullius.errors import UsageError
from nullius.instruments import checks, edges, taps
from nullius.instruments.heads import Head
from nullius.instruments.patching import Metric, difference
from nullius.instruments.path_runs import Mlp, positions
from nullius.models.language_model import Batch, LanguageModel

Score = Callable[[Tensor, Tensor], Tensor]  # (logits [m, V], answers [m]) → [m]


def correct(logits: Tensor, answers: Tensor) -> Tensor:
    """1 where the greedy next token is the answer."""
    return (logits.argmax(-1) == answers).float()


def probability(logits: Tensor, answers: Tensor) -> Tensor:
    """Probability of the answer."""
    return logits.softmax(-1).gather(1, answers[:, None])[:, 0]


@dataclass(frozen=True)
class Group:
    """Heads and feed-forward blocks at one position: an index (−1 the last), one for each text, or None for all positions."""

    name: str
    heads: tuple[Head, ...] = ()
    at: int | tuple[int, ...] | None = -1
    mlps: tuple[Mlp, ...] = ()

    def __len__(self) -> int:
        return len(self.heads) + len(self.mlps)

    def without(self, gone: Sequence[Head]) -> Group:
        """The group less some heads."""
        return replace(self, heads=tuple(head for head in self.heads if head not in set(gone)))

    def only(self, heads: Sequence[Head]) -> Group:
        """The same position with other heads."""
        return replace(self, heads=tuple(heads))

    def rows(self, chosen: Sequence[int]) -> Group:
        """The group for some of the texts."""
        return replace(self, at=tuple(self.at[i] for i in chosen)) if isinstance(self.at, tuple) else self


@dataclass(frozen=True)
class Keep:
    """What stays alive: the groups alone, or (`rest`) everything but the groups; less, in either case, what stands at the positions of `without`."""

    groups: tuple[Group, ...]
    rest: bool = False
    without: tuple[Group, ...] = ()


WHOLE = Keep((), rest=True)


@dataclass(frozen=True, eq=False)
class Means:
    """Mean activations by position: z [layers, T, heads, d_head], mlp_out [layers, T, d_model]."""

    z: Tensor
    mlp_out: Tensor


@torch.no_grad()
def position_means(model: LanguageModel, texts: Sequence[str] | Batch, batch_size: int = 64) -> Means:
    """Mean of z and mlp_out at each position over texts of one length. Raises UsageError for texts of different lengths."""
    batch = _batch(model, texts)
    checks.at_least(batch_size, 1, "batch_size")
    n = len(batch.input_ids)
    z: Tensor | float = 0.0
    mlp: Tensor | float = 0.0
    for start in range(0, n, batch_size):
        found = taps.read(model, _rows(batch, slice(start, start + batch_size)), ["z", "mlp_out"], positions="all")
        z, mlp = z + found["z"].float().sum(1), mlp + found["mlp_out"].float().sum(1)
    return Means(torch.as_tensor(z / n).to(model.dtype), torch.as_tensor(mlp / n).to(model.dtype))


@torch.no_grad()
def evaluate(
    model: LanguageModel,
    texts: Sequence[str] | Batch,
    answers: Sequence[int],
    keeps: Sequence[Keep],
    means: Means,
    *,
    score: Score = correct,
    mlps: bool = False,
    max_rows: int = 256,
) -> np.ndarray:
    """Score of each circuit on each text [keeps, n], everything else at its mean. answers: token ids [n]. Texts have one length.

    mlps: feed-forward blocks are replaced too where they are not kept; otherwise they all stay as they are. Circuits share batches.
    Raises UsageError for means of another length or another model, groups whose components or positions do not exist, and a score that does not
    give one number for each text.
    """
    batch, anatomy = _batch(model, texts), model.anatomy
    n, length = batch.input_ids.shape
    checks.at_least(max_rows, 1, "max_rows")
    if means.z.shape[1] != length:
        raise UsageError(f"the means are of texts of {means.z.shape[1]} tokens, these have {length}")
    sizes = (anatomy.n_layers, length, anatomy.n_heads, anatomy.d_head), (anatomy.n_layers, length, anatomy.d_model)
    if (tuple(means.z.shape), tuple(means.mlp_out.shape)) != sizes:
        raise UsageError(f"the means are those of another model: {model.name} has z {list(sizes[0])} and mlp_out {list(sizes[1])}")
    wanted = model.token_ids(list(answers))
    if wanted.shape != (n,):
        raise UsageError(f"{len(wanted)} answers for {n} texts")
    out = np.zeros((len(keeps), n))
    some = min(n, max_rows)
    for start in range(0, n, some):
        rows = list(range(start, min(start + some, n)))
        part = _rows(batch, slice(rows[0], rows[-1] + 1))
        size = max(1, max_rows // len(rows))
        for first in range(0, len(keeps), size):
            here = keeps[first : first + size]
            alive = [_alive(model, keep, rows, n, length) for keep in here]
            whole = Batch(part.input_ids.repeat(len(here), 1), part.attention_mask.repeat(len(here), 1))
            with ExitStack() as stack:
                for layer in range(model.anatomy.n_layers):
                    live = torch.cat([z[:, layer] for z, _ in alive])[..., None]
                    stack.enter_context(taps.edit(model, "z", layer, partial(_mean_where, live, means.z[layer])))
                    if mlps:
                        live = torch.cat([mlp[:, layer] for _, mlp in alive])[..., None]
                        stack.enter_context(taps.edit(model, "mlp_out", layer, partial(_mean_where, live, means.mlp_out[layer])))
                logits = model.logits(whole).float()
            scores = score(logits, wanted[rows].repeat(len(here)))
            if scores.shape != (len(logits),):
                raise UsageError(f"a score must give one number a row, {len(logits)} of them; it gave {list(scores.shape)}")
            out[first : first + size, rows[0] : rows[-1] + 1] = scores.view(len(here), -1).double().cpu().numpy()
    return out


def strongest(scores: Tensor, size: int, *, at: int | tuple[int, ...] | None = None, name: str = "strongest") -> Group:
    """Assemble a group from scores of heads [layers, heads], or [n, layers, heads] (their mean): the `size` largest in size, the strongest first.

    scores: effects of a patching sweep, direct attribution, ... at: as in `Group`. Raises UsageError for more heads than there are, and for scores
    that are not finite.
    """
    mean = checks.finite(scores.mean(0) if scores.ndim == 3 else scores, "scores of heads")
    if mean.ndim != 2 or not 0 <= size <= mean.numel():
        raise UsageError(
            f"a group of {size} heads cannot be taken from scores {list(scores.shape)}: they are [layers, heads] or [n, layers, heads]"
        )
    order = mean.abs().flatten().argsort(descending=True, stable=True)[:size].tolist()
    return Group(name, tuple(Head(*divmod(i, mean.shape[1])) for i in order), at)


def node_faithfulness(
    model: LanguageModel,
    texts: Sequence[str] | Batch,
    answers: Sequence[int],
    scores: Tensor,
    sizes: Sequence[int],
    means: Means,
    *,
    at: int | tuple[int, ...] | None = None,
    score: Score = probability,
) -> np.ndarray:
    """What the strongest heads carry: (F(C) − F(∅)) / (F(M) − F(∅)) for each number of heads, F the mean score, ∅ no head at all [sizes].

    scores, at: see `strongest`. By edge: `edge_faithfulness`. Errors as in `evaluate` and `strongest`; UsageError where heads make no difference.
    """
    keeps = [WHOLE, Keep(()), *(Keep((strongest(scores, size, at=at),)) for size in sizes)]
    whole, nothing, *kept = evaluate(model, texts, answers, keeps, means, score=score).mean(1).tolist()
    if abs(whole - nothing) < 1e-6:
        raise UsageError("the model scores as much without any head: there is nothing for a circuit to carry")
    return (np.array(kept) - nothing) / (whole - nothing)


def faithfulness(circuit: np.ndarray, model: np.ndarray) -> float:
    """Share of the model's mean score that the circuit reaches; scores [n] of both, of the same texts.

    Raises UsageError where the model itself scores nothing, or less (a share of that says nothing), for no scores, scores that are not finite, and
    other numbers of them.
    """
    sides = [np.asarray(side, dtype=np.float64) for side in (circuit, model)]
    if sides[0].shape != sides[1].shape or not sides[0].size or not all(np.isfinite(side).all() for side in sides):
        raise UsageError(f"faithfulness needs finite scores of the same texts; got {list(sides[0].shape)} and {list(sides[1].shape)}")
    if sides[1].mean() <= 0:
        raise UsageError(f"the model's mean score is {sides[1].mean():g}: there is nothing of which a circuit could reach a share")
    return float(sides[0].mean() / sides[1].mean())


def completeness(
    model: LanguageModel,
    texts: Sequence[str] | Batch,
    answers: Sequence[int],
    groups: Sequence[Group],
    taken: Sequence[Sequence[Group]],
    means: Means,
    *,
    score: Score = correct,
    mlps: bool = False,
) -> np.ndarray:
    """|F(C∖K) − F(M∖K)| for each part K taken away [parts], where F is the mean score. A part is a set of groups: which heads, where.

    mlps, errors: as in `evaluate`. What is taken away is taken from both by where it stands, however that position is written (−1, a number, all).
    """
    lesser = [Keep(tuple(groups), without=tuple(part)) for part in taken]
    damaged = [Keep(tuple(part), rest=True) for part in taken]
    found = evaluate(model, texts, answers, [*lesser, *damaged], means, score=score, mlps=mlps).mean(1)
    return np.abs(found[: len(taken)] - found[len(taken) :])


def random_parts(groups: Sequence[Group], n: int, rng: np.random.Generator) -> list[list[Group]]:
    """Draw n parts of a circuit: each head, and each feed-forward block, is in with probability one half."""

    def half(group: Group) -> Group:
        heads = tuple(head for head in group.heads if rng.random() < 0.5)
        return replace(group, heads=heads, mlps=tuple(block for block in group.mlps if rng.random() < 0.5))

    return [[half(group) for group in groups] for _ in range(n)]


def minimal(
    model: LanguageModel,
    texts: Sequence[str] | Batch,
    answers: Sequence[int],
    groups: Sequence[Group],
    which: int,
    means: Means,
    *,
    partners: float = 0.3,
    least: float = 0.01,
    score: Score = correct,
) -> tuple[Group, dict[Head, float]]:
    """Drop the heads of groups[which] that are not missed; return the group that is left, and how much each head is missed.

    For each head h: its partners are the heads of the group whose loss together with h hurts most (at most a share `partners` of the group). With
    these gone, before = F(C∖partners) and after = F(C∖partners∖h); h stays where before / after − 1 ≥ least. (Prakash et al. 2024, appendix.)
    The score must be one of which shares make sense: not below 0. Errors as in `evaluate`; UsageError for a group that does not exist.
    """
    if not 0 <= which < len(groups) or not 0 <= partners <= 1:
        raise UsageError(f"a circuit of {len(groups)} groups has none of number {which}, or {partners} is no share of a group")
    group = groups[which]

    def keep(gone: Sequence[Head]) -> Keep:
        return Keep(tuple(group.without(gone) if i == which else other for i, other in enumerate(groups)))

    pairs = [(a, b) for i, a in enumerate(group.heads) for b in group.heads[i + 1 :]]
    whole, *joint = evaluate(model, texts, answers, [keep(()), *(keep(pair) for pair in pairs)], means, score=score).mean(1)
    hurt = {frozenset(pair): whole - value for pair, value in zip(pairs, joint, strict=True)}
    most = math.ceil(partners * len(group.heads))
    gone: list[tuple[Head, ...]] = []
    for head in group.heads:
        others = [other for other in group.heads if other != head and hurt[frozenset((head, other))] > 0]
        others.sort(key=lambda other, head=head: -hurt[frozenset((head, other))])  # type: ignore[misc]
        chosen = tuple(others[:most])
        gone += [chosen, (*chosen, head)]
    found = evaluate(model, texts, answers, [keep(part) for part in gone], means, score=score).mean(1)
    if bool((found < 0).any()):
        raise UsageError("a score below 0 has no shares by which a head could be missed: take a probability, or correct")
    missed = {head: float(before / max(after, 1e-9) - 1) for head, before, after in zip(group.heads, found[::2], found[1::2], strict=True)}
    return group.only([head for head in group.heads if missed[head] >= least]), missed


def edge_faithfulness(
    model: LanguageModel,
    base: Sequence[str] | Batch,
    source: Sequence[str] | Batch,
    answers: Sequence[Sequence[int]],
    found: edges.Edges,
    sizes: Sequence[int],
    *,
    metric: Metric = difference,
) -> np.ndarray:
    """What the strongest edges carry: (F(C) − F(∅)) / (F(M) − F(∅)) for each number of edges, F the mean metric, ∅ the source run [sizes].

    Raises UsageError where base and source do not differ.
    """
    everything = torch.ones_like(found.nodes.allowed)
    masks = torch.stack([everything, ~everything, *(found.keep(size) for size in sizes)])
    whole, nothing, *kept = edges.run(model, base, source, answers, masks, metric=metric).mean(1).tolist()
    if abs(whole - nothing) < 1e-6:
        raise UsageError("base and source give the same metric: there is nothing for a circuit to carry")
    return (np.array(kept) - nothing) / (whole - nothing)


def _alive(model: LanguageModel, keep: Keep, rows: Sequence[int], n: int, length: int) -> tuple[Tensor, Tensor]:
    """Which heads [m, layers, T, heads] and feed-forward blocks [m, layers, T] stay alive in some of n texts."""
    named = [part.to(model.device) for part in _named(model, keep.groups, rows, n, length)]
    alive = [~part for part in named] if keep.rest else named
    if keep.without:
        alive = [part & ~gone.to(model.device) for part, gone in zip(alive, _named(model, keep.without, rows, n, length), strict=True)]
    return alive[0], alive[1]


def _named(model: LanguageModel, groups: Sequence[Group], rows: Sequence[int], n: int, length: int) -> tuple[Tensor, Tensor]:
    """Which heads [m, layers, T, heads] and feed-forward blocks [m, layers, T] groups name in some of n texts."""
    anatomy = model.anatomy
    z = torch.zeros(len(rows), anatomy.n_layers, length, anatomy.n_heads, dtype=torch.bool)
    mlp = z[..., 0].clone()
    row = torch.arange(len(rows))
    for group in groups:
        at = positions(group.at, n, length)
        for head in group.heads:
            if not (0 <= head.layer < anatomy.n_layers and 0 <= head.head < anatomy.n_heads):
                raise UsageError(f"head {head} does not exist: {model.name} has {anatomy.n_layers} layers of {anatomy.n_heads} heads")
            if at is None:
                z[:, head.layer, :, head.head] = True
            else:
                z[row, head.layer, at[list(rows)], head.head] = True
        for block in group.mlps:
            if not 0 <= block.layer < anatomy.n_layers:
                raise UsageError(f"{block} does not exist: {model.name} has {anatomy.n_layers} layers")
            if at is None:
                mlp[:, block.layer] = True
            else:
                mlp[row, block.layer, at[list(rows)]] = True
    return z, mlp


def _mean_where(alive: Tensor, mean: Tensor, value: Tensor) -> Tensor:
    return torch.where(alive, value, mean)


def _batch(model: LanguageModel, texts: Sequence[str] | Batch) -> Batch:
    batch = model.batch(texts)
    if not bool(batch.attention_mask.all()):
        raise UsageError("the texts do not have one length: a mean by position would mix what stands at different places")
    return batch


def _rows(batch: Batch, rows: slice) -> Batch:
    return Batch(batch.input_ids[rows], batch.attention_mask[rows])
