"""Linear maps that are trained with products of eight bits: forwards, of the gradient of their input, and of their weight.

Weights stay what they are, in float32. Input and weight are divided by a power of two that brings their largest number close to the end of `e4m3`,
found anew at each pass, so that nothing has to be remembered from step to step. Gradients are kept in `e5m2`, whose 32 powers of two hold
the gradient of one token's loss wherever it is: that of a mean over N tokens is multiplied by N, and nothing has to be looked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nullius.kernels import float8


class Float8Linear(nn.Linear):
    """A linear map with the weight and name that it had, trained with products of eight bits; where no gradient is made it is what it was."""

    def forward(self, x: Tensor) -> Tensor:
        """x [.., d] → [.., n]."""
        if not (self.training and torch.is_grad_enabled() and fits(x)):
            return super().forward(x)
        (y,) = project(x, self)
        return y if self.bias is None else y + self.bias.to(y.dtype)


def trained_in_float8(layers: list[nn.Module]) -> int:
    """Turn the linear maps inside layers, in place, into such that are trained in eight bits. Returns how many.

    Maps with a side that is no multiple of 128 stay as they are; so do those of other kinds (adapters, convolutions).
    """
    maps = [map for layer in layers for map in layer.modules() if type(map) is nn.Linear]
    fit = [map for map in maps if not (map.in_features % float8.SIDE or map.out_features % float8.SIDE)]
    for map in fit:
        map.__class__ = Float8Linear
    return len(fit)


def fits(x: Tensor) -> bool:
    """Whether as many rows [.., d] as x has can be kept in eight bits; else maps do what they did before."""
    return x.numel() // x.shape[-1] % float8.SIDE == 0


def project(x: Tensor, *maps: Float8Linear) -> tuple[Tensor, ...]:
    """Return x Wᵀ for each map of one input [.., d], without its bias, in 16 bits under autocast and else in the type of x."""
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    return _Project.apply(x, *(map.weight for map in maps))


def swiglu(x: Tensor, gate: Float8Linear, up: Float8Linear, down: Float8Linear) -> Tensor:
    """Return down(SiLU(gate(x)) ⊙ up(x)) of x [.., d] for maps without a bias; SiLU(..) ⊙ .. is remembered in eight bits."""
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    return _SwiGLU.apply(x, gate.weight, up.weight, down.weight)


class _Both(NamedTuple):
    """A matrix of eight bits by rows and by columns, with its factor."""

    rows: Tensor
    columns: Tensor
    factor: Tensor

    @classmethod
    def of(cls, *parts: Tensor) -> _Both:
        """Weights or activations; several are stacked."""
        factor = float8.factor(parts)
        rows, columns = float8.narrow(list(parts), factor, False, True)
        return cls(rows, columns, factor)

    @classmethod
    def of_gradients(cls, *parts: Tensor) -> _Both:
        """Gradients side by side, of a mean over as many tokens as they have rows."""
        factor = _of_a_mean(parts[0])
        rows, columns = float8.narrow(list(parts), factor, True, False)
        return cls(rows, columns, factor)


def _of_a_mean(gradient: Tensor) -> Tensor:
    """The power of two below 1 / N for a gradient [N, d]."""
    return torch.full((), 2.0 ** -math.ceil(math.log2(gradient.shape[0])), device=gradient.device)


class _Project(torch.autograd.Function):
    """y_i = x W_iᵀ; dx = [dy_1 dy_2 ..] [W_1; W_2; ..], [dW_1; dW_2; ..] = [dy_1 dy_2 ..]ᵀ x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        left, right = _Both.of(x.flatten(0, -2)), _Both.of(*weights)
        ctx.widths, ctx.dtype, ctx.shape = [weight.shape[0] for weight in weights], x.dtype, x.shape
        ctx.save_for_backward(left.columns, left.factor, right.columns, right.factor)
        return tuple(y.unflatten(0, x.shape[:-1]) for y in _products(left, right, ctx.widths, x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, of_x, weights, of_weights = ctx.saved_tensors
        d_y = _Both.of_gradients(*(gradient.flatten(0, -2) for gradient in gradients))
        d_x = float8.multiply(d_y.rows, weights, d_y.factor, of_weights, ctx.dtype, fast=True) if ctx.needs_input_grad[0] else None
        d_weights = _of_weights(d_y, x, of_x, ctx.widths, ctx.needs_input_grad[1:])
        return None if d_x is None else d_x.view(ctx.shape), *d_weights


class _SwiGLU(torch.autograd.Function):
    """h = SiLU(x W_gᵀ) ⊙ (x W_uᵀ), y = h W_dᵀ. Gradients of gate and up are made where they are brought to eight bits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor) -> Tensor:
        left, right, down = _Both.of(x.flatten(0, -2)), _Both.of(w_gate, w_up), _Both.of(w_down)
        gate, up = _products(left, right, [w_gate.shape[0]] * 2, x.dtype)
        h = _Both.of(F.silu(gate) * up)
        ctx.save_for_backward(
            gate, up, left.columns, left.factor, right.columns, right.factor, h.columns, h.factor, down.columns, down.factor
        )
        ctx.dtype, ctx.shape = x.dtype, x.shape
        return float8.multiply(h.rows, down.rows, h.factor, down.factor, x.dtype, fast=True).unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, x, of_x, weights, of_weights, h, of_h, down, of_down = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        d_y = _Both.of_gradients(gradients[0].flatten(0, -2))
        d_h = float8.multiply(d_y.rows, down, d_y.factor, of_down, ctx.dtype, fast=True)
        rows, columns = float8.narrow_swiglu_gradient(d_h, gate, up, d_y.factor)
        both = _Both(rows, columns, d_y.factor)
        d_x = float8.multiply(both.rows, weights, both.factor, of_weights, ctx.dtype, fast=True) if wanted[0] else None
        d_maps = _of_weights(both, x, of_x, [gate.shape[1]] * 2, wanted[1:3])
        (d_down,) = _of_weights(d_y, h, of_h, [d_y.columns.shape[0]], wanted[3:])
        return None if d_x is None else d_x.view(ctx.shape), *d_maps, d_down


def _products(x: _Both, weights: _Both, widths: list[int], dtype: torch.dtype) -> list[Tensor]:
    """x W_iᵀ for each of the stacked weights."""
    return [float8.multiply(x.rows, weight, x.factor, weights.factor, dtype, fast=True) for weight in weights.rows.split(widths)]


def _of_weights(d_y: _Both, x: Tensor, of_x: Tensor, widths: list[int], wanted: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """dW_i = dy_iᵀ x in float32; sums over all tokens are too long for 14 bits. x: by columns."""
    parts = zip(d_y.columns.split(widths), wanted, strict=True)
    return tuple(float8.multiply(part, x, d_y.factor, of_x, torch.float32, fast=False) if here else None for part, here in parts)
