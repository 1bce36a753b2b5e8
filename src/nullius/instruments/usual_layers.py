"""Decoder layers of the usual kind, for many suffixes of different lengths at once: a sweep's rows as one long list of positions.

Of a layer only the attention knows what a text is; the rest treats positions alone. So rows of all suffixes go through the linear maps together,
always `BLOCK` positions at a time: at one size, for which oneDNN compiles one kernel a map. Norms, rotary embedding and attention are torch's own
operators; the sums with the residual stream are made by the kernels of the maps.

Usual is: norm, attention with rotary embedding (heads may share keys and values), norm, gated feed-forward block, as in Llama. Whether a layer is
that, `usual` finds by running it: any other goes its own way (see `wavefront`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from nullius.instruments import onednn
from nullius.models.hooks import hooked

BLOCK = 512  # positions in a linear map
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
        self.norms = layer.input_layernorm, layer.post_attention_layernorm
        self.width, self.scale = int(attention.head_dim), float(attention.scaling)
        self.q, self.o, self.gate, self.up, self.down = (
            onednn.Linear(m.weight, m.bias, BLOCK) for m in (attention.q_proj, attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        )
        biases = [m.bias for m in (attention.k_proj, attention.v_proj)]
        weight = torch.cat([attention.k_proj.weight, attention.v_proj.weight])
        self.kv = onednn.Linear(weight, None if biases[0] is None else torch.cat(biases), BLOCK)
        self.heads, self.groups = len(self.q.weight) // self.width, len(self.kv.weight) // self.width // 2
        kind = onednn.activation(mlp.act_fn)
        if kind is None:
            raise TypeError("an activation function that oneDNN does not have")
        self.activation, self.act_fn = kind, mlp.act_fn

    @torch.no_grad()
    def run(self, suffixes: Sequence[Suffixes], last: bool = False) -> list[Tensor]:
        """Send rows through the layer, in place. last: only the last position is wanted, and returned for each suffix [copies · n, d_model]."""
        ends: list[list[Tensor]] = [[] for _ in suffixes]
        for some in _chunks(suffixes):
            parts = [suffixes[i].rows[rows] for i, rows in some]
            x = _filled([part.flatten(0, 1) for part in parts])
            attended = self._attention(x, suffixes, some, last)
            if last:
                parts = [part[:, -1:] for part in parts]
                x = _filled([part.flatten(0, 1) for part in parts])
            out = _in_blocks(self._behind, _filled(attended), x)
            for (i, _), part, new in zip(some, parts, out.split([*map(_positions, parts), _rest(out, parts)]), strict=False):
                if last:
                    ends[i].append(new)
                else:
                    part.copy_(new.view_as(part))
        return [torch.cat(parts) for parts in ends if parts]

    def _attention(self, x: Tensor, suffixes: Sequence[Suffixes], some: Sequence[tuple[int, slice]], last: bool) -> list[Tensor]:
        """What the heads of some rows give, of the last position or of all, by suffix [positions, heads · width]."""
        parts = [suffixes[i].rows[rows] for i, rows in some]
        normed = _in_blocks(self.norms[0], x)
        by_suffix = [*map(_positions, parts), _rest(x, parts)]
        kv = _in_blocks(self.kv, normed).split(by_suffix)
        if last:
            parts = [part[:, -1:] for part in parts]
            ends = zip(normed.split(by_suffix), some, strict=False)
            normed = _filled([one.unflatten(0, (rows.stop - rows.start, -1))[:, -1] for one, (_, rows) in ends])
        q = _in_blocks(self.q, normed).split([*map(_positions, parts), _rest(normed, parts)])
        return [self._attend(query, both, suffixes[i], rows, last) for (i, rows), query, both in zip(some, q, kv, strict=False)]

    def _attend(self, query: Tensor, both: Tensor, suffix: Suffixes, rows: slice, last: bool) -> Tensor:
        """The heads' outputs over one suffix. The query heads that share keys are rows of one product with them."""
        copies, length, width, groups = rows.stop - rows.start, suffix.rows.shape[1], self.width, self.groups
        n, _, start, _ = suffix.keys.shape
        asked = slice(-1, None) if last else slice(None)
        query = query.view(copies, -1, self.heads, width)
        key, value = both.view(copies, length, 2, groups, width).unbind(2)
        query, key = (_turned(part, suffix.cos[:, at, None], suffix.sin[:, at, None]) for part, at in ((query, asked), (key, slice(None))))
        whole = []
        pair = torch.arange(rows.start, rows.stop).remainder_(n)
        for new, old in ((key, suffix.keys), (value, suffix.values)):
            seen = new.new_empty(copies, groups, start + length, width)
            if start:
                seen[:, :, :start] = old[pair]
            seen[:, :, start:] = new.transpose(1, 2)
            whole.append(seen.flatten(0, 1))
        shared = self.heads // groups
        together = query.unflatten(2, (groups, shared)).permute(0, 2, 3, 1, 4).reshape(copies * groups, -1, width)
        mask = suffix.mask[0, :, asked].repeat(1, shared, 1)
        pattern = torch.baddbmm(mask, together, whole[0].mT, alpha=self.scale).softmax(-1)
        out = torch.bmm(pattern, whole[1]).view(copies, groups, shared, -1, width)
        return out.permute(0, 3, 1, 2, 4).reshape(-1, self.heads * width)

    def _behind(self, attended: Tensor, x: Tensor) -> Tensor:
        """The rest of the layer."""
        mid = self.o.plus(attended, x)
        normed = self.norms[1](mid)
        gate = self.gate(normed, *self.activation) if self.gate.suits(normed) else self.act_fn(self.gate(normed))
        return self.down.plus(self.up.times(normed, gate), mid)


def _chunks(suffixes: Sequence[Suffixes]) -> list[list[tuple[int, slice]]]:
    """Cut rows into pieces of about two blocks: (which suffix, its rows)."""
    out: list[list[tuple[int, slice]]] = []
    room = 0
    for i, suffix in enumerate(suffixes):
        count, length = suffix.rows.shape[:2]
        done = 0
        while done < count:
            if room < length:
                out.append([])
                room = max(2 * BLOCK, length)
            take = min(count - done, room // length)
            out[-1].append((i, slice(done, done + take)))
            done, room = done + take, room - take * length
    return out


def _positions(rows: Tensor) -> int:
    return rows.shape[0] * rows.shape[1]


def _rest(x: Tensor, parts: Sequence[Tensor]) -> int:
    """Positions of x that belong to no part."""
    return len(x) - sum(map(_positions, parts))


def _filled(parts: Sequence[Tensor]) -> Tensor:
    """Put parts behind one another [positions, ...], and zeros behind them where that makes a nearly full last block a full one."""
    lacking = -sum(map(len, parts)) % BLOCK
    if 0 < lacking <= BLOCK // 8:
        return torch.cat([*parts, parts[0].new_zeros(lacking, *parts[0].shape[1:])])
    return torch.cat(list(parts))


def _in_blocks(function: Any, *given: Tensor) -> Tensor:
    """Apply a function of positions [positions, ...] block by block."""
    if len(given[0]) <= BLOCK:
        return function(*given)
    return torch.cat([function(*parts) for parts in zip(*(x.split(BLOCK) for x in given), strict=True)])


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The rotary embedding: x [copies, s, heads, width], cos and sin [1, s, 1, width]."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin
