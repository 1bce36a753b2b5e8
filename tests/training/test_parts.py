"""Selected parts: what is named learns, everything else keeps every bit, in every family and with shared keys and values."""

from types import SimpleNamespace

import pytest
import torch
from tests.conftest import FAMILIES

from nullius.errors import UsageError
from nullius.models import architectures
from nullius.models.anatomy import Anatomy
from nullius.training.parts import Parts, only

TOKENS = torch.arange(40).view(4, 10) % 97


def after_a_step(model, parts, optimiser=torch.optim.AdamW):
    """What changed, name -> bool mask, after two steps with heavy weight decay; the model is put back."""
    before = {name: value.detach().clone() for name, value in model.hf.named_parameters()}
    with only(model.hf, parts.masks(model)) as held:
        steps = optimiser(held.parameters, lr=1e-2, weight_decay=0.5)
        for _ in range(2):
            logits = model.hf(input_ids=TOKENS).logits[:, :-1]
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
            held.mask_gradients()
            steps.step()
            held.restore()
    changed = {name: value.detach() != before[name] for name, value in model.hf.named_parameters()}
    with torch.no_grad():
        for name, value in model.hf.named_parameters():
            value.copy_(before[name])
    return changed


@pytest.mark.parametrize("family", FAMILIES)
def test_only_selected_weights_change(toys, family):
    model = toys[family]
    parts = Parts(heads=((0, 1), (0, 3), (2, 0)), mlps=(1,))
    masks = parts.masks(model)
    for name, changed in after_a_step(model, parts).items():
        mask = masks.get(name, torch.zeros_like(changed)) if name in masks else torch.zeros_like(changed)
        mask = torch.ones_like(changed) if mask is None else mask
        assert not (changed & ~mask).any(), name
        if name in masks and "bias" not in name:
            assert changed[mask].float().mean() > 0.9, name


def test_muon_leaves_other_heads_alone(toy):
    parts = Parts(heads=((1, 2),), maps=("q", "o"))
    masks = parts.masks(toy)
    changed = after_a_step(toy, parts, torch.optim.Muon)
    assert all(torch.equal(value, masks[name]) if name in masks else not value.any() for name, value in changed.items())


def test_what_a_head_is(toy):
    """Training a head changes what that head writes, and nothing that the other heads of its layer write."""
    model = toy
    masks = Parts(heads=((1, 2),)).masks(model)
    assert set(masks) == {"model.layers.1.self_attn.q_proj.weight", "model.layers.1.self_attn.o_proj.weight"}
    rows = masks["model.layers.1.self_attn.q_proj.weight"]
    columns = masks["model.layers.1.self_attn.o_proj.weight"]
    assert torch.equal(rows, (torch.arange(32) // 8 == 2)[:, None].expand(32, 32))
    assert torch.equal(columns, (torch.arange(32) // 8 == 2)[None].expand(32, 32))


@pytest.mark.parametrize(
    ("heads", "shared", "kv"),
    [([2], "whole", []), ([2, 3], "whole", [1]), ([2], "any", [1]), ([0, 1, 2, 3], "never", []), ([0, 2, 3], "whole", [1])],
)
def test_shared_keys_and_values(toy, heads, shared, kv):
    """The toy has four query heads and two of keys and values, of eight dimensions each."""
    masks = Parts(heads=tuple((0, head) for head in heads), shared=shared).masks(toy)
    for name in ("k_proj", "v_proj"):
        mask = masks.get(f"model.layers.0.self_attn.{name}.weight")
        trained = [] if mask is None else sorted(set((mask[:, 0].nonzero()[:, 0] // 8).tolist()))
        assert trained == kv


def test_fused_projections_and_biases(toys):
    """GPT-2 keeps q, k and v side by side in one Conv1D; NeoX interleaves them by head."""
    gpt2 = Parts(heads=((0, 1),)).masks(toys["gpt2"])
    fused = gpt2["transformer.h.0.attn.c_attn.weight"][0]
    assert fused.nonzero()[:, 0].tolist() == [i + j for i in (8, 40, 72) for j in range(8)]
    assert torch.equal(gpt2["transformer.h.0.attn.c_attn.bias"], fused)
    assert "transformer.h.0.attn.c_proj.bias" not in gpt2
    neox = Parts(heads=((0, 1),)).masks(toys["gpt_neox"])["gpt_neox.layers.0.attention.query_key_value.weight"][:, 0]
    assert neox.nonzero()[:, 0].tolist() == list(range(24, 48))


def test_heads_whose_keys_and_values_differ_in_width():
    """Gated layers: two heads with keys of 4 channels and values of 8."""
    hf = architectures.create({"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 30, "mixer": "gla"})
    masks = Parts(heads=((0, 1),)).masks(SimpleNamespace(hf=hf, anatomy=Anatomy(hf), name="made"))
    trained = {name.split(".")[-2]: mask.any(1 if "o_proj" not in name else 0).nonzero()[:, 0].tolist() for name, mask in masks.items()}
    second = list(range(8, 16))
    assert trained == {"q_proj": [4, 5, 6, 7], "k_proj": [4, 5, 6, 7], "v_proj": second, "o_proj": second}


def test_a_whole_layer_takes_in_its_heads(toy):
    masks = Parts(heads=((-1, 0), (0, 0)), layers=(2,), final_norm=True).masks(toy)
    assert masks["model.layers.2.self_attn.q_proj.weight"] is None
    assert masks["model.norm.weight"] is None
    assert masks["model.layers.0.self_attn.q_proj.weight"] is not None


def test_flags_are_put_back(toy):
    parameter = next(toy.hf.parameters())
    with only(toy.hf, Parts(mlps=(0,)).masks(toy)) as held:
        assert not parameter.requires_grad
        assert held.count == sum(p.numel() for p in toy.anatomy.mlp(0).parameters())
    assert parameter.requires_grad


PROJECTIONS = {  # of each family, two maps of a layer: one of the attention, one of the feed-forward block
    "llama": ("o_proj", "mlp.gate_proj"),
    "gpt2": ("attn.c_proj", "c_fc"),
    "gpt_neox": ("query_key_value", "dense_4h_to_h"),
    "phi3": ("qkv_proj", "gate_up_proj"),
}


@pytest.mark.parametrize("family", PROJECTIONS)
def test_single_projections(toys, family):
    """Named maps of named layers are trained, biases included, and no gradient is made for anything else."""
    model = toys[family]
    first, second = PROJECTIONS[family]
    parts = Parts(projections=((0, first), (-1, second)))
    anatomy = model.anatomy
    wanted = {
        id(parameter)
        for layer, name in ((0, first), (2, second))
        for own, part in anatomy.layers[layer].named_modules()
        if own.endswith(name)
        for parameter in part.parameters()
    }
    names = {name for name, parameter in model.hf.named_parameters() if id(parameter) in wanted}
    assert len(names) >= 2
    assert dict(parts.masks(model)) == dict.fromkeys(names)
    assert {name for name, changed in after_a_step(model, parts).items() if changed.any()} == names
    with only(model.hf, parts.masks(model)):
        model.hf(input_ids=TOKENS).logits.square().mean().backward()
        assert {name for name, parameter in model.hf.named_parameters() if parameter.grad is not None} == names


def test_a_projection_takes_in_its_heads(toy):
    masks = Parts(heads=((1, 2),), projections=((1, "q_proj"),)).masks(toy)
    assert masks["model.layers.1.self_attn.q_proj.weight"] is None
    assert masks["model.layers.1.self_attn.o_proj.weight"] is not None


def test_a_name_that_several_projections_have(toys):
    with pytest.raises(UsageError, match=r"'c_proj' is 2 linear maps of layer 1 \(attn.c_proj, mlp.c_proj\): write more of the name"):
        Parts(projections=((1, "c_proj"),)).masks(toys["gpt2"])


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (Parts(projections=((0, "gate"),)), "no linear map 'gate' in layer 0 of toy-llama; nearest: gate_proj; there are down_proj, "),
        (Parts(projections=((0, "embed_tokens"),)), "no linear map 'embed_tokens'"),
        (Parts(projections=((0, "input_layernorm"),)), "no linear map 'input_layernorm'"),
        (Parts(projections=((-4, "gate_proj"),)), "layer -4 does not exist: llama has layers 0 to 2"),
        (Parts(heads=((0, 1.0),)), "head 1.0 does not exist"),
        (
            Parts(heads=((0, 1), (1, 3)), maps=("k", "v")),
            "their keys and values, which other heads share, are trained where all of them are named",
        ),
        (
            Parts(heads=((0, 1), (0, 0)), maps=("k",), shared="never"),
            r"their keys, which other heads share, are not to be trained \(shared: never",
        ),
        (Parts(), "nothing is selected"),
        (Parts(heads=((0, 4),)), "head 4 does not exist"),
        (Parts(heads=((3, 0),)), "layer 3"),
        (Parts(mlps=(7,)), "layer 7"),
    ],
)
def test_what_does_not_exist(toy, parts, words):
    with pytest.raises(UsageError, match=words):
        parts.masks(toy)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"heads": (0, 1)}, r"heads are \(layer, head\) pairs, not \(0, 1\)"),
        ({"heads": ((0, 1, 2),)}, r"heads are \(layer, head\) pairs"),
        ({"projections": (0, "gate_proj")}, r"projections are \(layer, name\) pairs"),
        ({"projections": "gate_proj"}, r"projections are \(layer, name\) pairs"),
        ({"mlps": 1}, "mlps must be a tuple or a list, not 1"),
        ({"heads": ((0, 1),), "maps": ("q", "x")}, "q, k, v and o; maps must name some of them, not x"),
        ({"heads": ((0, 1),), "maps": ()}, "must name some of them, not none"),
        ({"heads": ((0, 1),), "shared": "some"}, "shared is 'whole', 'any' or 'never', not 'some'"),
    ],
)
def test_what_is_no_part(given, words):
    with pytest.raises(UsageError, match=words):
        Parts(**given)
