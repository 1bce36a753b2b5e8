"""What feeds what: architectures beyond the named families map too, whatever their weights; what does not map is named."""

import copy

import pytest
import torch
from tests.conftest import FAMILIES
from transformers import AutoConfig, AutoModelForCausalLM

from nullius.errors import SubjectError
from nullius.instruments import taps
from nullius.models.anatomy import Anatomy
from nullius.models.language_model import LanguageModel
from nullius.models.loading import _self_test

SMALL = {
    "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3, "intermediate_size": 64,
    "vocab_size": 2000, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
PARALLEL = {"cohere", "phi"}
EXPERTS = {"mixtral", "qwen3_moe"}


def build(family, tokenizer, **more):
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SMALL, **more}))
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if parameter.ndim >= 2 and "embed" not in name:
                parameter.mul_(6)
    return LanguageModel.wrap(hf, tokenizer, family)


@pytest.mark.parametrize(
    "family", ["mistral", "stablelm", "cohere", "starcoder2", "phi", "olmo3", "glm4", "smollm3", "granite", "mixtral", "qwen3_moe"]
)
def test_other_decoders_map(family, tokenizer):
    model = build(family, tokenizer)
    _self_test(model)
    assert model.anatomy.parallel == (family in PARALLEL)
    batch = model.encode(["The capital of France is"])
    sites = taps.read(model, batch, ["pattern", "v", "z"], positions="all")
    values = sites["v"].repeat_interleave(2, dim=-2)
    assert torch.allclose(torch.einsum("lbhqk,lbkhd->lbqhd", sites["pattern"], values), sites["z"], atol=1e-5)
    if family in EXPERTS:
        with pytest.raises(SubjectError, match="it has no mlp_post"):
            model.anatomy.site("mlp_post", 0)


def test_what_does_not_map_is_named(tokenizer):
    for family, what in {
        "mamba": "cannot map mamba: no list of equal layers that hold an attention",
        "bloom": "cannot map bloom: what its layers add to the residual stream is not the sum of two parts",
    }.items():
        with pytest.raises(SubjectError, match=what):
            build(family, tokenizer, **({"n_head": 4, "n_layer": 2} if family == "bloom" else {}))
    with pytest.raises(SubjectError, match="cannot map granite: what its layers add"):
        build("granite", tokenizer, residual_multiplier=0.22)  # parts are scaled before they are added: attn_out is not what is added


def test_attention_sinks_leave_no_values_to_read(tokenizer):
    """Part of each head's attention goes to nothing: z of the first token is not its value, so v cannot be told from it."""
    model = build("gpt_oss", tokenizer, num_local_experts=4, num_experts_per_tok=2, head_dim=8, layer_types=["full_attention"] * 3)
    model.anatomy.site("z", 0)
    with pytest.raises(SubjectError, match="from which v could be read by head"):
        model.anatomy.site("v", 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_map_does_not_hang_on_the_weights(toys, family):
    """The same map from weights that are all zero: where an effect is nothing, names would have to decide."""
    hf = copy.deepcopy(toys[family].hf)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.zero_()
    blank, trained = Anatomy(hf)._flow, toys[family].anatomy._flow
    for name, value in trained.__dict__.items():
        if name != "columns":
            assert getattr(blank, name) == value, name
    assert all(torch.equal(blank.columns[part][1], columns) for part, (_, columns) in trained.columns.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_maps_alike(toys, family):
    model = LanguageModel.wrap(copy.deepcopy(toys[family].hf).to(torch.bfloat16), toys[family].tokenizer)
    _self_test(model)
    assert model.anatomy._flow.attn_out == toys[family].anatomy._flow.attn_out
    assert set(model.anatomy._flow.columns) == {"q", "k", "v"}
