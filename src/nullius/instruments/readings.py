"""A concept read off every layer of a subject: its states, its probes' held-out correctness, its depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from nullius.instruments import depth, probes
from nullius.instruments.depth import Depth
from nullius.instruments.representations import last_token
from nullius.models.language_model import LanguageModel
from nullius.stimuli.concepts import Concept


@dataclass(frozen=True)
class Reading:
    """states: [layers, n, d], the last token's. probed: held-out correctness [layers, n], with real and with shuffled labels."""

    concept: Concept
    states: Tensor
    probed: probes.HeldOut

    @property
    def best(self) -> NDArray[np.float64]:
        """Correctness of the tested items at the layer chosen on earlier ones [tested]."""
        return depth.at_peak(self.probed.correct, self.probed.split)

    @property
    def shuffled(self) -> NDArray[np.float64]:
        """The same with shuffled labels, the layer chosen alike, mean over shuffles [tested]."""
        return depth.at_peak(self.probed.null, self.probed.split)

    @property
    def curve(self) -> NDArray[np.float64]:
        """Accuracy on the tested items at every layer [layers]."""
        return self.probed.correct[:, self.probed.split.tested].mean(1)

    @property
    def before_test(self) -> float:
        """Best accuracy in stage 0, where nothing is tested: for choices that a test must not see."""
        return float(self.probed.correct[:, ~self.probed.split.tested].mean(1).max())

    def decodable(self, *controls: Reading) -> bool:
        """Whether the best layer is above chance, shuffled labels and every control reading of the same items (`depth.decodable`)."""
        return depth.decodable(self.probed.correct, self.probed.split, self.probed.null, *(other.probed.correct for other in controls))

    @property
    def depth(self) -> Depth:
        """Rise depth; 1, the end of the network, of a concept that no layer holds above chance."""
        return depth.rise_depth(self.probed.correct, self.probed.split) or depth.never(self.probed.split)

    def onset(self, *controls: Reading) -> float | None:
        """Onset depth, None when not `decodable`."""
        tables = (other.probed.correct for other in controls)
        return depth.onset_depth(self.probed.correct, self.probed.split, self.probed.null, *tables)

    @property
    def clusters(self) -> list[str]:
        """What each tested item shares with others, told apart from other concepts' [tested]."""
        return [f"{self.concept.name}:{group}" for group in self.concept.groups[self.probed.split.tested]]

    def part(self, items: NDArray[np.int64], rng: np.random.Generator, seed: int = 0) -> Reading:
        """Return the reading of some items only, probes fitted anew on these."""
        return probe(self.concept.select(items), self.states[:, items], rng, seed)

    def halves(self, rng: np.random.Generator, seed: int = 0) -> tuple[Reading, Reading]:
        """Return two readings of random halves of the groups, each with probes of its own: they differ by chance alone."""
        first = self.concept.sample(len(self.concept) // 2, rng)
        return self.part(first, rng, seed), self.part(np.setdiff1d(np.arange(len(self.concept)), first), rng, seed)

    def blurred(self, rates: ArrayLike, rng: np.random.Generator) -> list[Reading]:
        """Return the same states read with labels flipped at each rate: as decodable as before, layer by layer, but less accurately."""
        flips = rng.random(len(self.concept)) < np.asarray(rates)[:, None]
        rows = np.where(flips, 1 - self.concept.labels, self.concept.labels)
        tables = probes.validate(self.states, rows, self.probed.split)
        return [replace(self, probed=replace(self.probed, correct=table)) for table in tables]

    def delayed(self, layers: int) -> Depth:
        """Return the depth as it would be with every layer's accuracy reached `layers` layers later: a planted delay."""
        right = depth.delayed(self.probed.correct, self.probed.null[0], layers)
        return depth.rise_depth(right, self.probed.split) or depth.never(self.probed.split)


@dataclass(frozen=True)
class Controlled:
    """A concept read from a subject, from a copy with random weights, and from the words alone: the same items, the same split."""

    trained: Reading
    random: Reading
    words: Reading

    @property
    def concept(self) -> Concept:
        """The concept that all three read."""
        return self.trained.concept

    @property
    def acquired(self) -> bool:
        """Whether the subject's layers hold the concept better than shuffled labels, random weights and single words do.

        Random weights matter: any transformer mixes tokens and can make, say, an exclusive-or of two of them linearly readable. Without this
        a concept has no depth at which training put it.
        """
        return self.trained.decodable(self.random, self.words)


def probe(concept: Concept, states: Tensor, rng: np.random.Generator, seed: int = 0) -> Reading:
    """Return the reading of states [layers, n, d] that are there already."""
    return Reading(concept, states, probes.held_out(states, concept.labels, concept.groups, rng, seed))


def read(model: LanguageModel, concept: Concept, site: str, rng: np.random.Generator, seed: int = 0) -> Reading:
    """Run the subject on a concept's texts and probe every layer at `site` (see `representations.last_token`)."""
    return probe(concept, last_token(model, concept.texts, site), rng, seed)


RATES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35)
DRAWS = 5


def matched(one: Sequence[Reading], other: Sequence[Reading], rng: np.random.Generator) -> tuple[list[Depth], list[Depth], float]:
    """Return the depths of both sets of readings at about the same mean accuracy, and the rate of flipped labels that made it so.

    Low accuracy alone makes a concept look deeper: weak traces in early layers drown first. So labels of the more accurate set are flipped,
    at one rate for the whole set, of `RATES`, chosen in stage 0. Depths are means over `DRAWS` draws of which labels are flipped, lest
    one draw decide.
    """
    low, high = sorted((one, other), key=lambda readings: float(np.mean([reading.before_test for reading in readings])))
    target = np.mean([reading.before_test for reading in low])
    drawn = [reading.blurred(np.repeat(RATES, DRAWS), rng) for reading in high]
    accuracy = np.array([[blurred.before_test for blurred in draws] for draws in drawn]).reshape(len(high), len(RATES), DRAWS)
    best = int(np.abs(accuracy.mean((0, 2)) - target).argmin())
    blurred = [depth.average([draw.depth for draw in draws[best * DRAWS : (best + 1) * DRAWS]]) for draws in drawn]
    as_is = [reading.depth for reading in low]
    return (as_is, blurred, RATES[best]) if high is other else (blurred, as_is, RATES[best])


def pooled(readings: Sequence[Reading]) -> tuple[NDArray[np.float64], NDArray[np.float64], list[str]]:
    """Return `best`, `shuffled` and `clusters` of several readings as one set of items."""
    best = np.concatenate([reading.best for reading in readings])
    shuffled = np.concatenate([reading.shuffled for reading in readings])
    return best, shuffled, [label for reading in readings for label in reading.clusters]
