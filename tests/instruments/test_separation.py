"""GDV: known values, invariances, a golden against two plain loops, and its null."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nullius.errors import NulliusError
from nullius.instruments import separation
from nullius.instruments.separation import gdv


def by_loops(points, labels):
    """GDV from its definition, pair by pair."""
    z = 0.5 * (points - points.mean(0)) / points.std(0)
    classes = sorted(set(labels.tolist()))
    intra, inter = [], []
    for a in classes:
        own = z[labels == a]
        pairs = [np.sqrt(((own[i] - own[j]) ** 2).sum()) for i in range(len(own)) for j in range(i + 1, len(own))]
        intra.append(np.mean(pairs))
        for b in classes:
            if a < b:
                inter.append(np.mean([np.sqrt(((x - y) ** 2).sum()) for x in own for y in z[labels == b]]))
    return (np.mean(intra) - np.mean(inter)) / np.sqrt(points.shape[1])


@pytest.mark.parametrize("sizes", [(8, 8), (5, 9, 14), (2, 3, 4, 5)])
def test_agrees_with_the_definition(sizes):
    rng = np.random.default_rng(sum(sizes))
    labels = np.repeat(np.arange(len(sizes)), sizes)
    points = rng.normal(size=(len(labels), 7)) + rng.normal(size=(len(sizes), 7))[labels]
    assert gdv(points, labels) == pytest.approx(by_loops(points, labels), abs=1e-12)


@pytest.mark.parametrize("dimensions", [1, 3, 300])
def test_two_point_like_classes_give_minus_one(dimensions):
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 10)
    assert gdv(rng.normal(size=(2, dimensions))[labels], labels) == pytest.approx(-1, abs=1e-12)


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_corners_of_a_simplex(classes):
    labels = np.repeat(np.arange(classes), 6)
    assert gdv(np.eye(classes)[labels], labels) == pytest.approx(-1 / np.sqrt(2 * (1 - 1 / classes)), abs=1e-12)


@pytest.mark.parametrize("dimensions", [2, 50, 1000])
def test_noise_gives_zero(dimensions):
    rng = np.random.default_rng(dimensions)
    values = [gdv(rng.normal(size=(120, dimensions)), np.repeat(np.arange(4), 30)) for _ in range(10)]
    assert abs(np.mean(values)) < 0.01


def test_a_small_sample_has_the_same_expectation():
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(3, 20))

    def draw(n):
        labels = np.repeat(np.arange(3), n)
        return gdv(centres[labels] + rng.normal(size=(3 * n, 20)), labels)

    assert np.mean([draw(6) for _ in range(300)]) == pytest.approx(np.mean([draw(100) for _ in range(10)]), abs=0.012)


def test_seven_percent_between_classes_is_a_twentieth():
    rng = np.random.default_rng(4)
    labels = np.repeat([0, 1], 500)
    points = np.sqrt(0.93) * rng.normal(size=(1000, 200)) + np.sqrt(0.07) * np.where(labels == 0, 1, -1)[:, None]
    assert gdv(points, labels) == pytest.approx(-0.05, abs=0.004)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3), shift=st.floats(-100, 100), classes=st.integers(2, 5))
def test_invariances(seed, scale, shift, classes):
    rng = np.random.default_rng(seed)
    labels = np.arange(30) % classes
    points = rng.normal(size=(30, 8)) + labels[:, None]
    value = gdv(points, labels)
    order, items = rng.permutation(8), rng.permutation(30)
    assert gdv(points * scale * rng.uniform(0.5, 2, 8) * rng.choice([-1, 1], 8) + shift, labels) == pytest.approx(value, abs=1e-8)
    assert gdv(points[:, order], labels) == pytest.approx(value, abs=1e-12)
    assert gdv(points[items], labels[items]) == pytest.approx(value, abs=1e-12)
    assert gdv(points, (labels + 1) % classes) == pytest.approx(value, abs=1e-12)
    assert gdv(np.tile(points, 3), labels) == pytest.approx(value, abs=1e-12)
    assert -1 - 1e-9 <= value <= 1


def test_dimensions_that_do_not_vary_are_left_out():
    rng = np.random.default_rng(5)
    points, labels = rng.normal(size=(20, 4)) + 3, np.repeat([0, 1], 10)
    assert gdv(np.hstack([points, np.full((20, 3), 0.1)]), labels) == pytest.approx(gdv(points, labels), abs=1e-12)
    assert gdv(np.full((20, 3), 0.1), labels) == 0.0


@pytest.mark.parametrize(
    ("points", "labels", "message"),
    [
        (np.ones((4, 2)), [0, 0, 0, 0], "at least two classes"),
        (np.eye(4), [0, 0, 0, 1], "two points of every class; 1 has fewer"),
        (np.array([[1.0, np.nan], [0, 1]]), [0, 1], "finite"),
        (np.ones(4), [0, 0, 1, 1], "two dimensions"),
    ],
)
def test_refuses(points, labels, message):
    with pytest.raises(NulliusError, match=message):
        gdv(points, labels)


def test_permuted_runs_keep_counts_and_neighbours():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(30), 10)
    permuted = separation.permute_runs(labels, 10, rng)
    assert sorted(permuted.tolist()) == labels.tolist()
    assert (permuted != labels).mean() > 0.5
    assert (permuted[1:] == permuted[:-1]).mean() > 0.75  # single labels permuted: 0.03


def walk(rng, n, step):
    """Points and labels that both drift, independently of each other, as overlapping windows do."""
    drift = np.cumsum(rng.normal(size=(n, 3)), 0) * step + rng.normal(size=(n, 3)) * 0.1
    return drift, np.repeat(rng.integers(0, 2, n // 20), 20)


def single(points, labels, rng, permutations=99):
    """p with single labels permuted, as if points were independent."""
    between = separation.distances(points)
    observed, *null = separation.gdv_of_distances(between, np.stack([labels, *(rng.permutation(labels) for _ in range(permutations))]))
    return (1 + (np.array(null) <= observed).sum()) / (permutations + 1)


def test_null_holds_its_level_for_dependent_points():
    rng = np.random.default_rng(1)
    p_runs, p_single = [], []
    for _ in range(60):
        points, labels = walk(rng, 200, 1.0)
        if len(set(labels.tolist())) < 2:
            continue
        p_runs.append(separation.permutation_null(points, labels, run=40, permutations=99, rng=rng)[2])
        p_single.append(single(points, labels, rng))
    assert np.mean(np.array(p_single) <= 0.05) > 0.4
    assert np.mean(np.array(p_runs) <= 0.05) <= 0.1


def test_runs_are_cut_only_where_the_label_changes():
    labels = np.repeat([0, 1, 0, 2, 1, 1, 2, 0], 3)
    for seed in range(20):
        permuted = separation.permute_runs(labels, 4, np.random.default_rng(seed))
        assert sorted(permuted.tolist()) == sorted(labels.tolist())
        lengths = np.diff([0, *(np.flatnonzero(permuted[1:] != permuted[:-1]) + 1), len(permuted)])
        assert (lengths[1:-1] % 3 == 0).all()
    assert separation.permute_runs(np.zeros(5), 2, np.random.default_rng(0)).tolist() == [0.0] * 5


def test_null_finds_a_planted_difference():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 3, 150)
    value, null, p = separation.permutation_null(np.eye(3)[labels] + rng.normal(size=(150, 3)), labels, run=5, permutations=199, rng=rng)
    assert p == pytest.approx(1 / 200)
    assert value < null.min()
    assert abs(null.mean()) < 0.01


def test_slope_over_depth():
    curve = np.array([[0.0, 1.0], [-0.1, 1.0], [-0.2, 1.0], [-0.3, 1.0]])
    assert separation.depth_slope(curve) == pytest.approx([-0.3, 0.0])
    assert separation.depth_slope(np.array([[0.0], [5.0], [0.0]])) == pytest.approx([0.0])
    with pytest.raises(NulliusError, match="two stages"):
        separation.depth_slope(curve[:1])


def test_simpler_relatives_agree_about_planted_classes_and_noise():
    rng = np.random.default_rng(6)
    labels = np.repeat(np.arange(3), 40)
    noise = rng.normal(size=(120, 5))
    apart = noise + 20 * np.eye(5)[labels]
    assert separation.silhouette(apart, labels) > 0.3 > 0.05 > separation.silhouette(noise, labels)
    assert separation.knn_purity(apart, labels) == 1.0
    assert separation.knn_purity(noise, labels) == pytest.approx(1 / 3, abs=0.08)
    half = rng.permutation(120) < 60
    assert separation.probe_hits(apart[half], labels[half], apart[~half], labels[~half]).mean() == 1.0
    assert separation.probe_hits(noise[half], labels[half], noise[~half], labels[~half]).mean() < 0.6


@pytest.mark.parametrize("method", ["pca", "mds", "t-sne"])
def test_projections_keep_far_groups_apart(method):
    rng = np.random.default_rng(7)
    labels = np.repeat([0, 1], 30)
    flat = separation.project(rng.normal(size=(60, 10)) + 10 * labels[:, None], method, seed=1)
    assert flat.shape == (60, 2)
    assert separation.knn_purity(flat, labels, 5) > 0.95
