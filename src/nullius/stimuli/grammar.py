"""Texts whose word classes are known by construction: a Markov chain over classes, and a small context-free grammar of English.

The chain is for planted truths: its words are interchangeable within a class, and how far the next class can be predicted is set exactly.
The grammar is for claims: function words and content words of plausible frequencies, in sentences where the class of the next word hangs on
more than the word before it (after a noun a verb follows if it is a subject, a preposition or the end of the sentence if it is an object).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from nullius.stimuli.windows import BOUNDARY, TaggedText, tagged

Floats = NDArray[np.float64]


def class_chain(classes: int, predictability: float) -> Floats:
    """Return class transition probabilities [classes, classes]: (1 − p) uniform + p deterministic (class k to k + 1, cyclically).

    At p = 0 the next class is uniform whatever came before; at p = 1 it is certain. Both have a uniform stationary distribution.
    """
    if classes < 2 or not 0 <= predictability <= 1:
        raise ValueError(f"needs at least two classes and a predictability from 0 to 1, got {classes} and {predictability}")
    return (1 - predictability) / classes + predictability * np.roll(np.eye(classes), 1, axis=1)


def information(transitions: Floats) -> float:
    """Mutual information in bits between successive classes of a chain with a uniform stationary distribution."""
    classes = len(transitions)
    terms = transitions * np.log2(np.where(transitions > 0, transitions, 1.0))
    return float(np.log2(classes) + terms.sum() / classes)


def markov_text(transitions: Floats, words_per_class: int, length: int, rng: np.random.Generator) -> TaggedText:
    """Return a text of `length` words without boundaries: classes follow the chain, words are drawn uniformly within a class.

    Class k is tagged `C{k}`, its words are `c{k}w{i}`.
    """
    cumulative = transitions.cumsum(1)
    draws = rng.random(length)
    states = np.empty(length, dtype=np.int64)
    state = int(rng.integers(len(transitions)))
    for i, draw in enumerate(draws.tolist()):
        states[i] = state
        state = min(int(np.searchsorted(cumulative[state], draw, side="right")), len(transitions) - 1)
    word = rng.integers(words_per_class, size=length)
    return tagged([(f"c{k}w{i}", f"C{k}") for k, i in zip(states.tolist(), word.tolist(), strict=True)])


# Words with one class each. Nouns and names are people, so that any verb goes with any subject and object.
WORDS = {
    "NOUN": """teacher doctor sailor farmer baker soldier lawyer painter singer dancer writer banker builder waiter sister brother mother father
        uncle daughter cousin neighbour child boy girl woman man king queen prince princess thief policeman shepherd hunter fisherman tailor
        carpenter miller librarian journalist scientist musician poet dentist driver gardener butcher grocer priest monk nun beggar merchant
        tourist traveller stranger student professor plumber surgeon mayor senator minister lieutenant sergeant captain physician magician
        juggler acrobat actress clerk chemist historian grandmother grandfather nephew niece widow""",
    "PROPN": """anna peter maria thomas laura martin helen simon clara oscar julia daniel emma felix nora paul sophie victor alice george rosa hugo
        irene leo""",
    "ADJ": """old young tall small tired happy angry careful clever famous friendly gentle honest hungry jealous lazy lonely modest nervous polite
        poor proud quiet rich rude sad serious shy silly strange strong stubborn stupid ugly wise brave curious elegant generous grateful
        handsome patient sleepy talented thoughtful timid wealthy weird noble cheerful""",
    "VT": """saw met found told believed forgot taught chose brought sent followed remembered admired ignored avoided thanked invited described
        persuaded surprised annoyed recognised greeted rescued accused betrayed forgave understood caught held heard sought obeyed pursued
        deceived disappointed encouraged congratulated interviewed imitated""",
    "VT_BASE": """see meet tell believe forget teach choose bring send follow remember admire ignore avoid thank invite describe persuade annoy
        recognise greet accuse betray forgive understand hear seek obey pursue deceive disappoint encourage congratulate imitate""",
    "VI": """slept arrived laughed waited disappeared fell smiled wept appeared died listened escaped sang vanished trembled hesitated remained
        stayed sneezed shivered""",
    "VI_BASE": "sleep arrive laugh disappear fall weep appear die listen sing vanish tremble hesitate remain sneeze shiver",
    "VS": "said thought knew claimed hoped feared suspected admitted noticed realised",
    "ADV": """quickly slowly quietly often suddenly carefully always secretly finally gladly rarely happily angrily politely proudly sadly
        rudely bravely patiently again soon everywhere yesterday together""",
    "DEGREE": "very rather extremely unusually",
    "DET": "the a this every another some each no",
    "PRON": "he she they we you i it everyone somebody nobody",
    "OBJECT": "him them us me it you everyone somebody",
    "WHO": "who",
    "AUX": "will would could should must may can might",
    "COP": "was",
    "ADP": "near with behind for from without against beside under of",
    "CCONJ": "and but or",
    "SCONJ": "because although when while if unless since",
    "THAT": "that",
    ".": BOUNDARY,
}
CLASS_OF = {
    "VT": "VERB",
    "VT_BASE": "VERB",
    "VI": "VERB",
    "VI_BASE": "VERB",
    "VS": "VERB",
    "DEGREE": "ADV",
    "OBJECT": "PRON",
    "WHO": "PRON",
}
CLASS_OF |= {"COP": "AUX", "THAT": "SCONJ", ".": "PUNCT"}
OPEN = ("NOUN", "VERB", "ADJ", "ADV", "PROPN")  # content words

# symbol -> (weight, expansion). Expected sizes are finite: every recursion (PP, RC, CLAUSE) multiplies by less than one.
RULES: dict[str, tuple[tuple[float, str], ...]] = {
    "S": ((60, "CLAUSE ."), (14, "CLAUSE CCONJ CLAUSE ."), (14, "SCONJ CLAUSE CLAUSE ."), (12, "CLAUSE SCONJ CLAUSE .")),
    "CLAUSE": ((100, "SUBJECT VP"),),
    "SUBJECT": ((46, "DET NBAR"), (22, "PRON"), (12, "PROPN"), (8, "DET NBAR PP"), (12, "DET NBAR RC")),
    "NP": ((62, "DET NBAR"), (14, "OBJECT"), (12, "PROPN"), (6, "DET NBAR PP"), (6, "DET NBAR RC")),
    "NBAR": ((62, "NOUN"), (26, "ADJ NOUN"), (6, "ADJ ADJ NOUN"), (6, "DEGREE ADJ NOUN")),
    "RC": ((60, "WHO VP"), (40, "WHO SUBJECT VT")),
    "PP": ((100, "ADP NP"),),
    "VP": (
        (24, "VT NP"),
        (10, "VT NP PP"),
        (8, "VT NP ADV"),
        (6, "ADV VT NP"),
        (7, "VI"),
        (8, "VI PP"),
        (7, "VI ADV"),
        (10, "AUX VT_BASE NP"),
        (4, "AUX VI_BASE"),
        (4, "AUX VI_BASE PP"),
        (3, "COP ADJ"),
        (3, "COP DEGREE ADJ"),
        (6, "VS THAT CLAUSE"),
    ),
}


def english_text(length: int, rng: np.random.Generator) -> TaggedText:
    """Return at least `length` words (whole sentences) of the grammar, lower-case, with universal word classes.

    Within a class the word of rank r = 1, 2, … is drawn with probability proportional to 1 / (r + 1), in open classes to 1 / √(r + 1): a few
    function words are frequent, as in English, and no content word makes up its class.
    """
    choosers: dict[str, Callable[[], str]] = {}
    for symbol, rules in RULES.items():
        choosers[symbol] = _chooser([expansion for _, expansion in rules], np.array([weight for weight, _ in rules]), rng)
    for symbol, listed in WORDS.items():
        words = listed.split()
        steepness = 0.5 if CLASS_OF.get(symbol, symbol) in OPEN else 1.0
        choosers[symbol] = _chooser(words, (np.arange(len(words)) + 2.0) ** -steepness, rng)
    pairs: list[tuple[str, str]] = []
    while len(pairs) < length:
        stack = ["S"]
        while stack:
            symbol = stack.pop()
            chosen = choosers[symbol]()
            if symbol in RULES:
                stack += reversed(chosen.split())
            else:
                pairs.append((chosen, CLASS_OF.get(symbol, symbol)))
    for i in range(len(pairs) - 1):
        if pairs[i][0] == "a" and pairs[i + 1][0][0] in "aeiou":
            pairs[i] = ("an", "DET")
    return tagged(pairs)


def _chooser(options: list[str], weights: NDArray, rng: np.random.Generator) -> Callable[[], str]:
    """Return a function that draws options by weight; numbers are drawn by the thousand, since single draws are slow."""
    cumulative = np.cumsum(weights) / np.sum(weights)
    waiting: list[int] = []

    def draw() -> str:
        if not waiting:
            waiting.extend(np.searchsorted(cumulative, rng.random(1000), side="right").clip(max=len(options) - 1).tolist())
        return options[waiting.pop()]

    return draw
