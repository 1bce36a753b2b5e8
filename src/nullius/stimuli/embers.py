"""Twins of the eleven tasks of Embers of Autoregression (McCoy et al. 2023, arXiv 2309.13638), for graded measures on any subject.

A set pairs a probable with an improbable output (or input, or instruction) under one prompt; right answers come from `embers_transforms`.

| task              | probable                                | improbable                                    |
| ----------------- | --------------------------------------- | --------------------------------------------- |
| shift cipher      | rot-13; sentences                       | rot-12; sentences with one odd word, shuffled |
| Pig Latin         | -ay; sentences                          | -uv; sentences with one odd word              |
| article swapping  | odd order to English; sentences         | English to odd order; one odd word            |
| reversal          | sentences, phrases                      | one odd word, shuffled                        |
| acronyms          | first letters; words; common words      | second letters; permuted letters; rare words  |
| counting          | round numbers; common words             | their neighbours; rare words                  |
| linear function   | 9/5 x + 32                              | 7/5 x + 31                                    |
| multiplication    | digits                                  | words, CAPITALS, aLtErNaTiNg                  |
| sorting           | alphabetical (ascending)                | reverse alphabetical (descending)             |
| keyboard cipher   | rot-1, one letter on in the alphabet    | one key to the right                          |
| birthdays         | capitals of countries often written of  | of countries seldom written of                |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from nullius.stimuli import capitals
from nullius.stimuli import embers_material as material
from nullius.stimuli import embers_transforms as tf
from nullius.stimuli.embers_material import Frame, Pair
from nullius.stimuli.frequency import zipf
from nullius.stimuli.twins import Twins

Sets = dict[str, list[Twins]]
ROUND = (10, 12, 15, 20, 25, 30)  # numbers written of more than their neighbours
SLOPES = {"9/5": ((9, 5), 32), "7/5": ((7, 5), 31), "8/5": ((8, 5), 33)}


def twins(rng: np.random.Generator, n: int, *, acronym: int = 3) -> Sets:
    """Make all sets: n twins each, more of the shortest, fewer of the longest and where the material ends. acronym: number of letters (3 or 7)."""
    parts = [sentences(rng, n), phrases(rng, n), acronyms(rng, n, acronym), counting(rng, n), counting_to_ten(rng, 2 * n)]
    parts += [slopes(rng, 2 * n), products(rng, 2 * n // 3), lists(rng, n), countries(rng)]
    return {name: made for part in parts for name, made in part.items()}


def _apply(frame: Frame, pairs: Sequence[Pair], inputs: Callable[[str], str], outputs: Callable[[str], str]) -> list[Twins]:
    return [frame.twins((inputs(a), inputs(b)), (outputs(a), outputs(b)), a) for a, b in pairs]


def _same(text: str) -> str:
    return text


def sentences(rng: np.random.Generator, n: int) -> Sets:
    """Tasks on sentences and their twins with one odd word; the same on two odd ones ("equal"); copying; encodings of shuffled sentences."""
    everything = material.sentence_pairs()
    pairs = [everything[i] for i in rng.permutation(len(everything))[:n]]
    odd = material.equally_odd(pairs, rng)
    made: Sets = {"copying": _apply(material.copying(), pairs, _same, _same)}

    def decoding(name: str, frame: Frame, inputs: Callable[[str], str], outputs: Callable[[str], str] = _same, equal: bool = False) -> None:
        made[name] = _apply(frame, pairs, inputs, outputs)
        if equal:
            made[f"{name}, equal"] = _apply(frame, odd, inputs, outputs)

    decoding("reversal", material.reversal(), tf.reverse_words, equal=True)
    decoding("swapping, undone", material.article_swapping("previous", undo=True), partial(tf.swap_articles, neighbour="next"), equal=True)
    for by in (13, 12, 11, 1):
        decoding(f"rot-{by}", material.shift_decoding(by), partial(tf.shift, by=by), equal=by == 13)
    for suffix in ("ay", "uv", "iv"):
        frame = material.pig_latin(suffix, decode=True)
        decoding(f"pig -{suffix}", frame, partial(tf.pig_latin, suffix=suffix), str.lower, equal=suffix == "ay")
    for name, by in (("keyboard", 1), ("keyboard, left", -1)):
        decoding(name, material.keyboard_decoding(by), partial(tf.keyboard, by=by))
    neighbours: tuple[tf.Neighbour, ...] = ("next", "previous")
    for neighbour in neighbours:
        frame = material.article_swapping(neighbour)
        made[f"swapping, {neighbour}"] = _apply(frame, pairs, _same, partial(tf.swap_articles, neighbour=neighbour))
    mixed, again = ([material.shuffled_inside(pair, rng) for pair in pairs] for _ in range(2))
    for name, chosen in (("", pairs), (", shuffled", mixed), (", shuffled again", again)):
        made[f"rot-13 encoding{name}"] = _apply(material.shift_encoding(13), chosen, _same, partial(tf.shift, by=13))
        made[f"reversal encoding{name}"] = _apply(material.reversal(decode=False), chosen, _same, tf.reverse_words)
    return made


def phrases(rng: np.random.Generator, n: int) -> Sets:
    """Reversal of three to five words: a common phrase against its words in another order; and two other orders, as control."""
    chosen = [material.phrases()[i] for i in rng.permutation(len(material.phrases()))[:n]]
    natural, odd = [], []
    for phrase in chosen:
        first = material.shuffled(phrase, rng)
        natural.append((phrase, first))
        odd.append((material.shuffled(phrase, rng, frozenset({first})), first))
    decode, encode = (material.reversal("close to the edge", decode) for decode in (True, False))
    return {
        "phrases": _apply(decode, natural, tf.reverse_words, _same),
        "phrases, equal": _apply(decode, odd, tf.reverse_words, _same),
        "phrases encoding": _apply(encode, natural, _same, tf.reverse_words),
        "phrases encoding, equal": _apply(encode, odd, _same, tf.reverse_words),
    }


def acronyms(rng: np.random.Generator, n: int, length: int) -> Sets:
    """Acronyms that are a word against a permutation of its letters, or two permutations ("equal").

    From common or rare words, by first, second or third letters.
    """
    targets = [word for word in material.words({3: "three", 7: "seven"}[length]) if _coverable(word)]
    kinds = {"": ("common", 0), ", equal": ("common", 0), ", rare words": ("rare", 0), ", rare words again": ("rare", 0)}
    kinds |= {", second letters": ("common", 1), ", third letters": ("common", 2)}
    sets: Sets = {f"acronyms{name}": [] for name in kinds}
    chosen_targets = [targets[i] for i in rng.permutation(len(targets))[:n]]
    for word, first in zip(chosen_targets, material.halves(len(chosen_targets), rng), strict=True):
        odd = material.scramble(word, rng)
        odd_too = material.scramble(word, rng, frozenset({odd}))
        equal = (odd, odd_too) if first else (odd_too, odd)
        for name, (kind, letter) in kinds.items():
            pair = equal if name == ", equal" else (word, odd)
            chosen = {char: str(rng.choice(material.by_letter(kind, letter)[char])) for char in sorted(set(word))}
            inputs = (" ".join(chosen[char] for char in pair[0]), " ".join(chosen[char] for char in pair[1]))
            twin = material.acronyms(letter, length).twins(inputs, (pair[0].upper(), pair[1].upper()), word)
            sets[f"acronyms{name}"].append(twin)
    return sets


def _coverable(word: str) -> bool:
    """Whether words of all kinds can be found for its letters; at most one letter may come twice, so that permutations abound."""
    indices = [material.by_letter(*key) for key in (("common", 0), ("rare", 0), ("common", 1), ("common", 2))]
    return all(letter in index for letter in word for index in indices) and len(set(word)) >= len(word) - 1


def counting(rng: np.random.Generator, n: int) -> Sets:
    """Lists of common words whose length is a round number or its neighbour, or its two neighbours ("equal")."""
    frame = material.counting()
    sets: Sets = {"counting": [], "counting, equal": []}
    for i, up in enumerate(material.halves(n, rng)):
        number, step = ROUND[i % len(ROUND)], 1 if up else -1
        words = [str(word) for word in rng.choice(material.words("common"), number + 1, replace=False)]
        for name, lengths in (("", (number, number + step)), (", equal", (number - step, number + step))):
            inputs = (" ".join(words[: lengths[0]]), " ".join(words[: lengths[1]]))
            sets[f"counting{name}"].append(frame.twins(inputs, (str(lengths[0]), str(lengths[1])), f"list {i}"))
    return sets


def counting_to_ten(rng: np.random.Generator, n: int) -> Sets:
    """Lists of two to ten words, common or rare (twice, as control)."""
    frame = material.counting()
    kinds = {"counting to ten": "common", "counting to ten, rare": "rare", "counting to ten, rare again": "rare"}
    sets: Sets = {name: [] for name in kinds}
    for i in range(n):
        lengths = [int(length) for length in rng.choice(np.arange(2, 11), 2, replace=False)]
        for name, kind in kinds.items():
            a, b = (" ".join(rng.choice(material.words(kind), length, replace=False)) for length in lengths)
            sets[name].append(frame.twins((a, b), (str(lengths[0]), str(lengths[1])), f"list {i}"))
    return sets


def slopes(rng: np.random.Generator, n: int) -> Sets:
    """Linear functions of one and the same inputs."""
    sets: Sets = {f"linear {name}": [] for name in SLOPES}
    for _ in range(n):
        x, y = (int(value) * 5 for value in rng.choice(np.arange(1, 61), 2, replace=False))
        for name, (slope, offset) in SLOPES.items():
            outputs = (tf.linear(x, slope, offset), tf.linear(y, slope, offset))
            sets[f"linear {name}"].append(material.linear(slope, offset).twins((str(x), str(y)), outputs, f"{x}, {y}"))
    return sets


def products(rng: np.random.Generator, n: int) -> Sets:
    """Products of three-digit numbers written in four ways."""
    sets: Sets = {f"multiplication, {style}": [] for style in material.FORMATS}
    for _ in range(n):
        a, b, c, d = (int(value) for value in rng.choice(np.arange(101, 1000), 4, replace=False))
        for style, write in material.FORMATS.items():
            inputs = (f"{write(a)} times {write(b)}", f"{write(c)} times {write(d)}")
            twin = material.multiplication(style).twins(inputs, (str(a * b), str(c * d)), f"{a} {b} {c} {d}")
            sets[f"multiplication, {style}"].append(twin)
    return sets


def lists(rng: np.random.Generator, n: int) -> Sets:
    """One list of three or four items under two instructions: alphabetical against reverse, ascending against descending order."""
    sets: Sets = {"sorting words": [], "sorting numbers": []}
    for i in range(n):
        length = 3 + i % 2
        initial = sorted({word[0] for word in material.words("common")})
        letters = sorted(str(letter) for letter in rng.choice(initial, length, replace=False))
        words = [str(rng.choice(material.by_letter("common", 0)[letter])) for letter in letters]
        numbers = [str(value) for value in sorted(int(value) for value in rng.choice(np.arange(10, 100), length, replace=False))]
        sets["sorting words"].append(_orders(words, ("alphabetical order", "reverse alphabetical order"), ["egg", "mill", "roof"], rng))
        sets["sorting numbers"].append(_orders(numbers, ("ascending order", "descending order"), ["13", "47", "80"], rng))
    return sets


def _orders(items: list[str], orders: Pair, example: list[str], rng: np.random.Generator) -> Twins:
    while (mixed := [str(item) for item in rng.permutation(items)]) in (items, items[::-1]):
        pass
    given = ", ".join(mixed)
    shown = ", ".join([example[1], example[2], example[0]])
    up, down = (material.sorting(order, (shown, ", ".join(answer))) for order, answer in zip(orders, (example, example[::-1]), strict=True))
    made = up.twins((given, given), (", ".join(items), ", ".join(items[::-1])), given)
    return Twins((made.contexts[0], down.twins((given, given), ("", ""), given).contexts[1]), made.outputs, made.premise, given)


def countries(rng: np.random.Generator) -> Sets:
    """Capitals of the third of the countries most written of, against the third least written of; control: neighbours in frequency."""
    facts = sorted(capitals.facts(), key=lambda fact: -zipf(fact.country))
    third = len(facts) // 3

    def twin(a: capitals.Fact, b: capitals.Fact) -> Twins:
        contexts = (f"The capital of {a.country} is", f"The capital of {b.country} is")
        return Twins(contexts, (f" {a.capital}", f" {b.capital}"), "The capital is", a.country)

    far = [twin(a, facts[-third + i]) for a, i in zip(facts[:third], rng.permutation(third), strict=True)]
    near = [(facts[i], facts[i + 1]) for i in range(0, 2 * third - 1, 2)]
    return {
        "capitals": far,
        "capitals, equal": [
            twin(a, b) if first else twin(b, a) for (a, b), first in zip(near, material.halves(len(near), rng), strict=True)
        ],
    }
