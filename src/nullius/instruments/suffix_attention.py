"""Attention of many short suffixes on a CPU, as three batched products.

A fused kernel is made for long texts. In a sweep there are thousands of rows of a few queries each: copying the keys and values once for each query
head that shares them, and starting the kernel for each row and head, then takes several times as long as the attention itself. Here the query heads
of a group are rows of one product with the keys that they share. The numbers agree to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from nullius.models.language_model import LanguageModel

NAME = "nullius_suffix"
KNOWN = {
    "dropout",
    "is_causal",
    "sliding_window",
    "position_ids",
    "use_cache",
    "cache_position",
    "output_attentions",
}  # nothing beside the mask


@contextmanager
def in_products(model: LanguageModel) -> Iterator[None]:
    """While open, the model's attention is computed so, where it runs in float32 on a CPU and would use torch's fused kernel."""
    before = model.hf.config._attn_implementation
    if before != "sdpa" or model.device.type != "cpu" or model.dtype != torch.float32:
        yield
        return
    model.hf.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.hf.set_attn_implementation(before)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float | None = None, **kwargs: Any
) -> tuple[Tensor, None]:
    """An attention function of transformers: query [B, heads, s, d], key and value [B, groups, T, d], additive mask [1, 1, s, T] → [B, s, heads, d].

    What it does not know (a soft cap, sinks, a mask of each row) goes to the fused kernel.
    """
    more = {name for name, given in kwargs.items() if given is not None and name not in KNOWN}
    rows, heads, length, width = query.shape
    if more or attention_mask is None or attention_mask.dtype != query.dtype or attention_mask.shape[:2] != (1, 1):
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    groups, keys = key.shape[1:3]
    shared = heads // groups
    mask = attention_mask[0].repeat(1, shared, 1)
    scale = width**-0.5 if scaling is None else scaling
    together = query.reshape(rows * groups, shared * length, width)
    pattern = torch.baddbmm(mask, together, key.reshape(rows * groups, keys, width).mT, alpha=scale).softmax(-1)
    out = torch.bmm(pattern, value.reshape(rows * groups, keys, -1))
    return out.view(rows, heads, length, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, AttentionMaskInterface()["sdpa"])
