"""Simulated low precision on a planted direction: what is smaller than half a step of the grid is lost, and nothing else is."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

from nullius.instruments import quantise
from nullius.instruments.planted import direction
from nullius.lab.calibration import Trial, case

TEXTS = 6  # of each tone


@case(
    "low precision",
    planted="a weight of 0.25 to 0.45 steps of its channel's grid, by which good texts are answered, in 3, 4 and 8 bits; one logit larger than"
    " another by three thousandths in bfloat16. Lost where the difference of the answers falls to less than half",
    null="a weight of 0.55 to 0.9 steps in its place; bad texts, which are answered through another channel; four times as much in bfloat16, the same"
    " in float16; after each of these contexts the logits are not what they were, bit for bit",
    modules=("quantise",),
    seeds=20,
)
def half_a_step(seed: int) -> Trial:
    """The step is set by another weight of the same channel, which reads an entry that is always 0."""
    planted, rng = direction.build(seed), np.random.default_rng(seed)
    model, items = planted.model, direction.remarks(rng, 60)
    good, bad = ([item.text for item in items if item.tone == tone][:TEXTS] for tone in (1, 0))
    good_, bad_ = (model.first_token(f" {word}") for word in ("good", "bad"))
    hf: Any = model.hf
    reads, unembed = hf.transformer.h[direction.READ_LAYER].mlp.c_fc.weight, hf.lm_head.weight
    found: list[bool] = []
    alarms: list[bool] = []

    def ask(texts: list[str], context: AbstractContextManager[Any], there: bool) -> None:
        before = model.last_logits(texts)
        with context:
            within = model.last_logits(texts)
        sizes = [float((two[:, good_] - two[:, bad_]).mean()) for two in (before, within)]
        (found if there else alarms).append(sizes[1] / sizes[0] < 0.5)
        alarms.append(not torch.equal(before, model.last_logits(texts)))

    for bits in (3, 4, 8):
        for share, there in ((rng.uniform(0.25, 0.45), True), (rng.uniform(0.55, 0.9), False)):
            with torch.no_grad():  # neuron 0 reads the tone of good texts with a weight of 1
                reads[-1, 0] = (2 ** (bits - 1) - 1) / share
            ask(good, quantise.absmax(model, bits), there)
            ask(bad, quantise.absmax(model, bits), False)
    more = float(rng.uniform(0.0026, 0.003))  # half a step of bfloat16 at 10 is 0.0031 of it
    for factor, dtype, there in ((1, torch.bfloat16, True), (4, torch.bfloat16, False), (1, torch.float16, False)):
        with torch.no_grad():
            unembed[bad_] = (1 + factor * more) * unembed[good_]
        ask(good, quantise.sixteen_bit(model, dtype), there)
    return Trial(sum(found), len(found), sum(alarms), len(alarms))
