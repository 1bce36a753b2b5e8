"""What a run reports: losses and rates to a file of JSON lines, tokens per second, floating-point operations against the device's peak, memory."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nullius.errors import NulliusError
from nullius.models import dataflow

# Dense bf16 peak of one device, in TFLOP/s, as the makers state it; the longest name that fits counts
PEAKS = {"H200": 989, "H100 NVL": 835, "H100 PCIe": 756, "H100": 989, "GH200": 989, "B200": 2250, "A100": 312, "L40S": 362, "RTX 4090": 165}


def peak_tflops(device: torch.device, given: float = 0.0) -> float:
    """Return the peak of a device in TFLOP/s: the one given, else by its name, else 0 (unknown)."""
    if given or device.type != "cuda":
        return given
    name = torch.cuda.get_device_name(device)
    return float(next((PEAKS[key] for key in sorted(PEAKS, key=len, reverse=True) if key in name), 0))


def flops_per_token(hf: Any, sequence: int) -> float:
    """Return the floating-point operations of training on one token: 6 for each weight of a linear map (2 forward, 4 backward), and what the
    layers mix over time.

    Softmax attention over a causal sequence of length T: 6 · T · (dimensions of all heads) in each layer (Chowdhery et al. 2022, appendix B,
    halved because half of the pairs are masked). Linear attention: 12 · K · V for each head, writing and reading its state [K, V]. What the
    model recomputes to save memory does not count.
    """
    linear = sum(math.prod(dataflow.width(module)) for module in dataflow.linears(hf).values())
    return 6.0 * linear + sum(_mixing(module, sequence) for module in hf.modules())


def _mixing(module: nn.Module, sequence: int) -> float:
    own = getattr(module, "mixing_flops_per_token", None)  # the architectures of this project say it themselves
    if own is not None:
        return 3.0 * own(sequence)
    if not dataflow.is_attention(module):
        return 0.0
    config: Any = getattr(module, "config", None)
    heads = getattr(config, "num_attention_heads", 0)
    width = getattr(module, "head_dim", 0) or (getattr(config, "hidden_size", 0) // heads if heads else 0)
    return 6.0 * sequence * heads * width


class Metrics:
    """A file of JSON lines, one for each report. What lies behind the step at which a run goes on is cut off, so that no step stands twice."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        kept = []
        if path.is_file() and step:
            for line in path.read_bytes().split(b"\n"):  # not splitlines: a sample may hold other ends of lines
                try:
                    record = json.loads(line)
                except ValueError:
                    break  # a line that was being written when the machine went down
                if record.get("step", 0) <= step:
                    kept.append(line)
        temporary = path.with_name(f".{path.name}")
        try:
            temporary.write_bytes(b"".join(line + b"\n" for line in kept))
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise self._full(error) from None

    def write(self, record: dict[str, Any]) -> None:
        """Append a line; NaN and infinity stand there as null, since JSON has no word for them. Raises NulliusError when the disk is full."""
        plain = {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in record.items()}
        try:
            with self.path.open("a", encoding="ascii") as file:
                file.write(json.dumps(plain, allow_nan=False) + "\n")
        except OSError as error:
            raise self._full(error) from None

    def _full(self, error: OSError) -> NulliusError:
        return NulliusError(f"cannot write {self.path}: {error.strerror}; free some space and run the same command again")


class Stopwatch:
    """Tokens per second since it was last started or read."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.start()

    def start(self) -> None:
        """Begin anew; what came before (evaluation, saving) does not count."""
        self.tokens, self.since = 0, self._now()

    def rate(self) -> float:
        """Return tokens per second, and begin anew."""
        rate = self.tokens / max(1e-9, self._now() - self.since)
        self.start()
        return rate

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def peak_memory(device: torch.device) -> int:
    """Return the most memory, in bytes, that this process has held on its device (on the CPU: resident memory now)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import psutil

    return psutil.Process().memory_info().rss
