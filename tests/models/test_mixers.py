"""Each mixer against its definition, and what it must not depend on."""

import math

import pytest
import torch
import torch.nn.functional as F
from tests.models.decoders import PLAIN, WIDTH, gap, make, tokens
from transformers import LlamaConfig, LlamaForCausalLM

from nullius.models.architectures import queryfree
from nullius.models.architectures.context import see
from nullius.models.architectures.mixers import rotate, turns

# --- each mixer against its definition, in float64 ---


def mixed(mixer, x, source=None, **changes):
    """One mixer's module and its output for x, in float64."""
    module = make(mixer, **changes).double().model.layers[1].attn
    return module, module(x, see(x, None, None, None, None), source)[0]


def x_of(length=13, seed=1):
    return torch.randn(2, length, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weighted(module, x, weights):
    """z from weights [B, H, T, T], through the output map."""
    v = (x @ module.v_proj.weight.T).unflatten(-1, (2, -1)).transpose(1, 2)
    return (weights @ v).transpose(1, 2).flatten(2) @ module.o_proj.weight.T


def scores_of(module, source, theta=10000.0):
    q, k = ((source @ m.weight.T).unflatten(-1, (2, -1)).transpose(1, 2) for m in (module.q_proj, module.k_proj))

    def turn(a):  # complex numbers in place of sines and cosines
        half = a.shape[-1] // 2
        angle = torch.arange(a.shape[2], dtype=torch.float64)[:, None] * theta ** (-torch.arange(half, dtype=torch.float64) / half)
        turned = torch.complex(a[..., :half], a[..., half:]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat((turned.real, turned.imag), -1)

    return turn(q) @ turn(k).mT / math.sqrt(q.shape[-1])


@pytest.mark.parametrize("mixer", ["softmax", "approximate", "static"])
def test_attention_is_what_it_says(mixer):
    x = x_of()
    source = x_of(seed=2) if mixer == "static" else None
    module, out = mixed(mixer, x, source)
    s = scores_of(module, x if source is None else source)
    kernel = (1 + s + s**2 / 2 if mixer == "approximate" else s.exp()).tril()
    assert gap(out, weighted(module, x, kernel / kernel.sum(-1, keepdim=True))) < 1e-12


def test_shadow_patterns_come_from_the_shadow_alone():
    x, shadow = x_of(), x_of(20, seed=2)[:1]
    module, out = mixed("random", x, shadow)
    weights = scores_of(module, shadow)[:, :, :13, :13].exp().tril()
    assert gap(out, weighted(module, x, weights / weights.sum(-1, keepdim=True))) < 1e-12


@pytest.mark.parametrize("strength", [1.0, 40.0])
def test_query_free_softmax(strength):
    x = x_of() * strength
    module, out = mixed("non-approximate", x)
    q, k = ((x @ m.weight.T).unflatten(-1, (2, -1)) for m in (module.q_proj, module.k_proj))
    s = (F.silu(q) * k).sum(-1) / math.sqrt(WIDTH // 2)
    assert float((s.max() - s.min()).detach()) > (1 if strength == 1 else 700)  # beyond what exp bears
    weights = s.transpose(1, 2).unsqueeze(2).expand(-1, -1, 13, -1).masked_fill(~torch.ones(13, 13).tril().bool(), -torch.inf).softmax(-1)
    assert gap(out, weighted(module, x, weights)) < 1e-10


def test_query_free_softmax_in_whole_tiles(monkeypatch):
    x = x_of()
    _, plain = mixed("non-approximate", x)
    monkeypatch.setattr(queryfree, "_tile", lambda device: 16)
    assert gap(mixed("non-approximate", x)[1], plain) < 1e-12


def test_equal_scores_give_the_causal_mean():
    module = make("non-approximate").double().model.layers[0].attn
    torch.nn.init.zeros_(module.k_proj.weight)
    x = x_of()
    mean = torch.ones(13, 13, dtype=torch.float64).tril() / torch.arange(1, 14, dtype=torch.float64)[:, None]
    out = module(x, see(x, None, None, None, None))[0]
    assert gap(out, weighted(module, x, mean.expand(2, 2, -1, -1))) < 1e-12


@pytest.mark.parametrize("mixer", ["gla", "scalar", "retnet", "ungated"])
def test_gated_layers_follow_the_recurrence(mixer):
    x = x_of()
    module, out = mixed(mixer, x, gate_temperature=2.0)
    q, k, v, g = ((x @ m.weight.T).unflatten(-1, (2, -1)) for m in (module.q_proj, module.k_proj, module.v_proj, module.g_proj))
    if mixer in ("gla", "scalar"):
        first, second = module.gk_proj
        gate = torch.sigmoid(x @ first.weight.T @ second.weight.T + second.bias) ** (1 / 2.0)
        gate = gate.unflatten(-1, (2, -1)).expand(-1, -1, -1, 8)
    else:
        fixed = 1 - 2.0 ** torch.tensor([-5.0, -6.0]) if mixer == "retnet" else torch.ones(2)
        gate = fixed.double()[None, None, :, None].expand(2, 13, 2, 8)
    state, rows = torch.zeros(2, 2, 8, 16, dtype=torch.float64), []
    for t in range(13):
        state = gate[:, t, :, :, None] * state + k[:, t, :, :, None] * v[:, t, :, None, :]
        o = (q[:, t, :, None, :] @ state)[:, :, 0] / math.sqrt(8)
        o = o / (o.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        rows.append((o * F.silu(g[:, t])).flatten(1))
    assert gap(out, torch.stack(rows, 1) @ module.o_proj.weight.T) < 1e-9


def test_no_mixing_mixes_nothing_and_has_the_weights_of_attention():
    x, other = x_of(), x_of(seed=5)
    _, out = mixed("mlp", x)
    _, changed = mixed("mlp", torch.cat((other[:, :6], x[:, 6:]), 1))
    assert torch.equal(out[:, 6:], changed[:, 6:])
    count = {name: sum(p.numel() for p in make(name, hidden_size=96).parameters()) for name in ("mlp", "softmax")}
    assert count["mlp"] == count["softmax"]


def test_query_key_norm_bounds_scores():
    module = make(qk_norm=True).double().model.layers[0].attn
    q, k = module.queries_and_keys(x_of() * 1000, module.turns(torch.arange(13)[None], x_of()))
    assert float((q @ k.mT).abs().max()) <= 16 * (1 + 1e-9)


def test_baseline_is_llama():
    ours = make(tie_word_embeddings=False)
    llama = LlamaForCausalLM(
        LlamaConfig(
            **{**PLAIN, "shadow_tokens": None},
            rms_norm_eps=1e-6,
            tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        )
    ).eval()
    names = {"embeddings": "embed_tokens", ".attn.": ".self_attn.", "attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    weights = {}
    for name, value in ours.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new)
        weights[name] = value
    llama.load_state_dict(weights)
    assert gap(ours(tokens()).logits, llama(tokens()).logits) < 1e-5


# --- what must not depend on what ---


def test_random_patterns_do_not_see_the_text_and_static_ones_do():
    patterns = {}
    for mixer in ("random", "fixed", "static"):
        model = make(mixer)
        model.set_attn_implementation("eager")
        a, b = (model(tokens(seed=seed), output_attentions=True).attentions for seed in (0, 1))
        patterns[mixer] = [torch.equal(x, y) for x, y in zip(a, b, strict=True)]
    assert all(patterns["random"])
    assert all(patterns["fixed"])
    assert not any(patterns["static"])


def test_shadow_text_gets_no_gradient_through_its_tokens():
    """With values cut off, nothing but the shadow's embeddings could carry a gradient to tokens that the text does not hold."""
    model = make("fixed", tie_word_embeddings=False).train()
    ids = torch.full((1, 12), 63)
    model(ids, labels=ids).loss.backward()
    assert float(model.model.embeddings.weight.grad[:63].abs().max()) == 0
    assert float(model.model.layers[0].attn.q_proj.weight.grad.abs().max()) > 0


def test_planted_gates():
    """Gate 1 is linear attention; a constant gate is RetNet's; gate 0 at a reset cuts the past off, exactly."""
    gla, ungated = make("gla", num_hidden_layers=1), make("ungated", num_hidden_layers=1)
    with torch.no_grad():
        gla.model.layers[0].attn.gk_proj[1].bias.fill_(1e4)
    missing = ungated.load_state_dict(gla.state_dict(), strict=False)
    assert not missing.missing_keys
    assert gap(gla(tokens()).logits, ungated(tokens()).logits) < 1e-5
    retnet = make("retnet", num_hidden_layers=1, num_attention_heads=1)
    constant = make("scalar", num_hidden_layers=1, num_attention_heads=1, gate_temperature=1.0)
    constant.load_state_dict(retnet.state_dict(), strict=False)
    with torch.no_grad():
        constant.model.layers[0].attn.gk_proj[1].weight.zero_()
        constant.model.layers[0].attn.gk_proj[1].bias.fill_(math.log(31.0))  # σ = 1 − 2^−5
    assert gap(constant(tokens()).logits, retnet(tokens()).logits) < 1e-5


def test_gate_zero_cuts_the_past_off():
    module = make("gla", gate_temperature=1.0).double().model.layers[0].attn
    with torch.no_grad():
        module.gk_proj[0].weight.zero_()
        module.gk_proj[0].weight[:, 0] = 1.0
        module.gk_proj[1].weight.fill_(-1e6 / 16)
        module.gk_proj[1].bias.fill_(5.0)
    x = x_of()
    x[..., 0] = 0.0
    x[:, 6, 0] = 1.0  # the reset

    def later(past):
        whole = torch.cat((past, x[:, 6:]), 1)
        return module(whole, see(whole, None, None, None, None))[0][:, 6:]

    # what is left is the gate's own gradient, a difference of two equal sums (times the slope of 6e4 that makes this gate so sharp)
    assert float(torch.autograd.functional.jacobian(later, x[:, :6]).abs().max()) < 1e-9
    assert torch.equal(later(x[:, :6].flip(1)), later(x[:, :6]))  # permuted: nothing changes
    x[:, 6, 0] = 0.0
    assert float(torch.autograd.functional.jacobian(later, x[:, :6]).abs().max()) > 1e-3


def test_rotation_keeps_distances_alone():
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    queries, keys = ([turns(torch.tensor([[at + s]]), 8, 1e4, torch.float64) for s in (0, 7, 100)] for at in (5, 2))
    dots = [float((rotate(q, a) * rotate(k, b)).sum()) for a, b in zip(queries, keys, strict=True)]
    assert dots == pytest.approx([dots[0]] * 3, rel=1e-9)
