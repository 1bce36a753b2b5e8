"""Screened sweeps: a backward pass scores every cell of a patching sweep, exact patching is spent on the best and on a random sample.

The estimate (attribution patching, its gradient taken half-way between the two texts, for heads at both ends) is fast and can be blind. So what it
puts first is patched exactly, and the ranking is by those exact values. Cells differ in what they cost by two orders of magnitude (late layers at
late positions cost next to nothing, and the last position holds much of what there is to find): the cheapest are patched exactly whatever the
estimate says. In the residual stream effects hardly change from one layer to the next, and the best are often a dozen layers of one position, which
the estimate puts in another order: the layers around the best are patched too, until none of them is better. And of the cells that are passed over
a random sample is patched exactly. How many of those would have belonged among the best bounds, with an interval, how many are missed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from nullius.errors import UsageError
from nullius.instruments import attribution, patching
from nullius.instruments.patching import Cells, Metric, Texts, difference
from nullius.models.language_model import LanguageModel


@dataclass(frozen=True)
class Screened:
    """estimate: by attribution [layers, columns]; exact: by patching, NaN where it was not spent; both are changes of the metric, means over pairs.

    best: the `top` cells by exact effect, largest first. passed_over: cells that were neither put forward by the estimate, nor cheap, nor near one
    of the best; sampled: how many of them were patched; missed: how many of those belong among the best. miss_rate, interval: the share of
    passed-over cells that do, with its exact 95 % interval (Clopper-Pearson).
    """

    estimate: Tensor
    exact: Tensor
    best: tuple[tuple[int, int], ...]
    passed_over: int
    sampled: int
    missed: int
    miss_rate: float
    interval: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.missed} of {self.sampled} cells drawn from {self.passed_over} passed over belong among the best {len(self.best)}: "
            f"{self.miss_rate:.1%} [{low:.1%}, {high:.1%}]"
        )


def residual(
    model: LanguageModel,
    base: Texts,
    source: Texts,
    answers: Sequence[Sequence[int]],
    *,
    site: patching.Site = "resid_pre",
    metric: Metric = difference,
    top: int = 10,
    candidates: int = 20,
    cheap: float = 0.01,
    sample: int = 20,
    reach: int = 2,
    steps: int = 0,
    seed: int = 0,
) -> Screened:
    """Screen the cells of `patching.residual`. Arguments as there and in `screen`; steps: 0 takes one gradient half-way between the texts."""
    at = attribution.points(steps) if steps else (0.5,)
    return screen(patching.residual_grid(model, base, source, answers, site, None, metric), top, candidates, cheap, sample, reach, at, seed)


def heads(
    model: LanguageModel,
    base: Texts,
    source: Texts,
    answers: Sequence[Sequence[int]],
    *,
    metric: Metric = difference,
    top: int = 10,
    candidates: int = 20,
    cheap: float = 0.01,
    sample: int = 20,
    steps: int = 0,
    seed: int = 0,
) -> Screened:
    """Screen the cells of `patching.heads`. Arguments as there and in `screen`; steps: 0 takes two gradients, at the base and at the source."""
    at = attribution.points(steps) if steps else (0.0, 1.0)
    return screen(patching.head_grid(model, base, source, answers, metric), top, candidates, cheap, sample, 0, at, seed)


def screen(
    cells: Cells,
    top: int = 10,
    candidates: int = 20,
    cheap: float = 0.01,
    sample: int = 20,
    reach: int = 0,
    at: Sequence[float] = (0.5,),
    seed: int = 0,
) -> Screened:
    """Find the `top` cells of any grid.

    cheap: the share of the exact sweep's work that goes to the cells that cost least, at most the work of one plain run; candidates: how many of the
    others the estimate puts forward; reach: so many layers to either side of the best are patched too, until none of them is among the best, and no
    more than two candidates are of one column, as long as there are others; sample: how many of those that are left are drawn at random; at: where
    gradients are taken (see `attribution`).
    Raises UsageError for fewer candidates than `top`, or for a grid that has no more cells than are put forward.
    """
    every = cells.all_cells()
    room = min(cheap * sum(map(cells.work, every)), cells.pair.length * cells.pair.model.anatomy.n_layers)
    spent = 0
    outright: list[tuple[int, int]] = []
    for cell in sorted(every, key=cells.work):
        spent += cells.work(cell)
        if spent > room:
            break
        outright.append(cell)
    if not 1 <= top <= candidates < len(every) - len(outright):
        raise UsageError(f"screening wants top ≤ candidates < cells: {top} ≤ {candidates} < {len(every) - len(outright)} does not hold")
    estimated = attribution.estimate(cells, at).mean(0).cpu()
    scores = {cell: abs(float(estimated[cell])) for cell in set(every) - set(outright)}
    effect: dict[tuple[int, int], float] = {}

    def patch(some: Sequence[tuple[int, int]], checks: int) -> None:
        sweep = cells.run(some, checks=checks)
        change = (sweep.values - sweep.base[:, None, None]).mean(0).cpu()
        effect.update({cell: float(change[cell]) for cell in some})

    def best() -> tuple[tuple[int, int], ...]:
        return tuple(sorted(effect, key=lambda cell: -abs(effect[cell]))[:top])

    ranked = sorted(scores, key=lambda cell: (-scores[cell], cell))
    if reach:  # the rest of a column is found from two of its layers, and other columns need candidates too
        above: Counter[int] = Counter()
        place = {}
        for cell in ranked:
            above[cell[1]] += 1
            place[cell] = above[cell[1]] > 2
        ranked.sort(key=lambda cell: place[cell])  # stable
    forward = outright + ranked[:candidates]
    checks = 2
    while forward:
        patch(forward, checks)
        beside = {(layer + step, column) for layer, column in best() for step in range(-reach, reach + 1)}
        forward, checks = sorted(beside & set(every) - set(effect)), 0
    others = sorted(set(every) - set(effect))
    drawn = [others[i] for i in torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))[:sample].tolist()]
    if drawn:
        patch(drawn, checks)
    missed = len(set(best()) & set(drawn))
    interval = stats.binomtest(missed, len(drawn)).proportion_ci(0.95, "exact") if drawn else None
    low, high = (0.0, 1.0) if interval is None else (float(interval.low), float(interval.high))
    rate = missed / len(drawn) if drawn else float("nan")
    exact = torch.full_like(estimated, torch.nan)
    for cell, change in effect.items():
        exact[cell] = change
    return Screened(estimated, exact, best(), len(others), len(drawn), missed, rate, (low, high))
