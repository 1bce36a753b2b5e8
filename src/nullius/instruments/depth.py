"""Depth estimators: at which relative depth does a concept become linearly decodable?

All start from a table `correct` [layers, n]: whether the probe of each layer, fitted on earlier stages of the split, was right about each
item (`nullius.instruments.probes.HeldOut`). What is returned per item is so for the tested ones alone, those after stage 0, in their order:
[tested]. Relative depth is i/L for layer i = 0 … L−1 of L.

*Rise depth* is the estimator with per-item samples, on which verdicts rest. Let layer l* be where accuracy peaks, a_i the item's
correctness there, and c_i(l) its correctness at layer l. Then

    rise depth = Σ_i (1/L) Σ_{l < l*} (a_i − c_i(l))  /  Σ_i (a_i − 1/2),

the accuracy still to be gained, summed over the layers before the peak and taken relative to what there is to gain. A curve that
stays at chance up to layer k and jumps to its plateau there has rise depth k/L; a gradual rise has its centre of mass; later losses
do not count, and the height of the plateau cancels. l* is chosen for each stage on the *earlier* ones.

*Onset depth* is the smallest relative depth within one standard error of the maximum. The paper's own jump and converging points
(arXiv 2404.07066) are here for comparison alone: the first is undefined where layer 0 is already high and takes noise near chance for a
jump, the second is nearly always the last layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nullius.instruments.probes import Split

Floats = NDArray[np.float64]
CHANCE = 0.5


@dataclass(frozen=True)
class Depth:
    """Rise depth of one task with per-item samples.

    samples: [tested], whose mean is `estimate` and whose variance is that of the estimate's linearisation (each item's influence on
    the ratio), so that resampling them as if they were plain measurements gives the interval of the ratio to first order.
    peak: [tested], the layer chosen for each item on earlier stages. groups: [tested], what items share.
    """

    estimate: float
    samples: Floats
    peak: NDArray[np.int64]
    groups: NDArray


def peak_layers(correct: Floats, split: Split) -> NDArray[np.int64]:
    """Return for each tested item the layer with the best accuracy in all earlier stages (the first of equals)."""
    peak = np.empty(correct.shape[1], dtype=np.int64)
    for stage in range(1, split.stages.max() + 1):
        peak[split.stages == stage] = correct[:, split.stages < stage].mean(1).argmax()
    return peak[split.tested]


def at_peak(correct: Floats, split: Split) -> Floats:
    """Return each tested item's correctness at the layer chosen before: accuracy at the best layer without its optimism.

    Of several tables [tables, layers, n] the layer is chosen for each alike, and the mean over tables returned.
    """
    if correct.ndim == 3:
        return np.mean([at_peak(table, split) for table in correct], axis=0)
    return correct[peak_layers(correct, split), np.flatnonzero(split.tested)]


def standard_error(values: Floats, groups: ArrayLike) -> Floats:
    """Return the standard error of the mean over the last axis, items that share a group counted as one draw (CR1)."""
    labels = np.asarray(groups)
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.r_[True, labels[order][1:] != labels[order][:-1]])
    n_groups, n = len(starts), values.shape[-1]
    if n_groups < 2:
        return np.full(values.shape[:-1], np.inf)
    totals = np.add.reduceat((values - values.mean(-1, keepdims=True))[..., order], starts, axis=-1)
    return np.sqrt((totals**2).sum(-1) * n_groups / (n_groups - 1)) / n


def decodable(correct: Floats, split: Split, *controls: Floats) -> bool:
    """Return whether accuracy at the peak is above chance, and above each control's, by more than two standard errors.

    correct: [layers, n]. controls: [layers, n] or [tables, layers, n], each with a peak chosen alike: shuffled labels, random weights, words.
    """
    best, groups = at_peak(correct, split), split.groups[split.tested]
    gains = [best - CHANCE, *(best - at_peak(control, split) for control in controls)]
    return all(bool(gain.mean() > 2 * standard_error(gain, groups)) for gain in gains)


def rise_depth(correct: Floats, split: Split) -> Depth | None:
    """Return the rise depth of the module's docstring; ask `decodable` first, of an undecodable concept it is noise over noise.

    correct: [layers, n]. None when accuracy at the peak is not even above chance.
    """
    peak, best, tested = peak_layers(correct, split), at_peak(correct, split), correct[:, split.tested]
    gained = best - CHANCE
    if gained.mean() <= 0:
        return None
    before = np.arange(len(correct))[:, None] < peak
    to_gain = ((best - tested) * before).sum(0) / len(correct)
    estimate = to_gain.mean() / gained.mean()
    samples = estimate + (to_gain - estimate * gained) / gained.mean()
    return Depth(float(estimate), samples, peak, split.groups[split.tested])


def onset_depth(correct: Floats, split: Split, *controls: Floats) -> float | None:
    """Return the smallest i/L whose accuracy is within one standard error of the maximum; None when never decodable."""
    if not decodable(correct, split, *controls):
        return None
    tested = correct[:, split.tested]
    accuracy = tested.mean(1)
    top = int(accuracy.argmax())
    within = accuracy >= accuracy[top] - standard_error(tested[top], split.groups[split.tested])
    return float(within.argmax() / len(correct))


def contrast(deep: Sequence[Depth], shallow: Sequence[Depth]) -> tuple[Floats, list[str]]:
    """Return per-item samples [n] and group labels [n] of mean depth of the tasks `deep` minus mean depth of the tasks `shallow`.

    Every task weighs the same in its class. The mean over all n samples is the contrast, and each item's sample deviates from it by
    the item's influence, n/n_t · w_t · (sample − depth), so that a bootstrap over groups gives the interval of the contrast. Groups are
    those within a task.
    """
    tasks = [(depth, 1 / len(deep)) for depth in deep] + [(depth, -1 / len(shallow)) for depth in shallow]
    return _combine(tasks)


def change(after: Sequence[Depth], before: Sequence[Depth]) -> tuple[Floats, list[str]]:
    """Return per-item samples [n] and group labels [n] of the mean change in depth, task by task and item by item the same stimuli."""
    pairs = [Depth(a.estimate - b.estimate, a.samples - b.samples, a.peak, b.groups) for a, b in zip(after, before, strict=True)]
    return _combine([(pair, 1 / len(pairs)) for pair in pairs])


def _combine(tasks: Sequence[tuple[Depth, float]]) -> tuple[Floats, list[str]]:
    total = sum(weight * depth.estimate for depth, weight in tasks)
    n = sum(len(depth.samples) for depth, _ in tasks)
    parts = [total + weight * n / len(depth.samples) * (depth.samples - depth.estimate) for depth, weight in tasks]
    labels = [f"{task}:{group}" for task, (depth, _) in enumerate(tasks) for group in depth.groups]
    return np.concatenate(parts), labels


def average(draws: Sequence[Depth]) -> Depth:
    """Return the mean of several depths of the same tested items, which differ by a random draw (of flipped labels, say)."""
    samples = np.mean([draw.samples for draw in draws], axis=0)
    return Depth(float(np.mean([draw.estimate for draw in draws])), samples, draws[0].peak, draws[0].groups)


def never(split: Split) -> Depth:
    """Return the depth of a concept that is not gained at all: 1, the end of the network, for every tested item."""
    groups = split.groups[split.tested]
    return Depth(1.0, np.ones(len(groups)), np.zeros(len(groups), dtype=np.int64), groups)


def delayed(correct: Floats, control: Floats, layers: int) -> Floats:
    """Return the table as it would be if everything became decodable `layers` layers later; `control` (chance) fills the gap."""
    return np.concatenate([control[:layers], correct[: len(correct) - layers]])


def jump_point(accuracy: ArrayLike) -> float | None:
    """Return the paper's J: the smallest i/L with accuracy(i)/accuracy(i−1) ≥ 1.1, None when there is no such jump."""
    ratio = _variation(accuracy)
    jumps = np.flatnonzero(ratio >= 1.1)
    return float((jumps[0] + 1) / (len(ratio) + 1)) if len(jumps) else None


def converging_point(accuracy: ArrayLike) -> float | None:
    """Return the paper's C: the largest i/L with |accuracy(i)/accuracy(i−1) − 1| < 0.03, None when it never settles."""
    ratio = _variation(accuracy)
    calm = np.flatnonzero(np.abs(ratio - 1) < 0.03)
    return float((calm[-1] + 1) / (len(ratio) + 1)) if len(calm) else None


def _variation(accuracy: ArrayLike) -> Floats:
    curve = np.asarray(accuracy, dtype=np.float64)
    return curve[1:] / np.maximum(curve[:-1], 1e-12)
