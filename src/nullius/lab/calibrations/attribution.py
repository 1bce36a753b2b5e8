"""Attribution patching: exact where the model is linear in what is patched, blind where an attention has decided."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from nullius.instruments import attribution
from nullius.instruments.planted import induction
from nullius.lab.calibration import Trial, case
from nullius.lab.calibrations.patching import CALLED, PAIRS, tally


def _heads(seed: int, changed: Literal["answer", "key"], steps: int) -> Trial:
    """Heads of the induction whose estimated effect is more than CALLED of the whole difference."""
    model, rng = induction.build(seed), np.random.default_rng(seed)
    pairs = induction.pairs(rng, PAIRS, changed)
    base, source = ([side.text for side in sides] for sides in zip(*pairs, strict=True))
    answers = torch.tensor([(model.first_token(b.answer), model.first_token(a.answer)) for a, b in pairs])
    plain = [(logits[:, 0] - logits[:, 1]).mean() for logits in (model.last_logits(side).gather(1, answers) for side in (base, source))]
    estimated = attribution.attribution(model, base, source, answers.tolist(), site="z", steps=steps).mean(0)
    called = (estimated / (plain[1] - plain[0])) > CALLED
    truth = torch.zeros_like(called)
    for head in (induction.INDUCTION,) if changed == "answer" else (induction.PREVIOUS, induction.INDUCTION):
        truth[head.layer, head.head] = True
    return tally(called, truth)


@case(
    "attribution patching",
    planted=f"head 1.2 of an induction, whose estimated effect of another word to copy is above {CALLED:.0%} of the difference",
    null="the seven other heads",
    modules=("attribution",),
    seeds=40,
)
def copied_word(seed: int) -> Trial:
    """What is copied changes, where it is copied from does not: the way from the word to the logits is linear."""
    return _heads(seed, "answer", 1)


@case(
    "attribution patching",
    planted="heads 0.1 and 1.2 of an induction whose base text has nothing to match",
    null="the six other heads",
    modules=("attribution",),
    seeds=20,
    by_nature="head 0.1 acts through the attention of head 1.2, which is saturated in the base run: its gradient there is zero, and the exact"
    " sweep alone sees it",
)
def saturated_attention(seed: int) -> Trial:
    """Where head 1.2 attends changes."""
    return _heads(seed, "key", 1)


@case(
    "integrated gradients",
    planted=f"heads 0.1 and 1.2 of an induction whose base text has nothing to match: by 20 steps above {CALLED:.0%} of the difference",
    null="the six other heads",
    modules=("attribution",),
    seeds=20,
)
def saturated_attention_in_steps(seed: int) -> Trial:
    """The same with the gradient averaged along the way."""
    return _heads(seed, "key", 20)
