"""Directions against scikit-learn and against what was planted; nothing is found in permuted classes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from nullius.errors import UsageError
from nullius.instruments import directions


def two_classes(seed=0, n=80, d=12):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 2)
    return torch.tensor(rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + 0.8 * labels[:, None]), labels


def told(seed=0, layers=3, groups=10, classes=4, d=16, strength=2.0, about=0.5):
    """States [layers, groups, classes, d]: orthogonal class directions from layer 1 on, and much that the group is about."""
    rng = np.random.default_rng(seed)
    truth = torch.tensor(np.linalg.qr(rng.normal(size=(d, classes)))[0].T)
    states = torch.tensor(about * rng.normal(size=(groups, 1, d)) + 0.3 * rng.normal(size=(layers, groups, classes, d)))
    states[1:] += strength * truth
    return states, truth


@pytest.mark.parametrize("shrinkage", [0.0, 0.3, None])
def test_lda_is_that_of_scikit_learn(shrinkage):
    x, y = two_classes()
    ours = directions.lda(x, y, shrinkage)
    if shrinkage is None:
        centred = np.concatenate([x.numpy()[y == c] - x.numpy()[y == c].mean(0) for c in (1, 0)])
        covariance, _ = ledoit_wolf(centred, assume_centered=True)
        theirs = np.linalg.solve(covariance, directions.difference_of_means(x, y).numpy())
    else:
        model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(x.numpy(), y)
        covariance = model.covariance_
        pooled = sum((y == c).mean() * np.cov(x.numpy()[y == c].T, bias=True) for c in (0, 1))
        level = np.trace(pooled) / len(pooled)
        theirs = np.linalg.solve((1 - shrinkage) * pooled + shrinkage * level * np.eye(len(pooled)), directions.difference_of_means(x, y))
        if shrinkage == 0:
            assert abs(float(directions.cosine(ours, torch.tensor(model.coef_[0])))) > 1 - 1e-6
    assert float(directions.cosine(ours, torch.as_tensor(theirs))) > 1 - 1e-8


def test_lda_of_all_layers_at_once_is_layer_by_layer():
    x, y = two_classes()
    both = directions.lda(torch.stack([x, x.flip(1)]), y)
    torch.testing.assert_close(both[1], directions.lda(x.flip(1), y))
    torch.testing.assert_close(both.norm(dim=-1), torch.ones(2, dtype=torch.float64))


def test_pca_is_that_of_scikit_learn():
    x, _ = two_classes()
    ours, theirs = directions.pca(x, 3), torch.tensor(PCA(3).fit(x.numpy()).components_)
    torch.testing.assert_close(directions.cosine(ours, theirs).abs(), torch.ones(3, dtype=torch.float64))
    with pytest.raises(UsageError, match="1 to 12"):
        directions.pca(x, 13)


def test_contrastive_pairs_recover_what_differs():
    rng = np.random.default_rng(0)
    truth = torch.tensor(rng.normal(size=20))
    base = torch.tensor(rng.normal(size=(50, 20)))
    other = base + torch.tensor(rng.uniform(0.5, 2, size=(50, 1))) * truth + 0.1 * torch.tensor(rng.normal(size=(50, 20)))
    for principal in (False, True):
        assert float(directions.cosine(directions.contrastive(other, base, principal=principal), truth)) > 0.99
    with pytest.raises(UsageError, match="as many on both sides"):
        directions.contrastive(base, other[:10])


def test_planted_classes_are_recovered_and_only_where_they_were_planted():
    states, truth = told()
    found = directions.group_contrast(states)
    centred = directions.unit(truth - truth.mean(0))
    assert float(directions.cosine(found[1:], centred).min()) > 0.97
    right = directions.leave_group_out(states)
    assert right[1:].mean() > 0.9
    assert right[0].mean() < 0.5
    states, _ = told(about=5)  # what the groups are about drowns the classes ...
    assert directions.leave_group_out(states)[1:].mean() < 0.6
    assert directions.leave_group_out(states, within=True)[1:].mean() > 0.95  # ... unless it is taken away
    assert directions.leave_group_out(states, within=True)[0].mean() < 0.5


def test_leave_group_out_is_a_loop_over_groups():
    states, _ = told(groups=5)
    right = directions.leave_group_out(states)
    for group in range(5):
        others = states[:, [g for g in range(5) if g != group]]
        said = directions.nearest(states[:, group], directions.group_contrast(others), others.mean((1, 2)))
        assert np.array_equal(right[:, group], (said == torch.arange(4)).double().numpy())


def test_permuted_classes_are_at_chance():
    rates = []
    for seed in range(20):
        states, _ = told(seed, layers=2, groups=12)
        rates.append(directions.leave_group_out(directions.permuted(states, np.random.default_rng(seed))).mean())
    assert abs(np.mean(rates) - 0.25) < 0.06


def test_arranged_states_and_bad_input():
    x = torch.arange(12.0).view(6, 2)
    found = directions.arranged(x, ["a", "b", "a", "b", "a", "b"], [1, 1, 0, 0, 2, 2])
    torch.testing.assert_close(found[1, 2], x[5])
    with pytest.raises(UsageError, match="do not fill"):
        directions.arranged(x, ["a"] * 6, [1, 1, 0, 0, 2, 2])
    with pytest.raises(UsageError, match="labels do not fit"):
        directions.lda(x, [1, 0])
    with pytest.raises(UsageError, match="label 1 and items with label 0"):
        directions.lda(x, [1] * 6)
    with pytest.raises(UsageError, match="two of each"):
        directions.group_contrast(x)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 6), st.integers(2, 5), st.integers(1, 8), st.integers(0, 99))
def test_contrasts_sum_to_zero_and_ignore_what_a_group_is_about(groups, classes, d, seed):
    rng = np.random.default_rng(seed)
    x = torch.tensor(rng.normal(size=(groups, classes, d)))
    moved = x + torch.tensor(rng.normal(size=(groups, 1, d)))
    torch.testing.assert_close(directions.group_contrast(x), directions.group_contrast(moved), atol=1e-6, rtol=1e-6)
    assert float(directions._contrasts(x).sum(-2).abs().max()) < 1e-9


def test_projection_is_the_length_along_the_unit_vector():
    x = torch.randn(2, 5, 7)
    found = directions.projection(x, 3 * torch.eye(7)[:2].expand(2, 2, 7))
    torch.testing.assert_close(found, x[..., :2])
