"""The parts of a logit sum to it, on every family; a written circuit is read off (head by head, against derivatives: `test_heads`)."""

import pytest
import torch
from tests.conftest import FAMILIES

from nullius.errors import UsageError
from nullius.instruments import direct_effects
from nullius.instruments.planted import recall

TEXTS = ["The capital of Poland is", "A study is one module", "Yes"]
FIRST, SECOND = [5, 900, 44], [77, 3, 1200]


def plain_logits(model):
    """Logits before a soft-cap, from transformers' own forward pass."""
    batch = model.encode(TEXTS)
    with torch.no_grad():
        logits = model.logits(batch).double()
    cap = model.anatomy.logit_softcap
    return cap * torch.atanh(logits / cap) if cap else logits


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_sum_to_the_logit(toys, family):
    model = toys[family]
    found = direct_effects.decompose(model, TEXTS, FIRST)
    logits = plain_logits(model).float().gather(1, torch.tensor(FIRST)[:, None])[:, 0]
    torch.testing.assert_close(found.total, logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.logit, logits, atol=1e-4, rtol=1e-4)
    pair = direct_effects.decompose(model, TEXTS, FIRST, SECOND)
    rival = plain_logits(model).float().gather(1, torch.tensor(SECOND)[:, None])[:, 0]
    torch.testing.assert_close(pair.total, logits - rival, atol=1e-4, rtol=1e-4)
    if family not in ("gpt2", "gpt_neox", "qwen2"):  # no bias behind the heads
        assert found.attention_bias.abs().max() < 1e-4
    for layer in range(model.anatomy.n_layers):
        each, rest = direct_effects.neurons(model, TEXTS, layer, FIRST)
        torch.testing.assert_close(each.sum(1) + rest, found.mlp[:, layer], atol=1e-4, rtol=1e-4)


def test_biases_are_counted_once(toys):
    model = toys["gpt2"]
    with torch.no_grad():
        for block in model.hf.transformer.h:
            for module in (block.attn.c_proj, block.mlp.c_proj):
                module.bias.normal_()
        model.hf.transformer.ln_f.bias.normal_()
    try:
        found = direct_effects.decompose(model, TEXTS, FIRST)
        torch.testing.assert_close(found.total, found.logit, atol=1e-4, rtol=1e-4)
        assert found.attention_bias.abs().min() > 0
        assert found.constant.abs().min() > 0
    finally:
        with torch.no_grad():
            for name, p in model.hf.named_parameters():
                if name.endswith("bias"):
                    p.zero_()


def test_a_wired_head_writes_the_answer_and_the_others_nothing():
    import numpy as np

    model = recall.build(0)
    items = recall.conflicts(np.random.default_rng(0), 6)
    first, second = ([model.first_token(getattr(item, side)) for item in items] for side in ("context", "memory"))
    found = direct_effects.decompose(model, [item.text for item in items], first, second)
    written = found.heads.mean(0)
    copy = recall.COPY_HEAD
    assert int(written.argmax()) == copy.layer * model.anatomy.n_heads + copy.head
    written[copy.layer, copy.head] = 0
    assert written.abs().max() < 0.2 * found.heads.mean(0)[copy.layer, copy.head]


def test_bad_input(toy):
    with pytest.raises(UsageError, match="as many tokens"):
        direct_effects.decompose(toy, TEXTS, [1])
    with pytest.raises(UsageError, match="stand against"):
        direct_effects.decompose(toy, TEXTS, FIRST, [1])
    with pytest.raises(UsageError, match="layer 9 does not exist"):
        direct_effects.neurons(toy, TEXTS, 9, FIRST)
