"""Texts that begin alike: the run whose beginning is made once is that of whole texts, everywhere; where they do not, nothing is shared."""

import pytest
import torch

from nullius.instruments import alike, wavefront
from nullius.models.language_model import Batch

IDS = torch.randint(5, 900, (5, 9), generator=torch.Generator().manual_seed(0))
IDS[:, :6] = IDS[0, :6]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "olmo2", "phi3", "qwen3"])
def test_the_run_is_that_of_whole_texts(toys, family):
    model = toys[family]
    batch = model.pad(IDS.tolist())
    rows = []
    handle = model.anatomy.attn(1).register_forward_hook(lambda _m, _a, output: rows.append(tuple(output[0].shape[:2])))
    once = alike.run_base(model, batch, ["z", "mlp_out"])
    handle.remove()
    assert rows == [(1, 6), (5, 3)]
    whole = wavefront.run_base(model, batch, ["z", "mlp_out"])
    for name in ("stream", "last", "end", "logits"):
        assert torch.allclose(getattr(once, name), getattr(whole, name), atol=1e-4), name
    for site in whole.sites:
        assert torch.allclose(once.sites[site], whole.sites[site], atol=1e-4), site
    for a, b in zip((*once.keys, *once.values), (*whole.keys, *whole.values), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_how_much_is_shared(toy):
    assert alike.beginning(toy.pad(IDS.tolist())) == 6
    assert alike.beginning(toy.pad(IDS[:, 2:].tolist())) == 4
    assert alike.beginning(toy.pad(IDS[:, 4:].tolist())) == 0  # two of five
    assert alike.beginning(toy.pad(IDS[:1].tolist())) == 0
    assert alike.beginning(toy.pad(IDS[[0, 0]].tolist())) == 8
    assert alike.beginning(toy.pad([IDS[0].tolist(), IDS[1, :8].tolist()])) == 0
    other = IDS.clone()
    other[3, 0] += 1
    assert alike.beginning(Batch(other, torch.ones_like(other))) == 0
