"""Depth estimators recover the layer from which a direction was planted, and nothing where none was."""

import numpy as np
import pytest
import torch

from nullius.instruments import depth, probes

LAYERS, BLOCKS = 20, 60


def stream(rng, onset, strength, d=48, ramp=0):
    """A synthetic residual stream whose label direction is added from layer `onset` on (growing over `ramp` layers): [layers, n, d]."""
    labels = np.tile([0, 1, 0, 1], BLOCKS)
    groups = np.repeat(np.arange(BLOCKS), 4)
    direction = rng.normal(size=d)
    direction /= np.linalg.norm(direction)
    noise = rng.normal(size=(len(labels), d)) + rng.normal(size=(BLOCKS, d))[groups]
    growth = np.zeros(LAYERS)
    if onset is not None:
        growth[onset:] = np.clip((np.arange(LAYERS - onset) + 1) / (ramp + 1), 0, 1)
    x = (
        noise[None]
        + 0.7 * rng.normal(size=(LAYERS, len(labels), d))
        + strength * growth[:, None, None] * np.outer(2 * labels - 1, direction)
    )
    return torch.tensor(x), labels, groups


@pytest.mark.parametrize("onset", [0, 4, 11, 17])
@pytest.mark.parametrize("strength", [2.0, 5.0])
def test_planted_onset_is_found_within_a_layer(onset, strength):
    rng = np.random.default_rng(onset)
    found = probes.held_out(*stream(rng, onset, strength), rng)
    assert depth.decodable(found.correct, found.split, found.null)
    rise = depth.rise_depth(found.correct, found.split)
    first = depth.onset_depth(found.correct, found.split, found.null)
    assert abs(first * LAYERS - onset) <= (1 if strength > 3 else 5)  # a weak signal's first layer may lie below its best by chance
    error = depth.standard_error(rise.samples, rise.groups)
    assert abs(rise.estimate * LAYERS - onset) <= (1 if strength > 3 else max(1, 3 * error * LAYERS))
    assert rise.samples.mean() == pytest.approx(rise.estimate)


def test_never_injected_is_undefined():
    alarms = 0
    for seed in range(20):
        rng = np.random.default_rng(100 + seed)
        found = probes.held_out(*stream(rng, None, 0.0), rng)
        alarms += depth.decodable(found.correct, found.split, found.null)
    assert alarms <= 2  # two standard errors, against chance and against shuffled labels: below 2.5 % each
    rng = np.random.default_rng(100)
    found = probes.held_out(*stream(rng, None, 0.0), rng)
    assert depth.onset_depth(found.correct, found.split, found.null) is None


def test_exclusive_or_is_undecodable_until_it_is_composed():
    """Two bits are there from the start, their exclusive-or from layer 9 on: a linear probe must not find it before."""
    rng = np.random.default_rng(1)
    a, b = np.tile([0, 0, 1, 1], BLOCKS), np.tile([0, 1, 0, 1], BLOCKS)
    labels, groups = a ^ b, np.repeat(np.arange(BLOCKS), 4)
    x = rng.normal(size=(LAYERS, len(labels), 32)) * 0.3
    x[:, :, 0] += a * 3
    x[:, :, 1] += b * 3
    x[9:, :, 2] += labels * 3
    found = probes.held_out(torch.tensor(x), labels, groups, rng)
    assert abs(depth.rise_depth(found.correct, found.split).estimate * LAYERS - 9) <= 1
    assert depth.onset_depth(found.correct, found.split, found.null) * LAYERS == pytest.approx(9, abs=1)


def test_height_of_the_plateau_does_not_move_rise_depth():
    """Labels flipped at random leave less to gain, in the same layers."""
    rng = np.random.default_rng(2)
    x, labels, groups = stream(rng, 8, 5.0)
    clean = probes.held_out(x, labels, groups, rng)
    noisy = np.where(rng.random(len(labels)) < 0.15, 1 - labels, labels)
    dirty = probes.held_out(x, noisy, groups, rng)
    assert dirty.correct[12:].mean() < clean.correct[12:].mean() - 0.15
    difference, clusters = depth.change([depth.rise_depth(dirty.correct, dirty.split)], [depth.rise_depth(clean.correct, clean.split)])
    assert abs(difference.mean()) < 3 * depth.standard_error(difference, np.array(clusters)) < 0.15


def test_samples_carry_the_variance_of_the_ratio():
    """The standard error of the per-item samples is the spread of the estimate over repeated experiments."""
    rng = np.random.default_rng(3)
    estimates, errors = [], []
    split = probes.forward_split(np.arange(300) % 2, np.arange(300))
    for _ in range(200):
        skill = np.where(np.arange(10) < 4, 0.5, 0.85)[:, None]
        correct = (rng.random((10, 300)) < skill).astype(float)
        found = depth.rise_depth(correct, split)
        estimates.append(found.estimate)
        errors.append(float(depth.standard_error(found.samples, found.groups)))
    assert np.mean(estimates) == pytest.approx(0.4, abs=0.02)
    assert np.mean(errors) == pytest.approx(np.std(estimates), rel=0.3)


def test_delay_and_contrast_by_hand():
    split = probes.Split(np.repeat([0, 0, 1, 2], 10), np.repeat([0, 1, -1, -1], 10), np.repeat(np.arange(20), 2))
    null = np.tile([0.0, 1.0], (10, 20))

    def step(onset):
        return np.where(np.arange(10)[:, None] < onset, null, 1.0)

    early, late = (depth.rise_depth(step(k), split) for k in (2, 7))
    assert (early.estimate, late.estimate) == (pytest.approx(0.2), pytest.approx(0.7))
    samples, clusters = depth.contrast([late], [early])
    assert samples.mean() == pytest.approx(0.5)
    assert len(samples) == 40
    assert len(set(clusters)) == 20
    shifted = depth.delayed(step(2), null, 3)
    assert depth.rise_depth(shifted, split).estimate == pytest.approx(0.5)
    samples, _ = depth.change([depth.rise_depth(shifted, split)], [early])
    assert samples.mean() == pytest.approx(0.3)
    assert depth.never(split).estimate == 1


def test_later_stages_do_not_choose_the_layer():
    """Layer 3 is right about everything in stage 0, layer 5 about everything after it: the choice is layer 3."""
    split = probes.Split(np.repeat([0, 1], 20), np.r_[np.arange(20) % 2, np.full(20, -1)], np.arange(40))
    correct = np.zeros((8, 40))
    correct[3, :20] = 1
    correct[5, 20:] = 1
    assert (depth.peak_layers(correct, split) == 3).all()
    assert (depth.at_peak(np.stack([correct, 1 - correct]), split) == 0.5).all()
    assert depth.at_peak(correct, split).sum() == 0


def test_contrast_weighs_tasks_alike_whatever_their_size():
    small, large, other = (depth.Depth(e, np.full(n, e), np.zeros(n, int), np.arange(n)) for e, n in ((0.2, 10), (0.6, 1000), (0.1, 40)))
    assert depth.contrast([small, large], [other])[0].mean() == pytest.approx(0.3)


def test_intervals_cover_the_planted_depth():
    """The estimate is within 1.96 of its standard errors about 95 times in 100."""
    z = []
    for seed in range(60):
        rng = np.random.default_rng(1000 + seed)
        labels, groups = np.tile([0, 1], 60), np.arange(120)
        x = rng.normal(size=(10, 120, 24))
        x[6:, :, 3] += 12 * labels
        found = probes.held_out(torch.tensor(x), labels, groups, rng)
        rise = depth.rise_depth(found.correct, found.split)
        z.append((rise.estimate - 0.6) / depth.standard_error(rise.samples, rise.groups))
    assert 0.75 < np.std(z) < 1.3
    assert abs(np.mean(z)) < 0.45


def test_papers_points_by_hand():
    curve = [0.5, 0.52, 0.60, 0.80, 0.81, 0.80]
    assert depth.jump_point(curve) == pytest.approx(2 / 6)  # .60/.52 is the first ratio of 1.1
    assert depth.converging_point(curve) == pytest.approx(5 / 6)
    assert depth.jump_point([0.9, 0.91, 0.92]) is None
    assert depth.converging_point([0.5, 0.6, 0.8]) is None


def test_standard_error_counts_groups():
    values = np.repeat([0.0, 1.0, 0.0, 1.0, 1.0], 20)
    by_group = depth.standard_error(values, np.repeat(np.arange(5), 20))
    means = np.array([0.0, 1.0, 0.0, 1.0, 1.0])
    assert by_group == pytest.approx(means.std(ddof=1) / np.sqrt(5))
    assert depth.standard_error(values, np.zeros(100)) == np.inf
