"""Do LLMs "Feel"? Emotion Circuits Discovery and Control (Wang et al. 2025, arXiv 2510.11328).

The same situation is to be answered with anger, sadness, happiness, fear, surprise or disgust. What the last token of the prompt holds beyond
the mean over the six is a direction for each; a few neurons and heads write it, and driving them is said to make the model write so without
being told to.

Layers, neurons and heads are chosen on one half of the scenarios and tested on the other. Every step is repeated with something that has nothing
to do with emotion. docs/studies/emotion-circuits.md says what differs from the paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from nullius.elicitation import emotion_judge
from nullius.errors import UsageError
from nullius.instruments import directions, steering, vocabulary
from nullius.instruments.interventions import Intervention, applied
from nullius.instruments.neurons import Components, Kind
from nullius.instruments.told import Told, last_token
from nullius.lab import Claim, Figure, Lab, Needs, Option, Panel, Series, above_control, at_least, correlation_above, study
from nullius.stimuli import emotions
from nullius.stimuli.emotions import EMOTIONS, LABELS, STYLES, WORDS

CHANCE = 1 / len(EMOTIONS)
DOSE = 8 / 3072**0.5  # the paper's α = 8 at width 3072, as a share of the stream's length
MIDDLE, LATE = (11 / 28, 21 / 28), (21 / 28, 26 / 28)  # its steered layers and those of its reference, as depths
SCALE = 0.8
PERMUTATIONS = 50
NEUTRAL = ("I looked at the table and said that", "The box is on the chair and I")
BIG = Needs(parameters=3e9, chat=True)
DIRECTIONS, COMPONENTS, STEERING = ("directions", "situations told"), ("component sets", "situations told"), ("steering",)
RANDOM_SET = "as many random neurons and heads of the same layers, driven alike"
RANDOM_WAY = "random directions of the same length"
RANDOM_PARTS = "random ones of the layer against others drawn alike (anew for each scenario)"

CLAIMS = (
    Claim("named-emotion-read", "At the last prompt token the emotion named in the instruction is the nearest direction in unseen scenarios",
          at_least(0.5, null=CHANCE), control="emotions permuted within scenarios", unit="accuracy", rests_on=DIRECTIONS),
    Claim("context-agnostic", "What an unseen scenario has beyond its mean points along the directions of other scenarios, one sublayer before",
          above_control(margin=0.2), control="emotions permuted within scenarios", unit="cosine", rests_on=DIRECTIONS,
          published=".77 to .82 between neighbouring sublayers, .24 between any two"),
    Claim("names-to-implied", "Directions found from the emotions' names tell the emotion of sentences that only imply it",
          at_least(0.3, null=CHANCE), control="directions of six styles (formality, rhyme ...), which for which emotion drawn for each sentence",
          unit="accuracy", rests_on=DIRECTIONS),
    Claim("few-neurons",
          "Without the four neurons of a layer that write most along an emotion, its projection falls more than without four random ones",
          above_control(margin=0.05), control=RANDOM_PARTS, unit="share of the emotion's lead", rests_on=COMPONENTS),
    Claim("few-heads", "Without the two heads of a layer that matter most, an emotion's projection falls more than without two random ones",
          above_control(margin=0.05), control=RANDOM_PARTS, unit="share of the emotion's lead", rests_on=COMPONENTS),
    Claim("late-sublayers", "An injected direction moves the final state more from later sublayers",
          correlation_above(0.2), control="layers shuffled, anew for each emotion and kind of sublayer", published="15–27 of 28",
          unit="rho over sublayers", rests_on=COMPONENTS),
    Claim("steering-words", "Steered along an emotion, the model finds held-out words of that emotion more likely than those of the others",
          above_control(margin=0.1), control=RANDOM_WAY, unit="nats", rests_on=STEERING),
    Claim("emotion-not-style", "... and more so than when steered along styles found in the same way",
          above_control(margin=0.1), control="directions of six styles, one for each emotion (which one drawn for each text)", unit="nats",
          rests_on=STEERING),
    Claim("steering-expresses", "Steered, the model writes in the emotion", above_control(margin=0.1, null=CHANCE), control=RANDOM_WAY,
          unit="share of texts judged so", rests_on=STEERING),
    Claim("circuit-expresses", "Driven through the circuit's neurons and heads, the model writes in the emotion",
          above_control(margin=0.1, null=CHANCE), control=RANDOM_SET, unit="share of texts judged so", rests_on=COMPONENTS),
    Claim("circuit-beats-steering", "The circuit makes more texts express the emotion than steering does",
          above_control(margin=0.05), control="random set minus random direction", published=0.0843, unit="difference of shares",
          rests_on=COMPONENTS),
    Claim("circuit-beats-prompting", "The circuit makes more texts express the emotion than asking for it does",
          above_control(margin=0.0), control="random set minus the model as it is", published=0.0069, unit="difference of shares",
          rests_on=COMPONENTS),
    Claim("circuit-rate", "The circuit makes nearly all texts express the emotion", at_least(0.9, null=CHANCE), control=RANDOM_SET,
          published=0.9965, unit="share of texts judged so", needs=BIG, rests_on=COMPONENTS),
    Claim("steering-rate", "Steering makes most texts express the emotion", at_least(0.8, null=CHANCE), control=RANDOM_WAY,
          published=0.9122, unit="share of texts judged so", needs=BIG, rests_on=STEERING),
)  # fmt: skip
FEW: tuple[tuple[str, Kind, int], ...] = (("few-neurons", "neuron", 4), ("few-heads", "head", 2))
TEXT_CLAIMS = tuple(claim.id for claim in CLAIMS if claim.unit in ("share of texts judged so", "difference of shares"))
JUDGE = Option("judge", ("minilm", "self", "gemma3-270m", "qwen2.5-coder-1.5b"),
               "who judges what was written: sentences like it (MiniLM), the subject itself, untouched, or another local model")  # fmt: skip


@study("emotion-circuits", claims=CLAIMS, minutes=3, options=(JUDGE,))
def emotion_circuits(lab: Lab) -> None:
    """Directions, who writes them, and what driving the writers does."""
    try:
        vocabulary.of_words(lab.subject, WORDS)
    except UsageError:
        lab.require([], above=0.5, what="have words for each emotion that begin with a token of their own")
    order = lab.rng.permutation(len(emotions.scenarios())).tolist()
    halves = sorted(order[: len(order) // 2]), sorted(order[len(order) // 2 :])
    told = _read(lab, EMOTIONS, halves, components=True)
    styled = _read(lab, STYLES, (halves[0], []), components=False)  # directions only: nothing is tested on styles
    _report_directions(lab, told)
    _report_implied(lab, told, styled)
    effects = told.effects(lab.subject)
    for claim, kind, k in FEW:
        best, one, other = (fall.ravel() for fall in told.fall(lab.subject, kind, effects[kind], k, lab.rng))
        clusters, note = np.repeat(told.test, len(EMOTIONS)).tolist(), f"{best.mean():.2f}, without random ones {one.mean():.2f}"
        lab.finding(claim, treated=best - (one + other) / 2, control=one - other, clusters=clusters, note=note)
    circuits = _circuits(lab, told, effects)
    _report_words(lab, told, styled)
    _report_texts(lab, told, circuits)


def _prompt(lab: Lab, manner: str | None, told: str) -> str:
    if lab.subject.chat:
        return emotion_judge.as_chat(lab.subject, emotions.instruction(manner), told)
    return emotions.plain_prompt(manner, told)


def _read(lab: Lab, manners: Sequence[str], halves: tuple[list[int], list[int]], *, components: bool) -> Told:
    """Quick: one outcome of each scenario in turn; full: all three, averaged."""
    chosen, versions = sorted([*halves[0], *halves[1]]), lab.scale(quick=1, full=3)
    scenarios = [emotions.scenarios()[i] for i in chosen]
    places = [chosen.index(i) for i in halves[0]], [chosen.index(i) for i in halves[1]]
    texts = [
        _prompt(lab, manner, one.told(emotions.VALENCES[(number + version) % 3]))
        for number, one in zip(chosen, scenarios, strict=True)
        for version in range(versions)
        for manner in manners
    ]
    watch = partial(lab.progress, label=f"reading {len(texts)} prompts")
    shape = (len(scenarios), versions, len(manners))
    return Told.read(lab.subject, texts, shape, places, components=components, watch=watch)


def _report_directions(lab: Lab, told: Told) -> None:
    right, layer = told.accuracy()
    # many permutations: all test scenarios share the directions of one, so that its accuracy strays further than scenarios can tell
    null = np.mean([told.accuracy(directions.permuted(told.post, lab.rng))[0] for _ in range(PERMUTATIONS)], 0)
    clusters = np.repeat(told.test, len(EMOTIONS)).tolist()
    lab.finding("named-emotion-read", treated=right.ravel(), control=null.ravel(), clusters=clusters, note=f"behind layer {layer}")
    mid, post = directions.permuted(torch.cat([told.mid, told.post], -1), lab.rng).chunk(2, -1)
    adjacent = directions.cosine(told.attention, told.mlp).mean()
    note = f"mean cosine of attention's and feed-forward block's directions: {adjacent:.2f} (published .77)"
    treated, control = told.agreement(told.mid, told.post).ravel(), told.agreement(mid, post).ravel()
    lab.finding("context-agnostic", treated=treated, control=control, clusters=clusters, note=note)
    curves = [directions.leave_group_out(x)[:, told.test].mean((1, 2)) for x in (told.post, post)]
    series = (Series("emotion", range(len(curves[0])), curves[0]), Series("permuted", range(len(curves[1])), curves[1], role="control"))
    panel = Panel("Emotion read at the last prompt token", "layer", "accuracy", series, (0, 1))
    caption = "Nearest direction of the other scenarios, on test scenarios; chance is 1/6."
    lab.figure(Figure("directions", f"Emotion directions: {lab.subject.name}", (panel,), caption))


def _report_implied(lab: Lab, told: Told, styled: Told) -> None:
    items = emotions.implied()
    states = last_token(lab.subject, [_prompt(lab, None, item.text) for item in items], ["resid_post"])["resid_post"]
    truth = np.array([EMOTIONS.index(item.emotion) for item in items])
    tune = np.isin(np.arange(len(items)) % 8, lab.rng.permutation(8)[:4])

    def right(found: Tensor, meaning: np.ndarray) -> np.ndarray:
        """meaning: for each item the emotion that each direction stands for [n, k]."""
        said = directions.nearest(states, found, states[:, tune].mean(1)).numpy()
        table = meaning[np.arange(len(items)), said] == truth
        return table[table[:, tune].mean(1).argmax(), ~tune].astype(float)

    own = np.tile(np.arange(len(EMOTIONS)), (len(items), 1))
    # A fixed pairing of styles and emotions favours some, and the layer chosen is where it does most. Many: of one, 24 sentences at chance
    # reach the bound more often than not
    null = np.mean([right(styled.mlp, lab.rng.permuted(own, axis=1)) for _ in range(PERMUTATIONS)], 0)
    lab.finding("names-to-implied", treated=right(told.mlp, own), control=null)


def _circuits(lab: Lab, told: Told, effects: Mapping[str, Tensor]) -> list[Components]:
    """The paper's 14 neurons and a quarter of the heads a layer, spread over layers by importance."""
    anatomy = lab.subject.anatomy
    first, last = (int(depth * anatomy.n_layers) for depth in LATE)
    reference = directions.unit((told.attention + told.mlp)[first : max(last, first + 1)].mean(0))
    batch = lab.subject.encode(NEUTRAL)
    watch = partial(lab.progress, label="injecting into sublayers")
    importance = told.importance(lab.subject, batch, reference, lab.scale(quick=(0.3,), full=(0.1, 0.3, 0.5, 0.7)), watch)
    depth = np.tile(np.repeat(np.arange(anatomy.n_layers), len(EMOTIONS)), 2)
    size = np.concatenate([importance[kind].numpy().ravel() for kind in ("head", "neuron")])
    # one order of the layers for all would be one draw, and chance enough to look like an effect
    shuffled = lab.rng.permuted(depth.reshape(2, anatomy.n_layers, -1), axis=1).ravel()
    lab.finding("late-sublayers", treated=(depth, size), control=(shuffled, size), clusters=depth.tolist())
    sizes = {"neuron": min(14, anatomy.d_mlp) * anatomy.n_layers, "head": max(1, round(0.25 * anatomy.n_heads)) * anatomy.n_layers}
    circuits = told.circuits(effects, importance, sizes)
    shared = [a.jaccard(b) for i, a in enumerate(circuits) for b in circuits[:i]]
    lab.note(f"circuits of {sizes['neuron']} neurons and {sizes['head']} heads; two share {min(shared):.2f} to {max(shared):.2f} (Jaccard)")
    return circuits


def _steered(lab: Lab, vectors: Tensor, rows: Sequence[int], dose: float = DOSE) -> list[Intervention]:
    """Steer the middle layers; row i of the batch along vectors[:, rows[i]] (vectors: [layers, k, d])."""
    first, last = (round(depth * lab.subject.anatomy.n_layers) for depth in MIDDLE)
    device = lab.subject.device
    ways = {layer: vectors[layer][list(rows)].float().to(device) for layer in range(first, max(last, first + 1))}
    return steering.steer(ways, dose * lab.subject.anatomy.d_model**0.5)


def _report_words(lab: Lab, told: Told, styled: Told) -> None:
    scenarios = emotions.scenarios()
    texts = [f"{scenarios[i].situation} I feel" for i in told.test]
    groups = vocabulary.of_words(lab.subject, WORDS)
    k, n = len(EMOTIONS), len(texts)
    rows = [e for e in range(k) for _ in range(n)]

    @torch.no_grad()
    def lead(vectors: Tensor | None, rows: Sequence[int] = rows, ways: Sequence[int] = rows) -> np.ndarray:
        """Mean log-probability of the own emotion's words, less that of the others', [emotions · n]."""
        with applied(lab.subject, [] if vectors is None else _steered(lab, vectors, ways)):
            logp = lab.subject.logits(lab.subject.encode(texts * k)).float().log_softmax(-1)
        table = torch.stack([logp[:, groups[name]].mean(1) for name in EMOTIONS], 1).cpu().numpy()
        own = table[np.arange(len(table)), rows]
        return own - (table.sum(1) - own) / (k - 1)

    lab.listener.step("steering, words", 0, None)
    plain, own = lead(None), lead(told.mlp)
    random = np.mean(
        [lead(directions.random_like(told.mlp[:, rows], lab.rng), ways=range(len(rows))) for _ in range(lab.scale(quick=2, full=10))], 0
    )
    clusters = told.test * k
    lab.finding("steering-words", treated=own - plain, control=random - plain, clusters=clusters)
    dealt = lab.rng.permuted(np.tile(np.arange(k), (n, 1)), axis=1).T.ravel().tolist()  # a fixed pairing of styles and emotions is no null
    lab.finding("emotion-not-style", treated=own - plain, control=lead(styled.mlp, ways=dealt) - plain, clusters=clusters)


def _report_texts(lab: Lab, told: Told, circuits: Sequence[Components]) -> None:
    items = emotions.implied()
    truth = [EMOTIONS.index(emotion) for emotion in items.field("emotion")]
    known, judge = emotion_judge.named(lab.option("judge"), lab.subject, items.field("text"), truth, [LABELS[name] for name in EMOTIONS])
    if not lab.require(known.astype(float), above=CHANCE, what="judge the emotion of sentences that imply one", claims=TEXT_CLAIMS):
        return
    some = [emotions.scenarios()[i] for i in told.test[: lab.scale(quick=8, full=len(told.test))]]
    n, k = len(some), len(EMOTIONS)
    rows = np.repeat(np.arange(k), n).tolist()
    decoding = steering.Decoding(lab.scale(quick=24, full=100), least=10, repetition_penalty=1.05, no_repeat=3)
    plain = [_prompt(lab, None, one.told("neutral")) for one in some]
    asked = [_prompt(lab, name, one.told("neutral")) for name in EMOTIONS for one in some]
    random = [one.random_like(lab.subject, lab.rng) for one in circuits]  # other components, as far as a layer has enough
    both = np.mean([one.jaccard(other) for one, other in zip(circuits, random, strict=True)])
    lab.note(f"a random set shares {both:.2f} with its circuit (Jaccard)")
    drive = partial(told.drive, device=lab.subject.device, factor=SCALE, each=n)
    conditions: dict[str, tuple[list[str], list[Intervention]]] = {
        "prompting": (asked, []),
        "steering": (plain * k, _steered(lab, told.mlp, rows)),
        "random direction": (plain * k, _steered(lab, directions.random_like(told.mlp[:, rows], lab.rng), range(len(rows)))),
        "circuit": (plain * k, drive(circuits)),
        "random set": (plain * k, drive(random)),
    }
    written = {name: steering.write(lab.subject, *what, decoding) for name, what in lab.progress(list(conditions.items()), "writing")}
    written["as it is"] = steering.write(lab.subject, plain, [], decoding) * k
    right = {name: (judge(texts) == rows).astype(float) for name, texts in lab.progress(list(written.items()), "judging")}
    clusters = list(range(n)) * k
    for name, texts in written.items():
        unlikely = np.median(emotion_judge.perplexity(lab.subject, texts))
        again = np.mean([emotion_judge.repetition(text) for text in texts])
        lab.note(f"{name}: {right[name].mean():.2f} judged so, perplexity {unlikely:.0f}, repetition {again:.2f}")
    if lab.require(right["prompting"], above=CHANCE, what="write in an emotion when asked to", claims=TEXT_CLAIMS, clusters=clusters):
        for name, null in (("steering", "random direction"), ("circuit", "random set")):
            for claim in (f"{name}-expresses", f"{name}-rate"):
                lab.finding(claim, treated=right[name], control=right[null], clusters=clusters)
        for name, null in (("steering", "random direction"), ("prompting", "as it is")):
            treated, control = right["circuit"] - right[name], right["random set"] - right[null]
            lab.finding(f"circuit-beats-{name}", treated=treated, control=control, clusters=clusters)
