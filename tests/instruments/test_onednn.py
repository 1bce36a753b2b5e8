"""Linear maps by oneDNN: the same numbers to float32 rounding, the module as it was afterwards, and hands off what they cannot do."""

import copy

import pytest
import torch
from tests.conftest import FAMILIES
from torch import nn

from nullius.instruments import onednn, taps

pytestmark = [pytest.mark.cpu, pytest.mark.skipif(not onednn.available(), reason="this torch has no oneDNN")]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_says_the_same(toys, family):
    """With numbers of tokens that go to oneDNN (128, 504), and one that does not."""
    model = toys[family]
    for rows in (1, 16, 63):
        batch = model.pad(torch.randint(5, 1000, (rows, 8), generator=torch.Generator().manual_seed(rows)).tolist())
        plain = taps.read(model, batch, ["resid_post", "mlp_post"], positions="all")
        with torch.no_grad(), onednn.maps(model.hf):
            changed = sum("forward" in vars(module) for module in model.hf.modules() if isinstance(module, nn.Linear))
            assert changed == sum(isinstance(module, nn.Linear) for module in model.hf.modules())
            taps.read(model, batch, ["resid_post"])  # from the second time on the weights are rearranged
            quick = taps.read(model, batch, ["resid_post", "mlp_post"], positions="all")
        for site in plain:
            assert torch.allclose(plain[site], quick[site], rtol=1e-3, atol=1e-4 * float(plain[site].abs().max()))
        assert not any("forward" in vars(module) for module in model.hf.modules())


class Clamped(nn.Module):
    """Has the parts of a gated block, and is none."""

    def __init__(self):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj, self.act_fn = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8), nn.SiLU()

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)).clamp(max=0.1) * self.up_proj(x))


def test_null_what_only_looks_like_a_gated_block_is_left_its_own_formula():
    torch.manual_seed(0)
    block = Clamped()
    x = torch.randn(4, 32, 8)
    with torch.no_grad():
        plain = block(x)
        with onednn.maps(block):
            assert torch.allclose(block(x), plain, atol=1e-5)


def test_few_numbers_of_tokens_get_a_kernel():
    sizes = [tokens for tokens in range(1, 513) if onednn.suits(torch.empty(tokens, 2))]
    assert sizes == [128, 256, *range(384, 513, 8)]
    assert onednn.suits(torch.empty(8, 16, 2))


def test_other_types_and_kinds_are_left_alone(toy):
    double = copy.deepcopy(toy.hf).double()
    with onednn.maps(double):
        assert not any("forward" in vars(module) for module in double.modules())

    class Quantised(nn.Linear):
        pass

    odd = nn.Sequential(Quantised(2, 2))
    with onednn.maps(odd):
        assert "forward" not in vars(odd[0])


def test_after_an_error_the_module_is_as_it_was(toy):
    with pytest.raises(ZeroDivisionError), onednn.maps(toy.anatomy.layers[0]):
        raise ZeroDivisionError
    assert not any("forward" in vars(module) for module in toy.hf.modules())
