"""Taps and attention maps: what was written into a state by hand is read there, and nowhere else."""

from __future__ import annotations

import numpy as np
import torch

from nullius.instruments import attention_maps, taps
from nullius.instruments.planted import direction, induction, modular
from nullius.lab.calibration import Trial, case


@case(
    "taps",
    planted="tone and animacy of a text at the last token, read after layer 0 with their size and sign (to 1 %)",
    null="the same two entries before layer 0, and at every earlier token",
    modules=("taps",),
    seeds=20,
)
def written_entries(seed: int) -> Trial:
    """An entry counts as read where it is more than half of what is written."""
    planted, rng = direction.build(seed), np.random.default_rng(seed)
    items = direction.remarks(rng, 8)
    batch = planted.model.encode([item.text for item in items])
    read = taps.read(planted.model, batch, ["resid_pre", "resid_post"], [0], positions="all")
    total = Trial(0, 0, 0, 0)
    for unit, name in ((planted.tone, "tone"), (planted.alive, "alive")):
        wanted = torch.tensor([2.0 * getattr(item, name) - 1 for item in items])
        after, before = read["resid_post"][0] @ unit, read["resid_pre"][0] @ unit
        found = int(((after[:, -1] - wanted).abs() < 0.01).sum())
        elsewhere = torch.cat([after[:, :-1].flatten(), before.flatten()]).abs() > 0.5
        total += Trial(found, len(items), int(elsewhere.sum()), elsewhere.numel())
    return total


@case(
    "taps",
    planted="the token to which each of two heads attends, read off its pattern (weight above one half)",
    null="every other token of the same pattern",
    modules=("taps", "attention"),
    seeds=20,
)
def attended_tokens(seed: int) -> Trial:
    """Heads 0.0 and 0.1 of the modular sum attend to the two numbers."""
    model = modular.build(seed)
    batch = model.encode([modular.text(a, b) for a in range(modular.MODULUS) for b in range(modular.MODULUS)])
    called = taps.read(model, batch, ["pattern"], [0], heads=[0, 1])["pattern"][0] > 0.5
    truth = torch.zeros_like(called)
    truth[:, 0, modular.FIRST_AT] = truth[:, 1, modular.SECOND_AT] = True
    return Trial(int((called & truth).sum()), int(truth.sum()), int((called & ~truth).sum()), int((~truth).sum()))


@case(
    "attention maps",
    planted="head 0.1 of an induction looks one token back and head 1.2, which finds nothing to match, at the first token: more than half of their"
    " weight",
    null="the same two indicators of all other heads",
    modules=("attention_maps", "attention"),
    seeds=40,
)
def looks_of_heads(seed: int) -> Trial:
    """Texts of eight different words: nothing is repeated, so that the induction head rests."""
    model, rng = induction.build(seed), np.random.default_rng(seed)
    texts = [" ".join(induction.WORDS[i] for i in rng.permutation(len(induction.WORDS))[: induction.LENGTH]) for _ in range(8)]
    found = attention_maps.survey(model, texts)
    total = Trial(0, 0, 0, 0)
    for name, head in (("focus 1", induction.PREVIOUS), ("sink", induction.INDUCTION)):
        called = torch.tensor(found[name]) > 0.5
        hit = bool(called[head.layer, head.head])
        total += Trial(hit, 1, int(called.sum()) - hit, called.numel() - 1)
    return total
