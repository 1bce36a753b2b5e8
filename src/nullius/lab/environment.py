"""What a run depends on besides its subject and seed: versions, machine, threads, and every source file behind its numbers."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import os
import platform
import random
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import nullius
from nullius.errors import UsageError
from nullius.lab.studies import Study

if TYPE_CHECKING:
    from nullius.models.language_model import LanguageModel

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "scipy", "statsmodels", "scikit-learn", "wordfreq")
ROOT = Path(nullius.__file__).parent
# How torch warns, when asked for deterministic algorithms, that it has none for an operation
UNORDERED = r"([\w ]+?) (does not have a deterministic implementation|defaults to a non-deterministic algorithm)"
# What every run's numbers pass through, whatever its study imports
ALWAYS = ("nullius.lab.lab", "nullius.lab.verdicts", "nullius.lab.environment", "nullius.models.loading")


def describe(study: Study, subject: LanguageModel, threads: int) -> dict[str, Any]:
    """Return the environment of a run as plain data."""
    from nullius.models import fingerprint

    files, device = source_files(study), str(subject.device)
    return {
        "nullius": nullius.__version__,
        "revision": revision(),
        "study_source": study.source_hash,
        "nullius_source": hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:16],
        "files": files,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "device": device,
        "device_name": device_name(device),
        "threads": threads,
        "subject": fingerprint.parts(subject),
        "packages": {name: metadata.version(name) for name in PACKAGES},
    }


@cache
def revision() -> str:
    """Return the git revision of this source, with `+` when files were changed since; empty when it is not a checkout of its own."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) / "src" / "nullius" != ROOT.resolve():  # installed inside somebody else's repository
            return ""
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def source_files(study: Study) -> dict[str, str]:
    """Return path → SHA-256 (16 hex digits) of the study's module and of everything in nullius that it leads to, data files included.

    Follows import statements wherever they stand in a file, and the names of data files written in it. Nothing is imported for that.
    """
    own = importlib.import_module(study.module).__file__
    found: dict[str, str] = {}
    waiting = [path for name in ALWAYS if (path := _module_file(name))] + ([Path(own)] if own else [])
    while waiting:
        path = waiting.pop()
        name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
        if name not in found:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
            waiting += _leads_to(path) if path.suffix == ".py" else []
    return dict(sorted(found.items()))


def _leads_to(path: Path) -> list[Path]:
    """Files of nullius that a module imports or names."""
    modules, texts = set(), set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 100:
            texts.add(node.value.rsplit("/", 1)[-1])
    code = [file for name in modules if (file := _module_file(name))]
    return code + [file for text in texts for file in _data_files().get(text, ())]


def _module_file(name: str) -> Path | None:
    """The file of a module of nullius; None for anything else."""
    first, *parts = name.split(".")
    if first != "nullius":
        return None
    path = ROOT.joinpath(*parts)
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@cache
def _data_files() -> dict[str, list[Path]]:
    """File name → paths of everything in nullius that is not Python."""
    files: dict[str, list[Path]] = {}
    for path in ROOT.rglob("*.*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            files.setdefault(path.name, []).append(path)
    return files


def device_name(device: str) -> str:
    """Return the processor's own name, and for a CPU the instruction set that torch uses: both decide the last bits of a sum."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):  # /proc is Linux's
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def crowded() -> bool:
    """Whether more processes want to run than there are cores: then threads that wait for each other spin, and slow everyone down."""
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > (os.cpu_count() or 1)


@contextlib.contextmanager
def conditions(threads: int | None) -> Iterator[int]:
    """Fix the number of threads and ask for deterministic algorithms; yield that number. Afterwards both are as before.

    threads: of torch and of the libraries under numpy; None takes 1 on a crowded machine, else torch's own number.
    """
    import torch
    import torch.utils.deterministic
    from threadpoolctl import threadpool_limits

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS sums in any order
    before = torch.get_num_threads()
    strict, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    if threads is None:
        threads = 1 if crowded() else before
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):  # Linux: start the peak of resident memory anew
        Path("/proc/self/clear_refs").write_text("5")
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nobody reads it, and filling takes time
        with threadpool_limits(threads):
            torch.set_num_threads(threads)
            yield threads
    finally:
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(strict, warn_only=warn)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


@contextlib.contextmanager
def unordered() -> Iterator[set[str]]:
    """Yield a set that gathers the operations which sum in no fixed order on this device, as torch names them: a rerun may differ in its last
    digits. Their warnings are not printed; others are, as ever."""
    names: set[str] = set()
    show = warnings.showwarning

    def gather(message: Warning | str, *rest: Any, **more: Any) -> None:
        found = re.match(UNORDERED, str(message))
        if found:
            names.add(found[1].strip("_"))
        else:
            show(message, *rest, **more)

    with warnings.catch_warnings():
        warnings.filterwarnings("always", message=UNORDERED)  # the default shows each place once in a process: a second run would not know
        warnings.showwarning = gather
        yield names


def seed_all(seed: int) -> None:
    """Seed the generators of Python, numpy and torch. A study draws from `lab.rng`; libraries below it may draw from these."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)


def check_seed(seed: int) -> None:
    """Raise UsageError for a seed outside 0 ... 2^63 − 1."""
    if not 0 <= seed < 2**63:
        raise UsageError(f"a seed is a whole number from 0 to 2^63 − 1, not {seed}")


def peak_bytes(device: str) -> int:
    """Return the most memory held since `conditions` began: allocated on CUDA, resident on the CPU (where only the process's own is known: ever)."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    import resource

    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else kilobytes * 1024
