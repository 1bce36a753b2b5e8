"""Neurons and heads along a direction: exact, against autograd-free arithmetic and real ablation; planted neurons are found; sets do what they
say."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nullius.errors import UsageError
from nullius.instruments import neurons, taps
from nullius.instruments.interventions import applied, set_to
from nullius.instruments.neurons import Components
from nullius.instruments.planted import direction
from nullius.instruments.told import Told
from nullius.instruments.where import Where

TEXTS = ["The capital of Poland is", "A study is one module"]


def test_neurons_sum_to_what_the_block_adds_along_the_direction(toys):
    for family in ("llama", "gpt2", "gpt_neox", "gemma2", "olmo2"):  # the last two through a norm behind the block
        model = toys[family]
        v = torch.randn(3, 2, 32)
        sites = taps.read(model, model.encode(TEXTS), ["mlp_post", "mlp_out"])
        found = neurons.neuron_effects(model, sites["mlp_post"], v).sum(-1)
        wanted = torch.einsum("lnd,lkd->lkn", sites["mlp_out"], torch.nn.functional.normalize(v, dim=-1))
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "olmo2"])
def test_head_importance_is_what_running_the_ablated_model_gives(toys, family):
    model = toys[family]
    batch, v = model.encode(TEXTS), torch.randn(3, 2, 32)
    z = taps.read(model, batch, ["z"])["z"]
    found = neurons.head_importance(model, z, v)
    unit = torch.nn.functional.normalize(v, dim=-1)
    for layer, head in ((0, 3), (2, 1)):
        plain = taps.read(model, batch, ["resid_mid"], [layer])["resid_mid"][0]
        with applied(model, [set_to(Where("z", layer, heads=[head], positions="last"), 0.0)]):
            cut = taps.read(model, batch, ["resid_mid"], [layer])["resid_mid"][0]
        torch.testing.assert_close(found[layer, :, :, head], ((plain - cut) @ unit[layer].T).T, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("family", ["llama", "gemma2", "olmo2"])
@pytest.mark.parametrize(("kind", "site", "stream"), [("neuron", "mlp_post", "resid_post"), ("head", "z", "resid_mid")])
def test_several_components_fall_as_in_the_model_without_them(toys, family, kind, site, stream):
    """Behind a norm several do not add up to what each does."""
    model, layer, sets = toys[family], 1, [[0, 3], [1, 2]]
    batch, v = model.encode(TEXTS), torch.randn(2, 32)
    values = taps.read(model, batch, [site])[site]
    found = neurons.fall_without(model, kind, values, v.expand(3, -1, -1), torch.tensor(sets).expand(3, -1, -1))[layer]
    plain = taps.read(model, batch, [stream], [layer])[stream][0]
    unit = torch.nn.functional.normalize(v, dim=-1)
    for row, some in enumerate(sets):
        members = Components.of(**{f"{kind}s": [(layer, one) for one in some]})
        with applied(model, neurons.scaled(members, 0.0)):
            cut = taps.read(model, batch, [stream], [layer])[stream][0]
        torch.testing.assert_close(found[row], ((plain - cut) @ unit[row])[row], atol=1e-4, rtol=1e-3)


def test_planted_writers_of_a_direction_are_found_and_no_others():
    planted = direction.build(0)
    model = planted.model
    batch = model.encode([item.text for item in direction.remarks(np.random.default_rng(0), 8)])
    sites = taps.read(model, batch, ["z", "mlp_post"])
    v = planted.tone.expand(3, 1, -1)
    table = neurons.head_importance(model, sites["z"], v)[:, 0].abs().mean(1)
    assert int(table.argmax()) == direction.TONE_HEAD.layer * model.anatomy.n_heads + direction.TONE_HEAD.head
    table[direction.TONE_HEAD.layer, direction.TONE_HEAD.head] = 0
    assert table.max() < 0.05
    out = (model.anatomy.unembedding()[model.first_token(" good")] - model.anatomy.unembedding()[model.first_token(" bad")]).detach()
    effects = neurons.neuron_effects(model, sites["mlp_post"], out.expand(3, 1, -1))[:, 0].abs().mean(1)
    best = effects.flatten().topk(2).indices.tolist()
    assert {divmod(i, effects.shape[1]) for i in best} == {(direction.READ_LAYER, 0), (direction.READ_LAYER, 1)}


def test_importance_of_a_sublayer_whose_output_is_read_and_of_one_that_is_not():
    planted = direction.build(0)
    model = planted.model
    batch = model.encode([item.text for item in direction.remarks(np.random.default_rng(0), 4)])
    out = (model.anatomy.unembedding()[model.first_token(" good")] - model.anatomy.unembedding()[model.first_token(" bad")]).detach()
    read, unread = (
        neurons.sublayer_importance(model, batch, "attn_out", 0, v[None], out[None])[0].mean() for v in (planted.tone, planted.alive)
    )
    late = neurons.sublayer_importance(model, batch, "attn_out", 2, planted.tone[None], out[None])[0].mean()
    assert read > 0.3
    assert abs(float(unread)) < 0.05
    assert abs(float(late)) < 0.05  # nobody reads it there any more


def test_sublayer_importance_of_the_last_sublayer_is_the_cosine(toy):
    """What is added there arrives unchanged."""
    v, r = torch.randn(2, 32), torch.randn(2, 32)
    found = neurons.sublayer_importance(toy, toy.encode(TEXTS), "mlp_out", 2, v, r)
    torch.testing.assert_close(found, torch.nn.functional.cosine_similarity(v, r)[:, None].expand(2, 2), atol=1e-4, rtol=1e-3)


def test_ablated_and_driven_sets_change_their_entries_only(toy):
    batch = toy.encode(TEXTS)
    some = Components.of([(1, 5), (1, 9), (2, 0)], [(1, 3)])
    plain = taps.read(toy, batch, ["mlp_post", "z"], [1], positions="all")
    with applied(toy, neurons.scaled(some, 0.0)):
        found = taps.read(toy, batch, ["z"], [1], positions="all")["z"][0]
        units = taps.read(toy, batch, ["mlp_post"], [1])["mlp_post"][0]
    assert not found[:, -1, 3].any()
    assert torch.equal(found[:, :-1], plain["z"][0][:, :-1])
    assert units[:, [5, 9]].abs().max() == 0
    assert units[:, 6].abs().min() > 0
    extra, heads = torch.randn(3, 64), torch.randn(3, 4, 8)
    with applied(toy, neurons.driven(some, extra, heads, 2.0, rows=[1])):
        found = taps.read(toy, batch, ["z"], [1])["z"][0]
    torch.testing.assert_close(found[1, 3], plain["z"][0][1, -1, 3] + 2 * heads[1, 3])
    torch.testing.assert_close(found[0], plain["z"][0][0, -1])


def test_situations_drive_each_set_in_its_own_rows_as_apart(toy):
    """One intervention for each layer and kind does what one for each set does."""
    told = Told(*torch.zeros(2, 3, 4, 2, 32), torch.randn(3, 4, 2, 4, 8), torch.randn(3, 4, 2, 64), [0, 2], [1, 3])
    sets = [Components.of([(1, 5), (2, 0)], [(1, 3)]), Components.of([(1, 6)], [(0, 0), (1, 1), (1, 3)])]
    batch = toy.encode([*TEXTS, *reversed(TEXTS)])
    apart = [
        one
        for i, some in enumerate(sets)
        for one in neurons.driven(some, told.contrast(told.cells)[:, i], told.contrast(told.z)[:, i], 1.5, rows=range(2 * i, 2 * i + 2))
    ]
    together = told.drive(sets, toy.device, 1.5, each=2)
    assert (len(together), len(apart)) == (4, 6)
    with applied(toy, together):
        found = toy.logits(batch)
    with applied(toy, apart):
        torch.testing.assert_close(found, toy.logits(batch))
    assert not torch.allclose(found, toy.logits(batch))


def test_sets_compare_and_draw_their_likes(toy):
    some = Components.of([(1, 5), (1, 9), (2, 0)], [(1, 3)])
    other = some.random_like(toy, np.random.default_rng(0))
    assert {layer: len(them) for layer, them in other.neurons.items()} == {1: 2, 2: 1}
    assert not some.pairs() & other.pairs()
    assert some.jaccard(some) == 1
    assert some.jaccard(Components.of([(1, 5)])) == 0.25
    whole = Components.of([], [(0, h) for h in range(4)])
    assert whole.random_like(toy, np.random.default_rng(0)) == whole  # there are no others


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 30), st.integers(0, 99))
def test_a_circuit_has_the_size_asked_for_and_takes_the_best_of_each_layer(layers, width, size, seed):
    generator = torch.Generator().manual_seed(seed)
    table, weight = torch.randn(layers, width, generator=generator), torch.randn(layers, generator=generator)
    found = neurons.circuit({"neuron": table}, {"neuron": weight}, {"neuron": size})
    assert len(found) == min(size, layers * width)
    for layer, some in found.neurons.items():
        left = [i for i in range(width) if i not in some]
        assert not left or table[layer, list(some)].min() >= table[layer, left].max()


def test_quotas_follow_importance():
    table = torch.zeros(3, 10)
    found = neurons.circuit({"head": table}, {"head": torch.tensor([1.0, 3.0, -1.0])}, {"head": 8})
    assert {layer: len(some) for layer, some in found.heads.items()} == {0: 2, 1: 6}
    with pytest.raises(UsageError, match="cannot have -1"):
        neurons.circuit({"head": table}, {"head": torch.ones(3)}, {"head": -1})
