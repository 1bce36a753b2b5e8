"""Softmax over time without queries: the score of a token is its own, whoever looks (Non-approximate, arXiv 2510.11602)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nullius.models.architectures.cache import State
from nullius.models.architectures.config import DecoderConfig
from nullius.models.architectures.context import Context
from nullius.models.architectures.gated import operate
from nullius.models.architectures.mixers import Mixer, RMSNorm


class QueryFreeAttention(Mixer):
    """o_i = Σ_{j ≤ i} e^{s_j} v_j / Σ_{j ≤ i} e^{s_j} with s_j = SiLU(x_j W_q) · (x_j W_k) / √D, head by head. Linear in time.

    With the running maximum M_t, numerator and denominator are a gated memory with one key, k_t = e^{s_t − M_t}, that decays by
    e^{M_{t−1} − M_t}: no exponent is positive, whatever the scores. The result does not depend on M, so M has no gradient.
    """

    sites = ("q", "k", "v", "z")

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__(config, layer, config.num_attention_heads)
        width = config.hidden_size
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(4))
        norm = config.qk_norm
        self.q_norm, self.k_norm = (RMSNorm(config.head_dim, config.rms_norm_eps) if norm else nn.Identity() for _ in range(2))

    def scores(self, x: Tensor) -> Tensor:
        """s [B, T, H] in float32 (float64 of float64). x: [B, T, d]."""
        q, k = (norm(p(x).unflatten(-1, (self.heads, -1))) for p, norm in ((self.q_proj, self.q_norm), (self.k_proj, self.k_norm)))
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        return (F.silu(q).to(wide) * k.to(wide)).sum(-1) * q.shape[-1] ** -0.5

    def forward(self, hidden_states: Tensor, context: Context, source: Tensor | None = None) -> tuple[Tensor, None]:
        """x [B, T, d] → [B, T, d]. Maximum and memory go into the cache where there is one."""
        s = self.scores(hidden_states)
        v = self.v_proj(hidden_states).unflatten(-1, (self.heads, -1)).to(s.dtype)
        memory = None if context.cache is None else context.cache.layers[self.layer]
        before = memory.get("maximum") if isinstance(memory, State) else None
        real = None if context.real is None else context.real.unsqueeze(-1)
        seen = s.detach() if real is None else s.detach().masked_fill(~real, -torch.inf)
        top = _running_maximum(seen, before, context.bounds)
        if real is not None:  # padding in front has no maximum yet: take the first there will be, so that nothing decays meanwhile
            first = torch.where(top.isfinite(), top, torch.inf).amin(1, keepdim=True)
            top = torch.where(top.isfinite(), top, torch.where(first.isfinite(), first, 0.0))
        earlier = torch.cat((top[:, :1] if before is None else before.unsqueeze(1), top[:, :-1]), 1)
        k = (s - top).clamp(max=0.0).exp()
        k = k if real is None else k * real
        tile, one = _tile(s.device), torch.ones_like(k).unsqueeze(-1)
        both = torch.cat((v, one), -1)
        o, state = operate(
            F.pad(one, (0, tile - 1)),
            F.pad(k.unsqueeze(-1), (0, tile - 1)),
            F.pad(both, (0, -both.shape[-1] % tile)),
            (earlier - top).clamp(max=0.0),
            initial_state=memory.get("state") if isinstance(memory, State) else None,
            scale=1.0,
            cu_seqlens=context.offsets,
        )
        if isinstance(memory, State):
            memory.put(state=state, maximum=top[:, -1])
            memory.count(s.shape[1])
        tiny = torch.finfo(o.dtype).tiny  # at padding in front nothing was written yet: 0 / tiny
        width = v.shape[-1]
        z = (o[..., :width] / o[..., width : width + 1].clamp(min=tiny)).flatten(2)
        return self.o_proj(z.to(hidden_states.dtype)), None

    def mixing_flops_per_token(self, length: int) -> float:
        """Writing to and reading from one row for each head."""
        return 4.0 * self.heads * (self.v_proj.out_features // self.heads + 1)


def _tile(device: torch.device) -> int:
    """Widths are padded to multiples of this: kernels on a GPU move whole tiles."""
    return 16 if device.type == "cuda" else 1


def _running_maximum(s: Tensor, before: Tensor | None, bounds: list[tuple[int, int]] | None) -> Tensor:
    if bounds is not None:
        return torch.cat([s[:, a:b].cummax(1).values for a, b in bounds], 1)
    top = s.cummax(1).values
    return top if before is None else torch.maximum(top, before.unsqueeze(1))
