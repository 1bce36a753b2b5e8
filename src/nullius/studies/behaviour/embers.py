"""Embers of Autoregression (McCoy, Yao, Friedman, Hardy & Griffiths 2023, arXiv 2309.13638).

On deterministic tasks, where probability should not matter, models do better when the task, the answer or the input is probable text.

Small subjects write almost none of the paper's answers, so most claims rest on twins: two contexts crossed with two outputs, scored and never
generated. *Pull*: the right output is chosen when it is the probable one, minus when it is its improbable twin. *Discrimination*: how much more
(nats) an output is preferred after its own context than after the other one; a taste for an output cancels in it. Both rest on a gate:
discrimination must go the right way in more than half of the twins, else the subject does not use the input and shows a taste, not an ember.
*Accuracy*, where answers are short: whether greedy decoding writes the right output, read off the scores. What rests on a gate is scored only
once the gate is passed. At full scale the eleven tasks are also given as in the paper, and written replies scored by its rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from nullius.elicitation import generation, scores
from nullius.elicitation.choices import Crossed, Scorer, cross
from nullius.lab import Claim, Figure, Lab, Needs, Panel, Series, above_control, correlation_above, equivalent, study, trend
from nullius.lab.statistics import mean_interval
from nullius.stimuli import embers as stimuli
from nullius.stimuli import embers_items

MEASURES: dict[str, Callable[[Crossed], np.ndarray]] = {
    "pull": Crossed.pull,
    "discrimination": lambda crossed: crossed.discrimination,
    "accuracy": lambda crossed: crossed.written().mean(1),
    "accuracy drop": lambda crossed: crossed.written()[:, 0] - crossed.written()[:, 1],
}
MARGIN = {"pull": 0.1, "discrimination": 0.2, "accuracy": 0.1, "accuracy drop": 0.1}  # nats for discrimination


@dataclass(frozen=True)
class Contrast:
    """A claim as a comparison of sets: treated = measure(first) − measure(minus), control = measure(control) − measure(minus)."""

    claim: str
    wording: str
    measure: str
    first: str
    control: str
    minus: str = ""
    control_words: str = ""
    published: str = ""
    equal_within: float = 0.0

    def registered(self) -> Claim:
        """The claim, with the unit and the margin of its measure."""
        expect = equivalent(self.equal_within) if self.equal_within else above_control(MARGIN[self.measure])
        unit = "nats" if self.measure == "discrimination" else f"{self.measure} (share of items)"
        return Claim(self.claim, self.wording, expect, self.control_words, f"GPT-4 {self.published}" if self.published else None, unit)


def _output(task: str, name: str, doing: str, published: str, control: str = "twins whose two outputs are improbable alike") -> Contrast:
    wording = f"In {doing}, a probable answer attracts: it is chosen rightly more often than its improbable twin"
    return Contrast(f"output-{task}", wording, "pull", name, f"{name}, equal", control_words=control, published=published)


def _use(claim: str, what: str, names: tuple[str, str, str], control: str, published: str) -> Contrast:
    return Contrast(claim, f"Inputs are told apart better in {what}", "discrimination", names[0], names[2], names[1], control, published)


CONTRASTS = (
    _output("shift-cipher", "rot-13", "decoding rot-13", ".51 against .13 correct"),
    _output("pig-latin", "pig -ay", "decoding Pig Latin", ".84 against .29 correct"),
    _output("article-swapping", "swapping, undone", "swapping articles back", ".83 against .02 correct"),
    _output("reversal", "reversal", "putting reversed words in order", ".97 against .53 correct"),
    _output("acronyms", "acronyms", "making acronyms", ".76 against .67 correct", "twins whose two outputs are permutations, no words"),
    _output("counting", "counting", "counting words", "z = 3.6 (log frequency)", "twins that are the two neighbours of a round number"),
    Contrast("copying", "Copying, where nothing has to be transformed, shows no pull", "pull", "copying", "reversal", "",
             "reversal of the same sentences, where a pull is expected", equal_within=0.15),
    _use("task-shift-cipher", "decoding rot-13 than in rot-12", ("rot-13", "rot-12", "rot-11"), "rot-11 against rot-12", ".51 against .00"),
    _use("task-pig-latin", "Pig Latin with -ay than with -uv", ("pig -ay", "pig -uv", "pig -iv"), "-iv against -uv", ".84 against .69"),
    _use("task-article-swapping", "swapping articles back than away", ("swapping, undone", "swapping, next", "swapping, previous"),
         "swapping away, with the previous against the next word", ".83 against .57"),
    _use("task-acronyms", "joining first letters than second", ("acronyms", "acronyms, second letters", "acronyms, third letters"),
         "third against second letters", ".76 against .03"),
    _use("task-linear-function", "9/5 x + 32 than in 7/5 x + 31", ("linear 9/5", "linear 7/5", "linear 8/5"), "8/5 x + 33 against 7/5 x + 31",
         ".33 against .00"),
    _use("task-keyboard-cipher", "decoding rot-1 than the keyboard cipher, one key on", ("rot-1", "keyboard", "keyboard, left"),
         "left against right neighbour on the keyboard", ".82 (rot-1) against .00"),
    _use("input-shift-cipher", "encoding sentences in rot-13 than in encoding shuffled ones",
         ("rot-13 encoding", "rot-13 encoding, shuffled", "rot-13 encoding, shuffled again"), "two shuffled orders", ".21 against .11"),
    _use("input-reversal", "reversing sentences than in reversing shuffled ones",
         ("reversal encoding", "reversal encoding, shuffled", "reversal encoding, shuffled again"), "two shuffled orders", ".87 against .81"),
    _use("input-acronyms", "joining letters of common than of rare words", ("acronyms", "acronyms, rare words", "acronyms, rare words again"),
         "two choices of rare words", ".76 against .73"),
    _use("input-counting", "counting common than in counting rare words",
         ("counting to ten", "counting to ten, rare", "counting to ten, rare again"), "two choices of rare words", "a small effect"),
    Contrast("task-sorting", "The right one of two orders is chosen more often when alphabetical than when reverse order is asked for", "pull",
             "sorting words", "sorting numbers", "", "ascending against descending order, instructions about equally frequent", ".82 against .32"),
    Contrast("task-sorting-numbers", "Ascending and descending order, instructions about equally frequent, are followed equally well", "pull",
             "sorting numbers", "sorting words", "", "alphabetical against reverse alphabetical order", ".82 against .80", 0.15),
    Contrast("accuracy-reversal", "Greedy decoding reverses words more often into a common phrase than into its shuffled words", "accuracy drop",
             "phrases", "phrases, equal", "", "two shuffled orders", ".97 against .53 (sentences)"),
    Contrast("accuracy-acronyms", "Greedy decoding writes acronyms more often rightly when they are words than when letters are permuted",
             "accuracy drop", "acronyms", "acronyms, equal", "", "two permutations", ".76 against .67 (seven letters)"),
    Contrast("accuracy-sorting", "Greedy decoding sorts three or four words more often rightly in alphabetical than in reverse order",
             "accuracy drop", "sorting words", "sorting numbers", "", "ascending against descending numbers", ".82 against .32 (10 to 20 words)"),
    Contrast("accuracy-counting", "Greedy decoding counts up to ten common words more often rightly than as many rare ones", "accuracy",
             "counting to ten", "counting to ten, rare again", "counting to ten, rare", "two choices of rare words"),
    Contrast("input-birthdays", "Facts about names often written of are recalled more often than about rare ones (capitals for birthdays)",
             "accuracy drop", "capitals", "capitals, equal", "", "neighbours in frequency, either one first", ".99 against .23 (birthdays)"),
)  # fmt: skip
CAPTION = "Right choices, or discrimination, over twins with 95% intervals; tasks whose input the subject does not use are left out."
LEVELS = ("digits", "words", "capitals", "alternating")
PUBLISHED = {"output": ".51 against .13 (rot-13)", "task": ".51 against .00 (rot-13, rot-12)", "input": ".99 against .23 (birthdays)"}
CLAIMS = (
    *(contrast.registered() for contrast in CONTRASTS),
    Claim("input-multiplication", "Products are told apart less and less well as numbers come in digits, words, CAPITALS, aLtErNaTiNg",
          trend("decreasing", *LEVELS, margin=0.05), "the same values, formats turned by one from problem to problem",
          "GPT-4 .46, .39, .35, .17", "tau"),
    Claim("output-slope", "The more the two answers differ in probability, the stronger the pull towards the probable one (reversal)",
          correlation_above(0.2), "differences in probability shuffled over pairs, twenty times over", "slopes above 0 in every task", "rho"),
    Claim("prior-accounts-for-pull", "Subtracting the answers' own probability (PMI) takes the pull in reversal away",
          above_control(0.1), "the same subtraction in twins whose two outputs are improbable alike", unit="pull taken away (share of items)"),
    Claim("output-over-input", "Reversing phrases depends more on how probable the output is (decoding) than on the input (encoding)",
          above_control(0.1), "the same difference between two shuffled orders", "GPT-4 .44 against .06 (sentences)", "accuracy"),
    *(
        Claim(f"written-{factor}", f"Over the paper's tasks, written replies are right more often when the {factor} is probable",
              above_control(0.05), "the same replies held against the answer of another item", f"GPT-4 {published}", "accuracy", Needs(full=True))
        for factor, published in PUBLISHED.items()
    ),
)  # fmt: skip
# claims that compare more than two sets: the set of their gate, what it asks, and the sets that are scored once it is passed
OTHERS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "input-multiplication": ("multiplication, digits", "discrimination", tuple(f"multiplication, {style}" for style in LEVELS)),
    "output-slope": ("reversal", "pull", ()),
    "prior-accounts-for-pull": ("reversal", "pull", ("reversal, equal",)),
    "output-over-input": ("phrases", "accuracy", ("phrases encoding", "phrases, equal", "phrases encoding, equal")),
}


@study("embers", claims=CLAIMS, minutes=2.5)
def embers(lab: Lab) -> None:
    """Score the twins; at full scale, also let the subject write."""
    sets = stimuli.twins(lab.rng, lab.scale(quick=20, full=100), acronym=lab.scale(quick=3, full=7))
    test(lab, lambda requests: scores.score(lab.subject, requests, watch=partial(lab.progress, label="scoring")), sets)
    if lab.full:
        _write(lab)


def test(lab: Lab, score: Scorer, sets: stimuli.Sets) -> None:
    """Score what the gates need, then what rests on the gates that were passed, and hand over samples. score: see `choices.cross`."""
    needed = {c.claim: (c.first, c.measure, tuple(filter(None, (c.minus, c.control)))) for c in CONTRASTS} | OTHERS
    found = cross(score, {first: sets[first] for first, _, _ in needed.values()})
    passed = {claim for claim, (first, measure, _) in needed.items() if _gate(lab, claim, first, measure, found[first])}
    later = dict.fromkeys(name for claim, (_, _, names) in needed.items() if claim in passed for name in names if name not in found)
    found |= cross(score, {name: sets[name] for name in later})
    for contrast in CONTRASTS:
        if contrast.claim in passed:
            measure = MEASURES[contrast.measure]
            base = measure(found[contrast.minus]) if contrast.minus else 0.0
            treated, control = measure(found[contrast.first]) - base, measure(found[contrast.control]) - base
            lab.finding(contrast.claim, treated=treated, control=control)
    _test_others(lab, found, passed)
    _draw(lab, found, passed)


def _gate(lab: Lab, claim: str, name: str, measure: str, crossed: Crossed) -> bool:
    if measure.startswith("accuracy"):
        return lab.require(crossed.written()[:, 0], above=0.05, what=f"write the probable answer ({name})", claims=[claim])
    return lab.require(crossed.sensitivity, above=0.5, what=f"prefer an output more after its own input ({name})", claims=[claim])


def _test_others(lab: Lab, found: Mapping[str, Crossed], passed: set[str]) -> None:
    if "input-multiplication" in passed:
        values = np.stack([found[f"multiplication, {style}"].discrimination for style in LEVELS])
        problems = {style: range(values.shape[1]) for style in LEVELS}
        turned = np.stack([np.roll(column, i) for i, column in enumerate(values.T)], 1)  # every format stands at every level equally often
        levels, mixed = (dict(zip(LEVELS, rows, strict=True)) for rows in (values, turned))
        lab.finding("input-multiplication", treated=levels, control=mixed, clusters=problems)
    if "output-slope" in passed:
        reversal = found["reversal"]
        counts = np.stack([np.ones(len(reversal)), reversal.tokens[:, 0] - reversal.tokens[:, 1]], 1)
        # within pairs length hardly differs; what token counts still explain is taken out of both variables
        both = np.stack([reversal.prior_preference, reversal.bias], 1)
        prior, bias = (both - counts @ np.linalg.lstsq(counts, both, rcond=None)[0]).T
        shuffled = (np.concatenate([lab.rng.permutation(prior) for _ in range(20)]), np.tile(bias, 20))
        pairs = list(range(len(reversal)))
        lab.finding("output-slope", treated=(prior, bias), control=shuffled, clusters=pairs, control_clusters=pairs * 20)
        # without a pull there is nothing to take away, and the subtraction would only make one the other way
        lab.require(reversal.pull(), above=0.1, what="show a pull in reversal", claims=["prior-accounts-for-pull"])
        taken, control = (crossed.pull() - crossed.pull(corrected=True) for crossed in (reversal, found["reversal, equal"]))
        lab.finding("prior-accounts-for-pull", treated=taken, control=control)
    if "output-over-input" in passed:
        drop = {name: MEASURES["accuracy drop"](crossed) for name, crossed in found.items() if name.startswith("phrases")}
        treated, control = (drop[f"phrases{end}"] - drop[f"phrases encoding{end}"] for end in ("", ", equal"))
        lab.finding("output-over-input", treated=treated, control=control)


def _write(lab: Lab) -> None:
    """The paper's tasks, answered by greedy decoding; by factor in the claims, by task in the figure."""
    items = embers_items.items(lab.rng, 100)
    right, other = np.zeros(len(items)), np.zeros(len(items))
    for tokens in lab.progress(sorted({item.tokens for item in items}), "writing replies"):
        chosen = [i for i, item in enumerate(items) if item.tokens == tokens]
        replies = generation.answers(lab.subject, [items[i].prompt for i in chosen], tokens, batch_size=64)
        for i, reply in zip(chosen, replies, strict=True):
            right[i], other[i] = items[i].right(reply), items[i].rule(reply, embers_items.another(items, i).gold)
    panels = []
    for factor in embers_items.FACTORS:
        high, low = ([i for i, item in enumerate(items) if (item.factor, item.level) == (factor, level)] for level in ("high", "low"))
        tasks = [items[i].task for i in high]
        lab.require(right[high], above=0.05, what=f"answer when the {factor} is probable", claims=[f"written-{factor}"], clusters=tasks)
        lab.finding(f"written-{factor}", treated=right[high] - right[low], control=other[high] - other[low], clusters=tasks)
        names = sorted(set(tasks))
        rows = {"probable": right[high], "improbable": right[low], "another item's answer": other[high]}
        cells = {tag: [values[np.array(tasks) == name] for name in names] for tag, values in rows.items()}
        panels.append(_panel(f"{factor.capitalize()} probability", names, cells, "accuracy"))
    lab.figure(
        Figure("written", "Accuracy by task and probability", tuple(panels), "Greedy replies scored by the paper's rules; 95% intervals.")
    )


def _draw(lab: Lab, found: Mapping[str, Crossed], passed: set[str]) -> None:
    """The paper's bars: each task in a probable and an improbable variant, the control beside. Tasks out of reach are left out."""
    panels = []
    pulls = [c for c in CONTRASTS if c.claim in passed and c.claim.startswith("output-")]
    if pulls:
        cells = {tag: [found[getattr(c, which)].right()[:, column] for c in pulls] for tag, which, column in (
            ("probable", "first", 0), ("improbable", "first", 1), ("control: improbable alike", "control", 1))}  # fmt: skip
        panels.append(_panel("Output probability", [_task(c) for c in pulls], cells, "right choice"))
    for kind in ("task", "input"):
        uses = [c for c in CONTRASTS if c.claim in passed and c.claim.startswith(kind) and c.measure == "discrimination"]
        if uses:
            names = (("probable", "first"), ("improbable", "minus"), ("control: improbable alike", "control"))
            cells = {tag: [found[getattr(c, which)].discrimination for c in uses] for tag, which in names}
            panels.append(_panel(f"{kind.capitalize()} probability", [_task(c) for c in uses], cells, "discrimination (nats)"))
    if panels:
        lab.figure(Figure("embers", "Tasks in probable and improbable variants", tuple(panels), CAPTION))


def _task(contrast: Contrast) -> str:
    return contrast.claim.split("-", 1)[1].replace("-", " ")


def _panel(title: str, names: Sequence[str], cells: Mapping[str, Sequence[np.ndarray]], y_label: str) -> Panel:
    series = []
    for (tag, columns), role in zip(cells.items(), ("effect", "second", "control"), strict=True):
        found = [mean_interval(values) for values in columns]
        y, lo, hi = ([getattr(interval, key) for interval in found] for key in ("estimate", "lo", "hi"))
        series.append(Series(tag, list(names), y, lo, hi, kind="bars", role=role))  # type: ignore[arg-type]
    return Panel(title, "task", y_label, tuple(series))
