"""Modular arithmetic, planted: "3 + 5 =" → (3 + 5) mod 7.

At "=" head 0.0 fetches the first number and head 0.1 the second; a neuron of layer 1 for each pair of numbers is on for that pair alone and writes
the sum. Other heads are noise.
"""

from __future__ import annotations

from nullius.instruments.heads import Head
from nullius.instruments.planted.wiring import Wiring
from nullius.models.language_model import LanguageModel

MODULUS = 7
FIRST, SECOND, SUM_LAYER = Head(0, 0), Head(0, 1), 1
FIRST_AT, SECOND_AT = 1, 3  # tokens, the leading one being 0


def build(seed: int = 0) -> LanguageModel:
    """Build the model: two layers of four heads, 7² neurons."""
    digits = [str(i) for i in range(MODULUS)]
    slots = {"number": MODULUS, "left": 1, "right": 1, "equals": 1, "a": MODULUS, "b": MODULUS, "out": MODULUS}
    w = Wiring([*digits, "+", "="], slots, layers=2, heads=4, d_head=12, length=5, neurons=MODULUS**2, seed=seed)
    for i, digit in enumerate(digits):
        w.embed(digit, "number", i)
        w.answer(digit, "out", i)
    w.place(FIRST_AT, "left")
    w.place(SECOND_AT, "right")
    w.embed("=", "equals")
    w.head(FIRST.layer, FIRST.head, match=[("equals", "left")], copy=("number", "a"))
    w.head(SECOND.layer, SECOND.head, match=[("equals", "right")], copy=("number", "b"))
    for a in range(MODULUS):
        for b in range(MODULUS):
            w.neuron(SUM_LAYER, {("a", a): 2.0, ("b", b): 2.0}, 3.0, {("out", (a + b) % MODULUS): 1.0})
    return w.model("planted modular arithmetic")


def text(a: int, b: int) -> str:
    """The text of a sum."""
    return f"{a} + {b} ="


def answer(a: int, b: int) -> str:
    """What follows it, with its leading space."""
    return f" {(a + b) % MODULUS}"
