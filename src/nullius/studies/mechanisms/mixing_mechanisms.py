"""Mixing Mechanisms: How Language Models Retrieve Bound Entities In-Context (Gur-Arieh, Geva & Geiger 2025, arXiv 2510.06182).

"The apple is in Box C, the lamp is in Box A, ... The lamp is in Box": how is the answer found? By the place of the group in the list, by the key
asked about, or by a pointer to the answer itself. In a source text those three part ways; its last token's state, put into the base, makes the
model answer with the group to which whatever it keeps points. docs/studies/mixing-mechanisms.md says what differs from the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from nullius.instruments import binding_pointers
from nullius.instruments import pointer_mixture as mixture
from nullius.instruments.binding_pointers import Asked, Seen
from nullius.instruments.pointer_mixture import TERMS
from nullius.lab import Claim, Figure, Lab, Needs, Panel, above_control, at_least, equivalent, study
from nullius.lab.curves import curve
from nullius.lab.figures import Role
from nullius.stimuli import binding

RESTS_ON = ("interchange interventions",)
MIXTURE = (*RESTS_ON, "pointer mixture")
STRANGE = "sources whose key and answer the base does not have, and two of its groups drawn at random"
OTHER = "the same with the sources' keys and answers strange to the base, its places drawn at random"
ROLES: tuple[tuple[str, Role], ...] = (("positional", "effect"), ("lexical", "second"), ("reflexive", "third"), ("unchanged", "control"))


APART = "where key and answer point to different groups"


def _share(name: str, what: str, control: str) -> Claim:
    words = f"The last token keeps {what}: with its state from the source the base answers with that group more often than with an unrelated one"
    words += "" if name == "positional" else f", {APART}"
    return Claim(f"{name}-mechanism", words, above_control(0.05), control, unit="difference of shares", rests_on=RESTS_ON)


def _term(name: str) -> Claim:
    words = f"Without its {name} term the mixture of three pointers predicts held-out cells less well"
    control = "the same with that pointer's place shuffled over cells before the fit"
    return Claim(f"needs-{name}-term", words, above_control(0.005), control, unit="similarity (1 − JSD)", rests_on=MIXTURE)


def _fillers(name: str, what: str, margin: float, unit: str) -> Claim:
    words, control = f"Sentences without entities between the groups {what}", "two halves of the pairs without such sentences"
    return Claim(name, words, above_control(margin), control, unit=unit, rests_on=RESTS_ON)


CLAIMS = (
    _share("positional", "the place of the group asked about", "two places drawn at random"),
    _share("lexical", "the key asked about", STRANGE),
    _share("reflexive", "a pointer to the answer", STRANGE),
    Claim(
        "places-sharp-at-ends",
        "The positional mechanism is reliable for the first and last groups and noisy between (ends minus middle, a quadratic contrast)",
        above_control(0.05),
        control="places shuffled over pairs",
        unit="difference of shares",
        rests_on=RESTS_ON,
    ),
    Claim(
        "answer-first-reflexive",
        f"{APART.capitalize()}, the reflexive mechanism leads by more if the answer is the first entity of its group than if it is the last",
        above_control(0.05),
        control=OTHER,
        unit="difference of leads",
        rests_on=RESTS_ON,
    ),
    Claim(
        "answer-last-lexical",
        f"If the answer is the last entity of its group, the lexical mechanism leads the reflexive one, {APART}",
        above_control(0.05),
        control=OTHER,
        unit="difference of shares",
        rests_on=RESTS_ON,
    ),
    Claim(
        "mixture-beats-rivals",
        "A mixture of three pointers predicts held-out cells better than the place alone (one-hot) and than chance, whichever is better",
        above_control(0.05),
        control="targets permuted over cells, where there is nothing to predict",
        published="0.95; the place alone 0.44, chance 0.50",
        unit="similarity (1 − JSD)",
        rests_on=MIXTURE,
    ),
    *(_term(name) for name in TERMS),
    Claim(
        "mixture-agrees",
        "The mixture predicts the distribution over twenty groups nearly as well as can be (similarity on held-out cells)",
        at_least(0.9, null=0.5),
        control="the place alone (one-hot)",
        published=0.95,
        unit="similarity (1 − JSD)",
        needs=Needs(parameters=2e9, full=True),
        rests_on=MIXTURE,
    ),
    Claim(
        "pointer-not-answer",
        "The reflexive signal is a pointer: an answer that the base does not contain is not said when the state comes from its source",
        equivalent(0.1),
        control="the source text itself, read to its end: there that answer must be said",
        unit="rate of the source's answer",
        rests_on=RESTS_ON,
    ),
    _fillers("fillers-weaken-keys", f"weaken the lexical mechanism, {APART}", 0.05, "fall of the share"),
    _fillers("fillers-blur-places", "blur the positional mechanism", 0.1, "rise of the distance, in groups"),
    Claim(
        "nothing-moves-unasked",
        "The state of the text itself, or that of the source before the first layer, changes no answer",
        equivalent(0.1),
        control="the source's state at the layer chosen, which must change answers",
        unit="share of answers changed",
        rests_on=RESTS_ON,
    ),
    Claim(
        "same-pattern-everywhere",
        "Nine models of three families mix the three mechanisms in the same pattern over ten tasks",
        above_control(0.0),
        control="patterns of different tasks paired at random",
        unit="correlation of patterns",
        needs=Needs(parameters=2e9, also="several models side by side (`nullius compare mixing-mechanisms -m A -m B`)"),
    ),
)


@study("mixing-mechanisms", claims=CLAIMS, minutes=3.0, subject="gemma3-270m")
def mixing_mechanisms(lab: Lab) -> None:
    """The way of asking and the layer are chosen on their own texts; all else is measured on others."""
    task, n = binding.TASKS["boxes"], lab.scale(quick=6, full=20)
    pools = binding.single(task, lab.subject.tokens, lab.subject.tokenizer.unk_token_id)
    if min(map(len, pools)) < n + 1:
        lab.require([], above=0.5, what=f"have {n + 1} words of each category that are one token")
    main, other = _choose_way(lab, [Asked(task, n, key, answer, pools) for key, answer in ((1, 0), (0, 1))])
    _gate(lab, main, f"say which of {n} bound entities goes with another")
    layer = _choose_layer(lab, main)
    whole = _see(lab, main, lab.scale(quick=150, full=3000), layer)
    seen = whole.apart()
    strange = _see(lab, main, lab.scale(quick=48, full=400), layer, "both new")
    said = binding_pointers.says_chosen(lab.subject, whole).mean()
    lab.note(f"the candidate with the largest logit is what is emitted, out of all words, in {said:.2f} of pairs")
    for name in ("positional", "lexical", "reflexive"):
        control = seen.random_lead(lab.rng) if name == "positional" else strange.random_lead(lab.rng)
        note = f"{seen.share(name):.2f} of answers; chance {1 / n:.2f}; unchanged {seen.share('unchanged'):.2f}; layer {layer}"
        lab.finding(f"{name}-mechanism", treated=seen.lead(seen.at(name)), control=control, note=note)
    places = seen.at("positional")
    lab.finding("places-sharp-at-ends", treated=seen.ends(places), control=seen.ends(lab.rng.permutation(places)))
    _report_mixture(lab, whole)
    _report_pointer(lab, main, layer)
    _report_sanity(lab, seen, layer)
    _report_fillers(lab, main, seen, layer)
    _report_order(lab, main, other, seen, strange, layer)
    _draw(lab, seen, layer)


def _choose_way(lab: Lab, ways: list[Asked]) -> list[Asked]:
    """Both ways of asking, the one that the subject answers better first."""
    count = lab.scale(quick=24, full=100)
    rates = [binding_pointers.right(lab.subject, [way.draw(lab.rng) for _ in range(count)]).mean() for way in ways]
    said = ", ".join(f"{way} {rate:.2f}" for way, rate in zip(ways, rates, strict=True))
    lab.note(f"right on texts to choose on: {said}; chance {1 / ways[0].n:.2f}")
    return ways if rates[0] >= rates[1] else ways[::-1]


def _gate(lab: Lab, asked: Asked, what: str, claims: Sequence[str] = (), fillers: bool = False) -> bool:
    items = [asked.draw(lab.rng, fillers) for _ in range(lab.scale(quick=48, full=200))]
    return lab.require(binding_pointers.right(lab.subject, items), above=1 / asked.n, what=f"{what} ({asked})", claims=claims)


def _choose_layer(lab: Lab, asked: Asked) -> int:
    layers = range(lab.subject.anatomy.n_layers)
    kinds: tuple[binding.Kind, ...] = ("all", "new answer")
    counts, watch = lab.scale(quick=(36, 20), full=(96, 72)), partial(lab.progress, label="choosing a layer")
    tuning, fresh = (
        binding_pointers.see(lab.subject, asked.grid(lab.rng, count, kind), layers, watch, vocabulary=kind == "new answer")
        for kind, count in zip(kinds, counts, strict=True)
    )
    layer = binding_pointers.best_layer(lab.subject, tuning, fresh)
    lines = [
        curve(name, list(layers), [tuning[i].chosen == tuning[i].at(name) for i in layers], bounds=(0, 1), role=role)
        for name, role in ROLES
    ]
    panel = Panel("By layer", "layer that the state enters", "share of answers", tuple(lines), (0, 1))
    lab.figure(
        Figure("layers", f"Where the question is decided: {lab.subject.name}", (panel,), f"Layer {layer} was chosen, on these pairs alone.")
    )
    return layer


def _see(lab: Lab, asked: Asked, count: int, layer: int, kind: binding.Kind = "all", fillers: bool = False) -> Seen:
    watch = partial(lab.progress, label=f"interchanging ({kind}{', fillers' if fillers else ''})")
    return binding_pointers.see(lab.subject, asked.grid(lab.rng, count, kind, fillers), [layer], watch)[layer]


def _report_mixture(lab: Lab, seen: Seen) -> None:
    """Everything is judged on cells that were neither fitted nor stopped by; at quick scale over two splits, so that more cells are judged."""
    fit = partial(mixture.fit, epochs=lab.scale(quick=1000, full=2000), patience=lab.scale(quick=60, full=100))
    whole, gains = seen.cells(), []
    for _ in lab.progress(range(lab.scale(quick=2, full=1)), "fitting the mixture"):
        gains.append(mixture.compare(*whole.split(lab.rng), lab.rng, fit))
    pooled = {name: np.concatenate([found[name] for found in gains]) for name in gains[0]}
    note = f"{pooled['full'].mean():.3f}, one-hot {pooled['one-hot'].mean():.3f}, uniform {pooled['uniform'].mean():.3f}; "
    kl = pooled["kl"].reshape(-1, 2).mean(0)
    note += f"KL of the data from it {kl[0]:.3f} bits, of it from the data {kl[1]:.3f}; {whole.count.mean():.1f} samples a cell"
    lab.finding("mixture-beats-rivals", treated=pooled["gain"], control=pooled["null"], note=note)
    for name in TERMS:
        lab.finding(f"needs-{name}-term", treated=pooled[name], control=pooled[f"{name} null"])
    if lab.full and lab.subject.parameters >= 2e9:
        lab.finding("mixture-agrees", treated=pooled["full"], control=pooled["one-hot"])


def _report_pointer(lab: Lab, asked: Asked, layer: int) -> None:
    fresh = _see(lab, asked, lab.scale(quick=60, full=300), layer, "new answer")
    top = lab.subject.last_logits([triple.source.prompt for triple in fresh.triples], 16).argmax(-1).numpy()
    there = binding_pointers.says_source(lab.subject, replace(fresh, emitted=top))
    lab.finding("pointer-not-answer", treated=binding_pointers.says_source(lab.subject, fresh), control=there)


def _report_sanity(lab: Lab, seen: Seen, layer: int) -> None:
    """What the base answers by itself is read off its whole plain run."""
    some = seen.triples[:24]
    own = binding_pointers.answered(lab.subject, [triple.base for triple in some])
    itself = binding_pointers.see(lab.subject, [replace(triple, source=triple.base) for triple in some], [layer])[layer]
    first = binding_pointers.see(lab.subject, some, [0])[0]
    changed = np.concatenate([itself.chosen != own, first.chosen != own]).astype(float)
    lab.finding("nothing-moves-unasked", treated=changed, control=(seen.chosen[:24] != own).astype(float))


def _report_fillers(lab: Lab, asked: Asked, seen: Seen, layer: int) -> None:
    claims = ["fillers-weaken-keys", "fillers-blur-places"]
    if not _gate(lab, asked, "do so with sentences between the groups", claims, fillers=True):
        return
    filled = _see(lab, asked, lab.scale(quick=40, full=300), layer, fillers=True).apart()
    n = len(filled.chosen)
    half = (len(seen.chosen) - n) // 2
    for claim, measure in zip(claims, (_key_missed, _distance), strict=True):
        plain, within = measure(seen), measure(filled)  # one pair without for each with, the others for the control
        lab.finding(claim, treated=within - plain[:n], control=plain[n : n + half] - plain[n + half : n + 2 * half], paired=False)


def _key_missed(seen: Seen) -> NDArray[np.float64]:
    return (seen.chosen != seen.at("lexical")).astype(float)


def _distance(seen: Seen) -> NDArray[np.float64]:
    return np.abs(seen.chosen - seen.at("positional")).astype(float)


def _report_order(lab: Lab, main: Asked, other: Asked, seen: Seen, strange: Seen, layer: int) -> None:
    """Whether the answer's place in its group decides which sharp pointer leads: both ways of asking are needed."""
    if not _gate(lab, other, "answer the other way of asking", ["answer-first-reflexive", "answer-last-lexical"]):
        return
    turned = _see(lab, other, lab.scale(quick=60, full=500), layer).apart()
    first, last = (seen, turned) if main.answer == 0 else (turned, seen)
    leads = [(part.chosen == part.at("reflexive")).astype(float) - (part.chosen == part.at("lexical")) for part in (first, last)]
    null, n = strange.random_lead(lab.rng), min(map(len, leads))
    lab.finding("answer-first-reflexive", treated=leads[0][:n] - leads[1][:n], control=null, paired=False)
    lab.finding("answer-last-lexical", treated=-leads[1], control=null, paired=False)


def _draw(lab: Lab, seen: Seen, layer: int) -> None:
    """The paper's picture: shares of answers against the place of the source's group, and how far from it the mixed ones are."""
    places, mixed = seen.at("positional"), seen.mixed()
    rows = [*((name, role, seen.chosen == seen.at(name)) for name, role in ROLES), ("mixed", "reference", mixed)]
    lines = [
        curve(name, list(range(seen.groups)), [hits[places == p].astype(float) for p in range(seen.groups)], bounds=(0, 1), role=role)
        for name, role, hits in rows
    ]
    far, steps = np.abs(seen.chosen - places), list(range(1, seen.groups))
    near = curve("mixed", steps, [(mixed & (far == d)).astype(float) for d in steps], bounds=(0, 1))
    panels = (
        Panel("By place", "place of the source's group", "share of answers", tuple(lines), (0, 1)),
        Panel("Mixed answers", "distance from the source's place, in groups", "share of answers", (near,)),
    )
    caption = f"State entering layer {layer} at the last token. Mixed: groups to which nothing points. Bands are 95% intervals."
    lab.figures.insert(0, Figure("figure", f"Three ways to find what is bound: {lab.subject.name}", panels, caption))
