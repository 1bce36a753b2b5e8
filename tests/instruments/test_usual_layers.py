"""Layers of the usual kind, all suffixes together: which families have them, that they say what the layer says, and who is left alone."""

import pytest
import torch
from tests.conftest import FAMILIES
from tests.instruments.test_patching import ANSWERS, pairs

from nullius.instruments import onednn, patching, taps, usual_layers, wavefront
from nullius.models.dataflow import first_output

pytestmark = [pytest.mark.cpu, pytest.mark.skipif(not onednn.available(), reason="this torch has no oneDNN")]
USUAL = {"llama", "mistral", "qwen2", "gemma", "olmo"}


def ready(model, layer, starts, copies):
    """Random rows over some suffixes, with what the decoder calls the layer with."""
    base = wavefront.run_base(model, pairs(model)[0])
    generator = torch.Generator().manual_seed(layer)
    rows = {s: torch.randn(copies * 2, 10 - s, model.anatomy.d_model, generator=generator) for s in starts}
    calls = {s: wavefront._calls(model, base, s)[layer] for s in starts}
    return base, rows, calls


@pytest.mark.parametrize("family", FAMILIES)
def test_who_is_usual(toys, family):
    model = toys[family]
    base, rows, calls = ready(model, 1, [7], 1)
    with torch.no_grad():
        found = usual_layers.usual(model.anatomy.layers[1], calls[7][1], rows[7], (base.keys[1], base.values[1]))
    assert found == (family in USUAL)


@pytest.mark.parametrize("copies", [1, 40])
@pytest.mark.parametrize("family", sorted(USUAL & set(FAMILIES)))
def test_together_they_are_what_the_layer_makes_of_each(toys, family, copies):
    """In fewer positions than a block and in several chunks of two blocks, over suffixes of three lengths, one of them the whole text."""
    model = toys[family]
    base, rows, calls = ready(model, 2, [0, 4, 9], copies)
    layer = model.anatomy.layers[2]
    with torch.no_grad():
        expected = [first_output(layer(rows[s], **calls[s][1])) for s in rows]
        given = [usual_layers.together(rows[s].clone(), calls[s][1], (base.keys[2], base.values[2])) for s in rows]
        ends = usual_layers.Layer(layer).ends(given)
        usual_layers.Layer(layer).run(given)
    for suffix, end, plain in zip(given, ends, expected, strict=True):
        assert torch.allclose(suffix.rows, plain, rtol=1e-4, atol=1e-4)
        assert torch.allclose(end, plain[:, -1], rtol=1e-4, atol=1e-4)


def test_null_a_layer_that_only_looks_usual_goes_its_own_way(toys, tokenizer):
    """With one whose attention is not scaled as it says, the trial fails, and the sweep is still the plain runs."""
    from tests.conftest import make_toy

    model = make_toy("llama", tokenizer)
    layer = model.anatomy.layers[1]

    class Louder(type(layer)):
        def forward(self, hidden_states, *args, **kwargs):
            return 1.5 * super().forward(hidden_states, *args, **kwargs)

    layer.__class__ = Louder
    sweep = patching.residual(model, *pairs(model), ANSWERS, checks=20)
    assert sweep.checked == 20
    assert [usual_layers._tried.get(one) for one in model.anatomy.layers] == [True, False, True]


def test_a_layer_that_somebody_watches_goes_its_own_way(toy):
    base, rows, calls = ready(toy, 1, [7], 1)
    ask = (toy.anatomy.layers[1], calls[7][1], rows[7], (base.keys[1], base.values[1]))
    with torch.no_grad():
        with taps.edit(toy, "z", 1, lambda x: 2 * x):
            assert not usual_layers.usual(*ask)
        assert usual_layers.usual(*ask)


def test_hooks_that_transformers_leaves_behind_do_not_matter(tokenizer):
    from tests.conftest import make_toy

    model = make_toy("llama", tokenizer)
    with torch.no_grad():
        model.hf(torch.tensor([[1, 2, 3]]), output_hidden_states=True, output_attentions=True)
    assert model.anatomy.layers[1]._forward_hooks  # or it has stopped to leave any: then this can go
    base, rows, calls = ready(model, 1, [7], 1)
    with torch.no_grad():
        assert usual_layers.usual(model.anatomy.layers[1], calls[7][1], rows[7], (base.keys[1], base.values[1]))
