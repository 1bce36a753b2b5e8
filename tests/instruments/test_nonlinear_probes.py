"""Nonlinear probes read what linear ones cannot, control tasks see through them, nested cross-validation chooses without looking."""

import numpy as np
import pytest
import torch

from nullius.errors import NulliusError, UsageError
from nullius.instruments import control_tasks, nonlinear_probes, probes


def crossed(seed=0, n=160, d=5):
    """Exclusive-or of two signs in layer 1, nothing in layer 0."""
    rng = np.random.default_rng(seed)
    signs = rng.choice([-1, 1], size=(n, 2))
    x = rng.normal(size=(2, n, d)) * 0.4
    x[1, :, :2] += signs
    return torch.tensor(x), (signs.prod(1) > 0).astype(int), np.arange(n) // 4


def test_an_exclusive_or_is_read_where_it_is_and_not_by_a_linear_probe():
    x, y, groups = crossed()
    folds = probes.grouped_folds(y, groups)
    deep, linear = (probes.correct(probes.cross_validate(x, y, folds, fit), y).mean(1) for fit in (nonlinear_probes.mlp(), probes.logistic))
    assert deep[1] > 0.9
    assert abs(deep[0] - 0.5) < 0.12
    assert abs(linear[1] - 0.5) < 0.12


def test_shuffled_labels_are_at_chance():
    x, y, groups = crossed()
    folds = probes.grouped_folds(y, groups)
    rows = np.stack([probes.shuffled_labels(y, folds, np.random.default_rng(seed)) for seed in range(6)])
    right = probes.correct(probes.cross_validate(x, rows, folds, nonlinear_probes.mlp(steps=100)), rows).mean()
    assert abs(right - 0.5) < 0.05


def test_probes_fitted_together_are_those_fitted_alone():
    x, y, _ = crossed()
    rows = torch.tensor(np.stack([y, 1 - y]))
    fit = nonlinear_probes.mlp(steps=20)
    both, one = fit(x, rows).scores(x), fit(x[:1], rows[:1]).scores(x[:1])
    assert both.shape == (2, 2, 160)
    torch.testing.assert_close(both[0, 0], one[0, 0])
    with pytest.raises(NulliusError, match="both labels"):
        fit(x, torch.zeros(1, 160))


def test_selectivity_sees_a_probe_that_learns_its_entities():
    """Entities lie in corners of their own: a probe can learn any label of theirs, so neither labelling is selective."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(12), 12)
    x = torch.tensor(4 * rng.normal(size=(12, 16))[groups] + 0.3 * rng.normal(size=(144, 16)))[None]
    empty = control_tasks.selectivity(x, probes.control_task(groups, rng), groups, rng, nonlinear_probes.mlp())
    assert abs(empty[0]) < 0.1
    y = rng.integers(2, size=144)
    x[..., 0] += 20 * torch.tensor(y - 0.5)
    real = control_tasks.selectivity(torch.tensor(rng.normal(size=(1, 144, 16))) + x[..., :1], y, groups, rng, nonlinear_probes.mlp())
    assert real[0] > 0.2


def test_nested_cross_validation_chooses_probe_and_layer_inside():
    x, y, groups = crossed()
    fits = {"linear": probes.logistic, "mlp": nonlinear_probes.mlp(steps=100)}
    found = control_tasks.nested(x, y, groups, fits)
    assert set(found.chosen) == {("mlp", 1)}
    assert found.correct.mean() > 0.9
    nothing = torch.tensor(np.random.default_rng(1).normal(size=(8, 160, 5)))  # eight layers to choose among: no optimism may be left
    assert abs(control_tasks.nested(nothing, y, groups).correct.mean() - 0.5) < 0.1
    with pytest.raises(UsageError, match="one probe"):
        control_tasks.nested(x, y, groups, {})
