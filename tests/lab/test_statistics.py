"""Golden numbers against scipy and statsmodels, and what must be true of any samples."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from tests.lab.simulate import clustered, clustered_rate, samples

from nullius.lab import association, resampling
from nullius.lab.claims import (
    Claim,
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
from nullius.lab.findings import samples as from_report
from nullius.lab.statistics import difference_interval, estimate, holm, mean_interval, own_interval, p_value

RNG = np.random.default_rng(7)
finite = st.floats(-100, 100, width=32).map(lambda x: round(x, 3))
lists = arrays(np.float64, st.integers(3, 25), elements=finite)


@pytest.fixture(autouse=True)
def own_draws(monkeypatch):
    """Each test draws the same numbers, alone or among others, in whatever order."""
    monkeypatch.setitem(globals(), "RNG", np.random.default_rng(7))


def test_a_rate_gets_the_exact_interval_and_p():
    hits = np.repeat([1.0, 0.0], [17, 8])
    found = mean_interval(hits)
    exact = stats.binomtest(17, 25).proportion_ci(0.95, "exact")
    assert (found.estimate, found.lo, found.hi, found.n) == (17 / 25, exact.low, exact.high, 25)
    assert mean_interval(np.ones(30)).lo == pytest.approx(0.025 ** (1 / 30))


def test_paired_rates_get_newcombes_interval():
    """Newcombe 1998, table II: 36, 12, 2, 0 of 50 gives 0.0569 to 0.3404 by method 10."""
    first = np.repeat([1, 1, 0, 0], [36, 12, 2, 0])
    second = np.repeat([1, 0, 1, 0], [36, 12, 2, 0])
    found = difference_interval(samples(first), samples(second), True)
    assert (round(found.lo, 4), round(found.hi, 4)) == (0.0569, 0.3404)


def test_paired_rates_that_go_together_get_a_narrower_interval_though_not_for_nothing():
    """Newcombe's method 10 takes n/2 off the product of the agreeing less that of the differing, and never below 0."""
    alike = difference_interval(*(samples(np.repeat(signs, [10, 3, 1, 10])) for signs in ([1, 1, 0, 0], [1, 0, 1, 0])), True)
    a, b = stats.binomtest(13, 24).proportion_ci(0.95, "wilson"), stats.binomtest(11, 24).proportion_ci(0.95, "wilson")
    phi = (10 * 10 - 3 * 1 - 12) / np.sqrt(13 * 11 * 11 * 13)
    lo = 2 / 24 - np.sqrt((13 / 24 - a.low) ** 2 - 2 * phi * (13 / 24 - a.low) * (b.high - 11 / 24) + (b.high - 11 / 24) ** 2)
    assert alike.lo == pytest.approx(lo, abs=1e-9)
    barely = difference_interval(*(samples(np.repeat(signs, [3, 2, 1, 2])) for signs in ([1, 1, 0, 0], [1, 0, 1, 0])), True)
    a, b = stats.binomtest(5, 8).proportion_ci(0.95, "wilson"), stats.binomtest(4, 8).proportion_ci(0.95, "wilson")
    assert barely.lo == pytest.approx(1 / 8 - np.hypot(5 / 8 - a.low, b.high - 4 / 8), abs=1e-9)  # 3 · 2 − 2 · 1 is less than 8 / 2 + 1


def test_an_interval_covers_bca_of_scipy_and_students_t():
    values = RNG.exponential(size=200)
    bca = stats.bootstrap((values,), np.mean, n_resamples=9999, rng=np.random.default_rng(0)).confidence_interval
    t = stats.ttest_1samp(values, 0).confidence_interval()
    found = mean_interval(values)
    assert found.lo == pytest.approx(min(bca.low, t.low), abs=0.01)
    assert found.hi == pytest.approx(max(bca.high, t.high), abs=0.01)
    assert found.lo <= t.low
    assert found.hi >= t.high


def test_percentiles_are_widened_where_items_are_few():
    """Hesterberg 2015, section 4.2: the level of BCa's percentiles is that of Student's t, with √(n / (n − 1)) times the bootstrap's error."""
    values = np.array([0.1, 0.2, 0.25, 0.3, 0.5, 0.9, 1.4, 4.0])  # so skewed that BCa's end is the farther one
    level = stats.norm.cdf(np.sqrt(8 / 7) * stats.t.ppf(0.025, 7))
    usual, widened = (
        stats.bootstrap((values,), np.mean, confidence_level=1 - 2 * alpha, n_resamples=9999, rng=np.random.default_rng(0))
        for alpha in (0.025, level)
    )
    found = mean_interval(values)
    assert found.hi == pytest.approx(widened.confidence_interval.high, rel=0.03)
    assert found.hi > 1.06 * usual.confidence_interval.high


def test_the_spread_of_equal_clusters_is_that_of_cluster_robust_least_squares():
    values, codes = clustered(RNG, [7] * 12, 0.4)
    robust = sm.OLS(values, np.ones(84)).fit(cov_type="cluster", cov_kwds={"groups": codes}).bse[0]
    sums = np.bincount(codes, values)
    found = resampling.spread(lambda counts: counts @ sums / (7 * counts.sum(-1)), [np.full(12, 7.0)])
    assert np.sqrt(found.variance) == pytest.approx(robust, rel=1e-9)
    assert found.freedom == pytest.approx(11)


def test_two_groups_have_welchs_degrees_of_freedom():
    a, b = RNG.normal(size=9), 3 * RNG.normal(size=20)
    found = resampling.spread(lambda i, j: i @ a / i.sum(-1) - j @ b / j.sum(-1), [np.ones(9), np.ones(20)])
    welch = stats.ttest_ind(a, b, equal_var=False)
    assert found.freedom == pytest.approx(welch.df)
    assert (a.mean() - b.mean()) / np.sqrt(found.variance) == pytest.approx(welch.statistic)


def test_sign_flips_are_scipys():
    scores = RNG.normal(0.4, size=10)
    theirs = stats.permutation_test((scores,), np.sum, permutation_type="samples", alternative="greater", n_resamples=np.inf).pvalue
    assert resampling.sign_flip_p(scores, seed=0) == pytest.approx(theirs)
    assert resampling.sign_flip_p(np.ones(4), seed=0) == 1 / 16  # exact, so that four clusters can never hold
    many = RNG.normal(0.1, size=300)
    assert resampling.sign_flip_p(many, seed=0) == pytest.approx(stats.ttest_1samp(many, 0, alternative="greater").pvalue, abs=0.01)


def test_permutation_of_welchs_t_agrees_with_welch():
    a, b = RNG.normal(0.3, size=60), 3 * RNG.normal(size=90)
    theirs = stats.ttest_ind(a, b, equal_var=False, alternative="greater").pvalue
    assert resampling.welch_p(a, b, seed=0) == pytest.approx(theirs, abs=0.02)


def test_p_of_an_association_agrees_with_scipys():
    x = RNG.normal(size=80)
    y = 0.2 * x + RNG.normal(size=80)
    for method, function in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        found = estimate(correlation_above(method=method), samples(y, x=x), samples(y, x=x[::-1]), True)
        assert found.p == pytest.approx(function(x, y, alternative="greater").pvalue, abs=0.015)
        assert found.effect.estimate == pytest.approx(function(x, y).statistic)
    level = np.repeat([0, 1, 2], [30, 20, 30])
    found = estimate(trend("increasing", *"abc"), samples(y + 0.2 * level, level=level), samples(y, level=level), True)
    theirs = stats.kendalltau(level, y + 0.2 * level, alternative="greater")
    assert found.p == pytest.approx(theirs.pvalue, abs=0.015)
    assert found.effect.estimate == pytest.approx(theirs.statistic)


def p_of(expect, treated, control=None, paired=True):
    return p_value(expect, treated, control or samples(np.zeros(len(treated)), start=1000), paired, seed=0)


def test_p_of_a_mean_is_against_the_boundary_of_its_claim():
    """Sign flips and permutations beside Student's and Welch's t, on either side of the boundary."""
    a, b = RNG.normal(0.6, 1, 80), RNG.normal(0, 2, 60)

    def t(values, boundary, side):
        return stats.ttest_1samp(values, boundary, alternative=side).pvalue

    for expect, theirs in (
        (above_control(0.5), t(a, 0.5, "greater")),
        (above_control(0.9), t(a, 0.9, "greater")),
        (below_control(0.5), t(a, -0.5, "less")),
        (at_least(0.5, null=0), t(a, 0.5, "greater")),
        (at_most(0.7, null=0), t(a, 0.7, "less")),
        (at_most(0.5, null=0), t(a, 0.5, "less")),
        (equivalent(0.3, to=0.5), max(t(a, 0.2, "greater"), t(a, 0.8, "less"))),
    ):
        assert p_of(expect, samples(a)) == pytest.approx(theirs, abs=0.012), expect
    for expect, shift, side in ((above_control(0.3), 0.3, "greater"), (below_control(0.3), -0.3, "less")):
        theirs = stats.ttest_ind(a - shift, b, equal_var=False, alternative=side).pvalue
        assert p_of(expect, samples(a), samples(b, start=1000), paired=False) == pytest.approx(theirs, abs=0.02)


def test_p_of_a_rate_is_the_exact_one():
    hits = samples(np.repeat([1.0, 0.0], [17, 8]))
    for bound in (0.5, 0.7, 0.9):
        assert p_of(at_least(bound, null=0), hits) == stats.binomtest(17, 25, bound, "greater").pvalue
        assert p_of(at_most(bound, null=0), hits) == stats.binomtest(17, 25, bound, "less").pvalue
    assert p_of(equivalent(0.2, to=0.7), hits) == max(
        stats.binomtest(17, 25, bound, side).pvalue for bound, side in ((0.7 - 0.2, "greater"), (0.7 + 0.2, "less"))
    )
    assert [p_of(expect, hits) for expect in (at_least(1.5, null=0), at_most(1.5, null=0), at_least(-1, null=0))] == [1.0, 0.0, 0.0]


def test_p_of_an_association_is_against_its_bound():
    """Sign flips of pseudo-values beside Fisher's z."""
    x = RNG.normal(size=300)
    y = 0.5 * x + RNG.normal(size=300)
    r = stats.pearsonr(x, y).statistic
    for bound in (0.35, 0.45, 0.5):
        z = np.sqrt(297) * (np.arctanh(r) - np.arctanh(bound))
        assert p_of(correlation_above(bound, method="pearson"), samples(y, x=x)) == pytest.approx(stats.norm.sf(z), abs=0.04)
        assert p_of(correlation_below(-bound, method="pearson"), samples(-y, x=x)) == pytest.approx(stats.norm.sf(z), abs=0.04)


@pytest.mark.parametrize("means", [(2.0, 1.0, 0.6), (1.4, 1.0, 0.0)])
def test_p_of_an_ordering_is_the_largest_of_its_pairs(means):
    level = np.repeat([0, 1, 2], 60)
    values = np.repeat(means, 60) + RNG.normal(size=180)
    pairs = [(values[level == i] - 0.3, values[level == i + 1]) for i in range(2)]
    theirs = [stats.ttest_ind(*pair, equal_var=False, alternative="greater").pvalue for pair in pairs]
    assert max(theirs) > min(theirs) + 0.05
    assert p_of(ordering(*"abc", margin=0.3), samples(values, level=level)) == pytest.approx(max(theirs), abs=0.02)


def test_copies_of_an_item_prove_no_more_than_the_item():
    x, level = RNG.normal(size=40), np.arange(40) % 3
    y = 0.2 * x + RNG.normal(size=40)
    fives = np.repeat(np.arange(40), 5)
    for expect, values, more in (
        (correlation_above(), y, {"x": x}),
        (correlation_above(method="pearson"), y, {"x": x}),
        (trend("increasing", *"abc"), y + 0.6 * level, {"level": level}),
    ):
        repeated = {name: column[fives] for name, column in more.items()}
        one = p_of(expect, samples(values, **more))
        assert p_of(expect, samples(values[fives], fives, **repeated)) == pytest.approx(one, abs=0.06), expect
        assert p_of(expect, samples(values[fives], **repeated)) < one - 0.08, expect  # where nobody says that they are copies


def test_p_of_a_difference_knows_shared_clusters_and_their_sizes():
    levels = 5 * RNG.normal(size=25)
    codes = np.repeat(np.arange(25), 4)
    a, b = samples(levels[codes] + 0.5 + RNG.normal(size=100), codes), samples(levels[codes] + RNG.normal(size=100), codes)
    assert p_of(above_control(), a, b, paired=False) < 0.01  # levels that both sides have cancel
    assert p_of(above_control(), a, samples(b.values, codes + 1000), paired=False) > 0.1
    # thirty items of one cluster against ten of their own: their mean is 1/4, that of clusters 10/11
    unequal = samples(np.repeat([0.0, 1.0], [30, 10]), np.r_[np.zeros(30, int), np.arange(1, 11)])
    assert p_of(above_control(0.5), unequal, samples(RNG.normal(0, 0.1, 12), start=100), paired=False) > 0.5


def test_the_ends_of_an_ordering():
    """Below the whole tail for each pair, above its share of it."""
    level = np.repeat([0, 1, 2], 30)
    values = np.repeat([2.0, 1.0, 0.0], 30) + RNG.normal(size=90)
    found = own_interval(ordering(*"abc"), samples(values, level=level))
    first, second = (
        (samples(values[level == i], start=1000 * i) for i in range(2)),
        (samples(values[level == i], start=1000 * i) for i in (1, 2)),
    )
    pairs = [difference_interval(*pair, False, seed=i, tails=(0.025, 0.0125)) for i, pair in enumerate((first, second))]
    assert found.lo == pytest.approx(min(pair.lo for pair in pairs), abs=1e-9)
    assert found.hi == pytest.approx(min(pair.hi for pair in pairs), abs=1e-9)


@given(st.integers(0, 2**31), st.integers(2, 12), st.integers(2, 5))
@settings(max_examples=60, deadline=None)
def test_weighted_associations_are_scipys_on_repeated_items(seed, n, distinct):
    """Ties, repeated draws and constant resamples included."""
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, distinct, n).astype(float), rng.integers(0, distinct, n).astype(float)
    weights = rng.multinomial(n, np.full(n, 1 / n), 4).astype(float)
    level = x.astype(int)
    makers = ((association.pearson(x, y), stats.pearsonr), (association.spearman(x, y), stats.spearmanr))
    for ours, theirs in (*makers, (association.kendall(level, y), stats.kendalltau)):
        for row, got in zip(weights, ours(weights), strict=True):
            u, v = np.repeat(x, row.astype(int)), np.repeat(y, row.astype(int))
            wanted = 0.0 if not np.ptp(u) or not np.ptp(v) else theirs(u, v).statistic
            assert got == pytest.approx(wanted, abs=1e-7)


def test_rearranged_kendall_is_kendall():
    level, y = RNG.integers(0, 4, 30), RNG.integers(0, 6, 30)
    arrangements = np.array([RNG.permutation(y) for _ in range(5)])
    wanted = [stats.kendalltau(level, row).statistic for row in arrangements]
    np.testing.assert_allclose(association.rearranged_kendall(level, arrangements), wanted)


def test_a_clustered_rate_is_clopper_pearson_where_clusters_do_not_matter():
    values, codes = clustered_rate(np.random.default_rng(3), 200, 5, 0.3, 1e-6)
    found = mean_interval(values, codes)
    exact = mean_interval(values)
    assert found.method == "Korn-Graubard"
    assert found.hi - found.lo == pytest.approx(exact.hi - exact.lo, rel=0.15)
    alike = np.repeat(values[::5], 5)  # five copies are worth one item
    single = mean_interval(values[::5])
    assert mean_interval(alike, codes).lo == pytest.approx(single.lo, abs=0.01)
    assert mean_interval(alike, codes).hi == pytest.approx(single.hi, abs=0.01)


def test_a_rate_of_few_clusters_of_copies():
    """Ten copies of eight items: (k − 1) items' worth, less what Student's t asks for seven degrees of freedom instead of 79."""
    found = mean_interval(np.repeat([1.0, 0.0], [30, 50]), np.repeat(np.arange(8), 10))
    worth = 7 * (stats.t.ppf(0.025, 79) / stats.t.ppf(0.025, 7)) ** 2
    assert found.lo == pytest.approx(stats.beta.ppf(0.025, 3 / 8 * worth, 5 / 8 * worth + 1))
    assert found.hi == pytest.approx(stats.beta.ppf(0.975, 3 / 8 * worth + 1, 5 / 8 * worth))


def test_equal_samples_never_give_zero_width():
    found = mean_interval(np.full(12, 3.0))
    assert found.method == "rule of three"
    assert found.hi - 3 == pytest.approx(3 * (1 - 0.025 ** (1 / 12)))
    clusters = mean_interval(np.full(12, 3.0), np.repeat([0, 1, 2], 4))
    assert clusters.hi > found.hi  # three clusters are fewer than twelve items
    ones = samples(np.ones(30), np.arange(30) // 5)
    assert difference_interval(ones, samples(np.zeros(30), np.arange(30) // 5), True).hi == 1.0  # rates cannot differ by more


def test_one_event_is_no_change_of_a_control():
    """Changes of 0 and 1 among which −1 happened not to occur are no rate, which one event would keep away from 0."""
    treated = samples(np.ones(200))
    one = estimate(above_control(), treated, samples(np.arange(200) == 7), True).control
    many = estimate(above_control(), treated, samples(np.arange(200) % 6 == 0), True).control
    assert one.lo <= 0 < one.hi
    assert many.lo > 0


def test_one_cluster_or_a_constant_variable_says_nothing():
    assert mean_interval(RNG.normal(size=9), np.zeros(9)).says_nothing
    found = estimate(correlation_above(), samples(np.ones(9), x=RNG.normal(size=9)), samples(RNG.normal(size=9), x=np.zeros(9)), True)
    assert found.effect.says_nothing
    assert found.control.says_nothing
    assert found.p == 1.0


def test_shared_clusters_are_drawn_together():
    """A cluster's level cancels in the difference when both sides have it, and does not when labels differ."""
    levels = 5 * RNG.normal(size=25)
    codes = np.repeat(np.arange(25), 4)
    a, b = (samples(levels[codes] + RNG.normal(size=100), codes) for _ in range(2))
    together = difference_interval(a, b, False)
    apart = difference_interval(a, samples(b.values, codes + 1000), False)
    assert together.hi - together.lo < 0.3 * (apart.hi - apart.lo)


def test_reported_clusters_keep_their_identity_across_treated_and_control():
    claim = Claim("c", "", above_control(), control="none")
    book: dict[object, int] = {}
    a = from_report(claim, [1, 2, 3], ["fr", "de", "fr"], "treated", book)
    b = from_report(claim, [1, 2], ["de", "it"], "control", book)
    assert a.clusters.tolist() == [0, 1, 0]
    assert b.clusters.tolist() == [1, 2]
    free = from_report(claim, [1, 2], None, "control", book)
    assert not np.intersect1d(free.clusters, np.r_[a.clusters, b.clusters]).size


def test_the_smallest_difference_of_an_ordering():
    level = np.repeat([0, 1, 2], 40)
    values = np.repeat([3.0, 2.0, 1.8], 40) + RNG.normal(size=120) * 0.1
    found = estimate(ordering(*"abc"), samples(values, level=level), samples(RNG.normal(size=120), level=level), True)
    means = [values[level == i].mean() for i in range(3)]
    assert found.effect.estimate == pytest.approx(min(means[0] - means[1], means[1] - means[2]))
    assert 0.1 < found.effect.lo < 0.2 < found.effect.hi < 0.3
    assert found.p < 0.001


def test_equivalence_is_centred_on_its_value():
    found = estimate(equivalent(0.1, to=0.5), samples(RNG.random(400) < 0.5), samples(np.ones(50)), True)
    assert found.effect.estimate == pytest.approx(0, abs=0.08)
    assert found.control.estimate == 0.5


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_many_clusters_are_merged_without_changing_the_interval():
    for _ in range(3):
        values = RNG.normal(size=6000)
        found = mean_interval(values)
        t = stats.ttest_1samp(values, 0).confidence_interval()
        assert found.n_clusters == 6000
        assert found.hi - found.lo == pytest.approx(t.high - t.low, rel=0.1)


def test_the_same_samples_give_the_same_numbers():
    a, b = samples(RNG.normal(size=50)), samples(RNG.normal(size=50))
    assert estimate(above_control(), a, b, True, seed=5) == estimate(above_control(), a, b, True, seed=5)


@given(lists, st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_estimates_do_not_depend_on_the_order_of_items(values, seed):
    order = np.random.default_rng(seed).permutation(len(values))
    codes = np.arange(len(values)) // 2
    one = mean_interval(values, codes, resamples=99)
    other = mean_interval(values[order], codes[order], resamples=99)
    assert other.estimate == pytest.approx(one.estimate, abs=1e-9)
    assert (one.n, one.n_clusters, one.method) == (other.n, other.n_clusters, other.method)
    level = np.arange(len(values)) % 3
    tau = association.kendall(level, values)(np.ones(len(values)))
    assert association.kendall(level[order], values[order])(np.ones(len(values))) == pytest.approx(float(tau))


@given(st.integers(0, 2**31), st.integers(3, 25), st.floats(-100, 100))
@example(1, 8, 1.0)  # among its draws is the sample itself, whose mean must equal the estimate to the last bit
@settings(max_examples=60, deadline=None)
def test_shifting_all_values_shifts_the_interval(seed, n, by):
    values = np.random.default_rng(seed).normal(size=n).round(1) + 0.05  # with ties, and never 0/1
    one, other = mean_interval(values, resamples=99), mean_interval(values + by, resamples=99)
    for end in ("estimate", "lo", "hi"):
        assert getattr(other, end) == pytest.approx(getattr(one, end) + by, rel=1e-6, abs=1e-6)


@given(lists)
@settings(max_examples=60, deadline=None)
def test_an_interval_contains_its_estimate_and_has_width(values):
    for clusters in (None, np.arange(len(values)) // 2):
        found = mean_interval(values, clusters, resamples=99)
        assert found.lo <= found.estimate <= found.hi
        assert found.lo < found.hi
