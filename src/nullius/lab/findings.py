"""Findings: the per-item samples that a study reports for a claim, with those of the control. No statistics here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nullius.errors import StudyError
from nullius.lab.claims import Claim

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Samples:
    """Per-item samples of one condition of a claim.

    values: [n]. x: [n], the other variable of a correlation. level: [n], index into the expectation's levels (trend, ordering).
    clusters: [n] integer codes; items that share one are resampled together. All finite.
    """

    values: Floats
    clusters: NDArray[np.int64]
    x: Floats | None = None
    level: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def n_clusters(self) -> int:
        return len(np.unique(self.clusters))


@dataclass(frozen=True)
class Finding:
    """What a study hands over for one claim. `paired`: treated[i] and control[i] are the same item under two conditions."""

    claim: str
    treated: Samples
    control: Samples
    paired: bool
    note: str = ""
    notes: dict[str, float | str] = field(default_factory=dict)


Reported = ArrayLike | tuple[ArrayLike, ArrayLike] | Mapping[str, ArrayLike]


def samples(
    claim: Claim,
    reported: Reported,
    clusters: Sequence | Mapping[str, Sequence] | None,
    role: str,
    book: dict[object, int] | None = None,
) -> Samples:
    """Turn what a study reports into `Samples`, or raise StudyError naming the claim, the role and what was expected.

    A correlation takes a pair `(x, y)`; a trend or an ordering a mapping from each level to its values; anything else one array [n].
    `clusters` has one label per item (for a mapping: a mapping of the same shape); None makes every item its own cluster.
    `book` holds the code of each label met so far: given to both the treated and the control samples of a finding, a cluster that both
    share has one code in both, and items that are their own clusters share none.
    """
    where = f"claim '{claim.id}', {role}"
    kind = claim.expect.kind
    x: Floats | None = None
    level: NDArray[np.int64] | None = None
    if kind in ("trend", "ordering"):
        if not isinstance(reported, Mapping) or set(reported) != set(claim.expect.levels):
            got = sorted(reported) if isinstance(reported, Mapping) else type(reported).__name__
            raise StudyError(f"{where}: expected a mapping with the levels {list(claim.expect.levels)}, got {got}")
        parts = [_floats(reported[name], f"{where}, level '{name}'") for name in claim.expect.levels]
        values = np.concatenate(parts)
        level = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        if isinstance(clusters, Mapping):
            clusters = [label for name in claim.expect.levels for label in clusters[name]]
    elif kind == "correlation":
        if not isinstance(reported, tuple) or len(reported) != 2:
            raise StudyError(f"{where}: a correlation takes a pair (x, y), got {type(reported).__name__}")
        x, values = _floats(reported[0], f"{where}, x"), _floats(reported[1], f"{where}, y")
        if len(x) != len(values):
            raise StudyError(f"{where}: x has {len(x)} items, y {len(values)}")
    else:
        if isinstance(reported, (Mapping, tuple)):
            raise StudyError(f"{where}: expected one array of samples, got {type(reported).__name__}")
        values = _floats(reported, where)
    return Samples(values, _codes(clusters, len(values), where, {} if book is None else book), x, level)


def _floats(values: object, where: str) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < 2:
        raise StudyError(f"{where}: expected at least two samples in one dimension, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise StudyError(f"{where}: {int((~np.isfinite(array)).sum())} of {len(array)} samples are not finite")
    return array


def _codes(clusters: object, n: int, where: str, book: dict[object, int]) -> NDArray[np.int64]:
    if clusters is None:
        labels = [object() for _ in range(n)]
    else:
        array = np.asarray(clusters)
        if array.shape != (n,):
            raise StudyError(f"{where}: {n} samples but cluster labels of shape {array.shape}")
        labels = array.tolist()
    return np.array([book.setdefault(label, len(book)) for label in labels], dtype=np.int64)
