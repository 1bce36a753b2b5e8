"""What feeds what: architectures beyond the named families map too, whatever their weights; what does not map is named."""

import copy

import pytest
import torch
from tests.conftest import FAMILIES
from transformers import AutoConfig, AutoModelForCausalLM

from nullius.errors import SubjectError
from nullius.instruments import direct_effects, taps
from nullius.models.anatomy import Anatomy
from nullius.models.language_model import LanguageModel
from nullius.models.loading import _self_test

SMALL = {
    "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3, "intermediate_size": 64,
    "vocab_size": 2000, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
OLD = {"n_embd": 32, "n_head": 4, "n_layer": 3, "n_positions": 64}
NO_GROUPS = {"num_key_value_heads": 4}
LATENT = {
    **NO_GROUPS, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
SCALED = {"residual_multiplier": 0.22, "embedding_multiplier": 12.0, "logits_scaling": 8.0, "attention_multiplier": 0.3}
DECODERS = {  # name → type, sizes beyond SMALL, and the sites that it has not got
    "apertus": ("apertus", {}, ""),
    "bloom": ("bloom", {"n_head": 4, "n_layer": 3}, ""),
    "codegen": ("codegen", {**OLD, "rotary_dim": 8}, "resid_mid q k v"),
    "cohere": ("cohere", {}, "resid_mid"),
    "deepseek_v3": ("deepseek_v3", LATENT, "q k v mlp_post"),
    "exaone4": ("exaone4", {"head_dim": 8}, ""),
    "falcon, groups": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}, "resid_mid"),
    "falcon, one key": ("falcon", {"multi_query": True}, "resid_mid"),
    "falcon, serial": ("falcon", {"multi_query": False, "parallel_attn": False, "alibi": True}, ""),
    "glm4": ("glm4", {}, ""),
    "gpt_bigcode": ("gpt_bigcode", OLD, ""),
    "gpt_oss": ("gpt_oss", {**EXPERTS, "layer_types": ["full_attention"] * 3}, "mlp_post"),
    "gptj": ("gptj", {**OLD, "rotary_dim": 8}, "resid_mid"),
    "granite": ("granite", {}, ""),
    "granite, scaled": ("granite", SCALED, ""),
    "granitemoe": ("granitemoe", {**EXPERTS, **SCALED}, "mlp_post"),
    "llama4": ("llama4_text", {**EXPERTS, "interleave_moe_layer_step": 2, "intermediate_size_mlp": 64}, "mlp_post"),
    "mistral": ("mistral", {}, ""),
    "mixtral": ("mixtral", {}, "mlp_post"),
    "mpt": ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 64}, ""),
    "nemotron": ("nemotron", {}, ""),
    "olmo3": ("olmo3", {}, ""),
    "opt": ("opt", {**NO_GROUPS, "ffn_dim": 64, "word_embed_proj_dim": 32}, ""),
    "phi": ("phi", {}, "resid_mid"),
    "qwen3_moe": ("qwen3_moe", EXPERTS, "mlp_post"),
    "smollm3": ("smollm3", {}, ""),
    "stablelm": ("stablelm", {}, ""),
    "starcoder2": ("starcoder2", {}, ""),
    "xglm": ("xglm", {"d_model": 32, "attention_heads": 4, "num_layers": 3, "ffn_dim": 64}, ""),
}


def build(family, tokenizer, **more):
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SMALL, **more}))
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if parameter.ndim >= 2 and "embed" not in name:
                parameter.mul_(6)
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))  # biases and gains that are not 0 and 1
    return LanguageModel.wrap(hf, tokenizer, family)


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_other_decoders_map(name, tokenizer):
    """Whatever the family: its own logits, parts that add up to the stream, heads that add up to their block, z = pattern · v, edits that arrive."""
    family, sizes, lacks = DECODERS[name]
    model = build(family, tokenizer, **sizes)
    _self_test(model)
    anatomy, batch = model.anatomy, model.encode(["The capital of France is"])
    plain = model.hf(input_ids=batch.input_ids, use_cache=False).logits
    had = {
        site: [layer for layer in range(3) if anatomy.has(site, layer)] for site in ("resid_mid", "q", "k", "v", "z", "pattern", "mlp_post")
    }
    assert {site for site, layers in had.items() if len(layers) < 3} == set(lacks.split())
    parts = ["resid_pre", "attn_out", "mlp_out", "resid_post", "z"]
    sites = taps.read(model, batch, parts if family == "falcon" else [*parts, "pattern"], positions="all")
    if family == "falcon":  # its own fused attention, beside which nothing is computed
        with pytest.raises(SubjectError, match="the attention of falcon gives no pattern"):
            taps.read(model, batch, ["pattern"])
    assert torch.equal(model.logits(batch, "all"), plain)
    assert torch.allclose(anatomy.logits(anatomy.final_norm(sites["resid_post"][-1])), plain.float(), atol=1e-4)
    size = float(sites["resid_post"].abs().max())
    assert torch.allclose(sites["resid_pre"] + sites["attn_out"] + sites["mlp_out"], sites["resid_post"], atol=1e-5 * size)
    assert torch.allclose(sites["resid_post"][:-1], sites["resid_pre"][1:], atol=1e-6 * size)
    for layer in range(3):
        bias = getattr(anatomy.o_proj(layer), "bias", None)
        projected = torch.einsum("bthd,hdm->btm", sites["z"][layer], anatomy.o_weight(layer)) + (0 if bias is None else bias)
        assert torch.allclose(anatomy.added(layer, "attn", projected), sites["attn_out"][layer], atol=1e-4), layer
    if had["resid_mid"]:
        mid = taps.read(model, batch, ["resid_mid"], positions="all")["resid_mid"]
        assert torch.allclose(sites["resid_pre"] + sites["attn_out"], mid, atol=1e-5 * size)
        with taps.edit(model, "resid_mid", 1, torch.zeros_like):
            edited = taps.read(model, batch, ["mlp_out", "resid_post"], [1], positions="all")
        assert torch.allclose(edited["mlp_out"], edited["resid_post"], atol=1e-5 * size)
    if len(had["v"]) == 3 and family != "falcon":
        values = taps.read(model, batch, ["v"], positions="all")["v"].repeat_interleave(4 // anatomy.n_kv_heads, dim=-2)
        assert torch.allclose(torch.einsum("lbhqk,lbkhd->lbqhd", sites["pattern"], values), sites["z"], atol=1e-4)
    for site in ("attn_out", "mlp_out", *(["mlp_post"] if 1 in had["mlp_post"] else [])):
        with taps.edit(model, site, 1, lambda value: value + 0.0):
            assert torch.allclose(model.logits(batch, "all"), plain, atol=1e-4), site
        with taps.edit(model, site, 1, torch.zeros_like):
            seen = taps.read(model, batch, ["resid_pre", "attn_out", "mlp_out", "resid_post"], [1], positions="all")
        rest = (
            seen["resid_post"]
            - seen["resid_pre"]
            - (seen["attn_out"] if site != "attn_out" else 0)
            - (seen["mlp_out"] if site == "attn_out" else 0)
        )
        if site != "mlp_post":
            assert float(rest.abs().max()) < 1e-5 * size, site
        assert not torch.equal(seen["resid_post"][0], sites["resid_post"][1]), site
    if 1 not in had["mlp_post"]:
        with pytest.raises(SubjectError, match="it has no mlp_post"):
            anatomy.site("mlp_post", 1)
    if "q" in lacks:
        with pytest.raises(SubjectError, match="has no map from which q could be read by head"):
            anatomy.site("q", 0)


def test_what_does_not_map_is_named(tokenizer):
    for family, sizes, what in (
        ("mamba", {}, "cannot map mamba: no list of layers that hold an attention"),
        ("rwkv", {"attention_hidden_size": 32}, "cannot map rwkv: what its layers add to the residual stream is not the sum of two parts"),
        ("openai-gpt", OLD, "cannot map openai-gpt: no final norm beside the layers"),
        (
            "gemma4_text",
            {"head_dim": 8, "vocab_size_per_layer_input": 9},
            "cannot map gemma4_text: what its layers add to the residual stream is not the",
        ),
    ):
        with pytest.raises(SubjectError, match=what):
            build(family, tokenizer, **sizes)


DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "head_dim": 8}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_expand": 2, "mamba_n_groups": 1}
HYBRIDS = {
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
    "qwen3_next": {
        **EXPERTS,
        **DELTA,
        "shared_expert_intermediate_size": 16,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    },
    "jamba": {**EXPERTS, "num_experts_per_tok": 1, "mamba_d_state": 4, "mamba_dt_rank": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
}


@pytest.mark.parametrize("family", HYBRIDS)
@torch.no_grad()
def test_layers_that_do_not_attend_have_no_heads(family, tokenizer):
    """Convolutions and recurrences between attentions: the stream and what is added to it are there in every layer, heads where there are some."""
    model = build(family, tokenizer, **HYBRIDS[family])
    _self_test(model)
    batch = model.encode(["The capital of France is"])
    plain = model.hf(input_ids=batch.input_ids, use_cache=False).logits
    sites = taps.read(model, batch, ["resid_pre", "resid_mid", "attn_out", "mlp_out", "resid_post", "logits"], positions="all")
    size = float(sites["resid_post"].abs().max())
    assert torch.equal(sites["logits"], plain)
    assert torch.allclose(sites["resid_pre"] + sites["attn_out"], sites["resid_mid"], atol=1e-5 * size)
    assert torch.allclose(sites["resid_mid"] + sites["mlp_out"], sites["resid_post"], atol=1e-5 * size)
    z = taps.read(model, batch, ["z"], [1], positions="all")["z"][0]
    attention = taps.read(model, batch, ["attn_out"], [1], positions="all")["attn_out"][0]
    assert torch.allclose(model.anatomy.added(1, "attn", torch.einsum("bthd,hdm->btm", z, model.anatomy.o_weight(1))), attention, atol=1e-4)
    with pytest.raises(SubjectError, match=f"layer 2 of {family} mixes tokens by .*: it has no z"):
        taps.read(model, batch, ["z"], [1, 2])
    with pytest.raises(SubjectError, match=f"layer 0 of {family} mixes tokens by .*: it has no heads"):
        model.anatomy.o_weight(0)
    with taps.edit(model, "attn_out", 0, torch.zeros_like):
        assert not torch.equal(model.logits(batch, "all"), plain)
    parts = direct_effects.decompose(model, ["The capital of France is"], [5], [7])
    assert torch.allclose(parts.total, parts.logit, atol=1e-4)
    assert float(parts.heads[:, [0, 2]].abs().max()) == 0 < float(parts.heads[:, 1].abs().min())
    assert float(parts.attention_bias[:, 1].abs().max()) < 1e-4


def test_heads_of_different_widths_are_read_layer_by_layer(tokenizer):
    """Gemma 4 without its per-layer inputs: wide heads where a layer looks at the whole text."""
    more = {"head_dim": 8, "global_head_dim": 16, "hidden_size_per_layer_input": 0, "num_global_key_value_heads": None}
    model = build("gemma4_text", tokenizer, **more, layer_types=["sliding_attention", "sliding_attention", "full_attention"])
    _self_test(model)
    batch = model.encode(["The capital of France is"])
    assert taps.read(model, batch, ["z"], [0, 1])["z"].shape == (2, 1, 4, 8)
    assert taps.read(model, batch, ["z"], [2])["z"].shape == (1, 1, 4, 16)
    assert taps.read(model, batch, ["resid_post"])["resid_post"].shape == (3, 1, 32)
    with pytest.raises(SubjectError, match=r"z of layers 0, 1 and 2 differs in width \(8, 16\): read them apart"):
        taps.read(model, batch, ["z"])
    with pytest.raises(SubjectError, match=r"the layers of gemma4_text have heads of different widths \(8, 16\)"):
        _ = model.anatomy.d_head


def test_sinks_and_normed_values_still_tell_the_heads_apart(tokenizer):
    """Part of each head's attention goes to nothing (GPT-OSS): z of the first token is a share of its value."""
    model = build("gpt_oss", tokenizer, **EXPERTS, layer_types=["full_attention"] * 3)
    sites = taps.read(model, model.encode(["The capital of France is"]), ["pattern"], positions="all")
    assert bool((sites["pattern"].sum(-1) < 0.99).all())


def test_a_pattern_that_only_returns_is_read_and_not_edited(tokenizer):
    model = build("gptj", tokenizer, **OLD, rotary_dim=8)
    batch = model.encode(["The capital of France is"])
    with pytest.raises(SubjectError, match="of gptj can be read, not edited"), taps.edit(model, "pattern", 1, lambda pattern: pattern):
        model.hidden(batch)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_map_does_not_hang_on_the_weights(toys, family):
    """The same map from weights that are all zero: where an effect is nothing, names would have to decide."""
    hf = copy.deepcopy(toys[family].hf)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.zero_()
    blank, trained = Anatomy(hf)._flow(0), toys[family].anatomy._flow(0)
    for name, value in trained.__dict__.items():
        if name != "columns":
            assert getattr(blank, name) == value, name
    assert all(torch.equal(blank.columns[part][1], columns) for part, (_, columns) in trained.columns.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_maps_alike(toys, family):
    model = LanguageModel.wrap(copy.deepcopy(toys[family].hf).to(torch.bfloat16), toys[family].tokenizer)
    _self_test(model)
    assert model.anatomy._flow(0).attn_out == toys[family].anatomy._flow(0).attn_out
    assert set(model.anatomy._flow(0).columns) == {"q", "k", "v"}
