"""Taps: read activations at named sites, and edit them while the model runs. The model is the same before and after."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from nullius.errors import UsageError
from nullius.models import hooks
from nullius.models.language_model import Batch, LanguageModel


@torch.no_grad()
def read(
    model: LanguageModel,
    batch: Batch,
    sites: Sequence[str],
    layers: Sequence[int] | None = None,
    positions: Literal["last", "all"] = "last",
) -> dict[str, Tensor]:
    """Run the decoder once and return each site stacked over layers (all of them by default); no logits are made.

    "last": [layers, B, ...] at the last position (texts are left-padded). "all": [layers, B, T, ...], padding included. `pattern` is
    [layers, B, heads, T] at the last query, or [layers, B, heads, T, T]; that pass runs without a fused attention kernel, so what is read
    beside it may differ from a pass without `pattern` in the last bits.
    Raises UsageError for an unknown site or layer, SubjectError for a site that this architecture lacks.
    """
    layers = range(model.anatomy.n_layers) if layers is None else layers
    if not layers:
        raise UsageError("no layer to read: give at least one, or leave `layers` out for all")
    kept: dict[str, dict[int, Tensor]] = {site: {} for site in sites}
    handles = []

    def keeper(site: str, layer: int) -> Callable[[Tensor], None]:
        def take(value: Tensor) -> None:
            if positions == "last":
                value = value[..., -1, :] if site == "pattern" else value[:, -1]
            kept[site][layer] = value.detach().clone()

        return take

    try:
        for name in sites:
            for layer in layers:
                handles.append(hooks.on_read(model.anatomy, model.anatomy.site(name, layer), keeper(name, layer)))
        with _eager(model, "pattern" in sites):
            model.hidden(batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.stack([kept[name][layer] for layer in layers]) for name in sites}


@contextmanager
def edit(model: LanguageModel, site: str, layer: int, fn: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While open, replace a site's tensor [B, T, ...] (by head where it has heads) by fn(tensor), of the same shape. May be nested."""
    handles = hooks.on_write(model.anatomy, model.anatomy.site(site, layer), fn)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _eager(model: LanguageModel, needed: bool) -> Iterator[None]:
    """Fused kernels do not return the attention pattern: run without one, and restore the choice."""
    before = model.hf.config._attn_implementation
    if not needed or before == "eager":
        yield
        return
    model.hf.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.hf.set_attn_implementation(before)
