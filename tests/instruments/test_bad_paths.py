"""Bad input to path patching, edges, masks and knock-outs: one line, nothing broadcast; parts with positions for each text among several senders."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nullius.errors import UsageError
from nullius.instruments import cross_model, edges, interventions, knockout, masks, patching, paths, site_paths
from nullius.instruments.circuits import Group
from nullius.instruments.edges import Edge
from nullius.instruments.heads import Head
from nullius.instruments.path_runs import Receiver
from nullius.instruments.where import Where
from nullius.models.language_model import Batch

IDS = torch.randint(1, 1900, (3, 9), generator=torch.Generator().manual_seed(0))
OTHER = IDS.clone()
OTHER[:, 3:5] = torch.randint(1, 1900, (3, 2), generator=torch.Generator().manual_seed(1))
BASE, SOURCE = Batch(IDS, torch.ones_like(IDS)), Batch(OTHER, torch.ones_like(IDS))
PADDED = Batch(torch.cat([IDS[:, :1], IDS], 1), torch.cat([torch.zeros_like(IDS[:, :1]), torch.ones_like(IDS)], 1))
ANSWERS, ONE = [[5, 6]] * 3, [Head(0, 1)]
PAIRS = masks.Desideratum(BASE, SOURCE, (5, 6, 7), (4, 3, 5), (4, 3, 4))


def path(senders=ONE, answers=ANSWERS, **more):
    return lambda model: paths.patch(model, BASE, SOURCE, senders, answers, **more)


def by_site(*senders, **more):
    return lambda model: site_paths.patch(model, BASE, SOURCE, senders, ANSWERS, **more)


def learn(pairs=PAIRS, tried=PAIRS, heads=ONE, **more):
    return lambda model: masks.learn(model, pairs, tried, heads, rng=np.random.default_rng(0), **more)


def without(*sets, mean=None, batch=BASE):
    return lambda model: knockout.last_logits(model, batch, list(sets), mean)


BAD = {
    "a position between two": (path(at=[1.5] * 3), "positions must be whole numbers, not fractions"),
    "a position that is a truth": (path(at=True), "positions must be whole numbers, not a mask"),
    "a position by name": (path(at="last"), "positions must be whole numbers"),
    "a sender in no list": (path(Head(0, 0)), "no sender in a list"),
    "a sender that is a site": (path([Where("z", 0)]), "is no Head"),
    "a sender that is a pair": (path([(0, 1)]), r"sender \(0, 1\) is no Head"),
    "a free head in no list": (path(free_heads=Head(0, 1)), "free_heads must be a list"),
    "one answer": (path(answers=[[5]] * 3), "the metric is the difference of two answers, and one is given"),
    "a metric of everything": (path(metric=torch.sum), r"one number a row: from scores \[3, 2\] to \[rows\]; this gave \[\]"),
    "a metric of rows": (path(metric=lambda x: x), r"this gave \[3, 2\]"),
    "scores of no kind": (path(scores="probs"), "scores are 'logits' or 'log_probs'"),
    "held blocks of no kind": (path(held_mlps="al"), "held_mlps 'none', 'all' or a list"),
    "a held block in no list": (path(held_mlps=1), r"held_mlps must be a list: \[1\]"),
    "no row": (path(max_rows=0), "max_rows must be 1 or more, not 0"),
    "a receiver from the end": (path(receivers=[Receiver("q", -1, 0)]), "receiver q -1.0 does not exist: toy-llama has layers 0 to 2"),
    "padding that all share": (
        lambda m: patching.residual(m, PADDED, PADDED, ANSWERS),
        "texts of 9 tokens in 10 columns: leave out the padding",
    ),
    "a site in no list": (lambda m: site_paths.patch(m, BASE, SOURCE, Where("z", 0), ANSWERS), "stand in a list"),
    "a path from the logits": (by_site(Where("logits", 0)), "no path begins"),
    "a path to the logits by name": (by_site(Where("z", 0), receiver=Where("logits", 0)), "ends there where no receiver is given"),
    "no step": (lambda m: edges.attribute(m, BASE, SOURCE, ANSWERS, steps=0), "steps must be 1 or more"),
    "an edge by name": (lambda m: edges.exact(m, BASE, SOURCE, ANSWERS, ["embed → logits"]), r"'embed → logits' is no Edge"),
    "an edge backwards": (lambda m: edges.exact(m, BASE, SOURCE, ANSWERS, [Edge("mlp 2", "q 0.0")]), "what reads there runs before"),
    "no pairs to learn from": (learn(PAIRS.part([])), "without pairs"),
    "no pairs to try": (learn(tried=PAIRS.part([])), "without pairs"),
    "no epoch": (learn(epochs=0), "epochs must be 1 or more"),
    "a head twice": (learn(heads=ONE * 2), "each once"),
    "a head from the end": (lambda m: masks.accuracy(m, PAIRS, [Head(0, -1)]), "head 0.-1 does not exist"),
    "no pairs": (lambda m: masks.accuracy(m, PAIRS.part([]), ONE), "without pairs"),
    "texts for batches": (lambda m: masks.Desideratum(["a"], ["b"], (5,), (0,), (0,)), "takes batches"),
    "a group's positions": (lambda m: cross_model.patch(m, m, BASE, [Group("g", (Head(1, 0),), (1,))]), "1 positions for 3"),
    "a group in no list": (lambda m: cross_model.patch(m, m, BASE, Group("g", (Head(1, 0),))), "groups stand in a list"),
    "heads for a stream": (lambda m: cross_model.residual(m, m, BASE, SOURCE, ANSWERS, site="z"), "no residual site 'z': resid_pre, resid_mid"),
    "a stream for heads": (lambda m: cross_model.patch(m, m, BASE, [], site="resid_pre"), "their site is z, q, k or v"),
    "a mean of fewer heads": (without(ONE, ONE, ONE, mean=torch.zeros(3, 9, 1, 1)), r"must be \[3, 4, 8\] or \[3, T, 4, 8\]; got \[3, 9, 1, 1\]"),
    "a mean by position of padding": (without(ONE, ONE, ONE, mean=torch.zeros(3, 10, 4, 8), batch=PADDED), "some are padded"),
    "heads in one list": (without(*ONE * 3), "a list of lists"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(toy, name):
    run, message = BAD[name]
    with pytest.raises(UsageError, match=message) as found:
        run(toy)
    assert "\n" not in str(found.value)


def test_targets_of_a_mask_may_be_words(toy):
    words = (" a", " the", " is")
    ids = tuple(toy.single_token(word) for word in words)
    heads = [Head(layer, head) for layer in range(3) for head in range(4)]
    said = tuple(masks.said(toy, PAIRS, heads).tolist())
    assert masks.accuracy(toy, replace(PAIRS, targets=said), heads).tolist() == [1, 1, 1]
    first = toy.tokenizer.convert_ids_to_tokens(said[0]).replace("Ġ", " ")
    if toy.tokens(first) == [said[0]]:
        assert masks.accuracy(toy, replace(PAIRS, targets=(first, *said[1:])), heads).tolist() == [1, 1, 1]
    by_word, by_id = (learn(*[replace(PAIRS, targets=some)] * 2)(toy) for some in (words, ids))
    assert np.array_equal(by_word.values, by_id.values)
    assert by_word.validation == by_id.validation


@pytest.mark.parametrize(
    "parts",
    [
        {"held": [Where("z", 1, positions=[[3], [4], [6]])]},
        {"held": [Where("pattern", 1)]},
        {"held": [Where("mlp_out", 1)], "receiver": Where("v", 2, positions=[[3], [4], [6]])},
        {"receiver": Where("pattern", 2, positions=[[8], [7], [6]])},
    ],
)
def test_several_senders_at_once_are_each_alone(toy, parts):
    """Positions of held parts and receivers for each text go with the text, however many senders share a pass; patterns can be held whole."""
    senders = [Where("z", 0, heads=[1]), Where("resid_pre", 0, positions=[3, 4])]
    together = site_paths.patch(toy, BASE, SOURCE, senders, ANSWERS, **parts)
    for i, sender in enumerate(senders):
        assert torch.allclose(
            site_paths.patch(toy, BASE, SOURCE, [sender], ANSWERS, **parts).values[:, 0], together.values[:, i], atol=1e-5
        )
    open_ = site_paths.patch(toy, BASE, SOURCE, senders, ANSWERS)
    assert float((together.values - open_.values).abs().max()) > 1e-3  # what is held matters


def test_rows_of_ones_own_do_not_go_with_instruments_that_pack_rows(toy):
    """An intervention on all rows is seen by a sweep as by plain runs; one on some rows would be on others there."""
    patching.residual(toy, BASE, SOURCE, ANSWERS)  # asks whether the model can be run from the middle, with nothing open
    for where in (Where("z", 1, heads=[2]), Where("pattern", 1, heads=[1]), Where("resid_mid", 1, positions=[5])):
        with interventions.applied(toy, [interventions.scale(where, 0.5)]):
            patching.residual(toy, BASE, SOURCE, ANSWERS, checks=20)
    for where in (Where("z", 1, rows=[1]), Where("z", 1, positions=[[3], [4], [5]])):
        with interventions.applied(toy, [interventions.scale(where, 0.0)]):
            with pytest.raises(UsageError, match="leave out `rows`"):
                patching.residual(toy, BASE, SOURCE, ANSWERS, checks=0)
            with pytest.raises(UsageError, match="leave out `rows`"):
                paths.patch(toy, BASE, SOURCE, [Head(0, 1)], ANSWERS, at=4, free_heads=[Head(2, 0)])
