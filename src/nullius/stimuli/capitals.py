"""Countries, capitals and languages (public-domain facts), and prompts whose context contradicts what a model remembers."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

import numpy as np

from nullius.stimuli.prompts import Stimuli

Relation = Literal["capital", "language"]
FirstToken = Callable[[str], int]

# A statement for the context, and a question with the stem of its answer. The wording decides much of the baseline (whether a model follows
# its context at all), so there are several, treated as random.
TEMPLATES: dict[Relation, tuple[tuple[str, str], ...]] = {
    "capital": (
        ("The capital of {country} is {answer}.", "Q: What is the capital of {country}? A: The capital of {country} is"),
        ("{answer} is the capital of {country}.", "Question: Which city is the capital of {country}? Answer: The city of"),
        ("In {country}, the capital city is {answer}.", "So what is the capital city of {country}? The capital city of {country} is"),
    ),
    "language": (
        ("The language of {country} is {answer}.", "Q: What is the language of {country}? A: The language of {country} is"),
        ("{answer} is the language of {country}.", "Question: Which language do people speak in {country}? Answer: They speak"),
        ("In {country}, people speak {answer}.", "So what do people speak in {country}? In {country}, people speak"),
    ),
}
WITH_ARTICLE = frozenset({"Gambia", "Netherlands", "Philippines", "United Arab Emirates", "United Kingdom"})


@dataclass(frozen=True)
class Fact:
    """A country with its capital and its most common official language."""

    country: str
    capital: str
    language: str

    @property
    def spoken(self) -> str:
        """The country's name within a sentence."""
        return f"the {self.country}" if self.country in WITH_ARTICLE else self.country

    def answer(self, relation: Relation = "capital") -> str:
        """Return the object of a relation."""
        return self.capital if relation == "capital" else self.language

    def question(self, template: int = 0, relation: Relation = "capital") -> str:
        """Return the question with the stem of its answer, without any context."""
        return TEMPLATES[relation][template][1].format(country=self.spoken)

    def told(self, answer: str, template: int = 0, relation: Relation = "capital") -> str:
        """Return the question after a context that gives `answer`, true or not."""
        return f"{TEMPLATES[relation][template][0].format(country=self.spoken, answer=answer)} {self.question(template, relation)}"


@dataclass(frozen=True)
class Conflict:
    """A prompt whose context gives another country's answer; both answers with their leading space."""

    fact: Fact
    template: int
    prompt: str
    context_answer: str
    memory_answer: str

    @property
    def country(self) -> str:
        """The country asked about: what prompts share."""
        return self.fact.country


@cache
def facts() -> Stimuli[Fact]:
    """Return all countries, alphabetically, without those whose capital repeats the country's name (an echo would look like memory)."""
    with files("nullius.stimuli").joinpath("data/capitals.csv").open("r", encoding="utf-8") as file:
        rows = Stimuli.of(Fact(**row) for row in csv.DictReader(file))
    return rows.where(lambda fact: not _echo(fact.country, fact.capital))


def _echo(country: str, capital: str) -> bool:
    inside = [word for word in country.split() if len(word) > 3 and word in capital]
    return bool(inside) or any(len(word) > 3 and word in country for word in capital.split())


def tellable(known: Stimuli[Fact], first_token: FirstToken, relation: Relation = "capital") -> Stimuli[Fact]:
    """Return the facts whose answer does not begin with the token that the country's name begins with (in this subject's vocabulary)."""
    return known.where(lambda fact: first_token(" " + fact.answer(relation)) != first_token(" " + fact.country))


def conflicts(
    known: Stimuli[Fact], each: int, rng: np.random.Generator, first_token: FirstToken, relation: Relation = "capital"
) -> Stimuli[Conflict]:
    """Pair each country with the answers of `each` other ones, going through the templates from a random one.

    first_token: token id of a continuation. Two answers that begin with one token are never paired (San José, San Salvador), nor are
    two countries of one language.
    """
    made = []
    tokens = {fact.country: first_token(" " + fact.answer(relation)) for fact in known}
    for fact in known:
        others = [other for other in known if tokens[other.country] != tokens[fact.country]]
        drawn = rng.choice(len(others), min(each, len(others)), replace=False)
        start = int(rng.integers(len(TEMPLATES[relation])))
        for turn, index in enumerate(drawn):
            template = (start + turn) % len(TEMPLATES[relation])
            told = others[index].answer(relation)
            made.append(Conflict(fact, template, fact.told(told, template, relation), f" {told}", f" {fact.answer(relation)}"))
    return Stimuli.of(made)
