"""Low-rank adapters (LoRA, Hu et al. 2021), made by peft: which maps get one, and how they are merged into the weights afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from nullius.errors import UsageError
from nullius.models import dataflow
from nullius.training import parts, processes


@dataclass(frozen=True)
class Lora:
    """rank: of each adapter. alpha: the update is scaled by alpha / rank. dropout: on its input. targets: last names of the linear maps that
    get one ("q_proj", "mlp.gate_proj", ...); empty: every linear map but the unembedding. layers: in which layers, negative ones counted from the
    end; empty: in all."""

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()


def add(hf: Any, lora: Lora, seed: int) -> Any:
    """Return the model wrapped by peft, with adapters drawn from the seed; only they are trainable. At first they change nothing (B = 0).

    Raises UsageError for a target that is no linear map of this model (or of these layers), a layer that does not exist, an unembedding that shares
    its weight with the embedding (merged, the adapter would change both), a rank below 1 and a dropout outside [0, 1).
    """
    from peft import LoraConfig, get_peft_model

    if not hasattr(lora.rank, "__index__") or lora.rank < 1:
        raise UsageError(f"the rank of an adapter is a whole number of at least 1, not {lora.rank}")
    if not 0 < lora.alpha < float("inf"):
        raise UsageError(f"alpha scales the update: a number above 0, not {lora.alpha}")
    if isinstance(lora.targets, str):
        raise UsageError(f"targets stand in a tuple: ('{lora.targets}',), not '{lora.targets}'")
    if not 0 <= lora.dropout < 1:
        raise UsageError(f"dropout is a part of the input, at least 0 and below 1, not {lora.dropout}")
    targets = _targets(hf, lora)
    alpha: Any = lora.alpha  # peft says int, and takes any number
    config = LoraConfig(r=lora.rank, lora_alpha=alpha, lora_dropout=lora.dropout, target_modules=targets, task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(hf, config)


def _targets(hf: Any, lora: Lora) -> list[str] | str:
    """Names of the linear maps that get an adapter, or peft's word for all of them."""
    if not lora.targets and not lora.layers:
        return "all-linear"
    maps, where, every = dataflow.linears(hf), "this model", processes.layers(hf)
    if lora.layers:
        for layer in lora.layers:
            if not hasattr(layer, "__index__") or not -len(every) <= layer < len(every):
                raise UsageError(f"layer {layer} does not exist: this model has layers 0 to {len(every) - 1}")
        inside = {id(part) for layer in lora.layers for part in every[layer].modules()}
        maps = {name: part for name, part in maps.items() if id(part) in inside}
        where = f"layer{'s' * (len(lora.layers) > 1)} {', '.join(map(str, lora.layers))} of this model"
    chosen = dict.fromkeys(name for target in lora.targets for name in parts.named(maps, target, where)) if lora.targets else maps
    embedding = hf.get_input_embeddings().weight
    for name in chosen:
        if maps[name].weight is embedding:
            raise UsageError(f"{name} shares its weight with the embedding, which its adapter would change when it is merged: leave it out")
    return list(chosen)


def merge(wrapped: Any) -> Any:
    """Return the plain model with the adapters' updates added to its weights."""
    return wrapped.merge_and_unload()
