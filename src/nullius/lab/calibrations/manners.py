"""Classes of texts: situations told in manners by a planted transformer, and words to come by readers that are made up."""

from __future__ import annotations

import numpy as np

from nullius.instruments import next_class
from nullius.instruments.planted import direction
from nullius.instruments.told import Told
from nullius.lab.calibration import Trial, case
from nullius.stimuli import grammar
from nullius.stimuli.windows import Vocabulary, windows


@case(
    "situations told",
    planted="of nouns spoken of in two tones: nine in ten unseen situations are nearest to their tone's direction, and without the one head of each"
    " layer that adds most a quarter of the tone's lead or more is gone",
    null="without one random head of each layer, drawn twice; two good words told as two tones",
    modules=("told",),
    seeds=20,
)
def tones_of_nouns(seed: int) -> Trial:
    """Half of twenty situations to learn from; of each tone two versions. The lead is counted behind three attentions, one of which writes it."""
    planted, rng = direction.build(seed), np.random.default_rng(seed)
    nouns = rng.permutation(direction.ALIVE + direction.THINGS)
    halves = list(range(0, len(nouns), 2)), list(range(1, len(nouns), 2))

    def told(manners: tuple[tuple[str, ...], tuple[str, ...]]) -> Told:
        texts = [f"the {noun} was {rng.choice(words)} today so it was" for noun in nouns.tolist() for _ in range(2) for words in manners]
        return Told.read(planted.model, texts, (len(nouns), 2, 2), halves)

    own = told((direction.GOOD, direction.BAD))
    falls = [float(fall.mean()) >= 1 / 4 for fall in own.fall(planted.model, "head", own.effects(planted.model)["head"], 1, rng)]
    good = rng.permutation(direction.GOOD).tolist()
    strange = told((tuple(good[:4]), tuple(good[4:])))
    right = [float(one.accuracy()[0].mean()) >= 0.9 for one in (own, strange)]
    return Trial(right[0] + falls[0], 2, right[1] + sum(falls[1:]), 3)


@case(
    "classes to come",
    planted="a reader that holds the class of the next word tells classes to come, also behind one and the same word; one that holds the class of the"
    " word just read tells that (discrimination value below −0.05 on average)",
    null="a reader that holds nothing, in all four kinds of sets; the second one behind one and the same word; the first one with labels permuted in"
    " runs",
    modules=("next_class", "separation"),
    seeds=20,
)
def readers_made_up(seed: int) -> Trial:
    """Twelve noisy dimensions, of which a class moves one by three standard deviations."""
    rng = np.random.default_rng(seed)
    held_out = windows(grammar.english_text(6_000, rng))
    rank = Vocabulary(grammar.english_text(6_000, rng), 5_000).encode(held_out.next_word)
    drawn = next_class.draw(held_out, rank, rng, n_blocks=4, per_class=6, same_word=4, words=10)
    classes, to_come = np.unique(drawn.windows.next_class, return_inverse=True)
    before, read = np.unique(drawn.windows.read_class, return_inverse=True)
    nothing = rng.normal(size=(len(drawn.windows), 12))
    knows = nothing + 3 * np.eye(len(classes), 12)[to_come]
    echoes = nothing + 3 * np.eye(len(before), 12)[read]
    found = drawn.measure({"knows": knows, "echoes": echoes, "nothing": nothing})

    def tells(sets: dict[str, np.ndarray], reader: str) -> bool:
        return bool(np.mean(sets[reader]) < -0.05)

    hits = [tells(found.to_come, "knows"), tells(found.same_word, "knows"), tells(found.read, "echoes")]
    alarms = [tells(sets, "nothing") for sets in (found.to_come, found.read, found.open_classes, found.same_word)]
    alarms += [tells(found.same_word, "echoes"), tells(found.permuted, "knows")]
    return Trial(sum(hits), len(hits), sum(alarms), len(alarms))
