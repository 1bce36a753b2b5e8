"""Decoder layers of the usual kind, for many suffixes of different lengths at once: a sweep's rows as one long list of positions.

Of a layer only the attention knows what a text is; the rest treats positions alone. So rows of all suffixes go through the linear maps together,
`BLOCK` positions at a time, or half as many: at two sizes, for each of which oneDNN compiles one kernel a map. Norms, rotary embedding and attention
are torch's own operators; the sums with the residual stream are made by the kernels of the maps.

Usual is: norm, attention with rotary embedding (heads may share keys and values), norm, gated feed-forward block, as in Llama. Whether a layer is
that, `usual` finds by running it: any other goes its own way (see `wavefront`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from nullius.instruments import onednn
from nullius.models.hooks import hooked

BLOCK = 640  # positions in a linear map
HALF = BLOCK // 2  # what is left over goes to oneDNN in this size: for each other one it would keep kernels of some megabytes
PARTS = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_tried: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@dataclass(frozen=True)
class Suffixes:
    """Rows over one suffix. rows: [copies · n, T − start, d_model], a view, changed in place; keys, values: of the base run before the suffix
    [n, groups, start, d_head]; mask: additive [1, 1, T − start, T]; cos, sin: of the rotary embedding [1, T − start, d_head]."""

    rows: Tensor
    keys: Tensor
    values: Tensor
    mask: Tensor
    cos: Tensor
    sin: Tensor


def usual(layer: nn.Module, kwargs: dict[str, Any], rows: Tensor, prefix: tuple[Tensor, Tensor]) -> bool:
    """Whether a layer is of the usual kind and nobody watches it: its class is tried on some rows [n, s, d_model], once for each layer."""
    if hooked(layer) or any("forward" in vars(module) for module in layer.modules()):
        return False
    if layer not in _tried:
        _tried[layer] = _is_usual(layer, kwargs, rows, prefix)
    return _tried[layer]


def _is_usual(layer: nn.Module, kwargs: dict[str, Any], rows: Tensor, prefix: tuple[Tensor, Tensor]) -> bool:
    parts = dict(layer.named_children())
    if set(parts) != PARTS or {name for name, _ in parts["self_attn"].named_children()} != ATTENTION:
        return False
    gated = dict(parts["mlp"].named_children())
    if set(gated) != onednn.GATED:
        return False
    if not all(onednn.can(part) for part in [*parts["self_attn"].children(), *(gated[name] for name in onednn.GATED - {"act_fn"})]):
        return False
    try:
        suffixes = together(rows.clone(), kwargs, prefix)
        Layer(layer).run([suffixes])
        expected = layer(rows, **kwargs)
    except (KeyError, TypeError, AttributeError, RuntimeError):
        return False
    expected = expected[0] if isinstance(expected, tuple) else expected
    return torch.allclose(suffixes.rows, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def together(rows: Tensor, kwargs: dict[str, Any], prefix: tuple[Tensor, Tensor]) -> Suffixes:
    """Rows, and what the decoder calls a layer with. Raises KeyError, TypeError where a layer of the usual kind would be given more."""
    cos, sin = kwargs["position_embeddings"]
    start = kwargs["attention_mask"].shape[-1] - rows.shape[1]
    keys, values = (side[:, :, :start] for side in prefix)
    return Suffixes(rows, keys, values, kwargs["attention_mask"], cos[:1], sin[:1])


class Layer:
    """A layer's weights, arranged for as long as this object lives. Raises TypeError, AttributeError where a layer is of another kind."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.norms = [_norm(module) for module in (layer.input_layernorm, layer.post_attention_layernorm)]
        self.width, self.scale = int(attention.head_dim), float(attention.scaling)
        self.q, self.o, self.gate, self.up, self.down = (
            onednn.Linear(m.weight, m.bias, HALF) for m in (attention.q_proj, attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        )
        biases = [m.bias for m in (attention.k_proj, attention.v_proj)]
        weight = torch.cat([attention.k_proj.weight, attention.v_proj.weight])
        self.kv = onednn.Linear(weight, None if biases[0] is None else torch.cat(biases), HALF)
        self.heads, self.groups = len(self.q.weight) // self.width, len(self.kv.weight) // self.width // 2
        kind = onednn.activation(mlp.act_fn)
        if kind is None:
            raise TypeError("an activation function that oneDNN does not have")
        self.activation, self.act_fn = kind, mlp.act_fn

    @torch.no_grad()
    def run(self, suffixes: Sequence[Suffixes]) -> None:
        """Send rows through the layer, in place."""
        for some in _chunks(suffixes):
            parts = [suffixes[i].rows[rows] for i, rows in some]
            counts = list(map(_positions, parts))
            x = _filled([part.flatten(0, 1) for part in parts])
            attended = self._attended(x, counts, suffixes, some)
            for part, new in zip(parts, _split(_in_blocks(self._behind, attended, x), counts), strict=True):
                part.copy_(new.view_as(part))

    def _attended(self, x: Tensor, counts: Sequence[int], suffixes: Sequence[Suffixes], some: Sequence[tuple[int, slice]]) -> Tensor:
        """What the heads of some rows give at all positions [positions, heads · width]."""
        normed = _in_blocks(self.norms[0], x)
        q, kv = _in_blocks(self.q, normed), _in_blocks(self.kv, normed)
        attended = torch.empty_like(q)
        attended[sum(counts) :] = 0
        for (i, rows), query, both, into in zip(some, *(_split(each, counts) for each in (q, kv, attended)), strict=True):
            self._attend(query, both, suffixes[i], rows, into)
        return attended

    @torch.no_grad()
    def ends(self, suffixes: Sequence[Suffixes]) -> list[Tensor]:
        """What leaves the layer at the last position, for each suffix [copies · n, d_model]; other positions give keys and values only."""
        x = _filled([suffix.rows[:, -1] for suffix in suffixes])
        counts = [len(suffix.rows) for suffix in suffixes]
        q = _in_blocks(self.q, _in_blocks(self.norms[0], x))
        attended = torch.empty_like(q)
        attended[sum(counts) :] = 0
        queries, intos = _split(q, counts), _split(attended, counts)
        for some in _chunks(suffixes):
            parts = [suffixes[i].rows[rows] for i, rows in some]
            normed = _in_blocks(self.norms[0], _filled([part.flatten(0, 1) for part in parts]))
            for (i, rows), both in zip(some, _split(_in_blocks(self.kv, normed), list(map(_positions, parts))), strict=True):
                self._attend(queries[i][rows], both, suffixes[i], rows, intos[i][rows], slice(-1, None))
        return _split(_in_blocks(self._behind, attended, x), counts)

    def _attend(self, query: Tensor, both: Tensor, suffix: Suffixes, rows: slice, into: Tensor, asked: slice = slice(None)) -> None:
        """The heads' outputs over one suffix at the positions asked for, put into a tensor [positions, heads · width].

        The query heads that share keys are rows of one product with them.
        """
        copies, length, width, groups = rows.stop - rows.start, suffix.rows.shape[1], self.width, self.groups
        n, _, start, _ = suffix.keys.shape
        shared = self.heads // groups
        key, value = both.view(copies, length, 2, groups, width).permute(2, 0, 3, 1, 4)
        keys, values = both.new_empty(2, copies, groups, start + length, width)
        for into_rows, of in _by_text(rows, n) if start else ():
            for kept, old in ((keys, suffix.keys), (values, suffix.values)):
                kept[into_rows, :, :start].unflatten(0, (-1, of.stop - of.start)).copy_(old[of])
        _turn(key, suffix.cos, suffix.sin, keys[:, :, start:])
        values[:, :, start:] = value
        query = query.view(copies, -1, groups, shared, width).permute(0, 2, 3, 1, 4)
        together = torch.empty_like(query, memory_format=torch.contiguous_format)
        _turn(query, suffix.cos[:, asked], suffix.sin[:, asked], together)
        mask = suffix.mask[0, :, asked].repeat(1, shared, 1)
        scores = torch.baddbmm(mask, together.view(copies * groups, -1, width), keys.flatten(0, 1).mT, alpha=self.scale)
        out = torch.bmm(scores.softmax(-1), values.flatten(0, 1))
        into.view(copies, -1, groups, shared, width).permute(0, 2, 3, 1, 4).copy_(out.view_as(together))

    def _behind(self, attended: Tensor, x: Tensor) -> Tensor:
        """The layer from the heads' outputs on [positions, heads · width], with the stream before it [positions, d_model]."""
        return self._feed_forward(self.o.plus(attended, x))

    @torch.no_grad()
    def from_the_middle(self, mid: Tensor) -> Tensor:
        """The layer from the stream behind its attention on [.., d_model]."""
        flat = mid.flatten(0, -2)
        return _in_blocks(self._feed_forward, _filled([flat]))[: len(flat)].view_as(mid)

    def _feed_forward(self, mid: Tensor) -> Tensor:
        normed = self.norms[1](mid)
        gate = self.gate(normed, *self.activation) if self.gate.suits(normed) else self.act_fn(self.gate(normed))
        return self.down.plus(self.up.times(normed, gate), mid)


def _chunks(suffixes: Sequence[Suffixes]) -> list[list[tuple[int, slice]]]:
    """Cut rows into pieces of about a block, of about two where rows are so long that a block would have much to spare: (which suffix, its rows)."""
    out: list[list[tuple[int, slice]]] = []
    room = 0
    for i, suffix in enumerate(suffixes):
        count, length = suffix.rows.shape[:2]
        done = 0
        while done < count:
            if room < length:
                out.append([])
                room = BLOCK if length <= BLOCK // 16 else max(2 * BLOCK, length)
            take = min(count - done, room // length)
            out[-1].append((i, slice(done, done + take)))
            done, room = done + take, room - take * length
    return out


def _by_text(rows: slice, n: int) -> Iterator[tuple[slice, slice]]:
    """Cut rows, copies of n texts behind one another, into runs that begin alike: (which of these rows, which texts they repeat)."""
    at = rows.start
    while at < rows.stop:
        first, left = at % n, rows.stop - at
        count = left // n * n if first == 0 and left >= n else min(n - first, left)
        yield slice(at - rows.start, at - rows.start + count), slice(first, first + min(count, n))
        at += count


def _positions(rows: Tensor) -> int:
    return rows.shape[0] * rows.shape[1]


def _filled(parts: Sequence[Tensor]) -> Tensor:
    """Put parts behind one another [positions, ...], and zeros behind them where a few make whole or half blocks."""
    count = sum(map(len, parts))
    lacking = -count % HALF
    if 0 < lacking <= count % BLOCK // 5:
        return torch.cat([*parts, parts[0].new_zeros(lacking, *parts[0].shape[1:])])
    return torch.cat(list(parts)) if len(parts) > 1 else parts[0]


def _split(x: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """The parts that `_filled` put behind one another."""
    return list(x.split([*counts, len(x) - sum(counts)]))[: len(counts)]


def _in_blocks(function: Any, *given: Tensor) -> Tensor:
    """Apply a function of positions [positions, ...] block by block."""
    count = len(given[0])
    left = count % BLOCK
    sizes = [BLOCK] * (count // BLOCK) + [size for size in (left // HALF * HALF, left % HALF) if size]
    if len(sizes) < 2:
        return function(*given)
    return torch.cat([function(*parts) for parts in zip(*(x.split(sizes) for x in given), strict=True)])


def _turn(x: Tensor, cos: Tensor, sin: Tensor, into: Tensor) -> None:
    """The rotary embedding of x [..., s, width], with cos and sin [1, s, width], put where it is wanted."""
    half = x.shape[-1] // 2
    torch.mul(x, cos, out=into)
    into[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    into[..., half:].addcmul_(x[..., :half], sin[..., half:])


def _norm(module: Any) -> Callable[[Tensor], Tensor]:
    """A norm in three passes over its input where it divides by the root mean square, as most do; else the module itself."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if weight is None or eps is None:
        return module
    some = torch.linspace(-2, 3, 2 * len(weight)).view(2, -1)
    for factor in (weight.detach(), 1 + weight.detach()):  # Gemma's is stored less one
        quick = partial(_root_mean_square, factor, float(eps))
        if torch.allclose(quick(some), module(some), rtol=1e-5, atol=1e-6):
            return quick
    return module


def _root_mean_square(factor: Tensor, eps: float, x: Tensor) -> Tensor:
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return (x * size.square_().div_(x.shape[-1]).add_(eps).rsqrt_()).mul_(factor)
