"""Maps of one input: the same outputs and gradients as one by one, whatever is done to a map, and one product for the input's gradient."""

import copy

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from nullius.models import architectures
from nullius.models.architectures import projection
from nullius.models.architectures.projection import bare, project
from nullius.training.processes import Processes

WIDTHS = 6, 4, 10


def maps_of(bias=False):
    torch.manual_seed(0)
    return nn.ModuleDict({name: nn.Linear(8, width, bias) for name, width in zip("abc", WIDTHS, strict=True)}).double()


def gradients_of(maps, make, x, only=None):
    """Outputs, and gradients of x and of the weights."""
    x = x.clone().requires_grad_()
    outputs = make(x)
    sum((y * y.detach().cos()).sum() for y in outputs[:only]).backward()
    return [*outputs, x.grad, *(parameter.grad for parameter in maps.parameters())]


@pytest.fixture
def joined(monkeypatch):
    """How often maps were joined."""
    seen, apply = [], projection._Project.apply
    monkeypatch.setattr(projection._Project, "apply", lambda *given: (seen.append(len(given) - 1), apply(*given))[1])
    return seen


@pytest.mark.parametrize("only", [None, 2])  # 2: nothing comes back from the third
@pytest.mark.parametrize("shape", [(5, 8), (2, 5, 8)])
def test_the_same_as_one_by_one(shape, only, joined):
    maps, x = maps_of(), torch.randn(shape, dtype=torch.float64)
    together = gradients_of(maps, lambda x: project(x, *maps.values()), x, only)
    maps.zero_grad()
    apart = gradients_of(maps, lambda x: tuple(map(x) for map in maps.values()), x, only)
    assert joined == [3]
    for a, b in zip(together, apart, strict=True):
        assert torch.allclose(a, torch.zeros_like(a) if b is None else b, atol=1e-12)


def test_gradients_of_gradients():
    maps = maps_of()
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x, *weights: projection._Project.apply(x, *weights), (x, *maps.parameters()))


def test_frozen_weights_have_no_gradient():
    maps, x = maps_of(), torch.randn(5, 8, dtype=torch.float64)
    maps["b"].weight.requires_grad_(False)
    sum(y.sum() for y in project(x, *maps.values())).backward()
    assert maps["b"].weight.grad is None
    assert torch.allclose(maps["a"].weight.grad, x.sum(0).expand(6, -1))


def _adapted(maps):
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["b"]), maps)


CHANGES = {
    "a hook": lambda maps: maps["a"].register_forward_hook(lambda module, given, made: 2 * made),
    "a hook before": lambda maps: maps["b"].register_forward_pre_hook(lambda module, given: (2 * given[0],)),
    "an adapter": _adapted,
    "a parametrisation": lambda maps: nn.utils.parametrizations.weight_norm(maps["c"]),
    "another forward": lambda maps: setattr(maps["a"], "forward", torch.sin),
    "evaluation": lambda maps: maps.eval(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_maps_are_called_one_by_one(change, joined):
    maps, x = maps_of(), torch.randn(5, 8, dtype=torch.float64)
    CHANGES[change](maps)
    for made, map in zip(project(x, *maps.values()), list(maps.values()), strict=True):
        assert torch.equal(made, map(x))
    assert not joined


def test_biases_are_added(joined):
    maps, x = maps_of(bias=True), torch.randn(5, 8, dtype=torch.float64)
    assert torch.equal(project(x, *maps.values())[1], maps["b"](x))
    assert not joined


def test_bare():
    pair = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert bare(pair)
    pair.register_forward_hook(lambda module, given, made: None)
    assert not bare(pair)
    assert not bare(nn.LayerNorm(2))


def test_under_autocast_products_are_in_its_type(joined):
    maps = maps_of().float()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = project(torch.randn(5, 8), *maps.values())
    sum(y.float().sum() for y in outputs).backward()
    assert {y.dtype for y in outputs} == {torch.bfloat16}
    assert {parameter.grad.dtype for parameter in maps.parameters()} == {torch.float32}
    assert joined == [3]


@pytest.mark.parametrize(
    ("mixer", "count"), [("gla", [5, 2]), ("scalar", [5, 2]), ("retnet", [4, 2]), ("softmax", [3, 2]), ("static", [2, 2])]
)
def test_decoders_train_as_their_plain_form(mixer, count, joined):
    """Loss and every gradient, in float64, against the same weights with a hook on every map, which takes them apart."""
    sizes = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    torch.manual_seed(0)
    body = architectures.create({"mixer": mixer, **sizes}).double().train()
    plain = copy.deepcopy(body)
    seen = []
    for name, module in plain.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda module, given, name=name: seen.append(name))
    ids = torch.randint(40, (2, 17))
    losses = [model(input_ids=ids, labels=ids, use_cache=False).loss for model in (body, plain)]
    assert joined == count * 2  # and none in the plain one
    assert len(seen) == len({name for name, module in plain.named_modules() if isinstance(module, nn.Linear)})
    assert torch.allclose(*losses, rtol=1e-12)
    for loss in losses:
        loss.backward()
    for (name, a), b in zip(body.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-8, atol=1e-12), name


def test_a_hook_on_the_gate_is_called(joined):
    body = architectures.create(
        {"mixer": "gla", "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ).train()
    seen = []
    body.model.layers[0].attn.gk_proj.register_forward_hook(lambda module, given, made: seen.append(made.shape))
    body(input_ids=torch.randint(40, (2, 9)), use_cache=False)
    assert seen == [(2, 9, 16)]
    assert joined == [4, 2]


def test_compiled_parts_are_cut_further_and_are_the_same(monkeypatch):
    parts = [torch.randn(3, width) for width in (512, 512, 1024, 1024, 16)]
    plain = projection.side_by_side(parts)
    seen, cat = [], torch.cat
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(torch, "cat", lambda pieces, dim: (seen.append([piece.shape[-1] for piece in pieces]), cat(pieces, dim))[1])
    assert torch.equal(projection.side_by_side(parts), plain)
    assert seen == [[256, 256, 256, 256, 512, 512, 512, 512, 16]]
    for widths in ((2816, 2816), (1024, 1024, 1024), (512, 512, 1024, 1024), (16, 16)):
        parts = [torch.randn(3, width) for width in widths]
        assert projection.side_by_side(parts).shape[-1] == sum(widths)
        assert len(seen.pop()) >= (9 if widths[0] > 16 else 2)


def test_sharded_decoders_train_as_whole_ones(joined):
    """FSDP2 puts the gathered weights where the maps are looked up, and takes them away again between the passes."""
    sizes = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    torch.manual_seed(0)
    body = architectures.create({"mixer": "gla", "allocation": "odd", **sizes}).train()
    sharded, ids = copy.deepcopy(body), torch.randint(40, (2, 17))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        Processes(0, 1, torch.device("cpu"), dist.device_mesh.init_device_mesh("cpu", (1,))).shard(sharded)
        for model in (body, sharded):
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        for (name, a), b in zip(body.named_parameters(), sharded.parameters(), strict=True):
            assert torch.allclose(a.grad, b.grad.full_tensor(), rtol=1e-5, atol=1e-7), name
    finally:
        dist.destroy_process_group()
    assert joined == [5, 2, 3, 2] * 2
