"""What a subject is besides its weights, in short hashes: the same weights under another configuration or tokenizer are another function."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from nullius.models.language_model import LanguageModel

# What transformers writes beside a configuration without meaning anything by it
INCIDENTAL = {"_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype"}


def parts(model: LanguageModel) -> dict[str, str]:
    """Return the SHA-256 (16 hex digits) of the subject's configuration, tokenizer and chat template, and the type of its weights in memory.

    Padding and truncation that calls leave behind in a tokenizer do not count.
    """
    config = {name: value for name, value in model.hf.config.to_dict().items() if name not in INCIDENTAL}
    return {
        "configuration": _digest(config),
        "tokenizer": _digest(_tokenizer(model.tokenizer)),
        "chat template": _digest(getattr(model.tokenizer, "chat_template", None)),
        "type": str(model.dtype).removeprefix("torch."),
    }


def _tokenizer(tokenizer: Any) -> Any:
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # one written in Python
        return [special, tokenizer.get_vocab()]
    padding, truncation = backend.padding, backend.truncation
    try:
        backend.no_padding()
        backend.no_truncation()
        return [special, backend.to_str()]
    finally:
        if padding is not None:
            backend.enable_padding(**padding)
        if truncation is not None:
            backend.enable_truncation(**truncation)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
