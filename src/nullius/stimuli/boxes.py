"""Boxes: what is in which box (the entity tracking task of Kim & Schuster 2023, in the form of Prakash et al. 2024).

"The pen is in Box A, the cup is in Box C, the hat is in Box B. Box C contains the" → " cup". Every prompt of one number of boxes has one shape,
so that a position means the same in all of them wherever objects and labels are one token each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from nullius.stimuli.prompts import Stimuli

OBJECTS = (
    "apple", "ball", "bell", "book", "boot", "bread", "brick", "brush", "cake", "card", "chain", "clock", "coat", "coin", "cup", "dress",
    "drum", "egg", "fan", "flag", "glass", "guitar", "hammer", "hat", "key", "knife", "lamp", "leaf", "letter", "map", "medal", "milk",
    "mirror", "paper", "pen", "phone", "plate", "radio", "ring", "rope", "rose", "shirt", "shoe", "stone", "ticket", "watch", "wheel", "wire",
)  # fmt: skip
LABELS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
Style = Literal["sentence", "short"]
Place = Literal["last", "query label", "previous label", "object"]
STYLES: dict[Style, tuple[str, str, str]] = {  # one box, the last word before it is asked, the question
    "sentence": ("the {object} is in Box {label}", "Box {label}", " contains the"),
    "short": ("{object} in {label}", "{label}", " has"),
}


@dataclass(frozen=True)
class Boxes:
    """Objects and labels of the boxes in the order told, and the label asked about (one of them, or a strange one)."""

    objects: tuple[str, ...]
    labels: tuple[str, ...]
    asked: str
    style: Style = "sentence"

    @property
    def index(self) -> int:
        """The place in the list of the box asked about. Raises ValueError where it is not among them."""
        return self.labels.index(self.asked)

    @property
    def answer(self) -> str:
        """What is in the box asked about, with a leading space."""
        return f" {self.objects[self.index]}"

    @property
    def told(self) -> str:
        """What is said of the boxes."""
        one = STYLES[self.style][0]
        text = ", ".join(one.format(object=thing, label=label) for thing, label in zip(self.objects, self.labels, strict=True))
        return f"{text[0].upper() if self.style == 'sentence' else text[0]}{text[1:]}."

    @property
    def prompt(self) -> str:
        """The whole prompt."""
        return self.upto("query label") + STYLES[self.style][2]

    def upto(self, place: Place) -> str:
        """The prompt up to and with a place: its last token; the label asked about, in the question; where it was told; the object told with it."""
        if place == "last":
            return self.prompt
        if place == "query label":
            return f"{self.told} {STYLES[self.style][1].format(label=self.asked)}"
        before = replace(self, objects=self.objects[: self.index + 1], labels=self.labels[: self.index + 1]).told[:-1]
        if place == "previous label":
            return before
        rest = STYLES[self.style][0].partition("{object}")[2].format(label=self.asked)
        return before[: -len(rest)]

    def about(self, index: int) -> Boxes:
        """The same boxes, another one asked about."""
        return replace(self, asked=self.labels[index])


def draw(
    rng: np.random.Generator,
    n: int,
    boxes: int,
    *,
    objects: Sequence[str] = OBJECTS,
    labels: Sequence[str] = LABELS,
    style: Style = "sentence",
) -> Stimuli[Boxes]:
    """Draw n prompts: objects, labels and the box asked about at random. Raises ValueError for more boxes than there are objects or labels."""
    if not 0 < boxes <= min(len(objects), len(labels)):
        raise ValueError(f"{boxes} boxes need as many objects and labels; there are {len(objects)} and {len(labels)}")
    made = []
    for _ in range(n):
        things, names = (tuple(pool[i] for i in rng.permutation(len(pool))[:boxes]) for pool in (objects, labels))
        made.append(Boxes(things, names, names[int(rng.integers(boxes))], style))
    return Stimuli.of(made)


def strangers(
    items: Stimuli[Boxes], rng: np.random.Generator, *, objects: Sequence[str] = OBJECTS, labels: Sequence[str] = LABELS
) -> tuple[Stimuli[Boxes], list[int]]:
    """For each item other boxes, asked about a label that none of them has; and the place in their list that it would have stood at.

    That place, which differs from the item's own, says where a source value "of another place" is to be taken from.
    """
    made, places = [], []
    for item in items:
        n = len(item.objects)
        other = draw(rng, 1, n, objects=objects, labels=labels, style=item.style)[0]
        absent = [label for label in labels if label not in other.labels]
        made.append(replace(other, asked=absent[int(rng.integers(len(absent)))]))
        places.append(int(rng.choice([i for i in range(n) if i != item.index])))
    return Stimuli.of(made), places


@dataclass(frozen=True)
class Swap:
    """Two prompts and the object that the base should be answered with when one piece of information comes from the source.

    decoy: another object of the text that the target is from; who only guesses says it as often as the target.
    """

    base: Boxes
    source: Boxes
    target: str
    decoy: str


Kind = Literal["position", "object", "label"]


def swaps(
    kind: Kind,
    rng: np.random.Generator,
    n: int,
    boxes: int,
    *,
    objects: Sequence[str] = OBJECTS,
    labels: Sequence[str] = LABELS,
    style: Style = "sentence",
) -> Stimuli[Swap]:
    """Draw n pairs in which the piece of information differs and, if it alone is taken from the source, the answer is the target.

    position: the object of the base at the place asked about in the source. object: the source's answer, which the base does not have. label:
    the base's object under the label asked about in the source; both tell the same labels, and place and label lead to different objects.
    The place asked about differs between base and source in all of them. Raises ValueError for fewer than 4 boxes, or too few objects.
    """
    if boxes < 4 or 2 * boxes > len(objects):
        raise ValueError(f"swaps need at least 4 boxes and twice as many objects as boxes; got {boxes} boxes, {len(objects)} objects")
    made: list[Swap] = []
    while len(made) < n:
        things = [objects[i] for i in rng.permutation(len(objects))[: 2 * boxes]]
        names, others = ([labels[i] for i in rng.permutation(len(labels))[:boxes]] for _ in range(2))
        if kind == "label":
            others = [names[i] for i in rng.permutation(boxes)]
        base = Boxes(tuple(things[:boxes]), tuple(names), names[int(rng.integers(boxes))], style)
        source = Boxes(tuple(things[boxes:]), tuple(others), others[int(rng.integers(boxes))], style)
        if base.index == source.index:
            continue
        if kind == "position":
            target = base.objects[source.index]
        elif kind == "object":
            target = source.objects[source.index]
        else:
            if source.asked == base.asked or base.labels.index(source.asked) == source.index:
                continue
            target = base.objects[base.labels.index(source.asked)]
        pool = source.objects if kind == "object" else base.objects
        told = {"position": {base.index}, "object": set(), "label": {base.index, source.index}}[kind]  # where something else leads to
        decoy = [thing for place, thing in enumerate(pool) if thing != target and place not in told]
        made.append(Swap(base, source, f" {target}", f" {decoy[int(rng.integers(len(decoy)))]}"))
    return Stimuli.of(made)
