"""Interventions on sites that make up one another: they act in the order in which the model computes the sites, whenever they were opened."""

import copy

import pytest
import torch

from nullius.instruments import interventions as iv
from nullius.instruments import taps
from nullius.instruments.where import Where
from nullius.models.language_model import LanguageModel

TEXTS = ["The capital of France is", "A claim about it"]
FIRST, SECOND, STATE = (torch.randn(32, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
PAIRS = {  # what comes first in the model, what comes behind it
    "attn_out and resid_mid": (iv.set_to(Where("attn_out", 1), FIRST), iv.set_to(Where("resid_mid", 1), STATE)),
    "resid_pre and resid_mid": (iv.add(Where("resid_pre", 1), FIRST), iv.set_to(Where("resid_mid", 1), STATE)),
    "attn_out and a part of resid_mid": (iv.add(Where("attn_out", 1), FIRST), iv.project_out(Where("resid_mid", 1), SECOND)),
    "resid_post and the next resid_pre": (iv.add(Where("resid_post", 0), FIRST), iv.scale(Where("resid_pre", 1), 2.0)),
    "z and attn_out": (iv.add(Where("z", 1), FIRST.view(4, 8)), iv.scale(Where("attn_out", 1), 2.0)),
    "pattern and z": (iv.scale(Where("pattern", 1), 0.5), iv.add(Where("z", 1), FIRST.view(4, 8))),
    "mlp_out and resid_post": (iv.add(Where("mlp_out", 1), FIRST), iv.scale(Where("resid_post", 1), 2.0)),
}


@pytest.mark.parametrize("family", ["llama", "gemma2", "olmo2"])
@pytest.mark.parametrize("name", PAIRS)
def test_the_order_of_opening_does_not_matter(toys, family, name):
    model, (first, second) = toys[family], PAIRS[name]
    batch = model.encode(TEXTS)
    with torch.no_grad():
        with iv.applied(model, [first]), iv.applied(model, [second]):
            expected = model.logits(batch)
        with iv.applied(model, [second]), iv.applied(model, [first]):
            assert torch.equal(model.logits(batch), expected)
        for listed in ([first, second], [second, first]):
            with iv.applied(model, listed):
                assert torch.equal(model.logits(batch), expected)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_resid_mid_is_what_it_was_set_to_and_its_summand_what_it_was(toys, family):
    model = toys[family]
    batch = model.encode(TEXTS)
    plain = taps.read(model, batch, ["resid_pre", "attn_out"], [1], positions="all")
    changes = [iv.set_to(Where("resid_mid", 1), STATE), iv.add(Where("resid_pre", 1), FIRST), iv.scale(Where("resid_mid", 1), 2.0)]
    with iv.applied(model, changes):
        found = taps.read(model, batch, ["resid_mid"], [1], positions="all")["resid_mid"]
    assert torch.allclose(found, 2 * STATE, atol=1e-5)
    with iv.applied(model, changes[:1]):
        found = taps.read(model, batch, ["resid_pre", "attn_out", "resid_mid"], [1], positions="all")
    assert torch.equal(found["resid_pre"], plain["resid_pre"])
    assert torch.equal(found["attn_out"], plain["attn_out"])
    assert torch.allclose(found["resid_mid"], STATE.expand_as(found["resid_mid"]), atol=1e-5)


def test_in_bfloat16_what_is_not_named_does_not_move_in_a_bit(toy):
    """The stream is large here beside what the attention adds: a sum and a difference would not give back what they began with."""
    hf = copy.deepcopy(toy.hf).to(torch.bfloat16)
    with torch.no_grad():
        hf.get_input_embeddings().weight.mul_(1000)
    model = LanguageModel.wrap(hf, toy.tokenizer, "large")
    batch = model.encode(TEXTS)
    plain = taps.read(model, batch, ["attn_out", "resid_mid", "mlp_out"], [0], positions="all")
    with iv.applied(model, [iv.set_to(Where("resid_mid", 0, positions=[-1]), STATE)]):
        found = taps.read(model, batch, ["resid_mid", "mlp_out"], [0], positions="all")
    for site in ("resid_mid", "mlp_out"):
        assert torch.equal(found[site][:, :, :-1], plain[site][:, :, :-1])
        assert not torch.equal(found[site][:, :, -1], plain[site][:, :, -1])
