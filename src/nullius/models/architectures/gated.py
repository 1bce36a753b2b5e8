"""Mixers with a matrix-valued memory: gated linear attention (arXiv 2312.06635, section 4.4) and its three ablations."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nullius.kernels.gated import gated_linear_attention
from nullius.models.architectures.cache import State
from nullius.models.architectures.config import DecoderConfig
from nullius.models.architectures.context import Context
from nullius.models.architectures.mixers import Mixer, RMSNorm
from nullius.models.architectures.projection import bare, project


def operate(q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, **how: Any) -> tuple[Tensor, Tensor]:
    """`gated_linear_attention` outside autocast, since it chooses its own precision: outputs and last state."""
    # offsets of packed sequences are other numbers in every batch: no compiled graph can hold them
    return (_operate if how.get("cu_seqlens") is None else _operate_apart)(q, k, v, gate, **how)


def _operate(q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, **how: Any) -> tuple[Tensor, Tensor]:
    with torch.autocast(q.device.type, enabled=False):
        o, state = gated_linear_attention(q, k, v, gate, return_state=True, **how)
    return o, state


_operate_apart = torch.compiler.disable(_operate)


class GatedLinearAttention(Mixer):
    """S_t = diag(α_t) S_{t−1} + k_tᵀ v_t, o_t = K^−½ q_t S_t, each head's o RMS-normed, times swish(x W_r), times W_o.

    The gate, by name: gla, α = σ(x W1 W2 + b)^{1/τ} for each channel of the keys; scalar, one such number for each head; retnet, the constant
    1 − 2^{−5−h} of head h; ungated, 1. Padding writes nothing and lets nothing fade.
    """

    sites = ("q", "k", "v", "z")

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        heads = config.num_linear_heads or config.num_attention_heads
        super().__init__(config, layer, heads)
        width = config.hidden_size
        keys, values = int(width * config.expand_k), int(width * config.expand_v)
        self.keys, self.values = keys // heads, values // heads
        self.temperature = config.gate_temperature
        self.q_proj, self.k_proj = (nn.Linear(width, keys, bias=False) for _ in range(2))
        self.v_proj, self.g_proj = (nn.Linear(width, values, bias=False) for _ in range(2))
        self.o_proj = nn.Linear(values, width, bias=False)
        if self.name in ("gla", "scalar"):
            gates = keys if self.name == "gla" else heads
            self.gk_proj = nn.Sequential(nn.Linear(width, config.gate_rank, bias=False), nn.Linear(config.gate_rank, gates))
        self.g_norm_swish_gate = RMSNorm(self.values, config.rms_norm_eps)  # names of weights are those of the published checkpoints
        self.short_conv = config.short_conv
        if config.short_conv:
            self.q_conv1d, self.k_conv1d = (ShortConv(keys, config.short_conv) for _ in range(2))
            self.v_conv1d = ShortConv(values, config.short_conv)

    def log_gate(self, x: Tensor, narrow: Tensor | None = None) -> Tensor | None:
        """Logarithm of the gate in float32: [B, T, H, K] (gla), [B, T, H] (scalar), [H] (retnet), None (ungated). x: [B, T, d]; narrow: x W1,
        where it is made already."""
        if self.name == "ungated":
            return None
        if self.name == "retnet":
            head = torch.arange(self.heads, device=x.device, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
            return torch.log1p(-(2.0 ** (-5.0 - head)))
        raw = self.gk_proj(x) if narrow is None else self.gk_proj[1](narrow)
        gate = F.logsigmoid(raw if raw.dtype == torch.float64 else raw.float()) / self.temperature
        return gate.unflatten(-1, (self.heads, -1)) if self.name == "gla" else gate

    def forward(self, hidden_states: Tensor, context: Context, source: Tensor | None = None) -> tuple[Tensor, None]:
        """x [B, T, d] → [B, T, d]. The state goes into the cache where there is one."""
        x = hidden_states
        memory = None if context.cache is None else context.cache.layers[self.layer]
        before_gate = [self.gk_proj[0]] if self.name in ("gla", "scalar") and bare(self.gk_proj) else []
        q, k, v, swish, *narrow = project(x, self.q_proj, self.k_proj, self.v_proj, self.g_proj, *before_gate)
        parts = {"q": q, "k": k, "v": v}
        gate = self.log_gate(x, *narrow)
        if context.real is not None:
            real = context.real.unsqueeze(-1)
            parts = {name: part * real for name, part in parts.items()}
            if gate is not None:
                gate = gate.expand(*x.shape[:2], self.heads) if gate.ndim == 1 else gate
                gate = gate * (real if gate.ndim == 3 else real.unsqueeze(-1))
        if self.short_conv:
            convs = {"q": self.q_conv1d, "k": self.k_conv1d, "v": self.v_conv1d}
            parts = {name: F.silu(conv(parts[name], context.positions, name, memory)) for name, conv in convs.items()}
        q, k, v = (parts[name].unflatten(-1, (self.heads, -1)) for name in "qkv")
        state = memory.get("state") if isinstance(memory, State) else None
        o, state = operate(q, k, v, gate, initial_state=state, cu_seqlens=context.offsets)
        if isinstance(memory, State):
            memory.put(state=state)
            memory.count(x.shape[1])
        z = self.g_norm_swish_gate(o).flatten(2) * F.silu(swish)
        return self.o_proj(z), None

    def mixing_flops_per_token(self, length: int) -> float:
        """Writing to and reading from each head's state."""
        return 4.0 * self.heads * self.keys * self.values


class ShortConv(nn.Module):
    """A causal convolution over few tokens, channel by channel; it sees nothing of the sequence packed before."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.empty(channels, 1, width))

    def forward(self, x: Tensor, positions: Tensor, name: str, memory: State | None) -> Tensor:
        """x [B, T, C] → [B, T, C]; positions [B, T]. The last inputs go into the memory under `name`."""
        past = None if memory is None else memory.get(f"conv_{name}")
        if past is None:
            past = x.new_zeros(x.shape[0], self.width - 1, x.shape[2])
        whole = torch.cat((past, x), 1)
        if memory is not None:
            memory.put(**{f"conv_{name}": whole[:, x.shape[1] :]})  # the last width - 1
        lags = [
            whole[:, self.width - 1 - lag :][:, : x.shape[1]] * self.weight[:, 0, -1 - lag] * (positions >= lag).unsqueeze(-1)
            for lag in range(self.width)
        ]
        return torch.stack(lags).sum(0)
