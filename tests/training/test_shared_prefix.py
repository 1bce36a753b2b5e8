"""Finetuning on prompts that begin alike gives the weights that whole rows give, wherever the trained weights are; where it would not it is left."""

import pytest
import torch

from nullius.instruments import taps
from nullius.training import finetune as module
from nullius.training import shared_prefix
from nullius.training.finetune import finetune
from nullius.training.lora import Lora
from nullius.training.parts import Parts

ROWS = torch.randint(5, 900, (6, 8), generator=torch.Generator().manual_seed(0))
ROWS[:, :5] = ROWS[0, :5]


def gradients(model, ids):
    """Of the mean loss of the last token, for every parameter."""
    logits = shared_prefix.logits(model, model.pad(ids.tolist()), 6)
    logits = model.hf(input_ids=ids).logits[:, 6:7] if logits is None else logits
    loss = torch.nn.functional.cross_entropy(logits[:, 0], ids[:, 7])
    return torch.autograd.grad(loss, list(model.hf.parameters()))


@pytest.mark.parametrize("family", sorted(shared_prefix.FAMILIES))
def test_gradients_are_those_of_whole_rows(toys, family, monkeypatch):
    """Of every weight: those of the lowest layer, keys and values among them, act on the prefix too; their gradients come through the cache."""
    model = toys[family]
    monkeypatch.setattr(model.hf.config, "attention_dropout", 0.0, raising=False)
    for part in model.hf.modules():
        if isinstance(part, torch.nn.Dropout):
            monkeypatch.setattr(part, "p", 0.0)
    assert shared_prefix.length(model, model.pad(ROWS.tolist()), 6) == 5
    once = gradients(model, ROWS)
    monkeypatch.setattr(shared_prefix, "length", lambda *_: 0)
    for (name, _), a, b in zip(model.hf.named_parameters(), once, gradients(model, ROWS), strict=True):
        assert float((a - b).norm()) <= 1e-5 * float(b.norm()) + 1e-7, name  # some are 0: a constant in all keys changes nothing
        assert float(b.norm()) > 1e-6 or name.endswith("bias"), name


@pytest.mark.parametrize("how", [{}, {"parts": Parts(heads=((0, 0), (0, 1), (1, 2)))}, {"lora": Lora(2)}], ids=["whole", "heads", "lora"])
def test_finetuning_on_prompts_that_begin_alike(toy, how, monkeypatch):
    """Three steps of either kind of training, with the weights that whole rows give."""
    found, length = [], shared_prefix.length
    monkeypatch.setattr(module, "_rows", lambda *_: [(row, 7) for row in ROWS.tolist()])
    monkeypatch.setattr(shared_prefix, "length", lambda *args: found.append(length(*args)) or found[-1])
    once = finetune(toy, ["-"], 3, batch=3, rate=1e-3, **how)
    assert found == [5] * 3
    monkeypatch.setattr(shared_prefix, "length", lambda *_: 0)
    whole = finetune(toy, ["-"], 3, batch=3, rate=1e-3, **how)
    assert torch.allclose(torch.tensor(once.losses), torch.tensor(whole.losses), atol=1e-5)
    for (name, a), b in zip(once.model.hf.named_parameters(), whole.model.hf.parameters(), strict=True):
        assert torch.allclose(a, b, atol=3e-5), name


def test_where_it_is_left(toys, monkeypatch):
    model = toys["llama"]
    batch = model.pad(ROWS.tolist())
    assert shared_prefix.length(model, batch, 7) == shared_prefix.length(model, batch, 6) == 5
    assert shared_prefix.length(model, batch, 4) == 4  # the first target stands at position 5
    assert shared_prefix.length(model, batch, 3) == 0  # less than half
    assert shared_prefix.length(model, model.pad(ROWS[:1].tolist()), 7) == 0
    assert shared_prefix.length(model, model.pad([ROWS[0].tolist(), ROWS[1, :7].tolist()]), 6) == 0  # padded
    assert shared_prefix.length(model, model.pad(ROWS[[0, 0]].tolist()), 6) == 6  # alike to the end
    with taps.edit(model, "z", 1, lambda z: z * 0):
        assert shared_prefix.length(model, batch, 7) == 0
    monkeypatch.setattr(model.hf.config, "attention_dropout", 0.1)
    assert shared_prefix.length(model, batch, 7) == 0
    assert shared_prefix.length(toys["gpt2"], batch, 7) == 0  # a tenth of the stream is dropped there
    assert shared_prefix.length(toys["gemma3_text"], batch, 7) == 0  # windows
