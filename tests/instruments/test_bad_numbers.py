"""Numbers that are not finite, of another shape, or labelled by something else: one clear line, never a number that looks like a result."""

import numpy as np
import pytest
import torch

from nullius.errors import NulliusError
from nullius.instruments import (
    attention_maps,
    attribution,
    binding_pointers,
    checks,
    circuit_search,
    circuits,
    control_tasks,
    direct_effects,
    directions,
    entropy_neurons,
    erasure,
    heads,
    lens,
    neurons,
    nonlinear_probes,
    patching,
    pointer_mixture,
    probes,
    separation,
    told,
    tuned_lens,
    vocabulary,
)  # fmt: skip
from nullius.instruments.circuits import WHOLE, Group, Keep, Means
from nullius.instruments.heads import Contrast, Head, Scaling
from nullius.instruments.neurons import Components
from nullius.stimuli import binding

RNG = np.random.default_rng(0)
STATES = torch.tensor(RNG.normal(size=(2, 30, 5)))
ONE = STATES[0]
HOLE = STATES.clone()
HOLE[1, 3, 2] = torch.nan
BAD = HOLE[1]
LABELS, GROUPS = np.arange(30) % 2, np.arange(30) // 2
ROW = torch.tensor(LABELS)[None]
LINEAR, BENT = probes.logistic, nonlinear_probes.mlp(steps=2)
AT = np.array([(p, k, i) for p in range(3) for k in range(3) for i in range(3)])
ODDS = RNG.dirichlet(np.ones(3), len(AT))
CELLS = pointer_mixture.cells(AT, ODDS)


def streamed():
    moments = erasure.Moments(2)
    moments.update(ONE, LABELS)
    moments.update(torch.randn(4, 9), [0, 1, 0, 1])


CASES = {
    "a linear probe of labels 1 and 2": (lambda: LINEAR(STATES, ROW + 1), "needs labels 0 and 1; got 2"),
    "a linear probe of three classes": (lambda: LINEAR(STATES, torch.arange(30)[None] % 3), "needs labels 0 and 1; got 2"),
    "a linear probe of labels between": (lambda: LINEAR(STATES, ROW * 0.5 + 0.2), "needs labels 0 and 1; got 0.2"),
    "a linear probe of NaN": (lambda: LINEAR(HOLE, ROW), r"not finite in 1 of 300 entries, the first at \[1, 3, 2\]"),
    "a linear probe of labels in no row": (lambda: LINEAR(STATES, ROW[0]), r"features \[layers, n, d\] and labels \[labellings, n\]"),
    "a linear probe of no dimensions": (lambda: LINEAR(STATES[..., :0], ROW), r"got \[2, 30, 0\]"),
    "a linear probe of one item": (lambda: LINEAR(STATES[:, :1], ROW[:, :1]), "items of both labels"),
    "a penalty of nothing": (lambda: LINEAR(STATES, ROW, 0.0), "a number above 0, not 0"),
    "scores of fewer layers": (lambda: LINEAR(STATES, ROW).scores(STATES[:1]), r"read features \[2, items, 5\]"),
    "scores of another width": (lambda: BENT(STATES, ROW).scores(STATES[..., :3]), r"read features \[2, items, 5\]"),
    "means of labels 1 and 2": (lambda: probes.mass_mean(STATES, ROW + 1), "needs labels 0 and 1; got 2"),
    "means of NaN": (lambda: probes.mass_mean(HOLE, ROW), "not finite"),
    "a nonlinear probe of NaN": (lambda: BENT(HOLE, ROW), "not finite"),
    "a nonlinear probe without units": (lambda: nonlinear_probes.mlp(hidden=0), "hidden units must be 1 or more"),
    "folds of other groups": (lambda: probes.grouped_folds(LABELS, GROUPS[:9]), r"\[30\] labels and \[9\] groups"),
    "one fold": (lambda: probes.grouped_folds(LABELS, GROUPS, 1), "folds must be 2 or more"),
    "folds of NaN": (lambda: probes.grouped_folds(LABELS * np.nan, GROUPS), "name classes"),
    "folds of numbers": (lambda: probes.grouped_folds(RNG.normal(size=30), GROUPS), "name classes"),
    "folds of classes of one": (lambda: probes.grouped_folds(np.arange(30), np.arange(30)), "a class of at least 5 items"),
    "held out, labels 1 and 2": (lambda: probes.held_out(STATES, LABELS + 1, GROUPS, RNG), "needs labels 0 and 1; got 2"),
    "held out, words": (lambda: probes.held_out(STATES, np.array(["a", "b"])[LABELS], GROUPS, RNG), "needs labels 0 and 1; got a, b"),
    "held out, too few labels": (lambda: probes.held_out(STATES, LABELS[:9], GROUPS, RNG), "a label for each of 30 items"),
    "labels of −1 and 1": (lambda: probes.cross_validate(STATES, 2 * LABELS - 1, GROUPS % 3), "needs labels 0 and 1; got -1"),
    "nested, other items": (lambda: control_tasks.nested(STATES[0], LABELS, GROUPS), r"should be \[layers, 30, d\]"),
    "no control task": (lambda: control_tasks.against_controls(STATES, LABELS, GROUPS, RNG, controls=0), "control tasks must be 1 or more"),
    "a direction of three labels": (lambda: directions.difference_of_means(ONE, np.arange(30) % 3), "needs labels 0 and 1; got 2"),
    "a direction of NaN": (lambda: directions.difference_of_means(BAD, LABELS), "states are not finite in 1 of 150"),
    "a discriminant of NaN": (lambda: directions.lda(BAD, LABELS), "not finite"),
    "a discriminant of constants": (lambda: directions.lda(torch.ones(10, 5), np.arange(10) % 2), "do not vary"),
    "an unshrunk discriminant of too few": (
        lambda: directions.lda(torch.randn(10, 50), np.arange(10) % 2, shrinkage=0.0),
        "10 items do not span 50 dimensions",
    ),
    "principal directions of NaN": (lambda: directions.pca(BAD), "not finite"),
    "principal directions of constants": (lambda: directions.pca(torch.ones(10, 5)), "vary in 0 directions"),
    "principal directions of one state": (lambda: directions.pca(ONE[0]), r"states \[.., n, d\]"),
    "no pairs": (lambda: directions.contrastive(ONE[:0], ONE[:0]), "as many on both sides"),
    "pairs with NaN": (lambda: directions.contrastive(BAD, ONE), "not finite"),
    "classes told apart by NaN": (lambda: directions.leave_group_out(torch.full((4, 3, 5), torch.nan)), "not finite"),
    "cosines of other widths": (lambda: directions.cosine(torch.ones(3), torch.ones(1)), r"must be \[.., 3\]; got \[1\]"),
    "a projection of other widths": (lambda: directions.projection(ONE, torch.ones(1, 9)), r"must be \[.., 5\]"),
    "arranged, a class too few": (lambda: directions.arranged(ONE[:4], ["a", "b"], ["x"]), "4 states need as many groups"),
    "erasing the only class": (lambda: erasure.leace(ONE, np.ones(30, int)), "all 30 states are of class 1"),
    "erasing halves of classes": (lambda: erasure.leace(ONE, LABELS * 0.5), "whole numbers"),
    "erasing words": (lambda: erasure.leace(ONE, ["a"] * 30), "whole numbers"),
    "erasing from NaN": (lambda: erasure.leace(BAD, LABELS), "not finite"),
    "erasing from nothing": (lambda: erasure.leace(ONE[:0], []), "no states"),
    "erasing from other widths": (lambda: erasure.leace(ONE, LABELS)(torch.ones(2, 9)), r"must be \[.., 5\]"),
    "a stream of other widths": (streamed, r"must be \[.., 5\]; got \[4, 9\]"),
    "separation of fewer labels": (lambda: separation.gdv(ONE, LABELS[:9]), "a label for each of 30 points"),
    "no permutation": (lambda: separation.permutation_null(ONE, LABELS, run=1, permutations=0, rng=RNG), "one permutation at least"),
    "a silhouette of one class": (lambda: separation.silhouette(ONE, np.ones(30)), "two classes"),
    "too many neighbours": (lambda: separation.knn_purity(ONE, LABELS, k=30), "1 to 29 neighbours, not 30"),
    "a probe of one class": (lambda: separation.probe_hits(ONE, np.ones(30), ONE, LABELS), "two classes at least"),
    "a probe of other widths": (lambda: separation.probe_hits(ONE, LABELS, ONE[:, :2], LABELS), "of one width"),
    "a projection nobody knows": (lambda: separation.project(ONE, "umap"), "not by 'umap'"),
    "a projection of one point": (lambda: separation.project(ONE[:1], "pca"), "three points"),
    "a slope of NaN": (lambda: separation.depth_slope([1.0, np.nan]), "finite"),
    "a stage of fewer points": (lambda: separation.by_sets({"a": ONE[:5]}, LABELS, [np.arange(5)]), "stage a has 5 points, 30 labels"),
    "scores of no distributions": (lambda: pointer_mixture.cells(AT, ODDS * 3), "add up to 1"),
    "scores below 0": (lambda: pointer_mixture.cells(AT, -ODDS), "not be below 0"),
    "scores of fewer samples": (lambda: pointer_mixture.cells(AT[:5], ODDS), r"got \[5, 3\] and \[27, 3\]"),
    "a mixture of no cell": (lambda: pointer_mixture.fit(CELLS, CELLS.part([])), "cells to fit and to stop by"),
    "a place beyond the candidates": (lambda: pointer_mixture.fit(pointer_mixture.cells(AT + 9, ODDS), CELLS), "each from 0 to 2"),
    "four cells in three parts": (lambda: CELLS.part(range(4)).split(RNG), "cells to split must be 5 or more"),
    "one distribution against many": (lambda: pointer_mixture.similarity(ODDS, ODDS[:1]), "one by one"),
    "a share of nothing": (lambda: circuits.faithfulness(np.ones(2), np.zeros(2)), "mean score is 0"),
    "a share of less": (lambda: circuits.faithfulness(np.ones(2), -np.ones(2)), "mean score is -1"),
    "a share of other texts": (lambda: circuits.faithfulness(np.ones(2), np.ones(1)), "scores of the same texts"),
    "a pattern that looks ahead": (lambda: attention_maps.indicators(torch.full((1, 2, 4, 4), 0.25)), "still to come"),
    "a pattern below 0": (lambda: attention_maps.indicators(torch.tensor([[[[1.0, 0.0], [2.0, -1.0]]]])), "must not be below 0"),
    "a contrast of fewer tokens": (lambda: Contrast(("a", "b"), (1,), (2, 3)), "2 prompts, 1 and 2"),
    "too few other answers": (lambda: Contrast(("a",), (1,), (2,)).with_others([1, 2, 3], RNG), "must be 2 or more, not 1"),
}
TEXTS = ["a b c", "b"]
LENS = tuned_lens.TunedLens(torch.zeros(2, 32, 32), torch.zeros(2, 32), "")
VECTORS = torch.ones(2, 32)
CONTRAST = Contrast(("a b", "b a"), (1, 2), (3, 4))
PAIRS = (["a b c"], ["a b a"], [[5, 6]])


def kept(m, keep, means=None, **options):
    batch = m.encode(["a b", "b a"])
    return circuits.evaluate(m, batch, [1, 2], [keep], means or circuits.position_means(m, batch), **options)


def agree(m, k=3, change=lambda x: x):
    return attribution.agreement(change(attribution.attribution(m, *PAIRS)), patching.residual(m, *PAIRS), k)


MODEL_CASES = {
    "a lens of layers in no list": (lambda m: lens.read(m, TEXTS, layers=1), r"layers must be a list: \[1\]"),
    "a lens of no layer": (lambda m: lens.read(m, TEXTS, layers=[]), "layers read by a lens must be 1 or more"),
    "a lens of columns": (lambda m: lens.read(m, TEXTS, positions=[-1]), "'last' token of each text, or 'all'"),
    "a lens of NaN": (
        lambda m: lens.read(m, TEXTS, [1, 2], translate=lambda _, x: x * torch.nan),
        "translated states of layer 0 are not finite",
    ),
    "a lens of fewer rows": (lambda m: lens.read(m, TEXTS, translate=lambda _, x: x[:1]), r"shape of the states, \[2, 32\]"),
    "logits of another width": (lambda m: lens.to_logits(m, torch.ones(3, 7)), r"states of toy-llama must be \[.., 32\]"),
    "translators of another layer": (lambda _: LENS(5, torch.ones(1, 32)), "layer 5 does not exist: .* 0 to 1, and 2 is the last"),
    "translators of another width": (lambda _: LENS(0, torch.ones(1, 8)), r"must be \[.., 32\]"),
    "translators written nowhere": (lambda _: LENS.save("/no/such/folder/lens"), "cannot be written to /no/such/folder"),
    "no epoch": (lambda m: tuned_lens.fit(m, ["a"], ["b"], epochs=0), "epochs must be 1 or more"),
    "batches of nothing": (lambda m: tuned_lens.fit(m, ["a"], ["b"], batch_size=0), "batch_size must be 1 or more"),
    "a rate that is none": (lambda m: tuned_lens.fit(m, ["a"], ["b"], learning_rate=float("nan")), "learning_rate must be above 0"),
    "one text to train on": (lambda m: tuned_lens.fit(m, "abc", "def"), "lists of texts"),
    "tested on nothing": (lambda m: tuned_lens.held_out_kl(m, []), "one at least"),
    "no group": (lambda m: vocabulary.mass(m, VECTORS, {}), "no group of tokens"),
    "a group of one word": (lambda m: vocabulary.of_words(m, {"pets": "dog"}), r"stand in a list: \['dog'\]"),
    "a mass of NaN": (lambda m: vocabulary.mass(m, VECTORS * torch.nan, {"a": [1]}), "states are not finite"),
    "scores of another width": (lambda m: vocabulary.scores(m, torch.ones(5), {"a": [1]}), r"directions must be \[.., 32\]"),
    "top tokens of two directions": (lambda m: vocabulary.top_tokens(m, VECTORS), "of one direction"),
    "more tokens than there are": (lambda m: vocabulary.top_tokens(m, VECTORS[0], 10**6), "1 to 2000"),
    "letters for texts": (lambda m: direct_effects.decompose(m, "ab", [1, 2]), "one text stands in a list"),
    "silenced by its own mean": (lambda m: entropy_neurons.effect(m, TEXTS[:1], 2, [1]), "must be 2 or more, not 1"),
    "candidates below none": (lambda m: entropy_neurons.read(m).candidates(-3), "must be 0 or more"),
    "neurons of another number": (
        lambda m: neurons.neuron_effects(m, torch.ones(3, 2, 9), torch.ones(3, 1, 32)),
        r"neurons must be \[.., 64\]",
    ),
    "directions of fewer layers": (
        lambda m: neurons.neuron_effects(m, torch.ones(3, 2, 64), torch.ones(2, 1, 32)),
        r"directions \[3, k, 32\]",
    ),
    "heads of another width": (lambda m: neurons.head_importance(m, torch.ones(3, 2, 4, 9), torch.ones(3, 1, 32)), r"\[layers, n, 4, 8\]"),
    "one reference for two vectors": (
        lambda m: neurons.sublayer_importance(m, m.encode(TEXTS), "mlp_out", 0, VECTORS, VECTORS[:1]),
        r"alike; got \[2, 32\] and \[1, 32\]",
    ),
    "a dose of nothing": (
        lambda m: neurons.sublayer_importance(m, m.encode(TEXTS), "mlp_out", 0, VECTORS, VECTORS, (0.0,)),
        "other than 0",
    ),
    "driving what is not there": (
        lambda _: neurons.driven(Components.of(neurons=[(0, 99)]), torch.ones(3, 64), torch.ones(3, 4, 8), 1.0),
        "neuron 0.99 does not exist: there are 3 layers of 64",
    ),
    "a circuit by NaN": (
        lambda _: neurons.circuit({"head": torch.full((3, 4), torch.nan)}, {"head": torch.ones(3)}, {"head": 2}),
        "not finite",
    ),
    "a layer below the first": (
        lambda m: heads.sweep(m, CONTRAST, [Scaling(Head(-1, 0), 0.0)]),
        "head -1.0 does not exist: .* layers 0 to 2",
    ),
    "a factor that is none": (lambda m: heads.sweep(m, CONTRAST, [Scaling(Head(0, 0), float("nan"))]), "cannot be scaled by nan"),
    "a setting for one of two prompts": (lambda m: heads.sweep(m, CONTRAST, [[None]]), "2 prompts need a setting each, not 1"),
    "random heads like none": (lambda m: heads.random_heads(m, [], 2, RNG), "give one at least"),
    "means of one head": (lambda m: kept(m, Keep(()), Means(torch.zeros(3, 3, 1, 8), torch.zeros(3, 3, 32))), "those of another model"),
    "a score of all texts": (lambda m: kept(m, WHOLE, score=lambda logits, _: logits.mean()), "one number a row"),
    "a group that is not there": (
        lambda m: circuits.minimal(m, m.encode(["a"]), [1], [Group("a")], 3, circuits.position_means(m, ["a"])),
        "a circuit of 1 groups has none of number 3",
    ),
    "a chain from nowhere": (
        lambda m: circuit_search.chain(m, *PAIRS, [circuit_search.Link("a", 1, into="q")], metric=lambda x: x[:, 0]),
        "'a' writes into q of nothing",
    ),
    "no step of gradients": (lambda m: attribution.attribution(m, *PAIRS, steps=0), "steps must be 1 or more"),
    "agreement of NaN": (lambda m: agree(m, change=lambda x: x * torch.nan), "estimates are not finite"),
    "agreement of equal guesses": (lambda m: agree(m, change=torch.ones_like), "no order to agree about"),
    "agreement of other cells": (lambda m: agree(m, change=lambda x: x[:, :1]), "the exact sweep of"),
    "agreement of no cell": (lambda m: agree(m, k=0), "k must be 1 or more"),
    "situations that are not so many": (lambda m: told.Told.read(m, TEXTS, (3, 1, 2), ([0], [1])), "3 × 1 × 2 .* are not 2 texts"),
    "a situation that is not there": (lambda m: told.Told.read(m, TEXTS, (1, 1, 2), ([1], [0])), "situations from 0 to 0"),
    "directions from no situation": (lambda m: told.Told.read(m, TEXTS, (1, 1, 2), ([], [0])).mlp, "there is none"),
    "components that were not read": (
        lambda m: told.Told.read(m, TEXTS * 2, (2, 1, 2), ([0], [1]), components=False).effects(m),
        "read without components",
    ),
    "no triple": (lambda m: binding_pointers.see(m, [], [0]), "triples must be 1 or more"),
    "triples over three groups": (
        lambda _: binding_pointers.Asked(binding.TASKS["boxes"], 3, 1, 0, binding.TASKS["boxes"].pools).grid(RNG, 3),
        "must be 4 or more, not 3",
    ),
    "a circuit of no size": (
        lambda _: neurons.circuit({"head": torch.ones(3, 4)}, {"head": torch.ones(3)}, {}),
        "a circuit of heads needs",
    ),
}


@pytest.mark.parametrize("name", MODEL_CASES)
def test_one_line_about_a_model(toy, name):
    run, message = MODEL_CASES[name]
    with pytest.raises(NulliusError, match=message) as error:
        run(toy)
    assert "\n" not in str(error.value)


def test_words_tokens_that_stand_twice_and_layers_from_the_end(toy):
    states, token = torch.randn(2, 32, device=toy.device), toy.first_token(" the")
    once, twice, said = (vocabulary.mass(toy, states, {"a": group}) for group in ([token, 5], [token, 5, token], [" the", 5]))
    assert torch.equal(once, twice)
    assert torch.equal(once, said)
    states, moved = states.cpu(), tuned_lens.TunedLens(torch.zeros(2, 32, 32), torch.ones(2, 32), "")
    assert torch.equal(moved(-1, states), states)  # the last layer's own: not the translator of the one before
    assert torch.equal(moved(-2, states), states + 1)
    by_word = direct_effects.decompose(toy, toy.encode(TEXTS), [" the", " a"])
    by_id = direct_effects.decompose(toy, TEXTS, [token, toy.first_token(" a")])
    assert torch.equal(by_word.logit, by_id.logit)


@pytest.mark.parametrize("name", CASES)
def test_one_line(name):
    run, message = CASES[name]
    with pytest.raises(NulliusError, match=message) as error:
        run()
    assert "\n" not in str(error.value)


def test_what_is_sound_passes():
    assert checks.finite(ONE, "states") is ONE
    for labels in (LABELS, LABELS == 1, LABELS.astype(float), torch.tensor(LABELS), LABELS.tolist()):
        assert checks.binary(labels, 30, "a probe").tolist() == LABELS.tolist()
