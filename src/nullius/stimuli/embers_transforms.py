"""What the eleven tasks of Embers of Autoregression (McCoy et al. 2023, arXiv 2309.13638) ask for, computed by code: the right answers.

>>> shift("Stay here!", 13), keyboard("Hello world!"), pig_latin("the frogs aren't noisy.")
('Fgnl urer!', 'Jraap eptaf!', "ethay ogsfray aren'tay oisynay.")
>>> swap_articles("We took the train.", "next"), reverse_words("Open the door."), initials(["any", "new", "tree"])
('We took train the.', 'door. the Open', 'ANT')
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import Literal

ARTICLES = frozenset({"the", "a", "an"})
ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
Neighbour = Literal["next", "previous"]
UNITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen"]
UNITS += ["fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def shift(text: str, by: int) -> str:
    """Shift each letter `by` places forward in the alphabet (rot-`by`), keeping case; shift(text, -by) undoes it."""
    turned = [alphabet[by % 26 :] + alphabet[: by % 26] for alphabet in (string.ascii_lowercase, string.ascii_uppercase)]
    return text.translate(str.maketrans(string.ascii_letters, "".join(turned)))


def keyboard(text: str, by: int = 1) -> str:
    """Replace each letter by the one `by` keys to its right on a QWERTY keyboard, wrapping within the row, keeping case."""
    keys = {key: row[(i + by) % len(row)] for row in ROWS for i, key in enumerate(row)}
    both = {**keys, **{key.upper(): other.upper() for key, other in keys.items()}}
    return "".join(both.get(char, char) for char in text)


def pig_latin(text: str, suffix: str = "ay") -> str:
    """Move each word's first consonant cluster to its end and add a suffix; a word that starts with a vowel only gets the suffix.

    Lower case; y counts as a vowel except at the start of a word; punctuation after a word stays after it.
    """
    return " ".join(_pig(word, suffix) for word in text.lower().split())


def _pig(word: str, suffix: str) -> str:
    match = re.fullmatch(r"(\W*)((?:y|[^aeiouy\W\d]*))((?:['’\w-])*)(\W*)", word)
    if match is None or not (match[2] or match[3]):
        return word
    before, cluster, rest, after = match.groups()
    return f"{before}{rest}{cluster}{suffix}{after}"


def reverse_words(sentence: str) -> str:
    """Reverse the order of the words; punctuation stays on its word."""
    return " ".join(reversed(sentence.split()))


def swap_articles(sentence: str, neighbour: Neighbour) -> str:
    """Swap every article (the, a, an) with the next or the previous word; punctuation stays where it was in the sentence.

    An article without the neighbour asked for stays. Undone by the other neighbour, as long as no two articles share one.
    """
    parts = [re.fullmatch(r"(.*?)([^\w]*)", word).groups() for word in sentence.split()]  # type: ignore[union-attr]
    words, marks = [part[0] for part in parts], [part[1] for part in parts]
    articles = [i for i, word in enumerate(words) if word.lower() in ARTICLES]
    for i in reversed(articles) if neighbour == "next" else articles:
        j = i + 1 if neighbour == "next" else i - 1
        if 0 <= j < len(words):
            words[i], words[j] = words[j], words[i]
    return " ".join(word + mark for word, mark in zip(words, marks, strict=True))


def initials(words: Sequence[str], letter: int = 0) -> str:
    """Combine the first (letter=0), the second (1) or the third (2) letters of the words, in capitals."""
    return "".join(word[letter] for word in words).upper()


def in_words(number: int) -> str:
    """Spell a number from 0 to 999 in English, hyphens in compounds (eight hundred thirty-one). Raises ValueError outside."""
    if not 0 <= number < 1000:
        raise ValueError(f"in_words() spells 0 to 999, not {number}")
    if number >= 100:
        rest = f" {in_words(number % 100)}" if number % 100 else ""
        return f"{UNITS[number // 100]} hundred{rest}"
    if number < 20:
        return UNITS[number]
    return TENS[number // 10] + (f"-{UNITS[number % 10]}" if number % 10 else "")


def alternating(text: str) -> str:
    """Write lower and upper case in turn, letter by letter (tHiRtY-oNe)."""
    letters = iter(range(len(text)))
    return "".join((char.upper() if next(letters) % 2 else char.lower()) if char.isalpha() else char for char in text)


def linear(x: int, slope: tuple[int, int], offset: int) -> str:
    """Value of slope[0]/slope[1] · x + offset, written with one decimal where it is not a whole number. slope[1] divides 10."""
    tenths = 10 * slope[0] * x // slope[1] + 10 * offset
    return str(tenths // 10) if tenths % 10 == 0 else f"{tenths // 10}.{tenths % 10}"


def distance(a: str, b: str) -> int:
    """Levenshtein distance: the least number of inserted, deleted and replaced characters."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (left != right))
    return row[-1]
