"""Forced choice among candidates, and what twins (two contexts crossed with two outputs) say about the use of an input.

Notation: s(o | c) is the log-probability (nats) of output o after context c, p(o) that of o after the premise alone, without any task. PMI
correction subtracts p: what is then compared is how much the context raises an output (domain-conditional PMI, Holtzman et al. 2021,
arXiv 2104.08315).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nullius.elicitation.scores import Request, Score
from nullius.stimuli.twins import Twins

Floats = NDArray[np.float64]
Scorer = Callable[[Sequence[Request]], list[Score]]


def choose(conditional: ArrayLike, prior: ArrayLike | None = None) -> NDArray[np.int64]:
    """Return the index of the preferred candidate of each item [n].

    conditional: log-probabilities of the candidates in context [n, k]. prior: without it [n, k], subtracted when given (PMI correction).
    """
    values = np.asarray(conditional, dtype=np.float64)
    if prior is not None:
        values = values - np.asarray(prior, dtype=np.float64)
    return values.argmax(-1)


@dataclass(frozen=True)
class Crossed:
    """Scores of n twins.

    scores: s(output o | context c) [n, context, output]. prior: p(output) [n, output]. greedy: whether greedy decoding writes the output
    [n, context, output]. tokens: number of tokens of each output [n, output]. groups: what twins share [n].
    """

    scores: Floats
    prior: Floats
    greedy: NDArray[np.bool_]
    tokens: NDArray[np.int64]
    groups: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def preference(self) -> Floats:
        """s(output 0) − s(output 1) after each context [n, context], in nats."""
        return self.scores[:, :, 0] - self.scores[:, :, 1]

    @property
    def prior_preference(self) -> Floats:
        """p(output 0) − p(output 1) [n], in nats."""
        return self.prior[:, 0] - self.prior[:, 1]

    @property
    def discrimination(self) -> Floats:
        """How much more output 0 is preferred after its own context than after the other one [n], in nats: 0 when the input is not used.

        Any taste for one of the outputs, whatever its size, cancels.
        """
        return self.preference[:, 0] - self.preference[:, 1]

    @property
    def sensitivity(self) -> Floats:
        """Whether the preference moves in the right direction with the context [n]: chance is 1/2, a tie counts as half."""
        return np.where(self.discrimination == 0, 0.5, self.discrimination > 0)

    @property
    def bias(self) -> Floats:
        """Preference for output 0 averaged over both contexts [n], in nats: 0 for a subject without a taste."""
        return self.preference.mean(1)

    def right(self, corrected: bool = False) -> Floats:
        """Whether the right output is chosen after each context [n, context], with PMI correction when asked."""
        prior = np.broadcast_to(self.prior[:, None, :], self.scores.shape) if corrected else None
        return (choose(self.scores, prior) == np.arange(2)).astype(np.float64)

    def pull(self, corrected: bool = False) -> Floats:
        """Right after context 0 minus right after context 1 [n]: in −1, 0, 1; above 0 when output 0 attracts.

        A subject that solves the task has pull 0, and so has one that decides by a fair coin.
        """
        right = self.right(corrected)
        return right[:, 0] - right[:, 1]

    def written(self) -> Floats:
        """Whether greedy decoding writes the right output after each context [n, context]: accuracy without generating."""
        return self.greedy[:, np.arange(2), np.arange(2)].astype(np.float64)


def cross(score: Scorer, sets: Mapping[str, Sequence[Twins]]) -> dict[str, Crossed]:
    """Score sets of twins in one call, so that whatever prefix they share is computed once.

    score: maps requests to scores, in order (`functools.partial(scores.score, model)`).
    """
    requests: list[Request] = []
    for twins in sets.values():
        for twin in twins:
            requests += [(context, output) for context in twin.contexts for output in twin.outputs]
            requests += [(twin.premise, output) for output in twin.outputs]
    found = score(requests)
    crossed, start = {}, 0
    for name, twins in sets.items():
        cells = found[start : start + 6 * len(twins)]
        start += 6 * len(twins)
        total = np.array([cell.total for cell in cells], dtype=np.float64).reshape(-1, 3, 2)
        greedy = np.array([cell.greedy for cell in cells], dtype=bool).reshape(-1, 3, 2)
        tokens = np.array([len(cell.tokens) for cell in cells], dtype=np.int64).reshape(-1, 3, 2)[:, 2]
        crossed[name] = Crossed(total[:, :2], total[:, 2], greedy[:, :2], tokens, tuple(twin.group for twin in twins))
    return crossed
