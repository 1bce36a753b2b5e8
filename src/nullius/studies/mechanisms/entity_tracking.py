"""Fine-Tuning Enhances Existing Mechanisms: A Case Study on Entity Tracking (Prakash et al. 2024, arXiv 2402.14811).

"The pen is in Box A, the cup is in Box C. Box C contains the": does a model that was tuned on something else track what is in which box by the
circuit of its base model, only better?

The circuit is found in the base by path patching, backwards from the answer, on prompts of its own, pruned, and then run alone in both models.
Masks say what each group carries; outputs of the tuned model pasted into the base say which group became better; cut attention says what each
position must see. By default base and tuned model are small trackers that the study trains (once: they are kept); `-o pair=subject` takes
the subject, and a copy of it finetuned on boxes. docs/studies/entity-tracking.md says what differs from the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from nullius.errors import SubjectError
from nullius.instruments import circuits, tracking
from nullius.instruments.circuits import Means
from nullius.instruments.head_choice import two_drawn
from nullius.instruments.tracking import CUTS, ROLES, Circuit, Models, Prompts, Sizes
from nullius.lab import Claim, Figure, Heatmap, Lab, Needs, Option, Panel, Series, above_control, at_least, below_control, equivalent, study
from nullius.lab.claims import Expectation, ordering
from nullius.lab.curves import curve
from nullius.lab.figures import Role
from nullius.lab.statistics import mean_interval
from nullius.models.language_model import LanguageModel
from nullius.stimuli import boxes
from nullius.stimuli.boxes import Kind
from nullius.training import trackers
from nullius.training.kept import finetuned

RANDOM = "random heads, as many in the same layers at the same places (several draws)"
TWO_RANDOM = "one random circuit as large, alone in the tuned model, against another (which of several drawn for each prompt)"
SHUFFLED = "the same masks learned and tested with the targets of other pairs"
FETCH, TRANSMIT, DETECT, READ = ROLES
PATHS, CIRCUITS, MASKS, PASTING, CUTTING = "path patching", "circuits", "component masks", "cross-model patching", "attention knockout"
# The heads that all claims but those on cut attention are about were found and pruned by these
FOUND = dict.fromkeys((PATHS, CIRCUITS, MASKS, PASTING), (PATHS, CIRCUITS))
RATE, CHANGE, SHARE, LOSS = "target − decoy, difference of groups", "change of accuracy", "share of the accuracy", "loss of accuracy"
OVERLAP, LESS = "share in the circuit − share expected", "change of accuracy, less that from the tuned model"
ITSELF = "the base's own outputs: exactly nothing may change"
GUESS = "the same change for an object drawn at random, where the label asked about was not told"
FURTHER = "random fetchers and transmitters against others drawn alike (which of several sets drawn for each prompt)"
AT_RANDOM = "the same position cut from another one at random"
ANY_EDGE = f"{AT_RANDOM}, which of the three edges it stands for drawn for each prompt"
TABLE: tuple[tuple[str, str, Expectation, str, str, str, float | None], ...] = (
    ("tuning-helps", "The tuned model tracks entities better than its base",
        above_control(0.05), GUESS, CHANGE, "", 0.16),
    ("circuit-found", "The circuit found in the base, alone, does what the whole base does",
        at_least(0.8, null=0.0), RANDOM, SHARE, CIRCUITS, 1.0),
    ("same-circuit", "The base's circuit, alone in the tuned model, does what the whole of that does",
        at_least(0.8, null=0.0), RANDOM, SHARE, CIRCUITS, 0.89),
    ("circuit-beats-base", "Alone in the tuned model, the base's circuit is better than the whole base model",
        above_control(0.02), TWO_RANDOM, CHANGE, CIRCUITS, 0.07),
    ("circuits-overlap", "The heads of the base's circuit are in the tuned model's own circuit",
        above_control(0.2), "random heads of the same layers", OVERLAP, PATHS, 0.75),
    ("position-base", "In the base, position detectors and transmitters carry the position, more than value fetchers do",
        above_control(0.1), SHUFFLED, RATE, MASKS, 0.26),
    ("position-tuned", "In the tuned model too, position detectors and transmitters carry the position, more than value fetchers do",
        above_control(0.1), SHUFFLED, RATE, MASKS, 0.33),
    ("object-base", "In the base, value fetchers carry the object, more than the other groups do",
        above_control(0.1), SHUFFLED, RATE, MASKS, 0.43),
    ("object-tuned", "In the tuned model too, value fetchers carry the object, more than the other groups do",
        above_control(0.1), SHUFFLED, RATE, MASKS, 0.47),
    ("no-label", "No group of heads carries the label of the box, not even the one that does most on other pairs",
        equivalent(0.1), "the object, which value fetchers carry", "target − decoy", MASKS, 0.0),
    ("better-fetching", "Outputs of the tuned model's value fetchers and position transmitters, pasted in, make the base better",
        above_control(0.05), RANDOM, CHANGE, PASTING, 0.16),
    ("more-than-detectors", "Outputs of value fetchers and position transmitters help more than those of position detectors",
        above_control(0.05), FURTHER, "difference of changes", PASTING, 0.2),
    ("needs-one-basis", "Outputs of these heads of an unrelated model that is as good do not do it",
        below_control(0.05), ITSELF, LESS, PASTING, None),
    ("cut-object", "The last token must see the object asked about",
        above_control(0.05), AT_RANDOM, LOSS, CUTTING, None),
    ("cut-query", "The last token must see the label asked about",
        above_control(0.05), AT_RANDOM, LOSS, CUTTING, None),
    ("cut-earlier", "The label asked about must see where it was told",
        above_control(0.05), AT_RANDOM, LOSS, CUTTING, None),
    ("in-bands", "First the label asked about reads its earlier mention, then the last token the label, then the object",
        ordering("object", "query", "earlier", margin=0.25), ANY_EDGE, "layers that may be cut", CUTTING, None),
)  # fmt: skip
LARGE = Claim(
    "at-7b", "All this holds of LLaMA-7B and three models tuned from it", above_control(), control=RANDOM,
    needs=Needs(also="LLaMA-7B with Vicuna, Goat and FLoat side by side"),
)  # fmt: skip
CLAIMS = (
    *(
        Claim(id, words, expect, null, published, unit, rests_on=tuple(dict.fromkeys((*FOUND.get(on, ()), on))) if on else ())
        for id, words, expect, null, unit, on, published in TABLE
    ),
    LARGE,
)

QUICK, FULL = Sizes(80, 300, 100, 200, 240, 10, 20), Sizes(300, 3500, 100, 500, 2000, 10, 20)
# of a subject and its copy, whose every run costs more
PAIR_QUICK, PAIR_FULL = Sizes(4, 100, 4, 48, 48, 2, 2), Sizes(16, 400, 8, 120, 120, 3, 4)
OPTIONS = (Option("pair", ("trackers", "subject"), "small trackers trained here, or the subject and a copy finetuned on boxes"),)


@study("entity-tracking", claims=CLAIMS, minutes=3.0, trains_its_own=True, options=OPTIONS)
def entity_tracking(lab: Lab) -> None:
    """Find on tuning prompts, prune on others, test on new ones."""
    models = _models(lab)
    test = models.draw(lab.rng, _sizes(lab).test)
    before, after = (tracking.right(model, test) for model in (models.base, models.tuned))
    for right, name in ((before, "base"), (after, "tuned")):
        lab.require(right, above=1 / models.told, what=f"track boxes (the {name} model)")
    others, places = models.strangers(lab.rng, test)
    guesses = [tracking.guessed(model, others, places) for model in (models.base, models.tuned)]
    lab.finding("tuning-helps", treated=after - before, control=guesses[1] - guesses[0], note=f"{before.mean():.2f} → {after.mean():.2f}")
    circuit, means = _circuit(lab, models, models.base)
    own, own_means = _circuit(lab, models, models.tuned)
    alone = _report_circuit(lab, models, test, circuit, (means, own_means), (before, after))
    _report_overlap(lab, models, circuit, own)
    masked = _report_masks(lab, models, {"base": circuit, "tuned": own})
    pasted = _report_pastes(lab, models, test, circuit, before)
    curves = _report_knockout(lab, models.base, test)
    _draw(lab, {"base": before, "tuned": after, **alone, **pasted}, masked, curves)


def _sizes(lab: Lab) -> Sizes:
    return lab.scale(quick=PAIR_QUICK, full=PAIR_FULL) if lab.option("pair") == "subject" else lab.scale(quick=QUICK, full=FULL)


def _models(lab: Lab) -> Models:
    """The trackers, or the subject and its finetuned copy."""
    if lab.option("pair") == "trackers":
        plan = trackers.Plan(seed=lab.seed)
        made = trackers.load(plan, lab.subject.device, lambda name, *done: lab.listener.step(f"training the {name} tracker", *done))
        lab.note("trackers: " + ", ".join(f"{name} {made.accuracy[name]:.2f} after {made.steps[name]} steps" for name in made.accuracy))
        return Models(made.base, made.tuned, made.stranger, plan.boxes, *plan.words, trackers.STYLE)
    words, labels = (tracking.one_token(lab.subject, pool) for pool in (boxes.OBJECTS, boxes.LABELS))
    told = lab.scale(quick=4, full=7)
    if len(words) < 2 * told or len(labels) <= told:
        has = f"{len(words)} of the nouns and {len(labels)} of the labels as one token"
        raise SubjectError(f"{lab.subject.name} has {has}: too few for {told} boxes")
    same = Models(lab.subject, lab.subject, None, told, words, labels, "sentence")
    right = tracking.right(lab.subject, same.draw(lab.rng, lab.scale(quick=100, full=300)))
    lab.require(right, above=1 / told, what=f"track {told} boxes before any finetuning")  # tuning is long: a subject that cannot ends here
    steps = lab.scale(quick=10, full=50)
    pairs = [(item.prompt, item.answer) for item in boxes.draw(lab.rng, 16 * steps, told, objects=words, labels=labels)]
    watch = partial(lab.listener.step, "tuning")
    tuned = finetuned(lab.subject, pairs, steps, rate=2e-5, warmup=10, seed=lab.seed, on_step=watch)
    lab.note(f"tuned: a copy of {lab.subject.name}, {steps} steps on boxes; there is no unrelated model that is as good")
    return replace(same, tuned=tuned)


def _circuit(lab: Lab, models: Models, model: LanguageModel) -> tuple[Circuit, Means]:
    """Found on some prompts, pruned on others; mean activations of a third set."""
    prompts = models.draw(lab.rng, _sizes(lab).find)
    watch = partial(lab.progress, label=f"path patching in {model.name}")
    circuit, found = tracking.find(model, prompts, *models.strangers(lab.rng, prompts), tracking.group_sizes(model), watch)
    means = circuits.position_means(model, models.draw(lab.rng, _sizes(lab).means).batch)
    lab.listener.step(f"pruning the circuit of {model.name}", 0, None)
    left = tracking.prune(model, models.draw(lab.rng, _sizes(lab).prune), circuit, means)
    names = "; ".join(f"{role}s {', '.join(map(str, own)) or 'none'}" for role, own in left.items())
    strongest = ", ".join(f"{role} {float(effect.min()):.2f}" for role, effect in zip(ROLES, found.effects, strict=True))
    lab.note(f"circuit of {model.name}: {names} (largest effects on the answer's log-probability: {strongest})")
    return left, means


def _report_circuit(
    lab: Lab, models: Models, test: Prompts, circuit: Circuit, means: Sequence[Means], whole: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    random = [tracking.random_like(models.base, circuit, lab.rng) for _ in range(_sizes(lab).random)]
    alone = {}
    for model, mean, right, claim in zip((models.base, models.tuned), means, whole, ("circuit-found", "same-circuit"), strict=True):
        nothing, own, most, *null = tracking.alone(model, test, [{}, circuit, tracking.everything(model), *random], mean)
        room = right.mean() - nothing.mean()
        note = f"alone {own.mean():.2f}, whole {right.mean():.2f}, random {np.mean(null):.2f}, no head at all {nothing.mean():.2f}, "
        note += f"every head at the circuit's places {most.mean():.2f}"
        if lab.require(right - nothing, above=0.0, what="track boxes better than without any head", claims=[claim]):
            lab.finding(claim, treated=(own - nothing) / room, control=(np.mean(null, 0) - nothing) / room, note=note)
        alone[f"circuit alone, {'base' if claim == 'circuit-found' else 'tuned'}"] = own
    mine, against = two_drawn(null, lab.rng.spawn(1)[0])  # those of the tuned model; from a stream of its own
    lab.finding("circuit-beats-base", treated=alone["circuit alone, tuned"] - whole[0], control=mine - against)
    groups = tracking.bind(circuit, test)
    parts = [*circuits.random_parts(groups, _sizes(lab).parts, lab.rng), *([group] for group in groups)]
    gaps = circuits.completeness(models.base, test.batch, test.answers, groups, parts, means[0])
    words = ", ".join(f"{role} {gap:.2f}" for role, gap in zip(ROLES, gaps[-len(ROLES) :], strict=True))
    lab.note(f"completeness |F(C−K) − F(M−K)| in the base: random parts {gaps[: -len(ROLES)].mean():.2f}; {words}")
    return alone


def _report_overlap(lab: Lab, models: Models, circuit: Circuit, own: Circuit) -> None:
    every = models.base.anatomy.n_layers * models.base.anatomy.n_heads

    def shared(wanted: Circuit) -> list[float]:
        return [(head in own[role]) - len(own[role]) / every for role, heads in wanted.items() for head in heads]

    random = [value for _ in range(_sizes(lab).random) for value in shared(tracking.random_like(models.base, circuit, lab.rng))]
    inside = {role: sum(head in own[role] for head in heads) for role, heads in circuit.items()}
    words = ", ".join(f"{role}s {inside[role]} of {len(circuit[role])}" for role in ROLES)
    lab.finding("circuits-overlap", treated=shared(circuit), control=random, note=f"in the tuned model's circuit: {words}")


def _report_masks(lab: Lab, models: Models, found: dict[str, Circuit]) -> np.ndarray:
    """What each group carries [model · role, kind]: mean rate of the target, less that of a decoy."""
    n = _sizes(lab).swaps
    kinds: tuple[Kind, ...] = ("position", "object", "label")
    drawn = {
        kind: boxes.swaps(kind, lab.rng, n, models.told, objects=models.objects, labels=models.labels, style=models.style) for kind in kinds
    }
    rates: dict[tuple[str, str, str, bool], np.ndarray] = {}
    jobs = [
        (name, role, kind, null)
        for name in found
        for role in ROLES
        for kind in kinds
        for null in (False, True)
        if kind != "label" or not null
    ]
    for name, role, kind, null in lab.progress(jobs, "learning masks"):
        model = models.base if name == "base" else models.tuned
        rates[name, role, kind, null], _ = tracking.carried(model, drawn[kind], ROLES[role][0], found[name][role], lab.rng, shuffled=null)
    for name in found:
        for kind, claim in (("position", f"position-{name}"), ("object", f"object-{name}")):
            sides = []
            for null in (False, True):
                fetch, transmit, detect, read = (rates[name, role, kind, null] for role in ROLES)
                sides.append((transmit + detect) / 2 - fetch if kind == "position" else fetch - (transmit + detect + read) / 3)
            note = ", ".join(f"{role} {rates[name, role, kind, False].mean():.2f}" for role in ROLES)
            lab.finding(claim, treated=sides[0], control=sides[1], note=note)
    label, n = np.stack([rates["base", role, "label", False] for role in ROLES]), len(rates["base", FETCH, "label", False]) // 2
    most = int(np.abs(label[:, :n].mean(1)).argmax())  # a mean over the groups would hide one that carries it among three that do not
    note = ", ".join(f"{role} {values.mean():.2f}" for role, values in zip(ROLES, label, strict=True))
    lab.finding("no-label", treated=label[most, n:], control=rates["base", FETCH, "object", False], note=note)
    return np.array([[rates[name, role, kind, False].mean() for kind in kinds] for name in found for role in ROLES])


def _report_pastes(lab: Lab, models: Models, test: Prompts, circuit: Circuit, before: np.ndarray) -> dict[str, np.ndarray]:
    lab.listener.step("pasting from model to model", 0, None)
    both, random = (FETCH, TRANSMIT), [tracking.random_like(models.base, circuit, lab.rng) for _ in range(_sizes(lab).random)]

    def gain(wanted: Circuit, roles: Sequence[str] = tuple(ROLES), donor: LanguageModel = models.tuned) -> np.ndarray:
        return tracking.pasted(models.base, donor, test, wanted, roles) - before

    found = {f"{role}s": gain(circuit, (role,)) for role in ROLES} | {"whole circuit": gain(circuit)}
    best, null = gain(circuit, both), [gain(one, both) for one in random]
    note = ", ".join(f"{name} {values.mean():+.2f}" for name, values in found.items())
    lab.finding("better-fetching", treated=best, control=np.mean(null, 0), note=note)
    mine, against = two_drawn(null, lab.rng)
    lab.finding("more-than-detectors", treated=best - found[f"{DETECT}s"], control=mine - against)
    able = np.zeros(len(test)) if models.stranger is None else tracking.right(models.stranger, test)
    if lab.require(able, above=1 / models.told, what="track boxes (an unrelated model)", claims=["needs-one-basis"]) and models.stranger:
        unrelated, itself = (gain(circuit, donor=donor) for donor in (models.stranger, models.base))
        lab.finding("needs-one-basis", treated=unrelated - found["whole circuit"], control=itself)
    return {f"base with the tuned model's {name}": values + before for name, values in found.items()}


def _report_knockout(lab: Lab, model: LanguageModel, test: Prompts) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Answers with an edge cut in more and more layers [layers + 1, n], for each edge, and for random ones."""
    right = {name: tracking.cut(model, test, name, lab.rng) for name in lab.progress(tuple(CUTS), "cutting attention")}
    for name, (own, null) in right.items():
        lab.finding(f"cut-{name}", treated=own[0] - own[-1], control=null[0] - null[-1])
    able = right["object"][0][0] == 1
    depth = [{name: sides[side][1:, able].sum(0) for name, sides in right.items()} for side in (0, 1)]
    dealt = lab.rng.permuted(np.stack(list(depth[1].values())), axis=0)  # cut from two places, at random too, two edges are not alike
    lab.finding("in-bands", treated=depth[0], control=dict(zip(depth[1], dealt, strict=True)))
    return right


def _draw(lab: Lab, rates: dict[str, np.ndarray], masked: np.ndarray, right: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    points = [mean_interval(values) for values in rates.values()]
    bars = Series("", list(rates), [p.estimate for p in points], [max(p.lo, 0) for p in points], [min(p.hi, 1) for p in points], "bars")
    shown = Panel("Base, tuned, circuit alone, pasted", "", "accuracy", (bars,), (0, 1), horizontal=True)
    rows = tuple(f"{role}, {name}" for name in ("base", "tuned") for role in ROLES)
    heat = Heatmap("What masks find", "information", "group", masked.tolist(), "target − decoy", (), ("position", "object", "label"), rows)
    layers = list(range(len(right["object"][0])))
    roles: tuple[Role, ...] = ("effect", "second", "third")
    series = [curve(name, layers, list(right[name][0]), None, role, (0, 1)) for name, role in zip(CUTS, roles, strict=True)]
    null = np.mean([null for _, null in right.values()], 0)
    series.append(curve("random", layers, list(null), None, "control", (0, 1)))
    cut = Panel("Attention cut", "layers cut", "accuracy", tuple(series), (0, 1))
    caption = "Bars and bands: 95% intervals over prompts."
    lab.figure(Figure("entity-tracking", "Entity tracking in base and tuned model", (shown, heat, cut), caption))
