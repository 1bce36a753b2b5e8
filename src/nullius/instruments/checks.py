"""What instruments ask of the numbers they are given: finite, of the width that they are about, labelled by 0 and 1. One line of complaint each.

A NaN is never above a threshold and always the largest in an argmax, one row is broadcast over many, and a label 2 counts as "not 1": each gives a
number that looks like a result.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from nullius.errors import UsageError


def finite(x: Tensor, what: str) -> Tensor:
    """Return x. Raises UsageError where an entry is NaN or infinite, and says how many are and where the first one is."""
    wrong = ~torch.isfinite(x)
    if bool(wrong.any()):
        first = wrong.nonzero()[0].tolist()
        raise UsageError(f"{what} are not finite in {int(wrong.sum())} of {x.numel()} entries, the first at {first}")
    return x


def wide(x: Tensor, width: int, what: str) -> Tensor:
    """Return x. Raises UsageError where its last dimension is not `width`."""
    if x.ndim < 1 or x.shape[-1] != width:
        raise UsageError(f"{what} must be [.., {width}]; got {list(x.shape)}")
    return x


def binary(labels: ArrayLike | Tensor, n: int, what: str) -> NDArray[np.int64]:
    """Return labels [.., n] as integers. Raises UsageError for another length and for labels that are not 0 or 1 (or False and True)."""
    found = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if found.ndim < 1 or found.shape[-1] != n:
        raise UsageError(f"{what} needs a label for each of {n} items; got labels of shape {list(found.shape)}")
    strange = np.unique(found[~np.isin(found, (0, 1))]) if found.dtype.kind in "biuf" else np.unique(found)
    if len(strange):
        raise UsageError(f"{what} needs labels 0 and 1; got {', '.join(str(one) for one in strange[:3])}")
    return found.astype(np.int64)


def at_least(value: int, least: int, what: str) -> int:
    """Return a number of steps, rows or parts. Raises UsageError for one that is smaller than `least`."""
    if value < least:
        raise UsageError(f"{what} must be {least} or more, not {value}")
    return value


def at_least_one(**sizes: int) -> None:
    """Raise UsageError for a number of steps, rows or pairs below 1, by the name of the argument."""
    for name, size in sizes.items():
        at_least(size, 1, name)
