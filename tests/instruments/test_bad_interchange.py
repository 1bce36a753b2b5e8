"""Bad input to interchanges, alignments and questions: one line; what was asked for twice is answered twice."""

import numpy as np
import pytest
import torch

from nullius.errors import UsageError
from nullius.instruments import alignment, interchange, questions
from nullius.instruments.causal_models import CausalModel, Variable
from nullius.instruments.interchange import At, Counterfactuals

TEXTS = ("The capital of France is", "The capital of Spain is")
PAIRS = Counterfactuals(TEXTS, TEXTS[::-1], (5, 6), (6, 5))
PLACE = At("resid_post", 1)
PROGRAM = CausalModel(("a",), (Variable("b", ("a",), lambda a: a),), "b")


def carried(at=PLACE, pairs=PAIRS, **more):
    return lambda model: interchange.transplant(model, pairs, at, **more)


def learned(k=2, pairs=PAIRS, **more):
    return lambda model: alignment.learn(model, pairs, PLACE, k, np.random.default_rng(0), **more)


def last(base=TEXTS, source=TEXTS, candidates=((1, 2), (3, 4)), layers=(0,)):
    return lambda model: interchange.last_token(model, base, source, candidates, layers)


BAD = {
    "a pattern for a state": (carried(At("pattern", 1)), "pattern are no state of a token"),
    "logits for a state": (carried(At("logits", 1)), "logits are no state of a token"),
    "a token between two": (carried(At("resid_post", 1, token=1.5)), "token must be whole numbers"),
    "a role that names nothing": (carried(At("resid_post", 1, token=lambda text: None)), "it gave None for: The capital of Spain is"),
    "no pairs": (carried(pairs=PAIRS.part([])), "no pairs to interchange"),
    "no batch": (carried(batch_size=0), "batch_size must be 1 or more"),
    "fewer sources": (lambda m: Counterfactuals(TEXTS, TEXTS[:1], (5, 6), (6, 5)), "2 base texts need as many sources"),
    "a token that is not there": (
        lambda m: interchange.accuracy(m, Counterfactuals(TEXTS, TEXTS, (5000, 1), (1, 2)), PLACE),
        "5000 is no token of toy-llama",
    ),
    "a word of several tokens": (carried(pairs=Counterfactuals(TEXTS, TEXTS, (" Paris", 1), (1, 2))), "' Paris' is not one token"),
    "a variable in no list": (
        lambda m: interchange.counterfactuals(PROGRAM, [({"a": 1}, {"a": 2})], "b", str, int),
        r"variables must be a list: \['b'\]",
    ),
    "no step": (learned(steps=0), "steps must be 1 or more"),
    "no start": (learned(starts=0), "starts must be 1 or more"),
    "all dimensions": (learned(32), "takes 1 to 31 dimensions, not 32"),
    "no layer": (last(layers=[]), "give a layer at least"),
    "a layer between two": (last(layers=[0.5]), "layers must be whole numbers"),
    "candidates of fewer pairs": (last(candidates=[[1, 2]]), r"candidates \[2, k\], a row for each pair; got \[1, 2\]"),
    "fewer texts": (last(source=TEXTS[:1]), "in lists of one length; got 2 and 1"),
    "texts in no list": (last("ab", "ab"), "stand in lists"),
    "texts for token ids": (lambda m: interchange.interchange(m, ["a"], ["b"], [(1, 2)]), "rows of token ids are wanted here"),
    "fewer answers": (lambda m: questions.ask(m, [], ["a", "b"], [" c"]), "2 prompts and 1 answers"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(toy, name):
    run, message = BAD[name]
    before = [dict(vars(layer)) for layer in toy.anatomy.layers]
    with pytest.raises(UsageError, match=message) as found:
        run(toy)
    assert "\n" not in str(found.value)
    assert [dict(vars(layer)) for layer in toy.anatomy.layers] == before


def test_layers_named_twice_and_from_the_end(toy):
    plain = interchange.last_token(toy, TEXTS, TEXTS[::-1], [[1, 2], [3, 4]], [0, 1, 2])
    found = interchange.last_token(toy, TEXTS, TEXTS[::-1], [[1, 2], [3, 4]], [1, -1, 1, 0])
    assert np.allclose(found.candidates, plain.candidates[[1, 2, 1, 0]], atol=1e-5)
    assert np.array_equal(found.emitted, plain.emitted[[1, 2, 1, 0]])
    assert not np.allclose(plain.candidates[1], plain.candidates[2])


def test_words_are_as_good_as_ids(toy):
    words = (" a", " is")
    ids = tuple(toy.single_token(word) for word in words)
    by_word, by_id = (Counterfactuals(TEXTS, TEXTS[::-1], some, some) for some in (words, ids))
    with torch.no_grad():
        said = interchange.transplant(toy, by_id, PLACE).argmax(-1).tolist()
    assert interchange.accuracy(toy, Counterfactuals(TEXTS, TEXTS[::-1], tuple(said), ids), PLACE).tolist() == [1, 1]
    assert np.array_equal(interchange.accuracy(toy, by_word, PLACE), interchange.accuracy(toy, by_id, PLACE))
    first, second = (alignment.learn(toy, some, PLACE, 2, np.random.default_rng(0), steps=2) for some in (by_word, by_id))
    assert first.loss == second.loss
