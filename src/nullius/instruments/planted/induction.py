"""Induction, planted: "... A B ... A" is followed by B (Elhage et al. 2021; Olsson et al. 2022).

Head 0.1 is a previous-token head: each token learns which word stands before it. Head 1.2 is the induction head: the last token looks for a token
whose previous word is its own, and says that token's word. All other heads and neurons are noise.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nullius.instruments.heads import Head
from nullius.instruments.planted.wiring import Wiring
from nullius.models.language_model import LanguageModel

WORDS = tuple(string.ascii_lowercase[:16])
PREVIOUS, INDUCTION = Head(0, 1), Head(1, 2)
LENGTH = 8


@dataclass(frozen=True)
class Repeat:
    """A text whose last word stood before, at `place` (the first word is at token 1), followed by `answer` (with its leading space)."""

    text: str
    place: int
    answer: str


def build(seed: int = 0) -> LanguageModel:
    """Build the model: two layers of four heads, texts of at most LENGTH words of WORDS."""
    n, length = len(WORDS), LENGTH + 1
    slots = {"word": n, "before": n, "out": n, "position": length, "wanted": length}
    w = Wiring(WORDS, slots, layers=2, heads=4, d_head=24, length=length, seed=seed)
    for position in range(1, length):
        w.place(position, "position", position)
        if position > 1:
            w.place(position, "wanted", position - 1)
    w.head(PREVIOUS.layer, PREVIOUS.head, match=[("wanted", "position")], copy=("word", "before"))
    w.head(INDUCTION.layer, INDUCTION.head, match=[("word", "before")], copy=("word", "out"))
    for i, word in enumerate(WORDS):
        w.answer(word, "out", i)
    return w.model("planted induction")


def repeats(rng: np.random.Generator, n: int, length: int = LENGTH) -> list[Repeat]:
    """Draw n texts of `length` words in which the last word stood once before, and was not the word before the last."""
    found = []
    for _ in range(n):
        words = [WORDS[i] for i in rng.permutation(len(WORDS))[: length - 1]]
        place = int(rng.integers(0, length - 2))
        found.append(Repeat(" ".join([*words, words[place]]), place + 1, f" {words[place + 1]}"))
    return found


def pairs(rng: np.random.Generator, n: int, changed: Literal["answer", "key"] = "answer") -> list[tuple[Repeat, Repeat]]:
    """Pairs of texts (base, source) that differ in one word: the one behind the repeated word, so in the answer, which INDUCTION alone carries; or
    ("key") the repeated word where it first stood, which the base lacks: the source's answer needs PREVIOUS and INDUCTION."""
    found = []
    for one in repeats(rng, n):
        words = one.text.split()
        other = str(rng.choice([word for word in WORDS if word not in words]))
        words[one.place if changed == "answer" else one.place - 1] = other
        base = Repeat(" ".join(words), one.place, f" {other}")
        found.append((one, base) if changed == "answer" else (base, one))
    return found
