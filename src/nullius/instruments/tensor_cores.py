"""The linear maps of a layer on the tensor cores of a GPU, for a while, in float32: nearly four times as fast as torch's own, and as exact.

Tensor cores multiply halves, not float32. `nullius.kernels.halves` makes a float32 product of three products of halves, which agrees to float32
rounding, not bit for bit. Weights are split once, for as long as a layer is in use (as much memory as its weights), an input that several maps
share likewise once. Weights are untouched; on other devices and types, for small products, and where Triton cannot compile, nothing happens.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WORTH = 2**31  # multiplications of a product from where on it is quicker than torch's, the splitting of its input included
SHARED = 3 * 2**16  # bytes of shared memory that a program needs: GPUs of data centres from Hopper on have them


@contextmanager
def maps(layer: nn.Module) -> Iterator[None]:
    """While open, a layer's linear maps run on tensor cores, where they can. Hooks on its modules work as ever; gradients do not flow."""
    linears = [module for module in layer.modules() if can(module)]
    inputs = _Inputs()
    changed: list[Any] = []
    try:
        for module in linears:
            module.forward = Linear(module, inputs)
            changed.append(module)
        yield
    finally:
        for module in changed:
            del module.forward  # uncovers the method of its class


def can(module: nn.Module) -> bool:
    """Whether a module is a linear map that tensor cores can take over, and nobody else has."""
    if type(module) is not nn.Linear or "forward" in vars(module) or type(module.weight) is not nn.Parameter:
        return False
    weight = module.weight  # itself, and not one that packs something else behind the type of what it was made from
    if weight.dtype != torch.float32 or not weight.is_contiguous() or weight.shape[1] % 64:
        return False
    return available(weight.device) and not torch.is_autocast_enabled(weight.device.type)


@cache
def available(device: torch.device) -> bool:
    """Whether a device has what is needed, and the kernels give there what they should: they are tried on a small product."""
    if device.type != "cuda" or getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0) < SHARED:
        return False
    a, b = (torch.linspace(-1, 1 + i, 192 * 256, device=device).sin().view(192, 256) for i in range(2))
    try:
        found = kernels().product(kernels().split(a), kernels().split(b)).double()
    except Exception:  # no Triton, no compiler of C, a device or driver that it does not know: whatever it is, there is another way
        return False
    exact = a.double() @ b.double().T
    return bool((found - exact).abs().max() < 1e-5 * exact.abs().max())


def kernels() -> Any:
    """The module of the kernels, which imports Triton: not before they are wanted."""
    from nullius.kernels import halves

    return halves


def worth(rows: int, weight: Tensor) -> bool:
    """Whether a product with so many rows is large enough."""
    return rows * weight.numel() >= WORTH


class Linear:
    """x · W.T + b; an input of too few rows, or of another type, is left to torch."""

    def __init__(self, module: Any, inputs: _Inputs) -> None:
        self.weight, self.bias, self.inputs = module.weight.detach(), module.bias, inputs
        self.halves: Any = None

    def __call__(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32 or not worth(x.numel() // x.shape[-1], self.weight):
            return F.linear(x, self.weight, self.bias)
        if self.halves is None:
            self.halves = kernels().split(self.weight)
        return kernels().product(self.inputs.split(x), self.halves, self.bias).view(*x.shape[:-1], -1)


class _Inputs:
    """The halves of the last input: queries, keys and values are made of one, and so are a gate and what it lets through."""

    def __init__(self) -> None:
        self.last: Any = lambda: None
        self.version, self.halves = -1, None

    def split(self, x: Tensor) -> Any:
        version = -1 if x.is_inference() else x._version  # counts what is written into it; there is no such count in inference mode
        if self.last() is not x or version != self.version or version < 0:
            self.last, self.version, self.halves = weakref.ref(x), version, kernels().split(x.reshape(-1, x.shape[-1]).contiguous())
        return self.halves
