"""Training while an intervention is open on the subject: it acts on the copy that trains, ends with the training, and leaves no trace."""

import numpy as np
import pytest
import torch
from tests.conftest import GROUPED
from transformers import AutoConfig, AutoModelForCausalLM

from nullius.errors import UsageError
from nullius.instruments import attention_knockout, taps
from nullius.models.language_model import LanguageModel
from nullius.training import copies, kept
from nullius.training.finetune import finetune
from nullius.training.lora import Lora
from nullius.training.parts import Parts

ROWS = torch.randint(5, 900, (6, 9), generator=torch.Generator().manual_seed(0))
HOW = {"steps": 4, "batch": 3, "rate": 3e-3}


def within(ids, width=3):
    """Each token sees the last `width` ones, itself among them."""
    n, length = ids.shape
    back = torch.arange(length)[:, None] - torch.arange(length)[None]
    return ((back >= 0) & (back < width)).expand(n, -1, -1)


def far(a, b):
    return max(float((x - y).detach().abs().max()) for x, y in zip(a.hf.parameters(), b.hf.parameters(), strict=True))


@pytest.fixture(scope="module")
def mistral(toys):
    """The toy's weights in an architecture whose own mask is that window."""
    config = AutoConfig.for_model("mistral", **GROUPED, sliding_window=3)
    hf = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    hf.load_state_dict(toys["llama"].hf.state_dict())
    return LanguageModel.wrap(hf, toys["llama"].tokenizer, "windowed")


@pytest.mark.parametrize(
    "how", [{}, {"parts": Parts(heads=((0, 1), (2, 3)), mlps=(1,))}, {"lora": Lora(2)}], ids=["whole", "parts", "lora"]
)
@pytest.mark.parametrize("sees", [within, within(ROWS[:3])], ids=["asked", "given"])
def test_a_window_while_training(toy, mistral, how, sees):
    """What another architecture with that window learns."""
    expected = finetune(mistral, ROWS, **HOW, **how)
    with attention_knockout.window(toy, sees):
        tuned = finetune(toy, ROWS, **HOW, **how)
    assert np.allclose(tuned.losses, expected.losses, atol=1e-5)
    assert far(tuned.model, expected.model) < 1e-4
    plain = finetune(toy, ROWS, **HOW, **how)
    assert abs(plain.losses - expected.losses).max() > 1e-2
    assert not copies.interventions(tuned.model.hf)


def test_a_window_ends_with_the_training(toy):
    """The copy has no window; the subject has its own, as long as it is open, and no weight of it changed."""
    batch = toy.pad(ROWS.tolist())
    plain = toy.logits(batch, "all").detach()
    with attention_knockout.window(toy, within):
        narrow = toy.logits(batch, "all").detach()
        seen = []
        none = finetune(toy, ROWS, **(HOW | {"rate": 0.0}), snapshots=(2,), on_snapshot=lambda _, m: seen.append(m.logits(batch, "all")))
        assert torch.equal(toy.logits(batch, "all"), narrow)
        assert torch.allclose(seen[0], narrow, atol=1e-6)
        assert torch.allclose(none.model.logits(batch, "all"), plain, atol=1e-6)
    assert torch.equal(toy.logits(batch, "all"), plain)
    assert not torch.allclose(plain, narrow, atol=1e-2)


def test_an_edit_acts_on_maps_with_adapters_too(toy):
    """A head whose output is 0 has no say in the loss: neither its weights nor the adapters on the map behind it learn from it."""
    with taps.edit(toy, "z", 1, lambda z: z * 0):
        tuned = finetune(toy, ROWS, **HOW, lora=Lora(2, targets=("o_proj", "v_proj")))
    named = dict(toy.hf.named_parameters())
    changed = {name for name, new in tuned.model.hf.named_parameters() if not torch.equal(new, named[name])}
    assert changed == {f"model.layers.{i}.self_attn.{part}_proj.weight" for i in (0, 2) for part in "vo"}


def test_calls_that_cannot_be(toy):
    with attention_knockout.window(toy, within(ROWS)):
        with pytest.raises(UsageError, match="6 texts of 9 tokens; this pass carries 3 of 9"):
            finetune(toy, ROWS, **HOW)
        with pytest.raises(UsageError, match="of 9 tokens"):
            finetune(toy, ["the river runs"], 1)
    with attention_knockout.window(toy, within):
        with pytest.raises(UsageError, match="some are padded"):
            finetune(toy, ["the river", "the river runs to the sea"], 1)
        with pytest.raises(UsageError, match="while an intervention is open"):
            kept.finetuned(toy, [("3 + 4 =", " seven")], 1, rate=1e-3)
    assert not copies.interventions(toy.hf)
