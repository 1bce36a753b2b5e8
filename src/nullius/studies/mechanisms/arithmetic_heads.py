"""Interpreting and Improving Large Language Models in Arithmetic Calculation (Zhang et al. 2024, arXiv 2409.01659).

Which heads bring operands and operator to the end of "4 + 2 =", does arithmetic break without them, and does training them alone make it better?

On half of the problems path patching from counterfactuals (an operand changed, or the operator) scores every head; the top twentieth are the
key heads. On the other half, which had no say in the choice, they are knocked out, looked at and trained, against random heads of the same
layers. docs/studies/arithmetic-heads.md says what differs from the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch

from nullius.instruments import attention, heads, interventions, knockout, paths
from nullius.instruments.head_choice import two_drawn
from nullius.instruments.heads import Head
from nullius.instruments.paths import Mlp
from nullius.instruments.questions import Questions, ask
from nullius.lab import Claim, Figure, Heatmap, Lab, Needs, Panel, above_control, at_least, equivalent, study
from nullius.lab.curves import curve
from nullius.lab.figures import Role
from nullius.stimuli import arithmetic, capitals
from nullius.stimuli.arithmetic import Sum
from nullius.stimuli.prompts import Stimuli
from nullius.training.finetune import Tuned, finetune
from nullius.training.parts import Parts

PATHS, KNOCKOUT, TUNING = ("path patching",), ("knock-out",), ("partial finetuning",)
BILLIONS = Needs(parameters=6e9)
MOST = 32  # heads that are trained, the strongest: as many as in the paper
RANDOM = "random heads of these layers against others (drawn anew for each problem from four sets)"

CLAIMS = (
    Claim("few-heads-matter", "A twentieth of the heads, found on other problems, carries half of all that heads bring to the answer",
          at_least(0.5, null=0.0), control=RANDOM, published="< 5 % of heads", unit="share of effect", rests_on=PATHS),
    Claim("knock-out-breaks", "Without the key heads the model gives fewer right answers to problems that were not used to find them",
          above_control(margin=0.1), control=RANDOM, unit="fall of accuracy", rests_on=KNOCKOUT),
    Claim("attend-to-problem", "From the end of the prompt key heads attend to operands and operator more than other heads of their layers do",
          above_control(margin=0.05), control=RANDOM, unit="share of attention", rests_on=("taps",)),
    Claim("transfers-to-words", "The heads found on symbols are those that matter for 'a plus b is' too",
          above_control(margin=0.1), control=RANDOM, unit="fall of accuracy", rests_on=KNOCKOUT),
    Claim("spares-other-knowledge", "Without the key heads the model knows as many capitals as before",
          equivalent(0.1), control="all heads of the upper half of the layers knocked out", unit="fall of accuracy", rests_on=KNOCKOUT),
    Claim("late-mlps-compute",
          "Feed-forward blocks of the upper half of the layers, at the end of the prompt, carry more of the result than those of the lower half",
          above_control(margin=0.1), control="towards one of two digits that answer neither problem (which of them drawn for each problem)",
          unit="logits a block towards the other answer",
          rests_on=PATHS),
    Claim("precise-tuning-gains",
          "Training the key heads alone (their queries and outputs, at most 1 % of the weights) raises right answers to new problems more than "
          "training random heads of the same layers",
          above_control(margin=0.1), control="one random set of heads against another, which of them first drawn for each problem",
          unit="nats of log-probability", rests_on=TUNING),
    Claim("precise-tuning-spares", "Training the key heads alone costs less of what the model knows (capitals) than training every weight",
          above_control(margin=0.1), control="one random set of heads against another, which of them first drawn for each capital",
          unit="nats of log-probability", rests_on=TUNING),
    Claim("beats-full-tuning", "Training 32 heads gives more right answers than training every weight, each at its best rate",
          above_control(margin=0.0), control="training 32 random heads against 32 others", published="32 of 1,024 heads suffice",
          unit="nats of log-probability", needs=BILLIONS, rests_on=TUNING),
    Claim("transfers-to-data-sets", "The same heads matter for GSM8K, SVAMP and MAWPS",
          above_control(margin=0.05), control="random heads of the same layers knocked out", unit="fall of accuracy",
          needs=Needs(parameters=6e9, also="written solutions and their judge (GSM8K, SVAMP, MAWPS)"), rests_on=KNOCKOUT),
)  # fmt: skip


@study("arithmetic-heads", claims=CLAIMS, minutes=3.0)
def arithmetic_heads(lab: Lab) -> None:
    """Find on one half of the problems, test on the other."""
    every, known = arithmetic.sums(), _capitals(lab)
    before, right = ask(lab.subject, every).scores(lab.subject)
    lab.require(right, above=0.25, what="add and subtract single digits", clusters=every.field("group"))
    solved = Stimuli.of(item for item, good in zip(every, right, strict=True) if good)
    lab.note(f"solved: {len(solved)} of {len(every)}")
    tuning, testing = solved.split(0.5, lab.rng, by="group")
    found = _find(lab, tuning)
    n_key = max(1, round(0.05 * found.numel()))
    order = found.flatten().argsort(descending=True, stable=True)[:n_key].tolist()
    key = [Head(*divmod(i, found.shape[1])) for i in order]
    lab.note(f"key heads: {', '.join(map(str, key))}")
    random = [heads.random_heads(lab.subject, key, n_key, lab.rng) for _ in range(4)]
    _report_paths(lab, testing, key, random)
    mean = _mean(lab, tuning)
    whole = _report_knockouts(lab, tuning, testing, key, random, mean)
    if known is not None:
        _report_capitals(lab, known, key)
    _report_attention(lab, testing, key, random)
    _report_tuning(lab, every, before, tuning, known, [key, *random])
    heat = Heatmap("What each head brings to the answer", "head", "layer", found.tolist(), "logits", tuple((h.layer, h.head) for h in key))
    lab.figures.insert(
        0, Figure("heads", f"Arithmetic heads: {lab.subject.name}", (heat, _curve(lab, testing, (key, random[0]), whole, mean)))
    )


def _effects(
    lab: Lab, items: Stimuli[Sum], others: Stimuli[Sum], senders: Sequence[paths.Sender], digits: Sequence[Sequence[int]] = ()
) -> np.ndarray:
    """How far each sender at the last position, told of the counterfactual, moves its answer over the item's own, in logits [n, senders].

    Other heads are held, feed-forward blocks are free. digits: two for each item, to take the place of the two answers: the second over the first.
    """
    base, source = ask(lab.subject, items), ask(lab.subject, others)
    pairs = [base.targets, source.targets]
    if digits:
        pairs = [
            ask(lab.subject, items, items.field("prompt"), [f" {digit}" for digit in side]).targets for side in zip(*digits, strict=True)
        ]
    answers = np.stack(pairs, 1).tolist()
    patched = paths.patch(lab.subject, base.batch(lab.subject), source.batch(lab.subject), senders, answers)
    return -patched.effect().numpy()


def _find(lab: Lab, tuning: Stimuli[Sum]) -> torch.Tensor:
    """Mean effect of each head over both kinds of counterfactual, on problems for finding [layers, heads]."""
    senders = heads.all_heads(lab.subject)
    scores = np.zeros(len(senders))
    kinds: tuple[arithmetic.Kind, ...] = ("operands", "operator")
    for kind in lab.progress(kinds, "patching paths"):
        scores += _effects(lab, *arithmetic.counterfactuals(tuning, kind, lab.rng), senders).mean(0) / 2
    return torch.tensor(scores).view(lab.subject.anatomy.n_layers, -1)


def _report_paths(lab: Lab, testing: Stimuli[Sum], key: Sequence[Head], random: Sequence[Sequence[Head]]) -> None:
    every, layers = heads.all_heads(lab.subject), lab.subject.anatomy.n_layers
    blocks = [Mlp(layer) for layer in range(layers)]
    items, others = arithmetic.counterfactuals(testing, "operands", lab.rng)
    effects, groups = _effects(lab, items, others, [*every, *blocks]), items.field("group")
    of_heads, of_blocks = np.abs(effects[:, : len(every)]), effects[:, len(every) :]
    shares = [of_heads[:, [every.index(head) for head in chosen]].sum(1) / of_heads.sum(1) for chosen in (key, *random)]
    mine, against = two_drawn(shares[1:], lab.rng)
    note = f"as many random heads carry {np.mean(shares[1:]):.2f}"
    lab.finding("few-heads-matter", treated=shares[0], control=mine - against, clusters=groups, note=note)
    neither = [
        lab.rng.permutation([digit for digit in range(10) if digit not in (item.value, other.value)])[:2].tolist()
        for item, other in zip(items, others, strict=True)
    ]
    elsewhere = _effects(lab, items, others, blocks, neither)
    late, early = slice(layers // 2, None), slice(0, layers // 2)
    lead, null = (x[:, late].mean(1) - x[:, early].mean(1) for x in (of_blocks, elsewhere))
    lab.finding("late-mlps-compute", treated=lead, control=null, clusters=groups)


def _mean(lab: Lab, tuning: Stimuli[Sum]) -> torch.Tensor:
    """What heads do on average over counterfactuals of the problems for finding, position by position."""
    others = [other for item in tuning for kind in ("operands", "operator") for other in item.others(kind)]
    chosen = Stimuli.of(others).sample(lab.scale(quick=64, full=1000), lab.rng)
    return knockout.mean_by_position(lab.subject, ask(lab.subject, chosen).batch(lab.subject))


def _report_knockouts(
    lab: Lab, tuning: Stimuli[Sum], testing: Stimuli[Sum], key: Sequence[Head], random: Sequence[Sequence[Head]], mean: torch.Tensor
) -> list[np.ndarray]:
    """Return the fall on symbols without the key heads, and without the first random ones. mean: of heads over problems in symbols."""
    whole: list[np.ndarray] = []
    forms: tuple[tuple[str, arithmetic.Form], ...] = (("knock-out-breaks", "symbols"), ("transfers-to-words", "words"))
    for claim, form in forms:
        lab.listener.step(f"knocking out heads: {form}", 0, None)
        items = Stimuli.of(item.told(form) for item in testing)
        asked = ask(lab.subject, items)
        able = [claim] if form == "words" else []
        if able and not lab.require(asked.right(lab.subject), above=0.25, what=f"solve them in {form}", claims=able):
            continue
        instead = mean if form == "symbols" else _mean(lab, Stimuli.of(item.told(form) for item in tuning))
        key_fall, *falls = knockout.falls(lab.subject, asked, instead, [key, *random])
        whole = whole or [key_fall, falls[0]]
        mine, against = two_drawn(falls, lab.rng)
        note = f"accuracy falls by {key_fall.mean():.2f} without key heads, by {np.mean(falls):.2f} without random ones"
        lab.finding(claim, treated=key_fall - np.mean(falls, 0), control=mine - against, clusters=items.field("group"), note=note)
    return whole


def _capitals(lab: Lab) -> Questions | None:
    """Capitals that the subject names; None where it names too few of them."""
    facts = capitals.tellable(capitals.facts(), lab.subject.first_token).sample(lab.scale(quick=60, full=10**6), lab.rng)
    asked = ask(lab.subject, facts, [fact.question() for fact in facts], [f" {fact.capital}" for fact in facts])
    right = asked.right(lab.subject) if len(facts) else np.zeros(2)  # a tokenizer may tell no capital from its country
    passed = lab.require(right, above=0.1, what="name capitals", claims=["spares-other-knowledge", "precise-tuning-spares"])
    return asked.where(right > 0) if passed else None


def _report_capitals(lab: Lab, known: Questions, key: Sequence[Head]) -> None:
    mean = interventions.means(lab.subject, known.prompts, "z")
    upper = [head for head in heads.all_heads(lab.subject) if head.layer >= lab.subject.anatomy.n_layers // 2]
    fall, gone = knockout.falls(lab.subject, known, mean, [key, upper])
    lab.finding("spares-other-knowledge", treated=fall, control=gone)


def _report_attention(lab: Lab, testing: Stimuli[Sum], key: Sequence[Head], random: Sequence[Sequence[Head]]) -> None:
    asked = ask(lab.subject, testing)
    columns = asked.columns(lab.subject, [list(item.spans().values()) for item in testing])
    every = list(dict.fromkeys(head for chosen in (key, *random) for head in chosen))
    table = attention.mass(lab.subject, asked.batch(lab.subject), every, columns).numpy()
    mass = [table[:, [every.index(head) for head in chosen]].mean(1) for chosen in (key, *random)]
    mine, against = two_drawn(mass[1:], lab.rng)
    lab.finding("attend-to-problem", treated=mass[0] - np.mean(mass[1:], 0), control=mine - against, clusters=testing.field("group"))


def _report_tuning(
    lab: Lab, every: Stimuli[Sum], before: np.ndarray, tuning: Stimuli[Sum], known: Questions | None, sets: Sequence[Sequence[Head]]
) -> None:
    """Train on the problems whose numbers served to find the heads, solved or not, and test on all others. before: log-probabilities of `every`."""
    key, *random = [some[:MOST] for some in sets]
    seen = set(tuning.field("group"))
    train, held = every.where(lambda item: item.group in seen), every.where(lambda item: item.group not in seen)
    data = [(item.prompt, item.answer) for item in train]
    sums = ask(lab.subject, held)
    steps, batch = lab.scale(quick=8, full=100), lab.scale(quick=8, full=16)

    def trained(chosen: Sequence[Head] | None, rates: Sequence[float]) -> tuple[Tuned, float]:
        parts = None if chosen is None else Parts(tuple((h.layer, h.head) for h in chosen), maps=("q", "o"))
        tries = ((finetune(lab.subject, data, steps, rate=rate, batch=batch, seed=lab.seed, parts=parts), rate) for rate in rates)
        return min(tries, key=lambda one: float(np.mean(one[0].losses[-3:])))

    rates = lab.scale(quick=((1e-4, 1e-3), (1e-5, 1e-4)), full=((3e-4, 1e-3, 3e-3), (1e-5, 3e-5, 1e-4)))
    wanted: dict[str, Sequence[float]] = {"key": rates[0], "one": rates[0], "full": rates[1]}
    after, kept, share = {}, {}, 0.0
    for name, chosen in lab.progress(list({"key": key, "one": random[0], "other": random[1], "full": None}.items()), "training parts"):
        tuned, rate = trained(chosen, wanted[name])
        if name == "one":
            wanted["other"] = [rate]  # random heads are one kind of training: its rate is looked for once
        after[name] = sums.log_probs(tuned.model)
        kept[name] = np.zeros(0) if known is None else known.log_probs(tuned.model)
        share = tuned.trained / lab.subject.parameters if name == "key" else share
    before = before[[item.group not in seen for item in every]]
    key_gain, full_gain = (float((after[name] - before).mean()) for name in ("key", "full"))
    note = f"trained {share:.2%} of the weights: {key_gain:+.2f} nats; every weight trained: {full_gain:+.2f}"
    mine, against = two_drawn([after["one"], after["other"]], lab.rng)
    lead, groups = after["key"] - (after["one"] + after["other"]) / 2, held.field("group")
    lab.finding("precise-tuning-gains", treated=lead, control=mine - against, clusters=groups, note=note)
    if known is not None:
        mine_kept, against_kept = two_drawn([kept["one"], kept["other"]], lab.rng)
        lab.finding("precise-tuning-spares", treated=kept["key"] - kept["full"], control=mine_kept - against_kept)
    if lab.subject.parameters >= BILLIONS.parameters:
        lab.finding("beats-full-tuning", treated=after["key"] - after["full"], control=mine - against, clusters=groups)


def _curve(lab: Lab, testing: Stimuli[Sum], orders: Sequence[Sequence[Head]], whole: Sequence[np.ndarray], mean: torch.Tensor) -> Panel:
    """Accuracy as heads are knocked out one after the other: the key heads, strongest first, and random ones. whole: the fall without all of each."""
    asked, most = ask(lab.subject, testing), len(orders[0])
    counts = [k for k in lab.scale(quick=(1, 4), full=(1, 2, 4, 8, 16, 32, 64)) if k < most]
    lines, some = [], knockout.falls(lab.subject, asked, mean, [order[:k] for order in orders for k in counts]) if counts else []
    for i, (name, role, last) in enumerate(zip(("key heads", "random heads"), ("effect", "control"), whole, strict=True)):
        left = [1 - fall for fall in (np.zeros_like(last), *some[i * len(counts) : (i + 1) * len(counts)], last)]
        lines.append(curve(name, [0, *counts, most], left, testing.field("group"), cast("Role", role), (0, 1)))
    return Panel("Heads knocked out one after the other", "heads knocked out", "share of right answers left", tuple(lines), (0, 1))
