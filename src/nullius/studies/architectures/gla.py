"""Gated Linear Attention Transformers with Hardware-Efficient Training (Yang, Wang, Shen, Panda & Kim 2023, arXiv 2312.06635).

A linear attention whose memory fades by a gate computed from each token: what the gate buys is tested on streams that must be remembered until a
reset, recall on pairs, speed by the clock. The study trains its own small decoders; the given subject names the device and no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from nullius.lab import Claim, Figure, Lab, Needs, Option, Panel, Series, above_control, at_least, equivalent, ordering, study, trend
from nullius.lab.claims import Expectation
from nullius.lab.curves import curve
from nullius.lab.figures import Role
from nullius.models import architectures
from nullius.stimuli import grammar, recall
from nullius.stimuli.recall import Asked
from nullius.training import asked, crossover, own_text, resuming
from nullius.training.asked import Bench, Floats, Recipe
from nullius.training.own_text import OwnText

GATES = ("gla", "scalar", "retnet", "ungated")
LENGTH = 40  # of the streams
MARGIN = 0.02  # of accuracy, and of nats per token
NO_RESET = "the same difference on streams without resets, where nothing ever needs forgetting"
DEALT = "the same, with the right answers of all questions dealt out anew among them"
OPTIONS = (Option("text", ("generated", "file"), f"with --full: sentences of the grammar, or of the file that {own_text.VARIABLE} names"),)
TRAINED = "models of 340 M or 1.3 B parameters trained on 15 or 100 B tokens"


def _claim(name: str, wording: str, expect: Expectation, control: str, unit: str = "accuracy", **more: Any) -> Claim:
    return Claim(name, wording, expect, control, unit=unit, **more)


CLAIMS = (
    _claim("gates-in-order", "Finer gates are better: per channel, per head, fixed decay, none", ordering(*GATES, margin=MARGIN), NO_RESET),
    _claim("gate-helps", "A gate per channel is better than none", above_control(MARGIN), NO_RESET),
    _claim("channels-beat-heads", "A gate per channel is better than one per head", above_control(MARGIN), NO_RESET),
    _claim("computed-beats-fixed", "A gate computed from the token is better than a fixed decay", above_control(MARGIN), NO_RESET),
    _claim("decay-beats-none", "A fixed decay is better than none", above_control(MARGIN), NO_RESET),
    _claim("gate-must-see-its-token", "A gate that sees its own token is better than one trained and tested on the tokens of other sequences",
           above_control(MARGIN), "gates from one other sequence against gates from another"),
    _claim("softmax-recalls", "Softmax attention solves associative recall", at_least(0.9, null=0.125), DEALT),
    _claim("recall-beats-fixed", "GLA recalls more pairs than a fixed decay", above_control(MARGIN), DEALT),
    _claim("extrapolates", "GLA keeps its accuracy on streams four times as long as those of training", equivalent(0.05),
           "the same difference for the network without a gate, whose memory fills"),
    _claim("faster-beyond", "Beyond some length a training step of the chunked form is faster than one of softmax attention", above_control(0.0),
           "two timings of softmax attention", "log ratio of seconds"),
    _claim("lead-grows", "The lead grows with length", trend("increasing", *map(str, (256, 512, 1024, 2048, 4096))),
           "two timings of softmax attention", "log ratio of seconds"),
    _claim("text-near-softmax", "On text GLA comes within 5 % of softmax attention's loss", equivalent(0.05), "the model without a gate",
           "share of nats per token", published="28.65 and 28.39 perplexity at 340 M", needs=Needs(full=True)),
    _claim("text-gates-in-order", "On text finer gates are better: per channel, per head, fixed decay, none",
           ordering(*GATES, margin=MARGIN), "text in random order", "minus nats per token",
           published="perplexity 14.77, 15.56, 16.55, 23.21 at 340 M", needs=Needs(full=True)),
    _claim("few-heads", "On text few heads are better than many, whose states are smaller", above_control(MARGIN), "text in random order",
           "nats per token", published="perplexity 14.61, 14.77, 15.29 with 1, 4, 8 heads", needs=Needs(full=True)),
    _claim("quality-at-scale", "At equal data GLA equals a LLaMA-style Transformer and Mamba, and beats RetNet", ordering("gla", "retnet"),
           "untrained models", "mean accuracy", published="41.5, 41.2, 41.8 and 41.0 at 340 M", needs=Needs(also=TRAINED)),
    _claim("recall-at-scale", "On FDA, SWDE and SQuAD GLA is the best of the models with a fixed state, behind softmax on the first two",
           ordering("softmax", "gla", "retnet"), "documents without the answer", published="27.4, 19.9, 14.3 on FDA at 1.3 B",
           needs=Needs(also=TRAINED)),
    _claim("length-at-scale", "Trained on 2 K tokens GLA extrapolates to 18 K, Mamba to 4 K", equivalent(0.05), "an untrained model",
           "nats per token", needs=Needs(also=TRAINED)),
    _claim("truncated-training", "Trained on 24 K tokens in twelve pieces, gradients cut between them, GLA is as good as trained on 8 K at once",
           equivalent(0.05), "a network trained on single pieces", "nats per token", needs=Needs(also=TRAINED)),
    _claim("states-beat-convolutions", "On associative recall models whose state is a matrix beat Hyena and RWKV-4", above_control(0.0), DEALT,
           needs=Needs(also="Hyena and RWKV-4 trained alike")),
    _claim("kept-states-cost-memory", "Keeping the states of all chunks costs 10 to 20 % more memory", equivalent(0.05, to=0.15),
           "the same kernel measured twice", "share of memory", needs=Needs(also="a kernel that keeps the states of all chunks")),
    _claim("gpu-parity", "On a GPU, at 2 K tokens, a training step of GLA's mixing is faster than one of softmax attention's fused kernel",
           above_control(0.0), "two timings of softmax attention", "log ratio of seconds", published="only as a figure", needs=Needs(full=True)),
)  # fmt: skip


@dataclass(frozen=True)
class Text:
    """The text of --full: bytes read by one network, of a sequence, of a batch, and width and layers."""

    tokens: int = 8_000_000
    length: int = 512
    batch: int = 32
    width: int = 512
    layers: int = 12

    @property
    def recipe(self) -> Recipe:
        """As many steps as the tokens allow."""
        return Recipe.of_tokens(self.tokens, self.length, self.batch, 1e-3, spread=0.02, bf16=True)


@dataclass(frozen=True)
class Plan:
    """How much is trained and measured. stream, plain, pairs: recipes; test: sequences of each test; clock: timings of each length."""

    seeds: int
    width: int
    layers: int
    stream: Recipe
    plain: Recipe
    pairs: Recipe
    test: int
    clock: int
    text: Text | None = None


QUICK = Plan(3, 64, 2, Recipe(120, 24, 6e-3), Recipe(120, 24, 6e-3), Recipe(300, 32, 5e-3, spread=0.05), 256, 12)
FULL = Plan(3, 128, 2, Recipe(300, 64, 3e-3), Recipe(300, 64, 3e-3), Recipe(600, 64, 3e-3, spread=0.05), 1000, 30, Text())
Rights = dict[str, Floats]  # accuracy [seeds · n] of each kind of network
Timed = Mapping[int, crossover.Timings]  # by length


@study("gla", claims=CLAIMS, minutes=3.0, trains_its_own=True, options=OPTIONS)
def gla(lab: Lab) -> None:
    plan = lab.scale(quick=QUICK, full=FULL)
    text = own_text.read(4 * plan.text.tokens) if plan.text and lab.option("text") == "file" else None
    facts = [asdict(plan), lab.seed, text.sha256 if text else "", lab.subject.device.type]
    with resuming.keeping("gla", facts, lab.full) as store:
        _measure(lab, plan, Bench(lab.subject.device, lab.seed, store, lab.listener.step), text)


def _measure(lab: Lab, plan: Plan, bench: Bench, text: OwnText | None) -> None:
    draw = partial(recall.until_reset, rng=lab.rng, length=LENGTH)
    train, test = draw(plan.stream.steps * plan.stream.batch), draw(plan.test)
    long = recall.only(draw(plan.test, length=4 * LENGTH), 3 * LENGTH, 4 * LENGTH)
    plain, plain_test = draw(plan.plain.steps * plan.plain.batch, resets=0.0), draw(plan.test, resets=0.0)
    resets, lengthened, without = ({} for _ in range(3))
    for kind in (*GATES, "estranged"):
        networks = _networks(bench, plan, "resets", kind, train, plan.stream)
        resets[kind], lengthened[kind] = _right(networks, test), _right(networks, long)
        if kind in GATES:
            without[kind] = _right(_networks(bench, plan, "no resets", kind, plain, plan.plain), plain_test)
        _tell(lab, plan, "streams with resets", kind, resets[kind])
    order = lab.rng.spawn(1)[0].permutation(plan.test)  # of the test sequences: each has another neighbour to take its gate from
    resets["estranged, others"] = _right(networks, test[order]).reshape(-1, plan.test)[:, np.argsort(order)].ravel()
    _gates(lab, plan, test, resets, without)
    sequences = list(range(plan.test)) * plan.seeds
    treated, control = (lengthened[kind] - resets[kind] for kind in ("gla", "ungated"))
    lab.finding("extrapolates", treated=treated, control=control, clusters=sequences)
    recalled = _pairs(lab, plan, bench, sequences)
    timings = _clock(lab, plan)
    if plan.text is not None:
        _text(lab, plan, plan.text, bench, text)
    _figures(lab, resets, without, recalled, timings, sequences)


def _networks(bench: Bench, plan: Plan, where: str, kind: str, data: Asked, how: Recipe, heads: int = 2) -> list[Any]:
    """Train one network for each seed. `estranged`: GLA whose gates are computed from another sequence."""
    shape = {"hidden_size": plan.width, "num_hidden_layers": plan.layers, "num_attention_heads": heads, "intermediate_size": 2 * plan.width}
    wanted, prepare = {**shape, "mixer": kind}, None
    if kind == "estranged":
        wanted, prepare = {**shape, "mixer": "gla"}, architectures.estrange_gates
    labels = [f"{where}: training {kind}, {heads} heads, {number + 1} of {plan.seeds}" for number in range(plan.seeds)]
    return [bench.trained(label, wanted, data, how, number, prepare) for number, label in enumerate(labels)]


def _right(networks: list[Any], data: Asked) -> Floats:
    return np.concatenate([asked.measure(hf, data)[1] for hf in networks])


def _tell(lab: Lab, plan: Plan, where: str, kind: str, right: Floats) -> None:
    each = ", ".join(f"{part.mean():.3f}" for part in np.split(right, plan.seeds))
    lab.note(f"{where}, {kind}: accuracy {each} (one for each seed)")


def _gates(lab: Lab, plan: Plan, test: Asked, resets: Rights, without: Rights) -> None:
    sequences = list(range(plan.test)) * plan.seeds
    others = [f"plain {i}" for i in sequences]
    likeliest, about = recall.likeliest(test), [claim.id for claim in CLAIMS[:6]]
    what = "remembering until reset better than the likeliest answer"
    lab.require(resets["gla"], above=likeliest, what=what, claims=about, clusters=sequences)
    ordered, within, apart = {k: resets[k] for k in GATES}, dict.fromkeys(GATES, sequences), dict.fromkeys(GATES, others)
    lab.finding("gates-in-order", treated=ordered, control=without, clusters=within, control_clusters=apart)

    def compare(claim: str, better: str, worse: str) -> None:
        treated, control = (found[better] - found[worse] for found in (resets, without))
        lab.finding(claim, treated=treated, control=control, clusters=sequences, control_clusters=others, paired=False)

    compare("gate-helps", "gla", "ungated")
    compare("channels-beat-heads", "gla", "scalar")
    compare("computed-beats-fixed", "scalar", "retnet")
    compare("decay-beats-none", "retnet", "ungated")
    strangers = resets["estranged"], resets["estranged, others"]
    lab.finding(
        "gate-must-see-its-token", treated=resets["gla"] - sum(strangers) / 2, control=strangers[0] - strangers[1], clusters=sequences
    )


def _pairs(lab: Lab, plan: Plan, bench: Bench, sequences: list[int]) -> Rights:
    train, test = (recall.pairs(n, lab.rng, length=24) for n in (plan.pairs.steps * plan.pairs.batch, plan.test))
    other = replace(test, targets=recall.redealt(test, lab.rng))
    found: Rights = {}
    for kind in ("softmax", "gla", "retnet"):
        networks = _networks(bench, plan, "pairs", kind, train, plan.pairs)
        found[kind], found[f"{kind}, redealt"] = _right(networks, test), _right(networks, other)
        _tell(lab, plan, "pairs", kind, found[kind])
    lab.finding("softmax-recalls", treated=found["softmax"], control=found["softmax, redealt"], clusters=sequences)
    treated, control = (found[f"gla{which}"] - found[f"retnet{which}"] for which in ("", ", redealt"))
    lab.finding("recall-beats-fixed", treated=treated, control=control, clusters=sequences)
    return found


def _text(lab: Lab, plan: Plan, how: Text, bench: Bench, own: OwnText | None) -> None:
    """Bytes of running text, in order and with its bytes shuffled: GLA with its ablations, softmax, and GLA with one head and with eight."""
    data = own.text if own else " ".join(grammar.english_text(how.tokens // 5, lab.rng).words.tolist())  # as much as one network reads
    text = np.frombuffer(data.encode(), dtype=np.uint8).astype(np.int64)
    told = f"{own.name} (SHA-256 {own.sha256})" if own else "generated by the grammar"
    lab.note(f"text: {told}, {len(text)} bytes; each network reads {how.recipe.steps * how.batch * how.length / 1e6:.1f} million")
    loss: dict[str, dict[str, Floats]] = {}
    kinds = {kind: (kind, 4) for kind in ("softmax", *GATES)} | {"1 head": ("gla", 1), "8 heads": ("gla", 8)}
    sequences = list(range(plan.test)) * plan.seeds
    for order, stream, seeds in (("text", text, plan.seeds), ("shuffled", lab.rng.permutation(text), 1)):
        whole = recall.next_symbols(stream, how.length, 256)
        train, test = whole[: int(len(whole) * 0.9)], whole[-plan.test :]
        wide, loss[order] = replace(plan, seeds=seeds, width=how.width, layers=how.layers), {}
        for name in (name for name in kinds if order == "text" or name != "softmax"):
            nets = _networks(bench, wide, order, kinds[name][0], train, how.recipe, kinds[name][1])
            each = [asked.measure(hf, test, 16)[0] for hf in nets]
            lab.note(f"{order}, {name}: nats per byte " + ", ".join(f"{values.mean():.4f}" for values in each) + " (one for each seed)")
            loss[order][name] = np.concatenate(each)
    ours, null = loss["text"], loss["shuffled"]
    near, far = ours["gla"] / ours["softmax"] - 1, ours["ungated"] / ours["softmax"] - 1
    lab.finding("text-near-softmax", treated=near, control=far, clusters=sequences)
    ordered, dealt = ({kind: -found[kind] for kind in GATES} for found in (ours, null))
    apart = [f"shuffled {i}" for i in range(plan.test)]
    within = dict.fromkeys(GATES, sequences), dict.fromkeys(GATES, apart)
    lab.finding("text-gates-in-order", treated=ordered, control=dealt, clusters=within[0], control_clusters=within[1])
    heads, none = (found["8 heads"] - found["1 head"] for found in (ours, null))
    lab.finding("few-heads", treated=heads, control=none, clusters=sequences, control_clusters=apart, paired=False)


def _clock(lab: Lab, plan: Plan) -> Timed:
    """Seconds of a forward and a backward pass through one layer's mixing, softmax timed twice, all three in turn."""
    lengths = [int(level) for level in next(claim for claim in CLAIMS if claim.id == "lead-grows").expect.levels]
    timed = {n: crossover.time_layer(n, plan.clock, lab.subject.device) for n in lab.progress(lengths, "timing chunks against softmax")}
    lead = {str(n): np.log(t.softmax / t.chunks) for n, t in timed.items()}
    null = {str(n): np.log(t.softmax / t.again) for n, t in timed.items()}
    lab.finding("lead-grows", treated=lead, control=null)
    lab.finding("faster-beyond", treated=lead[str(lengths[-1])], control=null[str(lengths[-1])])
    if lab.full:
        here = np.full(40, float(lab.subject.device.type == "cuda"))
        lab.require(here, above=0.5, what="running on a CUDA device", claims=["gpu-parity"])
        lab.finding("gpu-parity", treated=lead["2048"], control=null["2048"])
    return timed


def _figures(lab: Lab, resets: Rights, without: Rights, recalled: Rights, timed: Timed, clusters: list[int]) -> None:
    def bars(name: str, found: Rights, kinds: tuple[str, ...], role: Any) -> Series:
        points = [curve(kind, [0.0], [found[kind]], clusters, bounds=(0, 1)) for kind in kinds]
        lo, hi = ([(getattr(point, end) or (None,))[0] for point in points] for end in ("lo", "hi"))
        return Series(name, kinds, [point.y[0] for point in points], lo, hi, "points", role)

    roles: dict[str, Role] = {"chunks": "effect", "softmax": "second", "again": "control"}
    clock = [curve(name, list(timed), [1000 * getattr(t, name) for t in timed.values()], role=role) for name, role in roles.items()]
    streams = (bars("with resets", resets, (*GATES, "estranged"), "effect"), bars("without resets", without, GATES, "control"))
    pairs = (bars("recall of pairs", recalled, ("softmax", "gla", "retnet"), "effect"),)
    panels = (
        Panel("remember until reset", "gate", "accuracy", streams),
        Panel("pairs", "mixer", "accuracy", pairs),
        Panel(f"one layer's mixing on {lab.subject.device.type}", "tokens", "milliseconds, forward and backward", tuple(clock), log_x=True),
    )
    caption = "Bars: 95% intervals over sequences, for the networks trained here."
    lab.figure(Figure("gates", "What a gate buys, and what it costs", panels, caption))
