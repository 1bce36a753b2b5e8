"""Factual look-up, planted, with a copying head that overrides it: "Oslo said Anna . the capital of Poland is" → Oslo, though memory says Warsaw.

At the last token head 0.1 fetches the country, the feed-forward block of layer 1 writes the country's capital (memory, strength MEMORY), and head 2.2
copies a city named in the text, with strength COPY > MEMORY. Without a city in the text head 2.2 writes nothing, and memory answers; so it does when
the head is scaled by less than MEMORY / COPY.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from nullius.instruments.heads import Head
from nullius.instruments.planted.wiring import Wiring
from nullius.models.language_model import LanguageModel

CAPITALS = {
    "Poland": "Warsaw", "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Norway": "Oslo", "Greece": "Athens",
    "Egypt": "Cairo", "Japan": "Tokyo", "Cuba": "Havana", "Peru": "Lima", "Kenya": "Nairobi", "Ireland": "Dublin",
}  # fmt: skip
FETCH, COPY_HEAD, MEMORY_LAYER = Head(0, 1), Head(2, 2), 1
MEMORY, COPY = 1.0, 1.5
NAMES = ("Anna", "Ben", "Carl", "Dora")


@dataclass(frozen=True)
class Conflict:
    """A text, the city that it names, and the true capital of its country (each with a leading space)."""

    text: str
    context: str
    memory: str


def build(seed: int = 0) -> LanguageModel:
    """Build the model: three layers of four heads."""
    countries, cities, n = tuple(CAPITALS), tuple(CAPITALS.values()), len(CAPITALS)
    words = ["said", ".", "the", "capital", "of", "is", "nobody", *NAMES, *countries, *cities]
    slots = {"country": n, "city": n, "asked": n, "out": n, "land": 1, "town": 1, "asks": 1}
    w = Wiring(words, slots, layers=3, heads=4, d_head=16, length=12, neurons=n + 4, seed=seed)
    for i, (country, city) in enumerate(CAPITALS.items()):
        w.embed(country, "country", i)
        w.embed(country, "land")
        w.embed(city, "city", i)
        w.embed(city, "town")
        w.answer(city, "out", i)
        w.neuron(MEMORY_LAYER, {("asked", i): 2.0}, 1.0, {("out", i): MEMORY})
    w.embed("is", "asks")
    w.head(FETCH.layer, FETCH.head, match=[("asks", "land")], copy=("country", "asked"))
    w.head(COPY_HEAD.layer, COPY_HEAD.head, match=[("asks", "town")], copy=("city", "out"), gain=COPY)
    return w.model("planted recall")


def asked(numbers: Iterable[int]) -> list[int]:
    """The dimensions of the residual stream, at the last token, that say that a country (by its number) is asked about."""
    return [2 * len(CAPITALS) + number for number in numbers]  # behind the slots "country" and "city"


def conflicts(rng: np.random.Generator, n: int) -> list[Conflict]:
    """Draw n texts that name a city other than the capital asked for."""
    found = []
    for _ in range(n):
        country, other = rng.choice(list(CAPITALS), 2, replace=False)
        text = f"{CAPITALS[other]} said {rng.choice(NAMES)} . the capital of {country} is"
        found.append(Conflict(text, f" {CAPITALS[other]}", f" {CAPITALS[country]}"))
    return found


def plain(country: str, name: str = "Anna") -> str:
    """The same question in a text of the same length that names no city."""
    return f"nobody said {name} . the capital of {country} is"
