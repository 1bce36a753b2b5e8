"""The lab's statistics: for each kind of expectation the statistic, its 95 % interval, its control's, and a one-sided p-value.

| samples                                       | interval                                                        |
| --------------------------------------------- | --------------------------------------------------------------- |
| mean of independent 0/1 items                 | Clopper-Pearson, exact (scipy)                                  |
| mean of 0/1 items in clusters                 | Korn and Graubard's                                             |
| difference of independent 0/1 items, unpaired | Newcombe's hybrid score interval (statsmodels)                  |
| difference of independent 0/1 items, paired   | Newcombe's hybrid score interval for paired rates               |
| anything else, and a control expected at 0    | BCa bootstrap and t over clusters (`nullius.lab.resampling`)    |
| no cluster differs from another               | rule of three (`nullius.lab.resampling`)                        |

p-values are against the boundary of the claim, in its direction. Mean of independent 0/1 items: exact binomial. Other means and paired
differences: sign flips of whole clusters. Unpaired differences: permutation of Welch's t over clusters, or sign flips of the clusters'
pseudo-values where the two sides share clusters. Correlation and trend against zero with independent items: permutation; else sign flips
of the clusters' pseudo-values. Equivalence: two one-sided tests, the larger p. Ordering: intersection-union, the largest p of its pairs.

Resampling is seeded by the caller, so that the same samples give the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from nullius.lab import association
from nullius.lab.claims import Expectation
from nullius.lab.findings import Samples
from nullius.lab.resampling import (
    MOST_CLUSTERS,
    RESAMPLES,
    TAILS,
    Floats,
    Interval,
    Statistic,
    influence,
    interval,
    pairings_p,
    sign_flip_p,
    spread,
    welch_p,
)

__all__ = ["Estimate", "Interval", "difference_interval", "estimate", "holm", "mean_interval", "own_interval", "p_value"]


@dataclass(frozen=True)
class Estimate:
    """A claim's statistic on the treated samples (against the control where the statistic says so), the control's own, and p."""

    effect: Interval
    control: Interval
    p: float


def holm(p: Sequence[float]) -> list[float]:
    """Return Holm-adjusted p-values (statsmodels)."""
    return [float(x) for x in multipletests(p, method="holm")[1]] if len(p) else []


def mean_interval(values: Floats, clusters: Sequence | NDArray | None = None, *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Mean of per-item values [n] with its 95 % interval; clusters: one label per item, None for independent items."""
    values = np.asarray(values, dtype=np.float64)
    codes = np.arange(len(values)) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    return _mean(Samples(values, codes), seed, resamples)


def estimate(
    expect: Expectation, treated: Samples, control: Samples, paired: bool, *, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
    """Compute the statistic of an expectation, the control's own, and the p-value of the expectation."""
    if expect.kind in ("above_control", "below_control"):
        effect = difference_interval(treated, control, paired, seed=seed, resamples=resamples)
    else:
        effect = own_interval(expect, treated, seed=seed, resamples=resamples)
    p = p_value(expect, treated, control, paired, seed=seed, resamples=resamples)
    return Estimate(effect, _control(expect, control, seed + 1, resamples), p)


def p_value(expect: Expectation, treated: Samples, control: Samples, paired: bool, *, seed: int = 0, resamples: int = RESAMPLES) -> float:
    """One-sided p-value of an expectation, against its own boundary."""
    kind, sign, margin = expect.kind, expect.sign, expect.margin
    if kind in ("above_control", "below_control"):
        return _p_difference(treated, control, paired, sign * margin, sign, seed, resamples)
    if kind in ("at_least", "at_most"):
        return _p_mean(treated, margin, sign, seed, resamples)
    if kind == "equivalent":
        return max(_p_mean(treated, expect.null + side * margin, -side, seed, resamples) for side in (-1, 1))
    if kind == "ordering":
        return max(_p_difference(a, b, False, margin, 1, seed + i, resamples) for i, (a, b) in enumerate(_adjacent(expect, treated)))
    return _p_association(expect, treated, seed, resamples)


def _control(expect: Expectation, control: Samples, seed: int, resamples: int) -> Interval:
    if expect.kind in ("above_control", "below_control", "at_least", "at_most") and expect.null == 0:
        # no change is expected, and a change has two directions even where the samples show one: not the interval of a rate, which a
        # single event keeps away from 0
        return _any_mean(control, (-np.inf, np.inf), seed, resamples, TAILS)
    return own_interval(expect, control, seed=seed, resamples=resamples)


def own_interval(expect: Expectation, samples: Samples, *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """The statistic of one side alone: its mean, its correlation or tau, its smallest adjacent difference, its mean less the value aimed at."""
    if expect.kind in ("correlation", "trend"):
        return _association(expect, samples, seed, resamples)
    if expect.kind == "ordering":
        return _smallest(expect, samples, seed, resamples)
    mean = _mean(samples, seed, resamples)
    return mean.shifted(-expect.null) if expect.kind == "equivalent" else mean


# means


def _zero_one(samples: Samples) -> bool:
    return bool(np.isin(samples.values, (0.0, 1.0)).all())


def _rate(samples: Samples) -> bool:
    """Whether these are independent 0/1 items."""
    return samples.n_clusters == len(samples) and _zero_one(samples)


def _groups(*parts: Samples, seed: int) -> tuple[list[NDArray[np.int64]], int]:
    """Number the clusters of one or more samples from 0, shared ones alike; more than `MOST_CLUSTERS` are merged at random."""
    codes = np.unique(np.concatenate([part.clusters for part in parts]), return_inverse=True)[1]
    clusters = int(codes.max()) + 1
    if clusters > MOST_CLUSTERS:
        codes = (np.random.default_rng(seed).permutation(clusters) % MOST_CLUSTERS)[codes]
        clusters = MOST_CLUSTERS
    return np.split(codes, np.cumsum([len(part) for part in parts])[:-1]), clusters


def _sums(samples: Samples, seed: int) -> Floats:
    """Sum and count of the items of each cluster: [clusters, 2]."""
    (codes,), clusters = _groups(samples, seed=seed)
    return _table(samples.values, codes, clusters)


def _table(values: Floats, codes: NDArray[np.int64], clusters: int) -> Floats:
    return np.stack([np.bincount(codes, values, clusters), np.bincount(codes, minlength=clusters)], 1).astype(np.float64)


def _ratio(sums: Floats) -> Statistic:
    """Mean as a function of multiplicities. A draw without any item of this side has no mean: the sample's own stands in."""
    whole = sums[:, 0].sum() / sums[:, 1].sum()
    centred = sums[:, 0] - whole * sums[:, 1]

    def mean(counts: Floats) -> Floats:
        items = counts @ sums[:, 1]
        return whole + counts @ centred / np.maximum(items, 1.0)

    return mean


def _mean(samples: Samples, seed: int, resamples: int, tails: tuple[float, float] = TAILS) -> Interval:
    n = len(samples)
    if _rate(samples):
        hits = int(samples.values.sum())
        lo, hi = (stats.binomtest(hits, n).proportion_ci(1 - 2 * tail, "exact")[side] for side, tail in enumerate(tails))
        return Interval(hits / n, float(lo), float(hi), n, n, "Clopper-Pearson")
    if _zero_one(samples):
        return _clustered_rate(samples, seed, resamples, tails)
    return _any_mean(samples, (-np.inf, np.inf), seed, resamples, tails)


def _any_mean(samples: Samples, bounds: tuple[float, float], seed: int, resamples: int, tails: tuple[float, float]) -> Interval:
    sums = _sums(samples, seed)
    found = interval(_ratio(sums), [sums[:, 1]], seed=seed, resamples=resamples, tails=tails, bounds=bounds)
    return replace(found, n_clusters=samples.n_clusters)


def _clustered_rate(samples: Samples, seed: int, resamples: int, tails: tuple[float, float]) -> Interval:
    """Korn and Graubard's interval (1998, Survey Methodology 24:193): Clopper-Pearson with the items that clustering leaves worth counting.

    For rare events in clusters, where the bootstrap misses the truth far too often.
    """
    sums = _sums(samples, seed)
    known = spread(_ratio(sums), [sums[:, 1]])
    if len(sums) < 2 or not known.variance:
        return _any_mean(samples, (0.0, 1.0), seed, resamples, tails)
    n, rate = len(samples), float(samples.values.mean())
    limits = []
    for side, tail in enumerate(tails):
        worth = rate * (1 - rate) / known.variance * (stats.t.ppf(tail, n - 1) / stats.t.ppf(tail, known.freedom)) ** 2
        hits, misses = rate * min(worth, n), (1 - rate) * min(worth, n)
        limits.append(stats.beta.ppf(tail, hits, misses + 1) if side == 0 else stats.beta.ppf(1 - tail, hits + 1, misses))
    return Interval(rate, float(limits[0]), float(limits[1]), n, samples.n_clusters, "Korn-Graubard")


def _p_mean(samples: Samples, boundary: float, sign: int, seed: int, resamples: int) -> float:
    if _rate(samples):
        if not 0 <= boundary <= 1:  # a rate cannot be there
            return float(sign * (samples.values.mean() - boundary) <= 0)
        return float(stats.binomtest(int(samples.values.sum()), len(samples), boundary, "greater" if sign > 0 else "less").pvalue)
    return _p_any_mean(samples, boundary, sign, seed, resamples)


def _p_any_mean(samples: Samples, boundary: float, sign: int, seed: int, resamples: int) -> float:
    sums = _sums(samples, seed)
    return sign_flip_p(sign * (sums[:, 0] - boundary * sums[:, 1]), seed=seed, resamples=resamples)


# differences of means


def difference_interval(
    a: Samples, b: Samples, paired: bool, *, seed: int = 0, resamples: int = RESAMPLES, tails: tuple[float, float] = TAILS
) -> Interval:
    """Mean of a minus mean of b. Paired: the mean of the items' differences. Else clusters are drawn, those that both sides share together."""
    bounds = (-1.0, 1.0) if _zero_one(a) and _zero_one(b) else (-np.inf, np.inf)
    if paired:
        if _rate(a) and _rate(b):
            return _paired_rates(a.values, b.values, tails)
        return _any_mean(Samples(a.values - b.values, a.clusters), bounds, seed, resamples, tails)
    if _share(a, b):
        statistic, sizes = _joint(a, b, seed)
        found = interval(statistic, [sizes], seed=seed, resamples=resamples, tails=tails, bounds=bounds)
        return replace(found, n_clusters=len(np.union1d(a.clusters, b.clusters)))
    fewest = min(a.n_clusters, b.n_clusters)
    if _rate(a) and _rate(b):
        counts = a.values.sum(), len(a), b.values.sum(), len(b)
        lo, hi = (confint_proportions_2indep(*counts, method="newcomb", alpha=2 * tail)[side] for side, tail in enumerate(tails))
        return Interval(float(a.values.mean() - b.values.mean()), float(lo), float(hi), len(a) + len(b), fewest, "Newcombe")
    sums = [_sums(side, seed) for side in (a, b)]
    first, second = (_ratio(side) for side in sums)
    sizes_of_both = [side[:, 1] for side in sums]
    found = interval(lambda i, j: first(i) - second(j), sizes_of_both, seed=seed, resamples=resamples, tails=tails, bounds=bounds)
    return replace(found, n_clusters=fewest)


def _share(a: Samples, b: Samples) -> bool:
    return bool(np.intersect1d(a.clusters, b.clusters).size)


def _joint(a: Samples, b: Samples, seed: int) -> tuple[Statistic, Floats]:
    """The difference of means as a function of the multiplicities of the clusters of both sides together, and the clusters' sizes."""
    codes, clusters = _groups(a, b, seed=seed)
    of_a, of_b = (_table(side.values, own, clusters) for side, own in zip((a, b), codes, strict=True))
    first, second = _ratio(of_a), _ratio(of_b)
    return lambda counts: first(counts) - second(counts), of_a[:, 1] + of_b[:, 1]


def _paired_rates(a: Floats, b: Floats, tails: tuple[float, float]) -> Interval:
    """Newcombe's hybrid score interval for a difference of paired rates (Newcombe 1998, Statistics in Medicine 17:2635, method 10)."""
    n = len(a)
    both, first, second, neither = (int(((a == i) & (b == j)).sum()) for i, j in ((1, 1), (1, 0), (0, 1), (0, 0)))
    product = both * neither - first * second
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    phi = (max(product - n / 2, 0.0) if product > 0 else product) / np.sqrt(margins) if margins else 0.0
    limits = []
    for side, tail in enumerate(tails):
        reach = []
        for hits, end in ((a.sum(), side), (b.sum(), 1 - side)):
            reach.append(abs(hits / n - proportion_confint(hits, n, 2 * tail, "wilson")[end]))
        limits.append(np.sqrt(max(0.0, reach[0] ** 2 - 2 * phi * reach[0] * reach[1] + reach[1] ** 2)))
    point = float(a.mean() - b.mean())
    return Interval(point, float(point - limits[0]), float(point + limits[1]), n, n, "Newcombe, paired")


def _p_difference(a: Samples, b: Samples, paired: bool, boundary: float, sign: int, seed: int, resamples: int) -> float:
    if paired:
        return _p_any_mean(Samples(a.values - b.values, a.clusters), boundary, sign, seed, resamples)
    if _share(a, b):
        statistic, sizes = _joint(a, b, seed)
        return sign_flip_p(sign * (influence(statistic, len(sizes)) - boundary), seed=seed, resamples=resamples)
    sides = []
    for side in (a, b):
        sums, mean = _sums(side, seed), side.values.mean()
        sides.append(mean + (sums[:, 0] - mean * sums[:, 1]) * len(sums) / len(side))  # the clusters' pseudo-values
    return welch_p(sign * (sides[0] - boundary), sign * sides[1], seed=seed, resamples=resamples)


# ordering


def _adjacent(expect: Expectation, samples: Samples) -> list[tuple[Samples, Samples]]:
    assert samples.level is not None
    of = [Samples(samples.values[samples.level == i], samples.clusters[samples.level == i]) for i in range(len(expect.levels))]
    return list(pairwise(of))


def _smallest(expect: Expectation, samples: Samples, seed: int, resamples: int) -> Interval:
    """The smallest adjacent difference of means.

    Below, each pair has its full tail: the lowest limit is a limit for the smallest difference, whichever it is (intersection-union). Above,
    the tail is divided among the pairs, since the smallest of many upper limits is too small by chance.
    """
    pairs = _adjacent(expect, samples)
    tails = (TAILS[0], TAILS[1] / len(pairs))
    found = [difference_interval(a, b, False, seed=seed + i, resamples=resamples, tails=tails) for i, (a, b) in enumerate(pairs)]
    return Interval(
        min(pair.estimate for pair in found),
        min(pair.lo for pair in found),
        min(pair.hi for pair in found),
        len(samples),
        min(pair.n_clusters for pair in found),
        f"{found[0].method}, intersection-union",
    )


# correlation and trend


def _weighted(expect: Expectation, samples: Samples) -> association.Weighted:
    if expect.kind == "trend":
        assert samples.level is not None
        return association.kendall(samples.level, samples.values)
    assert samples.x is not None
    return (association.spearman if expect.method == "spearman" else association.pearson)(samples.x, samples.values)


def _statistic(expect: Expectation, samples: Samples, seed: int) -> tuple[Statistic, Floats, int]:
    """The association as a function of multiplicities, the clusters' sizes, and the numbers touched for one resample."""
    (codes,), clusters = _groups(samples, seed=seed)
    weighted = _weighted(expect, samples)
    width = 4 * len(samples) if samples.level is None else len(expect.levels) * len(np.unique(samples.values))
    return lambda counts: weighted(counts[..., codes]), np.bincount(codes, minlength=clusters).astype(np.float64), max(width, len(samples))


def _undefined(samples: Samples) -> bool:
    """Whether a variable is constant: no association can be seen, and none excluded."""
    return not np.ptp(samples.values) or (samples.x is not None and not np.ptp(samples.x))


def _association(expect: Expectation, samples: Samples, seed: int, resamples: int) -> Interval:
    if _undefined(samples):
        return Interval(0.0, -1.0, 1.0, len(samples), samples.n_clusters, "none: a constant variable")
    statistic, sizes, width = _statistic(expect, samples, seed)
    found = interval(statistic, [sizes], seed=seed, resamples=resamples, bounds=(-1.0, 1.0), width=width)
    return replace(found, n_clusters=samples.n_clusters)


def _p_association(expect: Expectation, samples: Samples, seed: int, resamples: int) -> float:
    if _undefined(samples):
        return 1.0
    boundary = expect.sign * expect.margin
    statistic, sizes, width = _statistic(expect, samples, seed)
    if boundary or samples.n_clusters < len(samples):
        return sign_flip_p(expect.sign * (influence(statistic, len(sizes), width) - boundary), seed=seed, resamples=resamples)
    if samples.level is not None:
        level, y = samples.level, np.unique(samples.values, return_inverse=True)[1]
        return pairings_p(
            lambda rows: expect.sign * association.rearranged_kendall(level, rows), y, seed=seed, resamples=resamples, width=width
        )
    assert samples.x is not None
    first, second = (stats.rankdata(v) if expect.method == "spearman" else v for v in (samples.x, samples.values))
    first = expect.sign * (first - first.mean())
    return pairings_p(lambda rows: rows @ first, second - second.mean(), seed=seed, resamples=resamples)
