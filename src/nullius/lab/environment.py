"""What a run depends on besides its subject and seed: versions, machine, threads, and the source code itself."""

from __future__ import annotations

import hashlib
import importlib
import os
import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import nullius
from nullius.lab.studies import Study

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "scipy", "statsmodels", "scikit-learn", "wordfreq")


def describe(study: Study, device: str, threads: int) -> dict[str, Any]:
    """Return the environment of a run as plain data."""
    return {
        "nullius": nullius.__version__,
        "revision": revision(),
        "study_source": study.source_hash,
        "nullius_source": source_hash(study),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "device": device,
        "threads": threads,
        "packages": {name: metadata.version(name) for name in PACKAGES},
    }


@cache
def revision() -> str:
    """Return the git revision of the source, empty when it is not a checkout."""
    folder = Path(nullius.__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def source_hash(study: Study) -> str:
    """SHA-256 (16 hex digits) of every nullius module that the study has imported: an instrument's change is a change of the run."""
    importlib.import_module(study.module)
    root = Path(nullius.__file__).parent
    files = {
        Path(module.__file__)
        for name, module in list(sys.modules.items())
        if name.startswith("nullius.")
        and getattr(module, "__file__", None)
        and not name.startswith(("nullius.cli", "nullius.web", "nullius.feed"))
    }
    digest = hashlib.sha256()
    for path in sorted(path for path in files if path.is_relative_to(root) and "studies" not in path.relative_to(root).parts[0]):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def peak_bytes(device: str) -> int:
    """Return the most memory this process has held so far: resident on the CPU, allocated on CUDA."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated()
    import resource

    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else kilobytes * 1024


def crowded() -> bool:
    """Whether more processes want to run than there are cores: then torch's threads spin against each other."""
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > (os.cpu_count() or 1)
