"""Streams of symbols in which some positions ask for what stood before: recall of pairs, and a memory that must forget at a sign.

Every set is `Asked`: symbols as numbers, and for each position the symbol that is right there, or −1 where nothing is asked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nullius.errors import UsageError

Ints = NDArray[np.int64]
NOTHING = -1


@dataclass(frozen=True)
class Asked:
    """tokens, targets: [n, length]; targets[i, t] is what must be known after tokens[i, : t + 1], NOTHING where nothing is asked."""

    tokens: Ints
    targets: Ints
    vocabulary: int

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, chosen: slice | Ints) -> Asked:
        return Asked(self.tokens[chosen], self.targets[chosen], self.vocabulary)


def next_symbols(stream: Ints, length: int, vocabulary: int) -> Asked:
    """Cut a running text of symbols [n] into windows that ask for the symbol to come at every position. What is left over at the end is dropped."""
    rows = stream[: len(stream) // (length + 1) * (length + 1)].reshape(-1, length + 1)
    return Asked(rows[:, :-1], rows[:, 1:], vocabulary)


def only(data: Asked, start: int, stop: int) -> Asked:
    """Ask at positions start to stop (exclusive) alone."""
    position = np.arange(data.tokens.shape[1])
    return replace(data, targets=np.where((position >= start) & (position < stop), data.targets, NOTHING))


def pairs(
    n: int, rng: np.random.Generator, *, length: int = 32, pairs: int = 4, keys: int = 8, values: int = 8, gaps: float = 0.0
) -> Asked:
    """Multi-query associative recall (MQAR, arXiv 2312.04927): keys with their values, then keys again, in any order, as often as there is room.

    Symbols: 0 is the blank, then the keys, then the values. gaps: share of blanks among the questions. Who knows which values were there, but not
    whose, is right once in `pairs` times. Raises UsageError where they do not fit.
    """
    if 3 * pairs > length or pairs > min(keys, values):
        raise UsageError(
            f"{pairs} pairs need a length of {3 * pairs} at least, and as many keys and values; got {length}, {keys}, {values}"
        )
    key = 1 + rng.permuted(np.tile(np.arange(keys), (n, 1)), axis=1)[:, :pairs]
    value = 1 + keys + rng.permuted(np.tile(np.arange(values), (n, 1)), axis=1)[:, :pairs]
    rest = length - 2 * pairs
    which = rng.permuted(np.tile(np.arange(rest) % pairs, (n, 1)), axis=1)
    asked = rng.random((n, rest)) >= gaps
    asked[:, -1] = True  # every sequence asks something
    tokens = np.zeros((n, length), dtype=np.int64)
    targets = np.full((n, length), NOTHING, dtype=np.int64)
    tokens[:, 0 : 2 * pairs : 2], tokens[:, 1 : 2 * pairs : 2] = key, value
    tokens[:, 2 * pairs :] = np.where(asked, np.take_along_axis(key, which, 1), 0)
    targets[:, 2 * pairs :] = np.where(asked, np.take_along_axis(value, which, 1), NOTHING)
    return Asked(tokens, targets, 1 + keys + values)


def redealt(data: Asked, rng: np.random.Generator) -> Ints:
    """Return the targets [n, length] with the answers of all questions dealt out anew among them: right by chance alone, whoever answers."""
    targets = data.targets.copy()
    asked = targets != NOTHING
    targets[asked] = rng.permutation(targets[asked])
    return targets


def likeliest(data: Asked) -> float:
    """Share of questions that the most frequent answer is right for: what who knows nothing else can reach."""
    answers = data.targets[data.targets != NOTHING]
    return float(np.bincount(answers).max() / len(answers))


@dataclass(frozen=True)
class Slots:
    """Shape of a stream of slots: groups of slots, each with a sign that empties it. A slot holds one of `values`, or nothing."""

    groups: int = 4
    per_group: int = 2
    values: int = 4

    @property
    def slots(self) -> int:
        """Number of slots."""
        return self.groups * self.per_group

    @property
    def vocabulary(self) -> int:
        """Symbols: 0 … values are answers (0: empty), then what writes a value into a slot, then what asks for a slot, then the resets."""
        return 1 + self.values + self.slots * self.values + self.slots + self.groups

    def write(self, slot: Ints, value: Ints) -> Ints:
        """Symbol that puts value 1 … values into a slot."""
        return 1 + self.values + slot * self.values + value - 1

    def ask(self, slot: Ints) -> Ints:
        """Symbol that asks for a slot."""
        return 1 + self.values + self.slots * self.values + slot

    def reset(self, group: Ints) -> Ints:
        """Symbol that empties a group."""
        return 1 + self.values + self.slots * self.values + self.slots + group


def until_reset(n: int, rng: np.random.Generator, *, length: int = 48, shape: Slots = Slots(), resets: float = 0.15) -> Asked:
    """Remember until reset: what is asked for is the value written into a slot since its group was last emptied, or that there is none.

    At each step a group is emptied with probability `resets`; else a slot is asked for, or one that is empty is written, at equal odds. No slot
    is written twice without a reset between, so that without resets (0) nothing ever needs forgetting.
    """
    content = np.zeros((n, shape.slots), dtype=np.int64)
    tokens = np.empty((n, length), dtype=np.int64)
    targets = np.full((n, length), NOTHING, dtype=np.int64)
    rows = np.arange(n)
    for t in range(length):
        emptied = rng.random(n) < resets
        group = rng.integers(shape.groups, size=n)
        slot = rng.integers(shape.slots, size=n)
        value = rng.integers(1, shape.values + 1, size=n)
        writes = ~emptied & (rng.random(n) < 0.5) & (content[rows, slot] == 0)
        asks = ~emptied & ~writes
        tokens[:, t] = np.where(emptied, shape.reset(group), np.where(writes, shape.write(slot, value), shape.ask(slot)))
        targets[asks, t] = content[rows, slot][asks]
        content[rows[writes], slot[writes]] = value[writes]
        content[(np.arange(shape.slots) // shape.per_group)[None, :] == np.where(emptied, group, -1)[:, None]] = 0
    return Asked(tokens, targets, shape.vocabulary)


def offset(n: int, rng: np.random.Generator, *, length: int = 32, symbols: int = 16, back: int = 1) -> Asked:
    """A stream in which what is right at a position is a fixed function of the symbol `back` positions earlier (0: of the symbol there).

    Who knows positions alone can solve it; for back = 0 even who mixes no tokens. Symbols are drawn independently, answers have numbers of
    their own.
    """
    tokens = rng.integers(symbols, size=(n, length))
    targets = np.full((n, length), NOTHING, dtype=np.int64)
    answer = symbols + (tokens * 5 + 3) % symbols
    targets[:, back:] = answer[:, : length - back]
    return Asked(tokens, targets, 2 * symbols)
