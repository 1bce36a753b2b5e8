"""Intervals of rates miss the truth as often as they may: not simulated but summed over every sample there can be, near 0 and 1 too."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats
from tests.lab.simulate import samples

from nullius.lab.statistics import difference_interval, mean_interval

RATES = (0.01, 0.03, 0.1, 0.3, 0.5, 0.8, 0.95, 0.99)


def zeros_and_ones(hits: int, n: int) -> np.ndarray:
    return np.repeat([1.0, 0.0], [hits, n - hits])


def outside(interval, truth: float) -> bool:
    return not interval.lo - 1e-12 <= truth <= interval.hi + 1e-12


@pytest.mark.parametrize("n", [2, 5, 12, 40])
def test_a_rates_interval_misses_at_most_once_in_twenty(n):
    found = [mean_interval(zeros_and_ones(hits, n)) for hits in range(n + 1)]
    for rate in RATES:
        missed = sum(stats.binom.pmf(hits, n, rate) for hits in range(n + 1) if outside(found[hits], rate))
        assert missed <= 0.05


def misses(found, chances, truth: float) -> tuple[float, float]:
    """How often intervals miss a difference, and how often they do so on the far side of it, where they make it larger than it is."""
    away = 1 if truth > 0 else -1
    missed = np.array([outside(interval, truth) for interval in found])
    beyond = np.array([(interval.lo if away > 0 else -interval.hi) > abs(truth) + 1e-12 for interval in found])
    return float(chances @ missed), float(chances @ (missed & beyond))


def check(found: list[tuple[float, float]]) -> None:
    """Newcombe's interval is not exact. Where rates lie far apart it ends too near to 0, which no claim of a difference profits from."""
    missed, beyond = (np.array(column) for column in zip(*found, strict=True))
    assert missed.mean() <= 0.05
    assert missed.max() <= 0.15
    assert beyond.max() <= 0.045
    assert beyond.max() >= 0.015  # nor are they so wide that nothing could be seen


@pytest.mark.parametrize(("n", "m"), [(8, 8), (10, 25), (20, 20)])
def test_a_difference_of_rates(n, m):
    every = list(product(range(n + 1), range(m + 1)))
    found = [difference_interval(samples(zeros_and_ones(i, n)), samples(zeros_and_ones(j, m), start=n), False) for i, j in every]
    hits = np.array(every)
    rates = list(product(RATES, RATES))
    check([misses(found, stats.binom.pmf(hits[:, 0], n, p) * stats.binom.pmf(hits[:, 1], m, q), p - q) for p, q in rates])


def test_a_difference_of_paired_rates():
    """Ten items under two conditions: 286 tables of both, first only, second only, neither."""
    n = 10
    tables = [table for table in product(range(n + 1), repeat=4) if sum(table) == n]
    found, missed = [], []
    for table in tables:
        a, b = (np.repeat(signs, table) for signs in ([1, 1, 0, 0], [1, 0, 1, 0]))
        found.append(difference_interval(samples(a), samples(b), True))
    for p, q, alike in product(RATES, RATES, (0.0, 0.5, 1.0)):  # how much one draw decides both
        joint = alike * min(p, q) + (1 - alike) * p * q
        chances = np.clip([joint, p - joint, q - joint, 1 - p - q + joint], 0, 1)
        missed.append(misses(found, stats.multinomial.pmf(tables, n, chances / chances.sum()), p - q))
    check(missed)
