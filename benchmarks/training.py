"""Training speed of 340M models on a GPU: gated linear attention here against the LLaMA baseline and flash-linear-attention's model.

    python benchmarks/training.py [--compile [--plain]] [--lengths 2048 8192] [--models gla llama fla] [--steps 10] [--profile] [--tiny]

Every model takes the same steps: 32 768 tokens in sequences of one length, float32 weights, bfloat16 autocast, fused AdamW, gradients clipped, no
activation checkpointing. Ours and the baseline take the step of `nullius train`; with --compile, as it is with compile: true: layers, embedding
and loss compiled, passes recorded as a CUDA graph (not so with --plain). The baseline is timed with each softmax kernel that works
here; fla's model (when installed) computes its loss as it does by itself, with its own fused kernel. The first steps (compiling, autotuning) are
not timed. Times are medians over steps, from CUDA events that nothing waits for between steps; operations per token are counted from the
architecture, the same for ours and fla's model. A row is printed when it is measured; one that fails says why, and the others go on.

--profile: after each row the kernels of one step by the time they take, and their sum. --tiny: two layers on whatever device there is,
to see that it runs.
"""

from __future__ import annotations

import os

os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")  # a graph kept from the row before would bring its softmax kernel along

import argparse
import contextlib
import gc
import importlib.metadata
import importlib.util
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from nullius.kernels import float8
from nullius.models import architectures
from nullius.models.architectures.float8 import trained_in_float8
from nullius.training import evaluation, measurement, processes
from nullius.training.config import Optimiser
from nullius.training.optimisers import Optimisers, outside_layers
from nullius.training.passes import BEFORE, Passes, recordable

VOCABULARY = 32_000
GPU_KERNELS = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
CPU_KERNELS = {"math": SDPBackend.MATH}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass
class Case:
    """A model to time. loss: of a model and rows [n, T + 1]. kernel: of softmax attention, where it matters."""

    name: str
    make: Callable[[int], nn.Module]
    loss: Callable[[Any, Tensor, evaluation.Head], Tensor]
    flops: Callable[[int], float]
    kernel: SDPBackend | None = None


@dataclass
class Scale:
    """tokens of a step, and what differs from the 340M configurations."""

    tokens: int = 32_768
    changes: dict[str, Any] = field(default_factory=dict)

    def ours(self, size: str) -> Callable[[int], nn.Module]:
        """An architecture of this project by name."""
        return lambda length: architectures.create(
            {"size": size, "vocab_size": VOCABULARY, "max_position_embeddings": length, **self.changes}
        )

    def flops(self, size: str) -> Callable[[int], float]:
        """Operations per token of training one of ours; made on no device."""

        def count(length: int) -> float:
            with torch.device("meta"):
                return measurement.flops_per_token(self.ours(size)(length), length)

        return count

    def fla(self, length: int) -> nn.Module:
        """The peer's model of the same sizes."""
        from fla.models import GLAConfig, GLAForCausalLM

        sizes = {"hidden_size": 1024, "num_hidden_layers": 24, "num_heads": 4, "expand_k": 0.5, "expand_v": 1.0, "intermediate_size": 2816}
        more = {"vocab_size": VOCABULARY, "max_position_embeddings": length, "tie_word_embeddings": True, "use_cache": False}
        return GLAForCausalLM(GLAConfig(**{**sizes, **more, **self.changes}))


def fla_loss(model: Any, rows: Tensor, _head: evaluation.Head) -> Tensor:
    """The peer shifts its labels itself."""
    return model(input_ids=rows[:, :-1], labels=rows[:, :-1]).loss


def cases(wanted: list[str], kernels: list[str], scale: Scale) -> Iterator[Case]:
    """What can be timed here. kernels: names of those of softmax attention."""
    if "gla" in wanted:
        yield Case("GLA 340M, nullius", scale.ours("gla-340m"), evaluation.loss_of, scale.flops("gla-340m"))
    if "llama" in wanted:
        for name, kernel in (GPU_KERNELS if DEVICE.type == "cuda" else CPU_KERNELS).items():
            if name in GPU_KERNELS and name not in kernels:
                continue
            yield Case(f"LLaMA 340M, {name}", scale.ours("llama-340m"), evaluation.loss_of, scale.flops("llama-340m"), kernel)
    if "fla" in wanted and importlib.util.find_spec("fla"):
        yield Case("GLA 340M, fla", scale.fla, fla_loss, scale.flops("gla-340m"))


class Trainer:
    """A model of a case with its optimiser, and one step of it."""

    def __init__(self, case: Case, length: int, tokens: int, compiled: bool, record: bool, eight: bool) -> None:
        torch.manual_seed(0)
        with torch.device(DEVICE):
            self.model: Any = case.make(length)
            self.rows = torch.randint(0, VOCABULARY, (tokens // length, length + 1))
        self.model.float().train()
        if eight:
            trained_in_float8(list(processes.layers(self.model)))
        self.case, self.head = case, evaluation.cross_entropy
        if compiled:
            for part in (*processes.layers(self.model), self.model.get_input_embeddings()):
                part.compile()
            self.head = torch.compile(self.head)
        self.named = dict(self.model.named_parameters())
        self.optimisers = Optimisers(self.named, Optimiser(rate=1e-4), outside_layers(self.model), fused=DEVICE.type == "cuda")
        ours = case.loss is evaluation.loss_of
        self.passes = (
            Passes(
                partial(evaluation.loss_of, self.model, head=self.head),
                list(self.named.values()),
                DEVICE,
                self.autocast,
                compiled and record and recordable(self.model),
            )
            if ours
            else None
        )

    def autocast(self) -> torch.autocast:
        """As in training."""
        return torch.autocast(DEVICE.type, torch.bfloat16)

    def step(self) -> Tensor:
        """As `nullius train` makes it."""
        if self.passes is not None:
            loss = self.passes([self.rows])
        else:
            with self.autocast():
                loss = self.case.loss(self.model, self.rows, self.head)
            loss.backward()
        nn.utils.clip_grad_norm_(list(self.named.values()), 1.0)
        self.optimisers.step(1.0)
        return loss.detach()


class Clock:
    """Seconds between marks: on CUDA by events in the stream, so that the processor may run ahead as it does in training."""

    def __init__(self) -> None:
        self.marks: list[Any] = []

    def mark(self) -> None:
        """Take the time."""
        if DEVICE.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Return what lies between each two marks."""
        if DEVICE.type != "cuda":
            return [b - a for a, b in zip(self.marks, self.marks[1:], strict=False)]
        torch.cuda.synchronize()
        return [a.elapsed_time(b) / 1000 for a, b in zip(self.marks, self.marks[1:], strict=False)]


def measure(case: Case, length: int, asked: argparse.Namespace, scale: Scale) -> str:
    """Train for some steps and return the row of the table."""
    began = time.perf_counter()
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer = Trainer(case, length, scale.tokens, asked.compile, not asked.plain, asked.float8 and case.loss is evaluation.loss_of)
    choice = sdpa_kernel(case.kernel) if case.kernel is not None else contextlib.nullcontext()
    with choice:
        for _ in range(BEFORE + 1):
            loss = trainer.step()
        loss.item()
        before = time.perf_counter() - began
        clock = Clock()
        clock.mark()
        for _ in range(asked.steps):
            loss = trainer.step()
            clock.mark()
        step = statistics.median(clock.seconds())
        memory = measurement.peak_memory(DEVICE) / 2**30
        if asked.profile:
            profile(trainer)
    speed = scale.tokens / step
    peak = measurement.peak_tflops(DEVICE) * 1e12
    share = f"{speed * case.flops(length) / peak:.1%}" if peak else "unknown"
    count = sum(p.numel() for p in trainer.named.values()) / 1e6
    numbers = f"{count:.0f} | {step * 1000:.1f} | {speed / 1e3:.1f} | {share} | {memory:.1f} | {float(loss):.2f} | {before:.0f}"
    return f"| {length} | {case.name} | {numbers} |"


def profile(trainer: Trainer) -> None:
    """Print the kernels of one step by the time they take, and the sum of all: how long the device was at work."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if DEVICE.type == "cuda" else []
    with torch.profiler.profile(activities=kinds) as seen:
        trainer.step().item()
    order = "self_device_time_total" if DEVICE.type == "cuda" else "self_cpu_time_total"
    rows = [event for event in seen.key_averages() if DEVICE.type != "cuda" or event.device_type == torch.autograd.DeviceType.CUDA]
    rows = [
        event for event in rows if "#" not in event.key
    ]  # ranges that the profiler marks (an optimiser's step) hold kernels, and are none
    print(f"  {sum(getattr(event, order) for event in rows) / 1000:8.2f} ms  all of them", flush=True)
    for event in sorted(rows, key=lambda event: -getattr(event, order))[:50]:
        print(f"  {getattr(event, order) / 1000:8.2f} ms  {event.count:5}  {event.key[:110]}", flush=True)


def main() -> None:
    """Time everything and print a table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--compile", action="store_true", help="torch.compile the layers and the loss, of every model")
    options.add_argument("--plain", action="store_true", help="with --compile: passes are not recorded")
    options.add_argument("--lengths", type=int, nargs="+", default=[2048, 8192])
    options.add_argument("--models", nargs="+", default=["gla", "llama", "fla"], choices=["gla", "llama", "fla"])
    options.add_argument(
        "--softmax", nargs="+", default=list(GPU_KERNELS), choices=list(GPU_KERNELS), help="kernels of the baseline, on a GPU"
    )
    options.add_argument(
        "--float8", action="store_true", help="products in the layers of ours and the baseline in eight bits (precision: float8)"
    )
    options.add_argument("--steps", type=int, default=10)
    options.add_argument("--profile", action="store_true", help="print the kernels of one step after each row")
    options.add_argument("--tiny", action="store_true", help="two layers of 64 channels and few tokens, on any device: does it run?")
    asked = options.parse_args()
    if DEVICE.type != "cuda" and not asked.tiny:
        options.error("no CUDA device here; --tiny runs anywhere")
    if asked.float8 and DEVICE.type == "cuda" and not float8.right(DEVICE):
        options.error("--float8: wrong numbers on this GPU, with this PyTorch, Triton and driver")
    small = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "num_attention_heads": 4}
    scale = Scale(1024, small) if asked.tiny else Scale()
    if asked.tiny:
        asked.lengths = [min(length, scale.tokens) for length in asked.lengths]
    packages = [
        f"{each.name} {each.version}" for each in importlib.metadata.distributions() if each.name in ("flash-linear-attention", "fla-core")
    ]
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
    fla = ", ".join(packages) or "no fla here"
    print(f"{date.today()}, {name}, torch {torch.__version__}, Python {platform.python_version()}, {fla}", flush=True)
    bits = ", products of the layers in eight bits" if asked.float8 else ""
    how = f"compiled, passes {'made one by one' if asked.plain else 'recorded'}" if asked.compile else "eager"
    print(f"{scale.tokens} tokens a step, {how}{bits}, median of {asked.steps} steps")
    print("| T | model | M parameters | ms | ktok/s | share of peak | peak GiB | loss | seconds before the first timed step |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for length in asked.lengths:
        for case in cases(asked.models, asked.softmax, scale):
            try:
                row = measure(case, length, asked, scale)
            except Exception as error:  # one model that fails must not hide the others' numbers
                row = f"| {length} | {case.name} | failed: {type(error).__name__}: {' '.join(str(error).split())[:300]} |"
            print(row, flush=True)
            gc.collect()
            if DEVICE.type == "cuda":
                torch.cuda.empty_cache()
            torch._dynamo.reset()


if __name__ == "__main__":
    main()
