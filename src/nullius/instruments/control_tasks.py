"""Which probe, at which layer, and does it read or learn: nested cross-validation over probes and layers, and selectivity of any probe.

Nested: in each outer fold, probe and layer are chosen by cross-validation inside the outer training items alone, so that the outer accuracy has
no optimism from the choice. Near chance, outcomes of items in different outer folds are correlated (see `probes.Split`): take intervals over
groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from nullius.errors import UsageError
from nullius.instruments import probes
from nullius.instruments.probes import Fit


@dataclass(frozen=True)
class Nested:
    """correct: [n], whether each item was read correctly by probes that neither trained nor were chosen on it. chosen: by outer fold, probe and
    layer."""

    correct: NDArray[np.float64]
    chosen: tuple[tuple[str, int], ...]


def nested(
    features: Tensor,
    labels: ArrayLike,
    groups: ArrayLike,
    fits: Mapping[str, Fit] | None = None,
    *,
    outer: int = 5,
    inner: int = 4,
    seed: int = 0,
) -> Nested:
    """Cross-validate probes, all layers of features [layers, n, d] at once. fits: None for the logistic probe. Groups stay whole in all folds."""
    fits = {"logistic": probes.logistic} if fits is None else fits
    if not fits:
        raise UsageError("nested cross-validation needs one probe at least")
    y, g = np.asarray(labels), np.asarray(groups)
    folds = probes.grouped_folds(y, g, outer, seed)
    right, chosen = np.zeros(len(y)), []
    for fold in range(outer):
        inside = np.flatnonzero(folds != fold)
        own = probes.grouped_folds(y[inside], g[inside], inner, seed)
        table = {
            name: probes.correct(probes.cross_validate(features[:, inside], y[inside], own, fit), y[inside]).mean(-1)
            for name, fit in fits.items()
        }
        name = max(table, key=lambda one: float(table[one].max()))
        layer = int(table[name].argmax())
        chosen.append((name, layer))
        scores = probes.cross_validate(features[layer : layer + 1], y, (folds == fold).astype(int), fits[name])
        right[folds == fold] = probes.correct(scores, y)[0, folds == fold]
    return Nested(right, tuple(chosen))


def selectivity(
    features: Tensor, labels: ArrayLike, groups: ArrayLike, rng: np.random.Generator, fit: Fit, *, k: int = 5
) -> NDArray[np.float64]:
    """Accuracy on the labels minus accuracy on a control task, by layer [layers], for any probe; see `probes.selectivity` for the logistic one."""
    rows = np.stack([np.asarray(labels), probes.control_task(groups, rng)])
    folds = rng.permutation(np.arange(rows.shape[1]) % k)
    right = probes.correct(probes.cross_validate(features, rows, folds, fit), rows).mean(2)
    return right[0] - right[1]
