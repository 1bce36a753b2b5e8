"""The residual stream of many texts at their last token, from the embedding to the last block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nullius.instruments import taps
from nullius.models.language_model import LanguageModel


def last_position(model: LanguageModel, texts: Sequence[str], *, batch_size: int = 32) -> Tensor:
    """Return the stream [layers + 1, n, d_model] at each text's last token, float32 on the CPU: the embedding, then each block's output."""
    found: list[Tensor] = []
    order: list[int] = []
    for items in model.by_length(texts, batch_size):
        sites = taps.read(model, model.encode([texts[i] for i in items]), ["resid_pre", "resid_post"])
        found.append(torch.cat([sites["resid_pre"][:1], sites["resid_post"]]).float().cpu())
        order += items
    return torch.cat(found, 1)[:, torch.tensor(order).argsort()]
