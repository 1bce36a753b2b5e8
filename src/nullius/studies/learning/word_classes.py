"""Word class representations spontaneously emerge in a deep neural network trained on next word prediction (arXiv 2302.07588).

A small network learns to predict the tenth word from nine and is never told a word class. Do its activations cluster by the class of the word
to come, more so with depth, though not at the input? And do those of a pretrained model that reads the same nine words?

The text is made by a phrase grammar of English, so that every class is known exactly, or read from a CoNLL-U file (option `text`). Networks are
trained on its first 80%, stopped early on the next 5% and measured on the last 15%. The measure is the general discrimination value (GDV: 0 no
separation, −1 the most that two classes can reach), of equally many windows of each class, spread evenly over word types. One item is one
contiguous block of held-out text, since overlapping windows are dependent; so intervals speak about text, given the networks trained (whose
own values stand in the notes). What the paper does not ask, whether the word just read explains it all, is asked among windows whose contexts
end in the same word: there one item is one such word. Boundaries are never the word read or the word to come.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from nullius.errors import UsageError
from nullius.instruments import next_class, separation
from nullius.instruments.next_class import Drawn, Reading
from nullius.instruments.residual_stream import last_position
from nullius.lab import Claim, Figure, Lab, Needs, Option, Panel, Series, above_control, below_control, equivalent, study
from nullius.lab.claims import Expectation
from nullius.lab.figures import Role
from nullius.lab.statistics import mean_interval
from nullius.models.language_model import untrained
from nullius.stimuli import conllu, grammar
from nullius.stimuli.windows import TaggedText, Vocabulary, Windows, windows
from nullius.training import next_word
from nullius.training.next_word import NextWord, Size

MARGIN = 0.05  # of GDV: as much as when 7% of the variance lies between two classes
AT_INPUT = 0.02  # smaller: in nine words side by side one word has a ninth of the dimensions, and its class can reach about −0.045
PERMUTED = "the same activations, with runs of the class labels permuted"
RANDOM = "the subject with random weights"
UNTRAINED = "the same network before training"
FILE = "NULLIUS_CONLLU"
RESTS_ON = ("separation", "classes to come")


def _claim(name: str, wording: str, control: str, unit: str = "GDV", expect: Expectation | None = None, also: str = "") -> Claim:
    return Claim(name, wording, expect or below_control(MARGIN), control, unit=unit, needs=Needs(also=also), rests_on=RESTS_ON)


CLAIMS = (
    _claim("next-class-clusters", "Activations of the last hidden layer cluster by the class of the word to come", PERMUTED),
    _claim("learned", "The clustering by the class to come is learned", UNTRAINED),
    _claim("learned-from-order", "It is learned from the order of words", "a network trained on the same words in random order"),
    _claim("open-classes", "It is there among content words alone, the 50 most frequent words left out", UNTRAINED),
    _claim("grows-with-depth", "It grows with depth, from the input to the last hidden layer", UNTRAINED, "GDV over the whole depth"),
    _claim(
        "absent-at-input",
        "At the input activations do not cluster by the class of the word to come",
        "the same input, by the class of the word just read",
        expect=equivalent(AT_INPUT),
    ),
    _claim(
        "read-gives-way",
        "From the first hidden layer to the last, the class of the word just read gives way to that of the word to come",
        UNTRAINED,
        "GDV of the class to come − GDV of the class read, over the whole depth",
    ),
    _claim("beyond-the-last-word", "It is there among contexts that end in the same word", UNTRAINED),
    _claim(
        "decodable-beyond-the-last-word",
        "A probe of the last hidden layer tells the class to come better than when only the last word is its own, the others from elsewhere",
        "the same gain between two readings in which the other words come from elsewhere",
        "accuracy",
        above_control(MARGIN),
    ),
    _claim("subject-clusters", "In a pretrained model too, the last layer clusters by the class of the word to come", PERMUTED),
    _claim("subject-depth", "In a pretrained model too, it grows with depth", RANDOM, "GDV over the whole depth"),
    _claim("subject-beyond-the-last-word", "In a pretrained model too, it is there among contexts that end in the same word", RANDOM),
    _claim("in-a-novel", "A network trained on a novel does so", PERMUTED, also=f"a tagged novel (-o text=conllu, {FILE}=its file)"),
    _claim(
        "acquisition",
        "Children may acquire word classes by predicting the next word",
        PERMUTED,
        also="data on children; the paper has networks",
    ),
)
OPTIONS = (
    Option("network", ("lstm", "transformer", "bag"), "what is trained: LSTMs (the paper's), a causal Transformer, a bag of words"),
    Option("text", ("generated", "conllu"), f"text of the grammar, or a CoNLL-U file that {FILE} names"),
)


@dataclass(frozen=True)
class Plan:
    """How much is trained and measured. network, subject: blocks, windows per class in each, windows per class after one word, such words."""

    words: int
    seeds: int
    size: Size
    steps: int
    snapshots: tuple[int, ...]
    network: tuple[int, int, int, int]
    subject: tuple[int, int, int, int]


QUICK = Plan(160_000, 2, Size(64, (128, 64), 64), 1000, (0, 30, 100, 300), (12, 20, 12, 40), (12, 4, 8, 12))
FULL = Plan(1_500_000, 5, Size(100, (256, 128), 128), 20_000, (0, 100, 300, 1000, 3000), (24, 50, 30, 100), (24, 20, 20, 40))
Snapshot = Callable[[int, NextWord], None]
Readings = dict[str, list[Reading]]  # trained, untrained, shuffled -> one reading for each network


@study("word-classes", claims=CLAIMS, minutes=2.0, trains_its_own=True, options=OPTIONS)
def word_classes(lab: Lab) -> None:
    plan = lab.scale(quick=QUICK, full=FULL)
    text = _text(lab, plan)
    train, stop, test = text.part(0, 0.8), text.part(0.8, 0.85), text.part(0.85, 1)
    vocabulary = Vocabulary(train, 5000)
    held_out = windows(test)
    drawn = _draw(lab, held_out, vocabulary, plan.network)
    encoded = vocabulary.encode(drawn.windows.words)
    contexts, by_frequency = encoded[:, :-1], vocabulary.log_frequency[encoded[:, -1]]
    found: Readings = {"trained": [], "untrained": [], "shuffled": []}
    emergence: dict[int, float] = {}
    exchanged = [vocabulary.encode(next_class.exchanged(drawn.windows, held_out, lab.rng)) for _ in range(2)]
    gains, probed = [], []

    def at_step(step: int, network: NextWord) -> None:
        last = {"dense": next_word.record(network, contexts)["dense"]}
        emergence[step] = float(separation.by_sets(last, drawn.windows.next_class, drawn.blocks)["dense"].mean())

    for number in range(1, plan.seeds + 1):
        seed, name = lab.seed * 1000 + number, f"network {number}"
        fresh = _network(lab, plan, vocabulary, seed)
        network = _train(lab, plan, vocabulary, (train, stop), seed, name, at_step if number == 1 else None)
        disordered = (train.shuffled(lab.rng), stop.shuffled(lab.rng))
        shuffled = _train(lab, plan, vocabulary, disordered, seed, f"{name}, words shuffled")
        for condition, each in zip(found, (network, fresh, shuffled), strict=True):
            found[condition].append(drawn.measure(next_word.record(each, contexts)))
        states = next_word.record(network, contexts)
        lab.note(f"{name}, last hidden layer: " + ", ".join(f"{k} {v:.3f}" for k, v in drawn.describe(states["dense"], lab.rng).items()))
        own, *others = (drawn.probe(next_word.record(network, c)["dense"]) for c in (contexts, *exchanged))
        probed.append(np.stack([own - others[0], others[0] - others[1]]))
        gains.append(next_word.log_probability(network, encoded) - by_frequency)
    _network_findings(lab, drawn, found, np.concatenate(gains))
    own_context, elsewhere = np.concatenate(probed, 1)
    tested = drawn.block_of().tolist() * plan.seeds
    lab.finding("decodable-beyond-the-last-word", treated=own_context, control=elsewhere, clusters=tested)
    subject = _subject_findings(lab, _draw(lab, held_out, vocabulary, plan.subject))
    _figures(lab, found, subject, emergence)
    _projection(lab, drawn, states)


def _text(lab: Lab, plan: Plan) -> TaggedText:
    if lab.option("text") == "generated":
        return grammar.english_text(plan.words, lab.rng)
    path = os.environ.get(FILE)
    if not path:
        raise UsageError(f"text=conllu needs a text: set {FILE} to a CoNLL-U file (plain, .gz or .xz)")
    text = conllu.read(path)
    lab.note(f"text: {os.path.basename(path)}, {len(text)} words, classes as tagged there")
    return text


def _draw(lab: Lab, held_out: Windows, vocabulary: Vocabulary, sizes: tuple[int, int, int, int]) -> Drawn:
    n_blocks, per_class, same_word, words = sizes
    rank = vocabulary.encode(held_out.next_word)  # numbers are ranks
    drawn = next_class.draw(held_out, rank, lab.rng, n_blocks=n_blocks, per_class=per_class, same_word=same_word, words=words)
    lab.note(
        f"{n_blocks} blocks with {per_class} windows of each of {', '.join(drawn.classes)}; last words shared: {', '.join(drawn.same_word)}"
    )
    return drawn


def _network(lab: Lab, plan: Plan, vocabulary: Vocabulary, seed: int) -> NextWord:
    return next_word.build(cast(next_word.Kind, lab.option("network")), len(vocabulary), plan.size, seed).to(lab.subject.device)


def _train(
    lab: Lab, plan: Plan, vocabulary: Vocabulary, texts: Sequence[TaggedText], seed: int, label: str, at_step: Snapshot | None = None
) -> NextWord:
    network = _network(lab, plan, vocabulary, seed)
    train, stop = (vocabulary.encode(text.words) for text in texts)
    how = next_word.Schedule(seed, plan.steps, lab.scale(quick=100, full=500))
    show: Callable[[int, int], None] = lambda done, total: lab.listener.step(f"training {label}", done, total)  # noqa: E731
    fitted = next_word.fit(network, train, stop, how, on_step=show, snapshots=plan.snapshots, on_snapshot=at_step)
    if at_step is not None:
        at_step(fitted.kept, network)
    lab.note(f"{label}: held-out loss {fitted.losses[0]:.3f} → {fitted.best:.3f} nats per word, weights of step {fitted.kept}")
    return network


def _network_findings(lab: Lab, drawn: Drawn, found: Readings, gains: NDArray[np.float64]) -> None:
    about = [claim.id for claim in CLAIMS if not claim.id.startswith("subject") and not claim.needs.also]
    neighbours = (np.arange(len(gains)) // 50).tolist()
    lab.require(gains, above=0.0, what="predicting the next word better than its frequency does", claims=about, clusters=neighbours)
    blocks, words = list(range(len(drawn.blocks))), list(drawn.same_word)

    def compare(claim: str, get: Callable[[Reading], NDArray[np.float64]], control: str, units: Sequence = blocks) -> None:
        treated, null = (np.concatenate([get(reading) for reading in found[name]]) for name in ("trained", control))
        lab.finding(claim, treated=treated, control=null, clusters=list(units) * len(found["trained"]))

    def within(claim: str, get: Callable[[Reading], NDArray[np.float64]], control: Callable[[Reading], NDArray[np.float64]]) -> None:
        treated, null = (np.concatenate([of(reading) for reading in found["trained"]]) for of in (get, control))
        lab.finding(claim, treated=treated, control=null, clusters=blocks * len(found["trained"]))

    within("next-class-clusters", lambda r: r.to_come["dense"], lambda r: r.permuted["dense"])
    compare("learned", lambda r: r.to_come["dense"], "untrained")
    compare("learned-from-order", lambda r: r.to_come["dense"], "shuffled")
    compare("open-classes", lambda r: r.open_classes["dense"], "untrained")
    compare("grows-with-depth", Reading.slope, "untrained")
    within("absent-at-input", lambda r: r.to_come["input"], lambda r: r.read["input"])
    compare("read-gives-way", Reading.giving_way, "untrained")
    compare("beyond-the-last-word", lambda r: r.same_word["dense"], "untrained", words)


def _subject_findings(lab: Lab, drawn: Drawn) -> tuple[Reading, Reading]:
    """Measure the subject as it is and with random weights, from the embedding of the last token to the output of the last block."""
    texts = drawn.windows.render()
    prefers = next_class.prefers_next_word(lab.subject, drawn, lab.rng, lab.scale(quick=96, full=1000))
    about_subject = [claim.id for claim in CLAIMS if claim.id.startswith("subject")]
    lab.require(prefers, above=0.5, what="preferring the true next word to one from elsewhere in the text", claims=about_subject)

    readings = []
    for random in lab.progress((False, True), "reading the windows with the subject"):
        states = last_position(untrained(lab.subject, lab.seed) if random else lab.subject, texts).numpy()
        readings.append(drawn.measure({str(layer): points for layer, points in enumerate(states)}))
    model, random_weights = readings
    last = model.stages[-1]
    lab.finding("subject-clusters", treated=model.to_come[last], control=model.permuted[last])
    lab.finding("subject-depth", treated=model.slope(), control=random_weights.slope())
    lab.finding("subject-beyond-the-last-word", treated=model.same_word[last], control=random_weights.same_word[last])
    return model, random_weights


def _figures(lab: Lab, found: Readings, subject: Sequence[Reading], emergence: dict[int, float]) -> None:
    ours = _curves(found["trained"], found["untrained"], found["trained"][0].stages)
    ours.append(_curve("trained on shuffled words", [r.to_come for r in found["shuffled"]], found["shuffled"][0].stages, "reference"))
    theirs = _curves([subject[0]], [subject[1]], range(len(subject[0].stages)))
    steps = Series("class to come", list(emergence), list(emergence.values()))
    panels = (
        Panel(f"{lab.option('network')} trained here", "stage", "GDV", tuple(ours)),
        Panel(lab.subject.name, "layer (0: embedding)", "GDV", tuple(theirs)),
        Panel("last hidden layer while training", "step", "GDV", (steps,)),
    )
    caption = "General discrimination value: 0 no separation, −1 the most that two classes reach. Bars: 95% intervals over blocks of text (or words)."
    lab.figure(Figure("gdv", "Separation by word class, stage by stage", panels, caption))


def _projection(lab: Lab, drawn: Drawn, states: dict[str, NDArray]) -> None:
    roles: dict[str, Role] = {"NOUN": "effect", "VERB": "second", "ADP": "third", "DET": "control"}
    shown = np.concatenate(drawn.blocks[:3])
    shown = shown[np.isin(drawn.windows.next_class[shown], list(roles))]
    members = {name: drawn.windows.next_class[shown] == name for name in roles}
    clouds = []
    for stage in ("input", "dense"):
        x, y = separation.project(states[stage][shown], "t-sne", lab.seed).T
        points = [Series(name, x[m].tolist(), y[m].tolist(), kind="points", role=roles[name]) for name, m in members.items() if m.any()]
        clouds.append(Panel(f"{stage} (t-SNE)", "dimension 1", "dimension 2", tuple(points)))
    caption = "For the eye: islands in a projection are no evidence."
    lab.figure(Figure("projection", "Held-out contexts by the class of the word to come", tuple(clouds), caption))


def _curves(readings: list[Reading], random: list[Reading], x: Sequence[float] | Sequence[str]) -> list[Series]:
    return [
        _curve("class to come", [r.to_come for r in readings], x, "effect"),
        _curve("class just read", [r.read for r in readings], x, "second"),
        _curve("class to come, same last word", [r.same_word for r in readings], x, "third"),
        _curve("class to come, random weights", [r.to_come for r in random], x, "control"),
    ]


def _curve(name: str, curves: list[dict[str, NDArray[np.float64]]], x: Sequence[float] | Sequence[str], role: Role) -> Series:
    ends = [mean_interval(np.mean([curve[stage] for curve in curves], 0)) for stage in curves[0]]
    return Series(name, x, [e.estimate for e in ends], [e.lo for e in ends], [e.hi for e in ends], "line", role)
