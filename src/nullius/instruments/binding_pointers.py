"""By which pointer does a model find a bound entity? Interchange triples of binding tasks, run and classified (Gur-Arieh et al. 2025).

The residual stream that enters a layer at the last token comes from the source; the group with which the base is then answered is the one to which
what the token keeps points: the source's place, its key, or its answer (`nullius.stimuli.binding`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nullius.instruments import checks, interchange
from nullius.instruments.pointer_mixture import TERMS, Cells, cells
from nullius.models.language_model import LanguageModel
from nullius.stimuli import binding
from nullius.stimuli.binding import Bound, Triple

Floats = NDArray[np.float64]
Progress = Callable[[Sequence[list[Triple]]], Iterable[list[Triple]]]
BATCH = 24


@dataclass(frozen=True)
class Asked:
    """How groups are asked about: task, number of groups, numbers of the key's and the answer's category, words of each category."""

    task: binding.Task
    n: int
    key: int
    answer: int
    pools: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        return f"{self.task.categories[self.answer]} by {self.task.categories[self.key]}"

    def draw(self, rng: np.random.Generator, fillers: bool = False) -> Bound:
        """Draw one text."""
        return binding.draw(rng, self.task, self.n, key=self.key, answer=self.answer, pools=self.pools, fillers=fillers)

    def grid(self, rng: np.random.Generator, count: int, kind: binding.Kind = "all", fillers: bool = False) -> list[Triple]:
        """Draw triples over the cells (p, k, i), k and i ≠ p, all equally often (as far as `count` goes), the base's own group at random.

        Raises UsageError for fewer than four groups: three pointers and the base's own answer may each need one.
        """
        checks.at_least(self.n, 4, "the number of groups of triples over all cells")
        places = [(p, k, i) for p in range(self.n) for k in range(self.n) for i in range(self.n) if p not in (k, i)]
        order = np.concatenate([rng.permutation(len(places)) for _ in range(-(-count // len(places)))])[:count]
        triples = []
        for cell in (places[j] for j in order):
            free = [place for place in range(self.n) if place not in cell]
            base = binding.asking(self.draw(rng, fillers), int(rng.choice(free)))
            triples.append(binding.triple(rng, base, cell, kind, self.pools))
        return triples


@dataclass(frozen=True)
class Seen:
    """Triples at one layer. chosen: the group with which each is answered, by the largest logit among the candidates [n]; probabilities: of the
    candidates [n, groups]; emitted: the greedy next token of the whole vocabulary [n], −1 where it was not asked for."""

    triples: list[Triple]
    chosen: NDArray[np.int64]
    probabilities: Floats
    emitted: NDArray[np.int64]

    @property
    def groups(self) -> int:
        """The number of groups."""
        return self.probabilities.shape[1]

    def at(self, name: str) -> NDArray[np.int64]:
        """Where a pointer (positional, lexical, reflexive, unchanged) points [n]; −1 where nowhere."""
        return np.array([-1 if getattr(triple, name) is None else getattr(triple, name) for triple in self.triples])

    def apart(self) -> Seen:
        """Those whose key and answer do not point to the same group: where they do, one pointer's answers would count for the other as well."""
        k, i = self.at("lexical"), self.at("reflexive")
        rows = np.flatnonzero((k != i) | (k < 0))
        return Seen([self.triples[row] for row in rows], self.chosen[rows], self.probabilities[rows], self.emitted[rows])

    def mixed(self) -> NDArray[np.bool_]:
        """Where the answer is a group to which nothing points [n]."""
        return ~np.any([self.chosen == self.at(name) for name in (*TERMS, "unchanged")], 0)

    def share(self, name: str) -> float:
        """Share of answers with the group of a pointer."""
        return float(np.mean(self.chosen == self.at(name)))

    def lead(self, places: NDArray[np.int64]) -> Floats:
        """1 where the answer is the group at `places`, less the mean of the same over unrelated groups, to which nothing points [n]."""
        pointed = np.stack([places, *(self.at(name) for name in (*TERMS, "unchanged"))], 1)
        return self._over(places, pointed)

    def random_lead(self, rng: np.random.Generator) -> Floats:
        """`lead` of a group drawn at random over the others, none the base's own: 0 on average whatever the model does [n]."""
        own = self.at("unchanged")
        drawn = np.array([rng.choice([place for place in range(self.groups) if place != unchanged]) for unchanged in own])
        return self._over(drawn, np.stack([drawn, own], 1))

    def _over(self, places: NDArray[np.int64], pointed: NDArray[np.int64]) -> Floats:
        """Answers at `places`, less the mean over groups that are not among `pointed` [n, ..]."""
        unrelated = np.ones((len(places), self.groups), dtype=bool)
        for column in pointed.T:
            rows = column >= 0
            unrelated[rows, column[rows]] = False
        others = unrelated[np.arange(len(places)), self.chosen] / unrelated.sum(1)
        return (self.chosen == places) - others

    def ends(self, places: NDArray[np.int64]) -> Floats:
        """Samples [n] whose mean is the quadratic contrast over places of the positional share: ends minus middle, positive weights summing to 1."""
        centred = (np.arange(self.groups) - (self.groups - 1) / 2) ** 2
        centred -= centred.mean()
        weights = centred / centred[centred > 0].sum()
        count = np.bincount(places, minlength=self.groups)
        return weights[places] * (self.chosen == self.at("positional")) * len(places) / count[places]

    def cells(self) -> Cells:
        """Mean probabilities for each cell of (p, k, i)."""
        return cells(np.stack([self.at(name) for name in TERMS], 1), self.probabilities)


def answered(model: LanguageModel, items: Sequence[Bound], batch_size: int = 16) -> NDArray[np.int64]:
    """The group whose candidate has the largest logit of all groups' [n], nothing interchanged."""
    logits = model.last_logits([item.prompt for item in items], batch_size).numpy()
    tokens = np.array([[model.first_token(word) for word in item.candidates] for item in items])
    return np.take_along_axis(logits, tokens, 1).argmax(1)


def right(model: LanguageModel, items: Sequence[Bound], batch_size: int = 16) -> Floats:
    """1 where the right candidate has the largest logit of all groups' [n]."""
    return (answered(model, items, batch_size) == [item.index for item in items]).astype(float)


def see(
    model: LanguageModel, triples: Sequence[Triple], layers: Sequence[int], progress: Progress = iter, vocabulary: bool = True
) -> dict[int, Seen]:
    """Run triples with the interchange at each of some layers. progress: wraps the batches. vocabulary: see `interchange.last_token`.

    Raises UsageError for no triple; errors of `interchange.last_token`.
    """
    checks.at_least(len(triples), 1, "the number of triples")
    parts = [list(triples[i : i + BATCH]) for i in range(0, len(triples), BATCH)]
    moved = []
    for part in progress(parts):
        tokens = [[model.first_token(word) for word in triple.base.candidates] for triple in part]
        base, source = ([getattr(triple, side).prompt for triple in part] for side in ("base", "source"))
        moved.append(interchange.last_token(model, base, source, tokens, layers, vocabulary=vocabulary))
    out = {}
    for row, layer in enumerate(layers):
        logits = np.concatenate([part.candidates[row] for part in moved])
        odds = np.exp(logits - logits.max(1, keepdims=True))
        emitted = np.concatenate([part.emitted[row] for part in moved])
        out[layer] = Seen(list(triples), logits.argmax(1), odds / odds.sum(1, keepdims=True), emitted)
    return out


def says_source(model: LanguageModel, seen: Seen) -> Floats:
    """1 where the token emitted is the source's own answer [n]."""
    wanted = [model.first_token(triple.source.candidates[triple.source.index]) for triple in seen.triples]
    return (seen.emitted == np.array(wanted)).astype(float)


def says_chosen(model: LanguageModel, seen: Seen) -> Floats:
    """1 where the token emitted, out of the whole vocabulary, is the candidate chosen [n]."""
    wanted = [model.first_token(triple.base.candidates[i]) for triple, i in zip(seen.triples, seen.chosen, strict=True)]
    return (seen.emitted == np.array(wanted)).astype(float)


def best_layer(model: LanguageModel, tuning: dict[int, Seen], fresh: dict[int, Seen], most: float = 0.1) -> int:
    """The layer with the largest share of answers at one of the three pointers, among those at which an answer new to the base is said outright in at
    most a share `most` of its pairs (the last such layer would be a copy of the answer, not a pointer); among all where there is none."""
    pointed = {layer: float(np.mean(np.any([seen.chosen == seen.at(name) for name in TERMS], 0))) for layer, seen in tuning.items()}
    allowed = [layer for layer in pointed if says_source(model, fresh[layer]).mean() <= most] or list(pointed)
    return max(allowed, key=lambda layer: pointed[layer])
