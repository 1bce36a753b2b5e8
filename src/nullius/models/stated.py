"""What a model's configuration states, and what is compared with it: numbers of heads, factors, the scale of the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nullius.models import dataflow, some_logits


def number_of(config: Any, name: str) -> int | None:
    """A number of heads that a configuration states, where it states one for all layers."""
    try:
        return int(getattr(config, name, None) or 0) or None
    except (AttributeError, TypeError, ValueError):  # transformers raises one of these where a number differs from layer to layer
        return None


def numbers(config: Any) -> tuple[float, ...]:
    """The numbers of a configuration, and one over each."""
    plain = [
        float(value) for value in config.to_dict().values() if isinstance(value, (int, float)) and not isinstance(value, bool) and value
    ]
    return tuple(plain + [1 / value for value in plain])


def logit_scale(hf: Any, unembed: nn.Module, softcap: float | None, factors: tuple[float, ...]) -> float:
    """The factor between the vocabulary projection and the logits, seen on two tokens; 1 where it is none, or cannot be seen."""
    if softcap:
        return 1.0
    with some_logits.only(unembed, slice(64)):
        sides = _around(hf, unembed)
    raw, given = sides or _around(hf, unembed) or (torch.zeros(1), torch.zeros(1))
    if float(raw.norm()) == 0:
        return 1.0
    scale = float((raw * given).sum() / raw.square().sum())
    return dataflow.near(scale, (1.0, *factors))


@torch.no_grad()
def _around(hf: Any, unembed: nn.Module) -> tuple[Tensor, Tensor] | None:
    """What a vocabulary projection makes of two tokens, and the logits that the model returns; None where they do not belong together."""
    raw: list[Tensor] = []
    handle = unembed.register_forward_hook(lambda _module, _args, output: raw.append(output.double()))
    try:
        given: Tensor = hf(input_ids=torch.tensor([[0, 1]], device=hf.device), use_cache=False).logits.double()
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError):  # whatever reads logits checks them
        return None
    finally:
        handle.remove()
    return (raw[-1], given) if raw and raw[-1].shape == given.shape else None
