"""Path patching: every sender equals a naive run with hooks, on every family; planted paths are found, held ones are not."""

from contextlib import ExitStack
from functools import partial

import pytest
import torch
from tests.conftest import FAMILIES, make_toy
from tests.instruments.test_patching import ANSWERS, pairs

from nullius.errors import SubjectError, UsageError
from nullius.instruments import paths, taps
from nullius.instruments.heads import Head
from nullius.instruments.paths import Mlp, Receiver
from nullius.models import hooks


@pytest.fixture(params=FAMILIES)
def model(request, toys):
    return toys[request.param]


@torch.no_grad()
def naive(model, base, source, senders, receivers=(), at=None, source_at=None, free=(), held=()):
    """Path patching as anyone would write it: two whole runs for each sender, a hook at every component that is held."""
    anatomy, (n, length) = model.anatomy, base.input_ids.shape
    mine, theirs = (taps.read(model, batch, ["z", "mlp_out"], positions="all") for batch in (base, source))
    out = []
    for sender in senders:
        seen = {}
        with ExitStack() as stack:
            for layer in range(anatomy.n_layers):

                def hold_z(z, layer=layer, sender=sender):
                    z = z.clone()
                    for head in range(anatomy.n_heads):
                        if Head(layer, head) not in free:
                            z[:, :, head] = mine["z"][layer][:, :, head]
                    if isinstance(sender, Head) and sender.layer == layer:
                        for i in range(n):
                            for t in range(length) if at is None else [at[i]]:
                                z[i, t, sender.head] = theirs["z"][layer][i, t if source_at is None else source_at[i], sender.head]
                    return z

                def hold_mlp(x, layer=layer, sender=sender):
                    x = mine["mlp_out"][layer].clone() if layer in held else x.clone()
                    if sender == Mlp(layer):
                        for i in range(n):
                            for t in range(length) if at is None else [at[i]]:
                                x[i, t] = theirs["mlp_out"][layer][i, t if source_at is None else source_at[i]]
                    return x

                stack.enter_context(taps.edit(model, "z", layer, hold_z))
                stack.enter_context(taps.edit(model, "mlp_out", layer, hold_mlp))
            for receiver in receivers:
                site = anatomy.site(receiver.site, receiver.layer)
                stack.callback(hooks.on_read(anatomy, site, partial(seen.__setitem__, receiver)).remove)
            logits = model.logits(base)
        if receivers:
            with ExitStack() as stack:
                for receiver in receivers:

                    def paste(x, receiver=receiver, seen=seen):
                        x = x.clone()
                        spots = range(length) if receiver.at is None else None
                        for i in range(n):
                            for t in spots or [receiver.at[i] if isinstance(receiver.at, tuple) else receiver.at]:
                                x[i, t, receiver.head] = seen[receiver][i, t, receiver.head]
                        return x

                    stack.enter_context(taps.edit(model, receiver.site, receiver.layer, paste))
                logits = model.logits(base)
        chosen = logits.gather(1, torch.tensor(ANSWERS))
        out.append(chosen[:, 0] - chosen[:, 1])
    return torch.stack(out, 1)


def close(found, expected):
    return torch.allclose(found.values, expected, atol=2e-4)


SOME = [Head(0, 0), Head(0, 3), Mlp(0), Head(1, 1), Mlp(1), Head(2, 2), Mlp(2)]


def test_senders_to_the_logits(model):
    base, source = pairs(model)
    found = paths.patch(model, base, source, SOME, ANSWERS)
    assert close(found, naive(model, base, source, SOME, at=[9, 9]))
    assert found.checked == 2
    assert found.effect().abs().min() > 0
    held = paths.patch(model, base, source, SOME, ANSWERS, held_mlps="all")
    assert close(held, naive(model, base, source, SOME, at=[9, 9], held=[0, 1, 2]))
    assert not torch.allclose(held.values, found.values, atol=1e-3)


@pytest.mark.parametrize("site", ["q", "k", "v"])
def test_senders_to_receivers(model, site):
    base, source = pairs(model)
    receivers = paths.receivers_of(model, site, [Head(1, 0), Head(2, 3)], (6, 8))
    found = paths.patch(model, base, source, SOME, ANSWERS, receivers=receivers, at=(6, 8), held_mlps=[1])
    assert close(found, naive(model, base, source, SOME, receivers, at=[6, 8], held=[1]))
    assert torch.equal(found.values[:, 5:], found.base[:, None].expand(-1, 2))  # nothing at or above the highest receiver can reach it


def test_receivers_of_several_sites_positions_and_layers(toy):
    base, source = pairs(toy)
    receivers = [Receiver("k", 2, 1, None), Receiver("v", 1, 0, 5), Receiver("q", 2, 3)]
    for at in (None, (5, 9)):
        found = paths.patch(toy, base, source, SOME, ANSWERS, receivers=receivers, at=at)
        assert close(found, naive(toy, base, source, SOME, receivers, at=at))


@pytest.mark.parametrize("receivers", [(), (Receiver("q", 2, 1), Receiver("v", 2, 0, None))])
def test_with_free_heads_effects_move_between_positions(model, receivers):
    base, source = pairs(model)
    free = [Head(1, 1), Head(1, 2), Head(2, 0)]
    found = paths.patch(model, base, source, SOME, ANSWERS, receivers=receivers, at=(5, 7), free_heads=free, held_mlps=[2])
    assert close(found, naive(model, base, source, SOME, receivers, at=[5, 7], free=free, held=[2]))
    assert found.effect()[:, 0].abs().min() > 0


def test_the_source_may_be_taken_elsewhere(toy):
    base, source = pairs(toy)
    found = paths.patch(toy, base, source, SOME, ANSWERS, source_at=(3, 5))
    assert close(found, naive(toy, base, source, SOME, at=[9, 9], source_at=[3, 5]))


@pytest.mark.parametrize("options", [{"max_rows": 1}, {"max_rows": 5}, {"pairs_at_once": 1}])
def test_the_size_of_a_pass_does_not_matter(toy, options):
    base, source = pairs(toy)
    for receivers in ((), [Receiver("q", 2, 1)]):
        whole = paths.patch(toy, base, source, SOME, ANSWERS, receivers=receivers)
        assert torch.allclose(paths.patch(toy, base, source, SOME, ANSWERS, receivers=receivers, **options).values, whole.values, atol=1e-5)


def test_log_probabilities_and_the_relative_score(toy):
    base, source = pairs(toy)
    found = paths.patch(toy, base, source, SOME, [[11], [13]], metric=lambda s: s[:, 0].exp(), scores="log_probs")
    expected = toy.logits(base).softmax(-1)[torch.arange(2), torch.tensor([11, 13])]
    assert torch.allclose(found.base, expected.detach(), rtol=1e-4)
    if float(found.base.min()) < 1e-4:
        with pytest.raises(UsageError, match="near 0"):
            found.relative()
    scaled = paths.Paths(found.senders, found.values + 1, found.base + 1, found.source, 0, 0.0)
    assert torch.allclose(scaled.relative(), ((found.values - found.base[:, None]) / (found.base + 1)[:, None]).mean(0), atol=1e-6)


def wired_chain(tokenizer):
    """A model in which 2.1 writes the answer and only its query hears 0.2: every other head and all feed-forward blocks are silent."""
    model = make_toy("llama", tokenizer)
    width = model.anatomy.d_head
    with torch.no_grad():
        for layer in range(model.anatomy.n_layers):
            model.anatomy.down_proj(layer).weight.zero_()
            for head in range(model.anatomy.n_heads):
                if (layer, head) not in ((0, 2), (2, 1)):
                    model.anatomy.o_proj(layer).weight[:, head * width : (head + 1) * width].zero_()
    return model


def test_planted_chain(tokenizer):
    model = wired_chain(tokenizer)
    base, source = pairs(model)
    base.input_ids[:, -1] = source.input_ids[:, -1]  # the last token's own value is the same: what differs must be fetched
    senders = paths.all_senders(model)
    direct = paths.patch(model, base, source, senders, ANSWERS).effect().abs().mean(0)
    assert {senders[i] for i in (direct > 1e-3).nonzero()[:, 0]} == {Head(0, 2), Head(2, 1)}
    through = paths.patch(model, base, source, senders, ANSWERS, receivers=[Receiver("q", 2, 1)]).effect().abs().mean(0)
    assert {senders[i] for i in (through > 1e-4).nonzero()[:, 0]} == {Head(0, 2)}
    elsewhere = paths.patch(model, base, source, senders, ANSWERS, receivers=[Receiver("q", 2, 3)]).effect()
    assert elsewhere.abs().max() < 1e-5  # that head is silent: whatever it asks for


def test_null_equal_texts(toy):
    base, _ = pairs(toy)
    for receivers in ((), [Receiver("q", 2, 1)]):
        assert paths.patch(toy, base, base, SOME, ANSWERS, receivers=receivers).effect().abs().max() < 1e-5


def test_the_model_is_left_as_it_was(toy):
    base, source = pairs(toy)
    before = toy.logits(base)
    paths.patch(toy, base, source, SOME, ANSWERS, receivers=[Receiver("q", 2, 1)], free_heads=[Head(1, 1)])
    paths.patch(toy, base, source, SOME, ANSWERS, held_mlps="all")
    assert torch.equal(toy.logits(base), before)


def test_layers_below_the_sender_are_not_run_again(toy):
    base, source = pairs(toy)
    calls = []
    handle = toy.anatomy.mlp(0).register_forward_hook(lambda _m, args, _out: calls.append(args[0].shape[:2]))
    try:
        paths.patch(toy, base, source, [Head(2, h) for h in range(4)], ANSWERS, checks=0)
    finally:
        handle.remove()
    first = int((base.input_ids != source.input_ids).any(0).nonzero()[0])
    assert calls == [(2, 10), (2, 10 - first)]  # the base, and the source from where it differs


def test_checked_senders_are_run_on_a_few_pairs_and_a_metric_sees_all(toy):
    """A metric may weigh each pair in its own way; the plain runs behind the check are of eight pairs, the others' scores those of the base."""
    rows = torch.randint(5, 900, (11, 6), generator=torch.Generator().manual_seed(3))
    other = rows.clone()
    other[:, 2] = rows[:, 2].roll(1)
    weights = torch.arange(1.0, 12.0)
    sizes = []
    handle = toy.anatomy.mlp(0).register_forward_hook(lambda _m, args, _out: sizes.append(len(args[0])))
    try:
        found = paths.patch(
            toy, toy.pad(rows.tolist()), toy.pad(other.tolist()), SOME, [[11, 12]] * 11, metric=lambda x: weights * (x[:, 0] - x[:, 1])
        )
    finally:
        handle.remove()
    assert found.checked == 2
    assert found.gap < 1e-4
    assert sizes.count(8) >= 2
    plain = paths.patch(toy, toy.pad(rows.tolist()), toy.pad(other.tolist()), SOME, [[11, 12]] * 11)
    assert torch.allclose(found.values, weights[:, None] * plain.values, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"senders": [Head(3, 0)]}, "sender 3.0 does not exist"),
        ({"senders": [Head(0, 4)]}, "heads 0 to 3"),
        ({"senders": []}, "no sender"),
        ({"receivers": [Receiver("k", 1, 2)]}, "receiver k 1.2 does not exist"),
        ({"receivers": [Receiver("q", 9, 0)]}, "layer 9 does not exist"),
        ({"receivers": [Receiver("q", 2, 0, (1, 2, 3))]}, "3 positions for 2 pairs"),
        ({"receivers": [Receiver("q", 2, 0, 4)]}, "no path is left"),
        ({"at": 3}, "no path is left"),
        ({"at": 10}, "position 10 does not exist"),
        ({"at": (1, 2, 3)}, "3 positions for 2 pairs"),
        ({"at": None, "source_at": 2}, "source_at goes with"),
        ({"answers": [[1, 2]]}, r"token ids \[2, k\]"),
        ({"held_mlps": [7]}, "held_mlps names a layer"),
    ],
)
def test_refusals(toy, change, words):
    base, source = pairs(toy)
    options = {"senders": SOME, "answers": ANSWERS, **change}
    with pytest.raises(UsageError, match=words):
        paths.patch(toy, base, source, **options)


def test_a_readout_that_is_not_known_is_refused(tokenizer):
    model = make_toy("llama", tokenizer)
    handle = model.hf.lm_head.register_forward_hook(lambda _m, _a, out: out * 2)
    with pytest.raises(SubjectError, match="in a way that path patching does not know"):
        paths.patch(model, *pairs(model), SOME, ANSWERS)
    handle.remove()
