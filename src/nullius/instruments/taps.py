"""Taps: read activations at named sites, and edit them while the model runs. The model is the same before and after."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from nullius.errors import UsageError
from nullius.instruments import attention
from nullius.models import hooks
from nullius.models.language_model import Batch, LanguageModel


@torch.no_grad()
def read(
    model: LanguageModel,
    batch: Batch,
    sites: Sequence[str],
    layers: Sequence[int] | None = None,
    positions: Literal["last", "all"] = "last",
    heads: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """Run the decoder once and return each site stacked over layers (all of them by default); no logits are made.

    "last": [layers, B, ...] at the last position (texts are left-padded). "all": [layers, B, T, ...], padding included. `pattern` is
    [layers, B, heads, T] at the last query, or [layers, B, heads, T, T], also where the model runs a fused kernel (see `attention`); what the
    model computes is the same with and without it. heads: keep these only, of sites that have heads.
    Raises UsageError for an unknown site, layer or head, SubjectError for a site that this architecture lacks.
    """
    layers = range(model.anatomy.n_layers) if layers is None else layers
    if not layers:
        raise UsageError("no layer to read: give at least one, or leave `layers` out for all")
    kept: dict[str, dict[int, Tensor]] = {site: {} for site in sites}
    watches: dict[int, attention.Watch] = {}
    with ExitStack() as stack:
        for name in sites:
            chosen = _chosen(model, name, heads)
            for layer in layers:
                site = model.anatomy.site(name, layer)
                keep = partial(_keep, kept[name], layer, name == "pattern", positions == "last", chosen)
                if name == "pattern":
                    watches[layer] = keep
                else:
                    stack.callback(hooks.on_read(model.anatomy, site, keep).remove)
        if watches:
            stack.enter_context(attention.watched(model, watches, last=positions == "last"))
        model.hidden(batch)
    return {name: torch.stack([kept[name][layer] for layer in layers]) for name in sites}


def _keep(into: dict[int, Tensor], layer: int, pattern: bool, last: bool, heads: Tensor | None, value: Tensor) -> None:
    if last:
        value = value[..., -1, :] if pattern else value[:, -1]
    if heads is not None:
        value = value.index_select(1 if pattern else -2, heads.to(value.device))
    into[layer] = value.detach().clone()


def _chosen(model: LanguageModel, site: str, heads: Sequence[int] | None) -> Tensor | None:
    """The heads to keep of a site; None where it has none, or all are wanted."""
    there = model.anatomy.n_heads if site == "pattern" else model.anatomy.site(site, 0).heads
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
    handles = hooks.on_write(model.anatomy, model.anatomy.site(site, layer), fn)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
