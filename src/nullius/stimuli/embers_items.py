"""The eleven tasks of Embers of Autoregression as the paper gives them: a prompt, an answer to be written, and the rule that scores it.

Items come in pairs that differ in one factor (task, output or input probability); both members share a group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nullius.stimuli import embers, embers_scoring
from nullius.stimuli import embers_material as material
from nullius.stimuli import embers_transforms as tf
from nullius.stimuli.embers_material import Frame
from nullius.stimuli.embers_scoring import Rule

Factor = Literal["output", "task", "input"]
Level = Literal["high", "low"]
FACTORS: tuple[Factor, ...] = ("output", "task", "input")


@dataclass(frozen=True)
class Item:
    """One question with its answer. tokens: how long a reply may be."""

    task: str
    factor: Factor
    level: Level
    group: str
    prompt: str
    gold: str
    rule: Rule
    tokens: int = 80

    def right(self, reply: str) -> bool:
        """Whether a reply counts as right by the task's rule."""
        return self.rule(reply, self.gold)


def items(rng: np.random.Generator, n: int) -> list[Item]:
    """Make n pairs for each task and factor of the paper's table."""
    return [*_sentences(rng, n), *_acronyms(rng, n), *_counting(rng, n), *_arithmetic(rng, n), *_sorting(rng, n), *_birthdays(rng, n)]


def _pairs(
    task: str,
    factor: Factor,
    frames: tuple[Frame, Frame],
    inputs: Sequence[tuple[str, str]],
    golds: Sequence[tuple[str, str]],
    rule: Rule,
    tokens: int = 80,
) -> list[Item]:
    made = []
    levels: tuple[Level, Level] = ("high", "low")
    for i, (texts, answers) in enumerate(zip(inputs, golds, strict=True)):
        for level, frame, text, gold in zip(levels, frames, texts, answers, strict=True):
            made.append(Item(task, factor, level, f"{task} {i}", frame.prompt(text), gold, rule, tokens))
    return made


def _sentences(rng: np.random.Generator, n: int) -> list[Item]:
    everything = material.sentence_pairs()
    pairs = [everything[i] for i in rng.permutation(len(everything))[:n]]
    mixed = [(pair[0], material.shuffled_inside(pair, rng)[0]) for pair in pairs]
    same = [(pair[0], pair[0]) for pair in pairs]
    made: list[Item] = []

    def add(
        task: str,
        factor: Factor,
        frames: tuple[Frame, Frame],
        texts: Sequence[tuple[str, str]],
        inputs: tuple[Callable[[str], str], Callable[[str], str]],
        outputs: tuple[Callable[[str], str], Callable[[str], str]],
        rule: Rule = embers_scoring.contains,
        tokens: int = 80,
    ) -> None:
        given = [(inputs[0](a), inputs[1](b)) for a, b in texts]
        wanted = [(outputs[0](a), outputs[1](b)) for a, b in texts]
        made.extend(_pairs(task, factor, frames, given, wanted, rule, tokens))

    def plain(text: str) -> str:
        return text

    def shift(by: int) -> Callable[[str], str]:
        return lambda text: tf.shift(text, by)

    def pig(suffix: str) -> Callable[[str], str]:
        return lambda text: tf.pig_latin(text, suffix)

    def odd(text: str) -> str:
        return tf.swap_articles(text, "next")

    unshift, encode = (material.shift_decoding(13), material.shift_encoding(13))
    add("shift cipher", "output", (unshift, unshift), mixed, (shift(13),) * 2, (plain,) * 2)
    add("shift cipher", "task", (unshift, material.shift_decoding(12)), same, (shift(13), shift(12)), (plain,) * 2)
    add("shift cipher", "input", (encode, encode), mixed, (plain,) * 2, (shift(13),) * 2)
    ay, uv = (material.pig_latin(suffix, decode=True) for suffix in ("ay", "uv"))
    decoded = embers_scoring.pig_latin_decoded
    add("Pig Latin", "output", (ay, ay), mixed, (pig("ay"),) * 2, (str.lower,) * 2, decoded)
    add("Pig Latin", "task", (ay, uv), same, (pig("ay"), pig("uv")), (str.lower,) * 2, decoded)
    undo, swap = material.article_swapping("previous", undo=True), material.article_swapping("next")
    add("article swapping", "output", (undo, undo), mixed, (odd,) * 2, (plain,) * 2)
    add("article swapping", "task", (undo, swap), same, (odd, plain), (plain, odd))
    back, forth = material.reversal(), material.reversal(decode=False)
    add("reversal", "output", (back, back), mixed, (tf.reverse_words,) * 2, (plain,) * 2)
    add("reversal", "input", (forth, forth), mixed, (plain,) * 2, (tf.reverse_words,) * 2)
    steps = (material.steps("rot-1", lambda text: tf.shift(text, 1)), material.steps("the keyboard cipher", tf.keyboard))
    add("keyboard cipher", "task", steps, same, (plain,) * 2, (shift(1), tf.keyboard), embers_scoring.last_line, 600)
    return made


def _acronyms(rng: np.random.Generator, n: int) -> list[Item]:
    sets = embers.acronyms(rng, n, 7)
    first = sets["acronyms"]
    rule, made = embers_scoring.contains, []

    def member(name: Factor, level: Level, i: int, context: str, output: str) -> Item:
        prompt = context.removesuffix(' "')
        return Item("acronyms", name, level, f"acronyms {i}", prompt, output.removesuffix('"'), rule, 20)

    for i, twin in enumerate(first):
        made += [
            member("output", "high", i, twin.contexts[0], twin.outputs[0]),
            member("output", "low", i, twin.contexts[1], twin.outputs[1]),
        ]
        factors: tuple[tuple[Factor, str], ...] = (("task", "acronyms, second letters"), ("input", "acronyms, rare words"))
        for name, other in factors:
            made += [
                member(name, "high", i, twin.contexts[0], twin.outputs[0]),
                member(name, "low", i, sets[other][i].contexts[0], sets[other][i].outputs[0]),
            ]
    return made


def _counting(rng: np.random.Generator, n: int) -> list[Item]:
    """Lists of up to a hundred words: round numbers and their neighbours; common and rare words."""
    frame, output, golds, inputs = material.counting(), [], [], []
    counts = []
    for i in range(n):
        number = (10, 20, 30, 40, 50, 60, 70, 80, 90, 100)[i % 10]
        other = number + (1 if rng.random() < 0.5 else -1)
        words = [str(word) for word in rng.choice(material.words("common"), max(number, other), replace=False)]
        output.append((" ".join(words[:number]), " ".join(words[:other])))
        golds.append((str(number), str(other)))
        length = int(rng.integers(2, 31))
        inputs.append((_listed(rng, "common", length), _listed(rng, "rare", length)))
        counts.append((str(length), str(length)))
    rule = embers_scoring.number
    return [
        *_pairs("counting", "output", (frame, frame), output, golds, rule, 20),
        *_pairs("counting", "input", (frame, frame), inputs, counts, rule, 20),
    ]


def _listed(rng: np.random.Generator, kind: str, length: int) -> str:
    return " ".join(rng.choice(material.words(kind), length, replace=False))


def _arithmetic(rng: np.random.Generator, n: int) -> list[Item]:
    numbers = [int(x) for x in rng.integers(1, 500, n)]
    common, rare = embers.SLOPES["9/5"], embers.SLOPES["7/5"]
    frames = (material.linear(*common), material.linear(*rare))
    values = [(tf.linear(x, *common), tf.linear(x, *rare)) for x in numbers]
    rule = embers_scoring.number
    made = _pairs("linear function", "task", frames, [(str(x), str(x)) for x in numbers], values, rule, 40)
    factors = [(int(a), int(b)) for a, b in rng.integers(101, 1000, (n, 2))]
    golds = [(str(a * b), str(a * b)) for a, b in factors]
    styles = ("digits", "alternating")
    inputs = [tuple(f"{material.FORMATS[style](a)} times {material.FORMATS[style](b)}" for style in styles) for a, b in factors]
    written = (material.multiplication(styles[0]), material.multiplication(styles[1]))
    return made + _pairs("multiplication", "input", written, inputs, golds, rule, 40)  # type: ignore[arg-type]


def _sorting(rng: np.random.Generator, n: int) -> list[Item]:
    """Ten to twenty words; alphabetical against reverse order."""
    up, down = (
        material.sorting(order, ("mill, roof, egg", answer))
        for order, answer in (("alphabetical order", "egg, mill, roof"), ("reverse alphabetical order", "roof, mill, egg"))
    )
    inputs, golds = [], []
    for _ in range(n):
        words = [str(word) for word in rng.choice(material.words("common"), int(rng.integers(10, 21)), replace=False)]
        inputs.append((", ".join(words), ", ".join(words)))
        golds.append((", ".join(sorted(words)), ", ".join(sorted(words, reverse=True))))
    return _pairs("sorting", "task", (up, down), inputs, golds, embers_scoring.listed, 160)


def _birthdays(rng: np.random.Generator, n: int) -> list[Item]:
    known, little = ([(name, born) for fame, name, born in material.births() if fame == kind] for kind in ("known", "little-known"))
    chosen = rng.permutation(min(len(known), len(little)))[:n]
    inputs = [(known[i][0], little[i][0]) for i in chosen]
    golds = [(known[i][1], little[i][1]) for i in chosen]
    frame = Frame("On what date was ", ' born? Write it as "Month Day, Year", for example "July 19, 1743".\n', "Answer", quoted=False)
    return _pairs("birthdays", "input", (frame, frame), inputs, golds, embers_scoring.date, 24)


def another(items_: Sequence[Item], index: int) -> Item:
    """The next item of the same task, factor and level with a different answer: whose gold a reply must not match by luck.

    Raises ValueError when all have the same answer.
    """
    item = items_[index]
    for step in range(1, len(items_)):
        other = items_[(index + step) % len(items_)]
        if (other.task, other.factor, other.level) == (item.task, item.factor, item.level) and other.gold != item.gold:
            return other
    raise ValueError(f"all items of {item.task} have the answer {item.gold}")
