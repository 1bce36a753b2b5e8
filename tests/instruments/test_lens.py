"""The logit lens against logits made whole, on every family."""

import pytest
import torch
from tests.conftest import FAMILIES

from nullius.errors import UsageError
from nullius.instruments import lens, taps

TEXTS = ["The capital of Poland is", "A study is one module", "Yes"]


@pytest.mark.parametrize("family", FAMILIES)
def test_at_the_last_layer_the_lens_is_the_model(toys, family):
    model = toys[family]
    batch = model.encode(TEXTS)
    with torch.no_grad():
        logits = model.logits(batch).float()
    targets = logits.argmax(-1)
    found = lens.read(model, batch, targets)
    assert torch.equal(found.best[-1, :, 0], targets)
    assert torch.equal(found.rank[-1], torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(found.target[-1], logits.log_softmax(-1).gather(1, targets[:, None])[:, 0], atol=1e-4, rtol=1e-4)
    assert found.kl[-1].abs().max() < 1e-5
    assert found.kl[0].min() > 1e-3  # the first layer says something else


def test_all_numbers_equal_those_of_whole_logits_however_few_are_held(toy, monkeypatch):
    batch = toy.encode(TEXTS)
    states = taps.read(toy, batch, ["resid_post"], positions="all")["resid_post"][:, batch.attention_mask.bool()]
    with torch.no_grad():
        whole = toy.hf.lm_head(toy.anatomy.final_norm(states)).log_softmax(-1)
    n = states.shape[1]
    targets = torch.arange(n) % 2000
    monkeypatch.setattr(lens, "LOGITS_HELD", 3 * 2000)  # three rows at a time
    found = lens.read(toy, batch, targets, positions="all", top=3)
    torch.testing.assert_close(found.entropy, -(whole.exp() * whole).sum(-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.kl, (whole[-1].exp() * (whole[-1] - whole)).sum(-1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.target, whole.gather(-1, targets.expand(3, n)[..., None])[..., 0], atol=1e-5, rtol=1e-5)
    assert torch.equal(found.best, whole.topk(3).indices)
    order = whole.argsort(-1, descending=True)
    assert torch.equal(found.rank, (order == targets[None, :, None]).int().argmax(-1))


def test_no_more_logits_than_allowed_are_made_at_a_time(toy, monkeypatch):
    seen = []
    handle = toy.anatomy.unembed.register_forward_hook(lambda _m, _a, out: seen.append(out.shape[0]))
    monkeypatch.setattr(lens, "LOGITS_HELD", 2 * 2000)
    try:
        lens.read(toy, toy.encode(TEXTS), positions="all")
    finally:
        handle.remove()
    assert max(seen) == 2


def test_chosen_layers_negative_ones_and_bad_input(toy):
    batch = toy.encode(TEXTS)
    whole = lens.read(toy, batch)
    torch.testing.assert_close(lens.read(toy, batch, layers=[-1, 1]).entropy, whole.entropy[[2, 1]])
    with pytest.raises(UsageError, match="layer 7 does not exist"):
        lens.read(toy, batch, layers=[7])
    with pytest.raises(UsageError, match="3 places"):
        lens.read(toy, batch, torch.tensor([1]))
    with pytest.raises(UsageError, match="top must lie"):
        lens.read(toy, batch, top=0)
