"""Gated linear attention in chunks, in plain PyTorch: the CPU back end, and the readable form of the Triton kernels.

Within a chunk of C tokens let b_t be the running sum of the log decay (b restarts at 0 in each chunk; b_C is its last row), H the state at
the chunk's start and dH the gradient of the state at its end. Then (arXiv 2312.06635, section 4; all exponents that appear are ≤ 0):

    O  = scale · [(Q ⊙ e^b) H + P V]          P_ij = Σ_c q_ic k_jc e^(b_ic − b_jc)  for j ≤ i
    H' = e^(b_C) ⊙ H + (K ⊙ e^(b_C − b))ᵀ V

P is the only delicate part. Its exponent is ≤ 0, but a matrix product needs it split over the two factors. With the reference b_C / 2 in the
middle, both factors stay below e^80 as long as no channel decays by more than e^−160 within a chunk (float32 ends at e^88): the fast form. Beyond
that, P is summed element by element over short chunks: the strong form. Gates from the layer of the paper decay by e^−3 in 64 tokens.

The gradient of the gate needs no stored states: with d b_t = q_t ⊙ dq_t − k_t ⊙ dk_t, d log α_t = Σ_{i ≥ t} d b_i, where the sum beyond the
chunk's end is Σ_v H' ⊙ dH (section 4.3).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FAST_CHUNK = 64
STRONG_CHUNK = 16
STRONGEST_FAST_DECAY = -160.0
# Log decay of a gate that is 0 to the last bit; larger numbers would round the sums of others
CLOSED = {torch.float32: -200.0, torch.float64: -800.0}


def chunked(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Same arguments and results as `recurrence`; differentiable in all five tensors through a backward written by hand."""
    return _Chunked.apply(q, k, v, log_decay, state, scale)


def _split(x: Tensor, chunk: int) -> Tensor:
    """[B, T, H, D] → [B, H, N, C, D], zero-padded: a padded token has no key, no value and no decay, so it changes nothing."""
    batch, length, heads, width = x.shape
    x = F.pad(x, (0, 0, 0, 0, 0, -length % chunk))
    return x.view(batch, -1, chunk, heads, width).permute(0, 3, 1, 2, 4)


def _join(x: Tensor, length: int) -> Tensor:
    """Undo `_split`."""
    return x.permute(0, 2, 3, 1, 4).flatten(1, 2)[:, :length]


class _Intra:
    """P and its transposes within chunks, for either form. All tensors [B, H, N, C, K]."""

    def __init__(self, q: Tensor, k: Tensor, b: Tensor, fast: bool) -> None:
        self.fast = fast
        if fast:
            half = b[..., -1:, :] / 2
            self.up, self.down = (b - half).exp(), (half - b).exp()
            self.q, self.k = q * self.up, k * self.down
        else:
            self.q, self.k = q, k
            causal = torch.ones(b.shape[-2], b.shape[-2], dtype=torch.bool, device=b.device).tril()
            difference = b.unsqueeze(-2) - b.unsqueeze(-3)
            self.decay = difference.masked_fill(~causal[..., None], -torch.inf).exp()  # [.., i, j, K]

    def scores(self) -> Tensor:
        """P [.., C, C], zero above the diagonal."""
        if self.fast:
            return (self.q @ self.k.mT).tril()
        return torch.einsum("...ik,...jk,...ijk->...ij", self.q, self.k, self.decay)

    def gradients(self, d_scores: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of q and k given that of P (zero above the diagonal)."""
        if self.fast:
            return (d_scores @ self.k) * self.up, (d_scores.mT @ self.q) * self.down
        d_q = torch.einsum("...ij,...jk,...ijk->...ik", d_scores, self.k, self.decay)
        return d_q, torch.einsum("...ij,...ik,...ijk->...jk", d_scores, self.q, self.decay)


def closed(g: Tensor) -> Tensor:
    """Log decays with −∞, a gate of 0, and all that is 0 as well, at one finite number: differences of sums of infinities are no numbers."""
    return g.clamp(min=CLOSED[g.dtype])


def _carry(first: Tensor, update: Tensor, decay: Tensor, *, backwards: bool = False) -> tuple[Tensor, Tensor]:
    """Run H ← decay_n ⊙ H + update_n over chunks; return the H each chunk starts with, [B, H, N, K, V], and the last one."""
    order = range(update.shape[2])
    starts: list[Tensor] = [first] * len(order)
    for n in reversed(order) if backwards else order:
        starts[n] = first
        first = torch.addcmul(update[:, :, n], first, decay[:, :, n].unsqueeze(-1))
    return torch.stack(starts, 2), first


def form_for(g: Tensor) -> tuple[bool, int]:
    """Whether the fast form serves, and the chunk: decided once, from the strongest decay of any channel in any chunk."""
    fast = bool(_split(g, FAST_CHUNK).sum(-2).amin() > STRONGEST_FAST_DECAY)
    return fast, min(FAST_CHUNK if fast else STRONG_CHUNK, g.shape[1])


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Outputs and last state."""
        length, g = q.shape[1], closed(g)
        fast, chunk = form_for(g)
        ctx.save_for_backward(q, k, v, g, state)
        ctx.scale, ctx.fast, ctx.chunk = scale, fast, chunk
        q, k, v, b = (*(_split(x, chunk) for x in (q, k, v)), _split(g, chunk).cumsum(-2))
        last = b[..., -1:, :]
        update = (k * (last - b).exp()).mT @ v
        starts, end = _carry(state, update, last.squeeze(-2).exp())
        o = (q * b.exp()) @ starts + _Intra(q, k, b, fast).scores() @ v
        return _join(o * scale, length), end

    @staticmethod
    def backward(ctx: Any, d_o: Tensor, d_end: Tensor) -> tuple[Tensor | None, ...]:
        """The state at chunk starts is recomputed, not stored: it is K/C·2 times as large as the inputs."""
        with torch.autocast(d_o.device.type, enabled=False):  # it may be on again where gradients are asked for
            return _Chunked.gradients(ctx, d_o, d_end)

    @staticmethod
    def gradients(ctx: Any, d_o: Tensor, d_end: Tensor) -> tuple[Tensor | None, ...]:
        """What `backward` returns."""
        q, k, v, g, state = ctx.saved_tensors
        length, scale = q.shape[1], ctx.scale
        q, k, v, d_o = (_split(x, ctx.chunk) for x in (q, k, v, d_o * scale))
        b = _split(g, ctx.chunk).cumsum(-2)
        last = b[..., -1:, :]
        grow, fade, whole = b.exp(), (last - b).exp(), last.squeeze(-2).exp()
        starts, _ = _carry(state, (k * fade).mT @ v, whole)
        d_ends, d_state = _carry(d_end, (q * grow).mT @ d_o, whole, backwards=True)
        intra = _Intra(q, k, b, ctx.fast)
        d_scores = (d_o @ v.mT).tril()
        d_q_intra, d_k_intra = intra.gradients(d_scores)
        d_k_inter = (v @ d_ends.mT) * fade
        d_q = (d_o @ starts.mT) * grow + d_q_intra
        d_k = d_k_inter + d_k_intra
        d_v = intra.scores().mT @ d_o + (k * fade) @ d_ends
        # Σ_v H' ⊙ dH, split over what H' is made of; this is all that the gate receives from later chunks
        beyond = whole * (starts * d_ends).sum(-1) + (k * d_k_inter).sum(-2)
        d_b = q * d_q - k * d_k
        d_g = d_b.flip(-2).cumsum(-2).flip(-2) + beyond.unsqueeze(-2)
        return (*(_join(x, length) for x in (d_q, d_k, d_v, d_g)), d_state, None)
