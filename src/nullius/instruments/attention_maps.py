"""What attention maps look like, in numbers: the indicators of *Deconstructing Attention* (Xue, Moosavi & Aletras 2025, arXiv 2510.11602).

A map is the pattern A of one head over one text of T tokens: row i holds the weights [1 … i] of token i, which add up to 1. Where the paper leaves
a formula open, the limiting cases decide: equal weights, all weight on one token, on the first token, on the token itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nullius.errors import UsageError
from nullius.instruments import checks
from nullius.instruments.attention import watched
from nullius.models import architectures
from nullius.models.language_model import LanguageModel

OFFSETS = (0, 1, 2, 3)
NAMES = ("entropy", "concentration", "diversity", "sink", *(f"focus {n}" for n in OFFSETS), "range")


def indicators(pattern: Tensor) -> dict[str, Tensor]:
    """Return each indicator of `NAMES` for patterns [B, H, T, T]: [B, H] in float64 on the CPU, "diversity" (of a layer's heads together) [B].

    entropy: of a row, in nats, mean over rows; 0 where all weight is on one token, ln i in row i of equal weights.
    concentration: ‖A‖_F / √T; 1 where each row has all its weight on one token.
    diversity: 2 / (T (T + 1)) · Σ_{j ≤ i} of the standard deviation over heads of A_ij; 0 where all heads have one map.
    sink: weight on the first token, mean over rows.
    focus N: weight on the token N places before, mean over the rows that have one; 0 for texts that are too short.
    range: the largest difference between two scores in a row, max over rows: ln of the ratio of weights, which is what softmax makes of it. Weights
    that a softmax in float32 has rounded to 0 count as its smallest number, so that nothing above 87 is seen.

    Raises UsageError for what is no pattern: another shape, rows that do not add up to 1, weights below 0 or on later tokens.
    """
    if pattern.ndim != 4 or pattern.shape[-1] != pattern.shape[-2] or 0 in pattern.shape:
        raise UsageError(f"patterns must be [texts, heads, T, T]; got {list(pattern.shape)}")
    checks.finite(pattern, "patterns")
    a, length = pattern.double(), pattern.shape[-1]
    if not bool(((a.sum(-1) - 1).abs() < 0.05).all()):
        raise UsageError("the rows of an attention pattern must add up to 1")
    allowed = torch.ones(length, length, dtype=torch.bool, device=a.device).tril()
    if bool((a < -0.01).any()) or bool((a.masked_fill(allowed, 0).abs() > 0.01).any()):
        raise UsageError("the weights of an attention pattern must not be below 0, or on tokens that are still to come")
    logs = a.clamp(min=torch.finfo(torch.float32).tiny).log()
    spread = logs.masked_fill(~allowed, -torch.inf).amax(-1) - logs.masked_fill(~allowed, torch.inf).amin(-1)
    found = {
        "entropy": -torch.special.xlogy(a, a).sum(-1).mean(-1),
        "concentration": a.square().sum((-1, -2)).sqrt() / length**0.5,
        "diversity": a.std(1, correction=0).masked_fill(~allowed, 0).sum((-1, -2)) * 2 / (length * (length + 1)),
        "sink": a[..., 0].mean(-1),
        "range": spread.amax(-1),
    }
    for n in OFFSETS:
        found[f"focus {n}"] = a.diagonal(-n, -2, -1).mean(-1) if n < length else a.new_zeros(a.shape[:2])
    return {name: found[name].cpu() for name in NAMES}


def over_layers(patterns: Mapping[int, Tensor]) -> dict[str, NDArray[np.float64]]:
    """Return each indicator for each text [B], mean over all heads of the layers given (layer → [B, H, T, T])."""
    each = [indicators(pattern) for pattern in patterns.values()]
    if not each:
        raise UsageError("no layer has an attention pattern")
    return {name: torch.stack([e[name].view(len(e[name]), -1).mean(1) for e in each]).mean(0).numpy() for name in NAMES}


def of_decoder(hf: Any, tokens: NDArray[np.int64], batch: int = 16) -> dict[str, NDArray[np.float64]]:
    """Return each indicator for each text [n], mean over all heads of the layers of one of the project's decoders that have a pattern.

    tokens: [n, T]. Raises UsageError where no layer has one.
    """
    device = next(hf.parameters()).device
    rows = [torch.from_numpy(tokens[i : i + batch]).to(device) for i in range(0, len(tokens), batch)]
    each = [over_layers(architectures.patterns(hf, part)) for part in rows]
    return {name: np.concatenate([one[name] for one in each]) for name in NAMES}


@torch.no_grad()
def survey(model: LanguageModel, texts: list[str]) -> dict[str, NDArray[np.float64]]:
    """Return each indicator for each head of a subject, mean over texts: [layers, heads], "diversity" [layers].

    All texts must be equally long in tokens, since padding would have rows of its own: raises UsageError where they are not.
    """
    batch = model.batch(texts)
    if not bool(batch.attention_mask.all()):
        raise UsageError("the texts of a survey must have equally many tokens")
    kept: dict[int, dict[str, Tensor]] = {}
    with watched(model, {layer: partial(_keep, kept, layer) for layer in range(model.anatomy.n_layers)}):
        model.hidden(batch)
    return {name: torch.stack([kept[layer][name].mean(0) for layer in sorted(kept)]).numpy() for name in NAMES}


def _keep(into: dict[int, dict[str, Tensor]], layer: int, pattern: Tensor) -> None:
    into[layer] = indicators(pattern)
