"""Word class representations spontaneously emerge in a deep neural network trained on next word prediction (arXiv 2302.07588).

A small network learns to predict the tenth word from nine and is never told a word class. Do its states cluster by the class of the word to
come, more with depth, and not at the input?

The text is made by a phrase grammar of English, so that every class is known exactly. Clustering is the general discrimination value (GDV, 0
none, −1 perfect), computed in contiguous blocks of held-out text with equally many points of each class; a block of a network is one item, since
overlapping windows are not independent. The confound that the paper does not control: the class of word ten can be guessed from word nine
alone. It is removed by subtracting, from each state, the mean state of its ninth word.

The same is measured in the subject: the last position's hidden states of a pretrained model that reads the nine words.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nullius.instruments import separation, taps
from nullius.lab import Claim, Figure, Lab, Needs, Panel, Series, below_control, equivalent, study, trend
from nullius.stimuli import grammar
from nullius.training import next_word

PERMUTED = "the same states with the classes permuted"
CLAIMS = (
    Claim(
        "next-class-clusters",
        "States of the last hidden layer cluster by the class of the word to come",
        below_control(margin=0.02),
        control=PERMUTED,
        unit="GDV",
        rests_on=("GDV",),
    ),
    Claim(
        "learned",
        "The clustering is learned: a network that was never trained has none",
        below_control(margin=0.02),
        control="the same network before training",
        unit="GDV",
        rests_on=("GDV",),
    ),
    Claim(
        "learned-from-order",
        "The clustering comes from predicting: a network trained on the same words in random order has none",
        below_control(margin=0.02),
        control="a network trained on the same words in random order",
        unit="GDV",
        rests_on=("GDV",),
    ),
    Claim(
        "grows-with-depth",
        "The clustering grows from the input over both recurrent layers to the dense layer",
        trend("decreasing", *next_word.STAGES, margin=0.3),
        control="the same stages with the classes permuted",
        unit="tau of GDV with stage",
        rests_on=("GDV",),
    ),
    Claim(
        "absent-at-input",
        "At the input there is no clustering by the class of the word to come",
        equivalent(0.02),
        control="the last hidden layer of the same network, which must differ from 0",
        unit="GDV",
        rests_on=("GDV",),
    ),
    Claim(
        "beyond-the-last-word",
        "The clustering is not explained by the identity of the ninth word",
        below_control(margin=0.005),
        control="classes permuted among windows with the same ninth word",
        unit="GDV after removing the mean state of the ninth word",
        rests_on=("GDV",),
    ),
    Claim(
        "in-the-subject",
        "In a pretrained model, clustering by the class of the word to come grows with depth",
        trend("decreasing", "first third", "middle third", "last third", margin=0.2),
        control=PERMUTED,
        unit="tau of GDV with depth",
        rests_on=("GDV",),
    ),
    Claim(
        "in-a-novel",
        "The same holds for a network trained on a novel",
        below_control(margin=0.02),
        control=PERMUTED,
        unit="GDV",
        needs=Needs(also="a novel with part-of-speech tags"),
    ),
)
Scores = dict[str, list[float]]


@study("word-classes", claims=CLAIMS, minutes=1.5, trains_its_own=True)
def word_classes(lab: Lab) -> None:
    """Train, record held-out states stage by stage, score them block by block."""
    text = grammar.english(lab.scale(quick=26_000, full=400_000), lab.rng)
    vocabulary = grammar.vocabulary(text)
    cut = int(0.75 * len(text.words))
    learn, test = (grammar.Tagged(text.words[a:b], text.tags[a:b], text.classes) for a, b in ((0, cut), (cut, len(text.words))))
    data, held_out = grammar.windows(learn, vocabulary), grammar.windows(test, vocabulary, n_blocks=lab.scale(quick=8, full=24))
    random = grammar.windows(grammar.shuffled(learn, lab.rng), vocabulary)

    scores: dict[str, Scores] = {}
    clusters: list[str] = []
    for seed in range(lab.scale(quick=2, full=5)):
        own = lab.seed * 100 + seed
        networks = {
            "trained": _train(lab, data.words, held_out.words, len(vocabulary), own, f"network {seed + 1}"),
            "untrained": next_word.untrained(len(vocabulary), own),
            "words shuffled": _train(lab, random.words, held_out.words, len(vocabulary), own, f"network {seed + 1}, words shuffled"),
        }
        _score(lab, networks, held_out, scores)
        clusters += [f"block {block}" for block in np.unique(held_out.blocks)]
    _report(lab, scores, clusters)
    in_subject = _in_the_subject(lab, test)
    _draw(lab, scores, in_subject)


def _train(lab: Lab, words: np.ndarray, held_out: np.ndarray, size: int, seed: int, label: str) -> next_word.NextWord:
    epochs = lab.scale(quick=5, full=20)
    trained = next_word.train(words, held_out, size, seed, epochs, lambda done: lab.listener.step(f"training {label}", done, epochs))
    lab.note(f"{label}: held-out loss {trained.losses[0]:.2f} → {min(trained.losses):.2f} nats a word (seed {seed})")
    return trained.network


def _by_block(lab: Lab, points: np.ndarray, labels: np.ndarray, blocks: np.ndarray, per_class: int) -> list[float]:
    """GDV in each block, on `per_class` points of every class that has as many there."""
    values = []
    for block in np.unique(blocks):
        inside = np.flatnonzero(blocks == block)
        chosen = inside[separation.balanced(labels[inside], per_class, lab.rng)]
        values.append(separation.gdv(points[chosen], labels[chosen]))
    return values


def _score(lab: Lab, networks: dict[str, next_word.NextWord], held_out: grammar.Windows, scores: dict[str, Scores]) -> None:
    per_class = lab.scale(quick=18, full=40)
    permuted = separation.permute_within(held_out.next_class, held_out.blocks, lab.rng)
    ninth = held_out.words[:, -2]
    same_word = separation.permute_within(held_out.next_class, ninth, lab.rng)

    def add(name: str, stage: str, points: np.ndarray, labels: np.ndarray) -> None:
        scores.setdefault(name, {}).setdefault(stage, []).extend(_by_block(lab, points, labels, held_out.blocks, per_class))

    for name, network in networks.items():
        for stage, points in next_word.activations(network, held_out.words).items():
            add(name, stage, points, held_out.next_class)
            if name == "trained":
                add("classes permuted", stage, points, permuted)
                add("class of the ninth word", stage, points, held_out.last_class)
                rest = separation.without(points, ninth)
                add("ninth word removed", stage, rest, held_out.next_class)
                add("ninth word removed, permuted", stage, rest, same_word)


def _report(lab: Lab, scores: dict[str, Scores], clusters: list[str]) -> None:
    last, first = next_word.STAGES[-1], next_word.STAGES[0]
    trained = scores["trained"]

    def versus(claim: str, control: str) -> None:
        lab.finding(claim, treated=trained[last], control=scores[control][last], clusters=clusters)

    versus("next-class-clusters", "classes permuted")
    versus("learned", "untrained")
    versus("learned-from-order", "words shuffled")
    by_stage = dict.fromkeys(next_word.STAGES, clusters)
    lab.finding("grows-with-depth", treated=trained, control=scores["classes permuted"], clusters=by_stage)
    lab.finding("absent-at-input", treated=trained[first], control=trained[last], clusters=clusters)
    rest, null = scores["ninth word removed"][last], scores["ninth word removed, permuted"][last]
    lab.finding("beyond-the-last-word", treated=rest, control=null, clusters=clusters)


def _in_the_subject(lab: Lab, text: grammar.Tagged) -> dict[str, np.ndarray]:
    """GDV by layer [blocks, layers] of the subject's states after nine words, by the class of the tenth, true and permuted."""
    n = lab.scale(quick=560, full=4000)
    starts = np.linspace(0, len(text.words) - 10, n).astype(int)
    prompts = [" ".join(text.words[i : i + 9]).replace(" .", ".") for i in starts]
    labels = text.tags[starts + 9]
    blocks = np.arange(n) * 5 // n
    states = []
    for i in lab.progress(range(0, n, 56), "reading with the subject"):
        batch = lab.subject.encode(prompts[i : i + 56])
        states.append(taps.read(lab.subject, batch, ["resid_post"])["resid_post"].float().cpu().numpy())
    layers = np.concatenate(states, 1).astype(np.float64)
    permuted = separation.permute_within(labels, blocks, lab.rng)

    def table(names: np.ndarray) -> np.ndarray:
        return np.array([_by_block(lab, layer, names, blocks, 5) for layer in layers]).T

    found = {"true classes": table(labels), "classes permuted": table(permuted)}
    thirds = np.array_split(np.arange(len(layers)), 3)
    names = ("first third", "middle third", "last third")
    levels: Callable[[np.ndarray], dict[str, np.ndarray]] = lambda values: {  # noqa: E731
        name: values[:, third].mean(1) for name, third in zip(names, thirds, strict=True)
    }
    own = {name: [f"block {b}" for b in range(5)] for name in names}
    lab.finding("in-the-subject", treated=levels(found["true classes"]), control=levels(found["classes permuted"]), clusters=own)
    return found


def _draw(lab: Lab, scores: dict[str, Scores], in_subject: dict[str, np.ndarray]) -> None:
    roles = {"trained": "effect", "class of the ninth word": "second", "ninth word removed": "third", "untrained": "control"}

    def series(name: str, role: str) -> Series:
        values = [np.array(scores[name][stage]) for stage in next_word.STAGES]
        mean = [v.mean() for v in values]
        reach = [1.96 * v.std(ddof=1) / np.sqrt(len(v)) for v in values]
        lo, hi = ([m + sign * r for m, r in zip(mean, reach, strict=True)] for sign in (-1, 1))
        return Series(name, next_word.STAGES, mean, lo, hi, "line", role)  # type: ignore[arg-type]

    ours = Panel("Network trained here", "stage", "GDV by class of the next word", tuple(series(*item) for item in roles.items()))
    depth = np.arange(in_subject["true classes"].shape[1])
    curves = tuple(
        Series(name, depth.tolist(), values.mean(0).tolist(), values.min(0).tolist(), values.max(0).tolist(), "line", role)  # type: ignore[arg-type]
        for (name, values), role in zip(in_subject.items(), ("effect", "control"), strict=True)
    )
    theirs = Panel(f"{lab.subject.name} (band: range of blocks)", "layer", "GDV by class of the next word", curves)
    caption = "GDV is 0 without separation and −1 at perfect separation. Bars: 95% intervals over blocks of held-out text."
    lab.figure(Figure("gdv", "Word classes emerge with depth", (ours, theirs), caption))
