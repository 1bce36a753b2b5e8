"""Texts that are longer than a layer looks back: what is run from the middle sees through the same window as what is run whole."""

import pytest
import torch
from tests.conftest import FAMILIES, GROUPED, make_toy

from nullius.errors import UsageError
from nullius.instruments import attention_knockout, edges, interventions, masks, patching, paths, taps
from nullius.instruments.heads import Head
from nullius.instruments.where import Where
from nullius.models.language_model import Batch

WINDOWED = {
    "mistral": {**GROUPED, "sliding_window": 3},  # every layer
    "phi3": {**GROUPED, "pad_token_id": 0, "sliding_window": 3},
    "qwen2": {**GROUPED, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},  # the upper ones
    "gemma3_text": {**GROUPED, "head_dim": 8, "sliding_window": 3, "sliding_window_pattern": 2},  # every other one
}
ANSWERS = [[5, 6]] * 3


@pytest.fixture(scope="module", params=WINDOWED)
def model(request, tokenizer):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, request.param, WINDOWED[request.param])
        return make_toy(request.param, tokenizer)


@pytest.fixture(scope="module")
def pair(model):
    ids = torch.randint(1, 1900, (3, 11), generator=torch.Generator().manual_seed(0)).to(model.device)
    other = ids.clone()
    other[:, 3:5] = torch.randint(1, 1900, (3, 2), generator=torch.Generator().manual_seed(1)).to(model.device)
    return tuple(model.batch(Batch(some, torch.ones_like(some))) for some in (ids, other))


def test_the_window_is_there(model, pair):
    pattern = taps.read(model, pair[0], ["pattern"])["pattern"]
    assert float(pattern[..., :8].amax((1, 2, 3)).min()) == 0 < float(pattern[..., 8:].min())


def test_keys_that_a_cache_has_let_go_of_cannot_be_named(model):
    """A layer that looks back over three tokens keeps no more of them: the first key at hand is another token's in every pass."""
    kinds = getattr(model.hf.config.get_text_config(), "layer_types", None) or ["sliding_attention"] * 3

    def write(kind, factor):
        change = interventions.scale(Where("pattern", kinds.index(kind), units=[0], positions="new"), factor)
        return interventions.generate(model, ["one two three"], [change], 3)

    with pytest.raises(UsageError, match="has let go of the keys before its window"):
        write("sliding_attention", 0.0)
    if "full_attention" in kinds:
        assert write("full_attention", 1.0) == model.generate(["one two three"], 3)


def test_masks_are_the_plain_interchange(model, pair):
    base, source = pair
    heads, at = [Head(0, 1), Head(1, 2)], torch.tensor([[4], [3], [5]])
    wanted = masks.Desideratum(base, source, (5, 6, 7), tuple(at[:, 0].tolist()), (4, 3, 4))
    z = taps.read(model, source, ["z"], positions="all")["z"]
    changes = [
        interventions.interchange(Where("z", head.layer, heads=[head.head], positions=at), z[head.layer], torch.tensor([[4], [3], [4]]))
        for head in heads
    ]
    with torch.no_grad(), interventions.applied(model, changes):
        expected = model.logits(base)
    assert torch.allclose(masks._Ready(model, wanted, heads).logits(range(3), torch.zeros(2, device=model.device)), expected, atol=1e-5)


def test_knocked_out_edges_sweeps_and_paths(model, pair):
    base, source = pair
    found = attention_knockout.up_to_each_layer(model, base, [(10, 9), (6, 5)])
    with torch.no_grad(), attention_knockout.blocked(model, 3, 11, [(10, 9), (6, 5)], [0, 1]):
        assert torch.allclose(found[2], model.logits(base), atol=1e-5)
        pattern = taps.read(model, base, ["pattern"], positions="all")["pattern"]
    assert float(pattern[:2, :, :, 10, 9].max()) == 0 < float(pattern[2, :, :, 10, 9].min())
    plain = patching.residual(model, base, source, ANSWERS, checks=20)
    free = [Head(layer, head) for layer in (1, 2) for head in range(4)]
    assert paths.patch(model, base, source, paths.all_senders(model), ANSWERS, at=3, free_heads=free, checks=20).gap < 1e-5
    whole = torch.ones_like(edges.nodes(model).allowed)
    assert torch.allclose(edges.run(model, base, source, ANSWERS, whole), plain.base, atol=1e-5)
    assert torch.allclose(edges.run(model, base, source, ANSWERS, ~whole), plain.source, atol=1e-5)
