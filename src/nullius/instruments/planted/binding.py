"""Binding, planted: a reader that answers "Box A contains the" by three pointers at once (the mixture of Gur-Arieh et al. 2025).

Six groups in the words of `nullius.stimuli.binding` (task boxes). What is asked about is found by its label, and the state of the last token then
holds three slots: the place of the group (p), the key asked about (k), and the answer itself (a). The last layer reads them:

- head 3.0 attends to the objects around place p, by a Gaussian of width σ(p): w_pos · exp(−(j − p)² / 2σ(p)²) for the object at place j;
- head 3.1 looks for key k among the groups and says its object, times g_lex of that group's place;
- head 3.2 looks for the object a in the text and says it, times g_ref of its place: a pointer, which a strange object leads nowhere.

With those weights the logits of the six objects are the paper's mixture model, exactly. A pointer that is switched off is not read; with none
(`BLIND`), head 3.3 takes the answer from the question's label, whatever the last token's state says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nullius.instruments.heads import Head
from nullius.instruments.planted.wiring import LOUD, SHARP, Wiring
from nullius.models.language_model import LanguageModel
from nullius.stimuli import binding

GROUPS = 6
OBJECTS, LABELS = binding.TASKS["boxes"].pools[0][:20], binding.TASKS["boxes"].pools[1][:12]
POOLS = (OBJECTS, LABELS)
TELLS, FINDS_PLACE, FINDS_OBJECT = Head(0, 0), Head(1, 0), Head(1, 1)
CARRIES = {"positional": Head(2, 0), "lexical": Head(2, 1), "reflexive": Head(2, 2)}  # to the last token
READS = {"positional": Head(3, 0), "lexical": Head(3, 1), "reflexive": Head(3, 2)}
COPIES = Head(3, 3)  # of the blind reader
DECIDED = 3  # the layer into which the last token's slots go
PER_GROUP, QUESTION, ROOM = 7, 4, 120  # ROOM: for texts that it cannot read
# tokens: "the x is in Box A ,"; "Box A contains the"


@dataclass(frozen=True)
class Mixture:
    """w_pos, σ(p) [6], g_lex [6], g_ref [6]; a weight of 0 switches its pointer off."""

    w_pos: float = 3.0
    sigma: tuple[float, ...] = (0.6, 0.9, 1.2, 1.2, 0.9, 0.6)
    lexical: tuple[float, ...] = (1.5, 2.0, 2.5, 2.5, 3.0, 3.5)
    reflexive: tuple[float, ...] = (3.0, 2.5, 2.0, 2.0, 1.5, 1.5)

    def logits(self, p: int, k: int | None, a: int | None) -> np.ndarray:
        """What it says of the six objects."""
        places = np.arange(GROUPS)
        out = self.w_pos * np.exp(-((places - p) ** 2) / (2 * self.sigma[p] ** 2))
        for table, where in ((self.lexical, k), (self.reflexive, a)):
            if where is not None:
                out[where] += table[where]
        return out


NONE = (0.0,) * GROUPS
FULL = Mixture()
BY_PLACE, BY_KEY, BY_ANSWER = Mixture(lexical=NONE, reflexive=NONE), Mixture(0.0, reflexive=NONE), Mixture(0.0, lexical=NONE)
BLIND = Mixture(0.0, lexical=NONE, reflexive=NONE)


def build(mixture: Mixture = FULL, seed: int = 0) -> LanguageModel:
    """Build the reader: four layers of six heads."""
    words = list(dict.fromkeys(["The", "the", "is", "in", "Box", "contains", ",", ".", *OBJECTS, *LABELS]))
    n, letters = len(OBJECTS), len(LABELS)
    slots = {"object": n, "label": letters, "place": GROUPS, "want": GROUPS, "told": 1, "query": 1, "last": 1, "thing": 1}
    slots |= {"moved": n, "found place": GROUPS, "found": n, "p": GROUPS, "k": letters, "a": n, "out": n}
    length = PER_GROUP * GROUPS + QUESTION + 1
    w = Wiring(words, slots, layers=4, heads=6, d_head=32, length=length + ROOM, seed=seed)
    for i, word in enumerate(OBJECTS):
        w.embed(word, "object", i)
        w.embed(word, "thing")
        w.answer(word, "out", i)
    for i, word in enumerate(LABELS):
        w.embed(word, "label", i)
    for group in range(GROUPS):
        w.place(PER_GROUP * group + 2, "place", group)
        w.place(PER_GROUP * group + 6, "want", group)
        w.place(PER_GROUP * group + 6, "told")
    w.place(length - 3, "query")
    w.place(length - 1, "last")
    w.head(*_at(TELLS), match=[("want", "place")], copy=("object", "moved"))
    w.head(*_at(FINDS_PLACE), match=[("label", "label"), ("query", "told")], copy=("want", "found place"))
    w.head(*_at(FINDS_OBJECT), match=[("label", "label"), ("query", "told")], copy=("moved", "found"))
    for way, slots_ in {"positional": ("found place", "p"), "lexical": ("label", "k"), "reflexive": ("found", "a")}.items():
        w.head(*_at(CARRIES[way]), match=[("last", "query")], copy=slots_)
    _read_place(w, mixture)
    if any(mixture.lexical):
        gates, gain = _gates(mixture.lexical)
        w.head(
            *_at(READS["lexical"]),
            match=[("k", "label"), ("last", "told")],
            copy=("moved", "out"),
            gain=gain,
            tables=[("last", "want", gates), _SINK],
        )
    if any(mixture.reflexive):
        gates, gain = _gates(mixture.reflexive)
        w.head(
            *_at(READS["reflexive"]), match=[("a", "object")], copy=("object", "out"), gain=gain, tables=[("last", "place", gates), _SINK]
        )
    if mixture == BLIND:
        w.head(*_at(COPIES), match=[("last", "query")], copy=("found", "out"))
    return w.model("planted reader")


def _at(head: Head) -> tuple[int, int]:
    return head.layer, head.head


_SINK = (
    "last",
    "first",
    torch.tensor([[SHARP / 2]]),
)  # the first token scores just what a match scores, so that a table decides how much is read


def _read_place(w: Wiring, mixture: Mixture) -> None:
    """Attention to the objects is the Gaussian over a constant: the first token takes the rest."""
    if not mixture.w_pos:
        return
    places = torch.arange(GROUPS, dtype=torch.float64)
    scores = -((places[None] - places[:, None]) ** 2) / (2 * torch.tensor(mixture.sigma, dtype=torch.float64)[:, None] ** 2)
    whole = float(scores.exp().sum(1).max()) + 1
    rest = SHARP / 2 + (whole - scores.exp().sum(1, keepdim=True)).log()
    w.head(
        *_at(READS["positional"]),
        match=[("last", "thing")],
        copy=("object", "out"),
        gain=mixture.w_pos * whole / LOUD,
        tables=[("p", "place", scores.float()), ("p", "first", rest.float())],
    )


def _gates(table: Sequence[float]) -> tuple[torch.Tensor, float]:
    """Scores against the first token that let a share of the gain through, for each place [1, 6]."""
    gain = 1.25 * max(table)
    share = torch.tensor(table, dtype=torch.float64) / gain
    return torch.logit(share.clamp(min=1e-9))[None].float(), gain / LOUD
