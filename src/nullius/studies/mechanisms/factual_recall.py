"""Characterizing Mechanisms for Factual Recall in Language Models (Yu, Merullo & Pavlick 2023, arXiv 2310.15910).

A prompt contradicts a capital that the model knows ("The capital of Poland is London. Q: What is the capital of Poland? A:"). Does the model
answer from its context or from memory, and can one attention head decide?

On tuning countries, direct logit attribution finds the heads that write most for the in-context answer and most for the memorised one, and a
grid of factors on their value outputs gives the head and factor that do most for each side. Twenty random heads of the same layers are
scaled and chosen from in the same way. All are then tested on countries never used to choose. docs/studies/factual-recall.md says what
differs from the paper.
"""

from __future__ import annotations

import os
from functools import partial

import numpy as np
import torch
from scipy import stats

from nullius.instruments import heads, interventions
from nullius.instruments.damage import damage
from nullius.instruments.head_choice import Choice, Side, choose
from nullius.instruments.heads import Contrast, Scaling
from nullius.instruments.questions import ask
from nullius.instruments.regression import logistic_slopes, shuffled_between
from nullius.lab import Claim, Figure, Heatmap, Lab, Needs, Panel, above_control, at_least, correlation_above, correlation_below, study
from nullius.lab.curves import curve, thirds
from nullius.lab.figures import Role
from nullius.stimuli import capitals, frequency, plain_text
from nullius.stimuli.capitals import Conflict, Fact, Relation
from nullius.stimuli.prompts import Stimuli

RANDOM = "one random head of the same layers, scaled alike, against another (both drawn for each prompt)"
HALVES = "the best of one half of those random heads against the best of the other half (which half first drawn for each prompt)"
SIDES: dict[Side, str] = {"first": "context", "second": "memory"}
SCALING, DLA = ("head scaling", "interventions"), ("direct logit attribution", "direct effects")
CHOSEN = ("head choice", *SCALING)


def _contest_claims(side: str, answer: str) -> tuple[Claim, Claim]:
    return (
        Claim(f"one-head-to-{side}",
              f"Scaling one attention head's value output makes the model give the {answer} answer more often, on countries not used to choose it",
              above_control(margin=0.05), control=RANDOM, unit=f"change of {answer} rate", rests_on=CHOSEN),
        Claim(f"beats-random-to-{side}",
              f"The head chosen for the {answer} answer leads the best of twenty random heads of its layers, chosen in the same way, by ten points",
              at_least(0.1, null=0.0), control=HALVES, unit=f"lead in {answer} rate", rests_on=CHOSEN),
    )  # fmt: skip


CLAIMS = (
    *_contest_claims("context", "in-context"),
    *_contest_claims("memory", "memorised"),
    Claim("attribution-is-causal",
          "What a head writes for the in-context answer (direct logit attribution) agrees with what silencing it takes away",
          correlation_above(0.2), unit="rho over heads", rests_on=(*DLA, *SCALING),
          control="attribution towards two other countries' capitals on the same prompts, which of the two first drawn for each head"),
    Claim("no-damage",
          "With the head scaled towards the context, right answers stay right where nothing contradicts them (no context, or a true one)",
          at_least(0.9, null=0.0), control="all attention silenced: no answer should be left", unit="share of right answers kept",
          rests_on=("damage", "knock-out", *CHOSEN)),
    Claim("country-frequency", "The more frequent the country is in text, the less the model leans towards the context",
          correlation_below(-0.1), control="frequencies shuffled over countries", unit="rho"),
    Claim("city-frequency",
          "How frequent the in-context city is in text affects how far the model leans towards the context (sign learned on tuning countries)",
          correlation_above(0.1), control="frequencies shuffled over prompts", unit="rho, in the direction learned"),
    Claim("head-transfers", "The head and factor found on capitals raise the in-context rate on another relation too (a country's language)",
          above_control(margin=0.05), control=RANDOM, unit="change of in-context rate", rests_on=CHOSEN),
    Claim("most-answers-flip", "With one head scaled, a model of a billion parameters gives the in-context answer to most new prompts",
          at_least(0.8, null=0.0), control="the in-context answer of another prompt", published=0.88, unit="in-context rate",
          needs=Needs(parameters=1e9), rests_on=CHOSEN),
    Claim("larger-follow-less", "Larger models of a family follow the context less",
          correlation_above(0.0), control="sizes shuffled over models", unit="rho over models",
          needs=Needs(also="several sizes of one family side by side (`nullius compare factual-recall -m A -m B`)")),
)  # fmt: skip


@study("factual-recall", claims=CLAIMS, minutes=2.5)
def factual_recall(lab: Lab) -> None:
    """Choose on tuning countries, test on the others."""
    tuning, testing = _known(lab).split(1 / 3, lab.rng, by="country")
    each = lab.scale(quick=2, full=12)
    tune, test = (capitals.conflicts(part, each, lab.rng, lab.subject.first_token) for part in (tuning, testing))
    held = test.sample(lab.scale(quick=40, full=10**6), lab.rng, by="country")
    lab.note(f"prompts: {len(tune)} on {len(tuning)} countries to choose, {len(test)} on {len(testing)} to test ({len(held)} for heads)")
    lab.listener.step("attributing to heads", 0, None)
    table = heads.attribution(lab.subject, _contrast(lab, tune)).mean(0)
    choices = _choose(lab, tune, table)
    for choice in choices.values():
        _report_contest(lab, choice, held)
    _report_damage(lab, choices["first"].chosen, held)
    _report_transfer(lab, choices["first"], testing)
    _report_attribution(lab, tune)
    _report_frequency(lab, tune, test)
    _draw_contest(lab, table, choices["first"], held.sample(lab.scale(quick=40, full=400), lab.rng))


def _known(lab: Lab) -> Stimuli[Fact]:
    """Countries whose capital the subject names without context. Gate: a fair share of all."""
    facts = capitals.tellable(capitals.facts(), lab.subject.first_token)
    right = _named(lab, facts, "capital")
    lab.require(right, above=0.25, what="name capitals without context")
    lab.note(f"capitals known without context: {int(right.sum())} of {len(facts)}")
    return Stimuli.of(fact for fact, good in zip(facts, right, strict=True) if good)


def _named(lab: Lab, facts: Stimuli[Fact], relation: Relation) -> np.ndarray:
    """1 where the subject names a country's capital or language when asked for it and told nothing [n]."""
    answers = [f" {answer}" for answer in facts.field(relation)]
    return ask(lab.subject, facts, [fact.question(0, relation) for fact in facts], answers).right(lab.subject) if answers else np.zeros(0)


def _contrast(lab: Lab, items: Stimuli[Conflict]) -> Contrast:
    """In-context (first) against memorised (second) answer."""
    first, second = (tuple(lab.subject.first_token(answer) for answer in items.field(f"{side}_answer")) for side in ("context", "memory"))
    return Contrast(tuple(items.field("prompt")), first, second)


def _choose(lab: Lab, tune: Stimuli[Conflict], table: torch.Tensor) -> dict[Side, Choice]:
    """The heads that write most for either answer, at all factors, on tuning prompts."""
    contrast = _contrast(lab, tune.sample(lab.scale(quick=24, full=10**6), lab.rng))
    factors = lab.scale(quick=(-5.0, -2.0, 0.0, 2.0, 5.0), full=(-5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 2.0, 3.0, 4.0, 5.0))
    candidates = heads.extremes(table, lab.scale(quick=3, full=10))
    watch = partial(lab.progress, label="choosing head and factor")
    choices = choose(lab.subject, contrast, candidates, factors, lab.rng, progress=watch)
    for side, choice in choices.items():
        best = f"best of {len(choice.random)} random heads: {choice.best_rival}"
        lab.note(f"chosen towards {SIDES[side]}: {choice.chosen} ({choice.rate:.2f} of {len(contrast)} tuning prompts); {best}")
    return choices


def _report_contest(lab: Lab, choice: Choice, held: Stimuli[Conflict]) -> None:
    contrast, countries, name = _contrast(lab, held), held.field("country"), SIDES[choice.side]
    lab.listener.step(f"testing towards {name}", 0, None)
    outcome = heads.sweep(lab.subject, contrast, choice.settings(len(held), lab.rng))
    before, after, rival, one, other, *random = choice.score(outcome)
    follows = outcome.first[0]
    room, what = (1 - follows, "not always follow the context") if choice.side == "first" else (follows, "follow the context at times")
    pair = [f"one-head-to-{name}", f"beats-random-to-{name}"]
    if lab.require(room, above=0.1, what=what, claims=pair, clusters=countries):
        note = f"{choice.chosen}: {before.mean():.2f} → {after.mean():.2f}"
        mine, against = random
        lab.finding(pair[0], treated=after - np.mean(random, 0), control=mine - against, clusters=countries, note=note)
        either = _signs(lab, len(held)) * (one - other)
        lab.finding(pair[1], treated=after - rival, control=either, clusters=countries, note=f"best random: {choice.best_rival}")
    if choice.side == "first" and lab.subject.parameters >= 1e9:
        elsewhere = np.roll(contrast.first, 1)
        wrong = (outcome.token[1] == elsewhere) & (elsewhere != contrast.first)
        lab.finding("most-answers-flip", treated=after, control=wrong.astype(float), clusters=countries)


def _signs(lab: Lab, n: int) -> np.ndarray:
    """±1 by lot: times the difference of any two heads, a null. From a stream of its own."""
    return lab.rng.spawn(1)[0].choice([-1.0, 1.0], n)


def _report_damage(lab: Lab, chosen: Scaling, held: Stimuli[Conflict]) -> None:
    """Right answers to the bare question, and after a true context."""
    facts = list({item.country: item.fact for item in held}.values()) * 2
    prompts = [fact.told(fact.capital) if i < len(facts) // 2 else fact.question() for i, fact in enumerate(facts)]
    wanted = [lab.subject.first_token(f" {fact.capital}") for fact in facts]
    found = damage(lab.subject, prompts, wanted, chosen, plain_text.SENTENCES)
    note = f"{chosen}; perplexity of plain text {found.before:.1f} → {found.after:.1f}"
    lab.finding("no-damage", treated=found.kept, control=found.blind, clusters=[facts[i].country for i in found.right], note=note)


def _report_transfer(lab: Lab, choice: Choice, testing: Stimuli[Fact]) -> None:
    facts = capitals.tellable(testing, lab.subject.first_token, "language")
    right = _named(lab, facts, "language")
    if not lab.require(right, above=0.15, what="name the language of a country", claims=["head-transfers"]):
        return
    known = Stimuli.of(fact for fact, good in zip(facts, right, strict=True) if good)
    items = capitals.conflicts(known, lab.scale(quick=2, full=6), lab.rng, lab.subject.first_token, "language")
    before, after, _, _, _, mine, against = heads.sweep(lab.subject, _contrast(lab, items), choice.settings(len(items), lab.rng)).first
    treated, note = after - (mine + against) / 2, f"{before.mean():.2f} → {after.mean():.2f}"
    lab.finding("head-transfers", treated=treated, control=mine - against, clusters=items.field("country"), note=note)


def _report_attribution(lab: Lab, tune: Stimuli[Conflict]) -> None:
    """Heads are silenced one by one; attribution must predict what each takes away."""
    contrast = _contrast(lab, tune.sample(lab.scale(quick=5, full=24), lab.rng))
    other = contrast.with_others([lab.subject.first_token(answer) for answer in tune.field("memory_answer")], lab.rng)
    everything = heads.all_heads(lab.subject)
    some = sorted(everything[i] for i in lab.rng.permutation(len(everything))[: lab.scale(quick=96, full=len(everything))])
    lab.listener.step("silencing heads", 0, None)
    written, effect = heads.attribution_and_effect(lab.subject, contrast, some)
    elsewhere = heads.attribution(lab.subject, other).mean(0)
    # one draw of other capitals serves all heads, and is null over draws only; with its sign drawn for each head it is null as it stands
    control = _signs(lab, len(some)) * [float(elsewhere[head.layer, head.head]) for head in some]
    note = ""
    if lab.full:
        mean = interventions.means(lab.subject, tune.field("prompt"), "z")
        replaced = heads.effect_of_ablation(lab.subject, contrast, some, mean).mean(-1)
        note = f"with heads replaced by their mean: {stats.spearmanr(written, replaced).statistic:.2f}"
    layers = [head.layer for head in some]
    lab.finding("attribution-is-causal", treated=(written, effect), control=(control, effect), clusters=layers, note=note)


def _report_frequency(lab: Lab, tune: Stimuli[Conflict], test: Stimuli[Conflict]) -> None:
    """Lean: logit of the in-context answer minus that of the memorised one. Rates and a logistic regression stand in note and figure."""
    measure, source = frequency.provider(os.environ.get("NULLIUS_COUNTS"))
    lean, outcome = (heads.sweep(lab.subject, _contrast(lab, items), [None]) for items in (tune, test))
    follows, countries, columns, panels = outcome.first[0], test.field("country"), {}, []
    for name, field in (("country", "country"), ("city", "context_answer")):
        learned, x = (np.array([measure(value) for value in items.field(field)]) for items in (tune, test))
        sign, note, shuffled = 1.0, "", shuffled_between(x, countries, lab.rng)
        if name == "city":  # no side is expected of it: the tuning countries give the sign
            sign = 1.0 if stats.spearmanr(learned, lean.difference[0]).statistic >= 0 else -1.0
            shuffled, note = lab.rng.permutation(x), f"learned: the {'more' if sign > 0 else 'less'} frequent, the more to the context"
        treated, control = ((sign * values, outcome.difference[0]) for values in (x, shuffled))
        lab.finding(f"{name}-frequency", treated=treated, control=control, clusters=countries, note=note)
        columns[name] = x
        real = thirds("in-context", x, follows, countries, bounds=(0, 1))
        null = thirds("in-context, shuffled", shuffled, follows, countries, "control", (0, 1))
        panels.append(Panel(f"By {name}", f"log10 frequency of the {name}", "in-context rate", (real, null), (0, 1)))
    if 0 < follows.mean() < 1:
        slopes = logistic_slopes(follows, columns, countries, lab.rng)
        words = "; ".join(f"{name} {b:+.2f} [{lo:+.2f}, {hi:+.2f}]" for name, (b, lo, hi) in slopes.items())
        lab.note(f"log-odds of the in-context answer a unit of log10 frequency: {words}")
    caption = f"Thirds of the prompts by frequency: {source}. Bands are 95% intervals over countries."
    lab.figure(Figure("frequency", f"Frequency and the contest: {lab.subject.name}", tuple(panels), caption))


def _draw_contest(lab: Lab, table: torch.Tensor, choice: Choice, items: Stimuli[Conflict]) -> None:
    """The paper's two pictures: which heads write for which answer, and the contest as one head is turned."""
    contrast, countries = _contrast(lab, items), items.field("country")
    factors = sorted({*lab.scale(quick=(-5.0, -2.0, 0.0, 2.0, 5.0), full=tuple(np.arange(-5.0, 5.5))), 1.0})
    lab.listener.step("turning the head", 0, None)
    turned = heads.sweep(lab.subject, contrast, [Scaling(choice.chosen.head, factor) for factor in factors])
    drawn = [choice.random[i].head for i in lab.rng.integers(len(choice.random), size=len(items))]
    random = heads.sweep(lab.subject, contrast, [[Scaling(head, factor) for head in drawn] for factor in factors])
    curves: dict[str, tuple[np.ndarray, Role]] = {
        "in-context": (turned.first, "effect"),
        "memorised": (turned.second, "second"),
        "other": (1 - turned.first - turned.second, "third"),
        "in-context, random heads": (random.first, "control"),
    }
    series = tuple(curve(name, factors, list(rates), countries, role, (0, 1)) for name, (rates, role) in curves.items())
    mark = ((choice.chosen.head.layer, choice.chosen.head.head),)
    heat = Heatmap("Who writes for the context (+) or for memory (−)", "head", "layer", table.tolist(), "ΔA, logits", mark)
    right = Panel(f"Turning head {choice.chosen.head}", "factor α on the head's value output", "share of answers", series, (0, 1))
    caption = "Left: direct logit attribution, mean over tuning prompts; the chosen head is outlined. Right: answers on other countries."
    lab.figures.insert(0, Figure("contest", f"Memory against context: {lab.subject.name}", (heat, right), caption))
