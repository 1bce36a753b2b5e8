"""Sentences, phrases, words and prompts of the Embers tasks: written for nullius, or counted with `wordfreq`.

A prompt is an instruction with one worked example, a line with the input, and the label after which the answer comes.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np

from nullius.stimuli import embers_transforms as tf
from nullius.stimuli.frequency import zipf
from nullius.stimuli.twins import Twins

Pair = tuple[str, str]
Neighbour = tf.Neighbour
EXAMPLE = "She put the letter in a drawer."


@dataclass(frozen=True)
class Frame:
    """A task's prompt around an input. label: the word before the answer. quoted: whether inputs' answers stand in quotation marks."""

    before: str
    after: str
    label: str
    quoted: bool = True

    def prompt(self, text: str) -> str:
        """The prompt for an input, ending with the label and a colon."""
        return f"{self.before}{text}{self.after}{self.label}:"

    @property
    def _marks(self) -> tuple[str, str]:
        return (' "', '"') if self.quoted else (" ", "\n")

    def twins(self, inputs: Pair, outputs: Pair, group: str) -> Twins:
        """Cross two inputs with their two outputs; the premise is the label alone."""
        opening, closing = self._marks
        contexts = (self.prompt(inputs[0]) + opening, self.prompt(inputs[1]) + opening)
        return Twins(contexts, (outputs[0] + closing, outputs[1] + closing), f"{self.label}:{opening}", group)


def _example(instruction: str, given: str, answer: str, example: Pair, quoted: bool = True) -> Frame:
    """An instruction, one solved case, then the open one; `given` and `answer` label the lines."""
    mark = '"' if quoted else ""
    shown = f"{given}: {mark}{example[0]}{mark}\n{answer}: {mark}{example[1]}{mark}\n\n"
    return Frame(f"{instruction}\n{shown}{given}: {mark}", f"{mark}\n", answer, quoted)


def copying(example: str = EXAMPLE) -> Frame:
    """The control: output = input, nothing to transform."""
    return _example("Repeat each text exactly as it is.", "Text", "Copy", (example, example))


def shift_decoding(by: int) -> Frame:
    """Decode rot-`by`."""
    text = (
        f"Rot-{by} is a cipher that shifts each letter {by} {'place' if by == 1 else 'places'} forward in the alphabet. Decode the message."
    )
    return _example(text, f"Rot-{by} text", "Original text", (tf.shift(EXAMPLE, by), EXAMPLE))


def shift_encoding(by: int) -> Frame:
    """Encode in rot-`by`."""
    text = (
        f"Rot-{by} is a cipher that shifts each letter {by} {'place' if by == 1 else 'places'} forward in the alphabet. Encode the message."
    )
    return _example(text, "Original text", f"Rot-{by} text", (EXAMPLE, tf.shift(EXAMPLE, by)))


def keyboard_decoding(by: int) -> Frame:
    """Decode the keyboard cipher (by=1: right neighbour), or its mirror image (by=-1: left neighbour)."""
    side, last, first = ("right", "last", "first") if by > 0 else ("left", "first", "last")
    text = (
        f"The keyboard cipher replaces each letter by the one to its {side} on a QWERTY keyboard (the {last} of a row by the {first} of that "
        "row). Decode the message."
    )
    return _example(text, "Cipher text", "Original text", (tf.keyboard(EXAMPLE, by), EXAMPLE))


def steps(name: str, encode: Callable[[str], str]) -> Frame:
    """Encode word by word and letter by letter; the last line holds the message (the paper's prompt for the keyboard cipher)."""
    rule = {
        "rot-1": "each letter is replaced by the next one of the alphabet (z by a)",
        "the keyboard cipher": "each letter is replaced by the one to its right on a QWERTY keyboard (the last of a row by the first of that row)",
    }[name]
    shown = []
    for word in ("Old", "map!"):
        letters = "\n".join(f"  {letter} becomes {encode(letter)}" for letter in word)
        shown.append(f"{word}\n{letters}\n  {word} becomes {encode(word)}")
    worked = "\n".join(shown)
    text = f"In {name}, {rule}. Encode word by word and letter by letter, and write the coded message on the last line.\n"
    example = f'Message: "Old map!"\nSteps:\n{worked}\nCoded message: "{encode("Old map!")}"\n\n'
    return Frame(f'{text}{example}Message: "', '"\n', "Steps", quoted=False)


def pig_latin(suffix: str, decode: bool) -> Frame:
    """Decode or encode Pig Latin with a suffix (-ay; any other one is called Boar Etruscan, as in the paper)."""
    name = "Pig Latin" if suffix == "ay" else "Boar Etruscan"
    text = (
        f"In {name} the consonants at the start of each word move to its end, and -{suffix} is added; "
        f"a word that starts with a vowel only gets -{suffix}. Translate {f'from {name} into English' if decode else f'into {name}'}."
    )
    plain, coded = EXAMPLE.lower(), tf.pig_latin(EXAMPLE, suffix)
    return _example(text, name, "English", (coded, plain)) if decode else _example(text, "English", name, (plain, coded))


def article_swapping(neighbour: Neighbour, undo: bool = False) -> Frame:
    """Swap each article with the next or the previous word. undo: inputs are those in which the opposite was done, answers are English."""
    text = f'Swap every article ("the", "a" or "an") with the {neighbour} word.'
    given = tf.swap_articles(EXAMPLE, "next" if neighbour == "previous" else "previous") if undo else EXAMPLE
    return _example(text, "Input", "Output", (given, tf.swap_articles(given, neighbour)))


def reversal(example: str = EXAMPLE, decode: bool = True) -> Frame:
    """Reverse the order of words; decoding gives a sentence, encoding takes one."""
    text = "Reverse the order of the words."
    backwards = tf.reverse_words(example)
    pair = (backwards, example) if decode else (example, backwards)
    return _example(text, "Reversed" if decode else "Original", "Original" if decode else "Reversed", pair)


def acronyms(letter: int, length: int) -> Frame:
    """Combine the first (0), second (1) or third (2) letters of words."""
    words = ["brave", "onion", "elbow", "truck", "apple", "lemon", "ivory"][:length]
    which = ("first", "second", "third")[letter]
    text = f"Combine the {which} letters of the words, in capital letters without spaces."
    return _example(text, "Words", f"{which.capitalize()} letters", (" ".join(words), tf.initials(words, letter)))


def counting(what: str = "words") -> Frame:
    """Count the words (or the letters) of a list."""
    listed = "moon table river" if what == "words" else "kkk"
    return _example(f"Count the {what} in the list.", "List", f"Number of {what}", (listed, "3"), quoted=False)


def linear(slope: tuple[int, int], offset: int) -> Frame:
    """Multiply by a fraction and add."""
    text = f"Multiply the number by {slope[0]}/{slope[1]} and add {offset}."
    return _example(text, "Number", "Result", ("15", tf.linear(15, slope, offset)), quoted=False)


FORMATS: dict[str, Callable[[int], str]] = {
    "digits": str,
    "words": tf.in_words,
    "capitals": lambda number: tf.in_words(number).upper(),
    "alternating": lambda number: tf.alternating(tf.in_words(number)),
}


def multiplication(style: str) -> Frame:
    """Multiply two numbers written in digits, words, capitals or aLtErNaTiNg capitals."""
    write = FORMATS[style]
    return _example("Multiply the two numbers.", "Problem", "Product", (f"{write(312)} times {write(203)}", "63336"), quoted=False)


def sorting(order: str, example: Pair) -> Frame:
    """Sort a comma-separated list in an order, given in words."""
    return _example(f"Sort each list in {order}.", "List", "Sorted", example, quoted=False)


def _lines(name: str) -> list[str]:
    text = files("nullius.stimuli").joinpath(f"data/{name}").read_text("utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@cache
def sentence_pairs() -> tuple[Pair, ...]:
    """Probable sentences, each with its twin: one word changed to one of similar form that is improbable there."""
    pattern = re.compile(r"\[(.+?)\|(.+?)\]")
    return tuple((pattern.sub(r"\1", line), pattern.sub(r"\2", line)) for line in _lines("embers_sentences.txt"))


@cache
def phrases() -> tuple[str, ...]:
    """Common phrases of three to five words."""
    return tuple(_lines("embers_phrases.txt"))


@cache
def words(kind: str) -> tuple[str, ...]:
    """Words of a kind: common, rare; three, seven (common words of that many letters, as acronyms)."""
    rows = csv.DictReader(_lines("embers_words.csv"))
    return tuple(dict.fromkeys(word for row in rows if row["kind"] == kind for word in row["words"].split()))


@cache
def births() -> tuple[tuple[str, str, str], ...]:
    """(known | little-known, name, date of birth)."""
    return tuple((row["fame"], row["name"], row["born"]) for row in csv.DictReader(_lines("embers_births.csv")))


@cache
def by_letter(kind: str, letter: int) -> dict[str, tuple[str, ...]]:
    """Words of a kind under their first (0), second (1) or third (2) letter."""
    index: dict[str, list[str]] = {}
    for word in (word for word in words(kind) if len(word) > letter):
        index.setdefault(word[letter], []).append(word)
    return {key: tuple(found) for key, found in index.items()}


def scramble(word: str, rng: np.random.Generator, taken: frozenset[str] = frozenset()) -> str:
    """The least frequent of a word's permutations (of a sample of them, for long words), never one of `taken`."""
    if len(word) <= 4:
        found = sorted({"".join(letters) for letters in itertools.permutations(word)} - {word} - taken)
    else:
        found = sorted({"".join(rng.permutation(list(word))) for _ in range(20)} - {word} - taken)
    return min(found, key=lambda letters: (zipf(letters), letters))


def shuffled(text: str, rng: np.random.Generator, taken: frozenset[str] = frozenset()) -> str:
    """The words in another random order, never that of the text or of `taken`. Raises ValueError for a text without another order."""
    parts = text.split()
    for _ in range(200):
        other = " ".join(rng.permutation(parts))
        if other != text and other not in taken:
            return other
    raise ValueError(f"'{text}' has no other order of words")


def halves(n: int, rng: np.random.Generator) -> list[bool]:
    """True for a random half of n items: for which of two equals comes first, balanced so that a taste for one of them cancels."""
    return [bool(i % 2) for i in rng.permutation(n)]


def equally_odd(pairs: Sequence[Pair], rng: np.random.Generator) -> list[Pair]:
    """Pairs of two improbable sentences, in either order equally often: the twin of each pair, and the same with the odd word of another pair.

    Neither place is the more probable: the null case of a measure of attraction.
    """
    odd = []
    for pair in pairs:
        first, second = (text.split() for text in pair)
        place = next(i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b)
        odd.append((second, place, second[place].rstrip(".,")))
    made = []
    for i, ((words_, place, word), own_first) in enumerate(zip(odd, halves(len(odd), rng), strict=True)):
        foreign = odd[(i + 1) % len(odd)][2]
        other = [*words_[:place], words_[place].replace(word, foreign), *words_[place + 1 :]]
        two = (" ".join(words_), " ".join(other))
        made.append(two if own_first else two[::-1])
    return made


def shuffled_inside(pair: Pair, rng: np.random.Generator) -> Pair:
    """Both twins with all words but the first and the last in one and the same other order."""
    n = len(pair[0].split())
    order = [0, *(rng.permutation(n - 2) + 1), n - 1]
    first, second = (text.split() for text in pair)
    return " ".join(first[i] for i in order), " ".join(second[i] for i in order)
