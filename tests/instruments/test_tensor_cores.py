"""Float32 products of halves: as exact as float32 itself, on every input; taken where they can be, and the module as it was afterwards.

The kernels run in a process of their own: on a CPU they are interpreted by Triton, which is chosen at import.
"""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from tests.devices import DEVICE
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from nullius.instruments import patching, tensor_cores
from nullius.models.language_model import LanguageModel

KERNELS = """
import sys
import torch
from nullius.kernels import halves
torch.set_default_device(sys.argv[1])
torch.manual_seed(0)
def error(found, x, w):
    exact = x.double() @ w.double().T
    size = x.double().norm(dim=1)[:, None] * w.double().norm(dim=1)
    return float(((found.double() - exact).abs() / size).max())
for rows, columns, depth in ((130, 70, 128), (1, 200, 64), (5, 1, 2112)):
    x = torch.randn(rows, depth) * torch.logspace(-15, 15, rows)[:, None]  # rows of every size
    x[0, :3] = torch.tensor([0.0, 1e-40, 3e4])  # beside large numbers small ones
    w, bias = torch.randn(columns, depth) * 0.02, torch.randn(columns)
    a, b = halves.split(x), halves.split(w)
    for side, whole in ((a, x), (b, w)):
        back = (side.high.double() + side.low.double()) * side.factor.double()[:, None]
        largest = whole.double().abs().amax(1, keepdim=True)
        assert torch.equal(side.factor, torch.exp2(side.factor.log2().round()))
        assert ((back - whole.double()).abs() <= (2**-23 * whole.double().abs()).maximum(2**-38 * largest)).all()
        assert (side.low.double().abs() <= side.high.double().abs().maximum(torch.tensor(2.0**-13)) * 2**-11).all()
    assert error(halves.product(a, b), x, w) < 3e-7
    alone = halves.product(a, b)
    assert torch.allclose(halves.product(a, b, bias), alone + bias)
# powers of two, and what is a half already, are exact
x = torch.exp2(torch.arange(-3.0, 5.0)).repeat(2, 8)
assert torch.equal(halves.product(halves.split(x), halves.split(x)), x @ x.T)
# the largest and the smallest numbers; zeros; infinities and NaN show in their own rows and nowhere else
x = torch.tensor([3e38, 1e-30, 0.0, float("inf"), float("nan"), 1.0])[:, None].repeat(1, 64)
found = halves.product(halves.split(x), halves.split(torch.full((16, 64), 1e-3)))
assert torch.allclose(found[[0, 1, 2, 5]], torch.tensor([3e38, 1e-30, 0.0, 1.0])[:, None] * 0.064, rtol=1e-6, atol=0)
assert not found[3:5].isfinite().any()
"""


def test_the_kernels():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} | ({"TRITON_INTERPRET": "1"} if DEVICE == "cpu" else {})
    done = subprocess.run([sys.executable, "-c", KERNELS, DEVICE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


class Written:
    """The kernels' arithmetic in torch, for devices without them."""

    @staticmethod
    def split(x):
        scale = torch.exp2(14 - x.abs().amax(1, keepdim=True).clamp(min=1e-30).log2().floor())
        high = (x * scale).half()
        return high, (x * scale - high.float()).half(), 1 / scale

    @staticmethod
    def product(a, b, bias=None):
        (high, low, factor), (other, rest, by) = ([part.float() for part in side] for side in (a, b))
        out = (low @ other.T + high @ rest.T + high @ other.T) * factor * by.T
        return out if bias is None else out + bias


@pytest.fixture
def splits(monkeypatch):
    """Maps are taken over whatever their size; on a CPU by the same arithmetic in torch. Lists the shapes of what was split."""
    shapes = []
    tensor_cores.available(torch.empty(0, device=DEVICE).device)  # which tries the kernels, once
    if DEVICE == "cpu":
        monkeypatch.setattr(tensor_cores, "available", lambda device: True)
        monkeypatch.setattr(tensor_cores, "kernels", lambda: Written)
    kernels = tensor_cores.kernels()
    inner = kernels.split
    monkeypatch.setattr(kernels, "split", lambda x: shapes.append(tuple(x.shape)) or inner(x))
    monkeypatch.setattr(tensor_cores, "WORTH", 0)
    return shapes


@pytest.fixture(scope="module")
def wide(tokenizer):
    """Toys whose maps are deep enough, one with biases."""
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3, "intermediate_size": 128}
    torch.manual_seed(0)
    made = {name: AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **sizes, vocab_size=2000)) for name in ("llama", "qwen2")}
    for hf in made.values():
        for name, parameter in hf.named_parameters():
            parameter.data.mul_(6 if parameter.ndim == 2 and "embed" not in name else 1).add_(0.1 if "bias" in name else 0)
    return {name: LanguageModel.wrap(hf, tokenizer, name) for name, hf in made.items()}


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@torch.no_grad()
def test_a_layer_says_the_same_and_splits_each_input_once(wide, family, splits):
    model = wide[family]
    layer, seen = model.anatomy.layers[1], []
    x = torch.randn(3, 7, 64, device=model.device)
    places = torch.arange(7, device=model.device)[None]
    given = {"position_embeddings": model.anatomy.decoder.rotary_emb(x, places), "attention_mask": None}
    plain = layer(x, **given)
    handle = layer.mlp.up_proj.register_forward_hook(lambda *_: seen.append(1))
    with tensor_cores.maps(layer):
        quick = layer(x, **given)
        assert sorted(splits) == sorted(
            [*(tuple(m.weight.shape) for m in layer.modules() if isinstance(m, nn.Linear)), *[(21, 64)] * 3, (21, 128)]
        )
        again = layer(x, **given)
    handle.remove()
    assert len(splits) == 11 + 4  # weights once
    assert seen == [1, 1]
    assert torch.equal(quick, again)
    assert torch.allclose(quick, plain, rtol=1e-5, atol=3e-6 * float(plain.abs().max()))
    assert not torch.equal(quick, plain)
    assert not any("forward" in vars(module) for module in model.hf.modules())


@torch.no_grad()
def test_what_was_written_into_is_split_again(splits):
    first, second = (nn.Linear(64, 8, device=DEVICE) for _ in range(2))
    x = torch.randn(5, 64, device=DEVICE)
    with tensor_cores.maps(nn.ModuleList([first, second])):
        first(x)
        x.mul_(2)
        found, expected = second(x), nn.functional.linear(x, second.weight, second.bias)
        with torch.inference_mode():
            y = x.clone()
            assert torch.allclose(first(y), nn.functional.linear(x, first.weight, first.bias), atol=1e-5)
            y.mul_(3)
            assert torch.allclose(first(y), nn.functional.linear(3 * x, first.weight, first.bias), atol=1e-5)
    assert torch.allclose(found, expected, atol=1e-5)


@torch.no_grad()
def test_what_cannot_be_taken_over_is_left_alone(splits):
    class Quantised(nn.Linear):
        pass

    class Packed(torch.Tensor):
        pass

    packed = nn.Linear(64, 8, device=DEVICE)
    packed.weight = nn.Parameter(packed.weight.detach().as_subclass(Packed))
    watched = nn.Linear(64, 8, device=DEVICE)
    watched.forward = lambda x: x
    odd = [
        Quantised(64, 8, device=DEVICE),
        nn.Linear(64, 8, dtype=torch.float64, device=DEVICE),
        nn.Linear(48, 8, device=DEVICE),
        packed,
        watched,
    ]
    assert not any(map(tensor_cores.can, odd))
    usual = nn.Linear(64, 8, device=DEVICE)
    with tensor_cores.maps(nn.ModuleList([*odd, usual])):
        assert "forward" in vars(usual)
    assert [module for module in (*odd, usual) if "forward" in vars(module)] == [watched]
    with pytest.raises(ZeroDivisionError), tensor_cores.maps(usual):
        raise ZeroDivisionError
    assert "forward" not in vars(usual)
    with torch.autocast(DEVICE), tensor_cores.maps(usual):
        assert "forward" not in vars(usual)


@torch.no_grad()
def test_small_products_are_left_to_torch(splits, monkeypatch):
    linear = nn.Linear(64, 8, device=DEVICE)
    monkeypatch.setattr(tensor_cores, "WORTH", 64 * 8 * 100)
    with tensor_cores.maps(linear):
        x = torch.randn(99, 64, device=DEVICE)
        assert torch.equal(linear(x), nn.functional.linear(x, linear.weight, linear.bias))
        assert splits == []
        linear(torch.randn(10, 10, 64, device=DEVICE))
    assert splits == [(8, 64), (100, 64)]


@pytest.mark.parametrize("sweep", [patching.residual, patching.heads, patching.neurons])
def test_a_sweep_agrees_with_plain_runs(wide, splits, sweep):
    model = wide["llama"]
    base = torch.randint(5, 2000, (2, 9), generator=torch.Generator().manual_seed(0))
    source = base.clone()
    source[:, 3] += 1
    texts = (model.pad(side.tolist()) for side in (base, source))
    found = sweep(model, *texts, [[5, 6]] * 2, checks=20)
    assert found.gap < 2e-5
    assert float((found.values - found.base[:, None, None]).abs().max()) > 1e-3
    assert splits


def test_a_cpu_has_none():
    assert not tensor_cores.available(torch.device("cpu"))
