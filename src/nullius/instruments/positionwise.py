"""The parts of a layer that treat each position alone: from the heads' outputs, or from the neurons, to the residual stream above it.

Only attention moves anything between positions. What is patched behind a layer's attention can therefore be carried to the top of its layer
for the patched positions only, and without running that attention again.
"""

from __future__ import annotations

from torch import Tensor, nn

from nullius.models.anatomy import Anatomy


def attention_out(anatomy: Anatomy, layer: int, projected: Tensor) -> Tensor:
    """What the attention adds to the stream, from the output of its o_proj [.., d_model]: through a post-norm, where there is one."""
    return _behind(anatomy.site("attn_out", layer).module, anatomy.attn(layer), projected)


def mlp_out(anatomy: Anatomy, layer: int, projected: Tensor) -> Tensor:
    """What the feed-forward block adds to the stream, from the output of its last map [.., d_model]: through a post-norm, where there is one."""
    return _behind(anatomy.site("mlp_out", layer).module, anatomy.mlp(layer), projected)


def top(anatomy: Anatomy, layer: int, pre: Tensor, attn_out: Tensor) -> Tensor:
    """resid_post [B, T, d_model] of a layer from its resid_pre and from what its attention adds."""
    mid = pre + attn_out
    x = pre if anatomy.parallel else mid
    norm = anatomy.mlp_norm(layer)
    raw = anatomy.mlp(layer)(x if norm is None else norm(x))
    return mid + mlp_out(anatomy, layer, raw[0] if isinstance(raw, tuple) else raw)


def _behind(writer: nn.Module, block: nn.Module, value: Tensor) -> Tensor:
    return value if writer is block else writer(value)
