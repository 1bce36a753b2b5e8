"""A known direction, planted: "the cat was lovely today so it was" → good; awful → bad. And another that is there, and that nothing reads.

Head 0.0 takes the tone of the adjective (+1 or −1) to the last token, along TONE, and neurons of layer 1 read it there: the answer. Head 0.1 takes
there whether the noun is alive (±1), along ALIVE: as easy to decode, and never used. Head 0.2 takes there which noun it is, along dimensions of its
own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nullius.instruments.heads import Head
from nullius.instruments.planted.wiring import Wiring
from nullius.models.language_model import LanguageModel

GOOD = ("lovely", "great", "fine", "nice", "superb", "happy", "bright", "sweet")
BAD = ("awful", "dreadful", "poor", "nasty", "horrid", "sad", "dull", "bitter")
ALIVE = ("cat", "dog", "horse", "bird", "fish", "cow", "goat", "hen", "mouse", "frog")
THINGS = ("chair", "table", "stone", "lamp", "cup", "road", "house", "wall", "book", "coat")
TONE_HEAD, ALIVE_HEAD, NOUN_HEAD = Head(0, 0), Head(0, 1), Head(0, 2)
READ_LAYER = 1


@dataclass(frozen=True)
class Remark:
    """A text; tone, alive: 1 or 0; noun, adjective: its words."""

    text: str
    tone: int
    alive: int
    noun: str
    adjective: str


@dataclass(frozen=True)
class Planted:
    """The model and its directions, unit vectors that lie in the last token's state from resid_post of layer 0 on.

    tone, alive: along which they are read [d_model]. tone_written: along which tone is written. nouns: those that hold the noun [nouns, d_model].
    """

    model: LanguageModel
    tone: Tensor
    alive: Tensor
    tone_written: Tensor
    nouns: Tensor


def build(seed: int = 0) -> Planted:
    """Build the model: three layers of four heads."""
    nouns = ALIVE + THINGS
    words = ["the", "was", "today", "so", "it", "good", "bad", *nouns, *GOOD, *BAD]
    slots = {
        "noun": len(nouns),
        "mood": 1,
        "life": 1,
        "tone": 1,
        "alive": 1,
        "about": len(nouns),
        "out": 2,
        "adjective": 1,
        "name": 1,
        "last": 1,
    }
    w = Wiring(words, slots, layers=3, heads=4, d_head=24, length=9, seed=seed)
    for i, noun in enumerate(nouns):
        w.embed(noun, "noun", i)
        w.embed(noun, "name")
        w.embed(noun, "life", 0, 1.0 if noun in ALIVE else -1.0)
    for word in GOOD + BAD:
        w.embed(word, "adjective")
        w.embed(word, "mood", 0, 1.0 if word in GOOD else -1.0)
    w.place(8, "last")
    for head, reads, copy in (
        (TONE_HEAD, "adjective", ("mood", "tone")),
        (ALIVE_HEAD, "name", ("life", "alive")),
        (NOUN_HEAD, "name", ("noun", "about")),
    ):
        w.head(head.layer, head.head, match=[("last", reads)], copy=copy)
    w.neuron(READ_LAYER, {("tone", 0): 1.0}, 0.0, {("out", 0): 1.0})
    w.neuron(READ_LAYER, {("tone", 0): -1.0}, 0.0, {("out", 1): 1.0})
    w.answer("good", "out", 0)
    w.answer("bad", "out", 1)
    nouns_ = torch.stack([w.direction("about", i) for i in range(len(nouns))])
    return Planted(w.model("planted direction"), w.direction("tone"), w.direction("alive"), w.written("tone"), nouns_)


def remarks(rng: np.random.Generator, n: int) -> list[Remark]:
    """Draw n texts, tone and noun independent of each other."""
    found = []
    for _ in range(n):
        tone, alive = (int(i) for i in rng.integers(2, size=2))
        noun, adjective = str(rng.choice(ALIVE if alive else THINGS)), str(rng.choice(GOOD if tone else BAD))
        found.append(Remark(f"the {noun} was {adjective} today so it was", tone, alive, noun, adjective))
    return found
