"""Logistic regression with clusters: slopes of statsmodels, intervals that know about clusters, null where nothing is."""

import numpy as np
import pytest
import statsmodels.api as sm

from nullius.instruments.regression import logistic_slopes, shuffled_between


def data(slope, n_clusters=60, each=4, shared=0.0, seed=0):
    rng = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(n_clusters), each)
    x = rng.normal(3, 2, n_clusters)[clusters]
    other = rng.normal(size=len(x))
    logit = slope * (x - 3) + shared * rng.normal(size=n_clusters)[clusters]
    return (rng.random(len(x)) < 1 / (1 + np.exp(-logit))).astype(int), x, other, clusters


def test_slopes_are_those_of_statsmodels():
    y, x, other, clusters = data(0.5)
    found = logistic_slopes(y, {"x": x, "other": other}, clusters, np.random.default_rng(0), resamples=50)
    golden = sm.Logit(y, sm.add_constant(np.stack([x, other], 1))).fit(disp=0).params[1:]
    np.testing.assert_allclose([found["x"][0], found["other"][0]], golden, rtol=0.02)


def test_a_planted_slope_is_recovered_and_a_null_one_is_not_invented():
    covered = null = 0
    for seed in range(12):
        y, x, other, clusters = data(0.4, seed=seed)
        found = logistic_slopes(y, {"x": x, "other": other}, clusters, np.random.default_rng(seed), resamples=60)
        covered += found["x"][1] < 0.4 < found["x"][2]
        null += found["other"][1] < 0 < found["other"][2]
        assert found["x"][1] > 0
    assert covered >= 9  # of 12 at a nominal 95%: fewer has probability 0.0002
    assert null >= 9


def test_intervals_are_wider_where_clusters_share_an_outcome():
    y, x, _, clusters = data(0.0, n_clusters=30, each=10, shared=3.0)
    rng = np.random.default_rng
    _, lo, hi = logistic_slopes(y, {"x": x}, clusters, rng(0), resamples=100)["x"]
    _, low, high = logistic_slopes(y, {"x": x}, np.arange(len(y)), rng(0), resamples=100)["x"]
    assert hi - lo > 1.5 * (high - low)
    assert lo < 0 < hi


def test_an_outcome_that_does_not_vary_is_refused():
    with pytest.raises(ValueError, match="vary"):
        logistic_slopes([1, 1, 1], {"x": [1, 2, 3]}, [0, 1, 2], np.random.default_rng(0))


def test_shuffling_between_clusters_keeps_them_whole():
    clusters = np.repeat(["b", "a", "c"], [3, 1, 2])
    values = np.repeat([1.0, 2.0, 3.0], [3, 1, 2])
    shuffled = shuffled_between(values, clusters, np.random.default_rng(3))
    assert sorted({shuffled[0], shuffled[3], shuffled[4]}) == [1, 2, 3]
    assert len(set(shuffled[:3])) == len(set(shuffled[4:])) == 1
    assert not np.array_equal(shuffled, values)
