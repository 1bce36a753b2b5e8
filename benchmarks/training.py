"""Training speed of 340M models on a GPU: gated linear attention here against the LLaMA baseline and flash-linear-attention's model.

    python benchmarks/training.py [--compile] [--lengths 2048 8192] [--models gla llama fla] [--steps 8]

Every model takes the same steps: 32 768 tokens in sequences of one length, float32 weights, bfloat16 autocast, fused AdamW, gradients clipped, no
activation checkpointing. Ours and the baseline take the step of `nullius train`. The baseline is timed with each softmax kernel that works
here; fla's model (when installed) computes its loss as it does by itself, with its own fused kernel. The first steps (compiling, autotuning) are
not timed. Times are medians of CUDA events; operations per token are counted from the architecture, the same for ours and fla's model.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.metadata
import importlib.util
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from nullius.models import architectures
from nullius.training import evaluation, measurement, processes
from nullius.training.config import Optimiser
from nullius.training.optimisers import Optimisers, outside_layers

TOKENS, VOCABULARY, WARM_UP = 32_768, 32_000, 3
KERNELS = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}


@dataclass
class Case:
    """A model to time. loss: of a model and rows [n, T + 1]. kernel: of softmax attention, where it matters."""

    name: str
    make: Callable[[int], nn.Module]
    loss: Callable[[Any, Tensor, evaluation.Head], Tensor]
    flops: Callable[[int], float]
    kernel: SDPBackend | None = None


def ours(size: str) -> Callable[[int], nn.Module]:
    """An architecture of this project by name."""
    return lambda length: architectures.create({"size": size, "vocab_size": VOCABULARY, "max_position_embeddings": length})


def flops(size: str) -> Callable[[int], float]:
    """Operations per token of training one of ours; made on no device."""

    def count(length: int) -> float:
        with torch.device("meta"):
            return measurement.flops_per_token(ours(size)(length), length)

    return count


def fla_model(length: int) -> nn.Module:
    """The peer's model of the same sizes."""
    from fla.models import GLAConfig, GLAForCausalLM

    sizes = {"hidden_size": 1024, "num_hidden_layers": 24, "num_heads": 4, "expand_k": 0.5, "expand_v": 1.0, "intermediate_size": 2816}
    return GLAForCausalLM(
        GLAConfig(**sizes, vocab_size=VOCABULARY, max_position_embeddings=length, tie_word_embeddings=True, use_cache=False)
    )


def fla_loss(model: Any, rows: Tensor, _head: evaluation.Head) -> Tensor:
    """The peer shifts its labels itself."""
    return model(input_ids=rows[:, :-1], labels=rows[:, :-1]).loss


def ours_loss(model: Any, rows: Tensor, head: evaluation.Head) -> Tensor:
    """As in `nullius train`."""
    return evaluation.loss_of(model, rows, head)


def cases(wanted: list[str]) -> Iterator[Case]:
    """What can be timed here."""
    if "gla" in wanted:
        yield Case("GLA 340M, nullius", ours("gla-340m"), ours_loss, flops("gla-340m"))
    if "llama" in wanted:
        for name, kernel in KERNELS.items():
            yield Case(f"LLaMA 340M, {name}", ours("llama-340m"), ours_loss, flops("llama-340m"), kernel)
    if "fla" in wanted and importlib.util.find_spec("fla"):
        yield Case("GLA 340M, fla", fla_model, fla_loss, flops("gla-340m"))


def measure(case: Case, length: int, steps: int, compiled: bool) -> dict[str, float]:
    """Train for some steps; return tokens per second, share of the peak, peak memory in GiB, the last loss, seconds before the first timed step."""
    began = time.perf_counter()
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = case.make(length)
        rows = torch.randint(0, VOCABULARY, (TOKENS // length, length + 1))
    model.float().train()
    head: Any = evaluation.cross_entropy
    if compiled:
        for layer in processes.layers(model):
            layer.compile()
        head = torch.compile(head)
    named = dict(model.named_parameters())
    optimisers = Optimisers(named, Optimiser(rate=1e-4), outside_layers(model), fused=True)
    choice = sdpa_kernel(case.kernel) if case.kernel is not None else contextlib.nullcontext()
    times, loss = [], torch.zeros(())
    with choice:
        for step in range(WARM_UP + steps):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            if step == WARM_UP:
                torch.cuda.synchronize()
                before = time.perf_counter() - began
                torch.cuda.reset_peak_memory_stats()
            start.record()
            with torch.autocast("cuda", torch.bfloat16):
                loss = case.loss(model, rows, head)
            loss.backward()
            nn.utils.clip_grad_norm_(list(named.values()), 1.0)
            optimisers.step(1.0)
            end.record()
            end.synchronize()
            if step >= WARM_UP:
                times.append(start.elapsed_time(end) / 1000)
    speed = TOKENS / statistics.median(times)
    peak = measurement.peak_tflops(torch.device("cuda")) * 1e12
    memory = torch.cuda.max_memory_allocated() / 2**30
    parts = {"tokens": speed, "share": speed * case.flops(length) / peak if peak else float("nan"), "memory": memory}
    return {**parts, "loss": float(loss.detach()), "before": before, "parameters": float(sum(p.numel() for p in named.values()))}


def main() -> None:
    """Time everything and print a table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--compile", action="store_true", help="torch.compile the layers and the loss, of every model")
    options.add_argument("--lengths", type=int, nargs="+", default=[2048, 8192])
    options.add_argument("--models", nargs="+", default=["gla", "llama", "fla"], choices=["gla", "llama", "fla"])
    options.add_argument("--steps", type=int, default=8)
    asked = options.parse_args()
    found = [
        f"{each.name} {each.version}" for each in importlib.metadata.distributions() if each.name in ("flash-linear-attention", "fla-core")
    ]
    fla = f", {', '.join(found) or 'no fla here'}"
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Python {platform.python_version()}{fla}", flush=True)
    print(f"{TOKENS} tokens a step, {'compiled layers and loss' if asked.compile else 'eager'}, median of {asked.steps} steps")
    print("| T | model | M parameters | ktok/s | share of peak | peak GiB | loss | seconds before the first timed step |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for length in asked.lengths:
        for case in cases(asked.models):
            try:
                found = measure(case, length, asked.steps, asked.compile)
            except Exception as error:  # one model that fails must not hide the others' numbers
                print(f"| {length} | {case.name} | failed: {str(error).strip().splitlines()[0][:120]} |", flush=True)
            else:
                numbers = f"{found['parameters'] / 1e6:.0f} | {found['tokens'] / 1e3:.1f} | {found['share']:.1%} | {found['memory']:.1f}"
                print(f"| {length} | {case.name} | {numbers} | {found['loss']:.2f} | {found['before']:.0f} |", flush=True)
            gc.collect()
            torch.cuda.empty_cache()
            torch._dynamo.reset()


if __name__ == "__main__":
    main()
