"""Cross-model activation patching (CMAP; Prakash et al. 2024): what one model computes, pasted into another of the same architecture.

Both run on the same text. Where a tuned model does a task better than its base, pasting the outputs of one group of heads into the base shows
whether it is they that became better. It presupposes that both speak in the same basis: a model from another seed gives noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from nullius.errors import SubjectError, UsageError
from nullius.instruments import checks, grids, patching, taps
from nullius.instruments.circuits import Group
from nullius.instruments.interventions import Intervention, applied, interchange
from nullius.instruments.path_runs import check_sender, positions
from nullius.instruments.where import Positions, Where
from nullius.models.language_model import Batch, LanguageModel


@torch.no_grad()
def patch(
    model: LanguageModel,
    donor: LanguageModel,
    texts: Sequence[str] | Batch,
    groups: Sequence[Group],
    *,
    site: Literal["z", "q", "k", "v"] = "z",
    hold: bool = False,
    batch_size: int = 64,
) -> Tensor:
    """Logits of `model` at the last position [n, V] with the groups' heads and feed-forward blocks taken from `donor` at the groups' positions.

    site: the heads' outputs z (with what the blocks add), or their queries; keys and values are those that they read, at all positions.
    hold: the model's own z stays as it was at all positions but the last, so that only what the last token does with the paste is seen. Texts have
    one length.
    Raises SubjectError where the two models are not of one shape, UsageError for groups that do not fit.
    """
    _check(model, donor)
    batch = model.batch(texts)
    checks.at_least_one(batch_size=batch_size)
    if site not in ("z", "q", "k", "v") or isinstance(groups, Group):
        raise UsageError("groups stand in a list, and their site is z, q, k or v")
    for group in groups:
        positions(group.at, *batch.input_ids.shape)
        for head in group.heads:
            check_sender(model, head, f"{group.name}: head")
        for block in group.mlps:
            check_sender(model, block, f"{group.name}:")
        if group.mlps and site != "z":
            raise UsageError(f"group '{group.name}' holds feed-forward blocks, which have no {site}: patch them with site='z'")
    sites = [site, "mlp_out"] if any(group.mlps for group in groups) else [site]
    out = []
    for start in range(0, len(batch.input_ids), batch_size):
        chosen = range(start, min(start + batch_size, len(batch.input_ids)))
        part = Batch(batch.input_ids[list(chosen)], batch.attention_mask[list(chosen)])
        n, length = part.input_ids.shape
        theirs = taps.read(donor, Batch(*(t.to(donor.device) for t in (part.input_ids, part.attention_mask))), sites, positions="all")
        changes: list[Intervention] = []
        if hold and length > 1:
            own = taps.read(model, part, ["z"], positions="all")["z"]
            changes += [interchange(Where("z", i, positions=range(length - 1)), own[i]) for i in range(model.anatomy.n_layers)]
        for group in groups:
            at = positions(group.rows(chosen).at, n, length)
            columns: Positions = "all" if at is None or site in "kv" else at[:, None]
            for layer, heads in _by_layer(model, group, site).items():
                changes.append(interchange(Where(site, layer, heads=heads, positions=columns), theirs[site][layer].to(model.device)))
            for block in group.mlps:
                changes.append(
                    interchange(Where("mlp_out", block.layer, positions=columns), theirs["mlp_out"][block.layer].to(model.device))
                )
        with applied(model, changes):
            out.append(model.logits(part).float().cpu())
    return torch.cat(out)


@torch.no_grad()
def residual(
    model: LanguageModel,
    donor: LanguageModel,
    base: Sequence[str] | Batch,
    source: Sequence[str] | Batch,
    answers: Sequence[Sequence[int]],
    *,
    site: patching.Site = "resid_post",
    metric: patching.Metric = patching.difference,
    checks: int = 8,
) -> patching.Sweep:
    """Sweep over layers and positions: `model` on the base, each cell with what `donor` has there on the source (`patching.residual` of two models).

    The sweep's `source` is the donor's own metric. base and source may be one text: only the models differ then. Raises SubjectError where the two
    models are not of one shape, and as `patching.residual`.
    """
    _check(model, donor)
    if site not in get_args(patching.Site):
        raise UsageError(f"no residual site '{site}': {', '.join(get_args(patching.Site))}")
    pair = patching.Pair(model, base, source, answers, metric, [site])
    theirs = Batch(*(ids.to(donor.device) for ids in (pair.source.input_ids, pair.source.attention_mask)))
    found = taps.read(donor, theirs, [site, "logits"], positions="all")
    there = found[site].to(model.device, model.dtype)
    pair.there, pair.first = {site: there}, 0  # another model's states differ from the first token on
    pair.metric_source = metric(found["logits"][:, -1].float().to(model.device).gather(1, pair.answers))
    cells = patching.Cells(pair, grids.Positions(model.anatomy, pair.run, there, site, None))
    return cells.run(cells.all_cells(), checks=checks)


def _by_layer(model: LanguageModel, group: Group, site: str) -> dict[int, list[int]]:
    """The heads of a group by layer; for keys and values, the key-value heads that they read."""
    shared = model.anatomy.n_heads // model.anatomy.n_kv_heads if site in "kv" else 1
    found: dict[int, list[int]] = {}
    for head in group.heads:
        here = found.setdefault(head.layer, [])
        if head.head // shared not in here:
            here.append(head.head // shared)
    return found


def _check(model: LanguageModel, donor: LanguageModel) -> None:
    for name in ("family", "n_layers", "n_heads", "n_kv_heads", "d_head", "d_model"):
        ours, theirs = getattr(model.anatomy, name), getattr(donor.anatomy, name)
        if ours != theirs:
            raise SubjectError(f"{donor.name} and {model.name} are not of one architecture: {name} is {theirs} and {ours}")
    if donor.tokenizer.get_vocab() != model.tokenizer.get_vocab():
        raise SubjectError(f"{donor.name} and {model.name} do not share a vocabulary: they would not read the same text")
