"""Vectors of papers in files beside the word index, and the search for the nearest: exact up to 300 000, by signs and then exactly above.

Three files grow together: int8 vectors, their scales, their papers' numbers. A reader takes as many rows as there are numbers, the last file
written; a paper's later row replaces its earlier one. The files hold nothing that the table `embedding` does not, from which they are rebuilt.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nullius.models.minilm.forward import WIDTH

EXACT = 300_000  # rows up to which one float32 product answers; above, sign bits choose what is scored
CANDIDATES = 500
CHUNK = 65_536
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def quantise(vectors: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Return unit vectors as int8 and the scale that undoes it, one per vector: vector ≈ int8 · scale."""
    scales = np.abs(vectors).max(1) / 127
    return np.rint(vectors / scales[:, None]).astype(np.int8), scales.astype(np.float32)


class Vectors:
    """The rows that the files held when they were opened. numbers: of the papers, shape (rows,)."""

    def __init__(self, where: Path) -> None:
        self.numbers: Ints = np.fromfile(where / "numbers.i64", np.int64) if (where / "numbers.i64").exists() else np.empty(0, np.int64)
        rows = len(self.numbers)
        self.scales: Floats = np.fromfile(where / "scales.f32", np.float32, rows) if rows else np.empty(0, np.float32)
        shape = (rows, WIDTH)
        self.bytes: NDArray[np.int8] = np.memmap(where / "vectors.i8", np.int8, "r", shape=shape) if rows else np.empty(shape, np.int8)
        reversed_first = np.unique(self.numbers[::-1], return_index=True)[1]
        self.live: NDArray[np.bool_] = np.zeros(rows, bool)
        self.live[rows - 1 - reversed_first] = True
        self._asked = 0

    @cached_property
    def _row_of(self) -> dict[int, int]:
        return {int(number): row for row, number in enumerate(self.numbers) if self.live[row]}

    @cached_property
    def _floats(self) -> Floats:
        return np.asarray(self.bytes, np.float32) * self.scales[:, None]

    @cached_property
    def _signs(self) -> NDArray[np.uint64]:
        """Sign bits, transposed: plane by plane, shape (6, rows)."""
        planes = np.empty((WIDTH // 64, len(self.numbers)), np.uint64)
        for start in range(0, len(self.numbers), CHUNK):
            bits = np.packbits(self.bytes[start : start + CHUNK] > 0, axis=1)
            planes[:, start : start + CHUNK] = bits.view(np.uint64).T
        return planes

    def __len__(self) -> int:
        return int(self.live.sum())

    def of(self, number: int) -> Floats | None:
        """Return the vector of a paper, or None."""
        row = self._row_of.get(number)
        return None if row is None else np.asarray(self.bytes[row], np.float32) * self.scales[row]

    def nearest(self, query: Floats, limit: int, among: Ints | None = None) -> tuple[list[int], list[float]]:
        """Return the numbers of the nearest papers and their cosines, nearest first. among: only these papers (numbers)."""
        if not len(self.numbers) or limit < 1:
            return [], []
        if among is not None:
            rows = np.flatnonzero(np.isin(self.numbers, among) & self.live)
            return self._best(rows, self._score(rows, query), limit)
        if len(self.numbers) <= EXACT:
            scores = self._all(query)
            return self._best(np.arange(len(scores)), np.where(self.live, scores, -2), limit)
        rows = self._candidates(query, max(CANDIDATES, len(self.numbers) // 1000, 2 * limit))
        rows = rows[self.live[rows]]
        return self._best(rows, self._score(rows, query), limit)

    def _all(self, query: Floats) -> Floats:
        self._asked += 1
        if self._asked > 1 or len(self.numbers) <= CHUNK:  # a process that asks once does not unpack them all
            return self._floats @ query
        parts = [self.bytes[i : i + CHUNK].astype(np.float32) @ query for i in range(0, len(self.numbers), CHUNK)]
        return np.concatenate(parts) * self.scales

    def _score(self, rows: Ints, query: Floats) -> Floats:
        return (np.asarray(self.bytes[rows], np.float32) @ query) * self.scales[rows]

    def _candidates(self, query: Floats, count: int) -> Ints:
        """The rows whose signs differ from the query's in the fewest places."""
        signs = np.packbits(query > 0).view(np.uint64)
        distance = np.zeros(len(self.numbers), np.uint16)
        for plane, sign in zip(self._signs, signs, strict=True):
            distance += np.bitwise_count(plane ^ sign)
        return np.argpartition(distance, min(count, len(distance) - 1))[:count]

    def _best(self, rows: Ints, scores: Floats, limit: int) -> tuple[list[int], list[float]]:
        if len(rows) > limit:
            chosen = np.argpartition(-scores, limit - 1)[:limit]
            rows, scores = rows[chosen], scores[chosen]
        order = np.argsort(-scores, kind="stable")
        order = order[scores[order] > -2]
        return self.numbers[rows[order]].tolist(), scores[order].tolist()


def append(where: Path, numbers: Sequence[int], vectors: NDArray[np.int8], scales: Floats) -> None:
    """Add rows to the files, the numbers last. What an interrupted call left behind them is cut off first. One process at a time."""
    where.mkdir(parents=True, exist_ok=True)
    rows = (where / "numbers.i64").stat().st_size // 8 if (where / "numbers.i64").exists() else 0
    parts = (("vectors.i8", vectors.tobytes(), WIDTH), ("scales.f32", scales.astype(np.float32).tobytes(), 4))
    for name, content, width in (*parts, ("numbers.i64", np.asarray(numbers, np.int64).tobytes(), 8)):
        with (where / name).open("ab") as file:
            file.truncate(rows * width)
            file.seek(0, 2)
            file.write(content)


@lru_cache(maxsize=2)
def _open(where: Path, _state: tuple[int, int]) -> Vectors:
    return Vectors(where)


def open_vectors(where: Path) -> Vectors:
    """Return the vectors in a folder as the files stand now; opened again only when they grew."""
    path = where / "numbers.i64"
    state = path.stat() if path.exists() else None
    return _open(where, (state.st_size, state.st_mtime_ns) if state else (0, 0))
