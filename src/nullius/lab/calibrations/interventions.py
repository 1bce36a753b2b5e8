"""Interventions, screened sweeps and knock-outs on the planted induction: its two heads, and none of the six others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from nullius.instruments import heads, interventions, knockout, screening, taps
from nullius.instruments.interventions import Where
from nullius.instruments.planted import induction
from nullius.lab.calibration import Trial, case

PAIRS, CALLED = 8, 0.2
CIRCUIT = {induction.PREVIOUS, induction.INDUCTION}


@case(
    "interventions",
    planted=f"one head's output taken from a text with another key moves the answer by more than {CALLED:.0%} of the difference: heads 0.1 and 1.2",
    null="the six other heads",
    modules=("interventions",),
    seeds=20,
)
def interchanged_heads(seed: int) -> Trial:
    """All heads at once: rows of one batch, each with an intervention of its own."""
    model, rng = induction.build(seed), np.random.default_rng(seed)
    everything = heads.all_heads(model)
    moved = np.zeros(len(everything))
    for base, source in induction.pairs(rng, PAIRS, "key"):
        answer = [model.first_token(side.answer) for side in (base, source)]
        there = taps.read(model, model.encode([source.text]), ["z"], positions="all")["z"]
        rows = [
            interventions.interchange(Where("z", head.layer, heads=[head.head], rows=[row]), there[head.layer])
            for row, head in enumerate(everything)
        ]
        with torch.no_grad(), interventions.applied(model, rows):
            patched = model.logits(model.encode([base.text] * len(everything)))
        plain = model.last_logits([base.text, source.text])
        difference = [logits[..., answer[1]] - logits[..., answer[0]] for logits in (patched, *plain)]
        moved += ((difference[0] - difference[1]) / (difference[2] - difference[1])).numpy() / PAIRS
    return _tally({head for head, share in zip(everything, moved, strict=True) if share > CALLED}, len(everything))


@case(
    "interventions",
    planted="without head 0.1, or without head 1.2, fewer than half of the answers are left: set to 0, to its mean, and to its value in another text",
    null="the six other heads in each way, and every head scaled by 1 or taken from its own text",
    modules=("interventions", "where"),
    seeds=20,
)
def ablated_heads(seed: int) -> Trial:
    """Texts with answers of their own; a head is ablated at all positions."""
    model, rng = induction.build(seed), np.random.default_rng(seed)
    texts = [side for pair in induction.pairs(rng, PAIRS, "key") for side in pair]
    batch = model.encode([side.text for side in texts])
    wanted = torch.tensor([model.first_token(side.answer) for side in texts])
    there = taps.read(model, batch, ["z"], positions="all")["z"]
    mean, donors = interventions.means(model, [side.text for side in texts], "z"), interventions.others(len(texts), rng)
    everything, total = heads.all_heads(model), Trial(0, 0, 0, 0)

    def left(change: interventions.Intervention) -> bool:
        with torch.no_grad(), interventions.applied(model, [change]):
            return bool((model.logits(batch).argmax(-1) == wanted).float().mean() >= 0.5)

    def lost(ways: Callable[[Where, int], interventions.Intervention]) -> set[heads.Head]:
        return {head for head in everything if not left(ways(Where("z", head.layer, heads=[head.head]), head.layer))}

    for away in (
        lost(lambda where, _: interventions.set_to(where, 0.0)),
        lost(lambda where, layer: interventions.mean_ablate(where, mean[layer])),
        lost(lambda where, layer: interventions.resample_ablate(where, there[layer], donors)),
    ):
        total += _tally(away, len(everything))
    for same in (
        lost(lambda where, _: interventions.scale(where, 1.0)),
        lost(lambda where, layer: interventions.interchange(where, there[layer])),
    ):
        total += Trial(0, 0, len(same), len(everything))
    return total


@case(
    "screened patching",
    planted="heads 0.1 and 1.2 are the two best of a screened sweep (integrated gradients in 8 steps, 4 candidates, 3 drawn)",
    null="the six other heads",
    modules=("screening",),
    seeds=20,
)
def screened_heads(seed: int) -> Trial:
    """The estimate puts forward, exact cells decide."""
    model, rng = induction.build(seed), np.random.default_rng(seed)
    pairs = induction.pairs(rng, PAIRS, "key")
    base, source = ([side.text for side in sides] for sides in zip(*pairs, strict=True))
    answers = [(model.first_token(b.answer), model.first_token(a.answer)) for a, b in pairs]
    found = screening.heads(model, base, source, answers, top=2, candidates=4, sample=3, steps=8, seed=seed)
    return _tally({heads.Head(*cell) for cell in found.best}, model.anatomy.n_layers * model.anatomy.n_heads)


@case(
    "knock-out",
    planted="without head 0.1, or without head 1.2, fewer than half of the answers are left",
    null="the six other heads",
    modules=("knockout",),
    seeds=20,
)
def knocked_out_heads(seed: int) -> Trial:
    """Each head of each text in turn is replaced by its mean over all of them, position by position."""
    model, rng = induction.build(seed), np.random.default_rng(seed)
    texts = [side for pair in induction.pairs(rng, 2 * PAIRS, "key") for side in pair]
    batch = model.encode([side.text for side in texts])
    wanted = torch.tensor([model.first_token(side.answer) for side in texts])
    mean, everything = knockout.mean_by_position(model, batch), heads.all_heads(model)
    left = {
        head: (knockout.last_logits(model, batch, [[head]] * len(texts), mean).argmax(-1) == wanted).float().mean() for head in everything
    }
    return _tally({head for head, rate in left.items() if rate < 0.5}, len(everything))


def _tally(called: set[heads.Head], of: int) -> Trial:
    return Trial(len(called & CIRCUIT), len(CIRCUIT), len(called - CIRCUIT), of - len(CIRCUIT))
