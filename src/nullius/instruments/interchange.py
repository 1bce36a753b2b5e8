"""Interchange accuracy: after which block, and at which token, does the state decide what the model goes on with? (Geiger et al. 2021)

Two texts of one length differ in one thing that decides the next token. One state of the source is put into the run on the base; where that makes
the model answer as it does on the source, the state carries the difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from nullius.instruments import patching
from nullius.models.language_model import LanguageModel


@dataclass(frozen=True)
class Interchanged:
    """flipped: whether the source's answer is preferred with the state after each block at each token put in [pairs, layers, tokens]; tokens before
    the first that differs cannot matter and count as not. correct: whether both plain runs prefer their own answer [pairs]."""

    flipped: NDArray[np.float64]
    correct: NDArray[np.float64]


@torch.no_grad()
def interchange(
    model: LanguageModel, base: Sequence[Sequence[int]], source: Sequence[Sequence[int]], answers: Sequence[tuple[int, int]]
) -> Interchanged:
    """Interchange the residual stream after every block at every token, exactly.

    base, source: token ids, pairs of equal length. answers: for each pair the source's next token and the base's. Raises UsageError for pairs of
    unequal length.
    """
    sweep = patching.residual(model, model.pad(base), model.pad(source), answers, site="resid_post")
    correct = (sweep.source > 0) & (sweep.base < 0)
    return Interchanged((sweep.values > 0).double().cpu().numpy(), correct.double().cpu().numpy())


def carried(flipped: NDArray[np.float64], places: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.float64], list[int]]:
    """Whether the difference travels through a few places only.

    flipped: [networks, pairs, layers, tokens]. places: the tokens that may carry it. For each layer but the last (after which only the last token can
    matter) the place with the higher accuracy is chosen on the first half of the pairs. On the second half: accuracy there, and at the mean of
    all tokens between the places, [networks · pairs] each; and which place was chosen for each layer, as an index into `places`.
    """
    half, layers = flipped.shape[1] // 2, flipped.shape[2] - 1
    best = flipped[:, :half, :layers][..., list(places)].mean((0, 1)).argmax(-1).tolist()
    tested = flipped[:, half:, :layers]
    there = np.mean([tested[:, :, layer, places[choice]] for layer, choice in enumerate(best)], axis=0)
    between = [i for i in range(min(places) + 1, max(places)) if i not in places]
    return there.ravel(), tested[..., between].mean((2, 3)).ravel(), best
