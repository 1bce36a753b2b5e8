"""Logits of some tokens: those of the model itself, without a look at the others' rows."""

import pytest
import torch
from tests.conftest import FAMILIES, make_toy

from nullius.models import some_logits

TOKENS = torch.tensor([[5, 9], [9, 3]])


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_they_are_the_models_own(toys, family):
    model = toys[family]
    batch = model.pad([[1, 2, 3], [4, 5, 6]])
    whole = model.logits(batch)
    assert torch.allclose(some_logits.of(model.anatomy.unembed, TOKENS, lambda: model.logits(batch)), whole.gather(1, TOKENS), atol=1e-5)
    assert torch.equal(model.logits(batch), whole)


@torch.no_grad()
def test_rows_of_other_tokens_are_not_read(tokenizer):
    model = make_toy("gpt2", tokenizer)
    batch = model.pad([[3, 5, 9], [9, 9, 3]])
    model.hf.get_output_embeddings().weight[100:] = torch.nan
    assert bool(some_logits.of(model.anatomy.unembed, TOKENS, lambda: model.logits(batch)).isfinite().all())
    assert not bool(model.logits(batch).isfinite().all())


@torch.no_grad()
def test_null_code_that_counts_on_the_whole_vocabulary_gets_it(toys):
    """Logits from behind the projection that another vocabulary would break: all are made, and the tokens' taken from them."""
    model = toys["llama"]
    batch = model.pad([[1, 2, 3], [4, 5, 6]])
    shift = torch.arange(float(len(model.anatomy.unembedding())))
    expected = (model.logits(batch) + shift).gather(1, TOKENS)
    assert torch.allclose(some_logits.of(model.anatomy.unembed, TOKENS, lambda: model.logits(batch) + shift), expected)


def test_what_is_no_linear_map_or_is_somebody_elses_is_left_alone():
    for unembed in (torch.nn.Identity(), torch.nn.Linear(2, 3)):
        unembed.forward = unembed.forward
        with some_logits.only(unembed, slice(1)) as can:
            assert not can
    plain = torch.nn.Linear(2, 3)
    with some_logits.only(plain, torch.tensor([2])) as can:
        assert can
        assert plain(torch.ones(1, 2)).shape == (1, 1)
    assert plain(torch.ones(1, 2)).shape == (1, 3)
