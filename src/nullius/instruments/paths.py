"""Path patching: what one component tells another, or the logits, along chosen paths only (Wang et al. 2023; Goldowsky-Dill et al. 2023).

A *sender* (a head's z, or a feed-forward block's output, at a position) takes the value that it has in another text, the source. What it writes
may travel through norms and through components that are free; those that are *held* keep the value of the run on the base text. Without
receivers the logits of that run are read. With receivers (queries of heads, keys or values of key-value heads, at positions), what arrives
there is pasted into a second run in which everything is free.

The work that mathematics makes unnecessary is not done. Layers below a sender are not run again, senders of one layer are rows of one batch,
and with all heads held nothing moves from one position to another, so that the first run needs no attention and only the receivers' own
positions. A source is run from where it differs from its base. Every call checks itself: some random senders are run the plain way, whole, on
some pairs, and must agree.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from nullius.errors import NulliusError, SubjectError, UsageError
from nullius.instruments import indices, path_runs
from nullius.instruments.checks import at_least_one
from nullius.instruments.heads import Head
from nullius.instruments.patching import TOLERANCE, Metric, difference
from nullius.instruments.path_runs import At, Mlp, Readout, Receiver, Run, Sender
from nullius.models.language_model import Batch, LanguageModel

CHECKED = 8  # pairs that a checked sender is run on

__all__ = ["At", "Mlp", "Paths", "Receiver", "Sender", "all_senders", "patch", "receivers_of"]


@dataclass(frozen=True)
class Paths:
    """values: the metric with each sender patched along the paths, [n, senders]. base, source: the metric of the plain runs [n].

    checked: senders that were also run the plain way, on up to eight pairs; gap: the largest difference seen there.
    """

    senders: tuple[Sender, ...]
    values: Tensor
    base: Tensor
    source: Tensor
    checked: int
    gap: float

    def effect(self) -> Tensor:
        """Change of the metric through each sender's paths [n, senders]."""
        return self.values - self.base[:, None]

    def relative(self) -> Tensor:
        """Mean over pairs of (patched − base) / base [senders], the papers' score. The metric must keep away from 0: probabilities, say.

        Raises UsageError where it does not (a logit difference has no zero to divide by).
        """
        if float(self.base.abs().min()) < 1e-4:
            raise UsageError("a relative effect divides by the metric of the base run, which is near 0 for some pair: use effect()")
        return (self.effect() / self.base[:, None]).mean(0)


def all_senders(model: LanguageModel, mlps: bool = True) -> list[Sender]:
    """Every head, layer by layer, each layer's feed-forward block behind them if asked for."""
    out: list[Sender] = []
    for layer in range(model.anatomy.n_layers):
        out += [Head(layer, head) for head in range(model.anatomy.n_heads)]
        out += [Mlp(layer)] if mlps else []
    return out


def receivers_of(
    model: LanguageModel, site: Literal["q", "k", "v"], heads: Sequence[Head], at: int | tuple[int, ...] | None = -1
) -> list[Receiver]:
    """Receivers for query heads: their queries, or the keys or values that they read (once where several heads share them)."""
    shared = 1 if site == "q" else model.anatomy.n_heads // model.anatomy.n_kv_heads
    return list(dict.fromkeys(Receiver(site, head.layer, head.head // shared, at) for head in heads))


@torch.no_grad()
def patch(
    model: LanguageModel,
    base: Sequence[str] | Batch,
    source: Sequence[str] | Batch,
    senders: Sequence[Sender],
    answers: Sequence[Sequence[int]],
    *,
    receivers: Sequence[Receiver] = (),
    at: At = -1,
    source_at: At = None,
    free_heads: Collection[Head] = (),
    held_mlps: Literal["none", "all"] | Collection[int] = "none",
    metric: Metric = difference,
    scores: Literal["logits", "log_probs"] = "logits",
    max_rows: int = 512,
    pairs_at_once: int = 64,
    checks: int = 2,
) -> Paths:
    """Patch each sender alone, along the paths that are left, and return the metric of what the model then says at the last position.

    base, source: n pairs of texts of one length. answers: token ids [n, k], or strings of one token each; metric maps
    their scores [rows, k] to [rows]; scores: logits, or log-probabilities over the whole vocabulary. receivers: none for the logits themselves.
    at: position of the senders, an index (−1 the last), one for each pair, or None for all positions. source_at: where the source's value is
    taken from (None: the same position). free_heads: heads that are not held but recomputed; all others keep their z of the base run.
    held_mlps: layers whose feed-forward blocks keep theirs ("none": all are recomputed, and so part of the path). Norms are always recomputed.
    max_rows: sequences in one forward pass. pairs_at_once: pairs whose activations are kept together.

    Raises UsageError for pairs of unequal length, senders, receivers or positions that do not exist, and where no path is left between them;
    NulliusError when a checked sender disagrees with its plain run.
    """
    pair = [model.batch(texts) for texts in (base, source)]
    path_runs.check(model, pair[0], pair[1], senders, receivers)
    n, length = pair[0].input_ids.shape
    tokens = model.token_ids(answers)
    if tokens.ndim != 2 or len(tokens) != n:
        raise UsageError(f"answers must be token ids [{n}, k], one row for each pair; got {list(tokens.shape)}")
    layers = range(model.anatomy.n_layers)
    if isinstance(free_heads, Head):
        raise UsageError(f"free_heads must be a list: [{free_heads!r}], not {free_heads!r}")
    for head in free_heads:
        path_runs.check_sender(model, head, "free head")
    if scores not in ("logits", "log_probs") or (isinstance(held_mlps, str) and held_mlps not in ("none", "all")):
        raise UsageError("scores are 'logits' or 'log_probs', and held_mlps 'none', 'all' or a list of layers")
    at_least_one(max_rows=max_rows, pairs_at_once=pairs_at_once)
    held = {"all": set(layers), "none": set()}[held_mlps] if isinstance(held_mlps, str) else set(indices.listed("held_mlps", held_mlps))
    if not held <= set(layers):
        raise UsageError(f"held_mlps names a layer that does not exist: {model.name} has layers 0 to {layers[-1]}")
    positions, from_positions = path_runs.positions(at, n, length), path_runs.positions(source_at, n, length)
    values = torch.zeros(n, len(senders), device=model.device)
    plain_base, plain_source, gap = torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0]), 0.0
    generator = torch.Generator().manual_seed(0)
    checked = [int(i) for i in torch.randperm(len(senders), generator=generator)[:checks]]
    for start in range(0, n, pairs_at_once):
        rows = slice(start, min(start + pairs_at_once, n))
        some = [Batch(side.input_ids[rows], side.attention_mask[rows]) for side in pair]
        readout = Readout(model, tokens[rows], metric, scores)
        where, from_where = (None if given is None else given[rows] for given in (positions, from_positions))
        run = Run(model, some[0], some[1], path_runs.cut(receivers, rows, n), where, from_where, set(free_heads), held)
        base_scores, (seen, plain_source[rows]) = readout.of(run.base.logits), readout(torch.stack([run.base.last, run.source_last]))
        plain_base[rows] = readout.measured(base_scores)
        if float((seen - plain_base[rows]).abs().max()) > TOLERANCE[model.dtype]:
            raise SubjectError(f"{model.name} makes its logits from the final norm in a way that path patching does not know")
        values[rows] = run.values(senders, readout, plain_base[rows], max_rows).T
        if start == 0 and checked:
            few = slice(0, CHECKED)
            one, other = (Batch(side.input_ids[few], side.attention_mask[few]) for side in some)
            there, back = (None if given is None else given[few] for given in (where, from_where))
            again = Run(model, one, other, path_runs.cut(run.receivers, few, len(base_scores)), there, back, set(free_heads), held)
            whole = Readout(model, tokens[rows][few], partial(_among, metric, base_scores), scores)
            gap = max(float((again.plain(senders[i], whole) - values[rows][few, i]).abs().max()) for i in checked)
    if gap > TOLERANCE[model.dtype]:
        raise NulliusError(f"path patching on {model.name} disagrees with plain runs by {gap:.2g}: please report this model")
    return Paths(tuple(senders), values.cpu(), plain_base.cpu(), plain_source.cpu(), len(checked), gap)


def _among(metric: Metric, base: Tensor, few: Tensor) -> Tensor:
    """The metric of the first pairs' scores [few, k]; the others' are those of the base run: a metric may treat each pair in its own way."""
    return metric(torch.cat([few, base[len(few) :]]))[: len(few)]
