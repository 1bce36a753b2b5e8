"""How well points separate by class: the general discrimination value (GDV) of Schilling et al. (arXiv 2103.05521)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


def gdv(points: Floats, labels: Labels) -> float:
    """General discrimination value of points [n, D] with labels [n] of L ≥ 2 classes, each with at least two points.

    Each dimension is z-scored over all points and halved. GDV = D^−½ · (mean over classes of the mean distance within a class − mean over
    pairs of classes of the mean distance between them), Euclidean. 0: no separation; −1: two point-like classes, perfectly apart. Invariant
    to shift, scale and permutation of dimensions. Raises ValueError for fewer than two classes or a class with one point.
    """
    classes, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(classes) < 2 or counts.min() < 2:
        raise ValueError(
            f"GDV needs at least two classes with two points each; got {dict(zip(classes.tolist(), counts.tolist(), strict=True))}"
        )
    spread = points.std(0)
    scaled = 0.5 * (points - points.mean(0)) / np.where(spread > 0, spread, 1.0)
    distances = _distances(scaled)
    member = np.eye(len(classes))[codes]
    sums = member.T @ distances @ member
    within = np.diag(sums) / (counts * (counts - 1))  # ordered pairs i ≠ j; the diagonal of `distances` is 0
    pairs = np.triu_indices(len(classes), 1)
    between = (sums / np.outer(counts, counts))[pairs]
    return float((within.mean() - between.mean()) / np.sqrt(points.shape[1]))


def _distances(x: Floats) -> Floats:
    squares = (x * x).sum(1)
    gram = squares[:, None] + squares[None, :] - 2 * x @ x.T
    np.fill_diagonal(gram, 0.0)
    return np.sqrt(np.maximum(gram, 0.0))


def balanced(labels: Labels, per_class: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return item numbers with `per_class` random items of each class that has as many; empty when fewer than two classes have."""
    chosen = [
        rng.choice(np.flatnonzero(labels == c), per_class, replace=False) for c in np.unique(labels) if (labels == c).sum() >= per_class
    ]
    return np.sort(np.concatenate(chosen)) if len(chosen) >= 2 else np.array([], dtype=np.int64)


def without(points: Floats, groups: Labels) -> Floats:
    """Centre each group's points and scale them to one root mean square: what the group (the last word, say) explains is gone.

    The scale matters: groups of unequal spread alone give a GDV other than 0.
    """
    codes = np.unique(groups, return_inverse=True)[1]
    counts = np.bincount(codes)
    sums = np.zeros((len(counts), points.shape[1]))
    np.add.at(sums, codes, points)
    centred = points - (sums / counts[:, None])[codes]
    power = np.bincount(codes, (centred**2).sum(1)) / counts
    return centred / np.sqrt(np.where(power > 0, power, 1.0))[codes, None]


def permute_within(labels: Labels, groups: Labels, rng: np.random.Generator) -> Labels:
    """Permute labels among the members of each group."""
    out = labels.copy()
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        out[members] = labels[rng.permutation(members)]
    return out
