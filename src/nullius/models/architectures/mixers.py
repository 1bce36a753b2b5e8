"""Mixers that attend: softmax attention, and what is left of it when its form or its queries and keys are taken away (arXiv 2510.11602).

Every mixer maps the normed stream x [B, T, d] to what it adds to the stream, and returns it with the attention pattern (None when it forms
none). `source` is what queries and keys are projected from: x itself, the embeddings (static), or the shadow stream (random, fixed).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from nullius.models.architectures.cache import gather
from nullius.models.architectures.config import DecoderConfig
from nullius.models.architectures.context import Context
from nullius.models.architectures.projection import project, swiglu


class RMSNorm(nn.RMSNorm):
    """RMS norm that keeps the type of its input. Under autocast PyTorch's own is float32, which every linear map after it would cast again."""

    def forward(self, x: Tensor) -> Tensor:
        """x [.., d] → the same shape and type; mean and root are computed in float32 at least."""
        with torch.autocast(x.device.type, enabled=False):
            return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Mixer(nn.Module):
    """What every mixer has. head_sites: the sites it has by head, with the number of heads. name: as in the configuration."""

    is_mixer = True  # for the anatomy, which else goes by the names of classes
    sites: tuple[str, ...] = ()

    def __init__(self, config: DecoderConfig, layer: int, heads: int) -> None:
        super().__init__()
        assert config.mixers is not None
        self.layer, self.heads, self.name = layer, heads, config.mixers[layer]
        self.head_sites = dict.fromkeys(self.sites, heads)

    def mixing_flops_per_token(self, length: int) -> float:
        """Floating-point operations of the forward pass that no linear map makes, for one token of a sequence of this length."""
        raise NotImplementedError


def turns(positions: Tensor, width: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angles by which positions [B, T] turn heads of `width` channels: [B or 1, 1, T, width / 2] each."""
    half = width // 2
    positions = positions if positions.stride(0) else positions[:1]  # rows that are one and the same
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    frequency = theta ** (-torch.arange(half, device=positions.device, dtype=wide) / half)
    angle = positions[:, None, :, None].to(wide) * frequency
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary position embedding (arXiv 2104.09864) in LLaMA's pairing. x: [B, H, T, D]; turn: of its positions (see `turns`)."""
    cos, sin = (part.to(x.dtype) for part in turn)
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class SoftmaxAttention(Mixer):
    """Multi-head attention with rotary positions, as in LLaMA; with `qk_norm`, RMS-normed queries and keys, as in Qwen3."""

    sites: tuple[str, ...] = ("q", "k", "v", "z", "pattern")
    is_causal = True  # these two are read by the attention functions of transformers
    num_key_value_groups = 1

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__(config, layer, config.num_attention_heads)
        width = config.hidden_size
        self.config, self.theta = config, config.rope_theta
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(4))
        norm = config.qk_norm
        self.q_norm, self.k_norm = (RMSNorm(config.head_dim, config.rms_norm_eps) if norm else nn.Identity() for _ in range(2))

    def split(self, x: Tensor) -> Tensor:
        """[B, T, d] → [B, H, T, D]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def turns(self, positions: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """See `turns`. positions: [B, T]."""
        return turns(positions, self.config.head_dim, self.theta, like.dtype)

    def queries_and_keys(self, source: Tensor, turn: tuple[Tensor, Tensor], hooked: bool = True) -> tuple[Tensor, Tensor]:
        """Project, norm and rotate: [B, H, T, D] each. turn: see `turns`. hooked: whether hooks on the maps are to see it."""
        maps = self.q_proj, self.k_proj
        q, k = project(source, *maps) if hooked else (map.forward(source) for map in maps)
        return self.turned(q, k, turn)

    def turned(self, q: Tensor, k: Tensor, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Norm and rotate what was projected, [B, T, d] each: [B, H, T, D]."""
        return rotate(self.q_norm(self.split(q)), turn), rotate(self.k_norm(self.split(k)), turn)

    def forward(self, hidden_states: Tensor, context: Context, source: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """x [B, T, d] → [B, T, d], with the pattern [B, H, T, S] where the context asks for it."""
        q, k, v = self.find(hidden_states, context, source)
        if context.cache is not None:
            k, v = context.cache.update(k, v, self.layer)
        z, pattern = self.attend(q, k, v, context)
        return self.o_proj(z.flatten(2)), pattern

    def find(self, x: Tensor, context: Context, source: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of this pass, [B, H, T, D] each."""
        q, k, v = project(x, self.q_proj, self.k_proj, self.v_proj)
        return *self.turned(q, k, context.turn or self.turns(context.positions, x)), self.split(v)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> tuple[Tensor, Tensor | None]:
        """q [B, H, T, D], k, v [B, H, S, D] → z [B, T, H, D], and the pattern where the kernel forms it."""
        kernel = ALL_ATTENTION_FUNCTIONS.get_interface(self.kernel(), eager_attention_forward)
        if context.bounds is None:
            return kernel(self, q, k, v, context.allowed, scaling=q.shape[-1] ** -0.5, dropout=0.0)
        return torch.cat([self.causal(*(x[:, :, a:b] for x in (q, k, v))) for a, b in context.bounds], 2).transpose(1, 2), None

    def kernel(self) -> str:
        """The attention implementation, by its name in transformers."""
        return self.config._attn_implementation

    def causal(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention over one whole sequence, z [B, H, T, D]."""
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def weigh(self, scores: Tensor, allowed: Tensor) -> Tensor:
        """The pattern from scores [B, H, T, S]: rows add up to 1, zero where not allowed."""
        return scores.masked_fill(~allowed, -torch.inf).softmax(-1)

    def mixing_flops_per_token(self, length: int) -> float:
        """Scores and sums over the earlier half of the pairs."""
        return 2.0 * length * self.heads * (self.q_proj.out_features // self.heads)


def eager_attention_forward(
    module: SoftmaxAttention, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float, **_: Any
) -> tuple[Tensor, Tensor]:
    """Attention with its pattern, in the form that transformers gives its attention functions.

    query [B, H, T, D]; key, value [B, H, S, D]; attention_mask: True or 0 where allowed; None: causal. Returns z [B, T, H, D] and [B, H, T, S].
    """
    scores = query @ key.mT * scaling
    scores = scores if scores.dtype == torch.float64 else scores.float()
    if attention_mask is None:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril(scores.shape[-1] - scores.shape[-2])
    else:
        allowed = attention_mask if attention_mask.dtype == torch.bool else attention_mask >= 0
    pattern = module.weigh(scores, allowed).to(query.dtype)
    return (pattern @ value).transpose(1, 2), pattern


class ApproximateAttention(SoftmaxAttention):
    """Attention with the exponential replaced by its second-order Taylor polynomial, 1 + s + s²/2 = ((1 + s)² + 1) / 2, which is never below ½.

    It is a linear attention with features (1, k, k ⊗ k); with heads of 64 channels those are 4,161 wide, so that below some 4,000 tokens the
    quadratic form here does less work than the linear one.
    """

    def kernel(self) -> str:
        """No fused kernel knows this pattern: it is formed in any case."""
        return super().kernel().replace("sdpa", "eager")

    def causal(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The same over one whole sequence."""
        return eager_attention_forward(self, q, k, v, None, q.shape[-1] ** -0.5)[0].transpose(1, 2)

    def weigh(self, scores: Tensor, allowed: Tensor) -> Tensor:
        """Normalised polynomial of the scores."""
        weights = (((1 + scores).square() + 1) / 2).masked_fill(~allowed, 0)
        return weights / weights.sum(-1, keepdim=True)


class StaticAttention(SoftmaxAttention):
    """Queries and keys from the (normed) input embeddings of the tokens, at every depth; values from the stream."""

    def find(self, x: Tensor, context: Context, source: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Project the embeddings, and the stream."""
        assert source is not None
        return *self.queries_and_keys(source, context.turn or self.turns(context.positions, source)), self.split(self.v_proj(x))


class ShadowAttention(SoftmaxAttention):
    """Queries and keys from a shadow sequence [1, L, d], the same for every input; values from the stream. The pattern depends on positions alone."""

    sites = ("v", "z", "pattern")

    def find(self, x: Tensor, context: Context, source: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Take the shadow's queries and keys at each token's position."""
        assert source is not None
        places = torch.arange(source.shape[1], device=source.device).unsqueeze(0)
        q, k = self.queries_and_keys(source, self.turns(places, source), hooked=False)
        return gather(q, context.positions), gather(k, context.positions), self.split(self.v_proj(x))


class NoMixing(Mixer):
    """In place of attention a gated MLP with as many parameters (width 4/3 · d): no token sees another."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__(config, layer, 1)
        inner = round(4 * config.hidden_size / 3)
        self.gate_proj, self.up_proj = (nn.Linear(config.hidden_size, inner, bias=False) for _ in range(2))
        self.o_proj = nn.Linear(inner, config.hidden_size, bias=False)

    def forward(self, hidden_states: Tensor, context: Context, source: Tensor | None = None) -> tuple[Tensor, None]:
        """x [B, T, d] → [B, T, d], token by token."""
        if context.cache is not None:
            context.cache.layers[self.layer].count(hidden_states.shape[1])  # type: ignore[union-attr]
        return swiglu(hidden_states, self.gate_proj, self.up_proj, self.o_proj), None

    def mixing_flops_per_token(self, length: int) -> float:
        """None."""
        return 0.0
