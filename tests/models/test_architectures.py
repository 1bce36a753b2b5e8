"""The project's decoder: every mixer against independent mathematics in float64, decoding, padding, packing, saving, loading, anatomy."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import nullius
from nullius.errors import NulliusError, SubjectError, UsageError
from nullius.instruments import taps
from nullius.models import architectures
from nullius.models.architectures import MIXERS, queryfree
from nullius.models.architectures.context import see
from nullius.models.architectures.mixers import rotate, turns
from nullius.models.language_model import LanguageModel

WIDTH, VOCABULARY = 32, 64
PLAIN = {"hidden_size": WIDTH, "num_attention_heads": 2, "num_hidden_layers": 3, "vocab_size": VOCABULARY, "max_position_embeddings": 64}
PLAIN |= {"initializer_range": 0.3, "shadow_tokens": list(range(64)), "intermediate_size": 48}
CASES = [(name, "uniform") for name in MIXERS] + [(name, "odd") for name in MIXERS[1:]]


def make(mixer="softmax", allocation="uniform", **changes):
    torch.manual_seed(0)
    return architectures.create({**PLAIN, "mixer": mixer, "allocation": allocation, **changes}).eval()


def tokens(rows=2, length=19, seed=0):
    return torch.randint(1, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def gap(a, b):
    return float(((a - b).abs().max() / b.abs().max()).detach())


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


# --- the decoder as a whole ---


@pytest.mark.parametrize(("mixer", "allocation"), CASES)
def test_step_by_step_padded_packed_and_generated(mixer, allocation):
    model, ids = make(mixer, allocation, short_conv=3), tokens()
    full = model(ids, use_cache=False).logits
    out = model(ids[:, :7], use_cache=True)
    parts = [out.logits]
    for t in range(7, 19):
        out = model(ids[:, t : t + 1], past_key_values=out.past_key_values, use_cache=True)
        parts.append(out.logits)
    assert gap(torch.cat(parts, 1), full) < 1e-4
    mask = torch.ones(2, 24, dtype=torch.long)
    mask[0, :5], mask[1, :2] = 0, 0
    padded = torch.zeros(2, 24, dtype=torch.long)
    padded[0, 5:], padded[1, 2:] = ids[0], torch.cat((ids[1], ids[1, :3]))
    logits = model(padded, attention_mask=mask, use_cache=False).logits
    assert gap(logits[0, 5:], full[0]) < 1e-4
    assert gap(logits[1, 2:21], full[1]) < 1e-4
    packed = model(ids[:1], cu_seqlens=torch.tensor([0, 8, 19]), use_cache=False).logits
    assert gap(packed, torch.cat((model(ids[:1, :8]).logits, model(ids[:1, 8:]).logits), 1)) < 1e-4
    made = model.generate(padded, attention_mask=mask, max_new_tokens=5, do_sample=False, pad_token_id=0)[:, 24:]
    grown = ids[:1]
    for _ in range(5):
        grown = torch.cat((grown, model(grown, use_cache=False).logits[:, -1:].argmax(-1)), 1)
    assert torch.equal(made[0], grown[0, 19:])
    assert model.generate(ids, max_new_tokens=3, num_beams=2, do_sample=False, pad_token_id=0).shape == (2, 22)


@pytest.mark.parametrize(
    ("mixer", "allocation"), [("gla", "uniform"), ("gla", "odd"), ("non-approximate", "even"), ("random", "odd"), ("fixed", "uniform")]
)
def test_saved_and_loaded(mixer, allocation, tokenizer, tmp_path):
    torch.manual_seed(0)
    vocabulary = len(tokenizer)
    model = architectures.create({**PLAIN, "mixer": mixer, "allocation": allocation, "vocab_size": vocabulary}).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    subject = nullius.load(tmp_path, "cpu")
    assert type(subject.hf) is type(model)
    assert subject.hf.config.mixers == model.config.mixers
    assert torch.equal(subject.hf(tokens()).logits, model(tokens()).logits)
    assert len(subject.generate(["a b"], 3)) == 1


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    mixer=st.sampled_from(["gla", "non-approximate", "random"]),
    seed=st.integers(0, 99),
)
def test_packed_and_padded_rows_come_out_as_alone(lengths, mixer, seed):
    """For any lengths: packed into one row, or padded on either side to one width, each text has the logits that it has alone."""
    model, ids = make(mixer, "odd"), tokens(1, sum(lengths), seed)[0]
    texts = ids.split(lengths)
    alone = [model(text[None], use_cache=False).logits[0] for text in texts]
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    assert gap(model(ids[None], cu_seqlens=offsets, use_cache=False).logits[0], torch.cat(alone)) < 1e-4
    width = max(lengths) + 1
    for left in (True, False):
        places = [slice(width - n, width) if left else slice(0, n) for n in lengths]
        batch, mask = torch.zeros(len(texts), width, dtype=torch.long), torch.zeros(len(texts), width, dtype=torch.long)
        for row, (place, text) in enumerate(zip(places, texts, strict=True)):
            batch[row, place], mask[row, place] = text, 1
        logits = model(batch, attention_mask=mask, use_cache=False).logits
        assert gap(torch.cat([logits[row, place] for row, place in enumerate(places)]), torch.cat(alone)) < 1e-4


def test_gradients_with_and_without_checkpointing():
    for mixer in ("gla", "random"):
        found = []
        for checkpointing in (False, True):
            model = make(mixer, "odd").train()
            if checkpointing:
                model.activation_checkpointing_enable() if hasattr(
                    model, "activation_checkpointing_enable"
                ) else model.gradient_checkpointing_enable()
            model(tokens(), labels=tokens()).loss.backward()
            found.append([p.grad for p in model.parameters()])
        assert all(a is not None and torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))


def test_loss_is_that_of_the_next_token():
    model, ids = make("gla"), tokens()
    assert float(model(ids, labels=ids).loss) == pytest.approx(
        float(F.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())), rel=1e-5
    )


def test_tied_and_untied():
    model = make()
    assert model.lm_head.weight is model.model.embeddings.weight
    model = make(tie_word_embeddings=False)
    assert model.lm_head.weight is not model.model.embeddings.weight


def test_chunks_equal_recurrence_over_long_texts():
    """Longer than one chunk in one pass (chunks), and token by token (recurrence)."""
    model = make("gla", gate_temperature=0.5)
    ids = tokens(1, 150)
    out, parts = model(ids[:, :1], use_cache=True), []
    parts.append(out.logits)
    for t in range(1, 150):
        out = model(ids[:, t : t + 1], past_key_values=out.past_key_values)
        parts.append(out.logits)
    assert gap(torch.cat(parts, 1), model(ids, use_cache=False).logits) < 1e-3


def test_patterns_where_there_are_any():
    model = make("approximate", "odd")
    model.set_attn_implementation("eager")
    out = model(tokens(), output_attentions=True, output_hidden_states=True)
    assert [p.shape for p in out.attentions] == [(2, 2, 19, 19)] * 3
    assert all(torch.allclose(p.sum(-1), torch.ones(2, 2, 19), atol=1e-5) for p in out.attentions)
    assert len(out.hidden_states) == 4
    model.set_attn_implementation("sdpa")
    assert gap(out.logits, model(tokens()).logits) < 1e-5
    model = make("gla", "even")
    model.set_attn_implementation("eager")
    assert [p is None for p in model(tokens(), output_attentions=True).attentions] == [False, True, False]


def test_skipped_layers_leave_the_others():
    model = make("mlp", "odd")
    whole = model(tokens()).logits
    with architectures.skipping(model, [0, 2]):
        some = model(tokens(), use_cache=False).logits
        with pytest.raises(NulliusError, match="step by step"):
            model(tokens(), use_cache=True)
    alone = make("softmax", num_hidden_layers=1)
    alone.model.layers[0] = model.model.layers[1]
    alone.model.embeddings, alone.model.norm, alone.lm_head = model.model.embeddings, model.model.norm, model.lm_head
    assert gap(some, alone(tokens(), use_cache=False).logits) < 1e-6
    assert torch.equal(model(tokens()).logits, whole)
    with pytest.raises(UsageError, match="layer 3 does not exist"), architectures.skipping(model, [3]):
        pass


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


# --- names, configurations, errors ---


def test_allocations():
    named = {pattern: architectures.allocate(pattern, 24) for pattern in architectures.ALLOCATIONS}
    assert {pattern: len(layers) for pattern, layers in named.items()} == {
        "uniform": 24, "odd": 12, "even": 12, "top": 12, "middle": 12, "bottom": 12, "fourth": 6, "first": 1, "last": 1, "ends": 2
    }  # fmt: skip
    assert named["odd"][:2] == [0, 2]
    assert named["fourth"] == [3, 7, 11, 15, 19, 23]
    assert named["middle"] == list(range(6, 18))
    assert named["top"][0] == 12


@pytest.mark.parametrize(
    ("name", "millions"),
    [("gla-340m", 340), ("llama-340m", 340), ("gla-1.3b", 1340), ("llama-1.3b", 1340), ("qwen-500m", 500), ("qwen-1.7b", 1700)],
)
def test_sizes_are_those_of_the_papers(name, millions):
    with torch.device("meta"):
        model = architectures.create(name)
    count = sum(p.numel() for p in model.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.12)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("gla-340", "no architecture 'gla-340'; nearest: gla-340m"),
        ({"mixer": "gls"}, "no mixer 'gls'; nearest: gla"),
        ({"hiden_size": 3}, "no key 'hiden_size'; nearest: hidden_size"),
        ({"hidden_size": 100, "num_attention_heads": 16}, "hidden_size 100 must be a multiple"),
        ({"mixer": "fixed"}, "need shadow_tokens"),
        ({"mixer": "random", "base": "gla", "allocation": "odd"}, "share a decoder with softmax only"),
        ({"allocation": "od"}, "no allocation 'od'; nearest: odd"),
        ({"mixers": ["gla"], "num_hidden_layers": 2}, "mixers names 1 layers"),
        ({"hidden_size": "many"}, "hidden_size must be a whole number above 0, got 'many'"),
        ({"model_type": "llama"}, "not an architecture of this project"),
    ],
)
def test_bad_configurations_are_one_line(wanted, message):
    with pytest.raises(UsageError, match=message) as caught:
        architectures.create(wanted)
    assert "\n" not in str(caught.value)


def test_bad_input_is_one_line():
    model = make("random")
    with pytest.raises(NulliusError, match="at most 64 tokens"):
        model(tokens(1, 65))
    with pytest.raises(NulliusError, match=r"attention_mask must be \[batch, tokens\] = \[2, 19\]"):
        model(tokens(), attention_mask=torch.ones(2, 5))
    with pytest.raises(NulliusError, match="batch of 1"):
        model(tokens(), cu_seqlens=torch.tensor([0, 19]))
    with pytest.raises(NulliusError, match="input_ids or inputs_embeds"):
        model()


def test_created_from_a_name_with_changes():
    config = architectures.named("gla-340m", num_hidden_layers=2, vocab_size=100)
    assert (config.mixers, config.vocab_size, config.intermediate_size, config.hidden_size) == (["gla"] * 2, 100, 2816, 1024)
    again = AutoConfig.for_model(**config.to_dict())
    assert again.mixers == config.mixers
    assert isinstance(
        AutoModelForCausalLM.from_config(architectures.named("llama-340m", num_hidden_layers=1, vocab_size=9)),
        architectures.DecoderForCausalLM,
    )


def test_rotation_keeps_distances_alone():
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    queries, keys = ([turns(torch.tensor([[at + s]]), 8, 1e4, torch.float64) for s in (0, 7, 100)] for at in (5, 2))
    dots = [float((rotate(q, a) * rotate(k, b)).sum()) for a, b in zip(queries, keys, strict=True)]
    assert dots == pytest.approx([dots[0]] * 3, rel=1e-9)


# --- anatomy ---


@pytest.mark.parametrize(("mixer", "allocation"), [*CASES])
def test_anatomy(mixer, allocation, tokenizer):
    torch.manual_seed(0)
    model = LanguageModel.wrap(
        architectures.create({**PLAIN, "mixer": mixer, "allocation": allocation, "vocab_size": len(tokenizer)}), tokenizer
    )
    from nullius.models.loading import _self_test

    with torch.no_grad():
        _self_test(model)
    batch = model.encode(["the river rose in the night", "a"])
    own = model.anatomy.attn(2).head_sites
    for site in ("q", "k", "v", "z", "pattern"):
        if site in own:
            value = taps.read(model, batch, [site], layers=[2])[site]
            assert value.shape[2] == own[site]
        else:
            with pytest.raises(SubjectError, match=f"layer 2 mixes tokens by {model.anatomy.attn(2).name}: it has no {site}"):
                model.anatomy.site(site, 2)
    assert model.anatomy.has("mlp_post", 0)
    assert not model.anatomy.parallel


# --- published checkpoints, and Mamba ---

FLA = {
    "architectures": ["GLAForCausalLM"], "attn": None, "attn_mode": "chunk", "bos_token_id": 1, "clamp_min": None, "conv_size": 4,
    "elementwise_affine": True, "eos_token_id": 2, "expand_k": 0.5, "expand_v": 1, "feature_map": None, "fuse_cross_entropy": True,
    "fuse_norm": True, "hidden_act": "swish", "hidden_ratio": 4, "hidden_size": 64, "initializer_range": 0.02, "intermediate_size": None,
    "max_position_embeddings": 2048, "model_type": "gla", "norm_eps": 1e-6, "num_heads": 2, "num_hidden_layers": 2, "num_kv_heads": None,
    "tie_word_embeddings": False, "torch_dtype": "float32", "transformers_version": "4.42.0", "use_cache": True, "use_gk": True,
    "use_gv": False, "use_output_gate": True, "use_short_conv": False,
}  # fmt: skip


def published(folder, tokenizer, vocabulary, **changes):
    """A checkpoint with the names and shapes of flash-linear-attention's GLAForCausalLM."""
    d, inner, generator = 64, 256, torch.Generator().manual_seed(3)
    shapes = {"model.embeddings.weight": (vocabulary, d), "model.norm.weight": (d,), "lm_head.weight": (vocabulary, d)}
    for i in range(2):
        at = f"model.layers.{i}"
        shapes |= {f"{at}.attn_norm.weight": (d,), f"{at}.mlp_norm.weight": (d,), f"{at}.attn.g_norm_swish_gate.weight": (d // 2,)}
        shapes |= {f"{at}.attn.{name}_proj.weight": (d // 2 if name in "qk" else d, d) for name in "qkvgo"}
        shapes |= {
            f"{at}.attn.gk_proj.0.weight": (16, d),
            f"{at}.attn.gk_proj.1.weight": (d // 2, 16),
            f"{at}.attn.gk_proj.1.bias": (d // 2,),
        }
        shapes |= {f"{at}.mlp.{name}_proj.weight": (d, inner) if name == "down" else (inner, d) for name in ("gate", "up", "down")}
    weights = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**FLA, "vocab_size": vocabulary, **changes}))
    tokenizer.save_pretrained(folder)
    return weights


def test_published_checkpoints_load(tokenizer, tmp_path):
    weights = published(tmp_path / "gla", tokenizer, len(tokenizer))
    subject = nullius.load(tmp_path / "gla", "cpu")
    assert subject.hf.config.intermediate_size == 256
    size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": len(tokenizer), "intermediate_size": 256}
    ours = architectures.create({**size, "mixer": "gla", "tie_word_embeddings": False}).eval()
    ours.load_state_dict(weights)
    assert torch.equal(subject.hf(tokens()).logits, ours(tokens()).logits)
    assert len(subject.generate(["a b"], 3)) == 1
    subject.hf.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    again = nullius.load(tmp_path / "again", "cpu")
    assert torch.equal(again.hf(tokens()).logits, ours(tokens()).logits)
    with pytest.raises(SubjectError, match="has no pattern"):
        subject.anatomy.site("pattern", 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_output_gate": False}, "use_output_gate = False is not supported"),
        ({"feature_map": "relu"}, "feature_map = 'relu' is not supported"),
        ({"num_kv_heads": 1}, "fewer key heads"),
        ({"hidden_size": 128}, "its weights have other sizes than its config.json says"),
    ],
)
def test_other_published_variants_are_refused(changes, message, tokenizer, tmp_path):
    published(tmp_path, tokenizer, len(tokenizer), **changes)
    with pytest.raises(SubjectError, match=message) as caught:
        nullius.load(tmp_path, "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_mamba_runs_or_says_why_not(family, tokenizer, tmp_path):
    small = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": len(tokenizer), "state_size": 8}
    small |= {"num_heads": 4, "head_dim": 16, "n_groups": 1} if family == "mamba2" else {}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **small))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(SubjectError, match=f"cannot map {family}: ") as caught:
        nullius.load(tmp_path, "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mixer", ["gla", "softmax", "non-approximate"])
def test_compiled_layers_compute_the_same_from_one_piece_of_code(mixer):
    """Ten layers, more than torch would compile one by one before it gives up. A layer is one graph, its operator one node of it."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 10, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 30}
    model = architectures.create({**shape, "mixer": mixer}).train()
    ids = torch.randint(0, 30, (2, 20))

    def gradients():
        model.zero_grad()
        loss = model(input_ids=ids, use_cache=False).logits.square().mean()
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()])

    plain = gradients()
    compiled = []

    def backend(graph, _inputs):
        compiled.append(graph)
        return graph.forward

    for layer in model.model.layers:
        layer.compile(backend=backend)
    traced = gradients()
    assert traced[0] == pytest.approx(plain[0], rel=1e-6)
    assert torch.allclose(traced[1], plain[1], atol=1e-7)
    assert len(compiled) == 1
    torch._dynamo.reset()


@pytest.mark.parametrize("mixer", ["gla", "non-approximate"])
def test_compiled_layers_take_packed_sequences(mixer):
    """Two packings in turn: their offsets are no part of the graphs."""
    torch._dynamo.reset()
    model = architectures.create({"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 30, "mixer": mixer})
    ids, offsets = torch.randint(0, 30, (1, 12)), (torch.tensor([0, 5, 12]), torch.tensor([0, 2, 7, 12]))
    plain = [model(input_ids=ids, cu_seqlens=each, use_cache=False).logits for each in offsets]
    for layer in model.model.layers:
        layer.compile(backend="eager")
    for each, expected in zip(offsets, plain, strict=True):
        assert torch.allclose(model(input_ids=ids, cu_seqlens=each, use_cache=False).logits, expected, atol=1e-6)
    torch._dynamo.reset()


def test_under_autocast_stream_and_norms_have_the_type_of_the_maps():
    model = architectures.create({"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 30, "mixer": "gla"})
    ids, seen = torch.randint(0, 30, (2, 9)), []
    for part in (model.model.layers[1], model.model.layers[1].attn_norm, model.model.norm):
        part.register_forward_hook(lambda _m, args, out: seen.extend((args[0].dtype, out.dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        narrow = model(input_ids=ids, use_cache=False).logits
    assert set(seen) == {torch.bfloat16}
    seen.clear()
    wide = model(input_ids=ids, use_cache=False).logits
    assert set(seen) == {torch.float32}
    assert torch.allclose(narrow.float(), wide, atol=0.02)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
