"""Running text with word classes, cut into overlapping windows: the first words are the context, the last is the word to come.

Neighbouring windows share all words but one, so windows are never split or shuffled singly: texts are split by position, and samples are
drawn from contiguous blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nullius.errors import NulliusError

BOUNDARY = "."  # ends a sentence; the one punctuation mark that is kept
UNKNOWN = "<unk>"
Strings = NDArray[np.str_]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class TaggedText:
    """A running text: lower-case words [n], sentence boundaries among them, and the word class of each [n] (`PUNCT` for a boundary)."""

    words: Strings
    tags: Strings

    def __post_init__(self) -> None:
        if len(self.words) != len(self.tags):
            raise ValueError(f"{len(self.words)} words but {len(self.tags)} tags")

    def __len__(self) -> int:
        return len(self.words)

    def part(self, start: float, stop: float) -> TaggedText:
        """Return the words from one fraction of the text to another."""
        chosen = slice(round(start * len(self)), round(stop * len(self)))
        return TaggedText(self.words[chosen], self.tags[chosen])

    def shuffled(self, rng: np.random.Generator) -> TaggedText:
        """Return all words in random order, each with its class: frequencies stay, order is gone."""
        order = rng.permutation(len(self))
        return TaggedText(self.words[order], self.tags[order])


def tagged(pairs: Sequence[tuple[str, str]]) -> TaggedText:
    """Make a text of (word, class) pairs."""
    return TaggedText(np.array([word for word, _ in pairs], dtype=np.str_), np.array([tag for _, tag in pairs], dtype=np.str_))


class Vocabulary:
    """The most frequent words of a text by falling frequency (ties by spelling); number 0 stands for every other word.

    log_frequency: log of the share of each number in that text [size], every count raised by one.
    """

    def __init__(self, text: TaggedText, size: int) -> None:
        ranked = sorted(Counter(text.words.tolist()).items(), key=lambda entry: (-entry[1], entry[0]))
        self.words: tuple[str, ...] = (UNKNOWN, *(word for word, _ in ranked[: size - 1]))
        self._number = {word: i for i, word in enumerate(self.words)}
        counts = np.array([sum(count for _, count in ranked[size - 1 :]), *(count for _, count in ranked[: size - 1])])
        self.log_frequency = np.log((counts + 1) / (counts + 1).sum())

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, words: Strings) -> Ints:
        """Return the numbers of words, in the shape of `words`."""
        types, places = np.unique(words, return_inverse=True)
        return np.array([self._number.get(str(word), 0) for word in types], dtype=np.int64)[places].reshape(words.shape)


@dataclass(frozen=True)
class Windows:
    """Windows in order of their place in the text. words, tags: [n, width]."""

    words: Strings
    tags: Strings

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, chosen: Ints) -> Windows:
        return Windows(self.words[chosen], self.tags[chosen])

    @property
    def context(self) -> Strings:
        """All words but the last [n, width − 1]."""
        return self.words[:, :-1]

    @property
    def next_word(self) -> Strings:
        """The word to come [n]."""
        return self.words[:, -1]

    @property
    def next_class(self) -> Strings:
        """The class of the word to come [n]."""
        return self.tags[:, -1]

    @property
    def read_word(self) -> Strings:
        """The last word of the context [n]."""
        return self.words[:, -2]

    @property
    def read_class(self) -> Strings:
        """The class of the last word of the context [n]."""
        return self.tags[:, -2]

    def render(self) -> list[str]:
        """Return the contexts as prose: boundaries attached to the word before them, a capital after each."""
        return [_prose(row) for row in self.context.tolist()]


def _prose(words: Sequence[str]) -> str:
    text, capital = "", False
    for word in words:
        if word == BOUNDARY:
            text, capital = text + word, True
            continue
        text += (" " if text else "") + (word.capitalize() if capital else word)
        capital = False
    return text


def windows(text: TaggedText, width: int = 10) -> Windows:
    """Return every window of `width` consecutive words. Raises NulliusError for a text with fewer than two of them."""
    if len(text) <= width:
        raise NulliusError(f"a text of {len(text)} words has no two windows of {width}; give a longer one")
    view = np.lib.stride_tricks.sliding_window_view
    return Windows(view(text.words, width), view(text.tags, width))


def blocks(n: int, count: int) -> Ints:
    """Return the block [n], 0 … count − 1, of n consecutive windows cut into contiguous blocks of (nearly) equal length."""
    return np.arange(n, dtype=np.int64) * count // n


def balanced(
    classes: Strings, block: Ints, per_class: int, rng: np.random.Generator, *, among: NDArray[np.bool_], types: Strings
) -> tuple[list[Ints], list[str]]:
    """Draw equally many windows of each class from every block, spread evenly over word types.

    classes: class of each window [n]. block: [n]. among: the windows that may be drawn [n]. types: the word of each window [n]; a type is drawn
    a second time only when each type of its class in that block was drawn once, so that no frequent word makes up a class.
    Returns the drawn windows of each block, in order, and the classes: those with at least `per_class` windows in every block.
    Raises NulliusError when fewer than two classes have.
    """
    count = int(block.max()) + 1
    cells = {c: [np.flatnonzero(among & (classes == c) & (block == b)) for b in range(count)] for c in np.unique(classes).tolist()}
    kept = [c for c, members in cells.items() if min(map(len, members)) >= per_class]
    if len(kept) < 2:
        raise NulliusError(
            f"the text is too short: {len(kept)} word classes have {per_class} windows in each of {count} blocks, two are needed; give a longer text"
        )
    drawn = [[_spread(cells[c][b], types, rng)[:per_class] for c in kept] for b in range(count)]
    return [np.sort(np.concatenate(parts)) for parts in drawn], kept


def sharing_the_word_read(
    found: Windows, per_class: int, most: int, rng: np.random.Generator, *, among: NDArray[np.bool_]
) -> dict[str, Ints]:
    """Return sets of windows whose contexts end in the same word, with `per_class` windows of each of at least two classes to come.

    A word counts when two classes of next words have `per_class` windows each (drawn evenly over next words). At most `most` words are
    returned, a random choice of those that qualify. Whatever separates the classes within a set is not the identity of the word just read.
    """
    allowed = np.flatnonzero(among)
    order = allowed[np.argsort(found.read_word[allowed], kind="stable")]
    words, starts = np.unique(found.read_word[order], return_index=True)
    sets = {}
    for word, members in zip(words.tolist(), np.split(order, starts[1:]), strict=True):
        of_class = [members[found.next_class[members] == c] for c in np.unique(found.next_class[members])]
        enough = [_spread(cell, found.next_word, rng)[:per_class] for cell in of_class if len(cell) >= per_class]
        if len(enough) >= 2:
            sets[word] = np.sort(np.concatenate(enough))
    chosen = sorted(rng.permutation(len(sets))[:most].tolist())
    return {word: sets[word] for word in (list(sets)[i] for i in chosen)}


def _spread(members: Ints, types: Strings, rng: np.random.Generator) -> Ints:
    """Return members in random order, but the first of every type before the second of any, and so on."""
    shuffled = rng.permutation(members)
    seen: Counter[str] = Counter()
    turn = np.zeros(len(shuffled), dtype=np.int64)
    for i, word in enumerate(types[shuffled].tolist()):
        turn[i] = seen[word]
        seen[word] += 1
    return shuffled[np.argsort(turn, kind="stable")]


def frequent_enough(chosen: Ints, labellings: Sequence[Strings], least: int) -> Ints:
    """Return the chosen windows without those whose class, in any of the labellings [n], has fewer than `least` members among them."""
    while True:
        keep = np.ones(len(chosen), dtype=bool)
        for labels in labellings:
            _, code, count = np.unique(labels[chosen], return_inverse=True, return_counts=True)
            keep &= count[code] >= least
        if keep.all():
            return chosen
        chosen = chosen[keep]
