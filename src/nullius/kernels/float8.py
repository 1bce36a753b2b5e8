"""Matrix products whose factors have eight bits: twice as fast as with sixteen on tensor cores that take them (compute capability 8.9 and later).

A matrix x is kept as numbers of eight bits and one factor for all of them, x ≈ numbers · factor: `e4m3` (three bits of mantissa, up to 448) or
`e5m2` (two, up to 57,344, and down to 2^-16), Micikevicius et al. 2022, "FP8 formats for deep learning". Tensor cores read both sides of a product
along the axis they sum over. So a matrix that is multiplied from left and right, as all are in training, is wanted in both orders; `narrow` writes
both in one pass, and matrices that belong together to their place side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
# Sides of matrices are multiples of this: kernels fill their tiles, and what they write in either order lies together in memory by 128 bytes
SIDE = 128
OLDEST = (8, 9)  # compute capability
TILE = SIDE
GRADIENT_TILE = (128, 64)  # of three matrices that are read and two that are written in both orders
WARPS = 8


def works(device: torch.device) -> bool:
    """Whether a device multiplies numbers of eight bits faster than others."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= OLDEST


def right(device: torch.device) -> bool:
    """Whether what a device gives is what the definitions give on the CPU, tried on numbers that eight bits hold: both orders, side by side and
    stacked, in 32 and in 16 bits, the gradient of SwiGLU, and a product.

    To be asked before anything is trained: on an H200 an earlier kernel left columns unwritten where it did not fill its tiles, and neither the
    interpreter nor the code that Triton 3.6 made of it showed why.
    """
    chosen, one = torch.Generator().manual_seed(0), torch.ones(())

    def whole(*shape: int, most: int = 7) -> Tensor:
        return torch.randint(-most, most + 1, shape, generator=chosen).float()

    def same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
        return all(torch.equal(a.cpu().float(), b.float()) for a, b in zip(found, expected, strict=True))

    try:
        for dtype in (torch.float32, torch.bfloat16):
            for wide in (False, True):
                for stacked in (False, True):
                    sides = (SIDE, 2 * SIDE) if stacked else (2 * SIDE, SIDE)
                    parts = [whole(*sides).to(dtype), whole(*sides).to(dtype)]
                    found = narrow([part.to(device) for part in parts], one.to(device), wide, stacked)
                    if not same(found, _plainly(parts, one, wide, stacked)):
                        return False
            parts = [whole(SIDE, 2 * SIDE, most=most).to(dtype) for most in (2, 1, 2)]
            parts[1] *= 40  # gates that are open, half open, closed
            if not same(narrow_swiglu_gradient(*(part.to(device) for part in parts), one.to(device)), _plain_gradient(*parts, one)):
                return False
        a, b = whole(SIDE, 2 * SIDE), whole(SIDE, 2 * SIDE)
        (a_rows, _), (b_rows, _) = (narrow([x.to(device)], one.to(device), False, False) for x in (a, b))
        product = multiply(a_rows, b_rows, one.to(device), one.to(device), torch.float32, fast=False).cpu()
    except Exception:  # no Triton, no compiler of C, a driver that does not know these products: whatever it is, there is bf16
        return False
    return torch.allclose(product, a @ b.T, rtol=1e-3, atol=1.0)


def factor(parts: Sequence[Tensor]) -> Tensor:
    """Return the power of two [] by which matrices are divided to be kept in e4m3: their largest number comes to between 224 and 448.

    It changes no digit. Of numbers that are none (NaN) it is none.
    """
    largest = torch.stack([part.abs().amax() for part in parts]).amax().float()
    return torch.exp2(torch.ceil(torch.log2(largest.clamp(min=1e-30) / 448)))


@torch.library.custom_op(
    "nullius::narrow", mutates_args=(), schema="(Tensor[] parts, Tensor factor, bool wide, bool stacked) -> (Tensor, Tensor)"
)
def narrow(parts: Sequence[Tensor], factor: Tensor, wide: bool, stacked: bool) -> tuple[Tensor, Tensor]:
    """Return matrices [n, d_i] side by side, or [n_i, d] stacked, as one of eight bits, divided by factor []: by rows [n, d] and by columns [d, n].

    wide: e5m2, for gradients, whose sizes differ most; else e4m3. Numbers too large for it become its largest; NaN stays NaN.
    Raises ValueError on a GPU for sides that are no multiples of `SIDE`.
    """
    _check(parts)
    rows, columns = _shaped(parts, factor, wide, stacked)
    from nullius.kernels import float8_triton as kernel

    place = 0
    for part in parts:
        along = slice(place, place + part.shape[0 if stacked else 1])
        here = (rows[along], columns[:, along]) if stacked else (rows[:, along], columns[along])
        kernel.narrow(part.contiguous(), factor, *here)
        place = along.stop
    return rows, columns


def _check(parts: Sequence[Tensor]) -> None:
    for part in parts:
        if part.ndim != 2 or part.shape[0] % SIDE or part.shape[1] % SIDE:
            raise ValueError(f"matrices with sides that are multiples of {SIDE} are kept in eight bits on a GPU, got {list(part.shape)}")


@narrow.register_kernel("cpu")
def _plainly(parts: Sequence[Tensor], factor: Tensor, wide: bool, stacked: bool) -> tuple[Tensor, Tensor]:
    kind = E5M2 if wide else E4M3
    largest = torch.finfo(kind).max
    rows = (torch.cat(tuple(parts), 0 if stacked else 1).float() / factor).clamp(-largest, largest).to(kind)
    return rows, rows.T.clone(memory_format=torch.contiguous_format)


@narrow.register_fake
def _shaped(parts: Sequence[Tensor], factor: Tensor, wide: bool, stacked: bool) -> tuple[Tensor, Tensor]:
    (n, d), kind = parts[0].shape, E5M2 if wide else E4M3
    n, d = (sum(part.shape[0] for part in parts), d) if stacked else (n, sum(part.shape[1] for part in parts))
    return parts[0].new_empty((n, d), dtype=kind), parts[0].new_empty((d, n), dtype=kind)


@torch.library.custom_op("nullius::narrow_swiglu_gradient", mutates_args=())
def narrow_swiglu_gradient(d_h: Tensor, gate: Tensor, up: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of gate and up [n, d], side by side in e5m2 and divided by factor [], where h = SiLU(gate) ⊙ up has the gradient d_h:
    by rows [n, 2 d] and by columns [2 d, n]. They are written nowhere else. Raises ValueError as `narrow` does."""
    from nullius.kernels import float8_triton as kernel

    _check((d_h, gate, up))
    rows, columns = _shaped_gradient(d_h, gate, up, factor)
    kernel.narrow_swiglu_gradient(d_h.contiguous(), gate.contiguous(), up.contiguous(), factor, rows, columns)
    return rows, columns


@narrow_swiglu_gradient.register_kernel("cpu")
def _plain_gradient(d_h: Tensor, gate: Tensor, up: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    d_h, gate, up = d_h.float(), gate.float(), up.float()
    open = gate.sigmoid()
    return _plainly([d_h * up * open * (1 + gate * (1 - open)), d_h * gate * open], factor, True, False)


@narrow_swiglu_gradient.register_fake
def _shaped_gradient(d_h: Tensor, gate: Tensor, up: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    return _shaped([gate, up], factor, True, False)


def multiply(a: Tensor, b: Tensor, factor_a: Tensor, factor_b: Tensor, dtype: torch.dtype, fast: bool) -> Tensor:
    """Return a bᵀ [m, n] in dtype, of a [m, k] and b [n, k] of eight bits with their factors [].

    fast: sum as the tensor cores do by themselves, with some 14 bits; else sums of 128 terms are added up in float32.
    """
    return torch._scaled_mm(a, b.T, scale_a=factor_a, scale_b=factor_b, out_dtype=dtype, use_fast_accum=fast)
