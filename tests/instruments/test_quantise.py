"""Rounding is what it says, touches what it says, and leaves the subject as it was."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nullius.errors import UsageError
from nullius.instruments import quantise


@given(hnp.arrays(np.float32, (3, 5), elements=st.floats(-1e3, 1e3, width=32)), st.integers(2, 8), st.sampled_from([0, 1]))
def test_no_entry_moves_by_more_than_half_a_step(weight, bits, dim):
    rounded = quantise.round_absmax(torch.tensor(weight), bits, dim=dim).numpy()
    step = np.abs(weight).max(dim, keepdims=True) / (2 ** (bits - 1) - 1)
    assert (np.abs(rounded - weight) <= step * 0.5 * (1 + 1e-5) + 1e-30).all()
    levels = rounded / np.where(step > 0, step, 1)
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-4)
    again = quantise.round_absmax(torch.tensor(rounded), bits, dim=dim).numpy()
    np.testing.assert_allclose(again, rounded, rtol=1e-5, atol=1e-30)


def test_int8_is_torchs_own_per_channel_rounding():
    weight = torch.randn(16, 40, generator=torch.Generator().manual_seed(0))
    scale = weight.abs().amax(1) / 127
    reference = torch.fake_quantize_per_channel_affine(weight, scale, torch.zeros(16, dtype=torch.int32), 0, -127, 127)
    torch.testing.assert_close(quantise.round_absmax(weight), reference)


def states(model):
    return {name: value.clone() for name, value in model.hf.state_dict().items()}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("context", [quantise.absmax, quantise.sixteen_bit])
def test_subject_is_restored_bit_for_bit(toys, family, context):
    model = toys[family]
    before, batch = states(model), model.encode(["The city of Osaka is in Japan."])
    with torch.no_grad():
        plain = model.hidden(batch)
        with context(model):
            rounded = model.hidden(batch)
        after = model.hidden(batch)
    assert torch.equal(plain, after)
    assert all(torch.equal(before[name], value) for name, value in states(model).items())
    assert not torch.equal(plain, rounded)
    with pytest.raises(RuntimeError, match="inside"), context(model):
        raise RuntimeError("inside")
    assert all(torch.equal(before[name], value) for name, value in states(model).items())


def test_absmax_rounds_the_blocks_matrices_and_nothing_else(toy):
    before = states(toy)
    with quantise.absmax(toy, 3) as count:
        changed = {name for name, value in toy.hf.state_dict().items() if not torch.equal(before[name], value)}
    assert count == 7 * toy.anatomy.n_layers  # q, k, v, o, gate, up, down
    assert len(changed) == count
    assert all(".layers." in name and name.endswith("_proj.weight") for name in changed)


def test_gpt2_scales_by_output_column(toys):
    model = toys["gpt2"]
    with quantise.absmax(model, 4):
        weight = model.anatomy.layers[0].mlp.c_fc.weight.detach()  # [in, out]
        levels = weight / (weight.abs().amax(0, keepdim=True) / 7)
    assert torch.allclose(levels, levels.round(), atol=1e-4)


def test_fewer_bits_err_more_and_sixteen_are_nearly_exact(toy):
    batch = toy.encode(["A coin is heads up. Anna turns it."])

    def error(context):
        with torch.no_grad():
            plain = toy.hidden(batch)
            with context:
                return float((toy.hidden(batch) - plain).norm() / plain.norm())

    eight, four = error(quantise.absmax(toy, 8)), error(quantise.absmax(toy, 4))
    sixteen, half = error(quantise.sixteen_bit(toy)), error(quantise.sixteen_bit(toy, torch.float16))
    assert half < sixteen < four
    assert eight < four / 4
    assert 0 < half < 0.01


def test_outputs_are_representable_in_sixteen_bits(toy):
    with torch.no_grad(), quantise.sixteen_bit(toy):
        found = toy.hidden(toy.encode(["a b c"]))
    assert torch.equal(found, found.to(torch.bfloat16).float())


def test_bits_out_of_range(toy):
    with pytest.raises(UsageError, match="2 to 16 bits, not 1"), quantise.absmax(toy, 1):
        pass
