"""The architectures that the project defines: one decoder, mixers by name, as ordinary models of transformers.

>>> from nullius.models import architectures
>>> architectures.create("gla-340m")  # doctest: +SKIP
>>> model = architectures.create({"mixer": "gla", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 256})
>>> model.config.model_type, model.config.mixers
('nullius', ['gla', 'gla'])
>>> hybrid = {"mixer": "non-approximate", "allocation": "odd", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2}
>>> architectures.create(hybrid).config.mixers
['non-approximate', 'softmax', 'non-approximate', 'softmax']

A mapping may start from a named size: {"size": "gla-340m", "vocab_size": 50304}. Importing this package makes the model types `nullius` and
`gla` (checkpoints of fla-hub) known to AutoConfig, AutoModel and AutoModelForCausalLM, so that `from_pretrained` loads what `save_pretrained` wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from nullius.errors import UsageError
from nullius.models.architectures.ablation import averaging, estrange_gates, patterns, score_ranges, skipping
from nullius.models.architectures.config import ALLOCATIONS, MIXERS, DecoderConfig, allocate
from nullius.models.architectures.decoder import DecoderForCausalLM, DecoderModel
from nullius.models.architectures.published import GLAConfig, GLAForCausalLM, GLAModel
from nullius.models.architectures.sizes import SIZES, configured, named

__all__ = [
    "ALLOCATIONS",
    "MIXERS",
    "SIZES",
    "DecoderConfig",
    "DecoderForCausalLM",
    "DecoderModel",
    "allocate",
    "averaging",
    "create",
    "estrange_gates",
    "make_config",
    "named",
    "patterns",
    "register",
    "score_ranges",
    "skipping",
]


def make_config(wanted: str | Mapping[str, Any] | DecoderConfig) -> DecoderConfig:
    """Return the configuration that a name, a mapping (with `size` for a name) or a configuration describes. Raises UsageError."""
    if isinstance(wanted, DecoderConfig):
        return wanted
    if isinstance(wanted, str):
        return named(wanted)
    rest = {key: value for key, value in wanted.items() if key not in ("size", "model_type")}
    if wanted.get("model_type", "nullius") != "nullius":
        raise UsageError(f"model_type '{wanted['model_type']}' is not an architecture of this project: leave it out, or write nullius")
    return named(str(wanted["size"]), **rest) if "size" in wanted else configured(rest)


def create(wanted: str | Mapping[str, Any] | DecoderConfig) -> DecoderForCausalLM:
    """Make a decoder with fresh weights, drawn from torch's global generator. Raises UsageError for an unknown name, key or value."""
    return DecoderForCausalLM(make_config(wanted))


def register() -> None:
    """Make the architectures known to transformers. Done once, when this package is imported."""
    for config, body, model in ((DecoderConfig, DecoderModel, DecoderForCausalLM), (GLAConfig, GLAModel, GLAForCausalLM)):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, body, exist_ok=True)
        AutoModelForCausalLM.register(config, model, exist_ok=True)


register()
