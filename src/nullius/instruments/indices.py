"""Numbers of layers, heads, units, rows and columns as people write them: lists, ranges, arrays, tensors; what only looks like that is refused.

A mask or a fraction would be taken for numbers by torch (True is 1, 2.7 is 2), and the answer would be about another place than the one asked for.
"""

from __future__ import annotations

from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nullius.errors import UsageError


def listed(what: str, chosen: Any) -> list[int]:
    """Numbers as a list. Raises UsageError for a number that stands in no list, a mask, fractions, and what is no number."""
    if isinstance(chosen, (int, float, str)) or getattr(chosen, "ndim", 1) != 1:
        raise UsageError(
            f"{what} must be a list: [{chosen}], not {chosen}" if np.ndim(chosen) == 0 else f"{what} must be one list of numbers"
        )
    found = chosen.tolist() if isinstance(chosen, (Tensor, np.ndarray)) else list(chosen)
    if any(isinstance(one, (bool, np.bool_)) for one in found):
        raise UsageError(f"{what} must be numbers, not a mask of them")
    try:
        return [index(one) for one in found]
    except TypeError:
        raise UsageError(f"{what} must be whole numbers; got {found}") from None


def columns(positions: Any) -> Tensor:
    """Positions [P], or [rows, P], as a tensor on the device that they came on. Raises UsageError as `listed`, and for rows of unequal length."""
    try:
        found = positions if isinstance(positions, Tensor) else torch.as_tensor(np.asarray(positions))
    except (ValueError, TypeError):
        raise UsageError("positions must be whole numbers [P], or [rows, P]: as many for each row") from None
    if found.numel() and (found.dtype == torch.bool or found.is_floating_point() or found.is_complex()):
        raise UsageError(f"positions must be whole numbers, not {'a mask' if found.dtype == torch.bool else 'fractions'}")
    return found.long()


def numbers(what: str, value: Any) -> Tensor:
    """A value as a tensor: as it is, or made of numbers. Raises UsageError for what is neither."""
    try:
        return value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    except (ValueError, TypeError):
        raise UsageError(f"{what} must be a tensor, or numbers in rows of one length; got {type(value).__name__}") from None
