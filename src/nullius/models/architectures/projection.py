"""Linear maps of one input: queries, keys and values; gate and up. Their weights are apart, under names of their own; their gradients meet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nullius.models.architectures import float8

PIECES = 9  # the fewest of which the compiler makes no masked loop
ALIGNED = 64  # channels of a piece are a multiple of this


def project(x: Tensor, *maps: nn.Module) -> tuple[Tensor, ...]:
    """Return what each map makes of x [.., d]: map(x) for map in maps.

    In training all of them are one node of autograd's graph. Alone, each would write a gradient of x that is as large as x, to be read again and
    added; together they give it by one matrix product, which adds inside. Maps that are anything more than a weight (hooks on them, a bias,
    adapters) are called one by one.
    """
    if not (torch.is_grad_enabled() and all(map.training and bare(map) for map in maps)):
        return tuple(map(x) for map in maps)
    eight = [map for map in maps if isinstance(map, float8.Float8Linear)]
    if eight and float8.fits(x):
        made = iter(float8.project(x, *eight))
        return tuple(next(made) if isinstance(map, float8.Float8Linear) else map(x) for map in maps)
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    return _Project.apply(x, *(map.weight.to(x.dtype) for map in maps))


def swiglu(x: Tensor, gate: nn.Module, up: nn.Module, down: nn.Module) -> Tensor:
    """Return down(SiLU(gate(x)) ⊙ up(x))."""
    if torch.is_grad_enabled() and all(map.training and bare(map) for map in (gate, up, down)):
        eight = [map for map in (gate, up, down) if isinstance(map, float8.Float8Linear)]
        if len(eight) == 3 and float8.fits(x):
            return float8.swiglu(x, *eight)
    opened, carried = project(x, gate, up)
    return down(F.silu(opened) * carried)


def bare(module: nn.Module) -> bool:
    """Whether a map is its weight and nothing else, or a sequence of maps is those maps: nobody looks at it or has changed it."""
    seen = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    if seen or "forward" in module.__dict__:
        return False
    return type(module) is nn.Sequential or (type(module) in (nn.Linear, float8.Float8Linear) and module.bias is None)


def side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """Return parts [.., n_i] as one tensor [.., Σ n_i].

    Compiled, they are cut further: of up to eight parts torch's compiler makes one loop in which each element asks which part it belongs to, at half
    the speed of memory. Of more, whatever makes a part writes it to its place.
    """
    if torch.compiler.is_compiling():
        each = -(-PIECES // len(parts))
        parts = [piece for part in parts for piece in part.split(max(ALIGNED, part.shape[-1] // each // ALIGNED * ALIGNED), -1)]
    return torch.cat(tuple(parts), -1)


class _Project(torch.autograd.Function):
    """y_i = x W_iᵀ; dx = [dy_1 dy_2 ..] [W_1; W_2; ..], and dW_i = dy_iᵀ x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, *weights)
        return tuple(F.linear(x, weight) for weight in weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        d_y = side_by_side(gradients)
        d_x = d_y @ torch.cat(weights) if ctx.needs_input_grad[0] else None
        rows, widths = x.flatten(0, -2), [weight.shape[0] for weight in weights]
        parts = zip(d_y.flatten(0, -2).split(widths, -1), ctx.needs_input_grad[1:], strict=True)
        return d_x, *(part.T @ rows if wanted else None for part, wanted in parts)
