"""Countries, capitals and languages (public-domain facts), and prompts in which the context contradicts what a model remembers."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

import numpy as np

Relation = Literal["capital", "language"]

# Wording decides much of the baseline (whether a model follows the context at all), so several templates are used and treated as random.
TEMPLATES: dict[Relation, tuple[tuple[str, str], ...]] = {
    "capital": (
        ("The capital of {country} is {answer}.", "Q: What is the capital of {country}? A: The capital of {country} is"),
        ("{answer} is the capital of {country}.", "Question: Which city is the capital of {country}? Answer: It is"),
        ("In {country}, the capital city is {answer}.", "So what is the capital city of {country}? The capital city of {country} is"),
    ),
    "language": (
        ("The language of {country} is {answer}.", "Q: What is the language of {country}? A: The language of {country} is"),
        ("{answer} is the language of {country}.", "Question: Which language do people speak in {country}? Answer: They speak"),
        ("In {country}, people speak {answer}.", "So what do people speak in {country}? In {country}, people speak"),
    ),
}


@dataclass(frozen=True)
class Fact:
    """A country with its capital and its main language."""

    country: str
    capital: str
    language: str

    def answer(self, relation: Relation) -> str:
        """Return the object of a relation."""
        return self.capital if relation == "capital" else self.language


@dataclass(frozen=True)
class Conflict:
    """A prompt whose context gives another country's answer. `plain` is the same question without context; answers have a leading space."""

    country: str
    context_answer: str
    memory_answer: str
    template: int
    prompt: str
    plain: str


@cache
def facts() -> tuple[Fact, ...]:
    """Return all countries, alphabetically, without those whose capital repeats the country's name (an echo would look like memory)."""
    with files("nullius.stimuli").joinpath("data/capitals.csv").open("r", encoding="utf-8") as file:
        rows = [Fact(**row) for row in csv.DictReader(file)]
    return tuple(fact for fact in rows if fact.country.split()[0] not in fact.capital)


def plain(fact: Fact, template: int = 0, relation: Relation = "capital") -> str:
    """Return the question without any context."""
    return TEMPLATES[relation][template][1].format(country=fact.country)


def conflicts(
    known: Sequence[Fact], each: int, rng: np.random.Generator, first_token: Callable[[str], int], relation: Relation = "capital"
) -> list[Conflict]:
    """Pair each country with the answers of `each` other ones, going through the templates.

    first_token: token id of a continuation; pairs whose answers share the first token are never made (San José, San Salvador).
    """
    made = []
    tokens = {fact.country: first_token(" " + fact.answer(relation)) for fact in known}
    for fact in known:
        others = [other for other in known if tokens[other.country] != tokens[fact.country]]
        chosen = rng.choice(len(others), min(each, len(others)), replace=False)
        for turn, index in enumerate(chosen):
            template = turn % len(TEMPLATES[relation])
            statement, question = TEMPLATES[relation][template]
            words = {"country": fact.country, "answer": others[index].answer(relation)}
            prompt = f"{statement.format(**words)} {question.format(**words)}"
            answers = (f" {others[index].answer(relation)}", f" {fact.answer(relation)}")
            made.append(Conflict(fact.country, *answers, template, prompt, question.format(**words)))
    return made


def split(known: Sequence[Fact], share: float, rng: np.random.Generator) -> tuple[list[Fact], list[Fact]]:
    """Split countries at random into a part to choose on and a part to test on."""
    order = rng.permutation(len(known))
    cut = round(share * len(known))
    return [known[i] for i in order[:cut]], [known[i] for i in order[cut:]]
