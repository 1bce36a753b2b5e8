"""Texts that begin alike (behind worked examples, an instruction): what they begin with is run once, by one row.

Attention is causal, so the residual stream, keys, values and every site of the beginning are the same in all of them. The run that comes out is
that of `wavefront.run_base` over whole texts, to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from nullius.instruments import wavefront
from nullius.instruments.wavefront import Base
from nullius.models.language_model import Batch, LanguageModel


def beginning(batch: Batch) -> int:
    """How many tokens all texts begin with, at most all but the last; 0 where that is less than half of them, for one text, and for padded ones."""
    n, length = batch.input_ids.shape
    shared = min(batch.beginning(), length - 1) if n > 1 else 0
    return shared if 2 * shared >= length else 0


@torch.no_grad()
def run_base(model: LanguageModel, batch: Batch, sites: Sequence[str] = ()) -> Base:
    """`wavefront.run_base`, with the beginning of all texts run once. Hooks of the caller see it first, as one row of that many tokens, and then all
    texts from there on. Where texts do not begin alike it is run as ever.

    The model must be one that can be run from the middle of a text, with nobody's hooks open that would mind (`questions.runs_from_middle`).
    """
    shared = beginning(batch)
    if not shared:
        return wavefront.run_base(model, batch, sites)
    n = len(batch.input_ids)
    first = wavefront.run_base(model, Batch(batch.input_ids[:1, :shared], batch.attention_mask[:1, :shared]), sites)
    cache: Any = DynamicCache()
    for layer, pair in enumerate(zip(first.keys, first.values, strict=True)):
        cache.update(*(side.expand(n, -1, -1, -1) for side in pair), layer)
    inputs = {"input_ids": batch.input_ids[:, shared:], "position_ids": batch.position_ids[:, shared:]}
    inputs["attention_mask"] = wavefront.suffix_mask(model, shared, batch.input_ids.shape[1])
    logits, end, last, kept = wavefront.run_keeping(
        model, sites, lambda: model.hf(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
    )
    kept = {site: _whole(first.stream if site == "resid_pre" else first.sites[site], value) for site, value in kept.items()}
    stream = kept.pop("resid_pre")
    keys, values = tuple(layer.keys for layer in cache.layers), tuple(layer.values for layer in cache.layers)
    whole_end = torch.cat([first.end.expand(n, -1, -1), end], 1)
    return Base(batch.input_ids, stream, keys, values, last, whole_end, logits.float(), kept)


def _whole(first: Tensor, rest: Tensor) -> Tensor:
    """A site over whole texts [layers, n, T, ...] from that of the one row that began and of all the rest."""
    return torch.cat([first.expand(-1, rest.shape[1], *first.shape[2:]), rest], 2)
