"""Path patching between any two sites: a part of one, the sender, hears another text; what of it arrives at a part of another, the receiver?

Two runs on the base text (Goldowsky-Dill et al. 2023). In the first the sender takes the value that it has in the source text, the *held* parts
keep the value of the base run, everything else is a mediator, and the receiver's part is taken down. In the second that part is pasted and
everything above it is free. Without a receiver the logits of the first run are read.

Sites are those of `Where`: residual stream, heads, neurons, subspaces, patterns. `paths` does the same faster for heads and feed-forward blocks that
tell heads or the logits; here every run is a plain one, so that it works on whatever can be tapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nullius.errors import UsageError
from nullius.instruments import indices, taps
from nullius.instruments.interventions import Intervention, applied, interchange
from nullius.instruments.patching import Metric, check_lengths, difference
from nullius.instruments.where import Where
from nullius.models.language_model import Batch, LanguageModel


@dataclass(frozen=True)
class SitePaths:
    """values: the metric with each sender patched along the paths that are left [n, senders]. base, source: of the plain runs [n]."""

    values: Tensor
    base: Tensor
    source: Tensor

    def effect(self) -> Tensor:
        """Change of the metric through each sender's paths [n, senders]."""
        return self.values - self.base[:, None]


def all_but(model: LanguageModel, layers: Sequence[int], *, heads: bool = True, mlps: bool = True) -> list[Where]:
    """Parts to hold: every head's output, every feed-forward block's, of some layers. A sender among them still sends, a receiver still hears."""
    sites = (["z"] if heads else []) + (["mlp_out"] if mlps else [])
    return [Where(site, model.anatomy.site(site, layer).layer) for layer in layers for site in sites]


@torch.no_grad()
def patch(
    model: LanguageModel,
    base: Sequence[str] | Batch,
    source: Sequence[str] | Batch,
    senders: Sequence[Where],
    answers: Sequence[Sequence[int]],
    *,
    receiver: Where | None = None,
    held: Sequence[Where] = (),
    source_positions: Sequence[int] | Tensor | None = None,
    metric: Metric = difference,
    max_rows: int = 64,
) -> SitePaths:
    """Patch each sender alone along the paths that `held` leaves between it and the receiver (None: the logits at the last position).

    base, source: n pairs of texts. answers: token ids [n, k], or strings of one token each. source_positions: for each of the senders' positions,
    the column of the source to take [P] or [n, P]; None: the same ones, and then a pair's texts have one length. max_rows: sequences in one pass.
    Raises UsageError for pairs of unequal length (both tokenisations are shown), for parts that do not exist, a part with `rows`, and `logits`.
    """
    here, there = model.batch(base), model.batch(source)
    if source_positions is None:
        check_lengths(model, here, there)
    elif len(here.input_ids) != len(there.input_ids):
        raise UsageError(f"{len(here.input_ids)} base texts but {len(there.input_ids)} source texts")
    n = len(here.input_ids)
    tokens = model.token_ids(answers)
    if tokens.ndim != 2 or len(tokens) != n:
        raise UsageError(f"answers must be token ids [{n}, k], one row for each pair; got {list(tokens.shape)}")
    if isinstance(senders, Where) or isinstance(held, Where):
        raise UsageError("senders and held parts stand in a list, also one of them")
    parts = [*senders, *held, *([] if receiver is None else [receiver])]
    if not senders or any(part.rows is not None for part in parts):
        raise UsageError("give at least one sender, and no part with `rows`: every pair is patched alike")
    if any(part.site == "logits" for part in parts):
        raise UsageError("no path begins or is held at the logits, and one ends there where no receiver is given")
    own = _whole(model, here, held)
    theirs = _whole(model, there, senders)
    read = torch.stack([metric(model.logits(batch).float().gather(1, tokens)) for batch in (here, there)])
    values = []
    size = max(1, max_rows // n)
    for some in (senders[i : i + size] for i in range(0, len(senders), size)):
        copies = len(some)
        many = Batch(here.input_ids.repeat(copies, 1), here.attention_mask.repeat(copies, 1))
        changes = [interchange(_of_pattern(_each(part, copies), here), _times(own[part.site, part.layer], copies)) for part in held]
        for i, sender in enumerate(some):
            where = replace(sender, rows=range(i * n, (i + 1) * n))
            changes.append(interchange(_of_pattern(where, there), theirs[sender.site, sender.layer], source_positions))
        to = None if receiver is None else _each(receiver, copies)
        values.append(_metric(model, many, changes, to, tokens.repeat(copies, 1), metric).view(copies, n))
    return SitePaths(torch.cat(values).T.cpu(), read[0].cpu(), read[1].cpu())


def _metric(
    model: LanguageModel, batch: Batch, changes: Sequence[Intervention], receiver: Where | None, tokens: Tensor, metric: Metric
) -> Tensor:
    """The metric [rows] of the first run, or of the second where there is a receiver."""
    with applied(model, changes):
        if receiver is None:
            return metric(model.logits(batch).float().gather(1, tokens))
        arrived = taps.read(model, batch, [receiver.site], [receiver.layer], positions="all")[receiver.site][0]
    with applied(model, [interchange(_of_pattern(receiver, batch), _by_query(receiver.site, arrived))]):
        return metric(model.logits(batch).float().gather(1, tokens))


def _whole(model: LanguageModel, batch: Batch, parts: Sequence[Where]) -> dict[tuple[str, int], Tensor]:
    """The whole sites of some parts in a plain run, [n, T, ..] by site and layer."""
    found = {}
    for site in dict.fromkeys(part.site for part in parts):
        layers = list(dict.fromkeys(part.layer for part in parts if part.site == site))
        read = taps.read(model, batch, [site], layers, positions="all")[site]
        found.update({(site, layer): _by_query(site, value) for layer, value in zip(layers, read, strict=True)})
    return found


def _by_query(site: str, value: Tensor) -> Tensor:
    """A pattern [n, heads, query, key] as an interchange wants it: positions are those of the queries."""
    return value.transpose(1, 2) if site == "pattern" else value


def _of_pattern(where: Where, batch: Batch) -> Where:
    """A part of a pattern names its keys: all of them where it does not say."""
    if where.site != "pattern" or where.units is not None:
        return where
    return replace(where, units=range(batch.input_ids.shape[1]))


def _each(where: Where, copies: int) -> Where:
    """A part with positions for each text, in a batch that holds the texts several times."""
    if isinstance(where.positions, str):
        return where
    at = indices.columns(where.positions)
    return replace(where, positions=at.repeat(copies, 1)) if at.ndim == 2 else where


def _times(x: Tensor, copies: int) -> Tensor:
    return x.repeat(copies, *[1] * (x.ndim - 1))
