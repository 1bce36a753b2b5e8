"""Bad input to the instruments: one clear line, with what exists; nothing is broadcast or taken for something else."""

import numpy as np
import pytest
import torch

from nullius.errors import SubjectError, UsageError
from nullius.instruments import circuits, direct_effects, heads, interchange, lens, masks, patching, paths, taps
from nullius.instruments.heads import Head
from nullius.instruments.path_runs import Receiver

BASE, SOURCE = ["The capital of France is"], ["The capital of Spain is"]
ONE = [Head(0, 0)]


CASES = {
    "a site": (lambda m, b: taps.read(m, b, ["resid_pots"]), "no site 'resid_pots'; nearest: resid_post"),
    "a layer": (lambda m, b: taps.read(m, b, ["z"], [7]), "layer 7 does not exist: llama has layers 0 to 2"),
    "layers that are no list": (lambda m, b: taps.read(m, b, ["z"], 1), r"layers must be a list: \[1\], not 1"),
    "a head": (lambda m, b: taps.read(m, b, ["z"], heads=[9]), "head 9 does not exist: z of toy-llama has heads 0 to 3"),
    "a text in no list": (lambda m, b: taps.read(m, "A claim", ["z"]), r"one text stands in a list: \['A claim'\]"),
    "a word of three tokens": (
        lambda m, b: patching.residual(m, BASE, SOURCE, [[" Paris", " a"]]),
        r"' Paris' is not one token of toy-llama but 3",
    ),
    "a token too many": (
        lambda m, b: patching.residual(m, BASE, SOURCE, [[2000, 1]]),
        "2000 is no token of toy-llama: .* 0 to 1999",
    ),
    "a token below it": (lambda m, b: paths.patch(m, BASE, SOURCE, ONE, [[-1, 1]]), "-1 is no token of toy-llama"),
    "a token between tokens": (lambda m, b: lens.read(m, b, [1.5]), "1.5 is no token"),
    "rows of unequal length": (lambda m, b: patching.heads(m, BASE * 2, SOURCE * 2, [[1, 2], [3]]), "in rows of one length"),
    "a token of a circuit": (
        lambda m, b: circuits.evaluate(m, b, [2000], [circuits.WHOLE], circuits.position_means(m, b)),
        "2000 is no token",
    ),
    "a token to attribute": (lambda m, b: direct_effects.decompose(m, BASE, [2000]), "2000 is no token"),
    "a token of a contrast": (lambda m, b: heads.sweep(m, heads.Contrast(("a b",), (1,), (2000,)), [None]), "2000 is no token"),
    "a candidate": (lambda m, b: interchange.last_token(m, BASE, BASE, [[2000]], [0]), "2000 is no token"),
    "a target of a mask": (lambda m, b: masks.accuracy(m, masks.Desideratum(b, b, (2000,), (0,), (0,)), ONE), "2000 is no token"),
    "a metric that gives rows of numbers": (lambda m, b: patching.heads(m, BASE, BASE, [[1, 2]], metric=lambda x: x), "one number a row"),
    "pairs of unequal length": (
        lambda m, b: masks.accuracy(m, masks.Desideratum(b, m.encode(["A claim"]), (1,), (0,), (0,)), ONE),
        r"pair 0 does not have the length of the others \(9 and 3 tokens\)",
    ),
    "a free head": (
        lambda m, b: paths.patch(m, BASE, SOURCE, ONE, [[1, 2]], free_heads=[Head(0, 9)]),
        r"free head 0\.9 does not exist: .* 0 to 3",
    ),
    "a receiver": (
        lambda m, b: paths.patch(m, BASE, SOURCE, ONE, [[1, 2]], receivers=[Receiver("z", 1, 0)]),
        r"receiver z 1\.0 is no query, key or value of a head",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line(toy, name):
    def hooks():  # transformers may have left some of its own behind, in a test before
        return [dict(module._forward_hooks) for layer in toy.anatomy.layers for module in layer.modules()]

    run, message = CASES[name]
    before = hooks()
    with pytest.raises(UsageError, match=message):
        run(toy, toy.encode(BASE))
    assert hooks() == before


def test_an_edit_of_another_shape_is_not_broadcast(toy):
    batch = toy.encode(BASE * 2)
    for site, shape in (("z", [2, 9, 4, 8]), ("resid_post", [2, 9, 32]), ("pattern", [2, 4, 9, 9])):
        with pytest.raises(UsageError, match="must keep its shape"), taps.edit(toy, site, 0, lambda x: x[:, :1]):
            toy.logits(batch)
        if site != "pattern":  # of which nothing means no edit
            with pytest.raises(UsageError, match="must return a tensor; it gave None"), taps.edit(toy, site, 0, lambda x: None):
                toy.logits(batch)
        with taps.edit(toy, site, 0, lambda x: x * 1), torch.no_grad():
            assert list(taps.read(toy, batch, [site], [0], positions="all")[site].shape[1:]) == shape


def test_words_and_ids_are_the_same_answers(toy):
    words = [" a", " the"]
    ids = [toy.single_token(word) for word in words]
    assert toy.tokenizer.decode(ids) == " a the"
    assert toy.token_ids([words, ids]).tolist() == [ids, ids]
    assert toy.token_ids(np.array(ids)).tolist() == toy.token_ids(torch.tensor(ids)).tolist() == ids
    assert torch.equal(patching.heads(toy, BASE, BASE, [words]).base, patching.heads(toy, BASE, BASE, [ids]).base)
    assert toy.str_tokens("A claim") == ["<|endoftext|>", "A", " claim"]


def test_a_word_that_is_one_token_behind_a_space(toy):
    assert toy.single_token(" claim") == toy.tokens(" claim")[0]
    if len(toy.tokens("claim")) > 1:
        with pytest.raises(UsageError, match="' claim', with a space before it, is one"):
            toy.single_token("claim")
    with pytest.raises(UsageError, match="is not one token of toy-llama but 0"):
        toy.single_token("")
    with pytest.raises(SubjectError, match="has no token"):
        toy.first_token("")
