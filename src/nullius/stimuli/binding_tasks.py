"""Ten binding tasks: their categories, words and sentences. Nine bind three categories, `boxes` two. The words stand in data/binding_words.txt."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

FILLERS = (
    "That was as usual.", "Nobody said a word about it.", "It had been so for a long time.", "There was nothing else to see.", "Time went by slowly.",
    "All was quiet after that.", "It was not a surprise to anyone.", "Then there was a short pause.",
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """categories: their names. pools: words of each. group: the sentence that tells one group.

    asks, vague: for each category the word that asks for it ("who") and the one that leaves it open ("someone"); a question is the sentence with the
    answer's entity asked for, the key's named, and any third left open. completions: (key, answer) → a sentence to be gone on with, instead.
    """

    name: str
    categories: tuple[str, ...]
    pools: tuple[tuple[str, ...], ...]
    group: str
    asks: tuple[str, ...] = ()
    vague: tuple[str, ...] = ()
    completions: tuple[tuple[int, int, str], ...] = ()

    def question(self, key: int, answer: int, word: str) -> str:
        """The question for category `answer` by a word of category `key`; the next word answers it."""
        for known_key, known_answer, text in self.completions:
            if (known_key, known_answer) == (key, answer):
                return text.format(word)
        said = [word if i == key else self.asks[i] if i == answer else self.vague[i] for i in range(len(self.categories))]
        return f"Question: {self.group.format(**dict(zip(self.categories, said, strict=True)))}? Answer:"


def _words() -> dict[str, tuple[str, ...]]:
    lines = resources.files("nullius.stimuli").joinpath("data/binding_words.txt").read_text("utf-8").splitlines()
    return {name: tuple(words.split()) for name, words in (line.split(": ") for line in lines)}


_WORDS = _words()
_SENTENCES = {
    "filling liquids": "{person} filled the {vessel} with {liquid}",
    "music": "{person} played {genre} on the {instrument}",
    "people and objects": "{person} left the {object} in the {place}",
    "programming": "{person} wrote a {program} in {language}",
    "laboratory": "{person} put the {tool} next to the {object}",
    "chemistry": "{person} heated {chemical} in the {vessel}",
    "transport": "{person} took the {vehicle} to {city}",
    "sports": "{person} watched {sport} in {city}",
    "astronomy": "{person} observed {body} in {month}",
}
_UNCOUNTED = ("liquid", "genre", "language", "chemical", "city", "sport", "body", "month")
_OPEN = {
    "person": ("who", "someone"),
    **dict.fromkeys(_UNCOUNTED, ("what", "something")),
}


def _task(name: str, sentence: str) -> Task:
    categories = tuple(part.split("{")[1] for part in sentence.split("}")[:-1])
    asks, vague = zip(*(_OPEN.get(category, ("which", "one")) for category in categories), strict=True)
    return Task(name, categories, tuple(_WORDS[category] for category in categories), sentence, asks, vague)


_BOXES = Task(
    "boxes",
    ("object", "label"),
    (_WORDS["object"], _WORDS["label"]),
    "the {object} is in Box {label}",
    completions=((1, 0, "Box {} contains the"), (0, 1, "The {} is in Box")),
)
TASKS: dict[str, Task] = {"boxes": _BOXES, **{name: _task(name, sentence) for name, sentence in _SENTENCES.items()}}
