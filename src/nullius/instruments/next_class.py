"""Do the states of a reader, after nine words, cluster by the class of the tenth? What is drawn for that, and what is measured.

The same windows serve every network, layer and control. Three kinds of sets of windows, each giving one general discrimination value (GDV):
contiguous blocks of text with equally many windows of each class to come; the same among open classes without the most frequent words; and
windows whose contexts end in the same word, which no clustering by the word just read can separate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nullius.errors import NulliusError
from nullius.instruments import separation
from nullius.models.language_model import LanguageModel
from nullius.stimuli.grammar import OPEN
from nullius.stimuli.windows import Strings, Windows, balanced, blocks, frequent_enough, sharing_the_word_read

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
NO_CLASS = ("PUNCT", "X")
RUN = 5  # windows drawn in succession whose labels stay together when labels are permuted


@dataclass(frozen=True)
class Reading:
    """GDV of each stage of one reader, input first: stage → one value per block, or per word that contexts share.

    to_come: by the class of the next word. permuted: the same labels, runs permuted within a block. read: by the class of the word just read.
    open_classes: by the class of the next word among open classes. same_word: among contexts that end in the same word.
    """

    to_come: dict[str, Floats]
    permuted: dict[str, Floats]
    read: dict[str, Floats]
    open_classes: dict[str, Floats]
    same_word: dict[str, Floats]

    @property
    def stages(self) -> list[str]:
        """Names of the stages."""
        return list(self.to_come)

    def slope(self) -> Floats:
        """Slope of `to_come` over relative depth, from the input to the last stage [blocks]."""
        return separation.depth_slope([self.to_come[stage] for stage in self.stages])

    def giving_way(self) -> Floats:
        """Slope of `to_come` − `read` over relative depth, from the first stage after the input to the last [blocks]."""
        return separation.depth_slope([self.to_come[stage] - self.read[stage] for stage in self.stages[1:]])


@dataclass(frozen=True)
class Drawn:
    """The windows measured, in order of the text, and the sets among them. classes: the classes to come that are frequent enough."""

    windows: Windows
    blocks: tuple[Ints, ...]
    open_blocks: tuple[Ints, ...]
    same_word: dict[str, Ints]
    permuted: Strings
    classes: tuple[str, ...]

    def measure(self, stages: Mapping[str, ArrayLike]) -> Reading:
        """Return the GDV of every stage in every set. stages: name → activations [n, D] of these windows, input first."""
        to_come = self.windows.next_class
        return Reading(
            separation.by_sets(stages, to_come, self.blocks),
            separation.by_sets(stages, self.permuted, self.blocks),
            separation.by_sets(stages, self.windows.read_class, self.blocks),
            separation.by_sets(stages, to_come, self.open_blocks),
            separation.by_sets(stages, to_come, list(self.same_word.values())),
        )

    def block_of(self) -> Ints:
        """Return the block of each window of `blocks`, in the order of `probe` [n]."""
        return np.concatenate([np.full(len(part), number) for number, part in enumerate(self.blocks)])

    def probe(self, points: ArrayLike) -> Floats:
        """Return whether [n] a linear probe of points tells the class to come: in each half of the blocks, one fitted on the other half."""
        x, half = np.asarray(points), len(self.blocks) // 2
        first, second = np.concatenate(self.blocks[:half]), np.concatenate(self.blocks[half:])
        labels = self.windows.next_class
        hits = [separation.probe_hits(x[b], labels[b], x[a], labels[a]) for a, b in ((first, second), (second, first))]
        return np.concatenate(hits)

    def describe(self, points: ArrayLike, rng: np.random.Generator, permutations: int = 1000) -> dict[str, float]:
        """Return what is reported beside GDV about points [n, D], each in words → number.

        GDV with its p under permuted runs on all blocks together, silhouette, purity of the 10 nearest neighbours, accuracy of `probe`.
        """
        x, to_come = np.asarray(points), self.windows.next_class
        together = np.concatenate(self.blocks)
        value, _, p = separation.permutation_null(x[together], to_come[together], run=RUN, permutations=permutations, rng=rng)
        return {
            "GDV of all blocks": value,
            "p by permuted runs": p,
            "silhouette": separation.silhouette(x[together], to_come[together]),
            "purity of 10 neighbours": separation.knn_purity(x[together], to_come[together]),
            "accuracy of a probe": float(self.probe(x).mean()),
        }


def draw(found: Windows, rank: Ints, rng: np.random.Generator, *, n_blocks: int, per_class: int, same_word: int, words: int) -> Drawn:
    """Draw windows to measure from all windows of a held-out text.

    rank: frequency rank [n] of each next word in the training text, 1 the most frequent, 0 unknown there. n_blocks: contiguous blocks. per_class:
    windows of each class in a block. same_word: of each class among contexts that end in the same word. words: how many such words at most.
    Boundaries are neither read nor to come: one word type makes up their class. Raises NulliusError for a text that is too short.
    """
    eligible = ~np.isin(found.next_class, NO_CLASS) & ~np.isin(found.read_class, NO_CLASS)
    content = eligible & (rank > 50) & np.isin(found.next_class, OPEN)
    block = blocks(len(found), n_blocks)

    def sets(among: NDArray[np.bool_]) -> tuple[list[Ints], list[str]]:
        return balanced(found.next_class, block, per_class, rng, among=among, types=found.next_word)

    chosen, classes = sets(eligible)
    chosen = [frequent_enough(part, (found.read_class, found.next_class), 2) for part in chosen]
    opened, _ = sets(content)
    shared = sharing_the_word_read(found, same_word, words, rng, among=eligible)
    if len(shared) < 3:
        raise NulliusError(
            f"the text is too short: after {len(shared)} words, two classes follow {same_word} times each; three such words are needed"
        )
    union = np.unique(np.concatenate([*chosen, *opened, *shared.values()]))
    kept = found[union]
    places = _places(union, chosen)
    permuted = kept.next_class.copy()
    for part in places:
        permuted[part] = separation.permute_runs(permuted[part], RUN, rng)
    same = dict(zip(shared, _places(union, list(shared.values())), strict=True))
    return Drawn(kept, places, _places(union, opened), same, permuted, tuple(classes))


def _places(union: Ints, sets: Sequence[Ints]) -> tuple[Ints, ...]:
    return tuple(np.searchsorted(union, chosen) for chosen in sets)


def exchanged(chosen: Windows, pool: Windows, rng: np.random.Generator) -> Strings:
    """Return contexts [n, T] that end in the same words as those of `chosen`, with all earlier words from random windows of `pool`.

    What a reader of these knows about the next word of `chosen` it knows from the word just read. pool holds every word read in `chosen`.
    """
    order = np.argsort(pool.read_word, kind="stable")
    ordered = pool.read_word[order]
    first, last = (np.searchsorted(ordered, chosen.read_word, side) for side in ("left", "right"))
    return pool.context[order[rng.integers(first, last)]]


def prefers_next_word(model: LanguageModel, drawn: Drawn, rng: np.random.Generator, n: int) -> Floats:
    """Return whether a model gives more probability to the true next word than to the next word of another window: 1, 0, or ½ when equal.

    On at most n of the windows, by the first token of each word.
    """
    asked = rng.permutation(len(drawn.windows))[:n]
    logits = model.last_logits(drawn.windows[asked].render()).numpy()
    tokens = np.array([model.first_token(f" {word}") for word in drawn.windows.next_word[asked].tolist()])
    rows = np.arange(len(asked))
    return (np.sign(logits[rows, tokens] - logits[rows, np.roll(tokens, 1)]) / 2 + 0.5).astype(np.float64)
