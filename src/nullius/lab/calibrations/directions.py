"""Directions, erasure, steering, component sets, direct effects on planted transformers: one direction is read, another is never used."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nullius.instruments import direct_effects, directions, erasure, heads, interventions, neurons, steering, taps
from nullius.instruments.neurons import Components
from nullius.instruments.planted import direction, modular, recall
from nullius.instruments.planted.wiring import LOUD
from nullius.lab.calibration import Trial, case

TEXTS, NOISE = 160, 0.5


def _noisy(planted: direction.Planted, items: list[direction.Remark], rng: np.random.Generator) -> Tensor:
    """States behind layer 0 at the last token [n, d], with noise of half of what is planted in every entry."""
    batch = planted.model.encode([item.text for item in items])
    states = taps.read(planted.model, batch, ["resid_post"], [0])["resid_post"][0].double()
    return states + NOISE * torch.tensor(rng.normal(size=states.shape))


@case(
    "directions",
    planted="difference of means and pair contrast of two tones lie within 30 degrees of the planted direction; the discriminant of one half of the"
    " texts tells three in four of the other",
    null="those of random labels, drawn twice",
    modules=("directions",),
    seeds=40,
)
def tone(seed: int) -> Trial:
    """Three ways to the same direction, as head 0.0 writes it: the tone's entry, and what balances it to mean 0."""
    planted, rng = direction.build(seed), np.random.default_rng(seed)
    items = direction.remarks(rng, TEXTS)
    states = _noisy(planted, items, rng)
    truth = planted.model.anatomy.o_weight(direction.TONE_HEAD.layer)[direction.TONE_HEAD.head, 0].detach()

    def near(labels: np.ndarray) -> int:
        size = min(labels.sum(), (1 - labels).sum())
        pairs = [states[np.flatnonzero(labels == side)[:size]] for side in (1, 0)]
        found = [directions.difference_of_means(states, labels), directions.contrastive(*pairs)]
        along = states @ directions.lda(states[: TEXTS // 2], labels[: TEXTS // 2])
        middle = (along[: TEXTS // 2][labels[: TEXTS // 2] == 1].mean() + along[: TEXTS // 2][labels[: TEXTS // 2] == 0].mean()) / 2
        told = ((along > middle).numpy() == labels)[TEXTS // 2 :].mean() >= 0.75
        return int(told) + sum(float(directions.cosine(one, truth)) > np.cos(np.pi / 6) for one in found)

    hits = near(np.array([item.tone for item in items]))
    return Trial(hits, 3, sum(near(rng.permutation(np.arange(TEXTS) % 2)) for _ in range(2)), 6)


@case(
    "directions",
    planted="six classes in scenarios of their own: nearest direction of the other scenarios right in half of the cases or more",
    null="classes permuted within scenarios, eight times",
    modules=("directions",),
    seeds=40,
)
def classes_in_groups(seed: int) -> Trial:
    """Synthetic states of 24 scenarios."""
    rng = np.random.default_rng(seed)
    states = torch.tensor(2 * rng.normal(size=(24, 1, 48)) + rng.normal(size=(24, 6, 48)) + 1.5 * rng.normal(size=(6, 48)))
    hit = directions.leave_group_out(states).mean() >= 0.5
    alarms = sum(directions.leave_group_out(directions.permuted(states, rng)).mean() >= 0.5 for _ in range(8))
    return Trial(int(hit), 1, int(alarms), 8)


@case(
    "directions",
    planted="the first principal component of states that vary twice as much along one direction as along any other lies within 30 degrees"
    " of it",
    null="that of states that vary alike in all directions, twice; the second component of the first ones",
    modules=("directions",),
    seeds=20,
)
def principal_component(seed: int) -> Trial:
    """160 synthetic states of 24 dimensions, off the origin."""
    rng = np.random.default_rng(seed)
    truth = directions.unit(torch.tensor(rng.normal(size=24)))
    plain = torch.tensor(rng.normal(size=(3, TEXTS, 24)) + 3 * rng.normal(size=24))
    along = plain[0] + 3**0.5 * torch.tensor(rng.normal(size=(TEXTS, 1))) * truth
    first, second = directions.pca(along, 2)
    near = [
        float(directions.cosine(one, truth).abs()) > np.cos(np.pi / 6)
        for one in (first, second, *(directions.pca(x)[0] for x in plain[1:]))
    ]
    return Trial(near[0], 1, sum(near[1:]), 3)


@case(
    "erasure",
    planted="no difference of means above a thousandth of what it was is left between the tones of the texts that it was learnt from",
    null="the difference of the animate and the inanimate, called lost where nine tenths of it are gone",
    modules=("erasure",),
    seeds=40,
)
def tone_erased(seed: int) -> Trial:
    """What the closed form promises holds on the states that it has seen; on others as far as their covariances agree."""
    planted, rng = direction.build(seed), np.random.default_rng(seed)
    items = direction.remarks(rng, TEXTS)
    states = _noisy(planted, items, rng)
    labels = {name: np.array([getattr(item, name) for item in items]) for name in ("tone", "alive")}
    erased = erasure.leace(states, torch.tensor(labels["tone"]))(states)
    left = {
        name: float(directions.difference_of_means(erased, y).norm() / directions.difference_of_means(states, y).norm())
        for name, y in labels.items()
    }
    return Trial(int(left["tone"] <= 1e-3), 1, int(left["alive"] <= 0.1), 1)


@case(
    "steering",
    planted="steered along the tone at a twentieth of the stream's RMS, nine in ten bad texts say good; against it, good ones bad",
    null="animacy and eight random directions among those that hold the noun, in place of the tone",
    modules=("steering",),
    seeds=20,
)
def steered(seed: int) -> Trial:
    """One new token, written. Six texts of each tone: what says good unsteered is not turned to good."""
    planted, rng = direction.build(seed), np.random.default_rng(seed)
    drawn = direction.remarks(rng, 60)
    texts = {word: [item.text for item in drawn if item.tone == tone][:6] for word, tone in (("good", 0), ("bad", 1))}

    def turned(v: Tensor, dose: float, word: str) -> bool:
        written = steering.write(planted.model, texts[word], steering.steer({0: v}, dose), steering.Decoding(most=1))
        return sum(text.strip() == word for text in written) >= 0.9 * len(texts[word])

    ways = ((0.05, "good"), (-0.05, "bad"))
    strange = torch.tensor(rng.normal(size=(8, len(planted.nouns))), dtype=torch.float32) @ planted.nouns
    others = [planted.alive, *strange]
    hits, alarms = sum(turned(planted.tone, *way) for way in ways), sum(turned(v, *way) for v in others for way in ways)
    return Trial(hits, 2, alarms, 2 * len(others))


@case(
    "component sets",
    planted="head 0.0 writes more than half of the tone; neurons 0 and 1 of layer 1 more than a quarter each of good over bad",
    null="the eleven other heads, the other neurons",
    modules=("neurons",),
    seeds=40,
)
def writers(seed: int) -> Trial:
    """Along the planted direction, and along the difference of the answers."""
    planted, rng = direction.build(seed), np.random.default_rng(seed)
    model = planted.model
    sites = taps.read(model, model.encode([item.text for item in direction.remarks(rng, 24)]), ["z", "mlp_post"])
    layers = model.anatomy.n_layers
    written = neurons.head_importance(model, sites["z"], planted.tone.expand(layers, 1, -1))[:, 0].abs().mean(1)
    good, bad = (model.anatomy.unembedding()[model.first_token(f" {word}")].detach() for word in ("good", "bad"))
    effects = neurons.neuron_effects(model, sites["mlp_post"], (good - bad).expand(layers, 1, -1))[:, 0].abs().mean(1)
    called = [written > written.sum() / 2, effects > effects.sum() / 4]
    true = [torch.zeros_like(one) for one in called]
    true[0][direction.TONE_HEAD.layer, direction.TONE_HEAD.head] = True
    true[1][direction.READ_LAYER, :2] = True
    found = sum(int((a & b).sum()) for a, b in zip(called, true, strict=True))
    alarms = sum(int((a & ~b).sum()) for a, b in zip(called, true, strict=True))
    return Trial(found, 3, alarms, sum(one.numel() for one in called) - 3)


@case(
    "component sets",
    planted="without neurons 0 and 1 of layer 1, or without head 0.0, fewer than half of the answers are left; driven by what tells good"
    " texts from bad ones, each set turns nine bad texts in ten; tone injected behind attention 0 moves the final state towards good by half or more",
    null="sets of other neurons and heads of the same layers, drawn alike, in each way; an injection of animacy",
    modules=("neurons",),
    seeds=20,
)
def sets_that_decide(seed: int) -> Trial:
    """What is driven is the mean of good texts less that of bad ones, twice."""
    planted, rng = direction.build(seed), np.random.default_rng(seed)
    model, items = planted.model, direction.remarks(rng, 40)
    tone = torch.tensor([item.tone for item in items]).bool()
    batch = model.encode([item.text for item in items])
    words = torch.tensor([model.first_token(" bad"), model.first_token(" good")])
    read = taps.read(model, batch, ["z", "mlp_post"])
    apart = {name: x[:, tone].mean(1) - x[:, ~tone].mean(1) for name, x in read.items()}
    total = Trial(0, 0, 0, 0)
    for own in (
        Components.of(neurons=[(direction.READ_LAYER, 0), (direction.READ_LAYER, 1)]),
        Components.of(heads=[(0, direction.TONE_HEAD.head)]),
    ):
        for some in (own, own.random_like(model, rng)):
            good = []
            for changes in (neurons.scaled(some, 0.0), neurons.driven(some, apart["mlp_post"], apart["z"], 2.0)):
                with torch.no_grad(), interventions.applied(model, changes):
                    two = model.logits(batch)[:, words]
                good.append((two[:, 1] - two[:, 0]) / LOUD)
            right = torch.where(tone, good[0], -good[0]) > 0.5
            called = int(right.float().mean() < 0.5) + int((good[1][~tone] > 0.5).float().mean() >= 0.9)
            total += Trial(called, 2, 0, 0) if some is own else Trial(0, 0, called, 2)
    towards = (model.anatomy.unembedding()[words[1]] - model.anatomy.unembedding()[words[0]]).detach()
    both = torch.stack([planted.tone, planted.alive])
    moved = neurons.sublayer_importance(model, batch, "attn_out", 0, both, towards.expand(2, -1), (0.02,)).mean(1) >= 0.5
    return total + Trial(int(moved[0]), 1, int(moved[1]), 1)


@case(
    "direct effects",
    planted="the one neuron of a modular sum that is on for the two numbers writes more than half of the difference between the sum and another"
    " number; neurons and rest add up to what the block writes, to 0.1 %",
    null="the 48 other neurons",
    modules=("direct_effects",),
    seeds=20,
)
def neuron_of_a_sum(seed: int) -> Trial:
    """One sum in each draw."""
    model, rng = modular.build(seed), np.random.default_rng(seed)
    a, b = (int(i) for i in rng.integers(modular.MODULUS, size=2))
    right, wrong = (model.first_token(f" {(a + b + more) % modular.MODULUS}") for more in (0, int(rng.integers(1, modular.MODULUS))))
    each, rest = direct_effects.neurons(model, [modular.text(a, b)], modular.SUM_LAYER, [right], [wrong])
    whole = direct_effects.decompose(model, [modular.text(a, b)], [right], [wrong])
    called = each[0] > whole.logit[0] / 2
    block = float(whole.mlp[0, modular.SUM_LAYER])
    sums = abs(float(each.sum() + rest.sum()) - block) <= 1e-3 * abs(block)
    own = modular.MODULUS * a + b
    return Trial(int(called[own]) + sums, 2, int(called.sum()) - int(called[own]), len(called) - 1)


@case(
    "direct effects",
    planted="head 2.2 writes more than half of the logit difference of context and memory, and all parts sum to it to 0.1 %",
    null="the eleven other heads",
    modules=("direct_effects",),
    seeds=20,
)
def parts_of_a_logit(seed: int) -> Trial:
    """The copying head, among all parts."""
    model, rng = recall.build(seed), np.random.default_rng(seed)
    items = recall.conflicts(rng, 12)
    context, memory = ([model.first_token(getattr(item, side)) for item in items] for side in ("context", "memory"))
    found = direct_effects.decompose(model, [item.text for item in items], context, memory)
    sums = bool(((found.total - found.logit).abs() <= 1e-3 * found.logit.abs().clamp(min=1)).all())
    called = {head for head in heads.all_heads(model) if found.heads.mean(0)[head.layer, head.head] > found.logit.mean() / 2}
    hits, of = int(recall.COPY_HEAD in called) + int(sums), model.anatomy.n_layers * model.anatomy.n_heads
    return Trial(hits, 2, len(called - {recall.COPY_HEAD}), of - 1)
