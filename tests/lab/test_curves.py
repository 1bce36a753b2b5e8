"""Curves carry the lab's own intervals."""

import numpy as np
import pytest

from nullius.lab.curves import curve, thirds
from nullius.lab.statistics import mean_interval


def test_a_curve_is_means_with_the_labs_intervals():
    rng = np.random.default_rng(0)
    samples = [rng.random(40) < p for p in (0.1, 0.5, 0.9)]
    clusters = np.repeat(np.arange(10), 4).tolist()
    drawn = curve("rate", [1.0, 2.0, 3.0], samples, clusters, "control", (0, 1))
    for i, values in enumerate(samples):
        interval = mean_interval(values.astype(float), clusters)
        assert drawn.y[i] == interval.estimate == values.mean()
        assert drawn.lo[i] == max(interval.lo, 0)
        assert drawn.hi[i] == min(interval.hi, 1)
    assert drawn.role == "control"


def test_thirds_follow_x():
    rng = np.random.default_rng(0)
    x = rng.permutation(90)
    drawn = thirds("rate", x, x >= 60, np.arange(90), bounds=(0, 1))
    assert drawn.x == (14.5, 44.5, 74.5)
    assert drawn.y == (0.0, 0.0, 1.0)
    assert drawn.hi[0] == pytest.approx(1 - 0.025 ** (1 / 30), rel=0.05)


def test_one_cluster_leaves_the_interval_open():
    drawn = curve("mean", [0.0], [[1.0, 2.0]], [0, 0])
    assert drawn.lo == drawn.hi == (None,)
