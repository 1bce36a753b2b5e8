"""Probes agree with scikit-learn, find what is planted, and find nothing where there is nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from nullius.errors import NulliusError
from nullius.instruments import control_tasks, probes


def features(rng, layers, n, d):
    """Columns of very different size and mean, as late layers have them."""
    return torch.tensor(rng.normal(size=(layers, n, d)) * rng.gamma(1.0, 5.0, d) + rng.normal(size=d) * 20)


@pytest.mark.parametrize(("n", "d", "c"), [(60, 150, 1.0), (60, 150, 0.01), (200, 30, 1.0), (200, 30, 100.0), (50, 50, 1.0)])
def test_logistic_is_scikit_learns(n, d, c):
    rng = np.random.default_rng(n + d)
    x, y = features(rng, 3, n, d), rng.integers(0, 2, (2, n))
    found = probes.logistic(x, torch.tensor(y), penalty=c, tolerance=1e-9).scores(x)
    for layer in range(3):
        for row in range(2):
            reference = make_pipeline(StandardScaler(), LogisticRegression(C=c, solver="newton-cholesky", tol=1e-12, max_iter=1000))
            expected = reference.fit(x[layer].numpy(), y[row]).decision_function(x[layer].numpy())
            np.testing.assert_allclose(found[row, layer].numpy(), expected, atol=2e-6, rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(4, 40), d=st.integers(1, 40), logc=st.floats(-3, 2), seed=st.integers(0, 2**31), ones=st.integers(1, 3))
def test_gradient_vanishes_at_the_solution(n, d, logc, seed, ones):
    """The optimum of the stated objective, by automatic differentiation: separable or not, unbalanced, with a constant column."""
    rng = np.random.default_rng(seed)
    x = torch.tensor(rng.normal(size=(1, n, d)))
    x[..., 0] = 7.0
    y = torch.tensor(np.arange(n)[None] < ones).long()
    c = 10**logc
    probe = probes.logistic(x, y, penalty=c, tolerance=1e-9)
    deviation = x.std(1, correction=0, keepdim=True)
    z = torch.where(deviation > 1e-9, (x - x.mean(1, keepdim=True)) / deviation.clamp(min=1e-300), 0.0)
    w = (probe.weights[:, 0] * torch.where(deviation[:, 0] > 1e-9, deviation[:, 0], 1.0)).requires_grad_()
    b = (probe.bias[:, 0] + (x.mean(1) * probe.weights[:, 0]).sum(1)).requires_grad_()
    logits = torch.einsum("lnd,ld->ln", z, w) + b[:, None]
    loss = c * (torch.nn.functional.softplus(logits) - y * logits).sum() + w.square().sum() / 2
    gradients = torch.autograd.grad(loss, (w, b))
    assert max(float(g.abs().max()) for g in gradients) < 1e-5 * (1 + c * n)


def test_mass_mean_splits_two_gaussians_half_way():
    x = torch.tensor([[[0.0, 0.0], [0.0, 2.0], [4.0, 0.0], [4.0, 2.0]]])
    probe = probes.mass_mean(x, torch.tensor([[0, 0, 1, 1]]))
    assert torch.equal(probe.weights[0, 0], torch.tensor([4.0, 0.0], dtype=torch.float64))
    assert probe.scores(torch.tensor([[[2.0, 9.0]]]))[0, 0, 0] == 0


@pytest.mark.parametrize("fit", [probes.logistic, probes.mass_mean])
def test_random_labels_give_chance(fit):
    rng = np.random.default_rng(3)
    n, layers = 200, 25
    groups = np.repeat(np.arange(n // 4), 4)
    x, labels = features(rng, layers, n, 80), rng.permutation(np.arange(n) % 2)
    folds = probes.grouped_folds(labels, groups)
    right = probes.correct(probes.cross_validate(x, labels, folds, fit), labels).sum(1)
    inside = stats.binom.ppf(0.0005, n, 0.5) <= right
    assert (inside & (right <= stats.binom.ppf(0.9995, n, 0.5))).all()
    assert abs(right.sum() / (n * layers) - 0.5) < 0.03


@pytest.mark.parametrize("fit", [probes.logistic, probes.mass_mean])
def test_planted_direction_is_read_on_unseen_groups(fit):
    rng = np.random.default_rng(4)
    labels, groups = np.tile([0, 1], 60), np.repeat(np.arange(30), 4)
    x = torch.tensor(rng.normal(size=(4, 120, 20)))
    x[2:, :, 5] += torch.tensor(labels * 10.0)
    found = probes.held_out(x, labels, groups, rng)
    right = found.correct if fit is probes.logistic else probes.validate(x, labels, found.split, fit)
    assert (right[2:].mean(1) > 0.85).all()
    assert (np.abs(right[:2].mean(1) - 0.5) < 0.17).all()
    assert (np.abs(found.null.mean(2) - 0.5) < 0.2).all()
    assert found.null.mean() == pytest.approx(0.5, abs=0.04)


def test_selectivity_tells_a_concept_from_an_identity():
    """Layer 0 holds who the entity is and nothing of the label; layer 1 the label and nothing of the entity."""
    rng = np.random.default_rng(5)
    groups, labels = np.repeat(np.arange(20), 10), np.tile([0, 1], 100)
    x = torch.tensor(rng.normal(size=(2, 200, 30)) * 0.3)
    x[0, :, :20] += torch.tensor(np.eye(20)[groups] * 3)
    x[1, :, 0] += torch.tensor(labels * 3.0)
    found = probes.selectivity(x, labels, groups, rng)
    assert found[0] < -0.3
    assert found[1] > 0.3


@pytest.mark.parametrize("fit", [probes.logistic, probes.mass_mean])
def test_forward_validation_has_the_variance_of_a_coin_and_cross_validation_has_not(fit):
    """500 unlearnable data sets (as layers): the variance of their accuracy, in units of the binomial one."""
    rng = np.random.default_rng(0)
    n, sets = 100, 500
    x, labels = torch.tensor(rng.normal(size=(sets, n, 30))), np.tile([0, 1], n // 2)
    split = probes.forward_split(labels, np.arange(n))
    forward = probes.validate(x, labels, split, fit)[:, split.tested]
    crossed = probes.correct(probes.cross_validate(x, labels, rng.permutation(np.arange(n) % 5), fit), labels)
    assert forward.mean() == pytest.approx(0.5, abs=0.02)
    assert forward.mean(1).var() * forward.shape[1] / 0.25 == pytest.approx(1, abs=0.25)
    assert crossed.mean(1).var() * n / 0.25 == pytest.approx(1 + 2 / np.pi, abs=0.3)


def test_forward_split_trains_on_the_past_and_keeps_groups_together():
    rng = np.random.default_rng(9)
    groups, labels = np.repeat(np.arange(30), 4), np.tile([0, 1], 60)
    split = probes.forward_split(labels, groups)
    assert split.tested.mean() == pytest.approx(0.6, abs=0.05)
    read = np.zeros(120)
    for training, reading in split.parts():
        assert not set(groups[training]) & set(groups[reading])
        assert split.stages[training].max() <= split.stages[reading].min()
        assert set(labels[training]) == {0, 1}
        read += reading
    assert (read == 1).all()
    shuffled = probes.held_out(torch.tensor(rng.normal(size=(2, 120, 5))), labels, groups, rng)
    assert shuffled.correct.shape == (2, 120)
    assert shuffled.null.shape == (5, 2, 120)


def test_folds_keep_groups_together_and_classes_balanced():
    rng = np.random.default_rng(6)
    groups = rng.integers(0, 40, 300)
    labels = rng.integers(0, 2, 300)
    folds = probes.grouped_folds(labels, groups)
    assert set(folds) == set(range(5))
    assert all(len(set(folds[groups == group])) == 1 for group in set(groups))
    assert all(0.35 < labels[folds == fold].mean() < 0.65 for fold in range(5))
    shuffled = probes.shuffled_labels(labels, folds, rng)
    assert (shuffled != labels).any()
    assert all(shuffled[folds == fold].sum() == labels[folds == fold].sum() for fold in range(5))


def test_control_task_gives_each_entity_one_label_and_half_of_them_each():
    groups = np.repeat(["a", "b", "c", "d", "e", "f"], 5)
    labels = probes.control_task(groups, np.random.default_rng(0))
    assert all(len(set(labels[groups == group])) == 1 for group in set(groups))
    assert labels.sum() == 15


def test_layers_in_chunks_give_the_same_scores(monkeypatch):
    rng = np.random.default_rng(7)
    x, labels = features(rng, 5, 40, 10), np.tile([0, 1], 20)
    folds = probes.grouped_folds(labels, np.arange(40))
    whole = probes.cross_validate(x, labels, folds)
    monkeypatch.setattr(probes, "CHUNK", 800)
    np.testing.assert_allclose(probes.cross_validate(x, labels, folds), whole, atol=1e-4)


def test_clear_errors():
    rng = np.random.default_rng(8)
    labels = np.tile([0, 1], 10)
    with pytest.raises(NulliusError, match="at least 5 groups, got 2"):
        probes.grouped_folds(labels, np.repeat([0, 1], 10))
    folds = probes.grouped_folds(labels, np.arange(20))
    broken = features(rng, 3, 20, 4)
    broken[1, 3, 2] = float("inf")
    with pytest.raises(NulliusError, match=r"layers \[1\] are not finite"):
        probes.cross_validate(broken, labels, folds)
    with pytest.raises(NulliusError, match="should be"):
        probes.cross_validate(broken[:, :10], labels, folds)
    with pytest.raises(NulliusError, match="both labels"):
        probes.logistic(features(rng, 1, 20, 4), torch.zeros(1, 20))


def test_nested_validation_reads_a_fold_of_one_class_and_learns_nothing_of_it():
    """Six groups of one class each: a held-out fold has one class. Its items must not move what is learnt from the others."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(6), 4)
    labels = (groups < 3).astype(int)
    x = torch.tensor(rng.normal(size=(2, 24, 4)))
    x[1, :, 0] += torch.tensor(6.0 * labels)
    found = control_tasks.nested(x, labels, groups, outer=6, inner=5)
    assert found.correct.mean() > 0.9
    assert {layer for _, layer in found.chosen} == {1}
    far = x.clone()
    far[:, groups == 5] *= 1e6  # what is read has no part in the standardisation
    plain, moved = (probes.fit_and_score(side, labels, [(groups != 5, groups != 5)]) for side in (x, far))
    assert np.array_equal(plain[:, groups != 5], moved[:, groups != 5])
    assert np.isnan(plain[:, groups == 5]).all()


def test_many_control_tasks_tell_a_concept_from_what_a_probe_learns_by_itself():
    """Entities lie along dimensions of their own: any label of theirs can be learnt, and one control task alone differs from the next."""
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(12), 10)
    labels = rng.integers(2, size=120)
    x = torch.nn.functional.one_hot(torch.tensor(groups)).double()[None] + 0.5 * torch.tensor(rng.normal(size=(1, 120, 12)))
    concept = torch.cat([x, 3.0 * torch.tensor(labels)[None, :, None] + torch.tensor(rng.normal(size=(1, 120, 1)))], -1)
    real = control_tasks.against_controls(concept, labels, groups, rng, controls=39)
    assert real.p[0] == pytest.approx(1 / 40)
    assert real.selectivity[0] == pytest.approx(real.real[0] - real.control.mean())
    empty = [control_tasks.against_controls(x, probes.control_task(groups, rng), groups, rng, controls=19).p[0] for _ in range(20)]
    assert np.mean(np.array(empty) <= 0.05) <= 0.15
    assert 0.3 < np.mean(empty) < 0.8  # uniform in expectation: (controls + 2) / (2 · (controls + 1))
    one = probes.selectivity(concept, labels, groups, np.random.default_rng(2))
    same = control_tasks.selectivity(concept, labels, groups, np.random.default_rng(2), probes.logistic)
    assert np.array_equal(one, same)
