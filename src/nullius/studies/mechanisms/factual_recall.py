"""Characterizing Mechanisms for Factual Recall in Language Models (Yu, Merullo & Pavlick 2023, arXiv 2310.15910).

A prompt contradicts a capital that the model knows ("The capital of Poland is London. Q: What is the capital of Poland? A:"). Does the model
answer from its context or from memory, and can one attention head decide?

Heads are found by direct logit attribution on tuning countries: those that write for the in-context answer and those that write for the
memorised one. The three strongest of each kind are tried at a few factors, up and down, still on tuning countries; the best pair of
head and factor is then tested on countries never used to choose. Its control scales a random head of the same layers alike, drawn anew for each
prompt. Frequencies are Zipf frequencies of `wordfreq`, a proxy for counts in the training corpus.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from nullius.instruments import heads
from nullius.instruments.heads import Head
from nullius.lab import (
    Claim,
    Figure,
    Heatmap,
    Lab,
    Needs,
    Panel,
    Series,
    above_control,
    at_least,
    correlation_above,
    correlation_below,
    study,
)
from nullius.stimuli import capitals, frequency
from nullius.stimuli.capitals import Conflict

Setting = tuple[Head, float]
RANDOM_HEAD = "a random head of the same or a neighbouring layer, drawn for each prompt, scaled alike"
CLAIMS = (
    Claim(
        "one-head-decides",
        "Scaling one attention head's value output makes the model give the in-context answer where it gave another",
        above_control(margin=0.05),
        control=RANDOM_HEAD,
        published=0.88,
        unit="change of in-context rate",
        rests_on=("head scaling",),
    ),
    Claim(
        "one-head-restores-memory",
        "Scaling one attention head the other way makes the model give the memorised answer where it followed the context",
        above_control(margin=0.05),
        control=RANDOM_HEAD,
        unit="change of memory rate",
        rests_on=("head scaling",),
    ),
    Claim(
        "attribution-is-causal",
        "What a head writes for the in-context answer, by direct logit attribution, agrees with what silencing it takes away",
        correlation_above(0.2),
        control="attribution towards the answers of other prompts",
        unit="rho over heads",
        rests_on=("direct logit attribution",),
    ),
    Claim(
        "no-damage",
        "The scaled head leaves capitals that the model knows in place when nothing contradicts them",
        at_least(0.9, null=0.0),
        control="the same answers scored against another country's capital",
        unit="accuracy without conflict",
    ),
    Claim(
        "country-frequency",
        "The more frequent the country in text, the less the model follows the context",
        correlation_below(-0.1),
        control="frequencies shuffled over countries",
        unit="rho",
    ),
    Claim(
        "city-frequency",
        "The frequency of the in-context city affects how far the model follows it (the sign is learned on the tuning countries)",
        correlation_above(0.1),
        control="frequencies shuffled over cities",
        unit="rho",
    ),
    Claim(
        "head-transfers",
        "The head found on capitals also decides the contest on another relation (the language of a country)",
        above_control(margin=0.05),
        control=RANDOM_HEAD,
        unit="change of in-context rate",
        rests_on=("head scaling",),
    ),
    Claim(
        "most-answers-flip",
        "In models of a billion parameters and more one head raises the in-context rate by more than half",
        above_control(margin=0.5),
        control=RANDOM_HEAD,
        published=0.88,
        unit="change of in-context rate",
        needs=Needs(parameters=1e9),
    ),
    Claim(
        "larger-models-follow-less",
        "Larger models of a family follow the context less",
        correlation_below(0.0),
        control="sizes shuffled over models",
        needs=Needs(also="a size ladder of one family (compare runs on several subjects)"),
    ),
)
UP, DOWN = (2.0, 4.0), (0.0, -2.0)


@study("factual-recall", claims=CLAIMS, minutes=2.5)
def factual_recall(lab: Lab) -> None:
    """Choose on tuning countries, test on the others."""
    known = _known(lab)
    tuning, testing = capitals.split(known, 0.35, lab.rng)
    tune = capitals.conflicts(tuning, lab.scale(quick=2, full=12), lab.rng, lab.subject.first_token)
    test = capitals.conflicts(testing, lab.scale(quick=2, full=12), lab.rng, lab.subject.first_token)
    countries = [item.country for item in test]
    lab.note(
        f"{len(known)} capitals known; {len(tune)} prompts on {len(tuning)} countries to choose, {len(test)} on {len(testing)} to test"
    )

    batch_size = 24
    parts = [_attribute(lab, tune[i : i + batch_size]) for i in lab.progress(range(0, len(tune), batch_size), "attribution")]
    attribution = torch.cat(parts).mean(0)
    _report_contest(lab, attribution, tune, test, countries)
    _report_attribution(lab, attribution, tune)
    _report_frequency(lab, tune, test, countries)


def _known(lab: Lab) -> list[capitals.Fact]:
    """Countries whose capital the subject names without context. Gate: it must name most of the common ones."""
    facts = capitals.facts()
    if not lab.full:  # the more frequent half of the countries
        facts = tuple(sorted(facts, key=lambda fact: -frequency.zipf(fact.country))[:84])
    best = heads.preferred(lab.subject, [capitals.plain(fact) for fact in facts])
    right = [token == lab.subject.first_token(" " + fact.capital) for token, fact in zip(best, facts, strict=True)]
    lab.require(np.array(right, float), above=0.25, what="name capitals without context")
    return [fact for fact, good in zip(facts, right, strict=True) if good]


def _tokens(lab: Lab, items: Sequence[Conflict]) -> tuple[list[int], list[int]]:
    """First tokens of the in-context and of the memorised answers."""
    return [lab.subject.first_token(item.context_answer) for item in items], [lab.subject.first_token(item.memory_answer) for item in items]


def _attribute(lab: Lab, items: Sequence[Conflict]) -> torch.Tensor:
    return heads.attribution(lab.subject, lab.subject.encode([item.prompt for item in items]), *_tokens(lab, items)).cpu()


def _answers(lab: Lab, items: Sequence[Conflict], setting: heads.Setting | Sequence[heads.Setting] = None) -> tuple[np.ndarray, np.ndarray]:
    """Whether the first answer token is the in-context one, and whether it is the memorised one, [n] each."""
    best = np.array(heads.preferred(lab.subject, [item.prompt for item in items], setting))
    context, memory = (np.array(tokens) for tokens in _tokens(lab, items))
    return best == context, best == memory


def _random(lab: Lab, chosen: Setting, n: int) -> list[heads.Setting]:
    """A random head of the chosen head's layer or a neighbour for each of n prompts, never the chosen one, at its factor."""
    layers = range(max(0, chosen[0].layer - 1), min(lab.subject.anatomy.n_layers, chosen[0].layer + 2))
    near = [Head(layer, head) for layer in layers for head in range(lab.subject.anatomy.n_heads)]
    near.remove(chosen[0])
    return [(near[i], chosen[1]) for i in lab.rng.integers(0, len(near), n)]


def _report_contest(lab: Lab, attribution: torch.Tensor, tune: list[Conflict], test: list[Conflict], countries: list[str]) -> None:
    ranked = heads.rank(attribution)
    top = lab.scale(quick=3, full=8)
    factors = lab.scale(quick=(*UP, *DOWN), full=(2.0, 3.0, 4.0, 5.0, 0.5, 0.0, -1.0, -2.0, -3.0, -5.0))
    settings = [(head, factor) for head in [*ranked[:top], *ranked[-top:]] for factor in factors]
    few = tune[: lab.scale(quick=30, full=len(tune))]
    tried = [[part.mean() for part in _answers(lab, few, setting)] for setting in lab.progress(settings, "choosing head and factor")]
    to_context, to_memory = (settings[i] for i in np.argmax(np.array(tried), 0))
    for name, chosen, rate in (("context", to_context, max(t[0] for t in tried)), ("memory", to_memory, max(t[1] for t in tried))):
        lab.note(f"chosen towards {name}: head {chosen[0]} × {chosen[1]:g} (rate {rate:.2f} on tuning prompts)")

    plain = [part.astype(float) for part in _answers(lab, test)]
    gain = _answers(lab, test, to_context)[0] - plain[0]
    control = _answers(lab, test, _random(lab, to_context, len(test)))[0] - plain[0]
    note = f"head {to_context[0]} × {to_context[1]:g}"
    lab.finding("one-head-decides", treated=gain, control=control, clusters=countries, note=note)
    if lab.subject.parameters >= 1e9:
        lab.finding("most-answers-flip", treated=gain, control=control, clusters=countries, note=note)
    # the other direction needs prompts on which the subject follows the context at all
    if lab.require(plain[0], above=0.1, what="follow the context at times", claims=["one-head-restores-memory"]):
        treated = _answers(lab, test, to_memory)[1] - plain[1]
        control = _answers(lab, test, _random(lab, to_memory, len(test)))[1] - plain[1]
        note = f"head {to_memory[0]} × {to_memory[1]:g}"
        lab.finding("one-head-restores-memory", treated=treated, control=control, clusters=countries, note=note)
    _report_damage(lab, to_context, test)
    _report_transfer(lab, to_context)
    _draw(lab, attribution, to_context, test[: lab.scale(quick=28, full=len(test))])


def _report_damage(lab: Lab, chosen: Setting, test: list[Conflict]) -> None:
    questions = {item.country: item for item in test if item.template == 0}
    items = list(questions.values())
    answered = np.array(heads.preferred(lab.subject, [item.plain for item in items], chosen))
    gold = np.array(_tokens(lab, items)[1])
    wrong = np.roll(gold, 1)
    lab.finding("no-damage", treated=(answered == gold).astype(float), control=((answered == wrong) & (wrong != gold)).astype(float))


def _report_transfer(lab: Lab, chosen: Setting) -> None:
    facts = capitals.facts()[:: lab.scale(quick=3, full=1)]
    best = heads.preferred(lab.subject, [capitals.plain(fact, relation="language") for fact in facts])
    right = np.array([token == lab.subject.first_token(" " + fact.language) for token, fact in zip(best, facts, strict=True)])
    if not lab.require(right.astype(float), above=0.15, what="name the language of a country", claims=["head-transfers"]):
        return
    known = [fact for fact, good in zip(facts, right, strict=True) if good]
    items = capitals.conflicts(known, lab.scale(quick=2, full=6), lab.rng, lab.subject.first_token, "language")
    plain = _answers(lab, items)[0].astype(float)
    treated, control = (_answers(lab, items, setting)[0] - plain for setting in (chosen, _random(lab, chosen, len(items))))
    lab.finding("head-transfers", treated=treated, control=control, clusters=[item.country for item in items])


def _report_attribution(lab: Lab, attribution: torch.Tensor, tune: list[Conflict]) -> None:
    """A random sample of heads is silenced one by one; attribution must predict what each takes away."""
    items = tune[: lab.scale(quick=5, full=24)]
    everything = [Head(layer, head) for layer in range(attribution.shape[0]) for head in range(attribution.shape[1])]
    sample = [everything[i] for i in lab.rng.permutation(len(everything))[: lab.scale(quick=72, full=400)]]
    context, memory = _tokens(lab, items)
    blocks = [sample[i : i + 12] for i in range(0, len(sample), 12)]
    prompts = [item.prompt for item in items]
    effects = [heads.effect_of_zeroing(lab.subject, prompts, context, memory, block) for block in lab.progress(blocks, "silencing heads")]
    batch = lab.subject.encode(prompts)
    predicted = heads.attribution(lab.subject, batch, context, memory).cpu().mean(0)
    turned = np.roll(np.arange(len(items)), 1)
    others = heads.attribution(lab.subject, batch, [memory[i] for i in turned], [context[i] for i in turned[::-1]]).cpu().mean(0)
    causal = torch.cat(effects).numpy()
    x, shuffled = (np.array([float(table[head.layer, head.head]) for head in sample]) for table in (predicted, others))
    lab.finding("attribution-is-causal", treated=(x, causal), control=(shuffled, causal))


def _report_frequency(lab: Lab, tune: list[Conflict], test: list[Conflict], countries: list[str]) -> None:
    def follow(items: list[Conflict]) -> np.ndarray:
        return heads.differences(lab.subject, [item.prompt for item in items], *_tokens(lab, items)).numpy()

    pull, earlier = follow(test), follow(tune)
    by_country = np.array([frequency.zipf(item.country) for item in test])
    by_city = np.array([frequency.zipf(item.context_answer) for item in test])
    learned = np.corrcoef([frequency.zipf(item.context_answer) for item in tune], earlier)[0, 1]
    sign = 1.0 if learned >= 0 else -1.0
    names = sorted(set(countries))
    shuffled = dict(zip(names, lab.rng.permutation([frequency.zipf(name) for name in names]), strict=True))
    lab.finding("country-frequency", treated=(by_country, pull), control=([shuffled[c] for c in countries], pull), clusters=countries)
    note = f"sign learned on tuning countries: {'more' if sign > 0 else 'less'} frequent cities are followed more"
    treated, control = (sign * by_city, pull), (sign * lab.rng.permutation(by_city), pull)
    lab.finding("city-frequency", treated=treated, control=control, clusters=countries, note=note)


def _draw(lab: Lab, attribution: torch.Tensor, chosen: Setting, items: list[Conflict]) -> None:
    """The paper's two pictures: who writes for which answer, and the contest as one head is turned."""
    factors = sorted({*lab.scale(quick=(*DOWN, 1.0, *UP), full=(-5.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0)), chosen[1]})
    rates: dict[str, list[float]] = {"in-context": [], "memorised": [], "other": [], "in-context, random head": []}
    for factor in lab.progress(factors, "turning the head"):
        context, memory = _answers(lab, items, (chosen[0], factor))
        shares = [context.mean(), memory.mean(), 1 - context.mean() - memory.mean()]
        shares.append(_answers(lab, items, _random(lab, (chosen[0], factor), len(items)))[0].mean())
        for name, share in zip(rates, shares, strict=True):
            rates[name].append(float(share))
    roles = ("effect", "second", "third", "control")
    series = tuple(Series(name, factors, y, role=role) for (name, y), role in zip(rates.items(), roles, strict=True))  # type: ignore[arg-type]
    mark = ((chosen[0].layer, chosen[0].head),)
    label = "ΔA, logits"
    heat = Heatmap("Who writes for the context (+) or for memory (−)", "head", "layer", attribution.tolist(), label, mark)
    curve = Panel(f"Turning head {chosen[0]}", "factor α on the head's value output", "share of answers", series, (0, 1))
    caption = "Left: direct logit attribution, mean over tuning prompts; the chosen head is outlined. Right: answers on test countries."
    lab.figure(Figure("contest", f"Memory against context: {lab.subject.name}", (heat, curve), caption))
