"""Optimisers: AdamW, or Muon for the matrices inside the layers with AdamW for the rest; and their state as plain named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from nullius.errors import NulliusError
from nullius.training.config import Optimiser


class Optimisers:
    """One or two optimisers that step together. named: parameters to train. outside: names of those that Muon must not take (embeddings).

    Muon (Jordan et al. 2024) orthogonalises the momentum of a matrix; its updates are scaled to the size of AdamW's (Liu et al. 2025), so one
    rate serves both. Weight decay is for matrices; norms and biases have none.
    """

    def __init__(self, named: Mapping[str, nn.Parameter], how: Optimiser, outside: set[str], fused: bool) -> None:
        self.named, self.rate, self.fused = dict(named), how.rate, fused
        muon = [name for name, p in named.items() if how.name == "muon" and p.ndim == 2 and name not in outside]
        rest = [name for name in named if name not in set(muon)]
        groups = [
            {"params": [named[name] for name in rest if named[name].ndim >= 2], "weight_decay": how.weight_decay},
            {"params": [named[name] for name in rest if named[name].ndim < 2], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        self.all: list[torch.optim.Optimizer] = []
        if groups:
            self.all.append(torch.optim.AdamW(groups, lr=how.rate, betas=how.betas, fused=fused))
        if muon:
            chosen = [named[name] for name in muon]
            self.all.append(
                torch.optim.Muon(chosen, lr=how.rate, momentum=how.momentum, weight_decay=how.weight_decay, adjust_lr_fn="match_rms_adamw")
            )

    def step(self, factor: float) -> None:
        """Make a step at `factor` of the highest rate, and let the gradients go."""
        for optimiser in self.all:
            for group in optimiser.param_groups:
                group["lr"] = self.rate * factor
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Return all state as whole tensors on the CPU, "parameter/key" → tensor. Every process must call it: shards are gathered."""
        state = {}
        for name, parameter in self.named.items():
            for optimiser in self.all:
                for key, value in optimiser.state.get(parameter, {}).items():
                    state[f"{name}/{key}"] = whole(value if isinstance(value, Tensor) else torch.tensor(value))
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned. Raises NulliusError when it belongs to other parameters or sizes."""
        owner = {id(p): optimiser for optimiser in self.all for group in optimiser.param_groups for p in group["params"]}
        for key, value in state.items():
            name, _, kind = key.rpartition("/")
            parameter = self.named.get(name)
            if parameter is None or (value.ndim and value.shape != parameter.shape):
                shape = "no such weight" if parameter is None else f"a weight of {list(parameter.shape)}"
                raise NulliusError(f"the saved optimiser state of {name} {list(value.shape)} does not fit: this model has {shape}")
            placed = _laid_out(value, parameter) if value.ndim else value.to(parameter.device) if self.fused else value  # a count of steps
            owner[id(parameter)].state[parameter][kind] = placed


def outside_layers(hf: Any) -> set[str]:
    """Return the names of the embedding's and the unembedding's weights."""
    modules = [hf.get_input_embeddings(), hf.get_output_embeddings()]
    ids = {id(parameter) for module in modules if module is not None for parameter in module.parameters()}
    return {name for name, parameter in hf.named_parameters() if id(parameter) in ids}


def whole(value: Tensor) -> Tensor:
    """Return a tensor whole and on the CPU, gathered where it is sharded."""
    value = value.detach()
    return (value.full_tensor() if isinstance(value, DTensor) else value).cpu()


def _laid_out(value: Tensor, parameter: nn.Parameter) -> Tensor:
    if isinstance(parameter, DTensor):
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value.to(parameter.device)
