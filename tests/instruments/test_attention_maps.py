"""Indicators of attention maps: limiting cases by hand, planted heads found in a decoder, nothing found where there is nothing."""

import numpy as np
import pytest
import torch

from nullius.errors import UsageError
from nullius.instruments.attention_maps import NAMES, indicators, over_layers, survey
from nullius.models import architectures

T = 8


def even():
    """Equal weights on all tokens so far."""
    return torch.ones(T, T).tril() / torch.arange(1, T + 1)[:, None]


def onto(column):
    """All weight on the token of each row that `column(i)` names."""
    pattern = torch.zeros(T, T)
    pattern[range(T), [column(i) for i in range(T)]] = 1.0
    return pattern


def of(pattern):
    """Indicators of one text with one head."""
    return {name: float(value.flatten()[0]) for name, value in indicators(pattern[None, None]).items()}


def test_equal_weights():
    found = of(even())
    harmonic = sum(1 / i for i in range(1, T + 1))
    assert found["entropy"] == pytest.approx(np.mean([np.log(i) for i in range(1, T + 1)]))
    assert found["concentration"] == pytest.approx((harmonic / T) ** 0.5)
    assert found["sink"] == pytest.approx(harmonic / T)
    assert found["focus 0"] == pytest.approx(harmonic / T)
    assert found["focus 2"] == pytest.approx((harmonic - 1 - 1 / 2) / (T - 2))
    assert found["range"] == pytest.approx(0, abs=1e-6)
    assert found["diversity"] == 0


@pytest.mark.parametrize(
    ("column", "sink", "focus"),
    [
        (lambda i: 0, 1.0, (1 / T, 1 / (T - 1), 1 / (T - 2), 1 / (T - 3))),  # the first token
        (lambda i: i, 1 / T, (1.0, 0.0, 0.0, 0.0)),  # the token itself
        (lambda i: max(0, i - 1), 2 / T, (1 / T, 1.0, 0.0, 0.0)),  # the one before
        (lambda i: max(0, i - 3), 4 / T, (1 / T, 1 / (T - 1), 1 / (T - 2), 1.0)),
    ],
)
def test_all_weight_on_one_token(column, sink, focus):
    found = of(onto(column))
    assert found["entropy"] == 0
    assert found["concentration"] == pytest.approx(1.0)
    assert found["sink"] == pytest.approx(sink)
    assert [found[f"focus {n}"] for n in range(4)] == pytest.approx(focus)
    assert found["range"] == pytest.approx(-np.log(torch.finfo(torch.float32).tiny))


def test_diversity_is_the_spread_over_heads():
    heads = torch.stack([onto(lambda i: 0), onto(lambda i: i)])[None]
    # the two agree in the first row alone; in each other row they differ by 1 at two places, a standard deviation of 1/2
    assert float(indicators(heads)["diversity"]) == pytest.approx((T - 1) * 2 * 0.5 * 2 / (T * (T + 1)))
    assert float(indicators(torch.stack([even(), even()])[None])["diversity"]) == 0


def test_the_range_is_that_of_the_scores():
    scores = torch.randn(2, 3, T, T, generator=torch.Generator().manual_seed(0)) * 3
    pattern = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf).softmax(-1)
    expected = [[max(float(s[i, : i + 1].max() - s[i, : i + 1].min()) for i in range(T)) for s in text] for text in scores]
    assert indicators(pattern)["range"].numpy() == pytest.approx(np.array(expected), rel=1e-4)


def test_what_is_no_pattern():
    with pytest.raises(UsageError, match=r"must be \[texts, heads, T, T\]; got \[8, 8\]"):
        indicators(even())
    with pytest.raises(UsageError, match="must add up to 1"):
        indicators(2 * even()[None, None])
    with pytest.raises(UsageError, match="no layer"):
        over_layers({})


@pytest.mark.parametrize("mixer", ["softmax", "approximate", "non-approximate", "random", "fixed", "static"])
def test_patterns_give_what_the_layer_computes(mixer):
    """z is pattern · v in every kind of layer; the query-free ones, which form no pattern, included."""
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 20, "max_position_embeddings": T}
    hf = architectures.create({**shape, "mixer": mixer, "shadow_tokens": list(range(T)), "initializer_range": 0.5}).double().eval()
    ids, seen = torch.randint(0, 20, (3, T)), {}
    attn = hf.model.layers[0].attn
    handles = [attn.v_proj.register_forward_hook(lambda _m, _a, out: seen.update(v=out.view(3, T, 2, 8).transpose(1, 2)))]
    handles += [attn.o_proj.register_forward_pre_hook(lambda _m, args: seen.update(z=args[0].view(3, T, 2, 8).transpose(1, 2)))]
    found = architectures.patterns(hf, ids)
    for handle in handles:
        handle.remove()
    assert list(found) == [0, 1]
    assert torch.allclose(found[0] @ seen["v"], seen["z"], atol=1e-6)
    assert hf.config._attn_implementation == "sdpa"
    assert not architectures.patterns(architectures.create({**shape, "mixer": "mlp"}), ids)


def test_planted_heads_are_found_in_a_subject_and_nothing_in_random_ones(toy, monkeypatch):
    """Planted: a head's queries and keys are emptied, so that its weights are equal. Null: random heads are none of the limiting cases."""
    text = toy.tokenizer.decode(range(10, 20))
    null = survey(toy, [text])
    length = toy.encode([text]).input_ids.shape[1]
    assert set(null) == set(NAMES)
    assert null["entropy"].shape == (toy.anatomy.n_layers, toy.anatomy.n_heads)
    most = np.mean([np.log(i) for i in range(1, length + 1)])
    assert (null["entropy"] < most - 1e-4).all()
    assert (null["range"] > 1e-3).all()
    site = toy.anatomy.site("q", 1)
    handle = site.module.register_forward_hook(lambda _m, _a, out: torch.zeros_like(out))
    planted = survey(toy, [text])
    handle.remove()
    if site.columns is None:
        assert planted["entropy"][1] == pytest.approx(most, abs=1e-4)
        assert planted["range"][1] == pytest.approx(0, abs=1e-4)
    assert planted["entropy"][0] == pytest.approx(null["entropy"][0])
    with pytest.raises(UsageError, match="equally many tokens"):
        survey(toy, [text, text + text])
