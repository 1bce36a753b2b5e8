"""The lab's statistics: intervals by bootstrap over clusters, p-values by permutation, Holm over a study's claims.

Methods, in the words of the field:

- Intervals are BCa bootstrap intervals (Efron 1987), 95%, resampling clusters; where treated and control share clusters these are resampled
  together. Percentiles are widened for few clusters (Hesterberg 2015, section 4.2: the level α is replaced by Φ(√(n/(n−1)) · t_α,n−1)), since
  the plain bootstrap undercovers below some 30 clusters.
- A rate of 0/1 items without clusters gets the exact Clopper-Pearson interval.
- Where no resample differs (all samples equal) the bootstrap would give zero width: the interval is then that of zero events in n
  (the rule of three, 1 − 0.025^(1/n)) times the smallest step the samples could take (1, or their own magnitude if larger).
- p-values are one-sided, against the boundary of the claim: sign flips of whole clusters for means (two-sample: permuted labels of whole
  clusters), permuted clusters for correlations and trends. An ordering's is the largest of its pairs, an equivalence's that of two one-sided tests.

Resampling is seeded by the caller, so that the same samples give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests

from nullius.lab.claims import Expectation
from nullius.lab.findings import Samples

Floats = NDArray[np.float64]
LEVEL = 0.95
RESAMPLES = 4999


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% interval, the number of items and of clusters it rests on."""

    estimate: float
    lo: float
    hi: float
    n: int
    n_clusters: int

    def to_dict(self) -> dict[str, Any]:
        """Return the interval as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Estimate:
    """A claim's statistic on the treated samples (against the control where the statistic says so) and on the control alone."""

    effect: Interval
    control: Interval
    p: float


def holm(p: Sequence[float]) -> list[float]:
    """Return Holm-adjusted p-values (statsmodels)."""
    return [float(x) for x in multipletests(p, method="holm")[1]] if len(p) else []


def mean_interval(values: Floats, clusters: Sequence | NDArray | None = None, *, seed: int = 0) -> Interval:
    """Mean of per-item values [n] with its 95% interval; clusters: one label per item, None for independent items."""
    values = np.asarray(values, dtype=np.float64)
    codes = np.arange(len(values)) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    return _mean_interval(Samples(values, codes), seed)


def estimate(expect: Expectation, treated: Samples, control: Samples, paired: bool, *, seed: int = 0) -> Estimate:
    """Compute the statistic of an expectation, its control's, and the p-value of the expectation."""
    kind = expect.kind
    if kind in ("above_control", "below_control"):
        effect = difference_interval(treated, control, paired, seed)
        p = _p_difference(treated, control, paired, expect.sign * expect.margin, expect.sign, seed)
        return Estimate(effect, _mean_interval(control, seed + 1), p)
    if kind in ("at_least", "at_most"):
        p = _p_mean(treated, expect.margin, expect.sign, seed)
        return Estimate(_mean_interval(treated, seed), _mean_interval(control, seed + 1), p)
    if kind == "equivalent":
        centred = Samples(treated.values - expect.null, treated.clusters)
        p = max(_p_mean(centred, -expect.margin, 1, seed), _p_mean(centred, expect.margin, -1, seed))
        other = Samples(control.values - expect.null, control.clusters)
        return Estimate(_mean_interval(centred, seed), _mean_interval(other, seed + 1), p)
    statistic = _association(expect)
    if kind in ("correlation", "trend"):
        effect = _bootstrap(treated, statistic, seed)
        p = _p_association(treated, statistic, expect.sign, seed)
        return Estimate(effect, _bootstrap(control, statistic, seed + 1), p)
    return _ordering(expect, treated, control, seed)


def difference_interval(a: Samples, b: Samples, paired: bool, seed: int) -> Interval:
    """Mean of a minus mean of b. Paired: the mean of item differences. Else clusters are resampled, shared ones together."""
    if paired:
        return _mean_interval(Samples(a.values - b.values, a.clusters), seed)
    if np.intersect1d(a.clusters, b.clusters).size and (a.n_clusters < len(a) or b.n_clusters < len(b)):
        sums = _by_cluster([a, b])
        return _interval(sums, lambda s: _ratio(s[..., 0], s[..., 1]) - _ratio(s[..., 2], s[..., 3]), len(a) + len(b), seed)
    return _two_samples(a, b, seed)


def _ratio(total: Floats, count: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return total / count


def _by_cluster(groups: Sequence[Samples]) -> Floats:
    """Sum and count of each group's values in each cluster: [clusters, 2 · groups]."""
    labels = np.unique(np.concatenate([group.clusters for group in groups]), return_inverse=True)[1]
    n = labels.max() + 1
    parts, start = [], 0
    for group in groups:
        own = labels[start : start + len(group)]
        parts += [np.bincount(own, group.values, n), np.bincount(own, minlength=n)]
        start += len(group)
    return np.stack(parts, 1).astype(np.float64)


def _mean_interval(samples: Samples, seed: int) -> Interval:
    values = samples.values
    independent = samples.n_clusters == len(values)
    if independent and np.isin(values, (0.0, 1.0)).all():
        exact = stats.binomtest(int(values.sum()), len(values)).proportion_ci(LEVEL, "exact")
        return Interval(float(values.mean()), float(exact.low), float(exact.high), len(values), len(values))
    return _interval(_by_cluster([samples]), lambda s: _ratio(s[..., 0], s[..., 1]), len(values), seed)


def _interval(sums: Floats, statistic: Callable[[Floats], Floats], n: int, seed: int) -> Interval:
    """BCa interval of a function of summed rows: sums [clusters, columns]; statistic maps [..., columns] to [...]."""
    clusters = len(sums)
    point = float(statistic(sums.sum(0)))
    if clusters < 2:
        return Interval(point, -np.inf, np.inf, n, clusters)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(clusters, np.full(clusters, 1 / clusters), RESAMPLES) @ sums
    jackknife = statistic(sums.sum(0) - sums)
    return _bca(point, statistic(draws), jackknife, n, clusters)


def _two_samples(a: Samples, b: Samples, seed: int) -> Interval:
    rng = np.random.default_rng(seed)
    means, jackknives = [], []
    for group in (a, b):
        sums = _by_cluster([group])
        clusters = len(sums)
        draws = rng.multinomial(clusters, np.full(clusters, 1 / clusters), RESAMPLES) @ sums
        means.append(_ratio(draws[:, 0], draws[:, 1]))
        rest = sums.sum(0) - sums
        jackknives.append(_ratio(rest[:, 0], rest[:, 1]))
    point = a.values.mean() - b.values.mean()
    jackknife = np.concatenate([jackknives[0] - b.values.mean(), a.values.mean() - jackknives[1]])
    return _bca(float(point), means[0] - means[1], jackknife, len(a) + len(b), min(a.n_clusters, b.n_clusters))


def _bca(point: float, draws: Floats, jackknife: Floats, n: int, clusters: int) -> Interval:
    """Bias-corrected and accelerated percentiles, at levels widened for few clusters."""
    draws = draws[np.isfinite(draws)]
    jackknife = jackknife[np.isfinite(jackknife)]
    if not len(draws) or np.ptp(draws) < 1e-12 * max(1.0, abs(point)):
        reach = (1 - 0.025 ** (1 / clusters)) * max(1.0, abs(point))
        return Interval(point, point - reach, point + reach, n, clusters)
    alpha = np.array([0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    z = stats.norm.ppf(stats.norm.cdf(np.sqrt(clusters / (clusters - 1)) * stats.t.ppf(alpha, clusters - 1)))
    below = np.clip(((draws < point).sum() + 0.5 * (draws == point).sum()) / len(draws), 1e-6, 1 - 1e-6)
    bias = stats.norm.ppf(below)
    spread = jackknife.mean() - jackknife if len(jackknife) else np.zeros(1)
    scale = (spread**2).sum() ** 1.5
    acceleration = (spread**3).sum() / (6 * scale) if scale > 0 else 0.0
    levels = stats.norm.cdf(bias + (bias + z) / (1 - acceleration * (bias + z)))
    lo, hi = np.quantile(draws, levels)
    return Interval(point, float(lo), float(hi), n, clusters)


def _p_mean(samples: Samples, boundary: float, sign: int, seed: int) -> float:
    """One-sided p for a mean beyond the boundary: exact binomial for independent 0/1 items, else sign flips of clusters."""
    values = samples.values
    if samples.n_clusters == len(values) and np.isin(values, (0.0, 1.0)).all():
        if not 0 < boundary < 1:
            return 1.0 if sign * (values.mean() - boundary) <= 0 else float(0.5 ** len(values))
        side = "greater" if sign > 0 else "less"
        return float(stats.binomtest(int(values.sum()), len(values), boundary, side).pvalue)
    sums = _by_cluster([Samples(sign * (values - boundary), samples.clusters)])[:, 0]
    rng = np.random.default_rng(seed)
    flips = rng.integers(0, 2, (RESAMPLES, len(sums))) * 2 - 1
    return float((1 + (flips @ sums >= sums.sum() - 1e-12).sum()) / (RESAMPLES + 1))


def _p_difference(a: Samples, b: Samples, paired: bool, boundary: float, sign: int, seed: int) -> float:
    if paired:
        return (
            _p_mean(Samples(a.values - b.values, a.clusters), boundary, sign, seed)
            if np.ptp(a.values - b.values)
            else _p_equal(a, b, boundary, sign)
        )
    rng = np.random.default_rng(seed)
    cells = np.concatenate(
        [_by_cluster([Samples(sign * (a.values - boundary), a.clusters)]), _by_cluster([Samples(sign * b.values, b.clusters)])]
    )
    first = a.n_clusters
    observed = _ratio(*cells[:first].sum(0)) - _ratio(*cells[first:].sum(0))
    count = 0
    for _ in range(RESAMPLES):
        order = rng.permutation(len(cells))
        drawn, rest = cells[order[:first]].sum(0), cells[order[first:]].sum(0)
        count += bool(drawn[0] / drawn[1] - rest[0] / rest[1] >= observed - 1e-12)
    return (1 + count) / (RESAMPLES + 1)


def _p_equal(a: Samples, b: Samples, boundary: float, sign: int) -> float:
    """All paired differences equal: the sign test on clusters."""
    beyond = sign * (float(a.values[0] - b.values[0]) - boundary) > 0
    return float(0.5**a.n_clusters) if beyond else 1.0


def _association(expect: Expectation) -> Callable[[Samples, NDArray], float]:
    """Return the statistic of a correlation or a trend on a choice of items."""
    if expect.kind == "trend":
        return lambda s, items: float(stats.kendalltau(s.level[items], s.values[items]).statistic)  # type: ignore[index]
    measure = stats.spearmanr if expect.method == "spearman" else stats.pearsonr

    def correlate(s: Samples, items: NDArray) -> float:
        assert s.x is not None
        x, y = s.x[items], s.values[items]
        return float("nan") if np.ptp(x) == 0 or np.ptp(y) == 0 else float(measure(x, y).statistic)

    return correlate


def _members(samples: Samples) -> list[NDArray]:
    order = np.argsort(samples.clusters, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(samples.clusters[order])) + 1)


def _bootstrap(samples: Samples, statistic: Callable[[Samples, NDArray], float], seed: int) -> Interval:
    """BCa over clusters for a statistic that does not reduce to sums (999 resamples)."""
    members = _members(samples)
    clusters = len(members)
    everything = np.arange(len(samples))
    point = statistic(samples, everything)
    if not np.isfinite(point):  # a constant variable: no association can be seen, and none excluded
        return Interval(0.0, -1.0, 1.0, len(samples), clusters)
    rng = np.random.default_rng(seed)
    draws = np.array([statistic(samples, np.concatenate([members[i] for i in rng.integers(0, clusters, clusters)])) for _ in range(999)])
    out = range(clusters) if clusters <= 200 else rng.choice(clusters, 200, replace=False)
    jackknife = np.array([statistic(samples, np.setdiff1d(everything, members[i], assume_unique=True)) for i in out])
    return _bca(point, draws, jackknife, len(samples), clusters)


def _p_association(samples: Samples, statistic: Callable[[Samples, NDArray], float], sign: int, seed: int) -> float:
    """Permute what is exchangeable under the null: whole clusters where x (or level) is one per cluster, else values within clusters."""
    everything = np.arange(len(samples))
    observed = sign * statistic(samples, everything)
    if not np.isfinite(observed):
        return 1.0
    members = _members(samples)
    against = samples.x if samples.x is not None else samples.level
    assert against is not None
    between = all(np.ptp(against[own]) == 0 for own in members)
    rng = np.random.default_rng(seed)
    count = 0
    for _ in range(999):
        values = _shuffle_clusters(samples.values, members, rng) if between else samples.values.copy()
        if not between:
            for own in members:
                values[own] = samples.values[rng.permutation(own)]
        shuffled = Samples(values, samples.clusters, samples.x, samples.level)
        count += bool(sign * statistic(shuffled, everything) >= observed - 1e-12)
    return (1 + count) / 1000


def _shuffle_clusters(values: Floats, members: Sequence[NDArray], rng: np.random.Generator) -> Floats:
    """Hand each cluster the values of another one of its size; sizes that only one cluster has keep theirs."""
    out = values.copy()
    for size in {len(own) for own in members}:
        alike = [own for own in members if len(own) == size]
        for own, other in zip(alike, rng.permutation(len(alike)), strict=True):
            out[own] = values[alike[other]]
    return out


def _level(samples: Samples, index: int) -> Samples:
    assert samples.level is not None
    chosen = samples.level == index
    return Samples(samples.values[chosen], samples.clusters[chosen])


def _ordering(expect: Expectation, treated: Samples, control: Samples, seed: int) -> Estimate:
    """Intersection-union: the adjacent difference with the lowest lower bound speaks for all of them; its p is the largest."""

    def adjacent(samples: Samples) -> list[Interval]:
        pairs = range(len(expect.levels) - 1)
        return [difference_interval(_level(samples, i), _level(samples, i + 1), False, seed + i) for i in pairs]

    smallest = min(adjacent(treated), key=lambda interval: interval.lo)
    pairs = range(len(expect.levels) - 1)
    p = max(_p_difference(_level(treated, i), _level(treated, i + 1), False, expect.margin, 1, seed + i) for i in pairs)
    # a control is null when no adjacent difference is beyond the margin: the one farthest from 0 speaks
    largest = max(adjacent(control), key=lambda interval: abs(interval.estimate))
    return Estimate(smallest, largest, p)
