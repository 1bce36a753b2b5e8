"""Sums of single digits with an answer of one digit, in several forms, with examples in front, and their counterfactuals."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from nullius.stimuli.prompts import Stimuli

Operator = Literal["+", "-"]
Form = Literal["symbols", "words", "question"]
Kind = Literal["operands", "operator"]

FORMS: dict[Form, str] = {  # the answer follows, after a space
    "symbols": "{a} {sign} {b} =",
    "words": "{a} {word} {b} is",
    "question": "Q: What is {a} {word} {b}? A:",
}
WORDS: dict[Operator, str] = {"+": "plus", "-": "minus"}
SHOTS: tuple[tuple[int, Operator, int], ...] = ((2, "+", 1), (7, "-", 2))


@dataclass(frozen=True)
class Sum:
    """A problem a ± b, asked in a form behind worked examples."""

    a: int
    operator: Operator
    b: int
    form: Form = "symbols"

    @property
    def value(self) -> int:
        return self.a + self.b if self.operator == "+" else self.a - self.b

    @property
    def answer(self) -> str:
        """The answer as it follows the prompt, with its space."""
        return f" {self.value}"

    @property
    def group(self) -> str:
        """What prompts about the same numbers share."""
        return f"{min(self.a, self.b)}{self.operator}{max(self.a, self.b)}"

    @property
    def asked(self) -> str:
        """The problem alone, without its answer."""
        return FORMS[self.form].format(a=self.a, sign=self.operator, word=WORDS[self.operator], b=self.b)

    @property
    def prompt(self) -> str:
        """Worked examples in the same form, then the problem, without its answer."""
        shots = [Sum(a, operator, b, self.form) for a, operator, b in SHOTS]
        return "".join(f"{shot.asked}{shot.answer}\n" for shot in shots) + self.asked

    def spans(self) -> dict[str, tuple[int, int]]:
        """Where the operands and the operator stand in the prompt: role → first character, and the one behind the last."""
        start = len(self.prompt) - len(self.asked)
        sign = self.operator if self.form == "symbols" else WORDS[self.operator]
        at_sign = start + self.asked.index(f" {sign} ") + 1
        behind = at_sign + len(sign) + 1
        return {"first operand": (at_sign - 2, at_sign - 1), "operator": (at_sign, behind - 1), "second operand": (behind, behind + 1)}

    def told(self, form: Form) -> Sum:
        """The same problem in another form."""
        return replace(self, form=form)

    def others(self, kind: Kind) -> list[Sum]:
        """Every counterfactual of a kind: one operand changed, or the operator, each with another answer."""
        if kind == "operator":
            found = [replace(self, operator="-" if self.operator == "+" else "+")]
        else:
            found = [replace(self, a=d) for d in range(10) if d != self.a] + [replace(self, b=d) for d in range(10) if d != self.b]
        return [other for other in found if 0 <= other.value <= 9 and other.value != self.value]


def sums(form: Form = "symbols") -> Stimuli[Sum]:
    """Every problem of two digits with a one-digit answer that is not among the examples: 110 less those."""
    operators: tuple[Operator, ...] = ("+", "-")
    every = [Sum(a, operator, b, form) for operator in operators for a in range(10) for b in range(10)]
    return Stimuli.of(item for item in every if 0 <= item.value <= 9 and (item.a, item.operator, item.b) not in SHOTS)


def counterfactuals(items: Stimuli[Sum], kind: Kind, rng: np.random.Generator) -> tuple[Stimuli[Sum], Stimuli[Sum]]:
    """Return the items that have a counterfactual of a kind, and one for each, drawn at random."""
    having = [(item, item.others(kind)) for item in items]
    kept = [(item, others[int(rng.integers(len(others)))]) for item, others in having if others]
    return Stimuli.of(item for item, _ in kept), Stimuli.of(other for _, other in kept)
