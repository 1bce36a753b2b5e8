"""Activation patching over whole grids of sites, exactly, without the work that mathematics makes unnecessary (see `wavefront`).

`residual` asks at which layer and position the difference between two runs lives in the residual stream (or in a subspace of it); `heads` and
`neurons` ask which heads and which blocks of neurons carry it.
Base and source texts are pairs of equal length. Denoising: the base is the corrupted text, the source the clean one; noising: the reverse.
Every sweep checks itself: some random cells are run the plain way, whole, and must agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from nullius.errors import NulliusError, SubjectError, UsageError
from nullius.instruments import grids, heap, suffixes, taps, usual_layers, wavefront
from nullius.models import some_logits
from nullius.models.language_model import Batch, LanguageModel

Metric = Callable[[Tensor], Tensor]
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 0.5, torch.float16: 0.1}


def difference(logits: Tensor) -> Tensor:
    """Logit of the first answer minus that of the second: [rows, 2] → [rows]. Raises UsageError where there is one answer only."""
    if logits.shape[1] < 2:
        raise UsageError("the metric is the difference of two answers, and one is given for each pair: give two, or another metric")
    return logits[:, 0] - logits[:, 1]


@dataclass(frozen=True)
class Sweep:
    """values: the metric with each cell patched, [n, layers, columns] (columns: positions or heads). base, source: the metric of the plain
    runs [n]. checked: random cells that were also run the plain way; gap: the largest difference seen there."""

    values: Tensor
    base: Tensor
    source: Tensor
    checked: int
    gap: float

    def restored(self) -> Tensor:
        """Mean over pairs of (patched − base) / (source − base): 0 no effect, 1 all of the difference. [layers, columns].

        Raises UsageError when base and source do not differ.
        """
        whole = (self.source - self.base).mean()
        if abs(float(whole)) < 1e-6:
            raise UsageError("base and source give the same metric: there is no difference to trace")
        return (self.values - self.base[:, None, None]).mean(0) / whole


Site = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"]
Texts = Sequence[str] | Batch


@torch.no_grad()
def residual(
    model: LanguageModel,
    base: Texts,
    source: Texts,
    answers: Sequence[Sequence[int]],
    *,
    site: Site = "resid_pre",
    basis: Tensor | None = None,
    metric: Metric = difference,
    max_tokens: int | None = None,
    checks: int = 8,
) -> Sweep:
    """Patch one site at each layer and position. answers: token ids [n, k] whose logits the metric reads at the last position.

    Positions before the first token in which the pairs differ cannot matter and are not run: their cells hold the base's value.
    basis: orthonormal rows [k, d_model], or [layers, k, d_model]: patch what lies in that subspace only. max_tokens: positions in one pass (None:
    what suits the machine). checks: random cells of random pairs that are also run the plain way. Raises UsageError for pairs of unequal length,
    NulliusError when a checked cell disagrees.
    """
    sweep = residual_grid(model, base, source, answers, site, basis, metric)
    return sweep.run(sweep.all_cells(), max_tokens, checks)


@torch.no_grad()
def heads(
    model: LanguageModel,
    base: Texts,
    source: Texts,
    answers: Sequence[Sequence[int]],
    *,
    metric: Metric = difference,
    max_tokens: int | None = None,
    checks: int = 8,
) -> Sweep:
    """Patch one head's output z at all positions, for each layer and head. Arguments and errors as in `residual`."""
    sweep = head_grid(model, base, source, answers, metric)
    return sweep.run(sweep.all_cells(), max_tokens, checks)


@torch.no_grad()
def neurons(
    model: LanguageModel,
    base: Texts,
    source: Texts,
    answers: Sequence[Sequence[int]],
    *,
    blocks: int = 16,
    metric: Metric = difference,
    max_tokens: int | None = None,
    checks: int = 8,
) -> Sweep:
    """Patch a block of neurons (mlp_post) at all positions, for each layer and each of `blocks` neighbouring blocks of about equal size.

    Other arguments and errors as in `residual`.
    """
    sweep = neuron_grid(model, base, source, answers, blocks, metric)
    return sweep.run(sweep.all_cells(), max_tokens, checks)


def residual_grid(
    model: LanguageModel, base: Texts, source: Texts, answers: Sequence[Sequence[int]], site: Site, basis: Tensor | None, metric: Metric
) -> Cells:
    """Make the grid of `residual` without running it."""
    if site not in get_args(Site):
        raise UsageError(f"no residual sweep over '{site}'; sites: {', '.join(get_args(Site))}")
    anatomy = model.anatomy
    if basis is not None:
        allowed = (anatomy.d_model,) if basis.ndim == 2 else (anatomy.n_layers, anatomy.d_model)
        if basis.ndim not in (2, 3) or (basis.shape[-1], *basis.shape[:-2])[::-1] != allowed:
            raise UsageError(f"basis must be [k, {anatomy.d_model}] or [{anatomy.n_layers}, k, {anatomy.d_model}]; got {list(basis.shape)}")
        unit = torch.eye(basis.shape[-2], device=basis.device, dtype=basis.dtype)
        if float((basis @ basis.mT - unit).abs().max()) > 1e-3:
            raise UsageError("basis is not orthonormal: make it so with `interventions.orthonormal`")
        basis = basis.to(model.device)[..., None, :, :] if basis.ndim == 3 else basis.to(model.device)
    pair = Pair(model, base, source, answers, metric, [site])
    return Cells(pair, grids.Positions(anatomy, pair.run, pair.there[site], site, basis))


def head_grid(model: LanguageModel, base: Texts, source: Texts, answers: Sequence[Sequence[int]], metric: Metric) -> Cells:
    """Make the grid of `heads` without running it."""
    pair = Pair(model, base, source, answers, metric, ["z"])
    return Cells(pair, grids.Heads(model.anatomy, pair.run, pair.there["z"], pair.first))


def neuron_grid(model: LanguageModel, base: Texts, source: Texts, answers: Sequence[Sequence[int]], blocks: int, metric: Metric) -> Cells:
    """Make the grid of `neurons` without running it."""
    pair = Pair(model, base, source, answers, metric, ["mlp_post"])
    return Cells(pair, grids.NeuronBlocks(model.anatomy, pair.run, pair.there["mlp_post"], pair.first, blocks))


@dataclass(frozen=True, eq=False)
class Cells:
    """Pairs of texts and the grid of cells that can be patched between them."""

    pair: Pair
    grid: grids.Grid

    def all_cells(self) -> list[tuple[int, int]]:
        """Every (layer, column) whose patch can matter."""
        columns = [column for column in range(self.grid.columns) if self.pair.first <= self.grid.start(column) < self.pair.length]
        return [(layer, column) for layer in range(self.pair.model.anatomy.n_layers) for column in columns]

    def work(self, cell: tuple[int, int]) -> int:
        """What a cell costs, up to a factor: positions from the patched one on, times layers from the patched one up."""
        layer, column = cell
        return (self.pair.length - self.grid.start(column)) * (self.pair.model.anatomy.n_layers - layer)

    @torch.no_grad()
    def run(self, cells: Sequence[tuple[int, int]], max_tokens: int | None = None, checks: int = 8) -> Sweep:
        """Patch some cells, exactly. What is not among them holds the base's value."""
        pair, n = self.pair, self.pair.n
        heap.give_back()
        values = pair.metric_base[:, None, None].repeat(1, pair.model.anatomy.n_layers, self.grid.columns)
        limit = max_tokens or tokens_per_pass(pair.model)
        whence = suffixes.shared(pair.model, pair.length, n, ((self.grid.start(column), layer) for layer, column in cells))
        ordered = sorted((whence[self.grid.start(column)], layer, column) for layer, column in cells)
        few = min(n, max(1, limit // (pair.length - ordered[0][0]))) if ordered else n
        for some in self._flights(ordered, few):
            last = torch.cat([self._last(some, slice(j, j + few), limit) for j in range(0, n, few)], 1)
            layers, columns = (torch.tensor(side, device=values.device) for side in list(zip(*some, strict=True))[1:])
            values[:, layers, columns] = pair.measure(last[None])[0].T
        gap = self._gap(values, cells, checks) if len(cells) else 0.0
        heap.give_back()
        return Sweep(values, pair.metric_base, pair.metric_source, checks if len(cells) else 0, gap)

    def _flights(self, cells: Sequence[tuple[int, int, int]], few: int) -> Iterator[list[tuple[int, int, int]]]:
        """Cut cells (start, layer, column) into groups whose rows fit into memory together: highest layers first, which need no others."""
        room = tokens_in_flight(self.pair.model)
        some: list[tuple[int, int, int]] = []
        held = 0
        for cell in sorted(cells, key=lambda cell: -cell[1]):
            size = few * (self.pair.length - cell[0])
            if some and held + size > room:
                yield sorted(some)
                some, held = [], 0
            some.append(cell)
            held += size
        if some:
            yield sorted(some)

    def _last(self, cells: Sequence[tuple[int, int, int]], pairs: slice, tokens: int) -> Tensor:
        """The final norm's output for cells (start, layer, column), in order: [cells, pairs, d_model]."""
        pair, few = self.pair, self.pair.run.pairs(pairs)
        by_layer: dict[int, dict[int, list[int]]] = {}
        for start, layer, column in cells:
            by_layer.setdefault(layer, {}).setdefault(start, []).append(column)

        def joining(layer: int, from_the_middle: wavefront.FromTheMiddle | None) -> Iterator[wavefront.Joining]:
            for start, columns in by_layer.get(layer, {}).items():
                size = max(1, tokens // (len(few.ids) * (pair.length - start)))
                for i in range(0, len(columns), size):
                    yield wavefront.Joining(start, *self.grid.joined(layer, columns[i : i + size], pairs, start, from_the_middle))

        counts = Counter(start for start, _, _ in cells)
        rows = {start: counts[start] * len(few.ids) for start in sorted(counts)}
        last = wavefront.climb(pair.model, few, rows, min(by_layer), joining, tokens)
        return torch.cat([last[start].unflatten(0, (-1, len(few.ids))) for start in rows])

    def _gap(self, values: Tensor, cells: Sequence[tuple[int, int]], checks: int) -> float:
        """Run random cells of random pairs the plain way, whole texts through all layers, and return the largest difference.

        They are rows of one batch, each with a patch of its own. Raises NulliusError when one disagrees.
        """
        if checks < 1:
            return 0.0
        pair, model = self.pair, self.pair.model
        random = torch.Generator().manual_seed(0)
        chosen = [cells[int(i)] for i in torch.randint(len(cells), (checks,), generator=random)]
        texts = torch.randint(pair.n, (checks,), generator=random)
        batch = Batch(pair.base.input_ids[texts], pair.base.attention_mask[texts])
        with ExitStack() as stack:
            for layer in {layer for layer, _ in chosen}:

                def patch(x: Tensor, layer: int = layer) -> Tensor:
                    x = x.clone()
                    for row, (where, column) in enumerate(chosen):
                        if where == layer:
                            self.grid.put(x[row], layer, column, int(texts[row]))
                    return x

                stack.enter_context(taps.edit(model, self.grid.site, layer, patch))
            logits = some_logits.of(model.anatomy.unembed, pair.answers[texts], lambda: model.logits(batch)).float()
        gap = 0.0
        for row, (layer, column) in enumerate(chosen):
            text = int(texts[row])
            read = pair.run.logits.clone()  # a metric may treat each pair in its own way: it sees them all
            read[text] = logits[row]
            gap = max(gap, abs(float(pair.metric(read)[text] - values[text, layer, column])))
        if gap > TOLERANCE[model.dtype] * max(1.0, float(values.abs().max())):
            raise NulliusError(f"the sweep on {model.name} disagrees with plain runs by {gap:.2g}: please report this model")
        return gap


def tokens_per_pass(model: LanguageModel) -> int:
    """Positions that a layer is given at once: what stays in the cache of a CPU core; on a GPU what fits into a quarter of the free memory."""
    if model.device.type != "cuda":
        return usual_layers.BLOCK
    anatomy = model.anatomy
    free, _ = torch.cuda.mem_get_info(model.device)
    each = (8 * anatomy.d_model + 4 * anatomy.d_mlp + 4 * anatomy.n_heads * anatomy.d_head) * model.dtype.itemsize
    return max(1024, int(free / 4 / each))


def tokens_in_flight(model: LanguageModel) -> int:
    """Positions whose residual stream is kept between two layers: 27 MB of them on a CPU, on a GPU a quarter of the free memory."""
    room = 27 * 10**6 if model.device.type != "cuda" else torch.cuda.mem_get_info(model.device)[0] // 4
    return int(room) // (model.anatomy.d_model * model.dtype.itemsize)


class Pair:
    """Base and source texts, their plain runs, and the metric. Made without gradients.

    run: the base run; there: the source's activations at `sites`, by name [layers, n, T, ...]. first: the first position in which a pair
    differs. source_bottom: the input of the lowest layer in the source run, from there on [n, T − first, d_model]. metric_base, metric_source: the
    metric of the plain runs [n].
    """

    @torch.no_grad()
    def __init__(
        self,
        model: LanguageModel,
        base: Texts,
        source: Texts,
        answers: Sequence[Sequence[int]],
        metric: Metric,
        sites: Sequence[str] = (),
    ) -> None:
        self.model, self.metric = model, metric
        self.base, self.source = (model.batch(texts) for texts in (base, source))
        check_lengths(model, self.base, self.source)
        self.n, self.length = self.base.input_ids.shape
        self.answers = model.token_ids(answers)
        if self.answers.ndim != 2 or len(self.answers) != self.n:
            raise UsageError(f"answers must be token ids [{self.n}, k], one row for each pair; got {list(self.answers.shape)}")
        differs = (self.base.input_ids != self.source.input_ids).any(0).nonzero()
        self.first = int(differs[0]) if len(differs) else self.length
        self.run = wavefront.run_base(model, self.base, [site for site in sites if site != "resid_pre"], self.answers)
        self.there, self.source_bottom, source_last = wavefront.run_source(model, self.run, self.source.input_ids, self.first, sites)
        self.metric_base = metric(self.run.logits)
        seen, self.metric_source = self.measure(torch.stack([self.run.last, source_last])[None])[0]
        if float((seen - self.metric_base).abs().max()) > TOLERANCE[model.dtype] * max(1.0, float(self.run.logits.abs().max())):
            raise SubjectError(f"{model.name} makes its logits from the final norm in a way that this sweep does not know")

    def measure(self, last: Tensor) -> Tensor:
        """The metric from the final norm's output [a, b, n, d_model] → [a, b, n]; only the answers' vocabulary rows are used."""
        logits = self.model.anatomy.logits(last, self.answers)  # [a, b, n, k]
        found = self.metric(logits.flatten(0, 2))
        if found.shape != (logits.shape[0] * logits.shape[1] * logits.shape[2],):
            raise UsageError(
                f"a metric gives one number a row: from logits [rows, {logits.shape[-1]}] to [rows]; this gave {list(found.shape)}"
            )
        return found.view(last.shape[:3])


def check_lengths(model: LanguageModel, base: Batch, source: Batch) -> None:
    """Pairs must have one length, without padding: a patch at a position must mean the same in both texts."""
    if base.input_ids.shape[0] != source.input_ids.shape[0]:
        raise UsageError(f"{base.input_ids.shape[0]} base texts but {source.input_ids.shape[0]} source texts")
    lengths = torch.stack([base.attention_mask.sum(1), source.attention_mask.sum(1)], 1)
    for i, (a, b) in enumerate(lengths.tolist()):
        if a != b or a != int(lengths[0, 0]):
            sides = [
                " | ".join(model.tokenizer.convert_ids_to_tokens(side.input_ids[i][side.attention_mask[i] > 0].tolist()))
                for side in (base, source)
            ]
            raise UsageError(
                f"pair {i} does not have the length of the others ({a} and {b} tokens):\n  base    {sides[0]}\n  source  {sides[1]}"
            )
    for side in (base, source):
        if side.input_ids.shape[1] != int(lengths[0, 0]):
            raise UsageError(f"texts of {int(lengths[0, 0])} tokens in {side.input_ids.shape[1]} columns: leave out the padding")
