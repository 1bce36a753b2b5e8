"""Networks that a study has trained, kept until it has ended: a run that was cut off and is begun again need not train them anew.

The folder's name is a digest of all that decides what is trained: the study and its plan, the seed, the text, the kind of device, and this
package's code that trains. So nothing is found that would not have come out again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nullius.paths import cache_dir
from nullius.training import checkpoints

Arrays = dict[str, NDArray[Any]]
BESIDE = "beside:"  # begins the names of tensors that are no weights
_CODE = ("kernels", "models/architectures", "stimuli", "training")


@dataclass
class Kept:
    """Where networks are kept; None: nowhere. found: how many were there already."""

    folder: Path | None = None
    found: int = 0

    def train(self, hf: Any, label: str, train: Callable[[], Mapping[str, NDArray[Any]] | None]) -> Arrays:
        """Let `train` train a network in place, or put in the weights that it had when it was trained before under the same label.

        What `train` returns (measurements on the way) is kept with them and returned. A full disk is no reason to end: then nothing is kept.
        """
        if self.folder is None:
            return dict(train() or {})
        path = self.folder / f"{hashlib.sha256(label.encode()).hexdigest()[:20]}.safetensors"
        if path.is_file():
            try:
                whole = load_file(path)
                checkpoints.fill(hf, {name: value for name, value in whole.items() if not name.startswith(BESIDE)}, str(path))
                self.found += 1
                return {name.removeprefix(BESIDE): value.numpy() for name, value in whole.items() if name.startswith(BESIDE)}
            except (OSError, SafetensorError):
                path.unlink(missing_ok=True)
        beside = dict(train() or {})
        tensors = checkpoints.weights_of(hf) | {f"{BESIDE}{name}": torch.from_numpy(np.ascontiguousarray(x)) for name, x in beside.items()}
        staging = path.with_suffix(".writing")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, staging)
            staging.replace(path)
        except (OSError, SafetensorError):
            staging.unlink(missing_ok=True)
        return beside


@contextmanager
def keeping(study: str, facts: Any, wanted: bool = True) -> Iterator[Kept]:
    """Keep networks while a study runs, and let them go when it has ended; when it is interrupted they stay for the next time.

    facts: plain data; all that decides what is trained besides the code. wanted: whether training takes so long that it matters.
    """
    if not wanted:
        yield Kept()
        return
    told = json.dumps([study, facts, _code()], sort_keys=True, default=str)
    kept = Kept(cache_dir() / "trained" / f"{study}-{hashlib.sha256(told.encode()).hexdigest()[:16]}")
    yield kept
    shutil.rmtree(kept.folder or "", ignore_errors=True)


@cache
def _code() -> str:
    """SHA-256 of the source files that decide what comes out of a training."""
    digest, root = hashlib.sha256(), Path(__file__).parents[1]
    for part in _CODE:
        for path in sorted((root / part).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()
