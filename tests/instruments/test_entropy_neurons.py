"""Entropy neurons: one that is planted is found by its weights and by what it does; ordinary neurons are not taken for one."""

import copy

import numpy as np
import pytest
import torch
from tests.conftest import make_toy
from tests.instruments.test_circuits import batch_of

from nullius.errors import UsageError
from nullius.instruments import entropy_neurons, taps


@pytest.fixture(scope="module")
def planted(tokenizer):
    """Neuron 5 of the last layer writes, with great strength, where the unembedding reads nothing; neuron 9 writes as strongly for one word."""
    model = make_toy("llama", tokenizer)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        words = model.anatomy.unembed.weight
        words.normal_(generator=generator).mul_(0.3)
        words[:, :2] = 0  # two dimensions that no word reads
        down = model.anatomy.down_proj(2).weight  # [d_model, d_mlp]
        down[:2] = 0
        down[:, 5] = 0
        down[0, 5] = 40.0
        down[:, 9] = 0
        down[2:, 9] = 40.0 * words[77, 2:] / words[77].norm()
    return model


def test_the_weights_point_to_it(planted):
    reading = entropy_neurons.read(planted, null=0.06)
    assert reading.layer == 2
    assert reading.candidates(1) == [5]
    assert reading.null_share[5] == pytest.approx(1, abs=1e-5)
    assert reading.norm[5] == pytest.approx(40, rel=1e-5)
    assert reading.logit_variance[5] < 1e-10 < reading.logit_variance[9]
    assert np.delete(reading.null_share, 5).max() < 1e-6
    assert len(reading.norm) == planted.anatomy.d_mlp


def test_what_it_does(planted):
    found = entropy_neurons.effect(planted, batch_of(planted, n=30), 2, [5, 9])
    assert found.entropy[0] > 0.02
    assert found.through_the_norm[0] > 0.99  # with the scale held nothing is left
    assert found.ranking[0] == 0  # all logits by one factor: the order stays
    assert found.ranking[1] > 0
    assert found.through_the_norm[1] < 0.9


def test_the_variance_is_that_of_the_cosines_one_by_one(toys):
    for family in ("llama", "gpt2"):
        anatomy = toys[family].anatomy
        with torch.no_grad():
            words = anatomy.unembedding() * anatomy.final_norm.weight
            words = words - words.mean(1, keepdim=True) if family == "gpt2" else words
            words = torch.nn.functional.normalize(words - words.mean(0), dim=1)
            cosine = torch.nn.functional.normalize(anatomy.down_weight(1), dim=1) @ words.T
        np.testing.assert_allclose(entropy_neurons.read(toys[family], 1).logit_variance, cosine.var(1), rtol=1e-4)


@pytest.mark.parametrize(("family", "unread"), [("gpt2", True), ("llama", False)])
def test_what_a_layer_norm_takes_away_is_read_by_no_word(toys, family, unread):
    """Neuron 4 writes the same into all entries."""
    model = copy.deepcopy(toys[family])
    with torch.no_grad():
        model.anatomy.down_weight(2)[4] = 3.0
    reading = entropy_neurons.read(model, null=0.06)
    assert (reading.null_share[4] > 0.99) == unread
    assert (reading.logit_variance[4] < 1e-6) == unread


@pytest.mark.parametrize(("family", "added"), [("gemma2", 1.0), ("olmo2", 0.0)])
def test_what_is_written_has_gone_through_the_norm_behind_the_block(toys, family, added):
    model = copy.deepcopy(toys[family])
    norm = model.anatomy.post_norm(2, "mlp")
    with torch.no_grad():
        norm.weight.add_(torch.randn(32, generator=torch.Generator().manual_seed(0)))
        written = model.anatomy.down_weight(2) * (norm.weight + added)
    np.testing.assert_allclose(entropy_neurons.read(model).norm, written.norm(dim=1), rtol=1e-4)


def test_null_random_weights_have_no_such_neuron(toys):
    for family in ("llama", "gpt2"):
        reading = entropy_neurons.read(toys[family], null=0.06)
        assert reading.null_share.max() < 0.6  # 2 of 32 dimensions: 0.06 expected
        assert reading.null_share.mean() == pytest.approx(2 / 32, abs=0.04)
    silent = entropy_neurons.effect(toys["llama"], ["a b c"] * 2, 2, [3])
    assert silent.entropy[0] == pytest.approx(0, abs=1e-6)  # the mean over equal texts is their own activation


@pytest.mark.parametrize("family", ["gpt_neox", "llama"])
def test_held_scale_is_that_of_the_untouched_run(toys, family):
    """Against the norm written out: its gain for each entry as it was, behind a LayerNorm's centring. Gains that are not all alike."""
    model = copy.deepcopy(toys[family])
    norm, generator = model.anatomy.final_norm, torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    texts, layer, neuron = batch_of(model, n=6), 2, 7
    mean = taps.read(model, texts, ["mlp_post"], [layer])["mlp_post"][0][:, neuron].mean()
    stream = taps.read(model, texts, ["resid_post"], [layer])["resid_post"][0]

    def silent(x):
        x = x.clone()
        x[:, -1, neuron] = mean
        return x

    with taps.edit(model, "mlp_post", layer, silent):
        changed = taps.read(model, texts, ["resid_post"], [layer])["resid_post"][0]
    bias = norm.bias if family == "gpt_neox" else 0.0
    inner, moved = ((x - x.mean(-1, keepdim=True) if family == "gpt_neox" else x) for x in (stream, changed))
    with torch.no_grad():
        gain = (norm(stream) - bias) / inner
        logs = [model.anatomy.logits(x).log_softmax(-1) for x in (norm(stream), bias + gain * moved)]
    plain, held = (-(x.exp() * x).sum(-1) for x in logs)
    found = entropy_neurons.effect(model, texts, layer, [neuron])
    assert found.held[0] == pytest.approx(float((held - plain).abs().mean()), rel=1e-2)


def test_refusals(toy):
    with pytest.raises(UsageError, match="must be 2 or more, not 1"):
        entropy_neurons.effect(toy, batch_of(toy, n=1), 2, [3])
    with pytest.raises(UsageError, match="layer 7 does not exist"):
        entropy_neurons.read(toy, 7)
    with pytest.raises(UsageError, match="between 0 and 1"):
        entropy_neurons.read(toy, null=2)
    with pytest.raises(UsageError, match="neuron 64 does not exist"):
        entropy_neurons.effect(toy, batch_of(toy), 2, [64])
