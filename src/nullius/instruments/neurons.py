"""Which neurons and heads write along a direction, and what becomes of the model when a set of them is silenced or driven.

Neuron j of a layer adds H_j · (row j of W_down) to the stream, so H_j β_j along a direction v, with β = W_down v. A head's importance is the
fall of the projection when its slice of the output projection's input is set to zero. Both at the last token, at the layer where they write.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from nullius.errors import UsageError
from nullius.instruments import checks, interventions, positionwise, taps
from nullius.instruments.direct_effects import pulled_back
from nullius.instruments.directions import unit
from nullius.instruments.interventions import Intervention
from nullius.instruments.where import Positions, Where
from nullius.models.language_model import Batch, LanguageModel

Kind = Literal["neuron", "head"]


@torch.no_grad()
def neuron_effects(model: LanguageModel, neurons: Tensor, directions: Tensor) -> Tensor:
    """H_j β_j: what each neuron's activation [layers, n, d_mlp] (site mlp_post) adds along directions [layers, k, d_model]: [layers, k, n, d_mlp].

    Through the block's factor and post-norm where there are such (Gemma, OLMo 2), the norm taken as the linear map that it was: without it a
    neuron's effect is in another unit than the stream's, and along another direction (the norm weighs channels).
    Raises UsageError for other shapes, and SubjectError for layers without neurons (mixtures of experts).
    """
    anatomy, found = model.anatomy, []
    _layers(model, neurons, directions)
    checks.wide(neurons, anatomy.d_mlp, "activations of neurons")
    for layer, (h, v) in enumerate(zip(neurons, directions.to(neurons.device), strict=True)):
        along, norm = unit(v.float())[:, None] * anatomy.site("mlp_out", layer).factor, anatomy.post_norm(layer, "mlp")
        if norm is not None:
            before = anatomy.down_proj(layer)(h)
            along = torch.stack([pulled_back(norm, before, each) for each in along])
        found.append(h.float()[None] * (along @ anatomy.down_weight(layer).float().T))
    return torch.stack(found)


@torch.no_grad()
def head_importance(model: LanguageModel, z: Tensor, directions: Tensor) -> Tensor:
    """Fall of the projection of resid_mid onto directions [layers, k, d_model] when one head is zeroed: [layers, k, n, heads]. z: [layers, n,
    heads, d_head].

    Exact, and without running the model again: at its own layer and token a head changes nothing but the attention's output. Raises UsageError for
    other shapes.
    """
    anatomy = model.anatomy
    found = []
    _layers(model, z, directions)
    if z.shape[2:] != (anatomy.n_heads, anatomy.d_head):
        raise UsageError(f"heads' outputs must be [layers, n, {anatomy.n_heads}, {anatomy.d_head}]; got {list(z.shape)}")
    for layer, (here, v) in enumerate(zip(z, directions.to(z.device), strict=True)):
        keep = 1 - torch.eye(anatomy.n_heads, device=z.device, dtype=z.dtype)  # row h: all heads but h
        cut = torch.cat([here[:, None], here[:, None] * keep[None, :, :, None]], 1)  # [n, 1 + heads, heads, d_head]
        out = positionwise.attention_out(anatomy, layer, anatomy.o_proj(layer)(cut.flatten(-2).contiguous())).float()
        along = out @ unit(v.float()).T  # [n, 1 + heads, k]
        found.append((along[:, :1] - along[:, 1:]).permute(2, 0, 1))
    return torch.stack(found)


@torch.no_grad()
def fall_without(model: LanguageModel, kind: Kind, values: Tensor, directions: Tensor, sets: Tensor) -> Tensor:
    """Fall of the stream's projection onto directions [layers, n, d_model] when several components of a layer are zeroed at once: [layers, n].

    values: neurons [layers, n, d_mlp] or heads' outputs [layers, n, heads, d_head]; sets: numbers of those to silence [layers, n, k]. Exact, and
    without running the model again: through factor and post-norm, behind which several components do not add up.
    """
    anatomy, found = model.anatomy, []
    for layer, (x, v, some) in enumerate(zip(values, directions.to(values.device), sets.to(values.device), strict=True)):
        keep = torch.ones(x.shape[:2], device=x.device, dtype=x.dtype).scatter_(1, some, 0.0)
        if kind == "head":
            both = [positionwise.attention_out(anatomy, layer, anatomy.o_proj(layer)(z.flatten(1))) for z in (x, x * keep[..., None])]
        else:
            both = [positionwise.mlp_out(anatomy, layer, anatomy.down_proj(layer)(h)) for h in (x, x * keep)]
        found.append(((both[0] - both[1]).float() * unit(v.float())).sum(-1))
    return torch.stack(found)


@torch.no_grad()
def sublayer_importance(
    model: LanguageModel,
    batch: Batch,
    site: str,
    layer: int,
    vectors: Tensor,
    reference: Tensor,
    doses: Sequence[float] = (0.1, 0.3, 0.5, 0.7),
) -> Tensor:
    """How far an injection at a sublayer's output moves the final state along a reference, per unit injected: [vectors, n].

    dose × σ × unit vector is added at the last token to `site` (attn_out or mlp_out), with σ the mean RMS of the stream behind that sublayer; the
    change of ⟨resid_post of the last layer, reference⟩ over dose × σ is averaged over doses. vectors, reference: [k, d_model].
    Raises UsageError for another site, no vector, a reference of another shape, and doses of nothing.
    """
    if site not in ("attn_out", "mlp_out"):
        raise UsageError(f"an importance is that of attn_out or mlp_out, not of {site}")
    if vectors.ndim != 2 or not len(vectors) or vectors.shape != reference.shape:
        raise UsageError(f"vectors and reference must be [k, d_model] alike; got {list(vectors.shape)} and {list(reference.shape)}")
    if not len(doses) or not all(np.isfinite(dose) and dose != 0 for dose in doses):
        raise UsageError(f"an importance needs doses other than 0; got {list(doses)}")
    for x, what in ((vectors, "vectors"), (reference, "reference")):
        checks.finite(checks.wide(x, model.anatomy.d_model, what), what)
    stream = "resid_post" if site == "mlp_out" or model.anatomy.parallel else "resid_mid"
    there = taps.read(model, batch, [stream], [layer])[stream][0].float()
    sigma = float(there.square().mean(-1).sqrt().mean())
    top, n = model.anatomy.n_layers - 1, len(there)
    k, steps = len(vectors), len(doses)
    many = Batch(batch.input_ids.repeat(1 + k * steps, 1), batch.attention_mask.repeat(1 + k * steps, 1))
    added = torch.zeros(len(many.input_ids), there.shape[1], device=there.device)
    rows = [dose * sigma * unit(vector.float()) for vector in vectors.to(there.device) for dose in doses]
    added[n:] = torch.stack(rows).repeat_interleave(n, 0)
    with interventions.applied(model, [interventions.add(Where(site, layer, positions="last"), added)]):
        end = taps.read(model, many, ["resid_post"], [top])["resid_post"][0].float()
    moved = (end[n:].view(k, steps, n, -1) - end[:n]) @ unit(reference.float()).to(end.device).T  # [k, steps, n, k]
    own = moved.diagonal(dim1=0, dim2=3).permute(2, 0, 1)  # each vector along its own reference
    return (own / (torch.tensor(doses, device=end.device)[:, None] * sigma)).mean(1)


def _layers(model: LanguageModel, values: Tensor, directions: Tensor) -> None:
    """Activations [layers, n, ..] and directions [layers, k, d_model] of all layers of a model, or UsageError."""
    layers, d = model.anatomy.n_layers, model.anatomy.d_model
    if values.ndim < 3 or directions.ndim != 3 or len(values) != layers or len(directions) != layers or directions.shape[-1] != d:
        raise UsageError(
            f"activations must be [{layers}, n, ..] and directions [{layers}, k, {d}]; got {list(values.shape)} and {list(directions.shape)}"
        )


@dataclass(frozen=True)
class Components:
    """A set of neurons and heads: layer → numbers. Equal sets compare equal."""

    neurons: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    heads: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, neurons: Iterable[tuple[int, int]] = (), heads: Iterable[tuple[int, int]] = ()) -> Components:
        """Make a set of pairs (layer, number)."""
        return cls(_by_layer(neurons), _by_layer(heads))

    def pairs(self) -> set[tuple[str, int, int]]:
        """All members as (neuron or head, layer, number)."""
        kinds = {"neuron": self.neurons, "head": self.heads}
        return {(kind, layer, one) for kind, some in kinds.items() for layer, them in some.items() for one in them}

    def __len__(self) -> int:
        return len(self.pairs())

    def jaccard(self, other: Components) -> float:
        """Shared members over all members of both; 1 for two empty sets."""
        both = self.pairs() | other.pairs()
        return len(self.pairs() & other.pairs()) / len(both) if both else 1.0

    def random_like(self, model: LanguageModel, rng: np.random.Generator) -> Components:
        """As many neurons and heads of the same layers, drawn among the others as far as there are enough of them."""

        def drawn(some: Mapping[int, tuple[int, ...]], size: int) -> dict[int, tuple[int, ...]]:
            out = {}
            for layer, them in some.items():
                strangers = [int(one) for one in rng.permutation(size) if one not in set(them)]
                again = [them[int(i)] for i in rng.permutation(len(them))]
                out[layer] = tuple(sorted((strangers + again)[: len(them)]))
            return out

        return Components(drawn(self.neurons, model.anatomy.d_mlp), drawn(self.heads, model.anatomy.n_heads))


def _by_layer(pairs: Iterable[tuple[int, int]]) -> dict[int, tuple[int, ...]]:
    found: dict[int, set[int]] = {}
    for layer, one in pairs:
        found.setdefault(int(layer), set()).add(int(one))
    return {layer: tuple(sorted(them)) for layer, them in sorted(found.items())}


def scaled(components: Components, factor: float, positions: Positions = "last") -> list[Intervention]:
    """Multiply what the components write by a factor: 0 ablates, more than 1 enhances."""
    parts = [Where("mlp_post", layer, units=units, positions=positions) for layer, units in components.neurons.items()]
    parts += [Where("z", layer, heads=heads, positions=positions) for layer, heads in components.heads.items()]
    return [interventions.scale(part, factor) for part in parts]


def driven(
    components: Components, neurons: Tensor, heads: Tensor, factor: float, positions: Positions = "last", rows: Sequence[int] | None = None
) -> list[Intervention]:
    """Add factor × a difference of activations to the components, at the newest token of every pass: neurons at the input of down_proj, heads at
    o_proj's.

    neurons: [layers, d_mlp]; heads: [layers, heads, d_head]; only the entries of the set are used. rows: of the batch. Raises UsageError for
    components that these do not hold.
    """
    found = []
    for kind, layer, one in sorted(components.pairs()):
        size = (neurons if kind == "neuron" else heads).shape[:2]
        if not (0 <= layer < size[0] and 0 <= one < size[1]):
            raise UsageError(f"{kind} {layer}.{one} does not exist: there are {size[0]} layers of {size[1]}")
    for layer, units in components.neurons.items():
        where = Where("mlp_post", layer, units=units, positions=positions, rows=rows)
        found.append(interventions.add(where, neurons[layer][list(units)], factor))
    for layer, some in components.heads.items():
        found.append(interventions.add(Where("z", layer, heads=some, positions=positions, rows=rows), heads[layer][list(some)], factor))
    return found


def circuit(scores: Mapping[str, Tensor], importance: Mapping[str, Tensor], sizes: Mapping[str, int]) -> Components:
    """Choose components over layers: each layer's quota follows its sublayer's importance, and inside a layer the best local scores are taken.

    scores: {"neuron": [layers, d_mlp], "head": [layers, heads]}; importance: the same names → [layers], below zero counts as zero (all alike
    where none is above); sizes: how many of each. A layer that is full hands its quota on, so that the sizes are met as far as there are
    components. Raises UsageError for a size or an importance that is missing or does not fit, and for scores that are not finite.
    """
    chosen: dict[str, list[tuple[int, int]]] = {}
    for kind, table in scores.items():
        layers, width = table.shape
        if kind not in sizes or kind not in importance or importance[kind].shape != (layers,):
            raise UsageError(f"a circuit of {kind}s needs their number, and an importance for each of {layers} layers")
        checks.finite(table, f"scores of {kind}s")
        checks.finite(importance[kind], f"importance of {kind}s")
        weight = importance[kind].double().clamp(min=0)
        weight = weight if float(weight.sum()) > 0 else torch.ones_like(weight)
        wanted = min(sizes[kind], layers * width)
        if sizes[kind] < 0:
            raise UsageError(f"a circuit cannot have {sizes[kind]} {kind}s")
        quota = [0] * layers
        for _ in range(wanted):  # D'Hondt: the next one goes where weight / (quota + 1) is largest
            open_ = [layer for layer in range(layers) if quota[layer] < width]
            quota[max(open_, key=lambda layer: float(weight[layer]) / (quota[layer] + 1))] += 1
        order = table.argsort(dim=1, descending=True, stable=True)
        chosen[kind] = [(layer, int(one)) for layer in range(layers) for one in order[layer, : quota[layer]]]
    return Components.of(chosen.get("neuron", []), chosen.get("head", []))
