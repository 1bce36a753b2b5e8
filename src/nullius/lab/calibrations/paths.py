"""Path patching, circuits, masks, pasting and knockout on the tracker that was wired by hand: the four heads of the chain, and no others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from nullius.instruments import circuits, edges, masks, tracking
from nullius.instruments.edges import Edge
from nullius.instruments.heads import Head
from nullius.instruments.planted.tracker import DETECTOR, FETCHER, HEADS, LABELS, LAYERS, OBJECTS, STRUCTURE, TRANSMITTER, wired
from nullius.instruments.tracking import CUTS, ROLES, Prompts
from nullius.lab.calibration import Trial, case
from nullius.models.language_model import LanguageModel
from nullius.stimuli import boxes
from nullius.stimuli.boxes import Kind, Place

WIRED = dict(zip(ROLES, (FETCHER, TRANSMITTER, DETECTOR, STRUCTURE), strict=True))
EVERY = [Head(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
EFFECT = 0.2  # nats, or share of the whole: what counts as found


def _prompts(model: LanguageModel, rng: np.random.Generator, n: int) -> Prompts:
    return Prompts.of(model, boxes.draw(rng, n, 4, objects=OBJECTS, labels=LABELS, style="short"))


def _tally(called: Iterable[Head], planted: Iterable[tuple[int, int]], among: Sequence[Head] = EVERY) -> Trial:
    """Heads called among candidates, against those that were wired."""
    found, truth = {(head.layer, head.head) for head in called}, set(planted)
    null = {(head.layer, head.head) for head in among} - truth
    return Trial(len(found & truth), len(truth), len(found & null), len(null))


@case(
    "path patching",
    planted=f"along each link of the wired tracker's chain, one head takes more than {EFFECT} nats off the answer's log-probability",
    null="the fifteen other heads at each link",
    modules=("paths", "path_runs", "circuit_search"),
    seeds=10,
)
def chain_of_the_tracker(seed: int) -> Trial:
    """Fetcher → its queries' teller → that one's → that one's."""
    model, rng = wired(4, seed=seed), np.random.default_rng(seed)
    prompts = _prompts(model, rng, 24)
    others = boxes.strangers(prompts.items, rng, objects=OBJECTS, labels=LABELS)
    _, found = tracking.find(model, prompts, *others, dict.fromkeys(ROLES, 1))
    total = Trial(0, 0, 0, 0)
    for role, effect in zip(ROLES, found.effects, strict=True):
        called = [head for head in EVERY if float(effect[head.layer, head.head]) < -EFFECT]
        total += _tally(called, [WIRED[role]])
    return total


@case(
    "edge attribution",
    planted=f"the four edges through which the label asked about decides have a score of more than {EFFECT:.0%} of the whole difference",
    null="all other edges",
    modules=("edges", "edge_runs"),
    seeds=20,
)
def edges_of_the_tracker(seed: int) -> Trial:
    """Pairs that ask about different boxes of one list: only the label at the end differs. Gradients averaged along the way, 16 points."""
    model, rng = wired(4, seed=seed), np.random.default_rng(seed)
    items = boxes.draw(rng, 4, 4, objects=OBJECTS, labels=LABELS, style="short")
    asked = [item.about(int((item.index + rng.integers(1, 4)) % 4)) for item in items]
    answers = [[model.first_token(item.answer), model.first_token(other.answer)] for item, other in zip(items, asked, strict=True)]
    found = edges.attribute(model, items.field("prompt"), [other.prompt for other in asked], answers, steps=16)
    whole = torch.stack([torch.ones_like(found.nodes.allowed), torch.zeros_like(found.nodes.allowed)])
    here, there = edges.run(model, items.field("prompt"), [other.prompt for other in asked], answers, whole).mean(1).tolist()
    d, t, f = (f"{layer}.{head}" for layer, head in (DETECTOR, TRANSMITTER, FETCHER))
    truth = found.nodes.mask([Edge("embed", f"q {d}"), Edge(d, f"v {t}"), Edge(t, f"q {f}"), Edge(f, "logits")])
    called = (found.scores.mean(0).abs() > EFFECT * abs(here - there)) & found.nodes.allowed
    null = found.nodes.allowed & ~truth
    return Trial(int((called & truth).sum()), 4, int((called & null).sum()), int(null.sum()))


@case(
    "component masks",
    planted="the mask for the position finds the detector and, at the last token, the transmitter; the one for the object the fetcher",
    null="the fifteen other heads in each, and every head for the label, which this tracker does not carry",
    modules=("masks",),
    seeds=20,
)
def masks_of_the_tracker(seed: int) -> Trial:
    """A mask that does not bring the target out on more than half of the test pairs has found nothing."""
    model, rng = wired(4, seed=seed), np.random.default_rng(seed)
    asked: tuple[tuple[Kind, Place, list[tuple[int, int]]], ...] = (
        ("position", "query label", [DETECTOR]),
        ("position", "last", [TRANSMITTER]),
        ("object", "last", [FETCHER]),
        ("label", "last", []),
    )
    total = Trial(0, 0, 0, 0)
    for kind, place, truth in asked:
        swaps = boxes.swaps(kind, rng, 64, 4, objects=OBJECTS, labels=LABELS, style="short")
        train, validation, test = tracking.desideratum(model, swaps, place).split(rng)
        found = masks.learn(model, train, validation, EVERY, epochs=6, rng=rng).found
        called = found if masks.accuracy(model, test, found).mean() > 0.5 else ()
        total += _tally(called, truth)
    return total


@case(
    "cross-model patching",
    planted=f"transmitter and fetcher of the whole tracker, pasted alone, add more than {EFFECT:.0%} to one whose transmitter is half broken",
    null="the fourteen other heads, each pasted at the last token; all heads pasted from the broken one itself",
    modules=("cross_model",),
    seeds=10,
)
def pastes_into_a_broken_tracker(seed: int) -> Trial:
    """Two of four places are not passed on by the broken one: prompts ask about these."""
    broken = (1, 3)
    model, donor = wired(4, broken=broken, seed=seed), wired(4, seed=seed)
    items = boxes.draw(np.random.default_rng(seed), 96, 4, objects=OBJECTS, labels=LABELS, style="short")
    prompts = Prompts.of(model, items.where(lambda item: item.index in broken))
    before = tracking.right(model, prompts)

    def gain(head: Head, giver: LanguageModel) -> float:
        circuit: Mapping[str, tuple[Head, ...]] = {"value fetcher": (head,)}
        return float((tracking.pasted(model, giver, prompts, circuit) - before).mean())

    from_itself = sum(gain(head, model) != 0 for head in EVERY)
    return _tally([head for head in EVERY if gain(head, donor) > EFFECT], [TRANSMITTER, FETCHER]) + Trial(0, 0, from_itself, len(EVERY))


@case(
    "circuits",
    planted="pruning keeps the four wired heads, which alone do what the whole tracker does",
    null="two idle heads added to each group, which pruning drops; the idle heads alone, which do nothing",
    modules=("circuits",),
    seeds=8,
)
def minimal_circuit_of_the_tracker(seed: int) -> Trial:
    """Kept: missed by at least a hundredth of the answer's probability."""
    model, rng = wired(4, seed=seed), np.random.default_rng(seed)
    idle = [head for head in EVERY if (head.layer, head.head) not in WIRED.values()]
    padded = {role: (Head(*own), *(idle[i] for i in rng.permutation(len(idle))[:2])) for role, own in WIRED.items()}
    means = circuits.position_means(model, _prompts(model, rng, 64).batch)
    left = tracking.prune(model, _prompts(model, rng, 48), padded, means)
    total = Trial(0, 0, 0, 0)
    for role, own in WIRED.items():
        total += _tally(left[role], [own], padded[role])
    test = _prompts(model, rng, 48)
    alone, nothing = tracking.alone(
        model, test, [{role: (Head(*own),) for role, own in WIRED.items()}, dict.fromkeys(ROLES, tuple(idle))], means
    )
    whole = tracking.right(model, test)
    return total + Trial(int(circuits.faithfulness(alone, whole) >= 0.95), 1, int(circuits.faithfulness(nothing, whole) > 0.5), 1)


@case(
    "attention knockout",
    planted=f"each of the chain's three edges of attention, cut in all layers, costs more than {EFFECT:.0%} of the answers",
    null="the same positions cut from random others",
    modules=("attention_knockout",),
)
def edges_of_attention(seed: int) -> Trial:
    """From the last token to the object and to the label asked about, and from that to where it was told."""
    model, rng = wired(4, seed=seed), np.random.default_rng(seed)
    prompts = _prompts(model, rng, 48)
    losses = [[float((side[0] - side[-1]).mean()) for side in tracking.cut(model, prompts, name, rng)] for name in CUTS]
    return Trial(sum(own > EFFECT for own, _ in losses), len(losses), sum(null > EFFECT for _, null in losses), len(losses))
