"""The configuration of the project's own decoder: one residual stack, and for each layer the name of what mixes its tokens.

Mixers (what each does stands in `mixers`, `gated` and `queryfree`):
softmax (attention with rotary positions), gla, retnet, scalar, ungated (linear attention with a gate per channel, a fixed decay, a gate per
head, none), mlp (no mixing), approximate, non-approximate, random, fixed, static (attention with one principle taken away, arXiv 2510.11602).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedConfig

from nullius.errors import UsageError, nearest

GATED = ("gla", "retnet", "scalar", "ungated")
SHADOWED = ("random", "fixed")
MIXERS = ("softmax", *GATED, "mlp", "approximate", "non-approximate", *SHADOWED, "static")
ALLOCATIONS = ("uniform", "odd", "even", "top", "middle", "bottom", "fourth", "first", "last", "ends")


WIDEST = 512  # channels of a head's keys, or values, that the kernels take


def allocate(pattern: str, layers: int) -> list[int]:
    """Return which of `layers` layers (numbered from 0) a pattern names. The paper counts layers from 1: its odd ones are 0, 2, 4 here.

    uniform: all. odd, even, top, middle, bottom: a half. fourth: layers 4, 8, 12 ... of the paper. first, last, ends: one, one, both.
    Raises UsageError for an unknown pattern.
    """
    every = range(layers)
    half = layers // 2
    match pattern:
        case "uniform":
            return list(every)
        case "odd":
            return list(every[::2])
        case "even":
            return list(every[1::2])
        case "bottom":
            return list(every[:half])
        case "middle":
            return list(every[(layers - half) // 2 :][:half])
        case "top":
            return list(every[layers - half :])
        case "fourth":
            return list(every[3::4])
        case "first":
            return [0]
        case "last":
            return [layers - 1]
        case "ends":
            return sorted({0, layers - 1})
    raise UsageError(f"no allocation '{pattern}'{nearest(pattern, ALLOCATIONS)}; there are {', '.join(ALLOCATIONS)}")


def _demand(key: str, value: Any, kind: type, least: int | None) -> None:
    """Raise UsageError unless a value is a number of its kind, and at least `least`; None: above 0."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    fits = whole or (kind is float and isinstance(value, float) and math.isfinite(value))
    if not fits or not (value > 0 if least is None else value >= least):
        number, bound = "a whole number" if kind is int else "a number", "not below 0" if least == 0 else "above 0"
        raise UsageError(f"{key} must be {number} {bound}, got {value!r}")


class DecoderConfig(PreTrainedConfig):
    """Configuration of a decoder whose layers mix tokens by name.

    mixer: the mixer of the layers that `allocation` (see `allocate`) names; base: the mixer of the others. mixers: one name for each layer,
    in place of the three. num_attention_heads: heads of every mixer; num_linear_heads: of the gated ones, where they differ.
    expand_k, expand_v: width of all keys and of all values of a gated layer, as a share of hidden_size. gate_rank: width between the two maps
    that make the gate; gate_temperature: τ, log gate = logsigmoid(·) / τ. short_conv: width of a causal convolution over q, k and v (0: none).
    qk_norm: RMS norm of each head's queries and keys, before their product. intermediate_size: 4 · ⅔ · hidden_size, up to the next multiple
    of 256, when None. max_position_embeddings: tokens of training; a bound for `random` and `fixed` alone, whose shadow has no more.
    shadow_tokens: the text of `fixed`; shadow_seed: the noise of `random`. Raises UsageError for what does not fit.
    """

    model_type = "nullius"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012  (transformers' trainer adds it to a list)

    vocab_size: int = 32000
    hidden_size: int = 1024
    intermediate_size: int | None = None
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_linear_heads: int | None = None
    mixer: str = "softmax"
    allocation: str = "uniform"
    base: str = "softmax"
    mixers: list[str] | None = None
    expand_k: float = 0.5
    expand_v: float = 1.0
    gate_rank: int = 16
    gate_temperature: float = 16.0
    short_conv: int = 0
    qk_norm: bool = False
    rope_theta: float = 10000.0
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    shadow_tokens: list[int] | None = None
    shadow_seed: int = 0
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in what follows from other keys, and check that all of it fits."""
        for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "gate_rank"):
            _demand(key, getattr(self, key), int, 1)
        for key in ("intermediate_size", "num_linear_heads"):
            if getattr(self, key) is not None:
                _demand(key, getattr(self, key), int, 1)
        for key in ("short_conv", "shadow_seed"):
            _demand(key, getattr(self, key), int, 0)
        for key in ("expand_k", "expand_v", "gate_temperature", "rope_theta", "rms_norm_eps"):
            _demand(key, getattr(self, key), float, None)
        _demand("initializer_range", self.initializer_range, float, 0)
        for key in ("qk_norm", "use_cache", "tie_word_embeddings"):
            if not isinstance(getattr(self, key), bool):
                raise UsageError(f"{key} must be true or false, got {getattr(self, key)!r}")
        for key in ("mixers", "shadow_tokens"):
            if not isinstance(getattr(self, key), (list, tuple, type(None))):
                raise UsageError(f"{key} must be a list, got {getattr(self, key)!r}")
        if self.intermediate_size is None:
            self.intermediate_size = -(-8 * self.hidden_size // 3 // 256) * 256
        if self.num_linear_heads is None:
            self.num_linear_heads = self.num_attention_heads
        if self.mixers is None:
            named = set(allocate(self.allocation, self.num_hidden_layers))
            self.mixers = [self.mixer if i in named else self.base for i in range(self.num_hidden_layers)]
        self._check(self.mixers)
        super().__post_init__(**kwargs)

    def _check(self, mixers: Sequence[str]) -> None:
        for name in (self.mixer, self.base, *mixers):
            if name not in MIXERS:
                raise UsageError(f"no mixer '{name}'{nearest(name, MIXERS)}; there are {', '.join(MIXERS)}")
        if len(mixers) != self.num_hidden_layers:
            raise UsageError(f"mixers names {len(mixers)} layers, num_hidden_layers is {self.num_hidden_layers}")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise UsageError(f"hidden_size {self.hidden_size} must be a multiple of twice num_attention_heads, {self.num_attention_heads}")
        heads = self.num_linear_heads or 1
        for name in ("expand_k", "expand_v"):
            if set(mixers) & set(GATED) and (self.hidden_size * getattr(self, name)) % heads:
                raise UsageError(f"{name} · hidden_size must be a multiple of num_linear_heads, {heads}")
            if set(mixers) & set(GATED) and self.hidden_size * getattr(self, name) / heads > WIDEST:
                raise UsageError(f"{name} · hidden_size / num_linear_heads must be at most {WIDEST}, the widest head of the kernels")
        if "non-approximate" in mixers and self.head_dim >= WIDEST:
            raise UsageError(f"heads of non-approximate mixers must be narrower than {WIDEST} channels; got {self.head_dim}")
        if set(mixers) & set(SHADOWED) and not set(mixers) <= {*SHADOWED, "softmax"}:
            raise UsageError("random and fixed mixers share a decoder with softmax only: their shadow stream passes through all layers")
        if len(set(mixers) & set(SHADOWED)) > 1:
            raise UsageError("a decoder has one shadow stream: random or fixed, not both")
        if "fixed" in mixers and len(self.shadow_tokens or []) < self.max_position_embeddings:
            raise UsageError(f"fixed mixers need shadow_tokens, at least {self.max_position_embeddings} of them (max_position_embeddings)")
        odd = next((token for token in self.shadow_tokens or [] if not 0 <= token < self.vocab_size), None)
        if odd is not None:
            raise UsageError(f"shadow_tokens holds {odd}, which is no token of a vocabulary of {self.vocab_size}")

    @property
    def head_dim(self) -> int:
        """Width of a head's output."""
        return self.hidden_size // self.num_attention_heads
