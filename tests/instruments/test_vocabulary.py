"""Vocabulary projections by group."""

import copy

import numpy as np
import pytest
import torch

from nullius.errors import UsageError
from nullius.instruments import lens, taps, vocabulary


def test_mass_is_the_softmax_summed_over_the_group(toy):
    states = taps.read(toy, toy.encode(["The capital of Poland is", "Yes"]), ["resid_post"])["resid_post"]
    everything = list(range(2000))
    found = vocabulary.mass(toy, states, {"low": everything[:700], "high": everything[700:]})
    torch.testing.assert_close(found.sum(-1), torch.ones(3, 2))
    with torch.no_grad():
        p = toy.hf.lm_head(toy.anatomy.final_norm(states)).softmax(-1)
    torch.testing.assert_close(found[..., 0], p[..., :700].sum(-1))
    assert lens.rows_at_once(toy) > 1


@pytest.mark.parametrize("family", ["llama", "gemma", "gpt2", "olmo"])
def test_a_planted_group_is_found_and_random_directions_find_none(toys, family):
    model, rng = toys[family], np.random.default_rng(0)
    groups = {str(i): rng.choice(2000, 40, replace=False).tolist() for i in range(6)}
    planted = model.anatomy.unembedding()[groups["3"]].mean(0)
    found = vocabulary.scores(model, planted[None], groups)[0]
    assert int(found.argmax()) == 3
    assert found[3] > 4
    null = vocabulary.scores(model, torch.tensor(rng.normal(size=(200, 32)), dtype=torch.float32), groups)
    assert 0.85 < float(null.std()) < 1.15
    assert abs(float(null.mean())) < 0.15


def test_groups_of_words_and_scripts(toy):
    groups = vocabulary.of_words(toy, {"a": ["Poland", "river"], "b": ["study", "river"]})
    assert not set(groups["a"]) & set(groups["b"])
    assert toy.first_token(" river") not in groups["a"] + groups["b"]
    with pytest.raises(UsageError, match="share all their first tokens"):
        vocabulary.of_words(toy, {"a": ["river"], "b": ["river", "study"]})
    scripts = vocabulary.by_script(toy, least=5)
    assert toy.first_token(" study") in scripts["LATIN"]
    with pytest.raises(UsageError, match="group 'x'"):
        vocabulary.mass(toy, torch.zeros(1, 32), {"x": [2000]})
    token = toy.first_token(" study")
    assert toy.tokenizer.decode([token]) in vocabulary.top_tokens(toy, toy.anatomy.unembedding()[token], 3)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "gemma2"])
def test_a_direction_says_what_adding_it_does_to_the_logits(toys, family):
    """Behind a LayerNorm what all entries share is taken away: it was counted, and spoke for words."""
    model = copy.deepcopy(toys[family])
    norm, generator = model.anatomy.final_norm, torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    v = torch.randn(32, generator=generator) + 2.0
    flat = torch.ones(32)
    flat[1::2] = -1  # scaled by 1
    with torch.no_grad():
        moved = (model.anatomy.unembed(norm(flat + 1e-3 * v)) - model.anatomy.unembed(norm(flat))) / 1e-3
        along = vocabulary._along(model, v[None])[0]
        scale = model.anatomy.unembed(norm(flat)) - model.anatomy.unembed(
            norm(0 * flat)
        )  # the change of scale moves along the state itself
    rest = moved - along
    rest = rest - (rest @ scale) / (scale @ scale) * scale
    assert float(rest.norm() / moved.norm()) < 0.02
    if family in ("gpt2", "gpt_neox"):
        assert vocabulary.scores(model, flat.abs(), {"a": [1, 2, 3]}).abs().item() < 1e-2
