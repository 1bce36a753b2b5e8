"""Finetuned copies that are kept: the same subject, examples and recipe give the copy made before, from the cache folder.

What is kept lies under a digest of its content's cause: the subject's weights, the examples, the steps and rates, the seed, and the recipe's version.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from filelock import FileLock

from nullius.errors import NulliusError, UsageError
from nullius.models import fetch
from nullius.models.language_model import LanguageModel
from nullius.paths import cache_dir
from nullius.training import copies
from nullius.training.finetune import finetune

VERSION = 2  # of what `finetune` makes of the same arguments


def finetuned(
    model: LanguageModel,
    pairs: Sequence[tuple[str, str]],
    steps: int,
    *,
    rate: float,
    warmup: int = 0,
    seed: int = 0,
    on_step: Callable[[int, int], None] | None = None,
) -> LanguageModel:
    """The copy that `finetune` makes, all weights trained; read from the cache folder where it was made before, else made and put there.

    Raises NulliusError where it cannot be kept, UsageError while an intervention is open on the subject: a copy that learned under it is another one.
    """
    if copies.interventions(model.hf):
        raise UsageError(f"{model.name} cannot be finetuned and kept while an intervention is open on it: use finetune, or close it")
    asked = [VERSION, model.weights_sha256, str(model.dtype), list(pairs), steps, rate, warmup, seed]
    folder = cache_dir() / "finetuned" / hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
    with FileLock(str(cache_dir() / f".finetuned-{folder.name}.lock")):
        if not folder.exists():
            made = finetune(model, pairs, steps, rate=rate, warmup=warmup, seed=seed, on_step=on_step).model
            _save(made, folder)
            return made
        hf = type(model.hf).from_pretrained(folder, dtype=model.dtype, local_files_only=True).to(model.device)
        hf.config._attn_implementation = model.hf.config._attn_implementation
    return LanguageModel.wrap(hf, model.tokenizer, f"{model.name} (tuned)")


def _save(made: LanguageModel, folder: Path) -> None:
    """Whole or not at all."""
    try:
        with fetch.staging(folder) as staging, torch.no_grad():
            made.hf.save_pretrained(staging)
    except OSError as error:
        raise NulliusError(f"cannot keep the finetuned copy in {folder}: {error.strerror or error}") from None
