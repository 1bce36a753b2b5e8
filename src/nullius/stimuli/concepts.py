"""Concepts with a binary label: facts, feelings and inferences, for probing at which layer each becomes decodable.

The five sets made here share one design. Items come in blocks in which every word occurs equally often with either label, so that the
label is an exclusive-or of words. Weighing single words then has nothing to learn (the likelihood is best at no weights), and a lucky
weighing is right about three items in four at most; what a probe reads beyond that has been composed by the model. Blocks are never
split between training and held-out items (`groups`).

| set        | kind        | a block                                              | label             |
| ---------- | ----------- | ---------------------------------------------------- | ----------------- |
| city       | factual     | two cities × their two countries                     | statement is true |
| sentiment  | emotional   | an adjective and its opposite × affirmed and negated | praise            |
| comparison | inferential | two numbers in both orders × larger and smaller      | statement is true |
| coin-2     | inferential | two people, every pattern of turning or not         | heads up at last  |
| coin-4     | inferential | four people, every pattern                           | heads up at last  |

`nullius.stimuli.concept_files` reads the data sets of Jin et al. 2024 (arXiv 2404.07066), which ask for the same kinds of concept.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["factual", "emotional", "inferential"]

# fmt: off
ADJECTIVES = (
    "good/bad", "great/terrible", "wonderful/awful", "excellent/dreadful", "delightful/horrible", "beautiful/ugly", "exciting/boring",
    "brilliant/stupid", "charming/annoying", "lovely/nasty", "fantastic/pathetic", "amazing/disappointing", "superb/poor", "fun/dull",
    "clever/silly", "enjoyable/tedious", "fresh/stale", "inspiring/depressing", "impressive/mediocre", "perfect/flawed",
    "fascinating/tiresome", "satisfying/frustrating", "moving/shallow", "graceful/clumsy", "thrilling/dreary", "magnificent/miserable",
    "memorable/forgettable", "refreshing/irritating", "remarkable/worthless", "elegant/crude",
)
SUBJECTS = ("film", "book", "meal", "hotel", "concert", "game", "show", "trip", "play", "party", "story", "song")
NEGATIONS = (("was", "was not"), ("seemed really", "seemed hardly"), ("was always", "was never"))
PEOPLE = (
    "Anna", "Ben", "Carla", "David", "Emma", "Frank", "Grace", "Henry", "Irene", "James", "Karen", "Louis", "Maria", "Nick", "Olga",
    "Peter", "Quinn", "Rosa", "Simon", "Tina", "Ursula", "Victor", "Wendy", "Xavier", "Yvonne", "Zach", "Alice", "Bruno", "Clara",
    "Diego", "Elena", "Felix", "Gina", "Hugo", "Ivan", "Julia", "Kevin", "Laura", "Martin", "Nora",
)
# fmt: on


@dataclass(frozen=True)
class Concept:
    """Texts with a binary label.

    texts: [n]. labels: [n] of 0 and 1. groups: [n], what items share (an entity, a template): keep these together when splitting.
    instruction: what a subject would be told to do. question: a yes/no question about the text, whose answer is yes for label 1.
    """

    name: str
    kind: Kind
    texts: tuple[str, ...]
    labels: NDArray[np.int64]
    groups: NDArray[np.str_]
    instruction: str
    question: str

    def __len__(self) -> int:
        return len(self.texts)

    def sample(self, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return item numbers, in order: whole groups drawn at random until there are at least `n` items (or none are left)."""
        names, of_item, sizes = np.unique(self.groups, return_inverse=True, return_counts=True)
        order = rng.permutation(len(names))
        needed = int(np.searchsorted(np.cumsum(sizes[order]), n)) + 1
        return np.flatnonzero(np.isin(of_item, order[:needed]))

    def select(self, items: NDArray[np.int64]) -> Concept:
        """Return the concept with the given items only."""
        texts = tuple(self.texts[i] for i in items)
        return replace(self, texts=texts, labels=self.labels[items], groups=self.groups[items])

    def with_texts(self, texts: Sequence[str]) -> Concept:
        """Return the same items with their texts transformed (see `nullius.stimuli.noise`)."""
        return replace(self, texts=tuple(texts))


def in_package(rng: np.random.Generator, n: int = 240) -> tuple[Concept, ...]:
    """Return the five sets of the module's docstring, about `n` items each (city: at most four for every two cities of the table)."""
    return city(rng, n), sentiment(rng, n), comparison(rng, n), coin(rng, n, steps=2), coin(rng, n, steps=4)


def city(rng: np.random.Generator, n: int = 240) -> Concept:
    """Return true and false statements of the form "The city of Osaka is in Japan."; cities and countries are paired off into blocks."""
    lines = (resources.files("nullius.stimuli") / "data" / "cities.csv").read_text("utf-8").splitlines()
    table = [(row["city"], row["country"]) for row in csv.DictReader(lines)]
    order = rng.permutation(len(table))
    blocks = []
    for a, b in list(zip(order[0::2], order[1::2], strict=False))[: _blocks(n, 4)]:
        pairs = itertools.product((table[a], table[b]), repeat=2)
        block = [(f"The city of {place} is in {country}.", own == country) for (place, own), (_, country) in pairs]
        blocks.append((f"{table[a][0]}+{table[b][0]}", block))
    return _concept("city", "factual", blocks, "Judge whether the statement is true or false.", "Is this statement true?")


def sentiment(rng: np.random.Generator, n: int = 240) -> Concept:
    """Return praise and blame in which each adjective is affirmed and negated: "The meal was not good."; groups are pairs of adjectives."""
    frames = [(subject, *negation) for subject in SUBJECTS for negation in NEGATIONS]
    draws = [rng.permutation(len(frames)) for _ in ADJECTIVES]
    blocks = []
    for turn in range(min(_blocks(n, 4), len(frames) * len(ADJECTIVES))):
        pair = turn % len(ADJECTIVES)
        subject, plain, negated = frames[draws[pair][turn // len(ADJECTIVES)]]
        good, bad = ADJECTIVES[pair].split("/")
        variants = ((plain, good, True), (plain, bad, False), (negated, good, False), (negated, bad, True))
        blocks.append((ADJECTIVES[pair], [(f"The {subject} {verb} {adjective}.", praise) for verb, adjective, praise in variants]))
    return _concept("sentiment", "emotional", blocks, "Judge whether the opinion is positive or negative.", "Is this opinion positive?")


def comparison(rng: np.random.Generator, n: int = 240) -> Concept:
    """Return comparisons of two numbers of two digits: "37 is smaller than 64."; groups are the unordered pairs."""
    pairs = list(itertools.combinations(range(10, 100), 2))
    blocks = []
    for index in rng.choice(len(pairs), min(_blocks(n, 4), len(pairs)), replace=False):
        low, high = pairs[index]
        block = [
            (f"{a} is {word} than {b}.", (a > b) == (word == "larger"))
            for a, b in ((low, high), (high, low))
            for word in ("larger", "smaller")
        ]
        blocks.append((f"{low}+{high}", block))
    return _concept("comparison", "inferential", blocks, "Judge whether the statement is true or false.", "Is this statement true?")


def coin(rng: np.random.Generator, n: int = 240, *, steps: int) -> Concept:
    """Return stories of a coin that `steps` people turn or leave; groups are the people, with every pattern of turns.

    Both acts take one verb, so that every story of a group is equally long: with "flips" and "does not flip" (as in the paper's set) the
    length of a story, hence its last position, gives the number of flips and with it the answer.
    """
    blocks = []
    for _ in range(_blocks(n, 2**steps)):
        people = [PEOPLE[i] for i in rng.choice(len(PEOPLE), steps, replace=False)]
        block = []
        for flips in itertools.product((True, False), repeat=steps):
            acts = [f"{name} {'turns' if flip else 'leaves'} it." for name, flip in zip(people, flips, strict=True)]
            block.append((" ".join(["A coin is heads up.", *acts]), sum(flips) % 2 == 0))
        blocks.append(("+".join(people), block))
    instruction = "Judge whether the coin is heads up at the end."
    return _concept(f"coin-{steps}", "inferential", blocks, instruction, "Is the coin heads up now?")


def _blocks(n: int, size: int) -> int:
    return max(1, round(n / size))


def _concept(name: str, kind: Kind, blocks: list[tuple[str, list[tuple[str, bool]]]], instruction: str, question: str) -> Concept:
    items = [(text, int(label), group) for group, block in blocks for text, label in block]
    texts, labels, groups = zip(*items, strict=True)
    return Concept(name, kind, texts, np.array(labels), np.array(groups), instruction, question)
