"""English-like sentences with number agreement from a small unambiguous grammar, so that everything about them is known exactly.

Every sentence has one derivation, so the product of its choices is its probability, and the mean of −log p is the entropy that no learner can go
below. A subject noun has its number in one token (`doctor`, `doctors`), determiners have none, and a prepositional phrase with a noun of
either number may stand between subject and verb. Some words are several tokens (`quick ##ly`), and commas are tokens, so that counting tokens and
counting words differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

_LISTS = {
    "noun": """teacher doctor sailor farmer baker soldier lawyer painter singer dancer writer banker builder waiter sister brother mother father
        uncle daughter cousin boy girl king queen prince thief hunter""",
    "verb": "see meet find tell help like love know want need follow remember admire ignore avoid thank invite describe",
    "past": """saw met found told helped liked loved knew wanted needed followed remembered admired ignored avoided thanked invited
        described""",
    "adjective": """thought_##ful old grate_##ful young care_##less tall fear_##less small use_##ful tired cheer_##ful happy harm_##less angry
        play_##ful poor proud quiet""",
    "adverb": """quick_##ly often slow_##ly always quiet_##ly soon secret_##ly again sudden_##ly today glad_##ly here brave_##ly rude_##ly
        polite_##ly final_##ly""",
    "degree": "very rather so too",
    "determiner": "the my your our some",
    "preposition": "near with behind for from against beside under",
}
NOUNS, VERBS, PAST, ADJECTIVES, ADVERBS, DEGREES, DETERMINERS, PREPOSITIONS = (words.split() for words in _LISTS.values())
CONTINUED = "##"  # how a token begins that goes on with the word before it
PUNCTUATION = (",", ".")
PLURAL = "s"


@dataclass(frozen=True)
class Sentence:
    """words: its tokens. subject, verb: where they stand. plural: the subject's number. present: whether the verb shows it. spans: (label, start,
    end) of each constituent of more than the bare sentence. nats: −log of its probability, the end included."""

    words: tuple[str, ...]
    subject: int
    verb: int
    plural: bool
    present: bool
    spans: tuple[tuple[str, int, int], ...]
    nats: float


@dataclass
class _Draft:
    rng: np.random.Generator
    words: list[str] = field(default_factory=list)
    spans: list[tuple[str, int, int]] = field(default_factory=list)
    nats: float = 0.0

    def flip(self, probability: float) -> bool:
        yes = bool(self.rng.random() < probability)
        self.nats -= float(np.log(probability if yes else 1 - probability))
        return yes

    def word(self, choices: Sequence[str], ending: str = "") -> int:
        """Draw a word, the word of rank r = 1, 2, … with probability proportional to r to the power −0.7; return its number."""
        weights = np.arange(1, len(choices) + 1) ** -0.7
        weights /= weights.sum()
        i = int(self.rng.choice(len(choices), p=weights))
        self.nats -= float(np.log(weights[i]))
        first, *rest = choices[i].split("_")
        self.words += [first + ending, *rest]
        return i

    def close(self, label: str, start: int) -> None:
        self.spans.append((label, start, len(self.words)))

    def modifier(self, label: str, choices: Sequence[str]) -> None:
        start = len(self.words)
        if self.flip(0.3):
            self.word(DEGREES)
        self.word(choices)
        self.close(label, start)

    def noun(self, plural: bool) -> int:
        at = len(self.words)
        self.word(NOUNS, PLURAL if plural else "")
        return at

    def noun_phrase(self, plural: bool, adjective: float) -> int:
        """Return where the noun stands."""
        start = len(self.words)
        self.word(DETERMINERS)
        if self.flip(adjective):
            self.modifier("ADJP", ADJECTIVES)
        at = self.noun(plural)
        self.close("NP", start)
        return at

    def prepositional(self) -> None:
        start = len(self.words)
        self.word(PREPOSITIONS)
        self.noun_phrase(self.flip(0.5), 0.0)
        self.close("PP", start)


def sentence(rng: np.random.Generator, *, plural: bool | None = None, present: bool | None = None) -> Sentence:
    """Draw a sentence; plural, present: given instead of drawn (then `nats` is of the sentence given that choice)."""
    draft = _Draft(rng)
    plural = draft.flip(0.5) if plural is None else plural
    subject = draft.noun_phrase(plural, 0.25)
    if draft.flip(0.3):
        draft.prepositional()
    verb = len(draft.words)
    present = draft.flip(0.8) if present is None else present
    if present:
        draft.word(VERBS, "" if plural else "s")
    else:
        draft.word(PAST)
    draft.noun_phrase(draft.flip(0.5), 0.6)
    first_adverb = draft.flip(0.3)
    for adverb in (True, False) if first_adverb else (False, True):
        if not adverb:
            draft.prepositional()
        elif first_adverb or draft.flip(0.5):
            if draft.flip(0.3):
                draft.words.append(",")
            draft.modifier("ADVP", ADVERBS)
    draft.close("VP", verb)
    draft.words.append(".")
    return Sentence(tuple(draft.words), subject, verb, plural, present, tuple(draft.spans), draft.nats)


def with_other_number(original: Sentence) -> Sentence:
    """The same sentence with the subject, and a verb that shows it, in the other number: equally long and equally probable."""
    words = list(original.words)
    change = (lambda word: word.removesuffix(PLURAL)) if original.plural else (lambda word: word + PLURAL)
    words[original.subject] = change(words[original.subject])
    if original.present:
        words[original.verb] = words[original.verb] + "s" if original.plural else words[original.verb].removesuffix("s")
    return Sentence(tuple(words), original.subject, original.verb, not original.plural, original.present, original.spans, original.nats)


def lemma(verb: str) -> str:
    """The bare form of a present verb of this grammar."""
    return verb if verb in VERBS else verb.removesuffix("s")


def vocabulary() -> list[str]:
    """Every token that a sentence may hold, in a fixed order."""
    found = [noun + ending for noun in NOUNS for ending in ("", PLURAL)]
    found += [verb + ending for verb in VERBS for ending in ("", "s")] + PAST + DEGREES + DETERMINERS + PREPOSITIONS + list(PUNCTUATION)
    found += [part for word in ADJECTIVES + ADVERBS for part in word.split("_")]
    return list(dict.fromkeys(found))


SUBJECT_AT, VERB_AT = 1, 5  # in minimal pairs


def minimal_pairs(n: int, rng: np.random.Generator) -> list[tuple[Sentence, Sentence]]:
    """Draw n sentences `the N P the N V w w w w ...` with a singular subject, each with its plural twin.

    A noun of either number stands between subject and verb, and four words of one token each follow the verb, so that all have one shape.
    """
    pairs: list[tuple[Sentence, Sentence]] = []
    while len(pairs) < n:
        one = sentence(rng, plural=False, present=True)
        after = one.words[one.verb + 1 : one.verb + 6]  # and what follows must not belong to the fourth
        plain = not any(word.startswith(CONTINUED) for word in after) and not set(after[:4]) & set(PUNCTUATION)
        if (one.subject, one.verb) == (SUBJECT_AT, VERB_AT) and plain:
            pairs.append((one, with_other_number(one)))
    return pairs
