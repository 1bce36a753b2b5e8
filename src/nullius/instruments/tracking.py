"""The parts of an entity tracking circuit, by the names of Prakash et al. 2024, on prompts about boxes: found, bound to prompts, run, masked.

- value fetchers, at the last token: write the answer;
- position transmitters, at the last token: tell the fetchers' queries where to look;
- position detectors, at the label asked about: what the transmitters read there;
- structure readers, where that label was told: what the detectors read there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nullius.errors import UsageError
from nullius.instruments import attention_knockout, circuits, cross_model, heads, masks
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


class Sizes(NamedTuple):
    """Prompts to find a circuit on, to take means of, to prune on, to test on; swaps for masks; random circuits; parts for completeness."""

    find: int
    means: int
    prune: int
    test: int
    swaps: int
    random: int
    parts: int


@dataclass(frozen=True)
class Models:
    """Base and tuned model, one that is unrelated to them and as good (None where there is none), and the prompts that they can read."""

    base: LanguageModel
    tuned: LanguageModel
    stranger: LanguageModel | None
    told: int
    objects: tuple[str, ...]
    labels: tuple[str, ...]
    style: boxes.Style

    def draw(self, rng: np.random.Generator, n: int) -> Prompts:
        """New prompts."""
        items = boxes.draw(rng, n, self.told, objects=self.objects, labels=self.labels, style=self.style)
        return Prompts.of(self.base, items)

    def strangers(self, rng: np.random.Generator, prompts: Prompts) -> tuple[Stimuli[Boxes], list[int]]:
        """Prompts that ask about a label that was not told, and a place each."""
        return boxes.strangers(prompts.items, rng, objects=self.objects, labels=self.labels)


def find_place(model: LanguageModel, items: Stimuli[Boxes], place: Place) -> tuple[int, ...]:
    """The position of a place in each prompt [n]."""
    return tuple(model.encode([item.upto(place)]).input_ids.shape[1] - 1 for item in items)


def _one_length(model: LanguageModel, items: Stimuli[Boxes]) -> Batch:
    batch = model.encode(items.field("prompt"))
    if not bool(batch.attention_mask.all()):
        raise UsageError(f"not every object and label is one token for {model.name}: choose words that are (see boxes.draw)")
    return batch


def one_token(model: LanguageModel, words: Sequence[str]) -> tuple[str, ...]:
    """Those of the words that are one token after a space, and not the token for what is unknown."""
    unknown = model.tokenizer.unk_token_id
    return tuple(word for word in words if len(ids := model.tokens(f" {word}")) == 1 and (unknown is None or ids[0] != unknown))


@torch.no_grad()
def right(model: LanguageModel, prompts: Prompts) -> np.ndarray:
    """1 where the greedy next token is the answer [n]."""
    return score(model.logits(prompts.batch), prompts)


def score(logits: Tensor, prompts: Prompts) -> np.ndarray:
    """1 where these logits' [n, V] most probable token is the answer [n]."""
    return (logits.argmax(-1).cpu() == torch.tensor(prompts.answers)).double().numpy()


def guessed(model: LanguageModel, others: Stimuli[Boxes], places: Sequence[int]) -> np.ndarray:
    """1 where the greedy answer is the object at a place, though the label asked about was not told [n]."""
    said = model.last_logits(others.field("prompt")).argmax(-1).numpy()
    return (said == [model.first_token(f" {item.objects[place]}") for item, place in zip(others, places, strict=True)]).astype(float)


def group_sizes(model: LanguageModel) -> dict[str, int]:
    """Heads of each role before `prune`: the paper's shares of all heads (Prakash et al. 2024, of 1,024), and at least 4, 3, 3 and 3."""
    every = model.anatomy.n_layers * model.anatomy.n_heads
    shares = zip(ROLES, (0.057, 0.01, 0.025, 0.005), (4, 3, 3, 3), strict=True)
    return {role: max(least, round(share * every)) for role, share, least in shares}


def find(
    model: LanguageModel,
    prompts: Prompts,
    others: Stimuli[Boxes],
    places: Sequence[int],
    sizes: Mapping[str, int],
    progress: Callable[[Sequence[Link]], Iterable[Link]] = iter,
) -> tuple[Circuit, Found]:
    """Find the circuit by path patching. others, places: see `boxes.strangers`. sizes: heads of each role, before `prune`. progress: wraps the
    roles while they are looked for."""
    elsewhere = Stimuli.of(other.about(place) for other, place in zip(others, places, strict=True))
    strange = find_place(model, elsewhere, "previous label")
    links = [
        Link(role, sizes[role], prompts.at[place], into, strange if place == "previous label" else None)
        for role, (place, into) in ROLES.items()
    ]
    answers = [[answer] for answer in prompts.answers]
    found = chain(model, prompts.batch, _one_length(model, others), answers, links, metric=lambda scores: scores[:, 0], progress=progress)
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


def everything(model: LanguageModel) -> Circuit:
    """Every head in every role: what alone it does not do no circuit at these places can."""
    return {role: tuple(heads.all_heads(model)) for role in ROLES}


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
    model: LanguageModel,
    swaps: Stimuli[Swap],
    place: Place,
    candidates: Sequence[Head],
    rng: np.random.Generator,
    epochs: int = 4,
    shuffled: bool = False,
) -> tuple[np.ndarray, tuple[Head, ...]]:
    """Learn a mask over the candidates on half of the swaps, choose on a quarter; on the last quarter, 1 where the target is said, −1 for the decoy.

    Who only guesses is at 0. shuffled: learned and tested with the targets of other swaps. Returns one number a test swap, and the heads found.
    """
    pairs = desideratum(model, swaps, place)
    decoys = replace(pairs, targets=tuple(model.first_token(decoy) for decoy in swaps.field("decoy")))
    sides = [side.shuffled(np.random.default_rng(1)) if shuffled else side for side in (pairs, decoys)]
    (train, validation, test), (_, _, wrong) = (side.split(np.random.default_rng(0)) for side in sides)
    found = masks.learn(model, train, validation, candidates, epochs=epochs, rng=rng).found if candidates else ()
    said = masks.said(model, test, found)
    return (said == np.array(test.targets)).astype(float) - (said == np.array(wrong.targets)), found


def pasted(
    model: LanguageModel, donor: LanguageModel, prompts: Prompts, circuit: Circuit, roles: Sequence[str] = tuple(ROLES)
) -> np.ndarray:
    """1 where `model` gives the answer [n] with the outputs of some roles' heads taken from `donor`, at the roles' places."""
    groups = [group for group in bind(circuit, prompts) if group.name in roles]
    return score(cross_model.patch(model, donor, prompts.batch, groups), prompts)


CUTS: dict[str, tuple[Place, Place]] = {
    "object": ("last", "object"),
    "query": ("last", "query label"),
    "earlier": ("query label", "previous label"),
}


def cut(model: LanguageModel, prompts: Prompts, name: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """1 where the answer is given with an edge of attention (`CUTS`) cut in no layer, in the first, in the first two, ... [layers + 1, n].

    And the same with the query cut from a random other position, not the first and none of the places.
    """
    query, key = (prompts.at[place] for place in CUTS[name])
    places = [set(row) for row in zip(*prompts.at.values(), strict=True)]
    other = tuple(int(rng.choice([t for t in range(1, at) if t not in own])) for at, own in zip(query, places, strict=True))
    found = []
    for to in (key, other):
        logits = attention_knockout.up_to_each_layer(model, prompts.batch, [(query, to)])
        found.append(np.stack([score(layer, prompts) for layer in logits]))
    return found[0], found[1]
