"""Correlation and trend as functions of how often each item was drawn, so that the bootstrap needs no loop and no sorting.

Each maker returns a function of item weights [..., n] (how often each item counts) to the statistic [...]. A resample in which a variable
is constant shows no association: 0.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Weighted = Callable[[Floats], Floats]


def pearson(x: Floats, y: Floats) -> Weighted:
    """Pearson's correlation of x [n] and y [n]."""
    u, v = _standard(x), _standard(y)
    powers = np.stack([np.ones_like(u), u, v, u * u, v * v, u * v], 1)

    def correlation(weights: Floats) -> Floats:
        n, su, sv, suu, svv, suv = np.moveaxis(weights @ powers, -1, 0)
        return _quotient(suv * n - su * sv, (suu * n - su * su) * (svv * n - sv * sv))

    return correlation


def spearman(x: Floats, y: Floats) -> Weighted:
    """Spearman's rank correlation of x [n] and y [n], ties at mid-ranks."""
    columns = [np.unique(values, return_inverse=True)[1] for values in (x, y)]

    def correlation(weights: Floats) -> Floats:
        n = weights.sum(-1, keepdims=True)
        # mid-ranks about their mean, from the running number of items up to each distinct value
        ranks = []
        for codes in columns:
            held = histogram(weights, codes, int(codes.max()) + 1)
            ranks.append((np.cumsum(held, -1) - (held + n) / 2)[..., codes])
        first, second = ranks
        return _quotient((weights * first * second).sum(-1), (weights * first * first).sum(-1) * (weights * second * second).sum(-1))

    return correlation


def kendall(level: NDArray[np.int64], y: Floats) -> Weighted:
    """Kendall's tau-b between level [n] (few distinct) and y [n]."""
    codes = np.unique(y, return_inverse=True)[1]
    return lambda weights: _tau(level, codes, weights)


def rearranged_kendall(level: NDArray[np.int64], codes: NDArray[np.int64]) -> Floats:
    """Kendall's tau-b of level [n] with many arrangements of the same values, given as codes [..., n] in the order of the values."""
    return _tau(level, codes, np.ones(codes.shape))


def _tau(level: NDArray[np.int64], codes: NDArray[np.int64], weights: Floats) -> Floats:
    codes = np.broadcast_to(codes, weights.shape)
    width = int(codes.max()) + 1
    below = np.zeros((*weights.shape[:-1], width))  # items of lower levels, by value
    balance = np.zeros(weights.shape[:-1])  # concordant minus discordant pairs
    same_level = np.zeros(weights.shape[:-1])
    for number in np.unique(level):
        items = level == number
        own, at = weights[..., items], codes[..., items]
        running = 2 * np.cumsum(below, -1) - below
        balance += (own * (np.take_along_axis(running, at, -1) - below.sum(-1, keepdims=True))).sum(-1)
        same_level += own.sum(-1) ** 2
        below += histogram(own, at, width)
    pairs = weights.sum(-1) ** 2
    return _quotient(2 * balance, (pairs - same_level) * (pairs - (below**2).sum(-1)))


def histogram(weights: Floats, codes: NDArray[np.int64], width: int) -> Floats:
    """Sum weights [..., n] by code (the same for all rows [n], or each row's own [..., n]): [..., width]."""
    rows = weights.reshape(-1, weights.shape[-1])
    cells = np.broadcast_to(codes, weights.shape).reshape(rows.shape) + np.arange(len(rows))[:, None] * width
    return np.bincount(cells.ravel(), rows.ravel(), len(rows) * width).astype(np.float64).reshape(*weights.shape[:-1], width)


def _standard(values: Floats) -> Floats:
    """Centre and scale, so that sums of squares lose no digits."""
    return (values - values.mean()) / (values.std() or 1.0)


def _quotient(covariance: Floats, variances: Floats) -> Floats:
    """Covariance over the root of the product of variances; 0 where a variable is constant up to rounding."""
    defined = variances > 1e-12 * np.maximum(1.0, np.max(variances, initial=0.0))
    return np.clip(np.where(defined, covariance / np.sqrt(np.where(defined, variances, 1.0)), 0.0), -1.0, 1.0)
