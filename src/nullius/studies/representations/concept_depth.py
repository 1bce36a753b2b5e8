"""Exploring Concept Depth: How Large Language Models Acquire Knowledge at Different Layers? (arXiv 2404.07066)

A linear probe on every layer reads factual, emotional and inferential labels off the last token. The relative depth at which each kind
becomes decodable is compared: between kinds, after a noise prefix, and under lower precision.

Depth is *rise depth* (`nullius.instruments.depth`): the accuracy still to be gained, summed over the layers before the peak, relative to
what there is to gain; k/L for a jump at layer k of L. What differs from the paper: items that share an entity or a template stay on
X the paper's jump and converging points stand in the notes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nullius.errors import UsageError
from nullius.instruments import depth
from nullius.instruments.depth import change, contrast
from nullius.instruments.probes import selectivity
from nullius.instruments.quantise import absmax, sixteen_bit
from nullius.instruments.readings import Controlled, Reading, matched, pooled, probe, read
from nullius.instruments.representations import bag_of_tokens
from nullius.lab import Claim, Figure, Lab, Needs, Option, Panel, Series, above_control, at_least, equivalent, study
from nullius.lab.figures import Role
from nullius.models.language_model import LanguageModel, untrained
from nullius.stimuli import concept_files, concepts, noise
from nullius.stimuli.concepts import Concept

LAYER = 0.02  # smallest change of relative depth that would matter: well under one layer in thirty
RESTS_ON = ("probes", "concept readings", "depth")
HALVES = "the same contrast between random halves of the simpler concepts, each half with probes of its own (four times over)"
CLAIMS = (
    Claim(
        "factual-decodable",
        "Whether a statement of fact is true can be read linearly off some layer",
        above_control(margin=0.05, null=0.5),
        control="labels shuffled (five times over), layer chosen alike",
        unit="accuracy",
        rests_on=RESTS_ON[:2],
    ),
    Claim(
        "emotional-decodable",
        "Whether an opinion is positive can be read linearly off some layer",
        above_control(margin=0.05, null=0.5),
        control="labels shuffled (five times over), layer chosen alike",
        unit="accuracy",
        rests_on=RESTS_ON[:2],
    ),
    Claim(
        "inference-deeper",
        "Concepts that need inference become decodable in deeper layers than factual and emotional ones, at the same accuracy",
        at_least(0.05, null=0.0),
        control=HALVES,
        unit="relative depth",
        rests_on=RESTS_ON,
    ),
    Claim(
        "emotion-deeper-than-fact",
        "Emotional concepts become decodable in deeper layers than factual ones, at the same accuracy",
        at_least(0.05, null=0.0),
        control=HALVES,
        unit="relative depth",
        rests_on=RESTS_ON,
    ),
    Claim(
        "noise-delays",
        "Three letters of noise before the text make concepts decodable later",
        above_control(margin=LAYER),
        control="a word that makes sense ('Note:') before the text",
        unit="relative depth",
        rests_on=RESTS_ON,
    ),
    Claim(
        "eight-bit-delays",
        "Weights rounded to 8 bits make concepts decodable later",
        above_control(margin=LAYER),
        control="weights and outputs rounded to 16 bits",
        unit="relative depth",
        rests_on=RESTS_ON,
    ),
    Claim(
        "sixteen-bit-equal",
        "16-bit arithmetic leaves the depth of concepts as it is in 32 bits",
        equivalent(LAYER),
        control="the 32-bit curves moved by a tenth of the network, a delay that the measure must see",
        unit="relative depth",
        rests_on=RESTS_ON,
    ),
    Claim(
        "bigger-earlier",
        "Bigger models of a family become decodable at earlier relative depth",
        above_control(margin=LAYER),
        control="two subjects of one size",
        unit="relative depth",
        needs=Needs(also="several sizes of one family side by side (`nullius compare concept-depth -m A -m B`)"),
        rests_on=RESTS_ON,
    ),
)
OPTIONS = (
    Option(
        "prompt",
        ("none", "own", "sentiment"),
        "instruction: none, each task's own, or sentiment's for all (as in the paper's released code)",
    ),
    Option("position", ("statement", "instruction-end"), "read at the end of the statement, or after an instruction that follows it"),
    Option("site", ("resid_mid_normed", "resid_post"), "the residual after attention, normed (the paper's site), or the block's output"),
)


@study("concept-depth", claims=CLAIMS, minutes=2.0, options=OPTIONS)
def concept_depth(lab: Lab) -> None:
    if lab.option("prompt") == "none" and lab.option("position") == "instruction-end":
        raise UsageError("position=instruction-end needs an instruction: give prompt=own or prompt=sentiment too")
    ignorant = untrained(lab.subject, lab.seed)
    everything = [_read_with_controls(lab, concept, ignorant) for concept in lab.progress(_concepts(lab), "probing each concept")]
    kinds = {kind: [item for item in everything if item.concept.kind == kind] for kind in ("factual", "emotional", "inferential")}
    for kind in ("factual", "emotional"):
        right, shuffled, clusters = pooled([item.trained for item in kinds[kind]])
        lab.finding(f"{kind}-decodable", treated=right, control=shuffled, clusters=clusters, paired=True)
    _contrast(lab, "inference-deeper", kinds["inferential"], kinds["factual"] + kinds["emotional"])
    _contrast(lab, "emotion-deeper-than-fact", kinds["emotional"], kinds["factual"])
    perturbed = everything if lab.full else [kinds["factual"][0], kinds["emotional"][0]]
    conditions = _perturb(lab, [item.trained for item in perturbed])
    _changes(lab, perturbed, conditions)
    for item in everything:
        _describe(lab, item)
    _figures(lab, kinds, conditions)


def _read_with_controls(lab: Lab, concept: Concept, ignorant: LanguageModel) -> Controlled:
    words = probe(concept, bag_of_tokens(lab.subject, concept.texts), lab.rng, lab.seed)
    return Controlled(_read(lab, concept, lab.subject), _read(lab, concept, ignorant), words)


def _concepts(lab: Lab) -> tuple[Concept, ...]:
    """The sets made here; at full scale also the paper's, from the folder that NULLIUS_CONCEPTS names."""
    made = concepts.in_package(lab.rng, lab.scale(quick=200, full=1200))
    folder = os.environ.get("NULLIUS_CONCEPTS")
    return made + concept_files.from_folder(folder, lab.rng) if lab.full and folder else made


def _read(lab: Lab, concept: Concept, model: LanguageModel) -> Reading:
    """Read a concept under the chosen prompt, position and site."""
    if lab.option("prompt") != "none":
        instruction = concept.instruction if lab.option("prompt") == "own" else concept_files.PRAISE[0]
        before = lab.option("position") == "statement"
        concept = concept.with_texts([f"{instruction}\n{text}" if before else f"{text}\n{instruction}" for text in concept.texts])
    return read(model, concept, lab.option("site"), lab.rng, lab.seed)


def _within_reach(lab: Lab, items: Sequence[Controlled], claims: Sequence[str], what: str) -> list[Reading]:
    """Gate: at least one of the concepts is acquired. Returns the readings of those that are; of the others depth is undefined."""
    chosen = [item for item in items if item.acquired] or list(items)
    gain = np.concatenate([item.trained.best - item.random.best for item in chosen])
    clusters = [label for item in chosen for label in item.trained.clusters]
    passed = lab.require(gain, above=0.0, what=f"{what}: accuracy above that of random weights", claims=claims, clusters=clusters)
    return [item.trained for item in chosen] if passed else []


def _contrast(lab: Lab, claim: str, deeper: Sequence[Controlled], shallower: Sequence[Controlled]) -> None:
    deep = _within_reach(lab, deeper, [claim], "read a concept said to be deeper")
    shallow = _within_reach(lab, shallower, [claim], "read a concept said to be shallower")
    if not deep or not shallow:
        return
    one, other, rate = matched(deep, shallow, lab.rng)
    samples, clusters = contrast(one, other)
    null, null_clusters = _between_halves(lab, shallow)
    compared = f"{', '.join(r.concept.name for r in deep)} against {', '.join(r.concept.name for r in shallow)}"
    note = f"{compared}; {rate:.0%} of the labels of the more accurate side flipped to match"
    lab.finding(claim, treated=samples, control=null, clusters=clusters, control_clusters=null_clusters, paired=False, note=note)


def _between_halves(lab: Lab, readings: Sequence[Reading], times: int = 4) -> tuple[NDArray, list[str]]:
    """The contrast between two random halves of each concept, several times over, so that it is known as finely as the real one."""
    samples, clusters = [], []
    for _ in range(times):
        first, second = zip(*(reading.halves(lab.rng, lab.seed) for reading in readings), strict=True)
        samples.append(contrast([half.depth for half in first], [half.depth for half in second])[0])
        clusters += pooled([*first, *second])[2]
    return np.concatenate(samples), clusters


def _perturb(lab: Lab, readings: Sequence[Reading]) -> dict[str, dict[str, Reading]]:
    """Read the same items again under each condition. Returns condition → concept → reading."""
    plain = [reading.concept for reading in readings]
    noisy = [c.with_texts(noise.glue(c.texts, "bbb" if c.name.startswith("coin") else "aaa")) for c in plain]
    led = [c.with_texts(noise.lead(c.texts, "Note:")) for c in plain]
    conditions: list[tuple[str, AbstractContextManager[Any], list[Concept]]] = [
        ("noise prefix", nullcontext(), noisy),
        ("prefix that makes sense", nullcontext(), led),
        ("8 bits", absmax(lab.subject, 8), plain),
        ("16 bits", sixteen_bit(lab.subject), plain),
    ]
    found = {"clean": {reading.concept.name: reading for reading in readings}}
    for name, context, read_alike in lab.progress(conditions, "noise and precision"):
        with context:
            found[name] = {concept.name: _read(lab, concept, lab.subject) for concept in read_alike}
    return found


def _changes(lab: Lab, items: Sequence[Controlled], conditions: dict[str, dict[str, Reading]]) -> None:
    """Report how far each condition moves the depth of the concepts that are acquired without it."""
    claims = ("noise-delays", "eight-bit-delays", "sixteen-bit-equal")
    clean = _within_reach(lab, items, claims, "read a concept that is then perturbed")
    if not clean:
        return
    before = [reading.depth for reading in clean]
    after = {name: [found[reading.concept.name].depth for reading in clean] for name, found in conditions.items()}
    tenth = max(1, round(0.1 * lab.subject.anatomy.n_layers))
    after["planted delay"] = [reading.delayed(tenth) for reading in clean]
    note = f"on {', '.join(reading.concept.name for reading in clean)}, loaded in {str(lab.subject.dtype).removeprefix('torch.')}"
    pairs = (("noise prefix", "prefix that makes sense"), ("8 bits", "16 bits"), ("16 bits", "planted delay"))
    for claim, (treated, control) in zip(claims, pairs, strict=True):
        moved, clusters = change(after[treated], before)
        lab.finding(claim, treated=moved, control=change(after[control], before)[0], clusters=clusters, paired=True, note=note)


def _describe(lab: Lab, item: Controlled) -> None:
    """Note all that is reported about a concept beside the verdicts, the anchor (does the subject itself answer?) among it."""
    concept, reading, accuracy = item.concept, item.trained, item.trained.curve
    best = reading.states[[int(accuracy.argmax())]]
    numbers = {
        "onset depth": reading.onset(item.random, item.words),
        "rise depth": reading.depth.estimate if item.acquired else None,
        "J": depth.jump_point(accuracy),
        "C": depth.converging_point(accuracy),
        "random weights": float(item.random.best.mean()),
        "single words": float(item.words.best.mean()),
        "selectivity": float(selectivity(best, concept.labels, concept.groups, lab.rng)[0]),
        "the subject's own answers": _answers(lab, concept),
    }
    told = ", ".join(f"{name} {value:.2f}" for name, value in numbers.items() if value is not None)
    undefined = ", ".join(f"{name} undefined" for name in ("onset depth", "rise depth", "J", "C") if numbers[name] is None)
    lab.note(
        f"{concept.name} ({concept.kind}): accuracy {reading.best.mean():.2f} at its best layer, {told}{undefined and ', ' + undefined}"
    )


def _answers(lab: Lab, concept: Concept) -> float:
    """Share of items on which the subject, asked, prefers the right one of yes and no (each summed over capitalisations)."""
    items = lab.rng.permutation(len(concept))[: lab.scale(quick=24, full=400)]
    texts = [f"{concept.texts[i]}\nQuestion: {concept.question} Answer yes or no.\nAnswer:" for i in items]
    logits = lab.subject.last_logits(texts)
    yes, no = ([lab.subject.first_token(f" {word}") for word in words] for words in (("yes", "Yes", "YES"), ("no", "No", "NO")))
    says_yes = logits[:, yes].logsumexp(1) > logits[:, no].logsumexp(1)
    return float((says_yes.numpy() == (concept.labels[items] == 1)).mean())


def _figures(lab: Lab, kinds: dict[str, list[Controlled]], conditions: dict[str, dict[str, Reading]]) -> None:
    roles: tuple[Role, ...] = ("effect", "second", "third")
    panels = []
    for kind, tasks in kinds.items():
        series = [_curve(task.concept.name, task.trained, roles[i % 3]) for i, task in enumerate(tasks)]
        series.append(_curve("labels shuffled", tasks[0].trained, "control", tasks[0].trained.probed.null.mean(0)))
        series.append(_curve("random weights", tasks[0].random, "reference"))
        panels.append(Panel(kind, "relative depth", "held-out accuracy", tuple(series), (0.3, 1.02)))
    caption = "Accuracy of a linear probe on each layer; bands are 95% intervals over groups of items."
    lab.figure(Figure("depth", "At which depth each kind of concept can be read", tuple(panels), caption))
    shown: tuple[tuple[str, Role], ...] = (("clean", "effect"), ("noise prefix", "second"), ("8 bits", "third"), ("16 bits", "control"))
    panels = [
        Panel(name, "relative depth", "held-out accuracy", tuple(_curve(c, conditions[c][name], role) for c, role in shown), (0.3, 1.02))
        for name in conditions["clean"]
    ]
    lab.figure(Figure("perturbed", "Noise and precision", tuple(panels), "The same items clean, after a noise prefix, and under rounding."))


def _curve(name: str, reading: Reading, role: Role, table: NDArray | None = None) -> Series:
    tested = reading.probed.split.tested
    right = (reading.probed.correct if table is None else table)[:, tested]
    mean, reach = right.mean(1), 1.96 * depth.standard_error(right, reading.concept.groups[tested])
    return Series(name, list(np.arange(len(mean)) / len(mean)), list(mean), list(mean - reach), list(mean + reach), "line", role)
