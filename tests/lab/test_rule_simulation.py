"""The rule on simulated samples whose truth is known: false *holds*, coverage and power. With 1 000 repetitions a rate of 8 % is told from 5 %."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from tests.lab.simulate import clustered, clustered_rate, count, more_than, paired_rates, samples

from nullius.lab.claims import (
    above_control,
    at_least,
    at_most,
    below_control,
    correlation_above,
    correlation_below,
    equivalent,
    ordering,
    trend,
)
from nullius.lab.statistics import difference_interval, estimate, holm, mean_interval, own_interval, p_value
from nullius.lab.verdicts import ALPHA, decide

REPETITIONS = 1000
DRAWS = 199  # resamples: fewer than the lab's own, which makes intervals rougher and not narrower
UP, DOWN = "increasing", "decreasing"


def holds(expect, treated, control, paired=True):
    """Whether one claim alone holds. p is asked first: without it nothing holds, and intervals cost more."""
    p = p_value(expect, treated, control, paired, resamples=DRAWS)
    return p <= ALPHA and decide(expect, estimate(expect, treated, control, paired, resamples=DRAWS), p)[0] == "holds"


def levels(values, clusters=None):
    """Samples of a trend or an ordering: values [levels, items]."""
    values = np.asarray(values)
    level = np.repeat(np.arange(len(values)), values.shape[1])
    return samples(values.ravel(), None if clusters is None else np.tile(clusters, len(values)), level=level)


def both(rng, n, shift=0.0):
    """Treated and control of one experiment, paired with correlation 1/2."""
    shared = rng.normal(size=n)
    return samples(shift + shared + rng.normal(size=n)), samples(shared + rng.normal(size=n))


def correlated(rng, n, rho):
    x = rng.normal(size=n)
    return samples(rho * x + np.sqrt(1 - rho**2) * rng.normal(size=n), x=x)


# Each lies on the boundary of its claim, where a false *holds* is most likely; the control is null (for an equivalence: differs).
NULLS = {
    "above control": lambda r: holds(above_control(), *both(r, 20)),
    "above control, at its margin": lambda r: holds(above_control(0.5), *both(r, 25, 0.5)),
    "above control, unpaired, unequal variances": lambda r: holds(
        above_control(), samples(4 * r.normal(size=12)), samples(r.normal(size=40), start=100), paired=False
    ),
    "above control, skewed": lambda r: holds(above_control(0.5), samples(0.5 + 1 - r.exponential(size=40)), samples(np.zeros(40))),
    "above control, rates": lambda r: holds(above_control(0.1, null=0.5), *(samples(v) for v in paired_rates(r, 60, 0.6, 0.5))),
    "above control, clusters": lambda r: holds(above_control(), samples(*clustered(r, [8] * 12, 0.4)), samples(np.zeros(96))),
    "below control": lambda r: holds(below_control(0.2), *both(r, 20, -0.2)),
    "at least, rate": lambda r: holds(at_least(0.8, null=0.5), samples(r.random(30) < 0.8), samples(r.random(30) < 0.5)),
    "at least, clustered rate": lambda r: holds(
        at_least(0.7, null=0.5), samples(*clustered_rate(r, 15, 8, 0.7, 0.2)), samples(*clustered_rate(r, 15, 8, 0.5, 0.2))
    ),
    "at most": lambda r: holds(at_most(1.0, null=3.0), samples(1 + r.normal(size=15)), samples(3 + r.normal(size=15))),
    "Spearman above 0": lambda r: holds(correlation_above(), correlated(r, 15, 0), correlated(r, 15, 0)),
    "Pearson above its bound": lambda r: holds(correlation_above(0.3, method="pearson"), correlated(r, 40, 0.3), correlated(r, 40, 0)),
    "Pearson below 0": lambda r: holds(correlation_below(method="pearson"), correlated(r, 12, 0), correlated(r, 12, 0)),
    "equivalent": lambda r: holds(equivalent(0.5), samples(0.5 + r.normal(size=40)), samples(3 + r.normal(size=40))),
    "trend": lambda r: holds(trend(UP, *"abcd"), levels(r.normal(size=(4, 8))), levels(r.normal(size=(4, 8)))),
    "trend, crossed clusters": lambda r: holds(
        trend(DOWN, *"abc"), levels(r.normal(size=(3, 10)) + 2 * r.normal(size=10), range(10)), levels(r.normal(size=(3, 10)))
    ),
    "ordering, one tie": lambda r: holds(
        ordering(*"abc"), levels(r.normal(size=(3, 15)) - np.array([[0], [0], [2]])), levels(r.normal(size=(3, 15)))
    ),
}


@pytest.mark.parametrize("name", NULLS)
def test_a_false_claim_holds_at_most_once_in_twenty(name):
    times = count(NULLS[name], REPETITIONS)
    assert not more_than(times, REPETITIONS, 0.05), f"{times} of {REPETITIONS}"


def test_a_study_of_false_claims_has_one_that_holds_at_most_once_in_twenty():
    def any_holds(rng):
        pairs = [both(rng, 20) for _ in range(6)]
        found = [p_value(above_control(), *pair, True, resamples=DRAWS) for pair in pairs]
        if min(found) * len(found) > ALPHA:  # Holm's smallest: asked first, as multipletests collects garbage at every call
            return False
        adjusted = holm(found)
        small = [(pair, p) for pair, p in zip(pairs, adjusted, strict=True) if p <= ALPHA]
        return any(decide(above_control(), estimate(above_control(), *pair, True, resamples=DRAWS), p)[0] == "holds" for pair, p in small)

    assert not more_than(count(any_holds, REPETITIONS), REPETITIONS, 0.05)


def miss(interval, truth):
    return not interval.lo - 1e-12 <= truth <= interval.hi + 1e-12


def mean_misses(values, truth, clusters=None):
    return miss(mean_interval(values, clusters, resamples=DRAWS), truth)


def difference_misses(a, b, truth=0.0, paired=False):
    return miss(difference_interval(a, b, paired, resamples=DRAWS), truth)


def association_misses(expect, found, truth):
    return miss(own_interval(expect, found, resamples=DRAWS), truth)


def pareto_sizes(rng, clusters):
    return np.clip((8 * rng.pareto(1.5, clusters)).astype(int), 1, 200)


def halves_of_shared_clusters(rng):
    values, codes = clustered(rng, [6] * 15, 0.4)
    first = rng.random(len(values)) < 0.5
    return samples(values[first], codes[first]), samples(values[~first], codes[~first])


COVERAGE = {
    "normal, 5 items": lambda r: mean_misses(r.normal(size=5), 0),
    "normal, 20 items": lambda r: mean_misses(r.normal(size=20), 0),
    "normal, 60 items": lambda r: mean_misses(r.normal(size=60), 0),
    "exponential, 40 items": lambda r: mean_misses(r.exponential(size=40), 1),
    "heavy tails, 30 items": lambda r: mean_misses(r.standard_t(3, size=30), 0),
    "rate 0.1 of 15": lambda r: mean_misses((r.random(15) < 0.1).astype(float), 0.1),
    "8 clusters of 10": lambda r: mean_misses(*_spread(clustered(r, [10] * 8, 0.3), 0)),
    "30 clusters of 10": lambda r: mean_misses(*_spread(clustered(r, [10] * 30, 0.3), 0)),
    "40 clusters of very unequal sizes": lambda r: mean_misses(*_spread(clustered(r, pareto_sizes(r, 40), 0.3), 0)),
    "rate 0.2 in 20 clusters": lambda r: mean_misses(*_spread(clustered_rate(r, 20, 10, 0.2, 0.2), 0.2)),
    "paired rates": lambda r: difference_misses(*(samples(v) for v in paired_rates(r, 50, 0.4, 0.25)), 0.15, paired=True),
    "paired rare rates": lambda r: difference_misses(*(samples(v) for v in paired_rates(r, 100, 0.03, 0.01)), 0.02, paired=True),
    "two rates": lambda r: difference_misses(samples(r.random(25) < 0.5), samples(r.random(40) < 0.3, start=99), 0.2),
    "two samples, small the noisy one": lambda r: difference_misses(samples(4 * r.normal(size=10)), samples(r.normal(size=40), start=99)),
    "two halves that share clusters": lambda r: difference_misses(*halves_of_shared_clusters(r)),
    "Pearson 0.5": lambda r: association_misses(correlation_above(method="pearson"), correlated(r, 25, 0.5), 0.5),
    "Spearman 0.5": lambda r: association_misses(correlation_above(), correlated(r, 30, 0.5), 6 / np.pi * np.arcsin(0.25)),
    "trend": lambda r: association_misses(trend(UP, *"abcd"), levels(r.normal(size=(4, 8))), 0),
}


def _spread(values_and_codes, truth):
    return values_and_codes[0], truth, values_and_codes[1]


@pytest.mark.parametrize("name", COVERAGE)
def test_intervals_cover_at_their_nominal_rate(name):
    times = count(COVERAGE[name], REPETITIONS)
    assert not more_than(times, REPETITIONS, 0.05), f"missed {times} of {REPETITIONS}"


def test_where_coverage_is_known_to_fall_short():
    """docs/verdicts.md states these limits: a log-normal sample of 20, and rare events in clusters."""
    assert not more_than(count(lambda r: mean_misses(np.exp(r.normal(size=20)), np.exp(0.5)), 500), 500, 0.12)
    assert not more_than(count(lambda r: mean_misses(*_spread(clustered_rate(r, 40, 10, 0.02, 0.2), 0.02)), 500), 500, 0.10)


def test_a_control_that_is_null_is_called_so():
    """At most one control in twenty is mistaken for an effect: in an ordering too, where the smallest of many differences counts."""

    def trouble(rng):
        return miss(own_interval(ordering(*"abcdef"), levels(rng.normal(size=(6, 20))), resamples=DRAWS), 0)

    assert not more_than(count(trouble, 500), 500, 0.05)


def t_power(n, effect):
    """Power of Student's one-sided t at 2.5 %, the side of a 95 % interval."""
    return stats.nct.sf(stats.t.ppf(0.975, n - 1), n - 1, effect * np.sqrt(n))


def sees(expect, n, shift):
    zero = samples(np.zeros(n))  # a control without noise leaves the whole of the power to the effect
    return lambda rng: holds(expect, samples(shift + rng.normal(size=n)), zero)


def zero_fails(rng):
    expect, found = above_control(0.5), samples(rng.normal(size=40))
    return decide(expect, estimate(expect, found, samples(np.zeros(40)), True, resamples=DRAWS), 1.0)[0] == "fails"


UNCORRELATED = samples([1, -1, 1, -1] * 9, x=[1, 1, -1, -1] * 9)
POWER = {
    "above control": (sees(above_control(), 30, 0.5), t_power(30, 0.5)),
    "above a margin": (sees(above_control(0.3), 40, 0.8), t_power(40, 0.5)),
    "a precise zero fails": (zero_fails, t_power(40, 0.5)),
    "Pearson 0.4": (
        lambda rng: holds(correlation_above(method="pearson"), correlated(rng, 50, 0.4), UNCORRELATED),
        stats.norm.sf(1.96 - np.arctanh(0.4) * np.sqrt(47)),
    ),
    "a rate of 0.9 above 0.75": (
        lambda rng: holds(at_least(0.75, null=0.0), samples(rng.random(60) < 0.9), samples(np.zeros(60))),
        # exactly: the least number of hits whose Clopper-Pearson interval lies above the bound
        stats.binom.sf(next(k for k in range(61) if stats.beta.ppf(0.025, k, 61 - k) >= 0.75) - 1, 60, 0.9),
    ),
    "two samples, one standard deviation apart": (
        lambda rng: holds(above_control(5), samples(6 + rng.normal(size=25)), samples(rng.normal(size=25), start=50), paired=False),
        stats.nct.sf(stats.t.ppf(0.975, 48), 48, np.sqrt(12.5)),
    ),
}


@pytest.mark.parametrize("name", POWER)
def test_power_is_what_theory_says(name):
    event, theory = POWER[name]
    assert abs(count(event, REPETITIONS) / REPETITIONS - theory) < 0.06, theory
