"""The wavefront: all layers of a patching sweep in one forward pass over the suffix.

A sweep asks what the model would say if, in a run on one text (the base), one activation were that of another run (the source). Run cell by
cell, a sweep over L layers and T positions is L·T forward passes. Most of that work is the same each time, and mathematics lets us skip it:

- positions before the patched one are those of the base run (attention is causal): their keys and values are kept and read as a prefix;
- layers below the patched one are those of the base run: a cell's rows *join* the batch at the patched layer, as the base run's residual
  stream with the patch in it, and from there on travel up together with all rows that joined below;
- vocabulary rows that nobody reads are never made.

So one pass over the suffix from position t carries the cells of all layers at t. It runs on the untouched transformers model, through hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from nullius.instruments import resume, taps
from nullius.models import hooks
from nullius.models.dataflow import first_input, with_input
from nullius.models.language_model import Batch, LanguageModel

Write = Callable[[int, Tensor], None]  # (layer, the site's tensor for the rows that have just joined, to be changed in place)


@dataclass(frozen=True)
class Base:
    """The run into which is patched. ids: [n, T], no padding; stream: resid_pre of every layer [layers, n, T, d_model]; keys, values by layer."""

    ids: Tensor
    stream: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    last: Tensor  # output of the final norm at the last position [n, d_model]


@torch.no_grad()
def run_base(model: LanguageModel, batch: Batch) -> Base:
    """Run the base texts once and keep what every cell needs."""
    cache = DynamicCache()
    kept: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for layer in range(model.anatomy.n_layers):
            handle = hooks.on_read(model.anatomy, model.anatomy.site("resid_pre", layer), partial(kept.__setitem__, layer))
            stack.callback(handle.remove)
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "position_ids": batch.position_ids}
        last = model.hf.base_model(**inputs, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
    layers: Any = cache.layers
    stream = torch.stack([kept[layer] for layer in range(model.anatomy.n_layers)])
    return Base(batch.input_ids, stream, tuple(layer.keys for layer in layers), tuple(layer.values for layer in layers), last)


class _Prefix(DynamicCache):
    """Keys and values of the base run before `start`, in front of those of whatever rows arrive; nothing is kept."""

    def __init__(self, base: Base, start: int) -> None:
        super().__init__()
        self.base, self.start = base, start

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.start

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.start == 0:
            return key_states, value_states
        times = key_states.shape[0] // self.base.ids.shape[0]
        whole = []
        for new, old in ((key_states, self.base.keys[layer_idx]), (value_states, self.base.values[layer_idx])):
            whole.append(torch.cat([old[:, :, : self.start].repeat(times, 1, 1, 1), new], 2))
        return whole[0], whole[1]


@torch.no_grad()
def wave(model: LanguageModel, base: Base, start: int, layers: Sequence[int], copies: int, site: str, write: Write) -> Tensor:
    """Run all cells of some layers over the suffix from `start`; return the final norm's output at the last position [layers, copies, n, d].

    layers: ascending. copies: cells per layer (1, or the number of heads); each is a copy of the n base rows. When a layer's rows have
    joined, write(layer, x) changes the site there in place: x is [copies · n, T − start, ...], copy by copy.
    """
    n, length = base.ids.shape
    with ExitStack() as stack:
        stack.enter_context(resume.from_layer(model, layers[0], base.stream[layers[0]][:1, start:]))
        for layer in layers:
            rows = base.stream[layer][:, start:].repeat(copies, 1, 1)
            if site == "resid_pre":
                write(layer, rows)
            else:
                stack.enter_context(taps.edit(model, site, layer, _newest(layer, copies * n, write)))
            hook = _joining(rows, alone=layer == layers[0])
            stack.callback(model.anatomy.layers[layer].register_forward_pre_hook(hook, with_kwargs=True).remove)
        out = model.hf.base_model(
            input_ids=base.ids[:1, start:],
            attention_mask=_mask(model, start, length),
            position_ids=torch.arange(start, length, device=base.ids.device)[None],
            past_key_values=_Prefix(base, start),
            use_cache=True,
        )
    return out.last_hidden_state[:, -1].view(len(layers), copies, n, -1)


def _joining(rows: Tensor, alone: bool) -> Callable[..., Any]:
    """A hook before a layer: its rows join those that come from below (the first layer's replace the stand-in that was fed)."""

    def join(_module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        below = first_input(args, kwargs)
        return with_input(args, kwargs, rows if alone else torch.cat([below, rows]))

    return join


def _newest(layer: int, joined: int, write: Write) -> Callable[[Tensor], Tensor]:
    """An edit of the rows that have just joined, in place: the tensor was made in this pass, and a copy of all rows would cost more than the
    edit."""

    def edit(value: Tensor) -> Tensor:
        write(layer, value[-joined:])
        return value

    return edit


def _mask(model: LanguageModel, start: int, length: int) -> Any:
    """Additive causal mask [1, 1, T − start, T]; where layers look back over a window only, one mask for each kind of layer."""
    config = model.hf.config.get_text_config()
    query = torch.arange(start, length, device=model.device)[:, None]
    key = torch.arange(length, device=model.device)[None, :]

    def additive(allowed: Tensor) -> Tensor:
        lowest = torch.finfo(model.dtype).min
        return torch.zeros(allowed.shape, dtype=model.dtype, device=model.device).masked_fill(~allowed, lowest)[None, None]

    causal = key <= query
    kinds = set(getattr(config, "layer_types", None) or [])
    window = getattr(config, "sliding_window", None)
    if "sliding_attention" not in kinds or not window:
        return additive(causal)
    masks = {"full_attention": additive(causal), "sliding_attention": additive(causal & (query - key < window))}
    return {kind: masks[kind] for kind in kinds}
