"""Which probe, at which layer, and does it read or learn: nested cross-validation over probes and layers, and selectivity of any probe.

Nested: in each outer fold, probe and layer are chosen by cross-validation inside the outer training items alone, so that the outer accuracy has
no optimism from the choice. Near chance, outcomes of items in different outer folds are correlated (see `probes.Split`): take intervals over
groups.

Selectivity (Hewitt and Liang 2019, arXiv 1909.03368): accuracy on the labels minus accuracy on a control task, which can be solved by recognising
the item's entity alone. One control task is one draw: its accuracy differs by several points from that of the next. `against_controls` draws many
and says how many of them a probe solves as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from nullius.errors import UsageError
from nullius.instruments import checks, probes
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
    """Cross-validate probes, all layers of features [layers, n, d] at once. fits: None for the logistic probe. Groups stay whole in all folds.

    labels: [n] of 0 and 1. groups: [n]. Raises UsageError without a probe and for labels of another kind or length, NulliusError for too few groups
    and features that are not finite.
    """
    fits = {"logistic": probes.logistic} if fits is None else fits
    if not fits:
        raise UsageError("nested cross-validation needs one probe at least")
    g = np.asarray(groups)
    y = checks.binary(labels, len(g), "a probe")
    if features.ndim != 3 or features.shape[1] != len(y):
        raise UsageError(f"features {list(features.shape)} should be [layers, {len(y)}, d], with the items of the labels")
    folds = probes.grouped_folds(y, g, outer, seed)
    right, chosen = np.zeros(len(y)), []
    for fold in range(outer):
        held_out = folds == fold
        inside = np.flatnonzero(~held_out)
        own = probes.grouped_folds(y[inside], g[inside], inner, seed)
        table = {
            name: probes.correct(probes.cross_validate(features[:, inside], y[inside], own, fit), y[inside]).mean(-1)
            for name, fit in fits.items()
        }
        name = max(table, key=lambda one: float(table[one].max()))
        layer = int(table[name].argmax())
        chosen.append((name, layer))
        scores = probes.fit_and_score(features[layer : layer + 1], y, [(~held_out, held_out)], fits[name])
        right[held_out] = probes.correct(scores, y)[0, held_out]
    return Nested(right, tuple(chosen))


def selectivity(
    features: Tensor, labels: ArrayLike, groups: ArrayLike, rng: np.random.Generator, fit: Fit, *, k: int = 5
) -> NDArray[np.float64]:
    """Accuracy on the labels minus accuracy on one control task, by layer [layers], for any probe; see `probes.selectivity` for the logistic one."""
    return against_controls(features, labels, groups, rng, fit, controls=1, k=k).selectivity


@dataclass(frozen=True)
class AgainstControls:
    """Accuracy on the labels [layers], and on control tasks [controls, layers]."""

    real: NDArray[np.float64]
    control: NDArray[np.float64]

    @property
    def selectivity(self) -> NDArray[np.float64]:
        """Accuracy on the labels minus the mean accuracy on control tasks [layers]."""
        return self.real - self.control.mean(0)

    @property
    def p(self) -> NDArray[np.float64]:
        """(1 + control tasks that are solved as well) / (1 + control tasks) [layers].

        Exact for labels that are themselves drawn as a control task is: below α in at most a share α of draws, at each layer alone.
        """
        return (1 + (self.control >= self.real).sum(0)) / (1 + len(self.control))


def against_controls(
    features: Tensor,
    labels: ArrayLike,
    groups: ArrayLike,
    rng: np.random.Generator,
    fit: Fit = probes.logistic,
    *,
    controls: int = 49,
    k: int = 5,
) -> AgainstControls:
    """Read the labels [n], and many control tasks, off features [layers, n, d]: all cross-validated on the same k folds of single items.

    A probe may know the entity (groups [n]) of a held-out item from other items of it. Many control tasks cost little: they share all matrices.
    Raises UsageError for labels of another kind or length, NulliusError for features that are not finite, or a fold without both labels.
    """
    checks.at_least(controls, 1, "the number of control tasks")
    g = np.asarray(groups)
    y = checks.binary(labels, len(g), "a probe")
    checks.at_least(k, 2, "the number of folds")
    rows = np.stack([y, *(probes.control_task(g, rng) for _ in range(controls))])
    folds = rng.permutation(np.arange(rows.shape[1]) % k)
    right = probes.correct(probes.cross_validate(features, rows, folds, fit), rows).mean(2)
    return AgainstControls(right[0], right[1:])
