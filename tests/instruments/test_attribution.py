"""Attribution patching: the directional derivative, checked by finite differences in float64; complete along a path; blind where saturated."""

import copy

import pytest
import torch
from tests.instruments.test_patching import ANSWERS, pairs

from nullius.instruments import patching, taps
from nullius.instruments.attribution import attribution
from nullius.models.language_model import LanguageModel


@pytest.fixture(scope="module")
def exact(toys):
    """Toys in float64, for finite differences."""
    return {
        family: LanguageModel.wrap(copy.deepcopy(toys[family].hf).double(), toys[family].tokenizer)
        for family in ("llama", "gpt2", "gemma2")
    }


def nudged(model, base, site, layer, index, direction):
    """The metric with one cell moved along a direction."""

    def move(x):
        x = x.clone()
        x[index] = x[index] + direction
        return x

    with torch.no_grad(), taps.edit(model, site, layer, move):
        logits = model.logits(base).gather(1, torch.tensor(ANSWERS))
    return logits[:, 0] - logits[:, 1]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "mlp_out", "z"])
def test_it_is_the_derivative_towards_the_source(exact, family, site):
    model = exact[family]
    base, source = pairs(model)
    estimate = attribution(model, base, source, ANSWERS, site=site)
    there, here = (taps.read(model, batch, [site], positions="all")[site] for batch in (source, base))
    for layer, column in ((0, 2), (1, 3), (2, 1)):
        index = (slice(None), slice(None), column) if site == "z" else (slice(None), column + 4)
        direction = (there - here)[layer][index]
        h = 2e-3  # transformers' RMS norm computes in float32 whatever it is given: smaller steps drown in its rounding
        slope = (nudged(model, base, site, layer, index, h * direction) - nudged(model, base, site, layer, index, -h * direction)) / (2 * h)
        found = estimate[:, layer, column if site == "z" else column + 4]
        assert torch.allclose(found.double(), slope, rtol=1e-2, atol=1e-3)


def test_planted_along_the_path_nothing_is_lost(exact):
    """Integrated gradients at the input add up to the whole difference between the two runs."""
    model = exact["llama"]
    base, source = pairs(model)
    sweep = patching.residual(model, base, source, ANSWERS)
    whole = attribution(model, base, source, ANSWERS, steps=200)[:, 0].sum(-1)
    assert torch.allclose(whole, (sweep.source - sweep.base).float(), atol=0.02 * float((sweep.source - sweep.base).abs().max()))


def test_null_equal_texts(toy):
    base, _ = pairs(toy)
    assert attribution(toy, base, base, ANSWERS).abs().max() == 0


def test_blind_under_saturation(exact):
    """A metric that is flat at the base run: patching restores it, the gradient at the base sees nothing, the mean along the path does."""
    model = exact["llama"]
    base, source = pairs(model, first=9)
    plain = patching.residual(model, base, source, ANSWERS)
    middle, height = (plain.base + plain.source) / 2, (plain.source - plain.base).sign()
    middle, height = middle.repeat(1000), height.repeat(1000)

    def flat(logits):
        n = len(logits)
        return torch.sigmoid(60 * height[:n] * (logits[:, 0] - logits[:, 1] - middle[:n]))

    sweep = patching.residual(model, base, source, ANSWERS, metric=flat)
    assert torch.allclose(sweep.restored()[0, -1], torch.tensor(1.0, dtype=sweep.values.dtype), atol=1e-3)
    assert attribution(model, base, source, ANSWERS, metric=flat)[:, 0, -1].abs().max() < 0.05
    assert attribution(model, base, source, ANSWERS, metric=flat, steps=400)[:, 0, -1].min() > 0.9
