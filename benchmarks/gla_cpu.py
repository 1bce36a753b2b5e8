"""Gated linear attention on the CPU: the chunk form against the recurrence, and against PyTorch's softmax attention, over the length.

    python benchmarks/gla_cpu.py [--lengths 64 256 1024 4096] [--heads 4] [--width 64] [--repeats 5]

float32, one thread, one sequence, `heads` heads with values of `width` channels and keys of half as many (as in the paper's layer); softmax
attention has queries, keys and values of `width`. All run in turn, in an order that goes round; a first pass of each does not count. Milliseconds
of processor time, so that what else runs on the machine counts little; medians; forward, and forward with backward. What takes longer than
--patience seconds at one length is not asked at the next ones.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nullius.kernels.gated import gated_linear_attention


def forms(length: int, heads: int, width: int) -> dict[str, tuple[Callable[..., Tensor], list[Tensor]]]:
    """Each form with the tensors that it mixes."""
    generator = torch.Generator().manual_seed(length)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).requires_grad_()

    q, k, v = (leaf(1, length, heads, size) for size in (width // 2, width // 2, width))
    gate = (F.logsigmoid(leaf(1, length, heads, width // 2)) / 16).detach().requires_grad_()
    softmax = [leaf(1, heads, length, width) for _ in range(3)]

    def gated(backend: str) -> Callable[..., Tensor]:
        return lambda *tensors: gated_linear_attention(*tensors, backend=backend)

    return {
        "chunks": (gated("chunks"), [q, k, v, gate]),
        "recurrence": (gated("recurrence"), [q, k, v, gate]),
        "softmax": (lambda *tensors: F.scaled_dot_product_attention(*tensors, is_causal=True), softmax),
    }


def once(function: Callable[..., Tensor], tensors: list[Tensor], backward: bool) -> float:
    """Milliseconds of one pass."""
    began = time.process_time()
    if backward:
        out = function(*tensors)
        torch.autograd.grad(out, tensors, torch.ones_like(out))
    else:
        with torch.no_grad():
            function(*tensors)
    return 1000 * (time.process_time() - began)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Time everything and print a table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--lengths", type=int, nargs="+", default=[16, 64, 256, 1024, 2048, 4096, 8192])
    options.add_argument("--heads", type=int, default=4)
    options.add_argument("--width", type=int, default=64)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--patience", type=float, default=30.0)
    asked = options.parse_args()
    torch.set_num_threads(1)
    machine = f"{_processor()}, one thread"
    print(f"{date.today()}, {machine}, torch {torch.__version__}, Python {platform.python_version()}")
    print(
        f"{asked.heads} heads, values of {asked.width}, keys of {asked.width // 2}, medians of {asked.repeats}: forward / forward and backward, ms"
    )
    print("| T | chunks | recurrence | softmax | recurrence ÷ chunks | softmax ÷ chunks |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    given_up: set[str] = set()
    for length in asked.lengths:
        found: dict[tuple[str, bool], list[float]] = {}
        made = {name: form for name, form in forms(length, asked.heads, asked.width).items() if name not in given_up}
        for turn in range(asked.repeats + 1):
            names = list(made)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                for backward in (False, True):
                    taken = once(*made[name], backward)
                    if turn:
                        found.setdefault((name, backward), []).append(taken)
                    if taken > 1000 * asked.patience:
                        given_up.add(name)
        middle = {key: statistics.median(values) for key, values in found.items()}

        def cell(name: str, middle: dict[tuple[str, bool], float] = middle) -> str:
            return f"{middle[name, False]:.2f} / {middle[name, True]:.2f}" if (name, True) in middle else "-"

        def ratio(name: str, middle: dict[tuple[str, bool], float] = middle) -> str:
            if (name, True) not in middle:
                return "-"
            return " / ".join(f"{middle[name, backward] / middle['chunks', backward]:.2f}" for backward in (False, True))

        cells = [cell(name) for name in ("chunks", "recurrence", "softmax")] + [ratio("recurrence"), ratio("softmax")]
        print(f"| {length} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
