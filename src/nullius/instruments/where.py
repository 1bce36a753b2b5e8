"""Where an intervention acts: a part of a site, checked against a model before it runs, and found in the tensors of every pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from nullius.errors import UsageError
from nullius.instruments import indices
from nullius.models.language_model import LanguageModel

Positions = Literal["all", "last", "prompt", "new"] | Sequence[int] | Tensor
Change = Callable[[Tensor, "Cells"], Tensor]


@dataclass(frozen=True, eq=False)
class Where:
    """A part of a site. None: all of them.

    heads: of a site that has heads. units: indices into the site's last dimension: neurons of `mlp_post`, keys of `pattern`, coordinates of
    others. basis: [k, width] orthonormal rows (see `orthonormal`); the part is then the k coordinates in that subspace, and what is
    orthogonal to it stays. rows: rows of the batch as the model sees it: where a text is written on in k beams or k samples, rows i·k to i·k + k − 1
    are text i.
    positions: columns of the batch [P] (−1: the last; texts are left-padded), the same for all rows or one list for each row [rows, P]; or
    "all"; "last" (the last column of each pass: in generation the end of the prompt and every new token), "prompt", "new" (every token that
    was generated). In generation, columns are those of the prompt: of the first pass (of all of them where it is read in chunks), and of what lay in
    its cache. No position twice in a row.

    A value for a part of shape [..] (heads × width, or width alone) is [..] for every row and position alike, [rows, ..] for each row, or
    [rows, P, ..] for each row and position.
    """

    site: str
    layer: int = 0
    heads: Sequence[int] | None = None
    units: Sequence[int] | None = None
    basis: Tensor | None = None
    positions: Positions = "all"
    rows: Sequence[int] | None = None


class Clock:
    """A hook before the decoder: which columns of the text the pass that begins will carry."""

    def __init__(self) -> None:
        self.past = 0  # columns that lie in the cache
        self.width = 0  # columns of this pass
        self.rows = 0  # of this pass, as the decoder was called
        self.prompt = 0  # columns at the end of a text's first pass
        self.mask: Tensor | None = None  # of the prompt [B, T]: 1 where a token is real
        self.in_chunks = False  # passes that begin now carry chunks of that prompt

    @contextmanager
    def reading(self, prompt: int, mask: Tensor | None) -> Iterator[None]:
        """While open, passes carry chunks of one prompt of so many columns, those that lie in the cache before included."""
        self._begin(prompt, mask)
        self.in_chunks = True
        try:
            yield
        finally:
            self.in_chunks = False

    def _begin(self, prompt: int, mask: Any) -> None:
        self.prompt = prompt
        self.mask = mask.cpu() if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] == prompt else None

    def __call__(self, _module: Any, args: Any, kwargs: Any) -> None:
        ids = args[0] if args else kwargs.get("input_ids")
        ids = kwargs.get("inputs_embeds") if ids is None else ids
        cache = kwargs.get("past_key_values")
        end = self.past + self.width
        self.past = 0 if cache is None else int(cache.get_seq_length())
        self.rows, self.width = (0, 0) if ids is None else ids.shape[:2]
        if not self.in_chunks and (self.past == 0 or not self.prompt <= self.past <= end):
            # no continuation of the pass before: another text, maybe behind a cached prefix
            self._begin(self.past + self.width, kwargs.get("attention_mask"))


@dataclass(frozen=True, eq=False)
class Cells:
    """The N pairs of row and column that an intervention touches in one pass.

    row, place: [N], which of its rows and which of its positions each is. column: [N], in the tensor at hand, whose first column is column
    `start` of the text; line: [N], the row there. shape: rows, positions.
    """

    plan: Plan
    row: Tensor
    place: Tensor
    column: Tensor
    line: Tensor
    start: int
    shape: tuple[int, int]

    def spread(self, value: Tensor, part: Tensor) -> Tensor:
        """A value for all, for each row, or for each row and position, as [N, ..]."""
        value = value.to(part)
        match value.ndim - len(self.plan.part):
            case 0:
                return value.expand_as(part)
            case 1:
                self._fits("value", value, (self.shape[0], *self.plan.part))
                return value[self.row]
        self._fits("value", value, (*self.shape, *self.plan.part))
        return value[self.row, self.place]

    def by_row(self, factor: float | Tensor, part: Tensor) -> float | Tensor:
        """A number for all, or one for each row, that multiplies [N, ..]."""
        if not isinstance(factor, Tensor):
            return factor
        if factor.ndim == 0:
            return factor.to(part)
        self._fits("factor", factor, (self.shape[0],))
        return factor.to(part)[self.row].view(-1, *[1] * (part.ndim - 1))

    def taken(self, source: Tensor, takes: Tensor | None, part: Tensor) -> Tensor:
        """The part's value in another run [rows, T, ..], as [N, ..]."""
        if len(source) != self.shape[0]:
            raise UsageError(f"source at {self.plan} has {len(source)} rows; this batch asks for {self.shape[0]}")
        columns = self.column + self.start
        if takes is not None:
            takes = torch.where(takes < 0, takes + source.shape[1], takes).to(columns.device)
            if takes.ndim == 2 and len(takes) != self.shape[0]:
                raise UsageError(f"from_positions at {self.plan} has {len(takes)} rows; this batch asks for {self.shape[0]}")
            columns = (takes.expand(self.shape[0], -1) if takes.ndim == 1 else takes)[self.row, self.place]
        wrong = columns[(columns < 0) | (columns >= source.shape[1])]
        if len(wrong):
            raise UsageError(f"source at {self.plan} has columns 0 to {source.shape[1] - 1}; column {int(wrong[0])} was asked for")
        return self.plan.part_of(source[self.row.to(source.device), columns.to(source.device)]).to(part)

    def _fits(self, name: str, value: Tensor, shape: tuple[int, ...]) -> None:
        if tuple(value.shape) != shape:
            raise UsageError(f"{name} at {self.plan} is {list(value.shape)}; this batch asks for {list(shape)}")


class Plan:
    """A `Where`, checked against a model, with the tensors that are to go there.

    values: for the part. wholes: tensors of the whole site, each with what it is: one for all ("site": [..]), a run as wide as the batch
    ("run": [rows, T, ..]) or one of any width ("rows").
    """

    def __init__(
        self, model: LanguageModel, where: Where, clock: Clock, values: Mapping[str, Tensor], wholes: Mapping[str, tuple[str, Tensor]]
    ) -> None:
        self.where, self.clock = where, clock
        anatomy = model.anatomy
        if where.site == "logits":
            self.layer, n_heads, width = 0, 0, anatomy.unembedding().shape[0]
        else:
            site = anatomy.site(where.site, where.layer)
            self.layer, n_heads = site.layer, anatomy.n_heads if where.site == "pattern" else site.heads
            width = site.width
        if where.heads is not None and not n_heads:
            raise UsageError(f"{where.site} has no heads: leave out `heads`, or choose among q, k, v, z, pattern")
        self.heads = self._indices("head", where.heads, n_heads)
        self.units = self._indices("unit", where.units, None if where.site == "pattern" else width)
        if where.site == "pattern":  # as wide as the text that comes
            if where.basis is not None or (where.units is None and (values or wholes)):
                raise UsageError("of a pattern, values and interchanges want `units` (keys), and there is no `basis`")
            width = 1 + int(self.units.max()) if self.units is not None else 0
        self.basis = None if where.basis is None else self._checked_basis(indices.numbers("basis", where.basis), width).to(model.device)
        size = len(self.basis) if self.basis is not None else width if self.units is None else len(self.units)
        self.part = ((n_heads if self.heads is None else len(self.heads)), size) if n_heads else (size,)
        whole = (n_heads, width) if n_heads else (width,)
        for name, value in values.items():
            if not 0 <= value.ndim - len(self.part) <= 2 or tuple(value.shape[value.ndim - len(self.part) :]) != self.part:
                sizes = ", ".join(map(str, self.part))
                raise UsageError(
                    f"{name} at {self} must be [{sizes}], [rows, {sizes}] or [rows, positions, {sizes}]; got {list(value.shape)}"
                )
        self.run_wide = None
        for name, (like, value) in wholes.items():
            front = 0 if like == "site" else 2
            fits = value.ndim == front + len(whole) and tuple(value.shape[front:]) == whole
            if where.site == "pattern":
                fits = value.ndim == front + 2 and value.shape[front] == n_heads and value.shape[-1] >= width
            if not fits:
                sizes = ", ".join([*(["rows", "columns"] if front else []), *map(str, whole)])
                raise UsageError(f"{name} at {self} must be the whole site [{sizes}]; got {list(value.shape)}")
            self.run_wide = value.shape[1] if like == "run" else self.run_wide
        self.rows = None if where.rows is None else self._indices("row", where.rows, None)
        self.positions: Tensor | None = None
        if not isinstance(where.positions, str):
            self.positions = indices.columns(where.positions).cpu()
            if self.positions.ndim not in (1, 2) or not self.positions.numel():
                raise UsageError(f"positions must be columns [P], or [rows, P]; got {list(self.positions.shape)}")
        elif where.positions not in ("all", "last", "prompt", "new"):
            raise UsageError(f"no positions '{where.positions}': give columns, or all, last, prompt or new")

    def __str__(self) -> str:
        return self.where.site if self.where.site == "logits" else f"{self.where.site} of layer {self.layer}"

    def _indices(self, what: str, chosen: Sequence[int] | None, n: int | None) -> Tensor | None:
        if chosen is None:
            return None
        found = indices.listed(f"{what}s", chosen)
        wrong = next((i for i in found if i < 0 or (n is not None and i >= n)), None)
        if wrong is not None:
            there = f"{self.where.site} of layer {self.where.layer} has {what}s 0 to {n - 1}" if n else f"{what}s count from 0"
            raise UsageError(f"{what} {wrong} does not exist: {there}")
        if not found or len(set(found)) < len(found):
            raise UsageError(f"{what}s must be named once each, and at least one: {found}")
        return torch.tensor(found)

    def _checked_basis(self, basis: Tensor, width: int) -> Tensor:
        if self.units is not None:
            raise UsageError("a part is chosen by units or by a basis, not by both")
        if basis.ndim != 2 or basis.shape[1] != width:
            raise UsageError(f"basis at {self} must be [k, {width}]; got {list(basis.shape)}")
        basis = basis.to(torch.promote_types(basis.dtype, torch.float32))
        gap = float((basis @ basis.T - torch.eye(len(basis), device=basis.device, dtype=basis.dtype)).detach().abs().max())
        if not gap <= 1e-3:
            raise UsageError(f"basis at {self} is not orthonormal (off by {gap:.2g}): make it so with `orthonormal`")
        return basis

    def cells(self, rows: int, width: int, device: torch.device) -> Cells | None:
        """What to touch in a pass whose last `width` columns are here; None: nothing."""
        end = self.clock.past + self.clock.width
        start = end - width
        own = torch.arange(rows) if self.rows is None else self.rows
        by_row = self.rows is not None or (self.positions is not None and self.positions.ndim == 2)
        if by_row and rows != self.clock.rows:  # an instrument that packs several runs into one pass
            raise UsageError(f"the rows of {self} are not those of this pass, which carries {rows} for {self.clock.rows}: leave out `rows`")
        if int(own.max()) >= rows:
            raise UsageError(f"row {int(own.max())} does not exist: the batch has rows 0 to {rows - 1}")
        if self.positions is not None:
            if self.positions.ndim == 2 and len(self.positions) != len(own):
                raise UsageError(f"positions at {self} are for {len(self.positions)} rows, not for the {len(own)} that are touched")
            columns = self.positions.expand(len(own), -1) if self.positions.ndim == 1 else self.positions
            wrong = columns[(columns < -self.clock.prompt) | (columns >= self.clock.prompt)]
            if len(wrong):
                raise UsageError(f"position {int(wrong[0])} does not exist: the batch has columns 0 to {self.clock.prompt - 1}")
            columns = torch.where(columns < 0, columns + self.clock.prompt, columns)
            self._not_padding(own, columns)
            again = (columns.sort(-1).values.diff(dim=-1) == 0).nonzero()
            if len(again):
                raise UsageError(f"a position at {self} is named twice in row {int(own[again[0, 0]])}: {columns[again[0, 0]].tolist()}")
        else:
            word, prompt = self.where.positions, self.clock.prompt
            first = end - (end >= prompt) if word == "last" else max(start, prompt) if word == "new" else start
            columns = torch.arange(first, max(first, min(end, prompt) if word == "prompt" else end)).expand(len(own), -1)
        if self.run_wide not in (None, self.clock.prompt):
            raise UsageError(
                f"source at {self} has {self.run_wide} columns, the batch {self.clock.prompt}: say with from_positions which goes where"
            )
        row, place = ((columns >= start) & (columns < end)).nonzero(as_tuple=True)
        if not len(row):
            return None
        at = (row.to(device), place.to(device), (columns[row, place] - start).to(device))
        return Cells(self, *at, own[row].to(device), start, (len(own), columns.shape[1]))

    def _not_padding(self, rows: Tensor, columns: Tensor) -> None:
        mask = self.clock.mask
        if mask is None or int(rows.max()) >= len(mask):
            return
        blank = (mask[rows[:, None], columns] == 0).nonzero()
        if len(blank):
            row, column = int(rows[blank[0, 0]]), int(columns[blank[0, 0], blank[0, 1]])
            raise UsageError(
                f"column {column} at {self} is padding in row {row}, which has {int(mask[row].sum())} of {mask.shape[1]} tokens: "
                "count from the end, or give a list of positions for each row"
            )

    def apply(self, x: Tensor, change: Change) -> Tensor:
        """Return a site's tensor [B, T, .., width] with the part changed: change(part [N, ..], cells) → [N, ..]."""
        cells = self.cells(x.shape[0], x.shape[1], x.device)
        if cells is None:
            return x
        if self.where.site == "pattern" and self.units is not None and self.clock.past and x.shape[-1] < self.clock.past + self.clock.width:
            raise UsageError(
                f"{self} has let go of the keys before its window: keys cannot be named there so far into a text that is written on"
            )
        if self.units is not None and int(self.units.max()) >= x.shape[-1]:
            behind = self.where.site == "pattern" and self.clock.in_chunks and int(self.units.max()) < self.clock.prompt
            raise UsageError(
                f"key {int(self.units.max())} at {self} is not there yet where a prompt is read in chunks: leave out prefill_chunk_size"
                if behind
                else f"unit {int(self.units.max())} does not exist: {self} has units 0 to {x.shape[-1] - 1}"
            )
        index = (cells.line, cells.column)
        whole = x[index]
        part = self.part_of(whole)
        new = change(part, cells)
        if self.basis is not None:
            moved = ((new - part) @ self.basis.to(part)).to(whole.dtype)
            new = (whole if self.heads is None else whole[:, self.heads.to(x.device)]) + moved
        if self.units is not None:
            chosen = whole if self.heads is None else whole[:, self.heads.to(x.device)]
            new = chosen.index_copy(-1, self.units.to(x.device), new)
        if self.heads is not None:
            new = whole.index_copy(1, self.heads.to(x.device), new)
        return x.index_put(index, new)

    def part_of(self, whole: Tensor) -> Tensor:
        """The part of the whole site [.., width] or [.., heads, width]: its heads, units or coordinates."""
        whole = whole if self.heads is None else whole[..., self.heads.to(whole.device), :]
        whole = whole if self.units is None else whole[..., self.units.to(whole.device)]
        return whole if self.basis is None else whole.to(self.basis.dtype) @ self.basis.T.to(whole.device)
