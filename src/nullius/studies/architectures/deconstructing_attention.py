"""Deconstructing Attention: Investigating Design Principles for Effective Language Modeling (Xue, Moosavi & Aletras 2025, arXiv 2510.11602).

Attention loses one principle at a time (mixing, queries, keys and queries that follow the sequence), in all layers or in every other one. The
study trains its own small decoders on the same batches; the given subject names the device and no more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from nullius.lab import Claim, Figure, Lab, Needs, Panel, Series, above_control, equivalent, study
from nullius.lab.claims import Expectation
from nullius.lab.curves import curve
from nullius.models import architectures
from nullius.stimuli import grammar, recall
from nullius.stimuli.recall import Asked, Ints
from nullius.stimuli.windows import Vocabulary
from nullius.training import asked
from nullius.training.asked import Floats, Recipe

MARGIN = 0.02  # nats per word
SHUFFLED = "the same difference on the same words in random order, where there is nothing to mix"
SCALE = "models of 500 M parameters, or of 1.7 B, trained on 15 B tokens"
QUICK_KINDS = ("mlp", "non-approximate", "static")
FULL_KINDS = ("mlp", "approximate", "non-approximate", "random", "fixed", "static")


def _claim(name: str, wording: str, expect: Expectation, control: str, unit: str = "nats", **more: Any) -> Claim:
    return Claim(name, wording, expect, control, unit=unit, **more)


def _more(name: str, wording: str, published: str, control: str = SHUFFLED, **needs: Any) -> Claim:
    return _claim(name, wording, above_control(MARGIN), control, published=published, needs=Needs(**needs))


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
    _claim("skipping-destroys", "The weakened layers contribute: without them a trained hybrid predicts worse", above_control(MARGIN), SHUFFLED,
           published="Wiki perplexity 2e4 to 2e6"),
    _claim("their-mixing-counts", "So does their mixing alone: with its mean in its place a trained hybrid predicts worse", above_control(MARGIN),
           SHUFFLED),
    _claim("regulated", "Query-free scores grow larger when no layer attends than when every other one does", above_control(0.0),
           "the same before training", "log10 of the largest score", published="above 10³, and below 10¹"),
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
    _more("zero-shot", "Hybrids keep the zero-shot accuracy of attention", "48.7 to 52.9, attention 51.9", "untrained models", also=SCALE),
    _more("norm-rescues", "With normed queries and keys a query-free softmax trains in all layers", "perplexity 67.3", also=SCALE),
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """How much is trained and measured. text, shuffled, recall: recipes; length: words of a sequence; test: sequences of each test."""

    kinds: tuple[str, ...]
    seeds: int
    width: int
    layers: int
    length: int
    text: Recipe
    shuffled: Recipe
    recall: Recipe
    test: int


QUICK = Plan(QUICK_KINDS, 2, 64, 4, 48, Recipe(160, 16, 4e-3), Recipe(60, 16, 4e-3), Recipe(120, 16, 4e-3), 200)
FULL = Plan(
    *(FULL_KINDS, 3, 512, 6, 256, Recipe(4000, 64, 6e-4, spread=0.02), Recipe(1000, 64, 6e-4, spread=0.02)),
    *(Recipe(2000, 64, 6e-4, spread=0.02), 1000),
)
Key = tuple[str, str]  # kind of mixer, allocation
Nets = dict[Key, list[Any]]
Losses = dict[Key, Floats]
ATTENTION: Key = ("softmax", "uniform")


@study("deconstructing-attention", claims=CLAIMS, minutes=3.0, trains_its_own=True)
def deconstructing_attention(lab: Lab) -> None:
    plan = lab.scale(quick=QUICK, full=FULL)
    keys: list[Key] = [ATTENTION, *((kind, where) for kind in plan.kinds for where in ("uniform", "odd"))]
    words, vocabulary = _words(lab, plan)
    streams = {"text": words, "shuffled": lab.rng.permutation(words)}
    windows = {order: recall.next_symbols(stream, plan.length, len(vocabulary)) for order, stream in streams.items()}
    sets = {order: (whole[: -plan.test], whole[-plan.test :]) for order, whole in windows.items()}
    nets = {order: _train(lab, plan, keys, train, getattr(plan, order), order) for order, (train, _) in sets.items()}
    loss = {order: {key: _loss(found, sets[order][1]) for key, found in nets[order].items()} for order in nets}
    for order, found in loss.items():
        lab.note(f"{order}: nats per word " + ", ".join(f"{kind} {where} {values.mean():.3f}" for (kind, where), values in found.items()))
    clusters = list(range(plan.test)) * plan.seeds
    by_frequency = -vocabulary.log_frequency[sets["text"][1].targets].mean(1)
    gain = np.tile(by_frequency, plan.seeds) - loss["text"][ATTENTION]
    about = [claim.id for claim in CLAIMS if claim.unit == "nats" and not claim.needs.also]
    lab.require(gain, above=0.0, what="predicting a word with attention better than its frequency does", claims=about, clusters=clusters)
    _text_findings(lab, plan, loss, clusters)
    _ablations(lab, plan, nets, sets, clusters)
    _by_position(lab, nets["text"], sets["text"][1], clusters)
    recalled = _recall(lab, plan, clusters)
    _figures(lab, loss, recalled, clusters)


def _words(lab: Lab, plan: Plan) -> tuple[Ints, Vocabulary]:
    need = (plan.text.steps * plan.text.batch // 2 + plan.test) * (plan.length + 1)
    text = grammar.english_text(min(need, 3_000_000), lab.rng)
    vocabulary = Vocabulary(text, 512)
    return vocabulary.encode(text.words), vocabulary


def _network(lab: Lab, plan: Plan, key: Key, data: Asked, seed: int) -> Any:
    kind, where = key
    shape = {"hidden_size": plan.width, "num_hidden_layers": plan.layers, "num_attention_heads": 4, "intermediate_size": 2 * plan.width}
    length = data.tokens.shape[1]
    shadow = {"max_position_embeddings": length, "shadow_tokens": data.tokens[0].tolist()}
    wanted = {**shape, **shadow, "vocab_size": data.vocabulary, "mixer": kind, "allocation": where, "initializer_range": plan.text.spread}
    return asked.fresh(wanted, seed, lab.subject.device)


def _train(lab: Lab, plan: Plan, keys: list[Key], data: Asked, how: Recipe, label: str) -> Nets:
    nets: Nets = {}
    for key in keys:
        for number in range(plan.seeds):
            hf = _network(lab, plan, key, data, lab.seed * 1000 + number)
            name = f"{label}: training {key[0]} {key[1]} {number + 1}"
            asked.fit(hf, data, how, lab.seed * 1000 + number, lambda done, total, name=name: lab.listener.step(name, done, total))  # type: ignore[misc]
            nets.setdefault(key, []).append(hf)
    return nets


def _loss(found: list[Any], data: Asked) -> Floats:
    return np.concatenate([asked.measure(hf, data)[0] for hf in found])


def _text_findings(lab: Lab, plan: Plan, loss: dict[str, Losses], clusters: list[int]) -> None:
    position = np.array(clusters)
    choose, rest = position < plan.test // 2, position >= plan.test // 2

    def gap(claim: str, worse: Key, better: Key, kept: Any = slice(None)) -> None:
        treated, control = ((loss[order][worse] - loss[order][better])[kept] for order in ("text", "shuffled"))
        others = [f"shuffled {i}" for i in position[kept]]
        lab.finding(claim, treated=treated, control=control, clusters=position[kept].tolist(), control_clusters=others, paired=False)

    nothing: Key = ("mlp", "uniform")
    weakened = [(kind, "uniform") for kind in plan.kinds if kind != "mlp"]
    nearest = max(weakened, key=lambda key: float(loss["text"][key][choose].mean()))
    lab.note(f"the worst weakened mixing in all layers, besides none, on the first half of the test windows: {nearest[0]}")
    gap("mixing-is-needed", nothing, ATTENTION)
    gap("no-mixing-is-worst", nothing, nearest, rest)
    names = {"non-approximate": "query-free"}
    for kind in plan.kinds:
        gap(f"hybrid-closes-{names.get(kind, kind)}", (kind, "uniform"), (kind, "odd"))
    base = loss["text"][ATTENTION]
    near, far = (loss["text"][key] - base for key in (("non-approximate", "odd"), nothing))
    lab.finding("hybrid-is-near", treated=near, control=far, clusters=clusters)


def _ablations(lab: Lab, plan: Plan, nets: dict[str, Nets], sets: dict[str, tuple[Asked, Asked]], clusters: list[int]) -> None:
    """Every other layer of the query-free hybrid left out, or its mixing replaced by its mean; and how large query-free scores are."""
    key: Key = ("non-approximate", "odd")
    weak = architectures.allocate("odd", plan.layers)
    others = [f"shuffled {i}" for i in clusters]
    for claim, without in (("skipping-destroys", architectures.skipping), ("their-mixing-counts", architectures.averaging)):
        rise = {}
        for order, (_, test) in sets.items():
            parts = []
            for hf in nets[order][key]:
                whole = asked.measure(hf, test)[0]
                with without(hf, weak):
                    parts.append(asked.measure(hf, test)[0] - whole)
            rise[order] = np.concatenate(parts)
        lab.finding(claim, treated=rise["text"], control=rise["shuffled"], clusters=clusters, control_clusters=others, paired=False)
    train, test = sets["text"]
    tokens = torch.from_numpy(test.tokens).to(lab.subject.device)
    after: list[Floats] = []
    before: list[Floats] = []
    for number in range(plan.seeds):
        fresh = [_network(lab, plan, (key[0], where), train, lab.seed * 1000 + number) for where in ("uniform", "odd")]
        trained = [nets["text"][key[0], where][number] for where in ("uniform", "odd")]
        for pair, into in ((trained, after), (fresh, before)):
            alone, mixed = (architectures.score_ranges(hf, tokens).amax(0).log10().double().cpu().numpy() for hf in pair)
            into.append(alone - mixed)
    lab.finding("regulated", treated=np.concatenate(after), control=np.concatenate(before), clusters=clusters)


def _by_position(lab: Lab, nets: Nets, test: Asked, clusters: list[int]) -> None:
    """Loss over the first eighth of the positions minus that over the last half."""

    def fall(key: Key) -> Floats:
        length = test.tokens.shape[1]
        parts = [_loss(nets[key], recall.only(test, *span)) for span in ((0, length // 8), (length // 2, length))]
        return parts[0] - parts[1]

    lab.finding("context-helps-attention", treated=fall(ATTENTION), control=fall(("mlp", "uniform")), clusters=clusters)


def _recall(lab: Lab, plan: Plan, clusters: list[int]) -> Losses:
    how, found = plan.recall, {}
    n = how.steps * how.batch
    slots = [recall.until_reset(size, lab.rng, resets=0.0) for size in (n, plan.test)]
    back = [recall.offset(size, lab.rng) for size in (n, plan.test)]
    other = replace(slots[1], targets=recall.redealt(slots[1], lab.rng))
    for key in (ATTENTION, ("non-approximate", "uniform"), ("non-approximate", "odd")):
        (nets,) = _train(lab, plan, [key], slots[0], how, "recall").values()
        for name, test in (("right", slots[1]), ("redealt", other)):
            found[f"{key[0]} {key[1]}", name] = np.concatenate([asked.measure(hf, test)[1] for hf in nets])
    for key in (ATTENTION, ("random", "uniform"), ("mlp", "uniform")):
        (nets,) = _train(lab, plan, [key], back[0], how, "one back").values()
        found[f"{key[0]} {key[1]}", "one back"] = np.concatenate([asked.measure(hf, back[1])[1] for hf in nets])
    answers = slots[1].targets[slots[1].targets != recall.NOTHING]
    likeliest = float(np.bincount(answers).max() / len(answers))
    right = found["softmax uniform", "right"]
    about = ["recall-needs-content", "hybrid-recalls"]
    lab.require(right, above=likeliest, what="recalling with attention better than the likeliest answer", claims=about, clusters=clusters)
    lab.note("accuracy: " + ", ".join(f"{name} ({task}) {right.mean():.3f}" for (name, task), right in found.items()))
    for claim, better, worse in (
        ("recall-needs-content", "softmax uniform", "non-approximate uniform"),
        ("hybrid-recalls", "non-approximate odd", "non-approximate uniform"),
    ):
        treated, control = (found[better, which] - found[worse, which] for which in ("right", "redealt"))
        lab.finding(claim, treated=treated, control=control, clusters=clusters)
    near, far = (found[name, "one back"] - found["softmax uniform", "one back"] for name in ("random uniform", "mlp uniform"))
    lab.finding("position-suffices-for-position", treated=near, control=far, clusters=clusters)
    return found


def _figures(lab: Lab, loss: dict[str, Losses], recalled: Losses, clusters: list[int]) -> None:
    def points(name: str, found: Losses, labels: dict[str, Key], role: Any) -> Series:
        ends = [curve(label, [0.0], [found[key]], clusters) for label, key in labels.items()]
        lo, hi = ([(getattr(end, side) or (None,))[0] for end in ends] for side in ("lo", "hi"))
        return Series(name, list(labels), [end.y[0] for end in ends], lo, hi, "points", role)

    labels = {f"{kind}, {'all' if where == 'uniform' else 'every other'}": (kind, where) for kind, where in loss["text"]}
    panels = [
        Panel(title, "mixing", "nats per word", (points(title, loss[order], labels, role),), horizontal=True)
        for title, order, role in (("text", "text", "effect"), ("words in random order", "shuffled", "control"))
    ]
    tasks = {"recall": "right", "one back": "one back"}
    series = [
        points(title, recalled, {name: (name, t) for name, t in recalled if t == task}, role)
        for (title, task), role in zip(tasks.items(), ("effect", "second"), strict=True)
    ]
    panels.append(Panel("recall, and the symbol before", "mixing", "accuracy", tuple(series), horizontal=True))
    caption = "Bars: 95% intervals over sequences, for the networks trained here."
    lab.figure(Figure("principles", "What is left when attention loses a principle", tuple(panels), caption))
