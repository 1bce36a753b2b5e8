"""The anatomy of every family: sites are what their names say, and the wrapper changes nothing."""

import pytest
import torch
from tests.conftest import FAMILIES

from nullius.errors import SubjectError, UsageError
from nullius.instruments import taps
from nullius.models.loading import _self_test

TEXTS = ["The capital of France is", "A claim", "Every control must come out null and could fail to"]


@pytest.fixture(params=FAMILIES)
def model(request, toys):
    return toys[request.param]


def test_self_test_passes(model):
    _self_test(model)


def test_logits_are_those_of_transformers_to_the_bit(model):
    batch = model.encode(TEXTS)
    with torch.no_grad():
        plain = model.hf(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids, use_cache=False
        ).logits
        taps.read(model, batch, ["resid_post", "z"])
        assert torch.equal(model.logits(batch, "all"), plain)
        assert torch.allclose(model.logits(batch), plain[:, -1], atol=1e-6)


def test_heads_add_up_to_the_attention(model):
    """Σ_h z_h W_O^h, plus the projection's bias, is what the output projection gives."""
    batch = model.encode(TEXTS)
    z = taps.read(model, batch, ["z"], [1])["z"][0]
    projection = model.anatomy.o_proj(1)
    seen = {}
    handle = projection.register_forward_hook(lambda _m, _a, out: seen.update(out=out[:, -1].detach()))
    with torch.no_grad():
        model.hidden(batch)
    handle.remove()
    rebuilt = torch.einsum("bhd,hdm->bm", z, model.anatomy.o_weight(1).detach())
    bias = projection.bias.detach() if projection.bias is not None else 0
    assert torch.allclose(rebuilt + bias, seen["out"], atol=1e-5)


def test_parts_add_up_to_the_stream(model):
    batch = model.encode(TEXTS[:1])
    sites = taps.read(model, batch, ["resid_pre", "attn_out", "mlp_out", "resid_post"], positions="all")
    assert torch.allclose(sites["resid_pre"] + sites["attn_out"] + sites["mlp_out"], sites["resid_post"], atol=1e-4)
    assert torch.allclose(sites["resid_post"][:-1], sites["resid_pre"][1:], atol=1e-6)


def test_resid_mid(model):
    batch = model.encode(TEXTS[:1])
    if model.anatomy.parallel:
        with pytest.raises(SubjectError, match="parallel"):
            taps.read(model, batch, ["resid_mid"])
        return
    sites = taps.read(model, batch, ["resid_pre", "attn_out", "resid_mid"])
    assert torch.allclose(sites["resid_pre"] + sites["attn_out"], sites["resid_mid"], atol=1e-5)


def test_patterns_sum_to_one_and_leave_no_trace(model):
    batch = model.encode(TEXTS)
    before = model.hf.config._attn_implementation
    pattern = taps.read(model, batch, ["pattern"], positions="all")["pattern"]
    assert pattern.shape == (3, 3, 4, *[batch.input_ids.shape[1]] * 2)
    assert torch.allclose(pattern[:, :, :, -1].sum(-1), torch.ones(3, 3, 4), atol=1e-5)
    assert model.hf.config._attn_implementation == before


def test_z_is_the_pattern_times_the_values(model):
    batch = model.encode(TEXTS[:1])
    sites = taps.read(model, batch, ["pattern", "v", "z"], positions="all")
    values = sites["v"].repeat_interleave(model.anatomy.n_heads // model.anatomy.n_kv_heads, dim=-2)
    assert torch.allclose(torch.einsum("lbhqk,lbkhd->lbqhd", sites["pattern"], values), sites["z"], atol=1e-5)


def test_editing_one_head_is_subtracting_its_share(model):
    """Zeroing a head in the last layer lowers attn_out by z W_O (before any post-norm)."""
    batch = model.encode(TEXTS[:1])
    layer = model.anatomy.n_layers - 1

    def zero_head(z):
        z = z.clone()
        z[:, :, 2] = 0
        return z

    plain = taps.read(model, batch, ["resid_post"], [layer])["resid_post"]
    with taps.edit(model, "z", layer, zero_head):
        edited = taps.read(model, batch, ["resid_post", "z"], [layer])
    assert not torch.allclose(edited["resid_post"], plain)
    assert torch.allclose(taps.read(model, batch, ["resid_post"], [layer])["resid_post"], plain)


@pytest.mark.parametrize("site", ["q", "k", "v", "attn_out", "mlp_out", "resid_pre", "resid_post"])
def test_identity_edits_change_nothing(model, site):
    batch = model.encode(TEXTS)
    with torch.no_grad():
        plain = model.hidden(batch)
        with taps.edit(model, site, 1, lambda value: value):
            assert torch.allclose(model.hidden(batch), plain, atol=1e-6)
        with taps.edit(model, site, 1, lambda value: value * 0.5 + 0.1):
            assert not torch.allclose(model.hidden(batch), plain, atol=1e-4)


def test_editing_resid_mid_reaches_the_stream(toy):
    batch = toy.encode(TEXTS[:1])
    with taps.edit(toy, "resid_mid", 1, torch.zeros_like):
        sites = taps.read(toy, batch, ["mlp_out", "resid_post"], [1])
    assert torch.allclose(sites["mlp_out"], sites["resid_post"], atol=1e-5)


def test_padding_does_not_matter(model):
    together = model.last_logits(TEXTS)
    alone = torch.cat([model.last_logits([text]) for text in TEXTS])
    assert torch.allclose(together, alone, atol=2e-4)


def test_unknown_sites_and_layers_are_named(toy):
    with pytest.raises(UsageError, match="nearest: resid_post"):
        toy.anatomy.site("resid_pos", 0)
    with pytest.raises(UsageError, match="layers 0 to 2"):
        toy.anatomy.site("z", 7)


def test_generation_is_that_of_transformers(toy):
    answers = toy.generate(TEXTS, 5)
    for text, answer in zip(TEXTS, answers, strict=True):
        batch = toy.encode([text])
        out = toy.hf.generate(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=5, do_sample=False, pad_token_id=0
        )
        assert toy.tokenizer.decode(out[0, batch.input_ids.shape[1] :], skip_special_tokens=True) == answer
