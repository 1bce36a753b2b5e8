"""Entropy neurons: neurons that make the model more or less sure without changing what it would say (Stolfo et al. 2024; Gurnee et al. 2024).

Such a neuron writes with great strength into directions that the unembedding hardly reads (its effective null space). Its output moves no logit
against another; it makes the residual stream longer, so that the final norm scales everything down. Two readings of the weights point to them,
and one intervention tells: hold the final norm's scale, and the neuron's effect on the entropy is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nullius.errors import UsageError
from nullius.instruments import checks, taps
from nullius.instruments.direct_effects import pulled_back, pushed_through
from nullius.models.language_model import Batch, LanguageModel


@dataclass(frozen=True)
class Reading:
    """Of each neuron of a layer [d_mlp]. norm: length of what it writes. null_share: part of that length² in the unembedding's null space.

    logit_variance: variance over the vocabulary of the cosine between what it writes and the words' unembeddings.
    """

    layer: int
    norm: np.ndarray
    null_share: np.ndarray
    logit_variance: np.ndarray

    def candidates(self, n: int) -> list[int]:
        """The n neurons with the most length in the null space, norm² · null_share. Raises UsageError for a negative n."""
        checks.at_least(n, 0, "the number of candidates")
        return np.argsort(-(self.norm**2 * self.null_share), kind="stable")[:n].tolist()


@torch.no_grad()
def read(model: LanguageModel, layer: int = -1, null: float = 0.02) -> Reading:
    """Read a layer's neurons off the weights. null: share of the unembedding's dimensions, those with the smallest singular values.

    The final norm's gain, and a LayerNorm's centring, belong to the unembedding here; the gain of a norm behind the block (Gemma 2 and 3, OLMo 2)
    belongs to what is written, whose length is then that for an output of mean square 1.
    Raises SubjectError where a layer has no neurons (mixtures of experts), UsageError for a layer that does not exist, and for no share.
    """
    anatomy = model.anatomy
    layer = anatomy.site("mlp_post", layer).layer
    if not 0 < null < 1:
        raise UsageError(f"null is a share of the dimensions between 0 and 1, not {null}")
    written = anatomy.down_weight(layer).float()  # [d_mlp, d_model]
    known = torch.ones(1, anatomy.d_model, device=model.device, dtype=model.dtype)
    known[:, 1::2] = -1  # mean 0, mean square 1: what a norm does to it is its gain
    if (behind := anatomy.post_norm(layer, "mlp")) is not None:
        written = pushed_through(behind, known, written)
    written = written * anatomy.site("mlp_out", layer).factor
    words = pulled_back(anatomy.final_norm, known, anatomy.unembedding().float())
    words = words - words.mean(0)  # what raises all logits alike changes no probability
    _, basis = torch.linalg.eigh(words.T @ words)  # rising
    dims = max(1, round(null * anatomy.d_model))
    norm = written.norm(dim=1)
    null_share = (written @ basis[:, :dims]).square().sum(1) / norm.square().clamp(min=1e-30)
    directions = written / norm[:, None].clamp(min=1e-30)
    unit = words / words.norm(dim=1, keepdim=True).clamp(min=1e-30)
    spread = torch.cov(unit.T)  # of all cosines at once: [d_mlp, V] are too many to hold
    variance = ((directions @ spread) * directions).sum(1).clamp(min=0)
    return Reading(layer, *(x.cpu().numpy() for x in (norm, null_share, variance)))


@dataclass(frozen=True)
class Effect:
    """What silencing each neuron (its mean in place of its activation) does to the next-word distribution, mean over texts [neurons].

    entropy: change of its entropy in nats, absolute. held: the same with the final norm's scale of the untouched run. ranking: share of texts
    whose most probable word changes.
    """

    neurons: tuple[int, ...]
    entropy: np.ndarray
    held: np.ndarray
    ranking: np.ndarray

    @property
    def through_the_norm(self) -> np.ndarray:
        """Share of the effect on the entropy that goes through the final norm's scale, in [0, 1] where the two effects have one sign."""
        return 1 - self.held / np.maximum(self.entropy, 1e-12)


@torch.no_grad()
def effect(model: LanguageModel, texts: Sequence[str] | Batch, layer: int, neurons: Sequence[int], batch_size: int = 32) -> Effect:
    """Silence neurons one by one at the last position and measure what becomes of the entropy and of the ranking; see `Effect`.

    Only the last layer's neurons have no other way to act than the final norm and the unembedding. Raises UsageError for neurons that do not exist,
    and for fewer than two texts: the mean over one is its own activation, and nothing would be silenced.
    """
    anatomy, batch = model.anatomy, model.batch(texts)
    checks.at_least(len(batch.input_ids), 2, "the number of texts whose mean activation silences a neuron")
    checks.at_least(batch_size, 1, "batch_size")
    layer = anatomy.site("mlp_post", layer).layer
    wrong = next((neuron for neuron in neurons if not 0 <= neuron < anatomy.d_mlp), None)
    if wrong is not None:
        raise UsageError(f"neuron {wrong} does not exist: layer {layer} has neurons 0 to {anatomy.d_mlp - 1}")
    mean = taps.read(model, batch, ["mlp_post"], [layer])["mlp_post"][0].float().mean(0)
    totals = np.zeros((3, len(neurons)))
    for start in range(0, len(batch.input_ids), batch_size):
        rows = slice(start, start + batch_size)
        part = Batch(batch.input_ids[rows], batch.attention_mask[rows])
        stream = taps.read(model, part, ["resid_post"], [anatomy.n_layers - 1])["resid_post"][0]
        plain = _log_probs(model, anatomy.final_norm(stream))
        for i, neuron in enumerate(neurons):
            with ExitStack() as stack:
                stack.enter_context(taps.edit(model, "mlp_post", layer, lambda x, j=neuron: _silent(x, j, mean)))  # type: ignore[misc]
                changed = taps.read(model, part, ["resid_post"], [anatomy.n_layers - 1])["resid_post"][0]
            moved = _log_probs(model, anatomy.final_norm(changed))
            difference = (changed - stream).float()  # through the norm as the linear map that it was
            held = _log_probs(model, anatomy.final_norm(stream) + pushed_through(anatomy.final_norm, stream, difference).to(stream.dtype))
            totals[0, i] += float((_entropy(moved) - _entropy(plain)).abs().sum())
            totals[1, i] += float((_entropy(held) - _entropy(plain)).abs().sum())
            totals[2, i] += float((moved.argmax(-1) != plain.argmax(-1)).sum())
    return Effect(tuple(neurons), *(totals / len(batch.input_ids)))


def _silent(x: Tensor, neuron: int, mean: Tensor) -> Tensor:
    x = x.clone()
    x[:, -1, neuron] = mean[neuron].to(x.dtype)
    return x


def _log_probs(model: LanguageModel, normed: Tensor) -> Tensor:
    return model.anatomy.logits(normed).log_softmax(-1)


def _entropy(log_probs: Tensor) -> Tensor:
    return -(log_probs.exp() * log_probs).sum(-1)
