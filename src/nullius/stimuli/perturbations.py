"""Impossible languages: systematic deformations of sentences (Kallini et al. 2024, arXiv 2401.06416), and how to undo them.

Three families, each with an unperturbed control of its own. *Shuffle* reorders tokens: anew for each sentence, by a rule of the sentence's length
alone, within windows, or even places first. *Reverse* puts in a marker and turns round what follows it, or everything. *Hop* writes the number of a
present verb as a marker of its own: at once, four tokens later, or four words later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import lgamma
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nullius.errors import UsageError, nearest
from nullius.stimuli.agreement import CONTINUED, PUNCTUATION, Sentence, lemma

Ints = NDArray[np.int64]
TURN, SINGULAR, PLURAL = "[R]", "[sg]", "[pl]"
MARKERS = (TURN, SINGULAR, PLURAL)
HOP = 4  # tokens or words between a verb and its marker
WINDOW_SEED = 0  # of the one permutation that serves every window of a length


@dataclass(frozen=True)
class Perturbed:
    """words: the tokens of the deformed sentence. places: where each token of the original came to stand. marker: where a marker was put in, or
    −1."""

    words: tuple[str, ...]
    places: tuple[int, ...]
    marker: int = -1


@dataclass(frozen=True)
class Language:
    """name, family, and its deformation: (sentence, generator of this sentence) → Perturbed, or None where its marker has no room.

    control: the unperturbed language of its family. reversible: whether the order can be undone knowing the rule alone.
    """

    name: str
    family: Literal["shuffle", "reverse", "hop"]
    control: str
    perturb: Callable[[Sentence, np.random.Generator], Perturbed | None]
    reversible: bool = True


def generator(seed: int, i: int) -> np.random.Generator:
    """The generator of sentence i: the same for every language, so that markers of one family stand at the same places."""
    return np.random.default_rng([seed, i])


@cache
def _fixed(n: int, seed: int) -> tuple[int, ...]:
    """A permutation of n that hangs on n and the seed alone: re-seeded for each sentence, or it would not be a rule."""
    return tuple(np.random.default_rng(seed).permutation(n).tolist())


def even_odd(n: int) -> list[int]:
    """Even places first, then odd ones: the order in which the original's tokens are written."""
    return [*range(0, n, 2), *range(1, n, 2)]


def local(n: int, window: int) -> list[int]:
    """Each window of `window` tokens, and the rest, in one fixed order of its length."""
    order: list[int] = []
    for start in range(0, n, window):
        order += [start + i for i in _fixed(min(window, n - start), WINDOW_SEED)]
    return order


def _ordered(words: Sequence[str], order: Sequence[int]) -> Perturbed:
    return Perturbed(tuple(words[i] for i in order), tuple(np.argsort(order).tolist()))


def _shuffle(name: str, order: Callable[[int, np.random.Generator], Sequence[int]], reversible: bool = True) -> Language:
    return Language(name, "shuffle", "NoShuffle", lambda s, rng: _ordered(s.words, order(len(s.words), rng)), reversible)


def _reverse(name: str, turned: Literal["nothing", "rest", "all"]) -> Language:
    def perturb(s: Sentence, rng: np.random.Generator) -> Perturbed:
        at, n = int(rng.integers(len(s.words) + 1)), len(s.words)
        words = [*s.words[:at], TURN, *s.words[at:]]
        order = list(range(n + 1))
        if turned == "rest":
            order = [*order[: at + 1], *reversed(order[at + 1 :])]
        elif turned == "all":
            order.reverse()
        places = np.argsort(order).tolist()
        return Perturbed(tuple(words[i] for i in order), (*places[:at], *places[at + 1 :]), places[at])

    return Language(name, "reverse", "NoReverse", perturb)


def room(words: Sequence[str], verb: int, counted: Literal["none", "tokens", "words"]) -> int:
    """Where the marker of a verb belongs, as an index into the sentence without it; −1 where fewer than one token would follow."""
    at = verb + 1
    if counted == "tokens":
        at += HOP
    elif counted == "words":
        seen = 0
        while at < len(words) and seen < HOP:
            seen += not words[at].startswith(CONTINUED) and words[at] not in PUNCTUATION
            at += 1
        while at < len(words) and words[at].startswith(CONTINUED):
            at += 1
    return at if at < len(words) else -1


def _hop(name: str, counted: Literal["none", "tokens", "words"]) -> Language:
    def perturb(s: Sentence, _rng: np.random.Generator) -> Perturbed | None:
        if not s.present:
            return Perturbed(s.words, tuple(range(len(s.words))))
        if min(room(s.words, s.verb, kind) for kind in ("none", "tokens", "words")) < 0:  # the same sentences in all three
            return None
        at = room(s.words, s.verb, counted)
        words = list(s.words)
        words[s.verb] = lemma(words[s.verb])
        words.insert(at, PLURAL if s.plural else SINGULAR)
        return Perturbed(tuple(words), tuple(i + (i >= at) for i in range(len(s.words))), at)

    return Language(name, "hop", "NoHop", perturb)


_ALL = (
    _shuffle("NoShuffle", lambda n, _: range(n)),
    _shuffle("NondeterministicShuffle", lambda n, rng: rng.permutation(n).tolist(), reversible=False),
    *(_shuffle(f"DeterministicShuffle{s}", lambda n, _, s=s: _fixed(n, s)) for s in (21, 57, 84)),  # type: ignore[misc]
    *(_shuffle(f"LocalShuffle{w}", lambda n, _, w=w: local(n, w)) for w in (3, 5, 10)),  # type: ignore[misc]
    _shuffle("EvenOddShuffle", lambda n, _: even_odd(n)),
    _reverse("NoReverse", "nothing"),
    _reverse("PartialReverse", "rest"),
    _reverse("FullReverse", "all"),
    _hop("NoHop", "none"),
    _hop("TokenHop", "tokens"),
    _hop("WordHop", "words"),
)
LANGUAGES = {each.name: each for each in _ALL}


def language(name: str) -> Language:
    """Return a language by name. Raises UsageError, with the nearest, when there is none."""
    if name not in LANGUAGES:
        raise UsageError(f"no language '{name}'{nearest(name, LANGUAGES)}; languages: {', '.join(LANGUAGES)}")
    return LANGUAGES[name]


def restore(name: str, words: Sequence[str]) -> tuple[str, ...]:
    """Undo a deformation, knowing its rule: the original's tokens without markers (of *Hop* with bare verbs).

    Raises UsageError for a language whose order is not a rule.
    """
    kind = language(name)
    if not kind.reversible:
        raise UsageError(f"{name} cannot be undone: its order is drawn anew for each sentence")
    if kind.family == "hop":
        return tuple(word for word in words if word not in MARKERS)
    if kind.family == "reverse":
        at = list(words).index(TURN)
        if name == "FullReverse":
            return tuple(word for word in reversed(words) if word != TURN)
        rest = words[at + 1 :]
        return (*words[:at], *(reversed(rest) if name == "PartialReverse" else rest))
    plain = Sentence(tuple(map(str, range(len(words)))), 0, 0, False, False, (), 0.0)
    found = kind.perturb(plain, np.random.default_rng(0))
    assert found is not None
    return tuple(words[place] for place in found.places)


def arrangements(words: Sequence[str]) -> float:
    """Log of the number of different orders of these tokens: nats that a uniformly random order adds, whoever reads it."""
    counts = np.unique(np.asarray(words), return_counts=True)[1]
    return lgamma(len(words) + 1) - sum(lgamma(int(count) + 1) for count in counts)
