"""How a run ends before its time: by a signal, at once or after the step, or for want of memory; each in one line."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch

from nullius.errors import NulliusError
from nullius.training.config import Config
from nullius.training.processes import Processes

ONE_PRESS = 0.5  # seconds in which a second Ctrl-C is the same one, passed on by a launcher as well


class Stopped(NulliusError):
    """The run was asked to end (SIGTERM, Ctrl-C), saved and ended."""

    @classmethod
    def by(cls, name: str, where: str) -> Stopped:
        """Ended by a signal. where: at which step, and what is saved."""
        error = cls(f"stopped by {name} {where}; the same command goes on from there")
        error.exit_code = 130 if "Ctrl-C" in name else 143
        return error


class OutOfMemory(NulliusError):
    """A device had no memory left. It may be one process's alone, which says so then."""


@contextmanager
def in_one_line(here: Processes, config: Config) -> Iterator[None]:
    """Say in one line that a device has no memory left, and what would take less (OutOfMemory), or that a check on it failed (NulliusError)."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if "device-side assert" in str(error):
            raise NulliusError(
                f"a check on {here.device} failed: gates hold NaN, as when a training diverges, or a token is outside the vocabulary; "
                "the same command goes on from the newest checkpoint; lower optimiser.rate, or lengthen schedule.warmup"
            ) from None
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        micro = config.micro or config.batch // here.world
        ways = [f"set micro below {micro}"] if micro > 1 else []
        ways += [] if config.recompute else ["set recompute: true"]
        ways += [] if config.precision != "fp32" else ["set precision: bf16"]
        ways += ["use more processes" if here.world > 1 else "shard it over several GPUs by torchrun"]
        what = " or ".join(filter(None, (", ".join(ways[:-1]), ways[-1])))
        raise OutOfMemory(f"{here.device} has no memory left: {what}; the same command goes on from the newest checkpoint") from None


class Asked(list[str]):
    """Names of the signals that asked the run to end. patient: whether it may finish its step first; before the steps it ends at once."""

    patient = False


@contextmanager
def signals() -> Iterator[Asked]:
    """Yield a list that gets a name when the run is asked to end. A second Ctrl-C ends it at once."""
    asked, since = Asked(), time.monotonic()

    def ask(number: int, _: FrameType | None) -> None:
        nonlocal since
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        if not asked.patient:
            raise Stopped.by(name, "before its first step, with nothing new to save")
        if asked and number == signal.SIGINT and time.monotonic() - since > ONE_PRESS:
            raise KeyboardInterrupt
        if not asked:
            since = time.monotonic()
        asked.append(name)

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before: dict[int, Any] = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
