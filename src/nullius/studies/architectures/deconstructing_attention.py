"""Deconstructing Attention: Investigating Design Principles for Effective Language Modeling (Xue, Moosavi & Aletras 2025, arXiv 2510.11602).

Attention loses one principle at a time (mixing, queries, keys and queries that follow the sequence), in all layers or in every other one. The
study trains its own small decoders on the same batches; the given subject names the device and no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from nullius.instruments import attention_maps
from nullius.lab import Claim, Figure, Lab, Needs, Option, Panel, Series, above_control, at_most, equivalent, study
from nullius.lab.claims import Expectation
from nullius.lab.curves import curve
from nullius.lab.figures import Role
from nullius.models import architectures
from nullius.stimuli import recall
from nullius.stimuli.recall import Asked
from nullius.training import own_text, resuming, variants
from nullius.training.asked import Bench, Floats, Recipe
from nullius.training.own_text import OwnText
from nullius.training.variants import Key, Nets, name

MARGIN = 0.02  # nats per word
TWICE = 0.3  # of a score, in log10
SHUFFLED = "the same difference on the same words in random order, where there is nothing to mix"
SCALE = "models of 500 M parameters, or of 1.7 B, trained on 15 B tokens"
QUICK_KINDS = ("mlp", "non-approximate", "static")
FULL_KINDS = ("mlp", "approximate", "non-approximate", "random", "fixed", "static")


def _claim(name: str, wording: str, expect: Expectation, control: str, unit: str = "nats", **more: Any) -> Claim:
    return Claim(name, wording, expect, control, unit=unit, **more)


def _more(name: str, wording: str, published: str, control: str = SHUFFLED, **needs: Any) -> Claim:
    return _claim(name, wording, above_control(MARGIN), control, published=published or None, needs=Needs(**needs))


CLAIMS = (
    _claim("mixing-is-needed", "Without any mixing a decoder predicts worse than with attention", above_control(MARGIN), SHUFFLED,
           published="Wiki perplexity 993.5 against 38.1"),
    _claim("no-mixing-is-worst", "It predicts worse than with any weakened mixing in all layers", above_control(MARGIN), SHUFFLED,
           published="Wiki perplexity 993.5 against 79.9 (static), but 9e4 without queries"),
    _claim("hybrid-closes-static", "Queries and keys of the embeddings cost less in every other layer than in all", above_control(MARGIN), SHUFFLED,
           published="Wiki perplexity 38.7 against 79.9"),
    _claim("hybrid-closes-query-free", "A softmax without queries costs less in every other layer than in all", above_control(MARGIN), SHUFFLED,
           published="Wiki perplexity 39.4 against 9e4"),
    _claim("hybrid-closes-mlp", "No mixing costs less in every other layer than in all", above_control(MARGIN), SHUFFLED,
           published="Wiki perplexity 45.8 against 993.5"),
    _claim("hybrid-is-near", "With query-free softmax in every other layer a decoder predicts as well as with attention", equivalent(0.05),
           "no mixing in all layers, which must be seen to be worse", published="Wiki perplexity 39.4 against 38.1"),
    _claim("skipping-destroys", "The weakened layers contribute: without them a trained hybrid predicts worse", above_control(MARGIN),
           "the same before training, when no layer has anything to contribute", published="Wiki perplexity 2e4 to 2e6"),
    _claim("every-hybrid-breaks", "So does every trained hybrid without its weakened layers, the least hurt of them (chosen on other windows) too",
           above_control(MARGIN), "the same hybrid before training, its sign drawn for each window", published="Wiki perplexity 2e4 to 2e6"),
    _claim("their-mixing-counts", "So does their mixing alone: with its mean in its place a trained hybrid predicts worse", above_control(MARGIN),
           SHUFFLED),
    _claim("regulated", "Query-free scores, in layers that have them both times, grow larger when no layer attends than when every other one does",
           above_control(TWICE), "the same before training", "log10 of the largest score", published="above 10³, and below 10¹"),
    _claim("outliers-are-late", "Where no layer attends, query-free scores are larger in the last layers than in the first", above_control(TWICE),
           "the same before training", "log10 of the largest score", published="above 10³ in late layers"),
    _claim("context-helps-attention", "With attention a word is predicted better the more words precede it", above_control(MARGIN),
           "the same without any mixing", published="perplexity 69.9 at 128 tokens, 38.1 at 2048"),
    _claim("recall-needs-content", "Recall of what a key was given needs queries: without them in all layers it is worse than attention's",
           above_control(0.1), "the same difference, the right answers of all questions dealt out anew", "accuracy"),
    _claim("hybrid-recalls", "It comes back when every other layer attends", above_control(0.1),
           "the same difference, the right answers of all questions dealt out anew", "accuracy"),
    _claim("position-suffices-for-position", "Where answers hang on position alone, a pattern that never sees the text is as good as attention",
           equivalent(0.05), "no mixing at all, which must be seen to be worse", "accuracy"),
    _more("hybrid-closes-approximate", "A polynomial in place of the exponential costs less in every other layer", "39.4 against 47.9", full=True),
    _more("hybrid-closes-random", "Queries and keys of noise cost less in every other layer", "39.3 against 84.8", full=True),
    _more("hybrid-closes-fixed", "Queries and keys of one fixed text cost less in every other layer", "38.5 against 79.1", full=True),
    _claim("hybrid-stays-small", "With attention in every other layer query-free scores stay below 10", at_most(1.0, null=3.0),
           "the scores where no layer attends, which must reach 1 000", "log10 of the largest score", published="below 10¹, above 10³",
           needs=Needs(also=SCALE)),
    _more("allocations", "Hybrids predict as well as attention wherever their weakened layers stand, in nine patterns of 24 layers", "", also=SCALE),
    _more("grouped-queries", "With keys and values shared by groups of heads the order of the variants is the same", "", also=SCALE),
    _more("zero-shot", "Hybrids keep the zero-shot accuracy of attention", "48.7 to 52.9, attention 51.9", "untrained models", also=SCALE),
    _more("norm-rescues", "With normed queries and keys a query-free softmax trains in all layers", "perplexity 67.3", also=SCALE),
)  # fmt: skip
OPTIONS = (Option("text", ("generated", "file"), f"sentences of the grammar, or tokens of the file that {own_text.VARIABLE} names"),)


@dataclass(frozen=True)
class Plan:
    """How much is trained and measured. shape: keys of the decoders that read text; small: of those that recall; length: tokens of a sequence; text,
    shuffled, recall: recipes; test: sequences of each test; looked: of those whose attention is looked at; entries: of a file's vocabulary."""

    kinds: tuple[str, ...]
    seeds: int
    shape: Mapping[str, Any]
    small: Mapping[str, Any]
    length: int
    text: Recipe
    shuffled: Recipe
    recall: Recipe
    test: int
    looked: int
    entries: int = 4096


def _full(tokens: int) -> Recipe:
    return Recipe.of_tokens(tokens, 512, 64, 1e-3, weight_decay=0.1, spread=0.02, bf16=True)


SMALL = variants.shape(64, 4)
QUICK = Plan(QUICK_KINDS, 2, SMALL, SMALL, 48, Recipe(160, 16, 4e-3), Recipe(60, 16, 4e-3), Recipe(120, 16, 4e-3), 200, 50)
PAPER = {"size": "qwen-70m"}
FULL = Plan(FULL_KINDS, 1, PAPER, variants.shape(128, 4), 512, _full(12_000_000), _full(6_000_000), Recipe(400, 64, 2e-3), 500, 64)
Losses = dict[Key, Floats]
ATTENTION: Key = ("softmax", "uniform")
NOTHING: Key = ("mlp", "uniform")
ALONE: Key = ("non-approximate", "uniform")  # query-free, in all layers
MIXED: Key = ("non-approximate", "odd")


@study("deconstructing-attention", claims=CLAIMS, minutes=3.0, trains_its_own=True, options=OPTIONS)
def deconstructing_attention(lab: Lab) -> None:
    plan = lab.scale(quick=QUICK, full=FULL)
    words = (plan.text.steps * plan.text.batch // 2 + 4 * plan.test) * (plan.length + 1)  # half of what one network reads, and the test
    own = own_text.read(8 * words) if lab.option("text") == "file" else None
    with resuming.keeping(lab.study.slug, [asdict(plan), lab.seed, own.sha256 if own else "", lab.subject.device.type], lab.full) as store:
        _measure(lab, plan, Bench(lab.subject.device, lab.seed, store, lab.listener.step), own, words)


def _measure(lab: Lab, plan: Plan, bench: Bench, own: OwnText | None, words: int) -> None:
    keys: list[Key] = [ATTENTION, *((kind, where) for kind in plan.kinds for where in ("uniform", "odd"))]
    corpus = variants.corpus(own, min(words, 3_000_000), plan.length, plan.test, plan.entries, lab.rng)
    if own is not None:
        lab.note(f"text: {own.name} (SHA-256 {own.sha256}), {len(corpus.text[0])} windows of {plan.length} tokens")
    sets = {"text": corpus.text, "shuffled": corpus.shuffled}
    how = {"text": plan.text, "shuffled": plan.shuffled}
    nets = {order: variants.train(bench, plan.shape, keys, train, how[order], plan.seeds, order) for order, (train, _) in sets.items()}
    hybrids = [(kind, MIXED[1]) for kind in plan.kinds]
    before = variants.untrained(bench, plan.shape, (ALONE, *hybrids), sets["text"][0], plan.text, plan.seeds)
    loss = {order: {key: variants.loss(found, sets[order][1]) for key, found in nets[order].items()} for order in nets}
    for order, found in loss.items():
        lab.note(f"{order}: nats per word " + "; ".join(f"{name(key)} {values.mean():.3f}" for key, values in found.items()))
    clusters = list(range(plan.test)) * plan.seeds
    gain = np.tile(corpus.by_frequency, plan.seeds) - loss["text"][ATTENTION]
    about, what = [claim.id for claim in CLAIMS if claim.unit == "nats"], "predicting a word with attention better than its frequency does"
    lab.require(gain, above=0.0, what=what, claims=about, clusters=clusters)
    _text_findings(lab, plan, loss, clusters)
    _ablations(lab, nets, {key: before[key] for key in hybrids}, sets, clusters)
    _scores(lab, nets["text"], before, sets["text"][1], clusters)
    _by_position(lab, nets["text"], sets["text"][1], clusters)
    recalled = _recall(lab, plan, bench, clusters)
    _figures(lab, loss, recalled, clusters)
    _maps(lab, plan, nets["text"], sets["text"][1])


def _text_findings(lab: Lab, plan: Plan, loss: dict[str, Losses], clusters: list[int]) -> None:
    position = np.array(clusters)
    choose, rest = position < plan.test // 2, position >= plan.test // 2

    def gap(claim: str, worse: Key, better: Key, kept: Any = slice(None)) -> None:
        treated, control = ((loss[order][worse] - loss[order][better])[kept] for order in ("text", "shuffled"))
        others = [f"shuffled {i}" for i in position[kept]]
        lab.finding(claim, treated=treated, control=control, clusters=position[kept].tolist(), control_clusters=others, paired=False)

    weakened = [(kind, "uniform") for kind in plan.kinds if kind != "mlp"]
    nearest = max(weakened, key=lambda key: float(loss["text"][key][choose].mean()))
    lab.note(f"the worst weakened mixing in all layers, besides none, on the first half of the test windows: {nearest[0]}")
    gap("mixing-is-needed", NOTHING, ATTENTION)
    gap("no-mixing-is-worst", NOTHING, nearest, rest)
    for kind in plan.kinds:
        gap(f"hybrid-closes-{kind.replace('non-approximate', 'query-free')}", (kind, "uniform"), (kind, "odd"))
    near, far = (loss["text"][key] - loss["text"][ATTENTION] for key in (MIXED, NOTHING))
    lab.finding("hybrid-is-near", treated=near, control=far, clusters=clusters)


def _ablations(lab: Lab, nets: dict[str, Nets], before: Nets, sets: dict[str, tuple[Asked, Asked]], clusters: list[int]) -> None:
    """Every other layer of the hybrids left out, or the mixing of the query-free one replaced by its mean. before: the hybrids, untrained."""
    (text, shuffled), take = (sets[order][1] for order in ("text", "shuffled")), (architectures.skipping, architectures.averaging)
    skipped = {key: variants.rise(nets["text"][key], text, take[0], "odd") for key in before}
    mean, untaught = (variants.rise(found, text, way, "odd") for found, way in ((nets["text"][MIXED], take[1]), (before[MIXED], take[0])))
    lab.finding("skipping-destroys", treated=skipped[MIXED], control=untaught, clusters=clusters)
    position = np.array(clusters)
    choose, rest = position < len(text) // 2, position >= len(text) // 2
    least = min(skipped, key=lambda key: float(skipped[key][choose].mean()))
    note = "; ".join(f"{key[0]} {rise.mean():.2f}" for key, rise in skipped.items())
    # Untrained layers add noise, without which a hybrid predicts a little better: with its sign by lot that is null
    null = variants.rise(before[least], text, take[0], "odd") * lab.rng.spawn(1)[0].choice([-1.0, 1.0], len(text))[position]
    lab.finding("every-hybrid-breaks", treated=skipped[least][rest], control=null[rest], clusters=position[rest].tolist(), note=note)
    null, others = variants.rise(nets["shuffled"][MIXED], shuffled, take[1], "odd"), [f"shuffled {i}" for i in clusters]
    lab.finding("their-mixing-counts", treated=mean, control=null, clusters=clusters, control_clusters=others, paired=False)


def _scores(lab: Lab, nets: Nets, before: Nets, test: Asked, clusters: list[int]) -> None:
    """How large query-free scores are, where no layer attends and where every other one does; before: the same decoders, untrained."""
    alone, mixed = ([variants.largest_scores(found[key], test) for found in (nets, before)] for key in (ALONE, MIXED))
    both = architectures.allocate(MIXED[1], len(alone[0]))  # of more layers the largest is larger, whatever they are
    third = max(1, len(alone[0]) // 3)
    more = [a[both].max(0) - m.max(0) for a, m in zip(alone, mixed, strict=True)]
    late = [a[-third:].max(0) - a[:third].max(0) for a in alone]
    lab.finding("regulated", treated=more[0], control=more[1], clusters=clusters)
    lab.finding("outliers-are-late", treated=late[0], control=late[1], clusters=clusters)
    lab.finding("hybrid-stays-small", treated=mixed[0].max(0), control=alone[0].max(0), clusters=clusters)


def _by_position(lab: Lab, nets: Nets, test: Asked, clusters: list[int]) -> None:
    """Loss over the first eighth of the positions minus that over the last half."""
    length = test.tokens.shape[1]
    early, late = recall.only(test, 0, length // 8), recall.only(test, length // 2, length)
    treated, control = (variants.loss(nets[key], early) - variants.loss(nets[key], late) for key in (ATTENTION, NOTHING))
    lab.finding("context-helps-attention", treated=treated, control=control, clusters=clusters)


def _recall(lab: Lab, plan: Plan, bench: Bench, clusters: list[int]) -> dict[str, dict[str, Floats]]:
    """Accuracy by task and network: recall of slots, the same with answers dealt out anew, and the symbol before."""
    how = plan.recall
    slots = [recall.until_reset(size, lab.rng, resets=0.0) for size in (how.steps * how.batch, plan.test)]
    back = [recall.offset(size, lab.rng) for size in (how.steps * how.batch, plan.test)]
    other = replace(slots[1], targets=recall.redealt(slots[1], lab.rng))
    of_slots = variants.train(bench, plan.small, (ATTENTION, ALONE, MIXED), slots[0], how, plan.seeds, "recall")
    of_place = variants.train(bench, plan.small, (ATTENTION, ("random", "uniform"), NOTHING), back[0], how, plan.seeds, "one back")
    tests = {"recall": (of_slots, slots[1]), "redealt": (of_slots, other), "one back": (of_place, back[1])}
    found = {task: {name(key): variants.accuracy(each, test) for key, each in nets.items()} for task, (nets, test) in tests.items()}
    likeliest = recall.likeliest(slots[1])
    about, what = ["recall-needs-content", "hybrid-recalls"], "recalling with attention better than the likeliest answer"
    lab.require(found["recall"][name(ATTENTION)], above=likeliest, what=what, claims=about, clusters=clusters)
    for task, right in found.items():
        lab.note(f"accuracy, {task}: " + "; ".join(f"{name} {values.mean():.3f}" for name, values in right.items()))
    for claim, better in zip(about, (ATTENTION, MIXED), strict=True):
        treated, control = (found[task][name(better)] - found[task][name(ALONE)] for task in ("recall", "redealt"))
        lab.finding(claim, treated=treated, control=control, clusters=clusters)
    right = found["one back"]
    near, far = (right[name(key)] - right[name(ATTENTION)] for key in (("random", "uniform"), NOTHING))
    lab.finding("position-suffices-for-position", treated=near, control=far, clusters=clusters)
    return found


def _points(title: str, values: Mapping[str, Floats], clusters: list[int], role: Role = "effect") -> Series:
    ends = [curve(label, [0.0], [found], clusters) for label, found in values.items()]
    lo, hi = ([(getattr(end, side) or (None,))[0] for end in ends] for side in ("lo", "hi"))
    return Series(title, list(values), [end.y[0] for end in ends], lo, hi, "points", role)


def _figures(lab: Lab, loss: dict[str, Losses], recalled: dict[str, dict[str, Floats]], clusters: list[int]) -> None:
    labelled = {order: {name(key): values for key, values in found.items()} for order, found in loss.items()}
    orders: Any = (("text", "text", "effect"), ("shuffled", "words in random order", "control"))
    tasks = (_points("recall", recalled["recall"], clusters), _points("one back", recalled["one back"], clusters, "second"))
    drawn = [(title, (_points(title, labelled[order], clusters, role),)) for order, title, role in orders]
    panels = [Panel(title, "mixing", "nats per word", series, horizontal=True) for title, series in drawn]
    panels.append(Panel("recall, and the symbol before", "mixing", "accuracy", tasks, horizontal=True))
    caption = "Bars: 95% intervals over sequences, for the networks trained here."
    lab.figure(Figure("principles", "What is left when attention loses a principle", tuple(panels), caption))


def _maps(lab: Lab, plan: Plan, nets: Nets, test: Asked) -> None:
    """Indicators of the attention maps of each network that has any."""
    seen = {}
    for key, found in lab.progress([item for item in nets.items() if item[0] != NOTHING], "looking at attention maps"):
        each = [attention_maps.of_decoder(hf, test.tokens[: plan.looked]) for hf in found]
        seen[name(key)] = {what: np.concatenate([one[what] for one in each]) for what in attention_maps.NAMES}
    texts = list(range(plan.looked)) * plan.seeds
    series = [_points(what, {label: values[what] for label, values in seen.items()}, texts) for what in attention_maps.NAMES]
    panels = tuple(Panel(each.name, "mixing", each.name, (each,), horizontal=True) for each in series)
    caption = "Means over the heads and layers that have a map (docs/instruments.md); bars: 95% intervals over texts."
    lab.figure(Figure("maps", "Attention maps in numbers", panels, caption))
