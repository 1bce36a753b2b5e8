"""Probes on a planted direction, depth on a planted onset, separation of planted classes; and a direction that can be decoded and is not used."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from nullius.instruments import control_tasks, depth, interventions, probes, readings, representations, separation
from nullius.instruments.planted import direction
from nullius.instruments.where import Where
from nullius.lab.calibration import Trial, case
from nullius.stimuli.concepts import Concept

TEXTS, NOISE, LAYERS, BLOCKS = 160, 0.5, 12, 40


def _states(seed: int) -> tuple[direction.Planted, list[direction.Remark], Tensor, np.random.Generator]:
    """Last-token states after each layer [layers, n, d], with noise of standard deviation NOISE in every entry: half of what is planted in one."""
    planted, rng = direction.build(seed), np.random.default_rng(seed)
    items = direction.remarks(rng, TEXTS)
    states = representations.last_token(planted.model, [item.text for item in items], "resid_post")
    return planted, items, states + NOISE * torch.tensor(rng.normal(size=states.shape), dtype=states.dtype), rng


def _decodable(states: Tensor, labels: NDArray, groups: NDArray, rng: np.random.Generator, seed: int) -> bool:
    found = probes.held_out(states, labels, groups, rng, seed)
    return depth.decodable(found.correct, found.split, found.null)


@case(
    "probes",
    planted="tone and animacy of a text, along one direction each under noise, are decodable: above chance and above shuffled labels by more"
    " than two standard errors on unseen words",
    null="eight labels drawn at random",
    modules=("probes", "depth", "representations"),
    seeds=16,
)
def planted_directions(seed: int) -> Trial:
    """Logistic probes, layers chosen on earlier items."""
    _, items, states, rng = _states(seed)
    truth = (("tone", "adjective"), ("alive", "noun"))
    found = 0
    for label, group in truth:
        labels, groups = (np.array([getattr(item, name) for item in items]) for name in (label, group))
        found += _decodable(states, labels, groups, rng, seed)
    nouns = np.array([item.noun for item in items])
    alarms = sum(_decodable(states, rng.permutation(np.arange(TEXTS) % 2), nouns, rng, seed) for _ in range(8))
    return Trial(int(found), 2, int(alarms), 8)


@case(
    "mass-mean probe",
    planted="the direction between the means of two tones lies within 30 degrees of the planted one",
    null="the directions between the means of eight random halves of the texts",
    modules=("probes",),
    seeds=40,
)
def direction_of_means(seed: int) -> Trial:
    """After layer 0, where the direction was written."""
    planted, items, states, rng = _states(seed)
    rows = [[item.tone for item in items], *(rng.permutation(np.arange(TEXTS) % 2) for _ in range(8))]
    weights = probes.mass_mean(states[:1], torch.tensor(np.array(rows))).weights[0].float()
    near = torch.nn.functional.cosine_similarity(weights, planted.tone_written[None]) > np.cos(np.pi / 6)
    return Trial(int(near[0]), 1, int(near[1:].sum()), 8)


@case(
    "control tasks",
    planted="tone is decoded better than each of 49 random labels of the nouns (selectivity at p = 0.02)",
    null="three other random labels of the nouns, which memory of the nouns alone can decode, in the place of tone",
    modules=("control_tasks", "probes"),
    seeds=40,
)
def selectivity(seed: int) -> Trial:
    """Nouns lie along dimensions of their own: a probe can learn any label of theirs, and selectivity must see through that."""
    _, items, states, rng = _states(seed)
    nouns = np.array([item.noun for item in items])

    def selective(labels: ArrayLike) -> bool:
        return bool(control_tasks.against_controls(states[:1], labels, nouns, rng, controls=49).p[0] <= 0.02)

    found = selective([item.tone for item in items])
    return Trial(found, 1, sum(selective(probes.control_task(nouns, rng)) for _ in range(3)), 3)


@case(
    "nested cross-validation",
    planted="tone and animacy are read rightly in two unseen items of three or more, probe and layer chosen inside each outer fold",
    null="four labels drawn at random",
    modules=("control_tasks", "nonlinear_probes", "probes"),
    seeds=12,
)
def chosen_inside(seed: int) -> Trial:
    """Three layers, two kinds of probe: the best of six would be above chance by the choice alone."""
    _, items, states, rng = _states(seed)
    fits = {"linear": probes.logistic, "mass mean": probes.mass_mean}
    words = {name: np.array([getattr(item, name) for item in items]) for name in ("adjective", "noun", "tone", "alive")}

    def read(labels: ArrayLike, groups: NDArray) -> bool:
        return bool(control_tasks.nested(states, labels, groups, fits, outer=4, inner=3, seed=seed).correct.mean() >= 2 / 3)

    found = read(words["tone"], words["adjective"]) + read(words["alive"], words["noun"])
    return Trial(found, 2, sum(read(rng.permutation(np.arange(TEXTS) % 2), words["noun"]) for _ in range(4)), 4)


@case(
    "probes",
    planted="the direction of tone, which the model reads",
    null="the direction of animacy, which nothing reads, called used because it can be decoded",
    modules=("probes", "depth", "interventions"),
    seeds=10,
    by_nature="a probe finds what can be read off a state, used or not; projecting the direction out (see interventions) tells them apart",
)
def decodable_and_not_used(seed: int) -> Trial:
    """Both are decoded; the answers hang on one of them alone."""
    _, items, states, rng = _states(seed)
    tone, alive = (np.array([getattr(item, name) for item in items]) for name in ("tone", "alive"))
    words = [np.array([getattr(item, name) for item in items]) for name in ("adjective", "noun")]
    return Trial(int(_decodable(states, tone, words[0], rng, seed)), 1, int(_decodable(states, alive, words[1], rng, seed)), 1)


@case(
    "interventions",
    planted="with the direction of tone projected out, or taken from a text of the other tone, the answer is lost or turned",
    null="the same with the direction of animacy, and with eight random directions among those that hold the noun",
    modules=("interventions", "where"),
    seeds=20,
)
def used_directions(seed: int) -> Trial:
    """At the last token, after layer 0. Called where the logit difference of the answers falls by half or more."""
    planted, rng = direction.build(seed), np.random.default_rng(seed)
    model, items = planted.model, direction.remarks(rng, 16)
    batch = model.encode([item.text for item in items])
    answers = torch.tensor(
        [[model.first_token(word) for word in ((" good", " bad") if item.tone else (" bad", " good"))] for item in items]
    )
    strange = torch.tensor(rng.normal(size=(8, len(planted.nouns))), dtype=torch.float32) @ planted.nouns
    others = torch.tensor([next(j for j, other in enumerate(items) if other.tone != item.tone) for item in items])
    source = interventions.taps.read(model, batch, ["resid_post"], [0], positions="all")["resid_post"][0][others]

    def lost(*changes: interventions.Intervention) -> bool:
        values = []
        for some in ((), changes):
            with interventions.applied(model, list(some)):
                two = model.logits(batch).gather(1, answers)
            values.append(float((two[:, 0] - two[:, 1]).mean()))
        return values[1] <= values[0] / 2

    def swapped(unit: Tensor) -> interventions.Intervention:
        return interventions.interchange(Where("resid_post", 0, basis=unit[None], positions="last"), source)

    with torch.no_grad():
        out = Where("resid_post", 0, positions="last")
        found = [lost(interventions.project_out(out, planted.tone)), lost(swapped(planted.tone))]
        nulls = [lost(interventions.project_out(out, planted.alive)), lost(swapped(planted.alive))]
        nulls += [lost(interventions.project_out(out, one)) for one in strange]
    return Trial(sum(found), 2, sum(nulls), len(nulls))


@case(
    "depth",
    planted="a direction added from one layer on: its rise depth lies within a layer and a half of it",
    null="a concept that was never added, called decodable",
    modules=("depth", "probes"),
    seeds=20,
)
def planted_onset(seed: int) -> Trial:
    """Synthetic states of twelve layers, items in groups that share noise."""
    rng = np.random.default_rng(seed)
    onset = int(rng.integers(1, LAYERS - 1))
    found = probes.held_out(*_stream(rng, onset, 4.0), rng)
    rise = depth.rise_depth(found.correct, found.split)
    hit = depth.decodable(found.correct, found.split, found.null) and rise is not None and abs(rise.estimate * LAYERS - onset) <= 1.5
    alarms = 0
    for _ in range(4):
        nothing = probes.held_out(*_stream(rng, LAYERS, 0.0), rng)
        alarms += depth.decodable(nothing.correct, nothing.split, nothing.null)
    return Trial(int(hit), 1, alarms, 4)


@case(
    "concept readings",
    planted="a concept that a subject's layers hold and neither random weights nor words do is called acquired; with all its accuracies reached two"
    " layers later its depth is a layer to three larger",
    null="a concept that random weights hold as well, and one that its words give away, called acquired",
    modules=("readings",),
    seeds=20,
)
def acquired_concepts(seed: int) -> Trial:
    """Synthetic states of twelve layers, read with the same split."""
    rng = np.random.default_rng(seed)
    onset, groups = int(rng.integers(1, LAYERS - 3)), [f"block {i}" for i in range(BLOCKS) for _ in range(4)]

    def read(first: int, strength: float) -> readings.Reading:
        states, labels, _ = _stream(rng, first, strength)
        concept = Concept("planted", "factual", ("",) * len(labels), labels, np.array(groups), "", "")
        return readings.probe(concept, states, rng, seed)

    holds, also, nothing = read(onset, 4.0), read(0, 4.0), read(LAYERS, 0.0)
    later = (holds.delayed(2).estimate - holds.depth.estimate) * LAYERS
    controls = ((nothing, nothing), (also, nothing), (nothing, also))  # random weights, words
    acquired = [readings.Controlled(holds, *two).acquired for two in controls]
    return Trial(int(acquired[0]) + int(1 <= later <= 3), 2, sum(acquired[1:]), 2)


def _stream(rng: np.random.Generator, onset: int, strength: float, d: int = 32) -> tuple[Tensor, NDArray, NDArray]:
    labels, groups = np.tile([0, 1, 0, 1], BLOCKS), np.repeat(np.arange(BLOCKS), 4)
    unit = rng.normal(size=d)
    unit /= np.linalg.norm(unit)
    noise = rng.normal(size=(len(labels), d)) + rng.normal(size=(BLOCKS, d))[groups]
    there = (np.arange(LAYERS) >= onset)[:, None, None]
    return (
        torch.tensor(noise + 0.7 * rng.normal(size=(LAYERS, *noise.shape)) + strength * there * np.outer(2 * labels - 1, unit)),
        labels,
        groups,
    )


@case(
    "separation",
    planted="three classes a standard deviation apart: their discrimination value is below 99 % of those of permuted labels",
    null="eight labellings in runs that have nothing to do with the points",
    modules=("separation",),
    seeds=20,
)
def planted_classes(seed: int) -> Trial:
    """Points of a text, neighbours alike; labels in runs of three."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(150, 10))
    points[1:] += 0.5 * points[:-1]
    labels = np.repeat(rng.integers(3, size=50), 3)
    centres = rng.normal(size=(3, 10))
    hit = separation.permutation_null(points + centres[labels], labels, run=6, permutations=299, rng=rng)[2] <= 0.01
    nulls = [
        separation.permutation_null(points, np.repeat(rng.integers(3, size=50), 3), run=6, permutations=299, rng=rng)[2] <= 0.01
        for _ in range(8)
    ]
    return Trial(int(hit), 1, sum(nulls), 8)
