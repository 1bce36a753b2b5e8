"""How sequences are cut into what programs work on: chunks, blocks, segments and pieces, as tables that the kernels read."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

# A segment is a run of chunks that one program walks. Sequences are cut into segments until this many programs fill the machine.
PROGRAMS = 128


def ratio(a: int, b: int) -> int:
    return -(-a // b)


def width(size: int) -> int:
    """The next power of two, at least 16."""
    return max(16, 1 << (size - 1).bit_length())


@dataclass(frozen=True)
class Plan:
    """Tables of what programs work on.

    chunks [n, 2]: first token, length. blocks [m, 3]: first and past-last token, first chunk. segments [s, 8]: the same and the first block;
    rows of the state to start from, forwards and backwards; rows where the state at the end belongs, likewise, −1 where nobody wants it.
    pieces [p, 8]: segments (in halves, where a sequence has two), likewise, for the sums from which `join` makes the states to start from,
    with −1 for the row to start from where no segment starts.
    sequences [r, 2]: first and past-last piece.
    """

    chunk: int
    chunks: Tensor
    blocks: Tensor
    segments: Tensor
    pieces: Tensor
    sequences: Tensor


def plan(offsets: tuple[int, ...], programs: int, largest_chunk: int, chunks_of_block: int, device: torch.device) -> Plan:
    """Cut sequences into chunks, blocks, segments and pieces. programs: those that walk one sequence side by side (heads × tiles of a state)."""
    longest = max(b - a for a, b in pairwise(offsets))
    chunk = min(largest_chunk, width(longest))
    wanted = max(1, PROGRAMS // (programs * (len(offsets) - 1)))
    block = chunks_of_block * chunk
    cut = any(b - a > _segment(b - a, block, wanted) for a, b in pairwise(offsets))
    chunks: list[tuple[int, ...]] = []
    blocks: list[tuple[int, ...]] = []
    segments: list[tuple[int, ...]] = []
    pieces: list[tuple[int, ...]] = []
    sequences: list[tuple[int, ...]] = []
    for row, (a, b) in enumerate(pairwise(offsets)):
        length = _segment(b - a, block, wanted)
        begin = len(pieces)
        for i in range(a, b, length):
            end, first, last = min(i + length, b), i == a, i + length >= b
            where = len(chunks) + (i - a) // chunk
            half = ratio(ratio(end - i, chunk), 2 if b - a <= 2 * length else 1) * chunk
            halves = [(j, min(j + half, end)) for j in range(i, end, half)]
            for j, past in halves:
                at = len(pieces)
                starts = (at if j == i else -1, at if past == end else -1)
                pieces.append((j, past, where + (j - i) // chunk, 0, *starts, -1 if last else at, -1 if first else at))
            rows = (len(pieces) - len(halves), len(pieces) - 1) if cut else (row, row)
            segments.append((i, end, where, len(blocks) + (i - a) // block, *rows, row if last else -1, row if first else -1))
        sequences.append((begin, len(pieces)))
        blocks += [(i, min(i + block, b), len(chunks) + (i - a) // chunk) for i in range(a, b, block)]
        chunks += [(i, min(chunk, b - i)) for i in range(a, b, chunk)]
    tables = (chunks, blocks, segments, pieces, sequences)
    return Plan(chunk, *(torch.tensor(rows, dtype=torch.int32, device=device) for rows in tables))


def _segment(length: int, block: int, wanted: int) -> int:
    """Tokens of a segment: whole blocks."""
    return ratio(ratio(length, block), wanted) * block
