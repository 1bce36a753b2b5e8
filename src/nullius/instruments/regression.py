"""Logistic regression with intervals by bootstrap over clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LogisticRegression


def logistic_slopes(
    y: ArrayLike, columns: Mapping[str, ArrayLike], clusters: Sequence, rng: np.random.Generator, resamples: int = 300
) -> dict[str, tuple[float, float, float]]:
    """Regress a binary outcome [n] on columns [n] and return, for each, the slope (log-odds a unit) with its 95% percentile interval.

    clusters: labels [n]; clusters are resampled whole. A weak ridge (standard deviation 10 a standardised slope) keeps slopes finite where the
    classes can be separated. Raises ValueError when the outcome or a column does not vary.
    """
    outcome = np.asarray(y).astype(int)
    names = list(columns)
    x = np.stack([np.asarray(columns[name], dtype=float) for name in names], 1)
    spread = x.std(0)
    if len(set(outcome.tolist())) < 2 or not (spread > 0).all():
        raise ValueError("a logistic regression needs an outcome and columns that vary")
    z = (x - x.mean(0)) / spread
    _, codes = np.unique(np.asarray(clusters), return_inverse=True)
    members = [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]

    def fit(items: NDArray) -> NDArray:
        model = LogisticRegression(C=100.0, solver="newton-cholesky")  # ridge: prior variance of a standardised slope
        return model.fit(z[items], outcome[items]).coef_[0] / spread

    point = fit(np.arange(len(outcome)))
    draws = []
    for _ in range(resamples):
        items = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        if len(set(outcome[items].tolist())) == 2:
            draws.append(fit(items))
    lo, hi = np.quantile(draws, [0.025, 0.975], axis=0)
    return {name: (float(point[i]), float(lo[i]), float(hi[i])) for i, name in enumerate(names)}


def shuffled_between(values: ArrayLike, clusters: Sequence, rng: np.random.Generator) -> NDArray:
    """Give every cluster the value of a random one: a null for a variable [n] that is the same throughout each cluster."""
    _, first, codes = np.unique(np.asarray(clusters), return_index=True, return_inverse=True)
    return rng.permutation(np.asarray(values, dtype=float)[first])[codes]
