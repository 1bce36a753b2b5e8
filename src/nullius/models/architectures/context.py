"""What all layers of one pass share: positions, padding, packing, masks and the cache."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from nullius.errors import NulliusError


@dataclass
class Context:
    """One pass over tokens [B, T].

    positions: [B, T], counted from each sequence's first token. real: [B, T], False at padding; None where there is none.
    allowed: [B, 1, T, S], which of all S tokens (past ones first) each token may see; None: those before it and itself, of its own sequence.
    offsets: [n + 1], where packed sequences begin; None: nothing is packed. embedded: the embeddings of the tokens. turn: cosine and
    sine of the angles by which attention turns queries and keys; None: each layer finds them. patterns: those that an eager kernel formed,
    layer → [B, H, T, S].
    """

    positions: Tensor
    real: Tensor | None = None
    allowed: Tensor | None = None
    offsets: Tensor | None = None
    embedded: Tensor | None = None
    cache: Cache | None = None
    turn: tuple[Tensor, Tensor] | None = None
    patterns: dict[int, Tensor] = field(default_factory=dict)

    @property
    def bounds(self) -> list[tuple[int, int]] | None:
        """Beginning and end of each packed sequence."""
        return None if self.offsets is None else list(pairwise(self.offsets.tolist()))


def see(
    embedded: Tensor,
    mask: Tensor | None,
    positions: Tensor | None,
    offsets: Tensor | None,
    cache: Cache | None,
) -> Context:
    """Make the context of a pass. embedded: [B, T, d]; mask: [B, past + T], 0 at padding, on either side.

    Raises NulliusError naming what does not fit.
    """
    batch, length = embedded.shape[:2]
    past = 0 if cache is None else cache.get_seq_length()
    device = embedded.device
    real = allowed = None
    if mask is not None:
        if mask.ndim != 2 or mask.shape != (batch, past + length):
            raise NulliusError(f"attention_mask must be [batch, tokens] = {[batch, past + length]}; got {list(mask.shape)}")
        if not bool(mask.all()):
            real = mask.bool()
    if offsets is not None:
        if batch != 1 or past or real is not None:
            raise NulliusError("packed sequences (cu_seqlens) need a batch of 1, without padding and without a cache")
        lengths = offsets.diff()
        positions = torch.arange(length, device=device) - offsets[:-1].to(device).repeat_interleave(lengths.to(device))
        positions = positions.unsqueeze(0)
    if positions is None:
        positions = torch.arange(past, past + length, device=device).unsqueeze(0) if real is None else (real.cumsum(-1) - 1).clamp(min=0)
        positions = positions[:, -length:]
    if past or real is not None:
        query = torch.arange(past, past + length, device=device)[:, None]
        key = torch.arange(past + length, device=device)
        allowed = (key <= query)[None, None]
        if real is not None:  # padding sees itself, so that no row of the softmax is empty
            allowed = allowed & (real[:, None, None, :] | (key == query))
        elif length == 1:
            allowed = allowed.expand(1, 1, 1, past + 1)
    return Context(positions.expand(batch, -1), None if real is None else real[:, -length:], allowed, offsets, embedded, cache)
