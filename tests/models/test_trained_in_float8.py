"""Maps trained with products of eight bits: exact where eight bits are enough, close elsewhere, and outside training what they were."""

import copy

import pytest
import torch
from torch import nn

from nullius.models import architectures
from nullius.models.architectures import float8, projection
from nullius.models.architectures.float8 import Float8Linear, trained_in_float8
from nullius.training import evaluation, processes

GLA = {"size": "gla-340m", "vocab_size": 64, "num_hidden_layers": 2, "hidden_size": 256, "num_attention_heads": 2, "intermediate_size": 128}


def maps_of(*widths, bias=False, exact=True):
    """Maps of 128 channels; exact: weights that eight bits hold."""
    torch.manual_seed(0)
    maps = nn.ModuleList(nn.Linear(128, width, bias=bias) for width in widths)
    if exact:
        for parameter in maps.parameters():
            parameter.data = torch.randint(-4, 5, parameter.shape).float()
    return maps


def gradients_of(maps, make, x, dtype=torch.float32):
    """Outputs, and gradients of x and the weights, of upstream gradients ±1/16 that eight bits hold."""
    maps.to(dtype).train().zero_grad()
    x = x.to(dtype).clone().requires_grad_()
    outputs = make(x)
    torch.manual_seed(1)
    upstream = [torch.randint(0, 2, y.shape).mul(2).sub(1).to(y.dtype) / 16 for y in outputs]
    torch.autograd.backward(list(outputs), upstream)
    return [t.detach().clone() for t in (*outputs, x.grad, *(parameter.grad for parameter in maps.parameters()))]


@pytest.mark.parametrize("shape", [(128, 128), (2, 64, 128)])
@pytest.mark.parametrize("widths", [(128,), (128, 384, 256)])
def test_numbers_that_eight_bits_hold_make_exact_products(widths, shape):
    maps, x = maps_of(*widths), torch.randint(-4, 5, shape).float()
    expected = gradients_of(maps, lambda x: tuple(map(x) for map in maps), x, torch.float64)
    assert trained_in_float8([maps]) == len(widths)
    found = gradients_of(maps, lambda x: projection.project(x, *maps), x)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.double(), b)


@pytest.mark.parametrize("bias", [False, True])
def test_one_map_by_itself(bias):
    maps, x = maps_of(128, bias=bias), torch.randint(-4, 5, (128, 128)).float()
    expected = gradients_of(maps, lambda x: (maps[0](x),), x, torch.float64)
    trained_in_float8([maps])
    for a, b in zip(gradients_of(maps, lambda x: (maps[0](x),), x), expected, strict=True):
        assert torch.equal(a.double(), b)


def test_other_numbers_are_close():
    maps, x = maps_of(128, 256, exact=False), torch.randn(128, 128)
    expected = gradients_of(maps, lambda x: tuple(map(x) for map in maps), x, torch.float64)
    trained_in_float8([maps])
    for a, b in zip(gradients_of(maps, lambda x: projection.project(x, *maps), x), expected, strict=True):
        assert 1e-4 < (a.double() - b).norm() / b.norm() < 0.06


def swiglu_of():
    torch.manual_seed(0)
    maps = nn.ModuleList([nn.Linear(128, 256, bias=False), nn.Linear(128, 256, bias=False), nn.Linear(256, 128, bias=False)])
    return maps, torch.randn(2, 64, 128)


def test_swiglu_is_close_to_itself_in_float64():
    maps, x = swiglu_of()
    expected = gradients_of(maps, lambda x: (projection.swiglu(x, *maps),), x, torch.float64)
    plain = gradients_of(maps, lambda x: (maps[2](nn.functional.silu(maps[0](x)) * maps[1](x)),), x, torch.float64)
    for a, b in zip(plain, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    trained_in_float8([maps])
    for a, b in zip(gradients_of(maps, lambda x: (projection.swiglu(x, *maps),), x), expected, strict=True):
        assert 1e-4 < (a.double() - b).norm() / b.norm() < 0.1


def test_frozen_maps_have_no_gradient_and_let_it_through():
    maps, x = swiglu_of()
    trained_in_float8([maps])
    maps[1].weight.requires_grad_(False)
    maps.train()
    x.requires_grad_()
    projection.swiglu(x, *maps).sum().backward()
    assert maps[1].weight.grad is None
    assert maps[0].weight.grad is not None
    assert x.grad is not None
    assert x.grad.abs().max() > 0


def test_rows_that_do_not_fill_a_tile_stay_in_16_bits():
    maps, x = maps_of(128, 256, exact=False), torch.randn(3, 40, 128)
    expected = gradients_of(maps, lambda x: projection.project(x, *maps), x)
    trained_in_float8([maps])
    for make in (lambda x: projection.project(x, *maps), lambda x: tuple(map(x) for map in maps)):
        for a, b in zip(gradients_of(maps, make, x), expected, strict=True):
            assert torch.allclose(a, b, atol=1e-4)


def test_maps_in_eight_bits_beside_others():
    maps, x = maps_of(128, 48, 256), torch.randint(-4, 5, (2, 64, 128)).float()
    expected = gradients_of(maps, lambda x: tuple(map(x) for map in maps), x, torch.float64)
    maps.float()
    assert trained_in_float8([maps]) == 2
    for a, b in zip(gradients_of(maps, lambda x: projection.project(x, *maps), x), expected, strict=True):
        assert torch.equal(a.double(), b)


def test_a_gradient_that_is_no_number_is_seen():
    maps, x = swiglu_of()
    trained_in_float8([maps])
    maps.train()
    (projection.swiglu(x, *maps).sum() * torch.nan).backward()
    assert maps[0].weight.grad.isnan().any()


def test_a_map_that_somebody_looks_at_is_called():
    maps, x = swiglu_of()
    trained_in_float8([maps])
    seen = []
    maps[2].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    maps.train()
    projection.swiglu(x, *maps)
    assert seen == [(2, 64, 256)]


def test_only_maps_that_fit_and_outside_training_nothing_changes():
    hf = architectures.create(GLA)
    tokens = torch.randint(0, 64, (2, 12))
    before = hf.eval()(input_ids=tokens).logits
    names = set(hf.state_dict())
    odd = nn.ModuleList([nn.Linear(48, 128), nn.Linear(128, 48), nn.Conv1d(128, 128, 1)])
    # of a layer: q, k, v, swish, o; gate, up, down. Not the two narrow maps of the gate
    assert trained_in_float8(list(processes.layers(hf))) == 16
    assert trained_in_float8([odd]) == 0
    assert torch.equal(hf.eval()(input_ids=tokens).logits, before)
    with torch.no_grad():
        assert torch.equal(hf.train()(input_ids=tokens).logits, before)
    assert set(hf.state_dict()) == names
    assert not isinstance(hf.get_output_embeddings(), Float8Linear)
    copied = copy.deepcopy(hf)
    assert isinstance(copied.model.layers[0].mlp.down_proj, Float8Linear)


def test_a_compiled_layer_is_the_same():
    torch.manual_seed(0)
    hf = architectures.create({**GLA, "size": "llama-340m", "num_hidden_layers": 1}).train()
    rows = torch.randint(0, 64, (4, 33))
    trained_in_float8(list(processes.layers(hf)))

    def gradients():
        hf.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            evaluation.loss_of(hf, rows).backward()
        return [parameter.grad.clone() for parameter in hf.parameters()]

    plain = gradients()
    torch._dynamo.reset()
    hf.model.layers[0].compile(backend="aot_eager")  # the graph, its two directions and the operators in it; not the compiler of kernels
    for a, b in zip(gradients(), plain, strict=True):
        assert (a - b).norm() / b.norm() < 0.1


def test_a_decoder_learns_what_it_learns_in_16_bits():
    """The next token is a function of the last one; after 60 steps both know it."""
    losses = {}
    for bits in (8, 16):
        torch.manual_seed(0)
        hf = architectures.create({**GLA, "initializer_range": 0.05}).train()
        if bits == 8:
            trained_in_float8(list(processes.layers(hf)))
        optimiser = torch.optim.AdamW(hf.parameters(), lr=5e-3)
        chosen = torch.Generator().manual_seed(2)
        for _ in range(60):
            start = torch.randint(0, 64, (8, 1), generator=chosen)
            rows = (start + 5 * torch.arange(17)).remainder(64)
            with torch.autocast("cpu", torch.bfloat16):
                loss = evaluation.loss_of(hf, rows)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        losses[bits] = loss.item()
    assert losses[8] < 0.2
    assert abs(losses[8] - losses[16]) < 0.1


def test_upstream_gradients_of_a_mean_are_inside_the_range():
    """N tokens' mean: 1/N each; they are kept as exactly as one token's."""
    maps, x = maps_of(128), torch.ones(4096, 128)
    trained_in_float8([maps])
    maps.train()
    projection.project(x, *maps)[0].mean(0).sum().backward()
    assert torch.equal(maps[0].weight.grad, torch.ones(128, 128))
    assert float8._of_a_mean(torch.zeros(4096, 3)) == 1 / 4096
