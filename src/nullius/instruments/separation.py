"""How far points of different classes lie apart: the general discrimination value (GDV), with its null, and simpler relatives.

GDV (Schilling et al. 2021, Neural Networks 139, equation 1): each of D dimensions is z-scored over all points and halved; then

    GDV = 1/√D · [ mean over classes of the mean distance within a class − mean over pairs of classes of the mean distance between them ]

with Euclidean distances, pairs of distinct points within a class. 0 is no separation. −1 is perfect separation of two equally frequent
point-like classes; L such classes at the corners of a simplex reach −1/√(2(1 − 1/L)). Invariant to shift and scale of each dimension and to their
order. In expectation it does not depend on the number of points (no pair of a point with itself), and when a share ρ of the variance
of every dimension lies between two classes it is about −0.7 ρ: −0.05 is 7%.

GDV depends on the points over which it is z-scored and on class frequencies: compare only values for the same points. Points that follow
each other in a text are dependent, so its null permutes runs of labels, never single ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import pdist, squareform
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import MDS, TSNE
from sklearn.metrics import silhouette_score
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from nullius.errors import NulliusError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def gdv(points: ArrayLike, labels: ArrayLike) -> float:
    """General discrimination value of points [n, D] with class labels [n]; 0 when all points coincide.

    Dimensions that do not vary cannot be z-scored and are left out of D. Raises NulliusError for fewer than two classes, a class of one
    point, points that are not finite, or another number of labels.
    """
    return float(gdv_of_distances(distances(points), np.asarray(labels)[None])[0])


def distances(points: ArrayLike) -> Floats:
    """Return distances [n, n] between points [n, D] after z-scoring and halving, divided by √D: all that the GDV rests on."""
    scaled = z_halved(points)
    return squareform(pdist(scaled)) / np.sqrt(max(scaled.shape[1], 1)) if scaled.shape[1] else np.zeros((len(scaled), len(scaled)))


def z_halved(points: ArrayLike) -> Floats:
    """Return points [n, D′] z-scored (population deviation) and halved, without the dimensions that do not vary."""
    x = np.asarray(points, dtype=np.float64)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise NulliusError(
            f"separation needs finite points in two dimensions [n, D], got shape {x.shape} with {np.sum(~np.isfinite(x))} not finite"
        )
    deviation = x.std(0)
    varies = deviation > 1e-12 * (np.abs(x).max(0, initial=0.0) + 1e-300)
    return (x[:, varies] - x[:, varies].mean(0)) / deviation[varies] / 2


def gdv_of_distances(between: Floats, labellings: ArrayLike) -> Floats:
    """Return the GDV [R] of each labelling [R, n] of the same points, given their `distances` [n, n]. Classes may differ in size."""
    table = np.asarray(labellings)
    if table.ndim != 2 or table.shape[1] != len(between):
        raise NulliusError(f"separation needs a label for each of {len(between)} points; got labels {list(table.shape[1:])}")
    classes, codes = np.unique(table, return_inverse=True)
    if len(classes) < 2:
        raise NulliusError("the general discrimination value needs at least two classes")
    member = (codes.reshape(table.shape)[:, None, :] == np.arange(len(classes))[None, :, None]).astype(np.float64)  # [R, L, n]
    size = member.sum(2)
    if (size < 2).any():
        raise NulliusError(
            f"the general discrimination value needs two points of every class; {classes[np.argwhere(size < 2)[0, 1]]} has fewer"
        )
    sums = member @ between @ member.mT
    within = np.diagonal(sums, axis1=1, axis2=2) / (size * (size - 1))
    across = sums / (size[:, :, None] * size[:, None, :])
    upper = np.triu_indices(len(classes), 1)
    return within.mean(1) - across[:, upper[0], upper[1]].mean(1)


def permute_runs(labels: ArrayLike, run: int, rng: np.random.Generator) -> NDArray:
    """Return labels [n], in order of the text, cut into runs of at least `run` and the runs put in random order (the text taken as a ring).

    Neighbouring labels stay neighbours, so that the dependence between overlapping windows is in the null as it is in the data. For that the text is
    cut only where the label changes: cuts within a stretch of one label would make the null more mixed than the data, and the test too eager.
    """
    truth = np.asarray(labels)
    changes = np.flatnonzero(truth != np.roll(truth, 1))
    if len(changes) < 2:
        return truth.copy()
    turned = np.roll(truth, -int(rng.choice(changes)))
    changes = np.flatnonzero(turned[1:] != turned[:-1]) + 1
    cuts = [0]
    for change in changes.tolist():
        if change - cuts[-1] >= run:
            cuts.append(change)
    runs = np.split(turned, cuts[1:] or changes)
    return turned if len(runs) < 2 else np.concatenate([runs[i] for i in rng.permutation(len(runs))])


def permutation_null(
    points: ArrayLike, labels: ArrayLike, *, run: int, permutations: int, rng: np.random.Generator
) -> tuple[float, Floats, float]:
    """Return the GDV, its values under permuted runs of labels [permutations], and p = (1 + #{null ≤ GDV}) / (permutations + 1).

    points: [n, D], labels: [n], both in order of the text. Errors as in `gdv`; NulliusError for less than one permutation.
    """
    if permutations < 1 or run < 1:
        raise NulliusError(f"a null needs one permutation at least, of runs of one label or more; got {permutations} and {run}")
    between = distances(points)
    observed = float(gdv_of_distances(between, np.asarray(labels)[None])[0])
    null = np.concatenate([gdv_of_distances(between, permute_runs(labels, run, rng)[None]) for _ in range(permutations)])
    return observed, null, float((1 + (null <= observed + 1e-12).sum()) / (permutations + 1))


def by_sets(stages: Mapping[str, ArrayLike], labels: ArrayLike, sets: Sequence[Ints]) -> dict[str, Floats]:
    """Return stage → GDV [sets], each set of points z-scored for itself; every stage on the same points.

    stages: name → [n, D]. labels: [n]. sets: which points make up each set (a block of text, or windows that share a word).
    """
    truth = np.asarray(labels)
    for name, points in stages.items():
        if len(np.asarray(points)) != len(truth) or any(len(chosen) and max(chosen) >= len(truth) for chosen in sets):
            raise NulliusError(
                f"stage {name} has {len(np.asarray(points))} points, {len(truth)} labels: sets of points must lie among both"
            )
    return {name: np.array([gdv(np.asarray(points)[chosen], truth[chosen]) for chosen in sets]) for name, points in stages.items()}


def depth_slope(curve: ArrayLike) -> Floats:
    """Least-squares slope [n] of values [stages, n] over relative depth, 0 at the first stage and 1 at the last.

    In the units of the values: how much they change from the first stage to the last along the straight line closest to them.
    """
    y = np.asarray(curve, dtype=np.float64)
    if not np.isfinite(y).all():
        raise NulliusError("a slope over depth needs values that are finite")
    if len(y) < 2:
        raise NulliusError("a slope over depth needs at least two stages")
    x = np.linspace(0, 1, len(y)) - 0.5
    return np.tensordot(x, y, 1) / (x @ x)


def silhouette(points: ArrayLike, labels: ArrayLike) -> float:
    """Mean silhouette (Rousseeuw 1987; scikit-learn) of z-scored points: 1 for tight classes far apart, about 0 for none, below for mixed ones.

    points: [n, D], labels: [n]. Raises NulliusError for one class, or as many as there are points.
    """
    scaled, truth = z_halved(points), _labels(labels, len(np.asarray(points)))
    if not 1 < len(np.unique(truth)) < len(truth):
        raise NulliusError(f"a silhouette needs from two classes to one fewer than points; got {len(np.unique(truth))} of {len(truth)}")
    return float(silhouette_score(scaled, truth))


def knn_purity(points: ArrayLike, labels: ArrayLike, k: int = 10) -> float:
    """Mean share of a point's k nearest other points (z-scored) that have its label. Chance is the share of the label among the others.

    points: [n, D], labels: [n]. Raises NulliusError for fewer than k other points.
    """
    scaled, truth = z_halved(points), _labels(labels, len(np.asarray(points)))
    if not 1 <= k < len(truth):
        raise NulliusError(f"{len(truth)} points have 1 to {len(truth) - 1} neighbours, not {k}")
    nearest = NearestNeighbors(n_neighbors=k).fit(scaled).kneighbors(return_distance=False)
    return float((truth[nearest] == truth[:, None]).mean())


def probe_hits(points: ArrayLike, labels: ArrayLike, test_points: ArrayLike, test_labels: ArrayLike) -> Floats:
    """Return whether [n_test] a linear probe (logistic, classes weighted equally), fitted on points, names the class of each test point.

    points: [n, D], test_points: [n_test, D]; standardised by the points fitted on. Raises NulliusError for one class, points that are not finite,
    and other numbers of labels or dimensions.
    """
    sides = [np.asarray(side, dtype=np.float64) for side in (points, test_points)]
    if any(side.ndim != 2 or not np.isfinite(side).all() for side in sides) or sides[0].shape[1] != sides[1].shape[1]:
        raise NulliusError(f"a probe needs finite points [n, D] of one width on both sides; got {sides[0].shape} and {sides[1].shape}")
    if len(np.unique(_labels(labels, len(sides[0])))) < 2:
        raise NulliusError("a probe needs points of two classes at least to be fitted on")
    _labels(test_labels, len(sides[1]))
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=500))
    return (probe.fit(np.asarray(points), np.asarray(labels)).predict(np.asarray(test_points)) == np.asarray(test_labels)).astype(
        np.float64
    )


def project(points: ArrayLike, method: Literal["pca", "mds", "t-sne"], seed: int = 0) -> Floats:
    """Return points [n, D] in two dimensions [n, 2], for figures only: islands in a projection are no evidence.

    MDS is metric, from four random starts; t-SNE has perplexity 30 (less for fewer than 91 points) and starts from PCA.
    Raises NulliusError for another method, fewer than three points, or points that do not vary in two dimensions.
    """
    if method not in ("pca", "mds", "t-sne"):
        raise NulliusError(f"points are projected by pca, mds or t-sne, not by '{method}'")
    scaled = z_halved(points)
    if len(scaled) < 3 or scaled.shape[1] < 2:
        raise NulliusError(
            f"a projection needs three points that vary in two dimensions; got {len(scaled)} points, {scaled.shape[1]} dimensions"
        )
    if method == "pca":
        return PCA(2, random_state=seed).fit_transform(scaled)
    if method == "mds":
        return MDS(2, n_init=4, init="random", random_state=seed, normalized_stress=False).fit_transform(scaled)
    return TSNE(2, perplexity=min(30.0, (len(scaled) - 1) / 3), init="pca", random_state=seed).fit_transform(scaled)


def _labels(labels: ArrayLike, n: int) -> NDArray:
    truth = np.asarray(labels)
    if truth.shape != (n,):
        raise NulliusError(f"separation needs a label for each of {n} points; got labels {list(truth.shape)}")
    return truth
