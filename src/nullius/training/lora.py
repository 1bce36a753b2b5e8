"""Low-rank adapters (LoRA, Hu et al. 2021), made by peft: which maps get one, and how they are merged into the weights afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from nullius.errors import UsageError, nearest
from nullius.models import dataflow


@dataclass(frozen=True)
class Lora:
    """rank: of each adapter. alpha: the update is scaled by alpha / rank. dropout: on its input. targets: last names of the linear maps that
    get one ("q_proj", ...); empty: every linear map but the unembedding."""

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()


def add(hf: Any, lora: Lora, seed: int) -> Any:
    """Return the model wrapped by peft, with adapters drawn from the seed; only they are trainable. At first they change nothing (B = 0).

    Raises UsageError for a target that is no linear map of this model.
    """
    from peft import LoraConfig, get_peft_model

    known = sorted({name.rpartition(".")[2] for name in dataflow.linears(hf)})
    for target in lora.targets:
        if target not in known:
            raise UsageError(f"no linear map '{target}' in this model{nearest(target, known)}; there are {', '.join(known)}")
    targets = list(lora.targets) or "all-linear"
    alpha: Any = lora.alpha  # peft says int, and takes any number
    config = LoraConfig(r=lora.rank, lora_alpha=alpha, lora_dropout=lora.dropout, target_modules=targets, task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(hf, config)


def merge(wrapped: Any) -> Any:
    """Return the plain model with the adapters' updates added to its weights."""
    return wrapped.merge_and_unload()
