"""Heads turned off, and what heads write: a copying head that overrides a memory, known head by head."""

from __future__ import annotations

import numpy as np
import torch

from nullius.instruments import damage, head_choice, heads
from nullius.instruments.heads import Contrast, Head, Scaling
from nullius.instruments.planted import recall
from nullius.lab.calibration import Trial, case
from nullius.lab.calibrations.patching import tally
from nullius.models.language_model import LanguageModel

TEXTS, HALF = 12, 0.5


def _contest(seed: int) -> tuple[LanguageModel, Contrast]:
    """The city in the text (first) against the capital in memory (second)."""
    model, rng = recall.build(seed), np.random.default_rng(seed)
    return model, _contrast(model, recall.conflicts(rng, TEXTS))


def _contrast(model: LanguageModel, items: list[recall.Conflict]) -> Contrast:
    context, memory = (tuple(model.first_token(getattr(item, side)) for item in items) for side in ("context", "memory"))
    return Contrast(tuple(item.text for item in items), context, memory)


def _only(model: LanguageModel, *true: Head) -> torch.Tensor:
    truth = torch.zeros(model.anatomy.n_layers, model.anatomy.n_heads, dtype=torch.bool)
    for head in true:
        truth[head.layer, head.head] = True
    return truth


@case(
    "head scaling",
    planted="scaled by 0, the copying head 2.2 loses half of the in-context answers or more",
    null="the eleven other heads",
    modules=("heads",),
    seeds=40,
)
def copying_head_off(seed: int) -> Trial:
    """Memory answers as soon as the copying head is silent."""
    model, contrast = _contest(seed)
    settings: list[heads.Setting] = [Scaling(head, 0.0) for head in heads.all_heads(model)]
    rates = heads.sweep(model, contrast, [None, *settings]).first.mean(1)
    called = torch.tensor(rates[0] - rates[1:] >= HALF).view(model.anatomy.n_layers, -1)
    return tally(called, _only(model, recall.COPY_HEAD))


@case(
    "direct logit attribution",
    planted="head 2.2 writes more than half of the logit difference between context and memory",
    null="the eleven other heads",
    modules=("heads",),
    seeds=40,
)
def copying_head_writes(seed: int) -> Trial:
    """The head writes its city by itself."""
    model, contrast = _contest(seed)
    written = heads.attribution(model, contrast).mean(0)
    whole = heads.sweep(model, contrast, [None]).difference.mean()
    return tally(written > HALF * whole, _only(model, recall.COPY_HEAD))


@case(
    "direct logit attribution",
    planted="head 0.1, which fetches the country from which the feed-forward block recalls the capital",
    null="the eleven other heads",
    modules=("heads",),
    seeds=20,
    by_nature="it counts what a head writes into the logits directly: a head that others read is invisible to it, however much depends on it",
)
def head_that_others_read(seed: int) -> Trial:
    """Without a city in the text the capital depends on head 0.1 alone, which writes nothing for it."""
    model, rng = recall.build(seed), np.random.default_rng(seed)
    countries = [str(name) for name in rng.choice(list(recall.CAPITALS), TEXTS // 2, replace=False)]
    right = [model.first_token(f" {recall.CAPITALS[name]}") for name in countries]
    contrast = Contrast(tuple(recall.plain(name) for name in countries), tuple(right), tuple(np.roll(right, 1).tolist()))
    written = heads.attribution(model, contrast).mean(0)
    whole = heads.sweep(model, contrast, [None]).difference.mean()
    return tally(written > HALF * whole, _only(model, recall.FETCH))


@case(
    "damage",
    planted="scaling head 0.1 or head 2.2 by 0 loses half of the right answers or more",
    null="the ten other heads, scaled by −2",
    modules=("damage",),
    seeds=12,
)
def answers_lost(seed: int) -> Trial:
    """Right answers are the capitals where the text names no city, and the city where it names one."""
    model, rng = recall.build(seed), np.random.default_rng(seed)
    countries = [str(name) for name in rng.choice(list(recall.CAPITALS), TEXTS // 2, replace=False)]
    items = recall.conflicts(rng, TEXTS // 2)
    tasks = {
        recall.FETCH: ([recall.plain(name) for name in countries], [f" {recall.CAPITALS[name]}" for name in countries]),
        recall.COPY_HEAD: ([item.text for item in items], [item.context for item in items]),
    }
    total = Trial(0, 0, 0, 0)
    for true, (prompts, wanted) in tasks.items():
        tokens = [model.first_token(word) for word in wanted]
        for head in heads.all_heads(model):
            if head != true and head in tasks:
                continue
            scaling = Scaling(head, 0.0 if head == true else -2.0)
            lost = damage.damage(model, prompts, tokens, scaling, prompts).kept.mean() <= 1 - HALF
            total += Trial(int(lost), 1, 0, 0) if head == true else Trial(0, 0, int(lost), 1)
    return total


@case(
    "head choice",
    planted="of head 2.2 and five others, off or halved, head 2.2 is chosen towards memory, which then has half of the answers of new texts or more",
    null="the best of the five others; the best of each half of the six heads that are left",
    modules=("head_choice", "heads"),
    seeds=20,
)
def chosen_among_six(seed: int) -> Trial:
    """Chosen on six texts, tried on six others."""
    model, rng = recall.build(seed), np.random.default_rng(seed)
    texts = [_contrast(model, recall.conflicts(rng, TEXTS // 2)) for _ in range(2)]
    idle = [head for head in heads.all_heads(model) if head != recall.COPY_HEAD]
    others = [idle[i] for i in rng.permutation(len(idle))[:5]]
    found, best = (head_choice.choose(model, texts[0], some, (0.0, 0.5), rng)["second"] for some in ([recall.COPY_HEAD, *others], others))
    tried = heads.sweep(model, texts[1], [found.chosen, best.chosen, *found.rivals]).second.mean(1) >= HALF
    return Trial(int(tried[0] and found.chosen.head == recall.COPY_HEAD), 1, int(tried[1:].sum()), 3)
