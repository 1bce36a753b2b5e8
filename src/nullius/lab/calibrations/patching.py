"""Patching sweeps on the planted induction and the planted sum: the cells on the way of the answer, and no others."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nullius.instruments import patching
from nullius.instruments.planted import induction, modular
from nullius.lab.calibration import Trial, case

PAIRS, CALLED = 8, 0.2  # share of the difference that a cell must restore to be called


@case(
    "patching",
    planted=f"heads 0.1 and 1.2 of an induction circuit restore more than {CALLED:.0%} of the difference when patched",
    null="the six other heads",
    modules=("patching",),
    seeds=40,
)
def heads_of_induction(seed: int) -> Trial:
    """Texts that differ in the repeated word need both heads."""
    model, rng = induction.build(seed), np.random.default_rng(seed)
    pairs = induction.pairs(rng, PAIRS, "key")
    base, source = ([side.text for side in sides] for sides in zip(*pairs, strict=True))
    answers = [(model.first_token(b.answer), model.first_token(a.answer)) for a, b in pairs]
    called = patching.heads(model, base, source, answers).restored() > CALLED
    truth = torch.zeros_like(called)
    for head in (induction.PREVIOUS, induction.INDUCTION):
        truth[head.layer, head.head] = True
    return tally(called, truth)


@case(
    "patching",
    planted="the answer's token before layer 1, and the last token after it: the cells through which the answer must pass",
    null="all other cells of layer and position from where the texts differ",
    modules=("patching",),
    seeds=20,
)
def residual_stream_of_induction(seed: int) -> Trial:
    """Texts that differ in the answer alone: it stands in its own token until head 1.2 copies it to the last one."""
    model, rng = induction.build(seed), np.random.default_rng(seed)
    total = Trial(0, 0, 0, 0)
    for base, source in induction.pairs(rng, PAIRS):
        answers = [(model.first_token(source.answer), model.first_token(base.answer))]
        sweep = patching.residual(model, [base.text], [source.text], answers, site="resid_post")
        cell = source.place + 1
        truth = torch.zeros(sweep.values.shape[1:], dtype=torch.bool)
        truth[0, cell], truth[1, -1] = True, True
        total += tally((sweep.restored() > CALLED)[:, cell:], truth[:, cell:])
    return total


@case(
    "patching",
    planted=f"of 49 neurons of layer 1 the two that are on for one of two sums restore more than {CALLED:.0%} of the difference each; the two"
    " dimensions of the last token's state after layer 0 that hold the first number more than half",
    null="the 96 other neurons; two dimensions there that hold the second number",
    modules=("patching",),
    seeds=20,
)
def neurons_and_subspaces(seed: int) -> Trial:
    """Two sums that differ in the first number: what it changes at "=" are two of its dimensions there, and two neurons."""
    model, rng = modular.build(seed), np.random.default_rng(seed)
    total, size = Trial(0, 0, 0, 0), modular.MODULUS
    for _ in range(2):
        one, other = (int(i) for i in rng.permutation(size)[:2])
        b = int(rng.integers(size))
        base, source = ([modular.text(a, b)] for a in (one, other))
        answers = [(model.first_token(modular.answer(other, b)), model.first_token(modular.answer(one, b)))]
        called = patching.neurons(model, base, source, answers, blocks=size**2).restored() > CALLED
        truth = torch.zeros_like(called)
        truth[modular.SUM_LAYER, [size * one + b, size * other + b]] = True
        total += tally(called, truth)
        start = size + 3  # behind the slots of the text's own numbers and of the three marks
        for places, there in (((one, other), True), ((size + b, size + (b + 1) % size), False)):
            basis = torch.eye(model.anatomy.d_model)[[start + place for place in places]]
            sweep = patching.residual(model, base, source, answers, site="resid_post", basis=basis)
            restored = bool(sweep.restored()[0, -1] > 0.5)
            total += Trial(int(restored), 1, 0, 0) if there else Trial(0, 0, int(restored), 1)
    return total


def tally(called: Tensor, truth: Tensor) -> Trial:
    """Count what was called against what is true, both [..]."""
    found, alarms = int((called & truth).sum()), int((called & ~truth).sum())
    return Trial(found, int(truth.sum()), alarms, int((~truth).sum()))
