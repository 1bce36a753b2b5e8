"""Scores against plain full-forward logits of transformers, sequence by sequence."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nullius
from nullius.elicitation.scores import score
from nullius.errors import SubjectError
from nullius.models.language_model import LanguageModel


def plainly(model, context, continuation, bos=True):
    """One forward pass of transformers per request, all logits."""
    lead = [model.bos_id] if bos and model.bos_id is not None else []
    body = context.rstrip(" ")
    before = lead + (model.tokens(body) if body else [])
    after = model.tokens(context[len(body) :] + continuation)
    with torch.no_grad():
        logits = model.hf(torch.tensor([before + after], device=model.device)).logits[0].double()
    steps = range(len(before) - 1, len(before) + len(after) - 1)
    logprobs = [float(logits[t].log_softmax(-1)[token]) for t, token in zip(steps, after, strict=True)]
    return logprobs, all(int(logits[t].argmax()) == token for t, token in zip(steps, after, strict=True))


REQUESTS = [
    ("The capital of France is", " Paris"),
    ("The capital of France is", " Rome, of course"),
    ("The capital of France is ", "Paris"),
    ("The capital of Italy is", " Rome"),
    ("The", " capital of France is Paris"),
    ("", "The capital of France is Paris"),
    ("", "The"),
    ("Une phrase", " 🦆 naïve\n"),
    ("The capital of France is", " Paris"),
]
FAMILIES = ("llama", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3", "gpt2", "gpt_neox", "olmo", "olmo2", "phi3")


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_separate_forwards(toys, family):
    model = toys[family]
    found = score(model, REQUESTS)
    for (context, continuation), cell in zip(REQUESTS, found, strict=True):
        logprobs, greedy = plainly(model, context, continuation)
        np.testing.assert_allclose(cell.logprobs, logprobs, atol=1e-4)
        assert cell.greedy == greedy
        assert cell.total == pytest.approx(sum(logprobs), abs=1e-4)
    assert found[0] == found[-1]


def test_in_double_precision_they_agree_to_nine_digits(toy):
    model = LanguageModel.wrap(copy.deepcopy(toy.hf).double(), toy.tokenizer)
    for (context, continuation), cell in zip(REQUESTS, score(model, REQUESTS), strict=True):
        np.testing.assert_allclose(cell.logprobs, plainly(model, context, continuation)[0], atol=1e-9)


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "phi3"])
def test_sliding_windows_are_kept(toys, family):
    """Sequences deeper than the window of 256: the far past must be invisible to sliding layers, as in transformers."""
    model = toys[family]
    words = " ".join(f"word{i} apple river {i * i}" for i in range(60))
    assert len(model.tokens(words)) > 400
    requests = [(words, " river"), (words, " stone and more"), (words[:40], " short")]
    for (context, continuation), cell in zip(requests, score(model, requests), strict=True):
        np.testing.assert_allclose(cell.logprobs, plainly(model, context, continuation)[0], atol=1e-4)


word = st.sampled_from(["the", "a", "cat", "dog", "sat", "on", "mat", "red", "7", "42", "naïve", "🦆", ".", ","])
text = st.lists(word, min_size=1, max_size=9).map(" ".join)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(text, text.map(lambda t: " " + t)), min_size=1, max_size=12), st.integers(1, 64))
def test_any_ragged_set_any_row_size(toy, requests, row_tokens):
    cells = score(toy, requests, row_tokens=row_tokens)
    for (context, continuation), cell in zip(requests, cells, strict=True):
        np.testing.assert_allclose(cell.logprobs, plainly(toy, context, continuation)[0], atol=1e-4)
        assert len(cell.tokens) == len(cell.logprobs) == len(toy.tokens(continuation))


def test_order_and_row_size_change_nothing(toy):
    forward = score(toy, REQUESTS, row_tokens=7)
    backward = score(toy, REQUESTS[::-1], row_tokens=1000)[::-1]
    for a, b in zip(forward, backward, strict=True):
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)


def test_shared_prefixes_are_fed_once(toy):
    context = "A long context that several continuations share, word after word"
    requests = [(context, f" {ending}") for ending in ("one", "two", "three", "four")]
    before = toy.tokens_seen
    score(toy, requests)
    longest = max(len(toy.tokens(ending)) for _, ending in requests)
    assert toy.tokens_seen - before <= 1 + len(toy.tokens(context)) + 4 * (longest - 1)


def test_probabilities_of_all_continuations_sum_to_one(toy):
    """Planted: over single tokens that decode to themselves, with one context, probabilities cannot exceed 1."""
    tokens = [i for i in range(1, 2000) if toy.tokens(toy.tokenizer.decode([i])) == [i]]
    cells = score(toy, [("The cat", toy.tokenizer.decode([i])) for i in tokens])
    total = sum(math.exp(cell.total) for cell in cells)
    assert 0.9 < total <= 1 + 1e-5
    assert sum(cell.greedy for cell in cells) <= 1


def test_bos_policy(toy):
    with_bos, without = (score(toy, [("The cat", " sat")], bos=bos)[0] for bos in (True, False))
    np.testing.assert_allclose(without.logprobs, plainly(toy, "The cat", " sat", bos=False)[0], atol=1e-4)
    assert with_bos.logprobs != without.logprobs


def test_nothing_to_score_or_to_condition_on(toy):
    with pytest.raises(SubjectError, match="nothing to score"):
        score(toy, [("The cat", "")])
    with pytest.raises(SubjectError, match="nothing to condition on"):
        score(toy, [("", "The cat")], bos=False)


@pytest.mark.subject
def test_the_default_subject_is_scored_as_transformers_does():
    model = nullius.load("smollm2-135m")
    for (context, continuation), cell in zip(REQUESTS, score(model, REQUESTS), strict=True):
        logprobs, greedy = plainly(model, context, continuation)
        np.testing.assert_allclose(cell.logprobs, logprobs, atol=1e-3)
        assert cell.greedy == greedy
