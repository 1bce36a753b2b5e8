"""The linear maps of a layer by oneDNN, for a while: on a CPU, in float32, they take a tenth to a fifth less time than torch's own.

torch hands `nn.Linear` to the machine's BLAS, which rearranges the weights at each call. Here they are rearranged once, for as long as a layer is in
use; and where a feed-forward block is the usual gated one, activation and product are made by the same kernels, while the numbers are in the cache.
For each number of tokens oneDNN compiles a kernel of its own, which takes a millisecond and stays, with about a megabyte: so only a few numbers
(`suits`) go to it. Results agree to float32 rounding, not bit for bit. Weights are untouched; on other devices and types nothing happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GATED = {"gate_proj", "up_proj", "down_proj", "act_fn"}
ACTIVATIONS: dict[tuple[str, str], Callable[[Tensor], Tensor]] = {
    ("swish", ""): F.silu,
    ("gelu", "tanh"): partial(F.gelu, approximate="tanh"),
    ("gelu", "none"): F.gelu,
    ("relu", ""): F.relu,
}
_gated: dict[type, bool] = {}  # by class of feed-forward block: whether it is what `_Gated` computes


@contextmanager
def maps(layer: nn.Module) -> Iterator[None]:
    """While open, a layer's linear maps run by oneDNN, where they can. Hooks on its modules work as ever; gradients do not flow."""
    changed: list[nn.Module] = []
    linears = {module: _taken_over(module) for module in layer.modules() if can(module)}
    try:
        for module, linear in linears.items():
            module.forward = linear
            changed.append(module)
        for module in layer.modules() if linears else ():
            gated = _fused(module, linears)
            if gated is not None:
                module.forward = gated
                changed.append(module)
        yield
    finally:
        for module in changed:
            del module.forward  # uncovers the method of its class


def suits(x: Tensor) -> bool:
    """Whether oneDNN is given a tensor of so many tokens: the multiples of 128, and of 8 from 384 on (of which a sweep's full batches hold one)."""
    tokens = x.numel() // x.shape[-1]
    return tokens % 128 == 0 or (tokens >= 384 and tokens % 8 == 0)


class Linear:
    """activation(x · W.T + b), and that times or plus y; a number of tokens that does not suit is left to torch (and has no activation).

    unit: the numbers of tokens that suit are its multiples (None: see `suits`).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, unit: int | None = None) -> None:
        self.weight, self.bias, self.unit = weight.detach(), bias, unit
        self.packed: Tensor | None = None

    def suits(self, x: Tensor) -> bool:
        """Whether a tensor of so many tokens goes to oneDNN."""
        tokens = x.numel() // x.shape[-1]
        return suits(x) if self.unit is None else tokens > 0 and tokens % self.unit == 0

    def __call__(self, x: Tensor, kind: str = "none", algorithm: str = "") -> Tensor:
        if not self.suits(x):
            return F.linear(x, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self._packed(), self.bias, kind, [], algorithm)

    def times(self, x: Tensor, y: Tensor) -> Tensor:
        if not self.suits(x):
            return F.linear(x, self.weight, self.bias).mul_(y)
        return torch.ops.mkldnn._linear_pointwise.binary(x, y, self._packed(), self.bias, "mul")

    def plus(self, x: Tensor, y: Tensor) -> Tensor:
        if not self.suits(x):
            return F.linear(x, self.weight, self.bias).add_(y)
        return torch.ops.mkldnn._linear_pointwise.binary(x, y, self._packed(), self.bias, "add")

    def _packed(self) -> Tensor:
        if self.packed is None:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight)
        return self.packed


class _Gated:
    """down(activation(gate(x)) · up(x)) in three kernels; a number of tokens that does not suit goes the block's own way."""

    def __init__(self, block: Any, gate: Linear, up: Linear, kind: tuple[str, str]) -> None:
        self.block, self.gate, self.up, self.kind = block, gate, up, kind

    def __call__(self, x: Tensor) -> Tensor:
        if not suits(x):
            return type(self.block).forward(self.block, x)
        return self.block.down_proj(self.up.times(x, self.gate(x, *self.kind)))


def _taken_over(module: Any) -> Linear:
    return Linear(module.weight, module.bias)


@cache
def available() -> bool:
    """Whether this build of torch has what is needed."""
    try:
        made = nn.Linear(2, 2)
        linear = Linear(made.weight, made.bias)
        return torch.backends.mkldnn.is_available() and linear(torch.ones(128, 2)).shape == (128, 2)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False


def can(module: nn.Module) -> bool:
    """Whether a module is a linear map that oneDNN can take over, and nobody else has."""
    if type(module) is not nn.Linear or "forward" in vars(module):
        return False
    weight = module.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.is_contiguous() and available()


def activation(function: Callable[[Tensor], Tensor]) -> tuple[str, str] | None:
    """What oneDNN calls an activation function; None where it is none of `ACTIVATIONS`."""
    points = torch.linspace(-6, 6, 64)
    return next((kind for kind, known in ACTIVATIONS.items() if torch.allclose(function(points), known(points), atol=1e-6)), None)


def _fused(block: nn.Module, linears: dict[nn.Module, Linear]) -> _Gated | None:
    """A feed-forward block in three kernels, if that is what it does; each class of block is tried out once."""
    parts = dict(block.named_children())
    if set(parts) != GATED or any(parts[name] not in linears for name in GATED - {"act_fn"}) or "forward" in vars(block):
        return None
    kind = activation(parts["act_fn"])
    if kind is None:
        return None
    gated = _Gated(block, linears[parts["gate_proj"]], linears[parts["up_proj"]], kind)
    if type(block) not in _gated:
        some = torch.randn(1, 128, gated.gate.weight.shape[1], generator=torch.Generator().manual_seed(0))
        plain, quick = block.forward(some), gated(some)
        _gated[type(block)] = torch.allclose(plain, quick, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))
    return gated if _gated[type(block)] else None
