"""Which windows of which data set make up each step: deterministic, mixed by weight, and resumable from a handful of numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nullius.training.packed import Packed


class Mixture:
    """Endless batches out of several packed data sets.

    The next window always comes from the set that is furthest behind its share, so the shares hold at every moment to within one window. Each
    set is gone through in a random order, drawn anew for every pass from (seed, set, pass) alone: `taken`, how many windows of each set have
    been used, is the whole state.
    """

    def __init__(self, sets: Sequence[Packed], shares: Sequence[float], sequence: int, seed: int) -> None:
        self.sets, self.sequence, self.seed = list(sets), sequence, seed
        self.shares = np.asarray(shares, np.float64) / np.sum(shares)
        self.sizes = [each.windows(sequence) for each in sets]
        self.taken = [0] * len(self.sets)
        self._orders: dict[int, tuple[int, NDArray[np.int64]]] = {}

    def next(self, n: int) -> list[tuple[int, int]]:
        """Return (set, window) of the next n windows."""
        return [self._one() for _ in range(n)]

    def rows(self, chosen: Sequence[tuple[int, int]]) -> Tensor:
        """Return token ids [n, sequence + 1] of windows."""
        return torch.from_numpy(np.stack([self.sets[k].window(i, self.sequence) for k, i in chosen]))

    def _one(self) -> tuple[int, int]:
        behind = self.shares * (sum(self.taken) + 1) - np.asarray(self.taken)
        k = int(behind.argmax())
        turn, place = divmod(self.taken[k], self.sizes[k])
        self.taken[k] += 1
        known = self._orders.get(k)
        if known is None or known[0] != turn:
            known = self._orders[k] = (turn, np.random.default_rng([self.seed, k, turn]).permutation(self.sizes[k]))
        return k, int(known[1][place])
