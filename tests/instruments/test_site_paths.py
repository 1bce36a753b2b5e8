"""Path patching between any two sites: it is `paths` where both can be used; planted paths are found, held and absent ones are not."""

import pytest
import torch
from tests.instruments.test_patching import ANSWERS, pairs
from tests.instruments.test_paths import wired_chain
from tests.models.test_dataflow import DECODERS, build

from nullius.errors import UsageError
from nullius.instruments import interventions, patching, paths, site_paths, taps
from nullius.instruments.heads import Head
from nullius.instruments.path_runs import Mlp, Receiver
from nullius.instruments.where import Where


def where(sender):
    return (
        Where("z", sender.layer, heads=[sender.head], positions=[-1])
        if isinstance(sender, Head)
        else Where("mlp_out", sender.layer, positions=[-1])
    )


SENDERS = [Head(0, 0), Head(1, 3), Mlp(0), Mlp(1), Head(2, 2)]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox"])
def test_it_is_path_patching_where_both_can_be_used(toys, family):
    model = toys[family]
    base, source = pairs(model)
    every = site_paths.all_but(model, range(3))
    heads = site_paths.all_but(model, range(3), mlps=False)
    direct = site_paths.patch(model, base, source, [where(s) for s in SENDERS], ANSWERS, held=every, max_rows=4)
    assert torch.allclose(direct.values, paths.patch(model, base, source, SENDERS, ANSWERS, held_mlps="all").values, atol=2e-4)
    asked = site_paths.patch(
        model, base, source, [where(s) for s in SENDERS], ANSWERS, held=heads, receiver=Where("q", 2, heads=[1], positions=[-1])
    )
    expected = paths.patch(model, base, source, SENDERS, ANSWERS, receivers=[Receiver("q", 2, 1)])
    assert torch.allclose(asked.values, expected.values, atol=2e-4)
    assert torch.allclose(asked.base, expected.base, atol=1e-4)
    assert torch.allclose(asked.source, expected.source, atol=1e-4)


@pytest.mark.parametrize(
    ("sender", "receiver"),
    [
        (Where("resid_pre", 0, positions=[5]), Where("resid_post", 1, positions=[7])),
        (Where("mlp_post", 0, units=range(20)), Where("v", 2, heads=[1])),
        (Where("attn_out", 1), Where("mlp_out", 1, positions="last")),
        (Where("pattern", 1, heads=[2]), Where("pattern", 2, heads=[0])),
        (Where("resid_mid", 0), Where("mlp_post", 2, units=[3, 5], positions=[-1])),
        (Where("k", 1, heads=[1]), Where("resid_post", 2, basis=torch.eye(32)[:4])),
    ],
)
@torch.no_grad()
def test_any_two_sites_by_hand(toy, sender, receiver):
    """Two runs with hooks: sender in, receiver out; receiver in, logits out."""
    base, source = pairs(toy)
    found = site_paths.patch(toy, base, source, [sender], ANSWERS, receiver=receiver)

    def whole(batch, part, changes=()):
        with interventions.applied(toy, list(changes)):
            value = taps.read(toy, batch, [part.site], [part.layer], positions="all")[part.site][0]
        return value.transpose(1, 2) if part.site == "pattern" else value

    def put(part, value):
        units = range(10) if part.site == "pattern" else part.units
        return interventions.interchange(Where(part.site, part.layer, part.heads, units, part.basis, part.positions), value)

    arrived = whole(base, receiver, [put(sender, whole(source, sender))])
    with interventions.applied(toy, [put(receiver, arrived)]):
        logits = toy.logits(base)
    expected = logits[[0, 1], [11, 13]] - logits[[0, 1], [12, 14]]
    assert torch.allclose(found.values[:, 0], expected, atol=1e-5)
    assert float(found.effect().abs().max()) > 1e-4


def test_planted_path_and_nulls(tokenizer):
    """Only the query of 2.1 hears 0.2. A mediator that is held lets nothing through, a receiver below the sender hears nothing."""
    model = wired_chain(tokenizer)
    base, source = pairs(model)
    base.input_ids[:, -1] = source.input_ids[:, -1]
    senders = [Where("z", layer, heads=[head]) for layer in range(3) for head in range(4)]
    through = site_paths.patch(model, base, source, senders, ANSWERS, receiver=Where("q", 2, heads=[1], positions=[-1])).effect()
    assert {i for i, value in enumerate(through.abs().amax(0).tolist()) if value > 1e-4} == {2}
    for receiver, held in (
        (Where("q", 2, heads=[3], positions=[-1]), ()),  # a head that is silent, whatever it asks for
        (Where("q", 2, heads=[1], positions=[-1]), [Where("resid_mid", 0)]),
        (Where("resid_pre", 0), ()),
    ):
        assert float(site_paths.patch(model, base, source, senders, ANSWERS, receiver=receiver, held=held).effect().abs().max()) < 1e-5


def test_with_nothing_held_it_is_activation_patching(toy, tokenizer):
    """The cells of a sweep; and on a model that no sweep can be run on, what an interchange gives."""
    base, source = pairs(toy)
    places = [(0, 5), (1, 9), (2, 7)]
    found = site_paths.patch(toy, base, source, [Where("resid_pre", layer, positions=[column]) for layer, column in places], ANSWERS)
    sweep = patching.residual(toy, base, source, ANSWERS)
    assert torch.allclose(found.values, torch.stack([sweep.values[:, layer, column] for layer, column in places], 1), atol=1e-4)
    bloom = build("bloom", tokenizer, **DECODERS["bloom"][1])
    base, source = pairs(bloom)
    head = Where("z", 1, heads=[2])
    found = site_paths.patch(bloom, base, source, [head], ANSWERS)
    there = taps.read(bloom, source, ["z"], [1], positions="all")["z"][0]
    with torch.no_grad(), interventions.applied(bloom, [interventions.interchange(head, there)]):
        logits = bloom.logits(base)
    assert torch.allclose(found.values[:, 0], logits[[0, 1], [11, 13]] - logits[[0, 1], [12, 14]], atol=1e-5)
    assert float(found.effect().abs().min()) > 0


def test_texts_of_unequal_length_by_columns(toy):
    base, source = toy.encode(["The capital of France is"]), toy.encode(["A claim"])
    sender = Where("resid_pre", 1, positions=[-1])
    found = site_paths.patch(toy, base, source, [sender], [[11, 12]], source_positions=[-1])
    assert float(found.effect().abs().min()) > 0
    with pytest.raises(UsageError, match=r"pair 0 does not have the length of the others \(9 and 3 tokens\)"):
        site_paths.patch(toy, base, source, [sender], [[11, 12]])


@pytest.mark.parametrize(
    ("sender", "more", "message"),
    [
        (Where("z", 9), {}, "layer 9 does not exist: llama has layers 0 to 2"),
        (Where("z", 1, heads=[4]), {}, "head 4 does not exist: z of layer 1 has heads 0 to 3"),
        (Where("z", 1, rows=[0]), {}, "no part with `rows`"),
        (Where("z", 1), {"receiver": Where("resid_pots", 1)}, "no site 'resid_pots'; nearest: resid_post"),
        (Where("z", 1), {"held": [Where("z", 8)]}, "layer 8 does not exist"),
    ],
)
def test_bad_input_is_one_line(toy, sender, more, message):
    base, source = pairs(toy)
    with pytest.raises(UsageError, match=message):
        site_paths.patch(toy, base, source, [sender], ANSWERS, **more)
