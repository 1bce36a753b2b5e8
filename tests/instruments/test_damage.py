"""Damage: none where the head does nothing, total where it carries the answer; perplexity is the loss of transformers."""

import math

import numpy as np
import pytest
import torch
from tests.wired import MEMORY_HEAD, known_facts, wired

from nullius.instruments.damage import damage, perplexity
from nullius.instruments.heads import Head, Scaling

TEXTS = ["A river runs through the town.", "Kabul and Rome are capitals of countries, and so is Lima."]


def test_perplexity_is_the_loss_of_transformers(toy):
    losses, lengths = [], []
    for text in TEXTS:
        ids = toy.encode([text]).input_ids
        with torch.no_grad():
            losses.append(float(toy.hf(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1))
        lengths.append(ids.shape[1] - 1)
    assert perplexity(toy, TEXTS) == pytest.approx(math.exp(sum(losses) / sum(lengths)), rel=1e-4)


def test_a_head_that_holds_the_answer_takes_it_away_and_another_does_not():
    facts = known_facts()[:20]
    model = wired({fact.country: 2.0 for fact in facts})
    prompts, wanted = [fact.question() for fact in facts], [model.first_token(fact.capital) for fact in facts]
    wrong = [*wanted[:15], *wanted[:5]]  # five answers that are not right to begin with
    told = [fact.told(fact.capital) for fact in facts]
    found = damage(model, prompts, wrong, Scaling(Head(*MEMORY_HEAD), -1.0), told)
    np.testing.assert_array_equal(found.right, np.arange(15))
    assert found.kept.sum() == found.blind.sum() == 0
    assert found.before != found.after
    harmless = damage(model, prompts, wrong, Scaling(Head(1, 3), -1.0), TEXTS)
    assert harmless.kept.all()
    assert not harmless.blind.any()
