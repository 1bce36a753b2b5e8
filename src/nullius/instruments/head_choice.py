"""Choosing one head and factor on tuning prompts, and random heads in the same way, so that the choice has a fair rival."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nullius.instruments import heads
from nullius.instruments.heads import Contrast, Head, Outcome, Scaling, Setting
from nullius.models.language_model import LanguageModel

Side = Literal["first", "second"]
Progress = Callable[[Sequence[list[Scaling]]], Iterable[list[Scaling]]]


@dataclass(frozen=True)
class Choice:
    """What was chosen on tuning prompts towards one of the two answers.

    chosen: the best head and factor of the grid. random: random heads at that factor. rivals: the best of the first half of these and the
    best of the second half, in the order drawn. best_rival: the better of the two on tuning prompts, so the best of all random heads. rate:
    of that answer on the tuning prompts, under `chosen`.
    """

    side: Side
    chosen: Scaling
    random: tuple[Scaling, ...]
    rivals: tuple[Scaling, Scaling]
    best_rival: Scaling
    rate: float

    def score(self, outcome: Outcome) -> np.ndarray:
        """1 where the greedy answer is this side's [settings, n]."""
        return outcome.first if self.side == "first" else outcome.second

    def settings(self, n: int, rng: np.random.Generator, draws: int = 2) -> list[Setting | Sequence[Setting]]:
        """The subject as it is, `chosen`, `best_rival`, both `rivals`, then `draws` times random heads, one drawn for each of `n` prompts."""
        drawn = [[self.random[i] for i in rng.integers(len(self.random), size=n)] for _ in range(draws)]
        return [None, self.chosen, self.best_rival, *self.rivals, *drawn]


def choose(
    model: LanguageModel,
    contrast: Contrast,
    candidates: Sequence[Head],
    factors: Sequence[float],
    rng: np.random.Generator,
    n_random: int = 20,
    progress: Progress = iter,
) -> dict[Side, Choice]:
    """Try every candidate head at every factor on tuning prompts; take the best for each side; choose among random heads alike.

    Random heads come from the candidates' layers (the nearest ones where those have too few) and are scaled by the factor chosen.
    progress: wraps the parts of the grid while they are tried.
    """
    grid = [Scaling(head, factor) for head in candidates for factor in factors]
    drawn = heads.random_heads(model, candidates, n_random, rng)
    parts = [grid[i : i + 10] for i in range(0, len(grid), 10)]
    outcomes = [heads.sweep(model, contrast, part) for part in progress(parts)]
    choices: dict[Side, Choice] = {}
    sides: tuple[Side, ...] = ("first", "second")
    for side in sides:
        rates = np.concatenate([getattr(outcome, side) for outcome in outcomes]).mean(-1)
        chosen = grid[int(rates.argmax())]  # the first wins ties
        random = tuple(Scaling(head, chosen.factor) for head in drawn)
        random_rates = getattr(heads.sweep(model, contrast, random), side).mean(-1)
        half = len(random) // 2
        rivals = (random[int(random_rates[:half].argmax())], random[half + int(random_rates[half:].argmax())])
        choices[side] = Choice(side, chosen, random, rivals, random[int(random_rates.argmax())], float(rates.max()))
    return choices


def two_drawn(values: Sequence[np.ndarray], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """What two different sets of heads give, drawn for each item from several random sets (each [n]): twice [n].

    Any two given sets differ; these two differ by nothing on average, whichever sets there are.
    """
    table = np.stack(values)
    order = rng.permuted(np.tile(np.arange(len(table)), (table.shape[1], 1)), axis=1)
    items = np.arange(table.shape[1])
    return table[order[:, 0], items], table[order[:, 1], items]
