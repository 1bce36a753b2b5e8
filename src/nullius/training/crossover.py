"""The clock: how long a training step's mixing takes, gated linear attention against softmax attention, at one length."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nullius.kernels.gated import gated_linear_attention

Floats = NDArray[np.float64]
TOKENS = 32_768  # in one pass on a GPU


@dataclass(frozen=True)
class Timings:
    """Seconds of a forward and a backward pass, repeat by repeat [n]. again: softmax a second time, the control."""

    chunks: Floats
    softmax: Floats
    again: Floats


def time_layer(length: int, repeats: int, device: torch.device | str, heads: int = 4, width: int = 64) -> Timings:
    """Time both kinds of mixing, heads · width channels of values, keys half as wide in the gated one (as in its paper).

    On the CPU one sequence in float32. On CUDA bf16 and as many sequences as make 32,768 tokens, four times the heads: a GPU is not full
    before. The three are timed in turn, in an order that goes round, after passes of each that do not count. Deterministic kernels are not asked for:
    softmax attention would pay for them, and it is speed that is asked.
    """
    device = torch.device(device)
    generator = torch.Generator().manual_seed(length)
    cuda = device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    batch, heads = (max(1, TOKENS // length), 4 * heads) if cuda else (1, heads)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype).requires_grad_()

    q, k, v = (leaf(batch, length, heads, size) for size in (width // 2, width // 2, width))
    gate = leaf(batch, length, heads, width // 2)
    queries, keys, values = (leaf(batch, heads, length, width) for _ in range(3))

    def chunks() -> Tensor:
        out = gated_linear_attention(q, k, v, F.logsigmoid(gate.float()) / 16)
        assert isinstance(out, Tensor)
        return out

    def softmax() -> Tensor:
        return F.scaled_dot_product_attention(queries, keys, values, is_causal=True)

    runs = {"chunks": chunks, "softmax": softmax, "again": softmax}
    taken: dict[str, list[float]] = {name: [] for name in runs}
    names, idle = list(runs), 3 if cuda else 1
    strict, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        for turn in range(repeats + idle):
            for name in names[turn % 3 :] + names[: turn % 3]:
                seconds = _once(runs[name], [q, k, v, gate, queries, keys, values], device)
                if turn >= idle:
                    taken[name].append(seconds)
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warn)
    return Timings(**{name: np.array(values) for name, values in taken.items()})


def _once(run: Callable[[], Tensor], leaves: list[Tensor], device: torch.device) -> float:
    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    start = now()
    run().sum().backward()
    seconds = now() - start
    for leaf in leaves:
        leaf.grad = None
    return seconds
