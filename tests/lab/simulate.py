"""Samples whose truth is known, for the tests of the statistics and of the rule."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from nullius.lab.findings import Samples

Rng = np.random.Generator


def samples(
    values: ArrayLike, clusters: ArrayLike | None = None, *, x: ArrayLike | None = None, level: ArrayLike | None = None, start: int = 0
) -> Samples:
    """Make samples. start: where the codes of items without clusters begin, so that two samples share none."""
    array = np.asarray(values, dtype=np.float64)
    codes = start + np.arange(len(array)) if clusters is None else np.asarray(clusters, dtype=np.int64)
    return Samples(array, codes, None if x is None else np.asarray(x, dtype=np.float64), None if level is None else np.asarray(level))


def clustered(rng: Rng, sizes: ArrayLike, icc: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Normal items of variance 1 whose clusters of the given sizes have an intra-class correlation."""
    codes = np.repeat(np.arange(len(np.asarray(sizes))), sizes)
    return np.sqrt(icc) * rng.normal(size=len(np.asarray(sizes)))[codes] + np.sqrt(1 - icc) * rng.normal(size=len(codes)), codes


def clustered_rate(rng: Rng, clusters: int, size: int, rate: float, icc: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Beta-binomial 0/1 items."""
    shape = 1 / icc - 1
    chance = rng.beta(rate * shape, (1 - rate) * shape, clusters)
    codes = np.repeat(np.arange(clusters), size)
    return (rng.random(len(codes)) < chance[codes]).astype(float), codes


def paired_rates(rng: Rng, n: int, first: float, second: float, alike: float = 0.7) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """0/1 items under two conditions; a share `alike` of the items is decided by one draw for both."""
    draw = rng.random(n)
    other = np.where(rng.random(n) < alike, draw, rng.random(n))
    return (draw < first).astype(float), (other < second).astype(float)


def count(event: Callable[[Rng], bool], repetitions: int, seed: int = 1) -> int:
    """How often an event happens in independent repetitions."""
    rng = np.random.default_rng(seed)
    return sum(bool(event(rng)) for _ in range(repetitions))


def more_than(times: int, repetitions: int, rate: float) -> bool:
    """Whether so many events contradict a true rate of at most `rate` (exact binomial, one-sided, 1 %)."""
    return bool(stats.binomtest(times, repetitions, rate, "greater").pvalue < 0.01)
