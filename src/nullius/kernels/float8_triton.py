"""The kernels of `float8`: a tile of a matrix is read once, and written by rows and by columns. Sides of matrices are multiples of the tile's."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from nullius.kernels import float8


@triton.jit
def _write(value, by_rows, by_columns, i, j, row_stride, column_stride, LARGEST: tl.constexpr):
    """Write a tile, rows i and columns j, to both orders; numbers that are too large as the largest."""
    value = tl.clamp(value, -LARGEST, LARGEST, propagate_nan=tl.PropagateNan.ALL).to(by_rows.dtype.element_ty)
    tl.store(by_rows + i[:, None] * row_stride + j[None, :], value)
    tl.store(by_columns + j.to(tl.int64)[:, None] * column_stride + i[None, :], tl.trans(value))


@triton.jit
def _narrow(x, factor, by_rows, by_columns, d, row_stride, column_stride, LARGEST: tl.constexpr, TILE: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    j = tl.program_id(1) * TILE + tl.arange(0, TILE)
    value = tl.load(x + i[:, None] * d + j[None, :]).to(tl.float32) / tl.load(factor)
    _write(value, by_rows, by_columns, i, j, row_stride, column_stride, LARGEST)


@triton.jit
def _swiglu_gradient(d_h, gate, up, factor, by_rows, by_columns, n, d, LARGEST: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    j = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    place = i[:, None] * d + j[None, :]
    d_value = tl.load(d_h + place).to(tl.float32) / tl.load(factor)
    g = tl.load(gate + place).to(tl.float32)
    u = tl.load(up + place).to(tl.float32)
    open = tl.sigmoid(g)
    _write(d_value * u * open * (1 + g * (1 - open)), by_rows, by_columns, i, j, 2 * d, n, LARGEST)
    _write(d_value * g * open, by_rows + d, by_columns + d.to(tl.int64) * n, i, j, 2 * d, n, LARGEST)


def narrow(x: Tensor, factor: Tensor, rows: Tensor, columns: Tensor) -> None:
    """Write a matrix [n, d], divided by factor [], to rows [n, d] and columns [d, n] of eight bits, whose last axes are contiguous."""
    (n, d), tile = x.shape, float8.TILE
    largest = torch.finfo(rows.dtype).max
    with _at(x):
        _narrow[n // tile, d // tile](x, factor, rows, columns, d, rows.stride(0), columns.stride(0), largest, tile, num_warps=float8.WARPS)


def narrow_swiglu_gradient(d_h: Tensor, gate: Tensor, up: Tensor, factor: Tensor, rows: Tensor, columns: Tensor) -> None:
    """See `float8.narrow_swiglu_gradient`; results go to rows [n, 2 d] and columns [2 d, n]. All are contiguous."""
    (n, d), (tall, wide) = d_h.shape, float8.GRADIENT_TILE
    largest = torch.finfo(rows.dtype).max
    with _at(d_h):
        _swiglu_gradient[n // tall, d // wide](d_h, gate, up, factor, rows, columns, n, d, largest, tall, wide, num_warps=float8.WARPS)


def _at(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, whatever its tensors are on."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
