"""Vectors of papers in files beside the word index, and the search for the nearest: exact up to 300 000, by signs and then exactly above.

Four files grow together: int8 vectors, their scales, their signs, their papers' numbers. A reader takes as many rows as there are numbers, the last
file written; a paper's later row replaces its earlier one. The files hold nothing that the table `embedding` does not, from which they are rebuilt.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nullius.models.minilm.forward import WIDTH

EXACT = 300_000  # rows up to which each is scored; above, sign bits choose what is scored
MANY = 30_000  # rows from which pages of the file are given back, and files that grow are not opened again at once
PATIENCE = 60.0  # seconds
CANDIDATES = 500
CHUNK = 32_768
PIECE = 2048  # rows made float32 at a time: they stay in the processor's cache, so that all is faster than one product of ready floats
PLANES = WIDTH // 64
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def quantise(vectors: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Return unit vectors as int8 and the scale that undoes it, one per vector: vector ≈ int8 · scale."""
    scales = np.abs(vectors).max(1) / 127
    return np.rint(vectors / scales[:, None]).astype(np.int8), scales.astype(np.float32)


class Vectors:
    """The rows that the files held when they were opened. numbers: of the papers, shape (rows,)."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self.numbers: Ints = np.fromfile(where / "numbers.i64", np.int64) if (where / "numbers.i64").exists() else np.empty(0, np.int64)
        rows = len(self.numbers)
        self.scales: Floats = np.fromfile(where / "scales.f32", np.float32, rows) if rows else np.empty(0, np.float32)
        self._file: mmap.mmap | None = None
        self.bytes: NDArray[np.int8] = np.empty((rows, WIDTH), np.int8)
        if rows:
            with (where / "vectors.i8").open("rb") as file:
                self._file = mmap.mmap(file.fileno(), rows * WIDTH, access=mmap.ACCESS_READ)
            self.bytes = np.frombuffer(self._file, np.int8).reshape(rows, WIDTH)
        self._order = np.argsort(self.numbers, kind="stable").astype(np.int32)
        self._sorted = self.numbers[self._order]
        last: NDArray[np.bool_] = np.ones(rows, bool)  # of a paper's rows the one that counts
        last[:-1] = self._sorted[1:] != self._sorted[:-1]
        self.live: NDArray[np.bool_] = np.zeros(rows, bool)
        self.live[self._order[last]] = True

    @cached_property
    def _signs(self) -> NDArray[np.uint64]:
        """Sign bits, shape (rows, 6): as they lie in their file, or made here where it has not all of them."""
        path, size = self.where / "signs.u64", len(self.numbers) * 8 * PLANES
        if not size or not path.exists() or path.stat().st_size < size:
            return _packed(self.bytes)
        with path.open("rb") as file:
            return np.frombuffer(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ), np.uint64).reshape(-1, PLANES)

    def __len__(self) -> int:
        return int(self.live.sum())

    def of(self, number: int) -> Floats | None:
        """Return the vector of a paper, or None."""
        rows = self._rows(np.array([number], np.int64))
        return np.asarray(self.bytes[rows[0]], np.float32) * self.scales[rows[0]] if len(rows) else None

    def have(self, numbers: Sequence[int]) -> list[bool]:
        """Return of which papers there is a vector."""
        wanted = np.asarray(numbers, np.int64)
        return np.isin(wanted, self.numbers[self._rows(wanted)]).tolist()

    def nearest(self, query: Floats, limit: int, among: Ints | None = None) -> tuple[list[int], list[float]]:
        """Return the numbers of the nearest papers and their cosines, nearest first. among: only these papers (numbers)."""
        if not len(self.numbers) or limit < 1:
            return [], []
        if among is not None:
            rows = self._rows(among)
            return self._best(rows, self._score(rows, query), limit)
        count = len(self.numbers)
        if count <= EXACT:
            return self._best(np.arange(count), np.where(self.live, self._score_all(query), -2), limit)
        rows = self._candidates(query, max(CANDIDATES, count // 1000, 2 * limit))
        rows = np.sort(rows[self.live[rows]])  # in the order of the file
        return self._best(rows, self._score(rows, query), limit)

    def likely(self, query: Floats, limit: int) -> list[int]:
        """Return the numbers of so many papers that are among the nearest, in no order: of many by their signs alone."""
        if len(self.numbers) <= EXACT:
            return self.nearest(query, limit)[0]
        rows = self._candidates(query, limit)
        return self.numbers[rows[self.live[rows]]].tolist()

    def _rows(self, numbers: Ints) -> Ints:
        """The rows of papers, as far as they have one."""
        if not len(self.numbers):
            return np.empty(0, np.int64)
        wanted = np.unique(numbers)
        places = np.searchsorted(self._sorted, wanted, side="right") - 1
        found = (places >= 0) & (self._sorted[places] == wanted)
        return np.sort(self._order[places[found]]).astype(np.int64)

    def _score_all(self, query: Floats) -> Floats:
        scores = np.empty(len(self.numbers), np.float32)
        floats = np.empty((PIECE, WIDTH), np.float32)
        for start in range(0, len(scores), PIECE):
            piece = self.bytes[start : start + PIECE]
            np.copyto(floats[: len(piece)], piece)
            np.dot(floats[: len(piece)], query, out=scores[start : start + PIECE])
        self._give_back()
        scores *= self.scales
        return scores

    def _score(self, rows: Ints, query: Floats) -> Floats:
        scores = (np.asarray(self.bytes[rows], np.float32) @ query) * self.scales[rows]
        self._give_back()
        return np.asarray(scores, np.float32)

    def _give_back(self) -> None:
        """Let the system's cache alone hold the pages that were read, where there are many."""
        if self._file is not None and len(self.numbers) > MANY:
            self._file.madvise(mmap.MADV_DONTNEED)

    def _candidates(self, query: Floats, count: int) -> Ints:
        """The rows whose signs differ from the query's in the fewest places."""
        signs = np.packbits(query > 0).view(np.uint64)
        distance = np.empty(len(self.numbers), np.uint16)
        for start in range(0, len(distance), CHUNK):
            counts = np.bitwise_count(self._signs[start : start + CHUNK] ^ signs)
            part = distance[start : start + CHUNK]
            np.add(counts[:, 0], counts[:, 1], out=part, dtype=np.uint16)
            for column in range(2, PLANES):  # six short sums in a row take longer
                part += counts[:, column]
        return np.argpartition(distance, min(count, len(distance) - 1))[:count]

    def _best(self, rows: Ints, scores: Floats, limit: int) -> tuple[list[int], list[float]]:
        if len(rows) > limit:
            chosen = np.argpartition(-scores, limit - 1)[:limit]
            rows, scores = rows[chosen], scores[chosen]
        order = np.argsort(-scores, kind="stable")
        order = order[scores[order] > -2]
        return self.numbers[rows[order]].tolist(), scores[order].tolist()


def forget(where: Path) -> None:
    """Open the vectors in a folder anew when they are next asked for."""
    _opened.pop(where, None)


def append(where: Path, numbers: Sequence[int], vectors: NDArray[np.int8], scales: Floats) -> None:
    """Add rows to the files, the numbers last. What an interrupted call left behind them is cut off first. One process at a time."""
    where.mkdir(parents=True, exist_ok=True)
    rows = (where / "numbers.i64").stat().st_size // 8 if (where / "numbers.i64").exists() else 0
    _write(where / "vectors.i8", rows * WIDTH, vectors.tobytes())
    _write(where / "scales.f32", rows * 4, scales.astype(np.float32).tobytes())
    path, width = where / "signs.u64", 8 * PLANES
    held = min(rows, path.stat().st_size // width) if path.exists() else 0
    if held < rows:  # files from before there were signs
        for start in range(held, rows, CHUNK):
            older = np.fromfile(where / "vectors.i8", np.int8, WIDTH * min(CHUNK, rows - start), offset=start * WIDTH)
            _write(path, start * width, _packed(older.reshape(-1, WIDTH)).tobytes())
    _write(path, rows * width, _packed(vectors).tobytes())
    _write(where / "numbers.i64", rows * 8, np.asarray(numbers, np.int64).tobytes())


def _write(path: Path, place: int, content: bytes) -> None:
    with path.open("ab") as file:
        file.truncate(place)
        file.seek(0, 2)
        file.write(content)


def _packed(vectors: NDArray[np.int8]) -> NDArray[np.uint64]:
    """The signs of vectors, shape (rows, 6)."""
    return np.packbits(vectors > 0, axis=1).view(np.uint64)


_opened: dict[Path, tuple[float, tuple[int, int, int], Vectors]] = {}  # per folder: when, of which file, what


def open_vectors(where: Path) -> Vectors:
    """Return the vectors in a folder as the files stand now; opened again only when they grew.

    Many of them grow while papers are embedded, every few seconds, and opening them takes as long as some searches: they may be a minute old.
    """
    path = where / "numbers.i64"
    found = path.stat() if path.exists() else None
    state = (found.st_ino, found.st_size, found.st_mtime_ns) if found else (0, 0, 0)
    at, before, held = _opened.get(where, (0.0, (0, 0, 0), None))
    now = time.monotonic()
    recent = now - at < PATIENCE and state[0] == before[0] and state[1] > before[1]  # of the same file, which grew
    if held is None or (state != before and not (recent and len(held.numbers) > MANY)):
        held = Vectors(where)
        while len(_opened) > 1:
            _opened.pop(next(iter(_opened)))
        _opened[where] = (now, state, held)
    return held
