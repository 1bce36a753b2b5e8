"""The parts of an entity tracking circuit, by the names of Prakash et al. 2024, on prompts about boxes: found, bound to prompts, run, masked.

- value fetchers, at the last token: write the answer;
- position transmitters, at the last token: tell the fetchers' queries where to look;
- position detectors, at the label asked about: what the transmitters read there;
- structure readers, where that label was told: what the detectors read there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from nullius.errors import UsageError
from nullius.instruments import circuits, heads, masks
from nullius.instruments.circuit_search import Found, Link, chain
from nullius.instruments.circuits import Group, Keep, Means
from nullius.instruments.heads import Head
from nullius.instruments.masks import Desideratum
from nullius.models.language_model import Batch, LanguageModel
from nullius.stimuli import boxes
from nullius.stimuli.boxes import Boxes, Place, Swap
from nullius.stimuli.prompts import Stimuli

ROLES: dict[str, tuple[Place, Literal["logits", "q", "k", "v"]]] = {
    "value fetcher": ("last", "logits"),
    "position transmitter": ("last", "q"),
    "position detector": ("query label", "v"),
    "structure reader": ("previous label", "v"),
}
Circuit = Mapping[str, tuple[Head, ...]]  # role → its heads


@dataclass(frozen=True)
class Prompts:
    """Prompts of one length [n] with their answers' tokens, and where each place is in each of them."""

    items: Stimuli[Boxes]
    batch: Batch
    answers: tuple[int, ...]
    at: Mapping[Place, tuple[int, ...]]

    @classmethod
    def of(cls, model: LanguageModel, items: Stimuli[Boxes]) -> Prompts:
        """Tokenise. Raises UsageError where objects or labels are not one token each, so that the prompts have no common length."""
        batch = _one_length(model, items)
        answers = tuple(model.first_token(answer) for answer in items.field("answer"))
        places: tuple[Place, ...] = ("last", "query label", "previous label", "object")
        return cls(items, batch, answers, {place: find_place(model, items, place) for place in places})

    def __len__(self) -> int:
        return len(self.items)


def find_place(model: LanguageModel, items: Stimuli[Boxes], place: Place) -> tuple[int, ...]:
    """The position of a place in each prompt [n]."""
    return tuple(model.encode([item.upto(place)]).input_ids.shape[1] - 1 for item in items)


def _one_length(model: LanguageModel, items: Stimuli[Boxes]) -> Batch:
    batch = model.encode(items.field("prompt"))
    if not bool(batch.attention_mask.all()):
        raise UsageError(f"not every object and label is one token for {model.name}: choose words that are (see boxes.draw)")
    return batch


def one_token(model: LanguageModel, words: Sequence[str]) -> tuple[str, ...]:
    """Those of the words that are one token after a space."""
    return tuple(word for word in words if len(model.tokens(f" {word}")) == 1)


@torch.no_grad()
def right(model: LanguageModel, prompts: Prompts) -> np.ndarray:
    """1 where the greedy next token is the answer [n]."""
    return score(model.logits(prompts.batch), prompts)


def score(logits: Tensor, prompts: Prompts) -> np.ndarray:
    """1 where these logits' [n, V] most probable token is the answer [n]."""
    return (logits.argmax(-1).cpu() == torch.tensor(prompts.answers)).double().numpy()


def find(
    model: LanguageModel, prompts: Prompts, others: Stimuli[Boxes], places: Sequence[int], sizes: Mapping[str, int]
) -> tuple[Circuit, Found]:
    """Find the circuit by path patching. others, places: see `boxes.strangers`. sizes: heads of each role, before `prune`."""
    elsewhere = Stimuli.of(other.about(place) for other, place in zip(others, places, strict=True))
    strange = find_place(model, elsewhere, "previous label")
    links = [
        Link(role, sizes[role], prompts.at[place], into, strange if place == "previous label" else None)
        for role, (place, into) in ROLES.items()
    ]
    answers = [[answer] for answer in prompts.answers]
    found = chain(model, prompts.batch, _one_length(model, others), answers, links, metric=lambda scores: scores[:, 0])
    return {group.name: group.heads for group in found.groups}, found


def bind(circuit: Circuit, prompts: Prompts) -> list[Group]:
    """The circuit's groups at their places in these prompts."""
    return [Group(role, tuple(own), prompts.at[ROLES[role][0]]) for role, own in circuit.items()]


def prune(model: LanguageModel, prompts: Prompts, circuit: Circuit, means: Means, least: float = 0.01) -> Circuit:
    """Drop from each role, one after the other, the heads that are not missed (`circuits.minimal`); a role never loses its last head."""
    left = dict(circuit)
    for number, role in enumerate(circuit):
        if len(left[role]) < 2:
            continue
        kept, missed = circuits.minimal(
            model, prompts.batch, prompts.answers, bind(left, prompts), number, means, least=least, score=circuits.probability
        )
        left[role] = kept.heads or (max(left[role], key=lambda head, missed=missed: missed[head]),)  # type: ignore[misc]
    return left


def random_like(model: LanguageModel, circuit: Circuit, rng: np.random.Generator) -> Circuit:
    """Random heads of the same layers in each role, as many, none of the role's own."""
    return {role: tuple(heads.random_heads(model, own, len(own), rng)) if own else () for role, own in circuit.items()}


def alone(model: LanguageModel, prompts: Prompts, wanted: Sequence[Circuit], means: Means) -> np.ndarray:
    """1 where each circuit, alone, gives the answer [circuits, n]; every other head is at its mean by position."""
    keeps = [Keep(tuple(bind(circuit, prompts))) for circuit in wanted]
    return circuits.evaluate(model, prompts.batch, prompts.answers, keeps, means)


def desideratum(model: LanguageModel, swaps: Stimuli[Swap], place: Place) -> Desideratum:
    """The swaps as token ids, heads at one place of both texts."""
    sides = [Stimuli.of(swap.base for swap in swaps), Stimuli.of(swap.source for swap in swaps)]
    base, source = (_one_length(model, side) for side in sides)
    targets = tuple(model.first_token(target) for target in swaps.field("target"))
    return Desideratum(base, source, targets, *(find_place(model, side, place) for side in sides))


def carried(
    model: LanguageModel, pairs: Desideratum, candidates: Sequence[Head], rng: np.random.Generator, epochs: int = 4, shuffled: bool = False
) -> tuple[np.ndarray, tuple[Head, ...]]:
    """Learn a mask over the candidates on half of the pairs; on the last quarter, 1 where the target comes out, less 1 where it does anyway.

    shuffled: targets of other pairs, which nothing can carry. Returns one number a test pair, and the heads found.
    """
    train, validation, test = (part.shuffled(rng) if shuffled else part for part in pairs.split(np.random.default_rng(0)))
    found = masks.learn(model, train, validation, candidates, epochs=epochs, rng=rng).found if candidates else ()
    return masks.accuracy(model, test, found) - masks.accuracy(model, test, ()), found


def draw(
    rng: np.random.Generator, n: int, told: int, objects: Sequence[str], labels: Sequence[str], style: boxes.Style
) -> tuple[Stimuli[Boxes], Stimuli[Boxes], list[int]]:
    """Prompts, and for each of them a strange one and a strange place (`boxes.strangers`)."""
    items = boxes.draw(rng, n, told, objects=objects, labels=labels, style=style)
    return items, *boxes.strangers(items, rng, objects=objects, labels=labels)
