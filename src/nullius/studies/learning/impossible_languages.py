"""Mission: Impossible Language Models (arXiv 2401.06416).

The same small GPT learns an English-like language and deformations of it: shuffled, reversed, or with the verb's number written some tokens or words
later. Does it learn the deformed ones worse, and how does it do the ones that count?

Sentences come from an unambiguous grammar whose entropy is known (or, the shuffled and reversed ones, from a file: option `text`). One item is one
held-out sentence, read by networks that learned different languages, so that its surprisals are paired. Intervals speak about sentences,
given the networks; controls are networks that differ in nothing but the seed, or that learned a language in which the deformation cannot matter.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from nullius.instruments.interchange import carried, interchange
from nullius.lab import Claim, Figure, Heatmap, Lab, Needs, Option, Panel, Series, above_control, below_control, equivalent, ordering, study
from nullius.lab.claims import Expectation
from nullius.lab.figures import Role
from nullius.lab.statistics import mean_interval
from nullius.stimuli import agreement
from nullius.stimuli.perturbations import LANGUAGES, PLURAL, SINGULAR, arrangements
from nullius.training import languages, own_text, resuming
from nullius.training.languages import Learner, Lessons, School, Show, marker_surprise, number_surprise, tell_constituents
from nullius.training.sentences import Size

Floats = NDArray[np.float64]
SUBJECT = agreement.SUBJECT_AT + 1  # an end token stands before
NATS, SMALL = 0.05, 0.02  # per token: a perplexity 5% or 2% higher
RELEASED = Needs(also="the thirty released checkpoints and the BabyLM corpus")
RELABELLED = "the unperturbed language with its words renamed, learned by another network"
IID = "the same shuffles of sentences whose words are drawn independently, where order carries nothing"
SEEDS = "networks that learned the unperturbed language from other seeds"
ORDER = ("nondeterministic", "deterministic", "local", "none")
PROBED_SENTENCES = 300
HOPS = ("NoHop", "TokenHop", "WordHop")
TOKEN = "nats per token"


def _claim(
    name: str, wording: str, expect: Expectation, control: str, unit: str = TOKEN, published: float | str | None = None, **more: Any
) -> Claim:
    return Claim(name, wording, expect, control, published, unit, **more)


CLAIMS = (
    _claim("shuffles-ordered", "The further a shuffle is from English, the worse it is learned: nondeterministic, deterministic, local, none",
           ordering(*ORDER, margin=NATS), IID, published="perplexity 527, 330, 83, 55 at step 3 000 (read off a plot)"),
    _claim("even-odd-harder", "Even places first, then odd ones, is learned worse than English", above_control(NATS), RELABELLED, published=0.57),
    _claim("falls-fastest", "All through training, perplexity is lowest for English", above_control(NATS), RELABELLED,
           f"{TOKEN}, mean over checkpoints"),
    _claim("beyond-entropy", "A shuffle that can be undone, and so adds no entropy, is learned worse: the deterministic one", above_control(NATS),
           IID),
    _claim("reversals-ordered", "Reversing the whole sentence is learned worse than reversing what follows a marker, and that worse than English",
           ordering("full", "partial", "none", margin=SMALL), SEEDS, published="perplexity 74, 61, 54 (read off a plot)"),
    _claim("hops-harder", "Writing a verb's number four tokens or words later is learned worse", above_control(SMALL), SEEDS, published=0.08),
    _claim("marker-surprise", "A marker is expected most where it follows the verb, less where tokens are counted, least where words are",
           ordering(*HOPS, margin=0.5), "the same networks before training", "bits: surprisal without the marker − with it",
           "16.2, 11.2, 8.5 (read off a plot)"),
    _claim("number-moves", "The subject's number passes from the subject to the last token before the marker, and through no token between them",
           above_control(0.5), "patching the tokens between", "interchange accuracy", rests_on=("patching",)),
    _claim("counters-carry-it", "In the networks that count tokens or words the number takes the same way", above_control(0.5),
           "patching the tokens between", "interchange accuracy", rests_on=("patching",)),
    _claim("token-hop-weaker", "Interchange works less well in the network that counts tokens", below_control(SMALL, null=1.0),
           "the network whose marker follows the verb, where interchange must work", "interchange accuracy", 0.88, rests_on=("patching",)),
    _claim("constituents-alike", "Constituents can be read off the states of every network equally well", equivalent(0.05),
           "the same probe with labels permuted, whose loss of accuracy must be seen", "accuracy, deformed − not", 0.0),
    _claim("without-positions", "Networks without embeddings of positions give the same order",
           ordering("nondeterministic", "deterministic", "none", margin=NATS), IID),
    _claim("released-models", "So do the thirty released models", ordering(*ORDER, margin=NATS), RELABELLED, needs=RELEASED),
)  # fmt: skip
CHOICE = f"sentences of the grammar; or, to shuffle and reverse, of the file that {own_text.VARIABLE} names"
OPTIONS = (Option("text", ("generated", "file"), CHOICE),)
PROBED = ("LocalShuffle3", "EvenOddShuffle", "NondeterministicShuffle", "FullReverse", "TokenHop", "WordHop")


@dataclass(frozen=True)
class Plan:
    """How much is learned and measured. pairs: sentences in two numbers for interchange. languages: learned too, for the figure alone."""

    lessons: Lessons
    pairs: int
    languages: tuple[str, ...] = ()


QUICK = Plan(Lessons(6000, 200, 120, 32, 3e-2, Size(2, 64, 4, 64)), 48)
TOKENS, ROWS, CONTEXT = 2_000_000, 64, 256  # that one network reads with --full: as many steps as they allow
MORE = ("LocalShuffle5", "LocalShuffle10", "DeterministicShuffle57", "DeterministicShuffle84")
FULL = Plan(Lessons(40_000, 1000, TOKENS // (ROWS * CONTEXT), ROWS, 1e-2, Size(6, 384, 6, CONTEXT), seeds=2), 100, MORE)


@study("impossible-languages", claims=CLAIMS, minutes=2.5, trains_its_own=True, options=OPTIONS)
def impossible_languages(lab: Lab) -> None:
    plan = lab.scale(quick=QUICK, full=FULL)
    most = 200 * (plan.lessons.train + plan.lessons.test)  # characters: sentences enough
    own = own_text.read(most) if lab.option("text") == "file" else None
    facts = [asdict(plan), lab.seed, own.sha256 if own else "", lab.subject.device.type]
    with resuming.keeping(lab.study.slug, facts, lab.full) as store:
        _measure(lab, plan, store, own)


def _measure(lab: Lab, plan: Plan, store: resuming.Kept, own: own_text.OwnText | None) -> None:
    show: Show = lambda label, done, total: lab.listener.step(f"learning {label}", done, total)  # noqa: E731
    generated = languages.of_grammar(plan.lessons, lab.seed, lab.subject.device, show, store)
    ordinary = generated
    if own is not None:
        ordinary = languages.of_text(own, plan.lessons, lab.seed, lab.subject.device, show, store)
        lab.note(f"shuffled and reversed text: {own.name} (SHA-256 {own.sha256}), {len(ordinary.train)} sentences")
    else:
        floor = np.mean([s.nats for s in generated.test] / generated.tokens)
        lab.note(f"entropy of the grammar on the held-out sentences: {floor:.3f} nats per token; no network can stay below it")
    learned = _shuffles(lab, plan, ordinary) | _reversals(lab, ordinary) | _hops(lab, generated)
    hops = {name: learned[name] for name in HOPS}
    grids = _interchange(lab, plan, hops)
    _constituents(lab, learned if ordinary is generated else hops, generated)
    _figures(lab, learned, generated.checkpoints, grids)


def _learn(lab: Lab, school: School, language: str, label: str = "", **how: Any) -> Learner:
    learner = school.learn(language, label=label or language, **how)
    lab.note(f"{label or language}: {learner.final.mean():.3f} nats per token")
    return learner


def _clusters(learner: Learner) -> list[int]:
    return list(range(len(learner.test))) * len(learner.models)


def _shuffles(lab: Lab, plan: Plan, school: School) -> dict[str, Learner]:
    names = dict(zip(ORDER, ("NondeterministicShuffle", "DeterministicShuffle21", "LocalShuffle3", "NoShuffle"), strict=True))
    rules = (*list(names.values())[:3], "EvenOddShuffle")
    learned = {name: _learn(lab, school, name) for name in ("NoShuffle", *rules, *plan.languages)}
    renamed = _learn(lab, school, "NoShuffle", "NoShuffle, renamed", other=1, rename=True)
    chaos = school.independent()
    shuffled = {level: _learn(lab, chaos, name, f"{name} of independent words") for level, name in names.items()}
    english = learned["NoShuffle"]
    items = _clusters(english)
    levels = {level: learned[name].final for level, name in names.items()}
    null = {level: each.final for level, each in shuffled.items()}
    lab.finding("shuffles-ordered", treated=levels, control=null, clusters=dict.fromkeys(ORDER, items))
    treated, same = learned["EvenOddShuffle"].final - english.final, renamed.final - english.final
    lab.finding("even-odd-harder", treated=treated, control=same, clusters=items)
    area = np.mean([learned[name].area for name in rules], 0)
    lab.finding("falls-fastest", treated=area - english.area, control=renamed.area - english.area, clusters=items)
    undone = learned["DeterministicShuffle21"].final - english.final
    lab.finding("beyond-entropy", treated=undone, control=null["deterministic"] - null["none"], clusters=items)
    added = np.mean([arrangements(s.words) for s in school.test] / school.tokens)
    lost = (levels["nondeterministic"] - english.final).mean()
    lab.note(f"nondeterministic shuffle: {lost:.3f} nats per token over English; up to {added:.3f} are the choice of the order itself")
    blind = {k: _learn(lab, school, name, f"{name}, no positions", positions=False) for k, name in names.items() if k != "local"}
    three = {level: each.final for level, each in blind.items()}
    lab.finding("without-positions", treated=three, control={k: null[k] for k in three}, clusters=dict.fromkeys(three, items))
    return learned | {"NoShuffle, renamed": renamed}


def _reversals(lab: Lab, school: School) -> dict[str, Learner]:
    names = {"full": "FullReverse", "partial": "PartialReverse", "none": "NoReverse"}
    learned = {name: _learn(lab, school, name) for name in names.values()}
    again = [_learn(lab, school, "NoReverse", f"NoReverse, seed {k}", other=k) for k in (1, 2)]
    null = {"full": again[0], "partial": again[1], "none": learned["NoReverse"]}
    items = {level: _clusters(learned["NoReverse"]) for level in names}
    treated = {level: learned[name].final for level, name in names.items()}
    lab.finding("reversals-ordered", treated=treated, control={level: each.final for level, each in null.items()}, clusters=items)
    return learned


def _hops(lab: Lab, school: School) -> dict[str, Learner]:
    learned = {name: _learn(lab, school, name) for name in HOPS}
    again, plain = _learn(lab, school, "NoHop", "NoHop, seed 1", other=1), learned["NoHop"].final
    later = (learned["TokenHop"].final + learned["WordHop"].final) / 2
    lab.finding("hops-harder", treated=later - plain, control=again.final - plain, clusters=_clusters(again))
    found = {name: np.concatenate([marker_surprise(m, each.test) for m in each.models]) for name, each in learned.items()}
    for name, each in learned.items():  # where a marker may stand at all differs between rules; which of the two it is does not
        bits = np.mean([number_surprise(m, each.test) for m in each.models])
        lab.note(f"{name}: {bits:.1f} bits for the marker of the right number against the other one, at the same place")
    untrained = {name: np.concatenate([marker_surprise(m, each.test) for m in each.starts]) for name, each in learned.items()}
    marked = list(range(sum(p.marker >= 0 for p in again.test))) * len(again.models)
    lab.finding("marker-surprise", treated=found, control=untrained, clusters=dict.fromkeys(HOPS, marked))
    return learned


def _interchange(lab: Lab, plan: Plan, hops: Mapping[str, Learner]) -> dict[str, Floats]:
    """Put a plural sentence's states into its singular twin. Networks that do not know the number in the first half of the pairs are left out."""
    pairs, half = agreement.minimal_pairs(plan.pairs, lab.rng), plan.pairs // 2
    path, between, grids, right = {}, {}, {}, {}
    for name, learner in lab.progress(list(hops.items()), "interchanging states"):
        number = learner.models[0].tokenizer.get_vocab()
        answers = [(number[PLURAL], number[SINGULAR])] * len(pairs)
        found = [interchange(model, *languages.prefixes(model, name, pairs), answers) for model in learner.models]
        right[name] = np.stack([each.correct for each in found])
        grid = np.stack([each.flipped for each in found])
        path[name], between[name], best = carried(grid, (SUBJECT, grid.shape[3] - 1))
        grids[name] = grid.mean((0, 1))
        places = ", ".join(("subject", "last token")[i] for i in best)
        lab.note(f"{name}: both numbers right in {right[name].mean():.0%}; after each block but the last the number is at the {places}")
    what = "giving the marker the subject's number, singular and plural, in"
    lab.require(right["NoHop"][:, half:].ravel(), above=0.5, what=f"{what} NoHop", claims=["number-moves"])
    lab.require(right["TokenHop"][:, half:].ravel(), above=0.5, what=f"{what} TokenHop", claims=["token-hop-weaker"])
    able = [name for name in HOPS if right[name][:, :half].mean() > 0.5] or ["NoHop"]
    items = list(range(plan.pairs - half)) * plan.lessons.seeds
    counters = [name for name in able if name != "NoHop"] or list(HOPS[1:])
    known = np.concatenate([right[name][:, half:].ravel() for name in counters])
    lab.require(known, above=0.5, what=f"{what} {' and '.join(counters)}", claims=["counters-carry-it"], clusters=items * len(counters))
    for claim, names in (("number-moves", able), ("counters-carry-it", counters)):
        there, elsewhere = (np.concatenate([each[name] for name in names]) for each in (path, between))
        lab.finding(claim, treated=there, control=elsewhere, clusters=items * len(names))
    lab.finding("token-hop-weaker", treated=path["TokenHop"], control=path["NoHop"], clusters=items)
    return grids


def _constituents(lab: Lab, learned: Mapping[str, Learner], school: School) -> None:
    told = {}
    wanted = [name for name in PROBED if name in learned]
    for name in lab.progress([*wanted, *dict.fromkeys(LANGUAGES[name].control for name in wanted)], "probing for constituents"):
        some = school.test[:PROBED_SENTENCES], learned[name].test[:PROBED_SENTENCES]
        told[name] = right, permuted, owners = tell_constituents(learned[name].models[0], *some, lab.rng)
        lab.note(f"constituents in {name}: accuracy {right.mean():.3f}, with permuted labels {permuted.mean():.3f}")
    differences = np.concatenate([told[name][0] - told[LANGUAGES[name].control][0] for name in wanted])
    losses = np.concatenate([told[name][1] - told[name][0] for name in wanted])
    if len(wanted) < len(PROBED):  # the hops of the grammar alone: nobody knows the constituents of a text of one's own
        lab.require([], above=0.5, what="probe sentences of every family for constituents", claims=["constituents-alike"])
    lab.finding("constituents-alike", treated=differences, control=losses, clusters=owners * len(wanted), note=f"in {', '.join(wanted)}")


def _figures(lab: Lab, learned: Mapping[str, Learner], steps: tuple[int, ...], grids: Mapping[str, Floats]) -> None:
    panels = []
    for family in ("shuffle", "reverse", "hop"):
        members = {name: each for name, each in learned.items() if LANGUAGES[each.language].family == family}
        roles = itertools.cycle(cast("tuple[Role, ...]", ("effect", "second", "third")))
        series = []
        for name, each in members.items():
            ends = [mean_interval(np.concatenate([curve[i] for curve in each.curves])) for i in range(len(steps))]
            role = "control" if name == LANGUAGES[each.language].control else "reference" if "," in name else next(roles)
            series.append(Series(name, steps, [e.estimate for e in ends], [e.lo for e in ends], [e.hi for e in ends], "line", role))
        panels.append(Panel(family, "step", "nats per token", tuple(series), log_x=True))
    caption = "Bands: 95% intervals over sentences, given the networks."
    lab.figure(Figure("curves", "Held-out sentences while networks learn", tuple(panels), caption))
    maps = tuple(Heatmap(name, "token", "block", grid[:, 1:].tolist(), "interchange accuracy") for name, grid in grids.items())
    lab.figure(Figure("interchange", "Where the subject's number is, before the marker", maps, "Token 1 is the subject, 5 the verb."))
