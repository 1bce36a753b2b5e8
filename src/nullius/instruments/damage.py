"""The damage an intervention on a head does where it should do nothing: right answers lost, plain text predicted worse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nullius.instruments import heads, knockout
from nullius.instruments.heads import Contrast, Scaling
from nullius.models.language_model import LanguageModel


@dataclass(frozen=True)
class Damage:
    """What became of the answers that were right before.

    right: their numbers [n]. kept: 1 where the answer is still right [n]. blind: the same with all attention silenced [n], which shows that
    loss can be seen. before, after: perplexity of plain text.
    """

    right: np.ndarray
    kept: np.ndarray
    blind: np.ndarray
    before: float
    after: float


def damage(model: LanguageModel, prompts: Sequence[str], wanted: Sequence[int], setting: Scaling, texts: Sequence[str]) -> Damage:
    """Scale one head and see which right answers survive. wanted: token ids of the right next tokens [n]. texts: plain text."""
    contrast = Contrast(tuple(prompts), tuple(wanted), tuple(wanted))
    before, after = heads.sweep(model, contrast, [None, setting]).first
    everything = heads.all_heads(model)
    blind = np.zeros(len(prompts))
    for chosen in model.by_length(prompts, 32):
        token = knockout.last_logits(model, model.encode([prompts[i] for i in chosen]), [everything] * len(chosen)).argmax(-1).numpy()
        blind[chosen] = token == np.array([wanted[i] for i in chosen])
    right = np.flatnonzero(before)
    plain = perplexity(model, texts)
    with heads.scaled(model, [setting] * len(texts)):
        return Damage(right, after[right], blind[right], plain, perplexity(model, texts))


@torch.no_grad()
def perplexity(model: LanguageModel, texts: Sequence[str]) -> float:
    """Perplexity of texts, run as one batch: exp of the mean negative log-likelihood (nats) over all tokens but the first of each."""
    batch = model.encode(texts)
    scores = model.logits(batch, "all")[:, :-1].float().log_softmax(-1)
    found = scores.gather(-1, batch.input_ids[:, 1:, None])[..., 0]
    real = batch.attention_mask[:, :-1] * batch.attention_mask[:, 1:]
    return float(torch.exp(-(found * real).sum() / real.sum()))
