"""The same model in torch, for embedding many papers on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from nullius.models.minilm.forward import HEADS, LAYERS, WIDTH, Array, load

BATCH = 256


def encoder(folder: Path, device: str) -> Callable[[Sequence[str]], Array]:
    """Return a function from texts to unit vectors, shape (texts, 384), computed on a torch device."""
    config = BertConfig(
        vocab_size=30_522, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=4 * WIDTH
    )
    model: torch.nn.Module = BertModel(config, add_pooling_layer=False)
    state = {name: value for name, value in load_file(folder / "model.safetensors").items() if not name.startswith("pooler")}
    model.load_state_dict({name: value for name, value in state.items() if value.is_floating_point()}, strict=False)
    model = model.to(device).eval()
    tokenizer = load(folder).tokenizer

    def encode(texts: Sequence[str]) -> Array:
        parts = []
        for start in range(0, len(texts), BATCH):
            rows = [encoding.ids for encoding in tokenizer.encode_batch(list(texts[start : start + BATCH]))]
            length = max(map(len, rows))
            ids = torch.tensor([row + [0] * (length - len(row)) for row in rows], device=device)
            mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows], device=device)
            with torch.inference_mode():
                hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
                mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
                parts.append(torch.nn.functional.normalize(mean, dim=1).float().cpu().numpy())
        return np.concatenate(parts)

    return encode
