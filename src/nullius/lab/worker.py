"""The worker: claims queued runs, one at a time, and executes each in a child process with limits.

The child leads a session of its own, so that it ends with everything it started. It inherits no secrets, may use so much memory, processor
time and disk, and loses the network once its subject is there. Whatever happens to child, worker or machine, a run is whole, or it is marked.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import psutil
from filelock import FileLock, Timeout

from nullius.errors import NulliusError, UsageError
from nullius.lab import journal, queue
from nullius.paths import data_dir

CHILD = (sys.executable, "-m", "nullius.lab.worker")
POLL_SECONDS = 0.5
GRACE_SECONDS = 5.0  # between asking a child to stop and killing it
# What a child needs of the environment; everything else (tokens, passwords, mail settings) stays behind
PASSED_ON = {"PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "PYTHONPATH", "PYTHONHASHSEED", "VIRTUAL_ENV", "LD_LIBRARY_PATH"}
PASSED_ON |= {"SYSTEMROOT", "HF_HOME", "HF_HUB_OFFLINE", "HF_HUB_CACHE"}
PASSED_ON_BEGINNINGS = ("NULLIUS_", "OMP_", "MKL_", "OPENBLAS_", "CUDA_", "PIP_", "SSL_", "XDG_")
KEPT_BACK = ("NULLIUS_SECRET", "NULLIUS_SMTP", "NULLIUS_OIDC")


@dataclass(frozen=True)
class Limits:
    """What a run may use. seconds: wall time of a quick run and of a full one; None is no limit. bytes: memory, and any one file."""

    quick_seconds: float | None = 600.0
    full_seconds: float | None = 24 * 3600.0
    memory_bytes: int = field(default_factory=lambda: int(psutil.virtual_memory().total * 0.8))
    file_bytes: int = 64 * 2**30
    nice: int = 10

    def seconds(self, full: bool) -> float | None:
        return self.full_seconds if full else self.quick_seconds


class Worker:
    """Executes queued runs on one device. say: where its one-line reports go. child: the command that executes one run, its id appended.

    Raises UsageError for a device that is neither cpu nor cuda, cuda:1 and so on; whether it is there, the first run will find.
    """

    def __init__(
        self,
        device: str | None = None,
        limits: Limits | None = None,
        say: Callable[[str], None] = lambda _line: None,
        child: Sequence[str] = CHILD,
    ) -> None:
        if device is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", device):
            raise UsageError(f"no device '{device}'; write cpu, cuda or cuda:1")
        self.device, self.limits, self.say, self.child = device, limits or Limits(), say, tuple(child)
        self.stopping = False

    def stop(self) -> None:
        """Stop after the run in progress has been brought to an end, which is at once."""
        self.stopping = True

    def work(self, idle: Callable[[], bool] = lambda: True) -> None:
        """Claim and execute runs until stopped. idle is asked between runs whether to go on waiting for more.

        Raises NulliusError when another worker holds this device: two runs at once on one device would spoil each other's times.
        """
        lock = FileLock(data_dir() / f"worker-{(self.device or 'default').replace(':', '-')}-{socket.gethostname()}.lock")
        try:
            with lock.acquire(timeout=1):
                while not self.stopping:
                    if not self.once() and not idle():
                        return
        except Timeout:
            raise NulliusError(f"another worker is at work on {self.device or 'this machine'}; one run at a time on each device") from None

    def once(self) -> bool:
        """Execute one queued run if there is one; otherwise wait a moment. Returns whether there was one."""
        journal.recover()
        run_id = queue.claim(self.device)
        if run_id is None:
            time.sleep(POLL_SECONDS)
            return False
        self.execute(run_id)
        return True

    def execute(self, run_id: str) -> None:
        """Execute a claimed run in a child process, and see that its row says how it ended."""
        record = journal.get_run(run_id)
        self.say(f"{run_id}: {record['slug']} on {record['asked_subject']}{', full' if record['full'] else ''}")
        device = ["--device", self.device] if self.device else []
        log = data_dir() / "worker.log"
        with log.open("ab") as out:
            how: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out, "start_new_session": True}
            seconds = self.limits.seconds(record["full"])
            process = subprocess.Popen([*self.child, run_id, *device], env=_environment(self.limits, seconds), **how)
        reason = self._watch(process, run_id, seconds)
        _end_group(process)
        state = queue.state(run_id)
        if state == "running":  # the child did not live to write it down itself
            code = process.returncode
            ended = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"
            journal.end_run(run_id, {"state": "aborted", "reason": reason or f"its process {ended} (out of memory, say); the log is {log}"})
            state = "aborted"
        elif state == "aborted" and reason:
            queue.explain(run_id, reason)
        self.say(f"{run_id}: {state}")

    def _watch(self, process: subprocess.Popen[bytes], run_id: str, seconds: float | None) -> str:
        """Wait for a child, and stop it when it is cancelled, takes too long or too much, or falls silent. Returns why it was stopped."""
        started = time.monotonic()
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLL_SECONDS)
                return ""
            reason = ""
            try:
                state, silent = _pulse(run_id)
            except NulliusError:  # a journal that is busy now is asked again in a moment
                continue
            if self.stopping:
                reason = "the worker was stopped"
            elif state != "running":
                reason = "cancelled"
            elif seconds is not None and time.monotonic() - started > seconds:
                reason = f"it took longer than the {seconds / 60:g} minutes that are allowed"
            elif silent > journal.SILENT_SECONDS:
                reason = f"no sign of life for {journal.SILENT_SECONDS} seconds"
            elif (used := _resident(process.pid)) > self.limits.memory_bytes:
                reason = f"it took more than the {self.limits.memory_bytes / 2**30:.1f} GiB of memory that are allowed ({used / 2**30:.1f})"
            if reason:
                _interrupt(process)
                return reason


def _pulse(run_id: str) -> tuple[str, float]:
    record = journal.pulse_of(run_id)
    if record is None:
        return "gone", 0.0
    state, heartbeat = record
    return state, (datetime.now(UTC) - datetime.fromisoformat(heartbeat)).total_seconds()


def _resident(pid: int) -> int:
    """Memory that a process and its descendants hold."""
    total = 0
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
    return total


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    """Ask a child to end, as Ctrl-C would, so that it keeps its notes; a deaf one is killed."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill whatever is left of a child and of the processes that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment(limits: Limits, seconds: float | None) -> dict[str, str]:
    """The environment of a child: what it needs, and its limits."""
    kept = {name: value for name, value in os.environ.items() if name in PASSED_ON or name.startswith(PASSED_ON_BEGINNINGS)}
    kept = {name: value for name, value in kept.items() if not name.startswith(KEPT_BACK)}
    processor = 0 if seconds is None else int(seconds * (os.cpu_count() or 1)) + 60
    return kept | {"NULLIUS_LIMITS": f"{limits.memory_bytes},{limits.file_bytes},{processor},{limits.nice}"}


# ---------------------------------------------------------------------------------------------------------------- in the child


def child(run_id: str, device: str | None = None) -> int:
    """Execute a claimed run in this process. Returns the exit code: 0 done, 1 failed, 130 stopped."""
    _restrain()
    from nullius.lab import studies
    from nullius.lab.lab import Silent
    from nullius.lab.runner import run

    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever was inherited
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    record = journal.get_run(run_id)
    wish = queue.asked(run_id) or {}
    try:
        journal.take_over(run_id)
        study = studies.get(record["slug"])
        study.check_options(record["options"])
        device = wish.get("device") or device
        _fetch(record["asked_subject"], device)
        _close_network()
        how: dict[str, Any] = {"seed": record["seed"], "full": record["full"], "options": record["options"], "device": device}
        run(
            study,
            record["asked_subject"],
            **how,
            rerun_of=record["rerun_of"],
            threads=wish.get("threads"),
            listener=Silent(),
            claimed=run_id,
        )
    except KeyboardInterrupt:
        journal.end_run(run_id, {"state": "aborted", "reason": "interrupted"})
        return 130
    except Exception as error:
        line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        journal.end_run(run_id, {"state": "failed", "reason": line})  # where the runner has not said so already
        print(f"{run_id}: {line}", file=sys.stderr)
        return 1
    return 0


def _restrain() -> None:
    """Take on the limits of a run, and end when the worker ends."""
    memory, file, processor, nice = (int(part) for part in os.environ.get("NULLIUS_LIMITS", "0,0,0,0").split(","))
    with contextlib.suppress(OSError, AttributeError):
        os.nice(nice)
    if os.name != "posix":
        return
    import resource

    limits = {resource.RLIMIT_CORE: 0}
    if memory and not os.path.exists("/dev/nvidiactl"):  # CUDA reserves far more address space than it uses; there the worker alone watches
        limits[resource.RLIMIT_DATA] = memory
    if processor:
        limits[resource.RLIMIT_CPU] = processor
    if file:
        limits[resource.RLIMIT_FSIZE] = file
    for what, most in limits.items():
        hard = resource.getrlimit(what)[1]
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    if sys.platform == "linux":
        import ctypes

        die_with_parent = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None, use_errno=True).prctl(die_with_parent, signal.SIGKILL)


def _fetch(subject: str, device: str | None) -> None:
    """Bring a subject's files to this machine while there is a network."""
    import torch

    from nullius.models.loading import locate

    locate(subject, torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))


def _close_network() -> None:
    """From here on no connection leaves this process: a study computes, and has nobody to talk to."""

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo") and not _local(event, arguments):
            raise PermissionError("a run from the queue has no network once its subject is loaded")

    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.addaudithook(refuse)


def _local(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether a socket stays on this machine: a socket file, as databases use."""
    return event != "socket.getaddrinfo" and getattr(arguments[0], "family", None) == getattr(socket, "AF_UNIX", object())


def _main(arguments: Sequence[str]) -> int:
    device = arguments[2] if len(arguments) > 2 and arguments[1] == "--device" else None
    return child(arguments[0], device)


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
