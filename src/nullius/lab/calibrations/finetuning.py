"""Partial finetuning: training the one head that was broken mends a planted tracker; training heads that do nothing does not; all else stays."""

from __future__ import annotations

import numpy as np
import torch

from nullius.instruments import tracking
from nullius.instruments.planted.tracker import LABELS, OBJECTS, TRANSMITTER, wired
from nullius.instruments.tracking import Prompts
from nullius.lab.calibration import Trial, case
from nullius.lab.calibrations.paths import EVERY, WIRED
from nullius.models.language_model import LanguageModel
from nullius.stimuli import boxes
from nullius.training.finetune import finetune
from nullius.training.parts import Parts

BROKEN, STEPS, RATE, MENDED = (1, 3), 25, 0.01, 0.5


@case(
    "partial finetuning",
    planted=f"training the broken transmitter alone, {STEPS} steps, mends more than {MENDED:.0%} of the answers to new prompts that it had lost",
    null="the same training of two idle heads, one at a time; any weight outside the head trained that is not what it was, bit for bit",
    modules=("training.parts", "training.finetune"),
    seeds=20,
)
def broken_head_mended(seed: int) -> Trial:
    """A tracker that does not pass two of four places on: prompts ask about these."""
    rng = np.random.default_rng(seed)
    model = wired(4, broken=BROKEN, seed=seed)
    items = boxes.draw(rng, 300, 4, objects=OBJECTS, labels=LABELS, style="short").where(lambda item: item.index in BROKEN)
    train, test = items.split(0.6, rng)
    prompts, pairs = Prompts.of(model, test), [(item.prompt, item.answer) for item in train]
    before = tracking.right(model, prompts).mean()
    idle = [(head.layer, head.head) for head in EVERY if (head.layer, head.head) not in WIRED.values()]
    mended, moved = [], 0
    for head in (TRANSMITTER, *(idle[i] for i in rng.permutation(len(idle))[:2])):
        parts = Parts(heads=(head,))
        tuned = finetune(model, pairs, STEPS, rate=RATE, seed=seed, parts=parts).model
        mended.append((tracking.right(tuned, prompts).mean() - before) / (1 - before) > MENDED)
        moved += _moved(model, tuned, parts)
    return Trial(mended[0], 1, sum(mended[1:]) + moved, 2 + len(mended))


def _moved(model: LanguageModel, tuned: LanguageModel, parts: Parts) -> bool:
    """Whether any weight outside the parts has changed."""
    masks, after = parts.masks(model), dict(tuned.hf.named_parameters())
    for name, weight in model.hf.named_parameters():
        mask = masks.get(name, torch.zeros_like(weight, dtype=torch.bool))
        if mask is not None and bool(((weight != after[name]) & ~mask).any()):
            return True
    return False
