"""Named sizes: those of the papers that the project's architectures come from."""

from __future__ import annotations

from typing import Any

from nullius.errors import UsageError, nearest
from nullius.models.architectures.config import DecoderConfig

_GLA = {"rms_norm_eps": 1e-6, "vocab_size": 32000, "max_position_embeddings": 2048}
_340M = {**_GLA, "hidden_size": 1024, "num_hidden_layers": 24, "tie_word_embeddings": True}
_1B = {**_GLA, "hidden_size": 2048, "num_hidden_layers": 24, "tie_word_embeddings": False}
_QWEN = {"vocab_size": 50304, "rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "tie_word_embeddings": False}

SIZES: dict[str, dict[str, Any]] = {
    # arXiv 2312.06635, section 5.1 and table 3
    "gla-340m": {**_340M, "mixer": "gla", "num_attention_heads": 4},
    "gla-1.3b": {**_1B, "mixer": "gla", "num_attention_heads": 4},
    "retnet-340m": {**_340M, "mixer": "retnet", "num_attention_heads": 4},
    "retnet-1.3b": {**_1B, "mixer": "retnet", "num_attention_heads": 4},
    "llama-340m": {**_340M, "num_attention_heads": 16},
    "llama-1.3b": {**_1B, "num_attention_heads": 32},
    # arXiv 2510.11602, table of sizes; every one with `mixer` and `allocation` of your choice
    "qwen-70m": {**_QWEN, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 8},
    "qwen-160m": {**_QWEN, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    "qwen-500m": {**_QWEN, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
    "qwen-1.7b": {
        **_QWEN,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "qk_norm": True,
    },
}


def named(name: str, **changes: Any) -> DecoderConfig:
    """Return the configuration of a named size, with some keys changed.

    Raises UsageError for an unknown name or key, with the nearest.

    >>> named("gla-340m", num_hidden_layers=2).mixers
    ['gla', 'gla']
    """
    if name not in SIZES:
        raise UsageError(f"no architecture '{name}'{nearest(name, SIZES)}; there are {', '.join(SIZES)}")
    return configured({**SIZES[name], **changes})


def configured(wanted: dict[str, Any]) -> DecoderConfig:
    """Return the configuration that a mapping describes. Raises UsageError for an unknown key, with the nearest."""
    known = set(DecoderConfig().to_dict()) | {"dtype", "attn_implementation"}
    for key in wanted:
        if key not in known:
            raise UsageError(f"a decoder's configuration has no key '{key}'{nearest(key, known)}")
    try:
        return DecoderConfig(**wanted)
    except UsageError:
        raise
    except Exception as error:  # transformers checks types with errors of its own, a paragraph each
        raise UsageError(f"a decoder's configuration: {' '.join(str(error).split())}") from None
