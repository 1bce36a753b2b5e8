"""A finetuned copy is made once: the second asking reads what the first one kept; another recipe is another copy."""

import pytest
import torch

from nullius.training import kept

PAIRS = [("The old man saw the", " river"), ("She looked at the", " door")]


def test_a_copy_is_made_once_and_read_again(toy, monkeypatch, tmp_path):
    monkeypatch.setenv("NULLIUS_CACHE", str(tmp_path))
    first = kept.finetuned(toy, PAIRS, 2, rate=1e-3)
    monkeypatch.setattr(kept, "finetune", lambda *_args, **_kwargs: pytest.fail("trained again"))
    again = kept.finetuned(toy, PAIRS, 2, rate=1e-3)
    assert again.name == first.name
    for name, weight in first.hf.state_dict().items():
        assert torch.equal(weight, again.hf.state_dict()[name])
    batch = toy.encode([PAIRS[0][0]])
    with torch.no_grad():
        assert torch.equal(first.logits(batch), again.logits(batch))
        assert not torch.equal(toy.logits(batch), again.logits(batch))
    with pytest.raises(pytest.fail.Exception):
        kept.finetuned(toy, PAIRS, 2, rate=2e-3)
