"""What a cell of a patching sweep is: which part of which site takes the source's value, and how its rows enter the wavefront.

A cell's rows enter at the lowest layer whose attention sees the patch. Up to there everything treats positions alone (`positionwise`), so it is
made for the patched positions only: of a head its own share of the output projection, of some neurons theirs of the last map.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from nullius.errors import UsageError
from nullius.instruments import positionwise
from nullius.instruments.wavefront import Base, FromTheMiddle
from nullius.models.anatomy import Anatomy


class Grid(Protocol):
    """A grid of cells, layers × columns. site: where is patched; start: the first position that a column's cells change."""

    site: str
    columns: int

    def start(self, column: int) -> int:
        """Return the first position that a column's cells change."""
        ...

    def joined(
        self, layer: int, columns: Sequence[int], pairs: slice, start: int, from_the_middle: FromTheMiddle | None = None
    ) -> tuple[int, Tensor]:
        """Return where the rows of a layer's cells enter, and those rows [cells · pairs, T − start, d_model], cell by cell.

        start: the position from which they are run, at or before that of each of the cells. from_the_middle: a quick way through the rest of this
        layer, if there is one.
        """
        ...

    def put(self, x: Tensor, layer: int, column: int, pair: int) -> None:
        """Patch one text [T, ...] in place, the plain way."""
        ...

    def change(self, layer: int) -> Tensor:
        """Return what the patches of a layer would change, source − base, [n, T, ...]."""
        ...

    def by_column(self, x: Tensor) -> Tensor:
        """Sum a tensor of the site's shape [n, T, ...] over what belongs to each column [n, columns]."""
        ...


class Positions:
    """One position of a site of the residual stream; with a basis, the part of it that lies in that subspace. Columns: positions."""

    def __init__(self, anatomy: Anatomy, base: Base, there: Tensor, site: str, basis: Tensor | None) -> None:
        self.site, self.base, self.columns = site, base, there.shape[2]
        self.here = here = base.stream if site == "resid_pre" else base.sites[site]
        self.there = there if basis is None else here + ((there - here).to(basis.dtype) @ basis.mT @ basis).to(here.dtype)
        self.above = 0 if site == "resid_pre" else 1
        self.patched = []
        for layer in range(anatomy.n_layers):
            new, pre = self.there[layer], base.stream[layer]
            if site in ("resid_mid", "attn_out"):
                new = positionwise.top(anatomy, layer, pre, new - pre if site == "resid_mid" else new)
            elif site == "mlp_out":
                new = base.below(layer + 1) + new - here[layer]
            self.patched.append(new)

    def start(self, column: int) -> int:
        return column

    def joined(
        self, layer: int, columns: Sequence[int], pairs: slice, start: int, from_the_middle: FromTheMiddle | None = None
    ) -> tuple[int, Tensor]:
        rows = self.base.below(layer + self.above)[pairs, start:].repeat(len(columns), 1, 1)
        for of_cell, column in zip(rows.chunk(len(columns)), columns, strict=True):
            of_cell[:, column - start] = self.patched[layer][pairs, column]
        return layer + self.above, rows

    def put(self, x: Tensor, layer: int, column: int, pair: int) -> None:
        x[column] = self.there[layer][pair, column]

    def change(self, layer: int) -> Tensor:
        return self.there[layer] - self.here[layer]

    def by_column(self, x: Tensor) -> Tensor:
        return x.sum(-1)


class Heads:
    """One head's output z at all positions from the first in which the texts differ. Columns: heads."""

    site = "z"

    def __init__(self, anatomy: Anatomy, base: Base, there: Tensor, first: int) -> None:
        self.anatomy, self.base, self.there, self.first, self.columns = anatomy, base, there, first, anatomy.n_heads

    def start(self, column: int) -> int:
        return self.first

    def joined(
        self, layer: int, columns: Sequence[int], pairs: slice, start: int, from_the_middle: FromTheMiddle | None = None
    ) -> tuple[int, Tensor]:
        anatomy, here = self.anatomy, self.base.sites["z"][layer][pairs]
        seen = slice(self.first if layer < anatomy.n_layers - 1 else -1, None)  # the last layer's other positions are read by nobody
        change = (self.there[layer][pairs] - here)[:, seen, columns]
        written = torch.einsum("ntcd,cdm->cntm", change, anatomy.o_weight(layer)[columns])
        raw = anatomy.o_proj(layer)(here[:, seen].flatten(-2).contiguous()) + written
        pre = self.base.stream[layer][pairs, seen].repeat(len(columns), 1, 1)
        out = positionwise.attention_out(anatomy, layer, raw.flatten(0, 1))
        return layer + 1, positionwise.top(anatomy, layer, pre, out) if from_the_middle is None else from_the_middle(pre + out)

    def put(self, x: Tensor, layer: int, column: int, pair: int) -> None:
        x[:, column] = self.there[layer][pair, :, column]

    def change(self, layer: int) -> Tensor:
        return self.there[layer] - self.base.sites["z"][layer]

    def by_column(self, x: Tensor) -> Tensor:
        return x.sum((1, 3))


class NeuronBlocks:
    """A block of neurons of a feed-forward block, at all positions from the first in which the texts differ. Columns: blocks."""

    site = "mlp_post"

    def __init__(self, anatomy: Anatomy, base: Base, there: Tensor, first: int, blocks: int) -> None:
        if not 1 <= blocks <= anatomy.d_mlp:
            raise UsageError(f"{anatomy.d_mlp} neurons cannot be cut into {blocks} blocks")
        self.anatomy, self.base, self.there, self.first, self.columns = anatomy, base, there, first, blocks
        edges = [round(i * anatomy.d_mlp / blocks) for i in range(blocks + 1)]
        self.units = [slice(*pair) for pair in pairwise(edges)]

    def start(self, column: int) -> int:
        return self.first

    def joined(
        self, layer: int, columns: Sequence[int], pairs: slice, start: int, from_the_middle: FromTheMiddle | None = None
    ) -> tuple[int, Tensor]:
        anatomy, here = self.anatomy, self.base.sites["mlp_post"][layer][pairs]
        seen = slice(self.first if layer < anatomy.n_layers - 1 else -1, None)
        change = (self.there[layer][pairs] - here)[:, seen]
        weight = anatomy.down_weight(layer)
        written = torch.stack([change[..., self.units[c]] @ weight[self.units[c]] for c in columns])
        raw = anatomy.down_proj(layer)(here[:, seen].contiguous())
        mid = self.base.below(layer + 1)[pairs, seen] - positionwise.mlp_out(anatomy, layer, raw)
        return layer + 1, (mid + positionwise.mlp_out(anatomy, layer, raw + written)).flatten(0, 1)

    def put(self, x: Tensor, layer: int, column: int, pair: int) -> None:
        x[..., self.units[column]] = self.there[layer][pair][..., self.units[column]]

    def change(self, layer: int) -> Tensor:
        return self.there[layer] - self.base.sites["mlp_post"][layer]

    def by_column(self, x: Tensor) -> Tensor:
        return torch.stack([x[..., block].sum((1, 2)) for block in self.units], 1)
