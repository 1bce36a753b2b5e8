"""Situations told in several manners: directions of the manners, the components that write them, circuits of those.

Every situation (group) is told in every manner (class: six emotions, six styles). What the last token of the prompt holds beyond the situation's
mean belongs to the manner. Directions are learnt from some situations and tried on others (Wang et al. 2025, arXiv 2510.11328).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nullius.errors import UsageError
from nullius.instruments import directions, interventions, neurons, taps
from nullius.instruments.interventions import Intervention
from nullius.instruments.neurons import Components, Kind
from nullius.instruments.where import Where
from nullius.models.language_model import Batch, LanguageModel

Watch = Callable[[Sequence[list[int]]], Iterable[list[int]]]


def last_token(
    model: LanguageModel, texts: Sequence[str], sites: Sequence[str], batch_size: int = 16, watch: Watch = iter
) -> dict[str, Tensor]:
    """Several sites of the texts' last tokens in one pass over them: [layers, n, ...], float32 on the CPU. watch: shows how many batches are
    done."""
    parts: dict[str, list[Tensor]] = {name: [] for name in sites}
    order: list[int] = []
    for some in watch(model.by_length(texts, batch_size)):
        read = taps.read(model, model.encode([texts[i] for i in some]), sites)
        order += some
        for name in sites:
            parts[name].append(read[name].float().cpu())
    back = torch.tensor(order).argsort()
    return {name: torch.cat(them, 1)[:, back] for name, them in parts.items()}


@dataclass(frozen=True)
class Told:
    """Situations told in k manners: what the last token holds, [layers, situations, k, ...]. tuning, test: numbers of situations.

    mid, post: the stream behind the attention and behind the feed-forward block; z, cells: heads and neurons (None where not read).
    """

    mid: Tensor
    post: Tensor
    z: Tensor | None
    cells: Tensor | None
    tuning: list[int]
    test: list[int]

    @classmethod
    def read(
        cls,
        model: LanguageModel,
        texts: Sequence[str],
        shape: tuple[int, int, int],
        halves: tuple[list[int], list[int]],
        *,
        components: bool = True,
        watch: Watch = iter,
    ) -> Told:
        """Read texts in the order situation, version, manner (shape: how many of each); versions of a situation are averaged.

        Raises UsageError for another number of texts, and for halves that name a situation that there is not. An empty half is one that nobody
        asks about.
        """
        if len(texts) != int(np.prod(shape)) or not texts:
            raise UsageError(f"{' × '.join(map(str, shape))} situations, versions and manners are not {len(texts)} texts")
        if not all(0 <= situation < shape[0] for half in halves for situation in half):
            raise UsageError(f"tuning and test are situations from 0 to {shape[0] - 1}; got {halves[0]} and {halves[1]}")
        middle = "resid_post" if model.anatomy.parallel else "resid_mid"
        sites = [*dict.fromkeys([middle, "resid_post"]), *(["z", "mlp_post"] if components else [])]
        found = {name: x.unflatten(1, shape).mean(2) for name, x in last_token(model, texts, sites, watch=watch).items()}
        return cls(found[middle], found["resid_post"], found.get("z"), found.get("mlp_post"), *halves)

    def contrast(self, x: Tensor) -> Tensor:
        """Mean over tuning situations of what each manner has beyond the situation's mean: of x [layers, situations, k, ...], [layers, k, ...].

        Raises UsageError without a tuning situation: a mean over none is no number.
        """
        if not self.tuning:
            raise UsageError("directions are learnt from tuning situations: there is none")
        some = x[:, self.tuning]
        return (some - some.mean(2, keepdim=True)).mean(1)

    @cached_property
    def attention(self) -> Tensor:
        """Unit directions behind each attention [layers, k, d]."""
        return directions.unit(self.contrast(self.mid))

    @cached_property
    def mlp(self) -> Tensor:
        """Unit directions behind each feed-forward block [layers, k, d]."""
        return directions.unit(self.contrast(self.post))

    def effects(self, model: LanguageModel) -> dict[str, Tensor]:
        """What each component adds along the manner that was asked for: {"neuron": [layers, situations, k, d_mlp], "head": [layers, situations,
        k, heads]}."""
        if self.cells is None or self.z is None:
            raise UsageError("these situations were read without components: read them with components=True")
        found: dict[str, list[Tensor]] = {"neuron": [], "head": []}
        for i in range(self.mlp.shape[1]):
            cells, z = (x[:, :, i].to(model.device, model.dtype) for x in (self.cells, self.z))
            found["neuron"].append(neurons.neuron_effects(model, cells, self.mlp[:, i : i + 1])[:, 0].cpu())
            found["head"].append(neurons.head_importance(model, z, self.attention[:, i : i + 1])[:, 0].cpu())
        return {kind: torch.stack(tables, 2) for kind, tables in found.items()}

    def accuracy(self, states: Tensor | None = None) -> tuple[NDArray[np.float64], int]:
        """Whether test situations are nearest to their manner's direction [test, k], at the layer that is best on tuning situations; and that
        layer."""
        right = directions.leave_group_out(self.post if states is None else states)
        layer = int(right[:, self.tuning].mean((1, 2)).argmax())
        return right[layer, self.test], layer

    def agreement(self, before: Tensor, after: Tensor) -> NDArray[np.float64]:
        """Cosine of each unseen situation's own contrast in `after` with the directions of the tuning ones in `before`, mean over layers [test,
        k]."""
        others = directions.group_contrast(before[:, self.tuning])[:, None]
        unseen = after[:, self.test] - after[:, self.test].mean(2, keepdim=True)
        return directions.cosine(unseen, others).mean(0).numpy()

    def fall(self, model: LanguageModel, kind: Kind, effects: Tensor, k: int, rng: np.random.Generator) -> list[NDArray[np.float64]]:
        """How far a manner's projection falls in test situations without the k components of each layer that add most to it; without k random
        ones of the layer (none of these k, unless fewer than k + 1 would be left); and without other random ones, drawn alike. Random ones are
        drawn anew for each situation. kind: heads and the stream behind attentions, or neurons and that behind feed-forward blocks; effects: see
        `effects`, by which the k are chosen in tuning situations.

        As a share of the manner's lead over the situation's mean; both summed over layers [test, manners]. Exact (`neurons.fall_without`).
        """
        states, v, values = (self.mid, self.attention, self.z) if kind == "head" else (self.post, self.mlp, self.cells)
        if values is None:
            raise UsageError("these situations were read without components: read them with components=True")
        lead = torch.einsum("lkd,lkd->k", self.contrast(states).double(), v.double()).clamp(min=1e-30)  # no manners: nothing falls
        mean = effects[:, self.tuning].mean(1)  # [layers, manners, components]
        best = mean.argsort(-1, descending=True)[:, None, :, :k].expand(-1, len(self.test), -1, -1)
        shape = (len(mean), len(self.test), *mean.shape[1:])
        last = 1.0 if mean.shape[-1] > 2 * k else 0.0
        noise = [torch.tensor(rng.random(shape)).scatter_add(-1, best, torch.full(best.shape, last).double()) for _ in range(2)]
        drawn = [some.argsort(-1)[..., :k] for some in noise]
        told = values[:, self.test].flatten(1, 2).to(model.device, model.dtype)
        along = v[:, None].expand(-1, len(self.test), -1, -1).flatten(1, 2)
        falls = [neurons.fall_without(model, kind, told, along, some.flatten(1, 2)).cpu().double().sum(0) for some in (best, *drawn)]
        return [(fall.view(len(self.test), -1) / lead).numpy() for fall in falls]

    def importance(
        self, model: LanguageModel, batch: Batch, reference: Tensor, doses: Sequence[float], watch: Callable[[range], Iterable[int]] = iter
    ) -> dict[str, Tensor]:
        """Importance of each sublayer for each manner [layers, k]: "head" of attentions, "neuron" of feed-forward blocks. See
        `sublayer_importance`.

        Each sublayer's own direction is injected, signed to agree with the reference [k, d].
        """
        found: dict[str, list[Tensor]] = {"head": [], "neuron": []}
        for layer in watch(range(model.anatomy.n_layers)):
            for kind, site, v in (("head", "attn_out", self.attention[layer]), ("neuron", "mlp_out", self.mlp[layer])):
                sign = torch.where((v * reference).sum(-1, keepdim=True) < 0, -1.0, 1.0)
                moved = neurons.sublayer_importance(model, batch, site, layer, sign * v, reference, doses)
                found[kind].append(moved.mean(1).cpu())
        return {kind: torch.stack(rows) for kind, rows in found.items()}

    def circuits(self, effects: Mapping[str, Tensor], importance: Mapping[str, Tensor], sizes: Mapping[str, int]) -> list[Components]:
        """One set of components for each manner (`neurons.circuit`), from the tuning situations."""
        local = {kind: table[:, self.tuning].mean(1) for kind, table in effects.items()}
        return [
            neurons.circuit({kind: x[:, i] for kind, x in local.items()}, {kind: x[:, i] for kind, x in importance.items()}, sizes)
            for i in range(self.mlp.shape[1])
        ]

    def drive(self, sets: Sequence[Components], device: torch.device, factor: float, each: int) -> list[Intervention]:
        """Drive each manner's set by the difference it makes to the components; rows i·each … of the batch are those of manner i.

        As `neurons.driven` for each set and its rows, in one intervention for each layer and kind: every token that is written passes through all.
        """
        if self.cells is None or self.z is None:
            raise UsageError("these situations were read without components: read them with components=True")
        found = []
        for site, whole, members in (
            ("mlp_post", self.contrast(self.cells), [one.neurons for one in sets]),
            ("z", self.contrast(self.z), [one.heads for one in sets]),
        ):
            for layer in sorted({layer for some in members for layer in some}):
                added = torch.zeros_like(whole[layer])
                for i, some in enumerate(members):
                    chosen = list(some.get(layer, ()))
                    added[i, chosen] = whole[layer, i, chosen]
                found.append(interventions.add(Where(site, layer, positions="last"), added.repeat_interleave(each, 0).to(device), factor))
        return found
