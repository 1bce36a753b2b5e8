"""Planted transformers do their program perfectly, in the widths that they claim, and their truth is where they say it is."""

import numpy as np
import pytest
import torch

from nullius.instruments import heads, taps
from nullius.instruments.planted import binding, direction, induction, modular, recall
from nullius.instruments.planted.wiring import Wiring
from nullius.stimuli import binding as tasks


def says(model, texts, answers):
    return (model.last_logits(texts).argmax(-1) == torch.tensor([model.first_token(answer) for answer in answers])).float().mean()


@pytest.mark.parametrize("seed", range(3))
def test_induction_is_perfect(seed):
    model, items = induction.build(seed), induction.repeats(np.random.default_rng(seed), 200)
    assert says(model, [item.text for item in items], [item.answer for item in items]) == 1


def test_modular_sums_are_all_right():
    model = modular.build()
    pairs = [(a, b) for a in range(modular.MODULUS) for b in range(modular.MODULUS)]
    assert says(model, [modular.text(*pair) for pair in pairs], [modular.answer(*pair) for pair in pairs]) == 1


def test_the_context_overrides_memory_until_the_copying_head_is_turned_down():
    model, items = recall.build(), recall.conflicts(np.random.default_rng(0), 100)
    texts = [item.text for item in items]
    assert says(model, texts, [item.context for item in items]) == 1
    assert says(model, [recall.plain(name) for name in recall.CAPITALS], [f" {city}" for city in recall.CAPITALS.values()]) == 1
    below = heads.Scaling(recall.COPY_HEAD, 0.9 * recall.MEMORY / recall.COPY)
    with heads.scaled(model, [below] * len(texts)):
        memory = model.logits(model.encode(texts)).argmax(-1)
    assert memory.tolist() == [model.first_token(item.memory) for item in items]


def test_the_direction_is_read_and_written_with_its_size():
    planted = direction.build()
    items = direction.remarks(np.random.default_rng(0), 64)
    texts = [item.text for item in items]
    assert says(planted.model, texts, [" good" if item.tone else " bad" for item in items]) == 1
    state = taps.read(planted.model, planted.model.encode(texts), ["resid_post"], [0])["resid_post"][0]
    assert torch.allclose(state @ planted.tone, torch.tensor([2.0 * item.tone - 1 for item in items]), atol=1e-2)
    assert float(planted.tone @ planted.alive) == 0


@pytest.mark.parametrize("mixture", [binding.FULL, binding.BY_PLACE, binding.BY_KEY, binding.BY_ANSWER])
def test_the_reader_is_the_mixture_that_it_states(mixture):
    model, rng = binding.build(mixture), np.random.default_rng(0)
    items = [tasks.draw(rng, tasks.TASKS["boxes"], binding.GROUPS, key=1, answer=0, pools=binding.POOLS) for _ in range(40)]
    logits = model.last_logits([item.prompt for item in items])
    seen = logits.gather(1, torch.tensor([[model.first_token(word) for word in item.candidates] for item in items])).numpy()
    stated = np.array([mixture.logits(item.index, item.index, item.index) for item in items])
    assert np.abs(seen - stated).max() < 0.1  # the noise of unused heads
    assert (seen.argmax(1) == [item.index for item in items]).all()


def test_noise_is_there_and_faint():
    """Heads that the program does not use write something, or an instrument would have nothing not to find."""
    model = induction.build()
    z = taps.read(model, model.encode(["a b c d a"]), ["z"])["z"]
    assert float(z.abs().flatten(2).amax()) > 0
    written = heads.attribution(model, heads.Contrast(("a b c d a",), (model.first_token(" b"),), (model.first_token(" c"),)))[0]
    others = [float(written[h.layer, h.head]) for h in heads.all_heads(model) if h != induction.INDUCTION]
    assert 0 < max(map(abs, others)) < 0.05 * float(written[1, 2])


def test_a_program_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="the stream has 8"):
        Wiring(["a"], {"out": 20}, layers=1, heads=2, d_head=4, length=4)
    wiring = Wiring(["a"], {"out": 2}, layers=1, heads=2, d_head=4, length=4)
    with pytest.raises(ValueError, match="entries 0 to 1, not 2"):
        wiring.embed("a", "out", 2)
