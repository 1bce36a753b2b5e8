"""Hidden states of many texts at their last token, all layers, as probes want them: [layers, texts, d_model]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nullius.instruments import taps
from nullius.models.language_model import LanguageModel


def last_token(model: LanguageModel, texts: Sequence[str], site: str = "resid_mid_normed", *, batch_size: int = 32) -> Tensor:
    """Return the states of the texts' last tokens, float32 [layers, n, d_model], on the subject's device.

    site: a residual site of taps, or `resid_mid_normed`: the input of the MLP, that is the residual after attention (the block's input
    where attention and MLP run in parallel) passed through the norm before the MLP, in Llama `post_attention_layernorm`; scaled to unit
    root mean square where the architecture has no norm there (OLMo 2).
    """
    read = site
    if site == "resid_mid_normed":
        read = "resid_pre" if model.anatomy.parallel else "resid_mid"
    found: list[Tensor] = []
    order: list[int] = []
    for items in model.by_length(texts, batch_size):
        states = taps.read(model, model.encode([texts[i] for i in items]), [read])[read]
        found.append((_normed(model, states) if site == "resid_mid_normed" else states).float())
        order += items
    return torch.cat(found, 1)[:, torch.tensor(order).argsort().to(model.device)]


@torch.no_grad()
def bag_of_tokens(model: LanguageModel, texts: Sequence[str]) -> Tensor:
    """Return the mean input embedding of each text's tokens, float32 [1, n, d_model]: what its words tell without their order."""
    rows = [model.hf.get_input_embeddings().weight[torch.tensor(model.tokens(text), device=model.device)].float().mean(0) for text in texts]
    return torch.stack(rows)[None]


@torch.no_grad()
def _normed(model: LanguageModel, states: Tensor) -> Tensor:
    norms = [model.anatomy.mlp_norm(layer) for layer in range(model.anatomy.n_layers)]
    return torch.stack([_rms(state) if norm is None else norm(state) for norm, state in zip(norms, states, strict=True)])


def _rms(states: Tensor) -> Tensor:
    return states * states.float().square().mean(-1, keepdim=True).add(1e-12).rsqrt().to(states.dtype)
