"""LEACE: nothing linear is left, nothing more is taken than must be, and what was not there is not erased."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from nullius.errors import UsageError
from nullius.instruments import erasure, taps
from nullius.instruments.interventions import applied
from nullius.instruments.where import Where


def data(seed=0, n=400, d=20, classes=3):
    rng = np.random.default_rng(seed)
    z = rng.integers(classes, size=n)
    x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + 3 * rng.normal(size=(classes, d))[z]
    return torch.tensor(x), torch.tensor(z)


def covariance_with(x, z):
    hot = torch.nn.functional.one_hot(z).double()
    return (x - x.mean(0)).T @ (hot - hot.mean(0)) / len(x)


def test_after_erasure_a_linear_probe_is_at_chance():
    x, z = data()
    erased = erasure.leace(x, z)(x)
    assert covariance_with(erased, z).abs().max() < 1e-9
    before = LogisticRegression(max_iter=3000).fit(x, z).score(x, z)
    after = LogisticRegression(max_iter=3000).fit(erased, z).score(erased, z)
    assert before > 0.9
    assert after <= np.bincount(z).max() / len(z) + 0.01  # the most frequent class, even on the items that it trained on
    torch.testing.assert_close(erased.mean(0), x.mean(0))


def test_it_is_the_smallest_change_of_all_affine_maps_that_do_so():
    x, z = data()
    eraser = erasure.leace(x, z)
    cost = float((eraser(x) - x).square().sum(1).mean())
    cross = covariance_with(x, z)
    q = torch.linalg.svd(cross, full_matrices=True).U[:, :2]
    orthogonal = x - (x - x.mean(0)) @ q @ q.T  # SAL: as good at erasing, without regard to size
    assert covariance_with(orthogonal, z).abs().max() < 1e-9
    assert cost < float((orthogonal - x).square().sum(1).mean())
    generator = torch.Generator().manual_seed(0)
    base = torch.eye(20, dtype=torch.float64) - eraser.left @ eraser.right
    free = torch.eye(20, dtype=torch.float64) - q @ q.T  # maps N free erase nothing back: N free Σ_xz = 0
    for size in (1e-3, 1e-1, 1.0):
        for _ in range(10):
            other = base + size * torch.randn(20, 20, generator=generator, dtype=torch.float64) @ free
            changed = (x - x.mean(0)) @ other.T + x.mean(0)
            assert covariance_with(changed, z).abs().max() < 1e-8
            assert float((changed - x).square().sum(1).mean()) > cost


def test_two_classes_cost_one_direction_at_most_and_equal_means_none():
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=(4000, 10)))
    z = torch.tensor(rng.integers(2, size=4000))
    taken = float((erasure.leace(x, z)(x) - x).square().sum(1).mean())
    assert 0.9 < taken < 1.1  # chance differences of ten dimensions of variance 1: one is taken, whole
    exactly = torch.cat([x, x]), torch.cat([torch.zeros(4000), torch.ones(4000)]).long()
    torch.testing.assert_close(erasure.leace(*exactly)(x), x)


def test_streaming_is_the_same_and_so_are_singular_states():
    x, z = data()
    moments = erasure.Moments(3)
    for start in range(0, 400, 90):
        moments.update(x[start : start + 90], z[start : start + 90])
    torch.testing.assert_close(moments.eraser()(x), erasure.leace(x, z)(x))
    wide = torch.cat([x, x[:, :5] * 2, torch.zeros(400, 3, dtype=torch.float64)], 1)
    erased = erasure.leace(wide, z)(wide)
    assert covariance_with(erased, z).abs().max() < 1e-8
    few = wide[:12]  # fewer states than dimensions
    assert covariance_with(erasure.leace(few, z[:12])(few), z[:12]).abs().max() < 1e-8


def test_it_acts_in_a_running_model(toy):
    batch = toy.encode(["one river", "two rivers", "three doctors", "four letters"])
    states = taps.read(toy, batch, ["resid_post"], [1])["resid_post"][0]
    eraser = erasure.leace(states, [0, 0, 1, 1])
    with applied(toy, [erasure.erase(Where("resid_post", 1), eraser)]):
        found = taps.read(toy, batch, ["resid_post"], [1])["resid_post"][0]
    torch.testing.assert_close(found, eraser(states))
    assert (found[:2].mean(0) - found[2:].mean(0)).abs().max() < 1e-4
    with pytest.raises(UsageError, match="whole site"):
        erasure.erase(Where("z", 1, heads=[0]), eraser)


def test_bad_input():
    with pytest.raises(UsageError, match="two classes"):
        erasure.Moments(1)
    with pytest.raises(UsageError, match="labels between 0 and 1"):
        erasure.Moments(2).update(torch.zeros(3, 2), [0, 1, 2])
    with pytest.raises(UsageError, match="update"):
        erasure.Moments(2).eraser()
