"""Taps: read activations at named sites, and edit them while the model runs. The model is the same before and after."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from nullius.errors import SubjectError, UsageError
from nullius.instruments import attention, indices
from nullius.models import hooks
from nullius.models.language_model import Batch, LanguageModel

Positions = Literal["last", "all"] | Sequence[int] | Tensor


@torch.no_grad()
def read(
    model: LanguageModel,
    batch: Batch | Sequence[str],
    sites: Sequence[str],
    layers: Sequence[int] | None = None,
    positions: Positions = "last",
    heads: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """Run the decoder once and return each site stacked over layers (all of them by default). Logits are made where `logits` is asked for only.

    positions: "last": [layers, B, ...] at the last position (texts are left-padded). "all": [layers, B, T, ...], padding included. Columns of the
    batch [P] (−1: the last), or a list of them for each text [B, P]: [layers, B, P, ...]. heads: keep these only, of sites that have heads.
    `pattern` is [layers, B, heads, T] at the last query, else [layers, B, heads, T or P, T], also where the model runs a fused kernel (see
    `attention`); what the model computes is the same with and without it. `logits` have no layers: [B, V], or [B, T or P, V].
    Raises UsageError for an unknown site, layer or head, for a column that does not exist or is padding in some text, and for heads of sites that
    have none; SubjectError for a site that this architecture lacks, and for a model whose layers are compiled. One thread at a time may use a
    model that is being read or changed: another one's passes would be read, and changed, too.
    """
    batch = model.batch(batch)
    layers = range(model.anatomy.n_layers) if layers is None else indices.listed("layers", layers)
    heads = None if heads is None else indices.listed("heads", heads)
    sites = [sites] if isinstance(sites, str) else list(sites)
    if not sites:
        raise UsageError("no site to read: give at least one")
    if not layers:
        raise UsageError("no layer to read: give at least one, or leave `layers` out for all")
    columns = _columns(batch, positions)
    last = isinstance(columns, str) and columns == "last"
    kept: dict[str, dict[int, Tensor]] = {site: {} for site in sites}
    watches: dict[int, attention.Watch] = {}
    by_head = False
    with ExitStack() as stack:
        for name in sites:
            if name == "logits":
                continue
            chosen = _chosen(model, name, layers[0], heads)
            by_head = by_head or chosen is not None
            for layer in layers:
                site = model.anatomy.site(name, layer)
                keep = partial(_keep, kept[name], layer, name == "pattern", columns, chosen)
                if name == "pattern":
                    watches[layer] = keep
                else:
                    stack.callback(hooks.on_read(model.anatomy, site, keep).remove)
        if heads is not None and not by_head:
            raise UsageError(f"heads are chosen, and {', '.join(sites)} has none")
        if watches:
            stack.enter_context(attention.watched(model, watches, last=last))
        if "logits" in sites:
            logits = model.logits(batch, "last" if last else "all")
            kept["logits"][0] = logits if isinstance(columns, str) else _pick(logits, columns)
        else:
            model.hidden(batch)
    return {name: kept[name][0] if name == "logits" else _stacked(model, name, layers, kept[name]) for name in sites}


def _stacked(model: LanguageModel, site: str, layers: Sequence[int], kept: dict[int, Tensor]) -> Tensor:
    widths = {kept[layer].shape for layer in layers}
    if len(widths) > 1:
        named = " and ".join(", ".join(map(str, layers)).rsplit(", ", 1))
        sizes = ", ".join(map(str, sorted({shape[-1] for shape in widths})))
        raise SubjectError(f"{site} of layers {named} differs in width ({sizes}): read them apart")
    return torch.stack([kept[layer] for layer in layers])


def _columns(batch: Batch, positions: Positions) -> Literal["last", "all"] | Tensor:
    """Columns [B, P], counted from 0, or the word for them."""
    if isinstance(positions, str):
        if positions not in ("last", "all"):
            raise UsageError(f"no positions '{positions}': give columns, or last or all")
        return positions
    rows, width = batch.input_ids.shape
    given = indices.columns(positions).to(batch.input_ids.device)
    if given.ndim not in (1, 2) or not given.numel() or (given.ndim == 2 and len(given) != rows):
        raise UsageError(f"positions must be columns [P], or [{rows}, P], a list for each text; got {list(given.shape)}")
    given = given.expand(rows, -1)
    wrong = given[(given < -width) | (given >= width)]
    if len(wrong):
        raise UsageError(f"position {int(wrong[0])} does not exist: the batch has columns 0 to {width - 1}")
    given = given % width
    blank = (_pick(batch.attention_mask, given) == 0).nonzero()
    if len(blank):
        row, place = blank[0].tolist()
        raise UsageError(
            f"column {int(given[row, place])} is padding in text {row}, which has {int(batch.attention_mask[row].sum())} of {width} tokens: "
            "count from the end, or give a list of columns for each text"
        )
    return given


def _pick(x: Tensor, columns: Tensor) -> Tensor:
    """Take x [B, T, ...] at columns [B, P]: [B, P, ...]."""
    return x[torch.arange(len(x), device=x.device)[:, None], columns.to(x.device)]


def _keep(
    into: dict[int, Tensor], layer: int, pattern: bool, columns: Literal["last", "all"] | Tensor, heads: Tensor | None, value: Tensor
) -> None:
    if isinstance(columns, str) and columns == "last":
        value = value[..., -1, :] if pattern else value[:, -1]
    elif isinstance(columns, Tensor):
        value = _pick(value.transpose(1, 2), columns).transpose(1, 2) if pattern else _pick(value, columns)
    if heads is not None:
        value = value.index_select(1 if pattern else -2, heads.to(value.device))
    into[layer] = value.detach().clone()


def _chosen(model: LanguageModel, site: str, layer: int, heads: Sequence[int] | None) -> Tensor | None:
    """The heads to keep of a site; None where it has none, or all are wanted."""
    there = model.anatomy.n_heads if site == "pattern" else model.anatomy.site(site, layer).heads
    if heads is None or not there:
        return None
    wrong = next((head for head in heads if not 0 <= head < there), None)
    if wrong is not None or not heads:
        what = "no head to read: give at least one" if wrong is None else f"head {wrong} does not exist"
        raise UsageError(f"{what}: {site} of {model.name} has heads 0 to {there - 1}")
    return torch.tensor(list(heads))


@contextmanager
def edit(model: LanguageModel, site: str, layer: int, fn: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While open, replace a site's tensor [B, T, ...] (by head where it has heads) by fn(tensor), of the same shape. May be nested.

    `pattern` comes as [B, heads, query, key]; rows that no longer sum to 1 are left so.
    """
    if site == "pattern":
        with attention.watched(model, {layer: fn}):
            yield
        return

    def checked(value: Tensor) -> Tensor:
        new = fn(value)
        if not isinstance(new, Tensor):
            raise UsageError(f"an edit of {site} at layer {layer} must return a tensor; it gave {new!r}")
        if new.shape != value.shape:  # torch would broadcast it somewhere above, or not
            raise UsageError(f"an edit of {site} at layer {layer} must keep its shape {list(value.shape)}; it gave {list(new.shape)}")
        return new

    handles = hooks.on_write(model.anatomy, model.anatomy.site(site, layer), checked)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
