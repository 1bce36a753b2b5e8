"""Linear probes on every layer at once: can a label be read off the hidden state, and where?

A probe is one weight vector and one bias per layer. All layers and all labellings (the real labels, shuffled ones, a control task)
are fitted together, so that one pass over the data gives the whole curve of accuracy against depth.

References: Alain and Bengio 2016 (arXiv 1610.01644), linear probes of each layer; Hewitt and Liang 2019 (arXiv 1909.03368), control
tasks and selectivity; Marks and Tegmark 2023 (arXiv 2310.06824), the mass-mean probe; Böhning 1992, the bound on the Hessian of the
logistic likelihood that the solver rests on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from nullius.errors import NulliusError, UsageError
from nullius.instruments import checks

Ints = NDArray[np.int64]
CHUNK = 2**27  # float64 numbers (1 GB) that a standardised copy of a few layers may hold at a time
STEPS = 100_000  # of gradient descent; some 30 are usual


@dataclass(frozen=True)
class Probes:
    """One linear probe per layer and labelling, in the units of the features it was fitted on.

    weights: [layers, labellings, d]. bias: [layers, labellings]. A positive score means label 1; of a logistic probe it is the log odds.
    """

    weights: Tensor
    bias: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """Return scores [labellings, layers, items] of features [layers, items, d]. Raises UsageError for other layers or another width."""
        layers, _, d = self.weights.shape
        if features.ndim != 3 or (features.shape[0], features.shape[2]) != (layers, d):
            raise UsageError(f"these probes read features [{layers}, items, {d}]; got {list(features.shape)}")
        raw = torch.einsum("lnd,lrd->rln", features.to(self.weights), self.weights)
        return raw + self.bias.T[:, :, None]


Fit = Callable[[Tensor, Tensor], Probes]  # (features [layers, n, d], labels [labellings, n])


def logistic(features: Tensor, labels: Tensor, penalty: float | None = None, tolerance: float = 1e-6) -> Probes:
    """Fit L2-penalised logistic probes on standardised features, for all layers and labellings at once.

    features: [layers, n, d]. labels: [labellings, n] of 0 and 1. penalty: scikit-learn's `C`, the inverse strength; the objective is
    |w|²/2 + C Σ log(1 + exp(−y(w·x + b))), the bias free, x standardised by the mean and deviation of these n items. The default 1/d
    is the prior under which w·x has unit variance, whatever the width. tolerance: largest gradient left, in preconditioned units.

    Solved in float64 in at most min(n, d) dimensions. The Hessian never exceeds XᵀX/4 + I/C (Böhning); whitened by this bound, every
    problem has curvature in (0, 1] and one accelerated gradient descent serves them all. Raises NulliusError for a labelling with one class only,
    for labels that are not 0 or 1, features that are not finite, and a penalty that is not above 0.
    """
    y = checked(features, labels).T  # [n, R]
    x, mean, deviation = _standardise(features)
    c = penalty if penalty is not None else 1 / x.shape[2]
    if not (c > 0 and np.isfinite(c)):
        raise UsageError(f"a probe's penalty is scikit-learn's C, a number above 0, not {c}")
    coordinates, root = _shrink(x)
    bound = coordinates.mT @ coordinates / 4 + torch.eye(coordinates.shape[2], dtype=x.dtype, device=x.device) / c
    factor = torch.linalg.cholesky(bound)
    white = torch.linalg.solve_triangular(factor, coordinates.mT, upper=False).mT  # [L, n, r]
    solution, bias = _minimise(white, y, tolerance)
    weights = torch.linalg.solve_triangular(factor.mT, solution, upper=True)
    if root is not None:
        weights = x.mT @ torch.linalg.solve_triangular(root.mT, weights, upper=True)
    weights = weights / deviation.mT  # [L, d, R]
    return Probes(weights.mT.contiguous(), bias - (mean @ weights).squeeze(1))


def mass_mean(features: Tensor, labels: Tensor) -> Probes:
    """Fit mass-mean probes: the direction between the two class means, the boundary half way between them.

    features: [layers, n, d]. labels: [labellings, n] of 0 and 1. No parameter is searched, so it cannot overfit as a logistic probe can.
    Errors as in `logistic`.
    """
    y = checked(features, labels)
    x = features.to(dtype=torch.float64)
    ones = (y / y.sum(1, keepdim=True)) @ x  # [L, R, d]
    zeros = ((1 - y) / (1 - y).sum(1, keepdim=True)) @ x
    weights = ones - zeros
    return Probes(weights, -(weights * (ones + zeros)).sum(2) / 2)


def grouped_folds(labels: ArrayLike, groups: ArrayLike, k: int = 5, seed: int = 0) -> Ints:
    """Return the fold [n] of each item: whole groups (an entity, a template) stay together, classes as balanced as that allows.

    labels, groups: [n], any discrete values. Raises NulliusError when there are fewer groups than folds, no class of as many items as folds, or a
    fold's training items lack a class; UsageError for labels and groups of different lengths, and for fewer than two folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold  # scikit-learn takes a second to import

    y, g = np.asarray(labels), np.asarray(groups)
    checks.at_least(k, 2, "the number of folds")
    if y.ndim != 1 or y.shape != g.shape:
        raise UsageError(f"cross-validation needs a label and a group for each item; got {list(y.shape)} labels and {list(g.shape)} groups")
    if y.dtype.kind == "f" and not (np.isfinite(y).all() and (y == np.round(y)).all()):
        raise UsageError("cross-validation needs labels that name classes; got numbers between them, or none at all (NaN)")
    if len(np.unique(g)) < k:
        raise NulliusError(f"{k}-fold cross-validation needs at least {k} groups, got {len(np.unique(g))}")
    if np.unique(y, return_counts=True)[1].max() < k:
        raise NulliusError(f"{k}-fold cross-validation needs a class of at least {k} items; the {len(y)} items have fewer of each")
    folds = np.empty(len(y), dtype=np.int64)
    splitter = StratifiedGroupKFold(k, shuffle=True, random_state=seed)
    for fold, (_, held_out) in enumerate(splitter.split(np.zeros(len(y)), y, g)):
        folds[held_out] = fold
    for fold in range(k):
        if len(np.unique(y[folds != fold])) < 2:
            raise NulliusError(f"all items outside fold {fold} have one label; groups and labels coincide too closely for {k} folds")
    return folds


def shuffled_labels(labels: ArrayLike, folds: ArrayLike, rng: np.random.Generator) -> Ints:
    """Return the labels permuted within each fold.

    Within folds, so that each keeps its class counts: a free permutation makes training and held-out counts lean opposite ways, and
    the null accuracy then lies below one half.
    """
    shuffled = np.array(labels, dtype=np.int64)
    for fold in np.unique(np.asarray(folds)):
        where = np.flatnonzero(np.asarray(folds) == fold)
        shuffled[where] = shuffled[rng.permutation(where)]
    return shuffled


def control_task(groups: ArrayLike, rng: np.random.Generator) -> Ints:
    """Return one random label per entity, shared by its items, half of the entities each (Hewitt and Liang 2019).

    Scored on folds that do *not* keep entities together, it can be solved by recognising the entity and in no other way. Accuracy on
    the real labels minus accuracy here is the probe's selectivity.
    """
    entities, of_item = np.unique(np.asarray(groups), return_inverse=True)
    return rng.permutation(np.arange(len(entities)) % 2)[of_item]


@dataclass(frozen=True)
class Split:
    """Items in the order in which they are used: those of stage s are read by probes fitted on all earlier stages.

    stages: [n], 0 … S. inner: [n], folds of stage 0, within which it is cross-validated so that a layer can be chosen before anything
    is tested; −1 elsewhere. groups: [n], never in two stages or two inner folds.

    Why not plain cross-validation: there each of two items in different folds trains the probe that reads the other. Near chance their
    outcomes are then correlated, and the variance of the accuracy is about 1 + 2/π times the binomial one: intervals over items are
    too narrow, and shuffled labels look significant too often. When training only ever precedes testing, outcomes of unlearnable labels
    are uncorrelated (prequential validation, Dawid 1984), and intervals over tested items are right.
    """

    stages: Ints
    inner: Ints
    groups: NDArray

    @property
    def tested(self) -> NDArray[np.bool_]:
        """The items [n] whose outcomes count: all but those of stage 0."""
        return self.stages > 0

    def parts(self) -> list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
        """Return (training items, items read) masks [n] that cover every item once."""
        first = self.stages == 0
        inner = [(first & (self.inner != fold), self.inner == fold) for fold in range(self.inner.max() + 1)]
        return inner + [(self.stages < stage, self.stages == stage) for stage in range(1, self.stages.max() + 1)]


def forward_split(labels: ArrayLike, groups: ArrayLike, seed: int = 0) -> Split:
    """Return a split with two fifths of the groups in stage 0 and a fifth in each of three further stages, classes balanced.

    Raises NulliusError when there are too few groups (ten are enough).
    """
    y, g = np.asarray(labels), np.asarray(groups)
    stages = np.maximum(grouped_folds(y, g, 5, seed) - 1, 0)
    first = np.flatnonzero(stages == 0)
    inner = np.full(len(y), -1)
    inner[first] = grouped_folds(y[first], g[first], min(5, len(np.unique(g[first]))), seed)
    return Split(stages, inner, g)


@dataclass(frozen=True)
class HeldOut:
    """Which items were read correctly at which layer by probes that never saw their group.

    correct: [layers, n], with the real labels. null: [shuffles, layers, n], with labels shuffled within the parts of the split.
    """

    split: Split
    correct: NDArray[np.float64]
    null: NDArray[np.float64]


def held_out(
    features: Tensor, labels: ArrayLike, groups: ArrayLike, rng: np.random.Generator, seed: int = 0, *, shuffles: int = 5
) -> HeldOut:
    """Fit logistic probes on earlier stages and read later ones, with the real labels and with shuffled ones. features: [layers, n, d].

    Several shuffles cost little (they share all matrices) and tell the null accuracy more finely than one.
    Raises NulliusError for too few groups, labels that are not 0 or 1, and features that are not finite or fit no labels.
    """
    checks.binary(labels, len(np.asarray(groups)), "a probe")
    split = forward_split(labels, groups, seed)
    parts = split.stages * 100 + split.inner
    rows = np.stack([np.asarray(labels), *(shuffled_labels(labels, parts, rng) for _ in range(shuffles))])
    right = validate(features, rows, split)
    return HeldOut(split, right[0], right[1:])


def validate(features: Tensor, labels: ArrayLike, split: Split, fit: Fit = logistic) -> NDArray[np.float64]:
    """Return which items were read correctly: features [layers, n, d], labels [..., n] -> [..., layers, n]."""
    return correct(fit_and_score(features, labels, split.parts(), fit), labels)


def selectivity(features: Tensor, labels: ArrayLike, groups: ArrayLike, rng: np.random.Generator, *, k: int = 5) -> NDArray[np.float64]:
    """Return accuracy on the labels minus accuracy on a control task, per layer [layers] (Hewitt and Liang 2019).

    Both cross-validated on folds of single items, where a probe may know the entity of a held-out item from other items of it. One control task is
    one draw: `control_tasks.against_controls` draws many.
    """
    g = np.asarray(groups)
    rows = np.stack([checks.binary(labels, len(g), "a probe"), control_task(g, rng)])
    folds = rng.permutation(np.arange(rows.shape[1]) % checks.at_least(k, 2, "the number of folds"))
    right = correct(cross_validate(features, rows, folds), rows).mean(2)
    return right[0] - right[1]


def cross_validate(features: Tensor, labels: ArrayLike, folds: ArrayLike, fit: Fit = logistic) -> NDArray[np.float64]:
    """Return held-out scores: each item's score from the probe fitted on the other folds.

    features: [layers, n, d]. labels: [n] -> scores [layers, n]; or [labellings, n] -> [labellings, layers, n]. folds: [n].
    Raises NulliusError for features that are not finite, naming the layer. For intervals over items see `Split`.
    """
    fold_of = np.asarray(folds)
    return fit_and_score(features, labels, [(fold_of != fold, fold_of == fold) for fold in np.unique(fold_of)], fit)


def fit_and_score(features: Tensor, labels: ArrayLike, parts: list[tuple[NDArray, NDArray]], fit: Fit = logistic) -> NDArray[np.float64]:
    """Return scores [layers, n], or [labellings, layers, n], of items read by probes fitted on others; NaN for items that no part reads.

    parts: pairs of masks [n], of the items fitted on and of those read. What a fit learns of its items, their mean and deviation too, it learns of
    the first mask's alone. Errors as in `cross_validate`.
    """
    y = np.asarray(labels)
    if features.ndim != 3 or y.shape[-1:] != features.shape[1:2] or any(len(part[0]) != features.shape[1] for part in parts):
        raise NulliusError(
            f"features {tuple(features.shape)} should be [layers, items, d] with the items of labels {y.shape} and of the folds"
        )
    y = checks.binary(y, features.shape[1], "a probe")
    rows = torch.as_tensor(np.atleast_2d(y), device=features.device)
    scores = np.full((len(rows), *features.shape[:2]), np.nan)
    for layers in _chunks(features):
        some = features[layers]
        if not torch.isfinite(some).all():
            bad = [layers.start + i for i in range(len(some)) if not torch.isfinite(some[i]).all()]
            raise NulliusError(f"the features of layers {bad} are not finite; load the subject in float32")
        with _one_thread_for_small(features):
            for training, read in parts:
                inside, outside = (torch.as_tensor(np.flatnonzero(mask), device=features.device) for mask in (training, read))
                probes = fit(some[:, inside], rows[:, inside])
                scores[:, layers, read] = probes.scores(some[:, outside]).cpu().numpy()
    return scores if y.ndim == 2 else scores[0]


def correct(scores: NDArray, labels: ArrayLike) -> NDArray[np.float64]:
    """Return 1 where the held-out score is on its label's side, 0 where it is on the other, one half on the boundary.

    scores: [..., layers, n]. labels: [..., n]. Returns [..., layers, n].
    """
    side = np.sign(scores) * np.where(np.asarray(labels) == 1, 1.0, -1.0)[..., None, :]
    return (side + 1) / 2


@contextmanager
def _one_thread_for_small(features: Tensor) -> Iterator[None]:
    """Hundreds of small factorisations and products: handing each to several threads costs more than it saves, and where other programs
    use the cores, milliseconds a time (measured: 45 times slower in all). Large ones keep their threads."""
    threads = torch.get_num_threads()
    small = features.device.type == "cpu" and min(features.shape[1:]) <= 512
    torch.set_num_threads(1 if small else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _chunks(features: Tensor) -> Iterator[slice]:
    layers, n, d = features.shape
    step = max(1, CHUNK // (n * d))
    for start in range(0, layers, step):
        yield slice(start, min(start + step, layers))


def checked(features: Tensor, labels: Tensor) -> Tensor:
    """Labels [labellings, n] in float64, where features [layers, n, d] and labels are what a probe can be fitted on."""
    if features.ndim != 3 or 0 in features.shape or labels.ndim != 2 or labels.shape[1] != features.shape[1]:
        raise UsageError(
            f"a probe needs features [layers, n, d] and labels [labellings, n]; got {list(features.shape)}, {list(labels.shape)}"
        )
    if not bool(((labels == 0) | (labels == 1)).all()):
        checks.binary(labels, labels.shape[1], "a probe")
    ones = labels.long().sum(1)
    if ((ones == 0) | (ones == labels.shape[1])).any():
        raise NulliusError(f"a probe needs items of both labels; of {labels.shape[1]} items {ones.tolist()} have label 1")
    checks.finite(features, "the features of a probe")
    return labels.to(features.device, torch.float64)


def _standardise(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = features.to(dtype=torch.float64)
    mean = x.mean(1, keepdim=True)
    deviation = x.std(1, correction=0, keepdim=True)
    deviation = torch.where(deviation > 1e-12 * (1 + mean.abs()), deviation, 1.0)  # a constant feature stays 0, not noise
    return (x - mean) / deviation, mean, deviation


def _shrink(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return coordinates [L, n, r] with the same Gram matrix as x [L, n, d]; with fewer items than features also its root G, GGᵀ = XXᵀ.

    The penalised optimum lies in the span of the items, so r = n dimensions suffice: weights v there are XᵀG⁻ᵀv here. XXᵀ of centred items
    is singular; the jitter that makes it definite is far below the rounding of float32 states.
    """
    n, d = x.shape[1:]
    if n >= d:
        return x, None
    gram = x @ x.mT
    jitter = 1e-11 * gram.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-6)
    root = torch.linalg.cholesky(gram + jitter[:, None, None] * torch.eye(n, dtype=x.dtype, device=x.device))
    return root, root


def _minimise(white: Tensor, y: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Minimise the logistic objective over u [L, r, R] and the bias [L, R], given whitened coordinates [L, n, r].

    With w = F⁻ᵀu and FFᵀ = XᵀX/4 + I/C, the penalty |w|²/2C equals (|u|² − |f|²/4)/2, where f = Xw are the logits before the bias. No
    curvature exceeds 1, so a step of length 1 along the gradient never overshoots, and Nesterov's momentum, restarted problem by
    problem where it points uphill, needs neither function values nor a line search, which would stall on rounding at this accuracy.
    """
    layers, n, r = white.shape
    scale = (n / 4) ** -0.5  # the same bound for the bias, whose column of ones is orthogonal to centred features
    at = torch.zeros(layers, r + 1, y.shape[1], dtype=white.dtype, device=white.device)
    at[:, r] = torch.logit(y.mean(0)) / scale
    ahead, age = at, torch.ones(layers, 1, y.shape[1], dtype=white.dtype, device=white.device)
    for step in range(STEPS):
        f = white @ ahead[:, :r]
        residual = torch.sigmoid(f + ahead[:, r:] * scale) - y
        gradient = torch.cat([white.mT @ (residual - f / 4) + ahead[:, :r], residual.sum(1, keepdim=True) * scale], 1)
        if step % 5 == 0 and float(gradient.abs().max()) < tolerance:  # not at each step: the answer must come back from the device
            return ahead[:, :r], ahead[:, r] * scale
        moved = ahead - gradient
        age = torch.where((gradient * (moved - at)).sum(1, keepdim=True) > 0, 1.0, age)
        older = (1 + (1 + 4 * age.square()).sqrt()) / 2
        at, ahead, age = moved, moved + (age - 1) / older * (moved - at), older
    raise NulliusError(f"the probes did not converge in {STEPS} steps; a smaller C (stronger penalty) helps, or a larger tolerance")
