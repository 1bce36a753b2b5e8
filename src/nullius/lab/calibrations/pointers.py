"""Pointer mixtures: terms and weights of mixtures that are known, from noisy cells and from a planted reader; nothing where no term is."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from nullius.instruments import binding_pointers, pointer_mixture
from nullius.instruments.binding_pointers import Asked
from nullius.instruments.planted import binding as reader
from nullius.instruments.pointer_mixture import TERMS, Mixture, cells
from nullius.lab.calibration import Trial, case
from nullius.stimuli import binding

GROUPS, SAMPLES, NOISE, THERE = 6, 2, 0.3, 0.5
READERS = tuple(zip((*TERMS, ""), (reader.BY_PLACE, reader.BY_KEY, reader.BY_ANSWER, reader.BLIND), strict=True))
SETS = [some for size in (1, 2, 3) for some in combinations(TERMS, size)]


def _weights(found: Mixture) -> dict[str, float]:
    """The largest weight of each term, in nats. Where the base's own group is answered the three places are avoided: negative weights."""
    return {"positional": found.w, "lexical": float(found.lexical.max()), "reflexive": float(found.reflexive.max())}


def _fit(at: np.ndarray, probabilities: np.ndarray, rng: np.random.Generator) -> Mixture:
    train, stop, _ = cells(at, probabilities).split(rng)
    return pointer_mixture.fit(train, stop, epochs=1000, patience=60)


@case(
    "pointer mixture",
    planted=f"terms of a random mixture (their largest weight is fitted above {THERE} nats), σ(p) within 10 % and tables within 0.25 nats on average",
    null="terms that the mixture does not have",
    modules=("pointer_mixture",),
    seeds=2 * len(SETS),
)
def terms_of_a_mixture(seed: int) -> Trial:
    """Two samples a cell, each logit with noise of standard deviation 0.3."""
    rng, there = np.random.default_rng(seed), SETS[seed % len(SETS)]
    tables = {name: rng.uniform(1.5, 3.5, GROUPS) if name in there else np.zeros(GROUPS) for name in ("lexical", "reflexive")}
    bend = float(rng.uniform(1.0, 2.0))
    sigma = (-bend, bend, float(rng.uniform(0.6, 1.0)))  # narrow at both ends, as in the paper
    true = Mixture(GROUPS, there, float(rng.uniform(2.0, 4.0)), sigma, tables["lexical"], tables["reflexive"], False)
    at = np.array([(p, k, i) for p in range(GROUPS) for k in range(GROUPS) for i in range(GROUPS) if p not in (k, i)] * SAMPLES)
    noisy = np.log(true.predict(at)) + NOISE * rng.normal(size=(len(at), GROUPS))
    found = _fit(at, np.exp(noisy) / np.exp(noisy).sum(1, keepdims=True), rng)
    called = {name for name, weight in _weights(found).items() if weight > THERE}
    places = np.arange(GROUPS)
    right = [float(np.abs(found.width(places) / true.width(places) - 1).mean()) <= 0.1] if "positional" in there else []
    right += [float(np.abs(getattr(found, name) - tables[name]).mean()) <= 0.25 for name in tables if name in there]
    return Trial(len(called & set(there)) + sum(right), len(there) + len(right), len(called - set(there)), len(TERMS) - len(there))


@case(
    "pointer mixture",
    planted=f"the one pointer that a planted reader reads, of three: its term is fitted above {THERE} nats",
    null="the two pointers that it does not read, and all three of a reader whose last token is not listened to",
    modules=("pointer_mixture", "binding_pointers", "interchange"),
    seeds=5 * len(READERS),
)
def pointers_of_a_reader(seed: int) -> Trial:
    """One of four readers in each draw. Interchange triples over all cells of (p, k, i), at the layer where the reader decides."""
    true, mixture = READERS[seed % len(READERS)]
    model, rng = reader.build(mixture, seed), np.random.default_rng(seed)
    asked = Asked(binding.TASKS["boxes"], reader.GROUPS, 1, 0, reader.POOLS)
    seen = binding_pointers.see(model, asked.grid(rng, 100), [reader.DECIDED], vocabulary=False)[reader.DECIDED]
    at = np.stack([seen.at(name) for name in TERMS], 1)
    called = {name for name, weight in _weights(_fit(at, seen.probabilities, rng)).items() if weight > THERE}
    return Trial(int(true in called), int(bool(true)), len(called - {true}), len(TERMS) - bool(true))
