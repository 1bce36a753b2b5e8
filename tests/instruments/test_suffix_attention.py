"""Attention in products: what the fused kernel gives, grouped heads and prefixes included; what it does not know goes to that kernel."""

import pytest
import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from nullius.instruments import suffix_attention

pytestmark = pytest.mark.cpu


class Module(nn.Module):
    def __init__(self, shared):
        super().__init__()
        self.num_key_value_groups, self.is_causal = shared, True


def case(rows=6, heads=4, groups=2, length=3, keys=5, width=8):
    torch.manual_seed(0)
    query, key, value = (torch.randn(rows, n, t, width) for n, t in ((heads, length), (groups, keys), (groups, keys)))
    blind = torch.arange(keys)[None] > torch.arange(keys - length, keys)[:, None]
    mask = torch.zeros(length, keys).masked_fill(blind, torch.finfo(torch.float32).min)[None, None]
    return Module(heads // groups), query, key, value, mask


@pytest.mark.parametrize("shape", [{}, {"groups": 4}, {"groups": 1}, {"length": 1}, {"length": 5}])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_it_is_the_fused_kernel(shape, scaling):
    module, query, key, value, mask = case(**shape)
    found, _ = suffix_attention.attend(module, query, key, value, mask, scaling=scaling, dropout=0.0)
    expected, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, mask, scaling=scaling, dropout=0.0)
    assert torch.allclose(found, expected, atol=1e-6)


def test_a_mask_of_each_row_goes_to_the_fused_kernel():
    module, query, key, value, mask = case()
    each = mask.repeat(6, 1, 1, 1)
    each[2, ..., 0] = torch.finfo(torch.float32).min
    found, _ = suffix_attention.attend(module, query, key, value, each)
    assert torch.equal(found, ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, each)[0])


def test_what_it_does_not_know_is_not_dropped():
    """Not a soft cap that is given and then forgotten: the fused kernel refuses it."""
    module, query, key, value, mask = case()
    with pytest.raises(ValueError, match="softcap"):
        suffix_attention.attend(module, query, key, value, mask, softcap=50.0)


def test_the_model_is_as_it_was_afterwards(toy, toys):
    before = toy.hf.config._attn_implementation
    with suffix_attention.in_products(toy):
        assert toy.hf.config._attn_implementation == suffix_attention.NAME
    assert toy.hf.config._attn_implementation == before == "sdpa"
    capped = toys["gemma2"]  # whose attention runs another way
    kernel = capped.hf.config._attn_implementation
    with suffix_attention.in_products(capped):
        assert capped.hf.config._attn_implementation == (suffix_attention.NAME if kernel == "sdpa" else kernel)
