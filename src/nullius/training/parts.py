"""Training selected parts of a model (heads, blocks, single projections, layers) while every other weight stays as it is, bit by bit.

A head's weights are rows of the maps that make its query, key and value, and columns of the output projection. Optimisers know whole tensors
only, so what is not selected is held in two places: its gradient is zero before clipping (it must not count in the norm), and its value is put
back after the step (weight decay moves a weight whose gradient is zero).

With grouped-query attention several query heads share one key and one value. Training those for one head changes its neighbours too, so by
default they are trained only where the whole group is selected (`shared="whole"`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from nullius.errors import UsageError, nearest
from nullius.models import dataflow
from nullius.models.language_model import LanguageModel

Masks = Mapping[str, Tensor | None]


@dataclass(frozen=True)
class Parts:
    """What to train. Everything that is not named stays.

    heads: (layer, head) pairs. mlps: layers whose feed-forward block is trained. projections: (layer, name) pairs, single linear maps with their
    biases by the last of their names in the model ("gate_proj"), or as much of it as tells one apart ("mlp.dense", "experts.3.up_proj"). layers:
    layers trained whole, norms included. embeddings: the embedding and the unembedding. final_norm: the norm before the unembedding. maps: which
    of a head's four maps.
    shared: keys and values that several query heads share (grouped-query attention) are trained where the whole group is selected, where any
    head of it is, or never; where each head has its own they are always trained. Negative layers count from the end.

    >>> Parts(heads=((9, 6), (10, 0)), mlps=(11,))  # doctest: +ELLIPSIS
    Parts(heads=((9, 6), (10, 0)), mlps=(11,), ...)
    """

    heads: tuple[tuple[int, int], ...] = ()
    mlps: tuple[int, ...] = ()
    projections: tuple[tuple[int, str], ...] = ()
    layers: tuple[int, ...] = ()
    embeddings: bool = False
    final_norm: bool = False
    maps: tuple[Literal["q", "k", "v", "o"], ...] = ("q", "k", "v", "o")
    shared: Literal["whole", "any", "never"] = "whole"

    def __post_init__(self) -> None:
        """Raise UsageError for what is no pair, no layer, no map and no way to share."""
        for name, kind in (("heads", "(layer, head)"), ("projections", "(layer, name)")):
            pairs = getattr(self, name)
            if isinstance(pairs, str) or not all(isinstance(pair, Sequence) and len(pair) == 2 for pair in _several(name, pairs)):
                raise UsageError(f"{name} are {kind} pairs, not {pairs!r}")
        _several("mlps", self.mlps)
        _several("layers", self.layers)
        unknown = [one for one in self.maps if one not in ("q", "k", "v", "o")]
        if unknown or not self.maps:
            raise UsageError(
                f"a head has the maps q, k, v and o; maps must name some of them, not {', '.join(map(str, unknown)) or 'none'}"
            )
        if self.shared not in ("whole", "any", "never"):
            raise UsageError(f"shared is 'whole', 'any' or 'never', not {self.shared!r}")

    def masks(self, model: LanguageModel) -> Masks:
        """Map the name of each parameter with something to train to a mask of its shape (True: trained), or to None where all of it is.

        Masks are views of one row or column and take no memory. Raises UsageError for a layer, head or projection that does not exist, a name that
        several projections of a layer have, or when nothing is selected.
        """
        anatomy = model.anatomy
        names = {id(parameter): name for name, parameter in model.hf.named_parameters()}
        found: dict[str, Tensor | None] = {}
        chosen: dict[int, set[int]] = {}
        for layer, head in self.heads:
            n = anatomy.site("z", layer).heads
            if not hasattr(head, "__index__") or not 0 <= head < n:
                raise UsageError(f"head {head} does not exist: {model.name} has heads 0 to {n - 1} in layer {layer}")
            chosen.setdefault(anatomy._layer(layer), set()).add(head)
        for layer, heads in chosen.items():
            for module, side, lines in self._lines(model, layer, heads):
                _mark(found, names, module, side, lines)
        if chosen and not found:
            theirs = " and ".join({"k": "keys", "v": "values"}[name] for name in ("k", "v") if name in self.maps)
            how = (
                "are not to be trained (shared: never)"
                if self.shared == "never"
                else "are trained where all of them are named, or shared: any"
            )
            raise UsageError(f"nothing is left of the heads: their {theirs}, which other heads share, {how}")
        whole: list[nn.Module] = [anatomy.mlp(layer) for layer in self.mlps]
        whole += [_projection(model, layer, name) for layer, name in self.projections]
        whole += [anatomy.layers[anatomy._layer(layer)] for layer in self.layers]
        whole += [anatomy.embed, anatomy.unembed] if self.embeddings else []
        whole += [anatomy.final_norm] if self.final_norm else []
        for module in whole:
            found.update({names[id(parameter)]: None for parameter in module.parameters()})
        if not found:
            raise UsageError("nothing is selected for training: name heads, mlps, projections, layers, embeddings or final_norm")
        return found

    def _lines(self, model: LanguageModel, layer: int, heads: set[int]) -> Iterator[tuple[nn.Module, str, Tensor]]:
        """For each map of a layer's selected heads: the linear map, its side, and which of its outputs (or inputs) are theirs."""
        anatomy = model.anatomy
        z = anatomy.site("z", layer)
        if "o" in self.maps:
            yield z.module, "input", torch.arange(z.heads * z.width).view(z.heads, z.width)[sorted(heads)].flatten()
        for name in ("q", "k", "v"):
            if name not in self.maps:
                continue
            site = anatomy.site(name, layer)
            columns = site.columns if site.columns is not None else torch.arange(site.heads * site.width).view(site.heads, site.width)
            group = z.heads // site.heads
            mine = heads if group == 1 else self._groups(heads, group)
            if mine:
                yield site.module, "output", columns[sorted(mine)].flatten()

    def _groups(self, heads: set[int], group: int) -> set[int]:
        counts = {head // group: sum(other // group == head // group for other in heads) for head in heads}
        return {key for key, n in counts.items() if self.shared != "never" and (n == group or self.shared == "any")}


def _several(name: str, given: Iterable[Any]) -> Sequence[Any]:
    """What was given, as a sequence. Raises UsageError where it is a single thing."""
    if not isinstance(given, Sequence):
        raise UsageError(f"{name} must be a tuple or a list, not {given!r}")
    return given


def named(maps: Iterable[str], name: str, where: str) -> list[str]:
    """Those of some linear maps that end in a name, or in a dotted part of one. Raises UsageError, with what exists, where none does."""
    found = [own for own in maps if own == name or own.endswith(f".{name}")]
    if not found:
        known = sorted({own.rpartition(".")[2] for own in maps})
        raise UsageError(f"no linear map '{name}' in {where}{nearest(str(name), known)}; there are {', '.join(known)}")
    return found


def _projection(model: LanguageModel, layer: int, name: str) -> nn.Module:
    """The one linear map of a layer that has a name."""
    maps = dataflow.linears(model.anatomy.layers[model.anatomy._layer(layer)])
    found = named(maps, name, f"layer {layer} of {model.name}")
    if len(found) > 1:
        raise UsageError(f"'{name}' is {len(found)} linear maps of layer {layer} ({', '.join(found[:4])}): write more of the name")
    return maps[found[0]]


def _mark(found: dict[str, Tensor | None], names: Mapping[int, str], module: nn.Module, side: str, lines: Tensor) -> None:
    """Add lines of a linear map to the masks: its outputs with their biases, or its inputs (whose bias is shared, and stays)."""
    weight: Any = module.weight
    parameters = [(weight, (side == "output") == isinstance(module, Conv1D))]  # Linear stores [out, in], Conv1D [in, out]
    if side == "output" and getattr(module, "bias", None) is not None:
        parameters.append((module.bias, False))
    for parameter, second in parameters:
        name = names[id(parameter)]
        if name in found and found[name] is None:
            continue
        line = torch.zeros(parameter.shape[1 if second else 0], dtype=torch.bool, device=parameter.device)
        line[lines.to(line.device)] = True
        shape = (1, -1) if second else (-1, *[1] * (parameter.ndim - 1))
        mask = line.view(shape).expand(parameter.shape)
        earlier = found.get(name)
        found[name] = mask if earlier is None else earlier | mask


class Held:
    """The trained parameters of a model, and what keeps the rest where it is. Made by `only`."""

    def __init__(self, named: Mapping[str, nn.Parameter], masks: Masks) -> None:
        self.named = {name: named[name] for name in masks}
        self._partial = [(named[name], _like(named[name], mask)) for name, mask in masks.items() if mask is not None]
        self._before = [parameter.detach().clone() for parameter, _ in self._partial]
        self.count = sum(self.named[name].numel() if mask is None else int(mask.sum()) for name, mask in masks.items())

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Parameters with something to train, for an optimiser."""
        return list(self.named.values())

    def mask_gradients(self) -> None:
        """Zero the gradients of all weights that are held. Call it before the gradients are clipped."""
        for parameter, mask in self._partial:
            if parameter.grad is not None:
                parameter.grad = torch.where(mask, parameter.grad, torch.zeros_like(parameter.grad))

    @torch.no_grad()
    def restore(self) -> None:
        """Put back every weight that is held. Call it after the optimiser's step."""
        for (parameter, mask), before in zip(self._partial, self._before, strict=True):
            parameter.copy_(torch.where(mask, parameter, before))


@contextmanager
def only(hf: nn.Module, masks: Masks | None) -> Iterator[Held]:
    """Let only these parts of a model be trained, for as long as the context lasts; None: all of it that may be (`requires_grad`).

    >>> with only(model.hf, Parts(heads=((3, 1),)).masks(model)) as held:  # doctest: +SKIP
    ...     optimiser = torch.optim.AdamW(held.parameters, lr=1e-4)
    ...     loss.backward(); held.mask_gradients(); optimiser.step(); held.restore()
    """
    named = dict(hf.named_parameters())
    flags = {name: parameter.requires_grad for name, parameter in named.items()}
    masks = {name: None for name, may in flags.items() if may} if masks is None else masks
    for name, parameter in named.items():
        parameter.requires_grad_(name in masks)
    try:
        yield Held(named, masks)
    finally:
        for name, parameter in named.items():
            parameter.requires_grad_(flags[name])
            parameter.grad = None


def _like(parameter: nn.Parameter, mask: Tensor) -> Tensor:
    """Lay a mask out as its parameter is: over the processes that share the parameter (FSDP2), where they do."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(parameter, DTensor):
        return distribute_tensor(mask.contiguous(), parameter.device_mesh, parameter.placements)
    return mask
