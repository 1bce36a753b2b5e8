"""The parts of a layer that treat each position alone: from the heads' outputs, or from the neurons, to the residual stream above it.

Only attention moves anything between positions. What is patched behind a layer's attention can therefore be carried to the top of its layer
for the patched positions only, and without running that attention again.
"""

from __future__ import annotations

from torch import Tensor

from nullius.models.anatomy import Anatomy


def attention_out(anatomy: Anatomy, layer: int, projected: Tensor) -> Tensor:
    """What the attention adds to the stream, from the output of its o_proj [.., d_model]: through post-norm and factor, if there are such."""
    return anatomy.added(layer, "attn", projected)


def mlp_out(anatomy: Anatomy, layer: int, projected: Tensor) -> Tensor:
    """What the feed-forward block adds to the stream, from the output of its last map [.., d_model]: likewise."""
    return anatomy.added(layer, "mlp", projected)


def top(anatomy: Anatomy, layer: int, pre: Tensor, attn_out: Tensor) -> Tensor:
    """resid_post [B, T, d_model] of a layer from its resid_pre and from what its attention adds."""
    mid = pre + attn_out
    return mid + anatomy.feed_forward(layer, pre if anatomy.parallel else mid)
