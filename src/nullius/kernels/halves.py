"""Products of float32 matrices on tensor cores, each factor as the sum of two halves in float16; exact to float32 rounding.

A row of a factor is brought to about 2^14 by a power of two, which changes no digit, and x = high + low: high is x rounded to float16 (11 bits), low
what is left of it, rounded likewise (11 of its at most 13 bits). Of the four products high · high, high · low and low · high are made, each exact in
float32; low · low is at most 2^-22 of the whole and left out (Ootomo and Yokota 2022, "Recovering single precision accuracy from Tensor Cores").

Tensor cores add without rounding: they cut digits off, which over thousands of terms makes a sum too small. So their sums are of `DEPTH` terms only,
the small products first, and these partial sums are added up by the ordinary units, which round.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

DEPTH = 64  # terms of a partial sum; depths of products are multiples of it
ROWS = 128  # of a tile of the output
COLUMNS = 128
WARPS, STAGES = 8, 3
NEIGHBOURS = 8  # tiles of rows that are made side by side, so that they find each other's columns in the cache
PIECE = 2048  # columns of a row that are split at once


class Halves(NamedTuple):
    """A matrix [rows, depth] in float32 as (high + low) · factor: high, low [rows, depth] in float16, factor [rows], powers of two."""

    high: Tensor
    low: Tensor
    factor: Tensor


@triton.jit
def _split(x, high, low, factor, depth, PIECE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, PIECE)
    x += row * depth
    largest = tl.zeros([PIECE], tl.float32)
    for start in range(0, depth, PIECE):
        some = tl.load(x + start + columns, mask=start + columns < depth, other=0.0)
        largest = tl.maximum(largest, tl.abs(some))
    exponent = tl.max(largest, 0).to(tl.int32, bitcast=True) >> 23  # with its bias of 127
    exponent = tl.minimum(tl.maximum(exponent, 15), 254)
    up = ((268 - exponent) << 23).to(tl.float32, bitcast=True)  # the largest comes to 2^14 or more, and below 2^15
    tl.store(factor + row, ((exponent - 14) << 23).to(tl.float32, bitcast=True))
    for start in range(0, depth, PIECE):
        there = start + columns < depth
        whole = tl.load(x + start + columns, mask=there, other=0.0) * up
        upper = whole.to(tl.float16)
        tl.store(high + row * depth + start + columns, upper, mask=there)
        tl.store(low + row * depth + start + columns, (whole - upper.to(tl.float32)).to(tl.float16), mask=there)


@triton.jit(do_not_specialize=["rows"])
def _product(
    a_high,
    a_low,
    a_factor,
    b_high,
    b_low,
    b_factor,
    bias,
    out,
    rows,
    columns,
    depth,
    one,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
):
    down, across = tl.cdiv(rows, ROWS), tl.cdiv(columns, COLUMNS)
    program = tl.program_id(0)
    band = program // (NEIGHBOURS * across)
    height = tl.minimum(down - band * NEIGHBOURS, NEIGHBOURS)
    within = program % (NEIGHBOURS * across)
    i = (band * NEIGHBOURS + within % height) * ROWS + tl.arange(0, ROWS)
    j = within // height * COLUMNS + tl.arange(0, COLUMNS)
    k = tl.arange(0, DEPTH)
    of_a = (i % rows).to(tl.int64)[:, None] * depth + k[None, :]  # behind the last row come the first again: they are not stored
    of_b = (j % columns).to(tl.int64)[None, :] * depth + k[:, None]
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, depth, DEPTH):
        a, less_a = tl.load(a_high + of_a + start), tl.load(a_low + of_a + start)
        b, less_b = tl.load(b_high + of_b + start), tl.load(b_low + of_b + start)
        part = tl.dot(less_a, b)
        part = tl.dot(a, less_b, part)
        part = tl.dot(a, b, part)
        total = tl.fma(part, one, total)  # a plain sum the compiler would turn into one long sum of the tensor cores
    total *= tl.load(a_factor + i % rows)[:, None] * tl.load(b_factor + j % columns)[None, :]
    if HAS_BIAS:
        total += tl.load(bias + j % columns)[None, :]
    tl.store(out + i.to(tl.int64)[:, None] * columns + j[None, :], total, mask=(i < rows)[:, None] & (j < columns)[None, :])


def split(x: Tensor) -> Halves:
    """A matrix [rows, depth] in float32, contiguous, as halves. A row with an infinity or NaN comes back with NaN in it."""
    halves = Halves(torch.empty_like(x, dtype=torch.float16), torch.empty_like(x, dtype=torch.float16), x.new_empty(len(x)))
    with torch.cuda.device_of(x):
        _split[(len(x),)](x, *halves, x.shape[1], PIECE=PIECE, num_warps=8)
    return halves


def product(a: Halves, b: Halves, bias: Tensor | None = None) -> Tensor:
    """a · b.T (+ bias) in float32: [rows, depth], [columns, depth] → [rows, columns]. depth: a multiple of `DEPTH`."""
    rows, depth = a.high.shape
    columns = len(b.high)
    out = a.factor.new_empty(rows, columns)
    programs = triton.cdiv(rows, ROWS) * triton.cdiv(columns, COLUMNS)
    sizes = {"ROWS": ROWS, "COLUMNS": COLUMNS, "DEPTH": DEPTH, "NEIGHBOURS": NEIGHBOURS, "num_warps": WARPS, "num_stages": STAGES}
    with torch.cuda.device_of(out):
        _product[(programs,)](*a, *b, bias, out, rows, columns, depth, 1.0, HAS_BIAS=bias is not None, **sizes)
    return out
