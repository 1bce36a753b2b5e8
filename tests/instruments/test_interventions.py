"""Interventions: what hooks written by hand do, on every family; per row, per position, in a subspace, in generation, with gradients."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import FAMILIES

from nullius.errors import SubjectError, UsageError
from nullius.instruments import interventions as iv
from nullius.instruments import taps
from nullius.instruments.interventions import Where, applied

TEXTS = ["The capital of France is", "A claim", "Every control must come out null and could fail to"]
# by hand: layer, attention, its output projection, feed-forward block, its last map
PATHS = {
    "gpt2": ("transformer.h.1", "attn", "c_proj", "mlp", "c_proj"),
    "gpt_neox": ("gpt_neox.layers.1", "attention", "dense", "mlp", "dense_4h_to_h"),
}
USUAL = ("model.layers.1", "self_attn", "o_proj", "mlp", "down_proj")
AFTER_NORMS = {
    "gemma2": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "gemma3_text": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "olmo2": ("post_attention_layernorm", "post_feedforward_layernorm"),
}


@pytest.fixture(params=FAMILIES)
def model(request, toys):
    return toys[request.param]


def hooks_left(model):
    return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.hf.modules()]


@torch.no_grad()
def by_hand(model, batch, site, fn):
    """Logits of all positions with fn(x), in place, at a site of layer 1: a hook on a module known by its name."""
    family = model.anatomy.family
    layer, attn, out, mlp, down = PATHS.get(family, USUAL)
    after = AFTER_NORMS.get(family, (attn, mlp))
    path = {
        "resid_pre": layer, "resid_post": layer, "attn_out": f"{layer}.{after[0]}", "mlp_out": f"{layer}.{after[1]}",
        "z": f"{layer}.{attn}.{out}", "mlp_post": f"{layer}.{mlp}.{down}",
    }[site]  # fmt: skip
    module = model.hf.get_submodule(path)

    def change(x):
        x = x.clone()
        fn(x.view(*x.shape[:2], model.anatomy.n_heads, -1) if site == "z" else x)
        return x

    def before(_module, args, kwargs):
        return ((change(args[0]), *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])})

    def behind(_module, _args, output):
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    if site in ("resid_pre", "z", "mlp_post"):
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = module.register_forward_hook(behind)
    try:
        return model.logits(batch, "all")
    finally:
        handle.remove()


@torch.no_grad()
def ours(model, batch, *interventions):
    before = hooks_left(model)
    with applied(model, interventions):
        out = model.logits(batch, "all")
    assert hooks_left(model) == before
    return out


def close(a, b):
    return torch.allclose(a, b, atol=1e-4, rtol=1e-4)


SITES = ("resid_pre", "resid_post", "attn_out", "mlp_out", "mlp_post")


@pytest.mark.parametrize("site", SITES)
def test_whole_vectors_by_hand(model, site):
    """set, add, scale, project out, at chosen positions or all."""
    batch = model.encode(TEXTS)
    width = model.anatomy.d_mlp if site == "mlp_post" else model.anatomy.d_model
    v = torch.randn(width, generator=torch.Generator().manual_seed(1))

    def sets(x):
        x[:, [-3, -1]] = v

    def adds(x):
        x[:, -1] += 3 * v

    def scales(x):
        x.copy_(v + 0.5 * (x - v))

    def projects(x):
        unit = v / v.norm()
        x -= (x @ unit)[..., None] * unit

    plain = model.logits(batch, "all")
    for fn, one in (
        (sets, iv.set_to(Where(site, 1, positions=[-3, -1]), v)),
        (adds, iv.add(Where(site, 1, positions="last"), v, 3.0)),
        (scales, iv.scale(Where(site, 1), 0.5, around=v)),
        (projects, iv.project_out(Where(site, 1), v)),
    ):
        theirs = by_hand(model, batch, site, fn)
        assert close(ours(model, batch, one), theirs)
        assert not close(plain, theirs)


def test_heads_by_hand(model):
    batch = model.encode(TEXTS)

    def fn(x):
        x[1, :, [0, 2]] = 0
        x[2, -1, 3, [1, 5]] *= 4

    theirs = by_hand(model, batch, "z", fn)
    mine = ours(
        model, batch,
        iv.scale(Where("z", 1, heads=[0, 2], rows=[1]), 0.0),
        iv.scale(Where("z", 1, heads=[3], units=[1, 5], positions=[-1], rows=[2]), 4.0),
    )  # fmt: skip
    assert close(mine, theirs)
    assert close(mine[0], model.logits(batch, "all")[0])


def test_each_row_its_own(model):
    """Values by row, by row and position; positions by row; rows left alone are as they were."""
    batch = model.encode(TEXTS)
    v = torch.randn(2, 2, model.anatomy.d_model, generator=torch.Generator().manual_seed(1))
    places = torch.tensor([[1, 4], [-4, -1]])

    def each(x):
        for row, value, columns in zip((2, 0), v, places.tolist(), strict=True):
            x[row, columns] = value

    def once(x):
        x[2] += 2 * v[0, 0]
        x[0] += -v[1, 0]

    where = Where("resid_post", 1, rows=[2, 0], positions=places)
    assert close(ours(model, batch, iv.set_to(where, v)), by_hand(model, batch, "resid_post", each))
    steered = iv.add(Where("resid_post", 1, rows=[2, 0]), v[:, 0], torch.tensor([2.0, -1.0]))
    assert close(ours(model, batch, steered), by_hand(model, batch, "resid_post", once))


@pytest.mark.parametrize("site", ["resid_post", "z", "v", "q", "mlp_post"])
def test_interchange_is_the_other_run(model, site):
    """With everything put in from another run, what follows is that run; in itself, nothing changes."""
    batch, other = (model.pad(torch.randint(5, 1000, (2, 9), generator=torch.Generator().manual_seed(i)).tolist()) for i in (0, 1))
    there = taps.read(model, other, [site], [1], positions="all")[site][0]
    assert close(ours(model, other, iv.interchange(Where(site, 1), there)), model.logits(other, "all"))
    mixed = ours(model, batch, iv.interchange(Where(site, 1), there))
    if site == "resid_post":
        assert close(mixed[:, -1], model.logits(other, "all")[:, -1])
    else:
        assert not close(mixed, model.logits(batch, "all"))


def test_interchange_of_a_subspace_by_hand(model):
    batch, other = model.encode(TEXTS), model.encode(TEXTS[::-1])
    there = taps.read(model, other, ["resid_post"], [1], positions="all")["resid_post"][0]
    basis = iv.orthonormal(torch.randn(3, model.anatomy.d_model, generator=torch.Generator().manual_seed(2)))
    onto = basis.T @ basis

    def fn(x):
        x[:, -2] += (there[:, -1] - x[:, -2]) @ onto

    where = Where("resid_post", 1, basis=basis, positions=[-2])
    assert close(ours(model, batch, iv.interchange(where, there, from_positions=[-1])), by_hand(model, batch, "resid_post", fn))


def test_ablations_by_hand(model):
    batch = model.encode(TEXTS)
    mean = iv.means(model, TEXTS, "z", batch_size=2)
    kept = taps.read(model, batch, ["z"], positions="all")["z"]
    real = batch.attention_mask.bool()
    assert torch.allclose(mean, kept[:, real].mean(1), atol=1e-5)

    def by_mean(x):
        x[:, :, 1] = mean[1, 1]

    def by_others(x):
        x[:, :, 1] = kept[1][[1, 2, 0], :, 1]

    assert close(ours(model, batch, iv.mean_ablate(Where("z", 1, heads=[1]), mean[1])), by_hand(model, batch, "z", by_mean))
    resampled = iv.resample_ablate(Where("z", 1, heads=[1]), kept[1], [1, 2, 0])
    assert close(ours(model, batch, resampled), by_hand(model, batch, "z", by_others))


@given(n=st.integers(2, 40), seed=st.integers(0, 1000))
def test_donors_are_others(n, seed):
    donors = iv.others(n, np.random.default_rng(seed))
    assert sorted(donors) == list(range(n))
    assert all(i != donor for i, donor in enumerate(donors))


@settings(deadline=None, max_examples=30)
@given(k=st.integers(1, 6), seed=st.integers(0, 1000))
def test_a_basis_spans_its_directions(k, seed):
    directions = torch.randn(k, 8, generator=torch.Generator().manual_seed(seed))
    basis = iv.orthonormal(directions)
    assert torch.allclose(basis @ basis.T, torch.eye(k), atol=1e-5)
    assert torch.allclose(directions @ basis.T @ basis, directions, atol=1e-3)
    assert torch.allclose(basis[0], directions[0] / directions[0].norm(), atol=1e-5)


def test_dependent_directions_are_refused():
    with pytest.raises(UsageError, match="combination of others"):
        iv.orthonormal(torch.ones(2, 8))


@torch.no_grad()
def test_in_generation_each_new_token_is_steered(model):
    """With the cache, token by token: the same as hooks by hand without a cache, on the whole text at every step."""
    texts = ["The capital of France is", "Every control must come out null"]
    v = 5 * torch.randn(model.anatomy.d_model, generator=torch.Generator().manual_seed(3))
    batch = model.encode(texts)
    ids, mask, prompt = batch.input_ids, batch.attention_mask, batch.input_ids.shape[1]
    for positions in ("new", "last", "prompt", "all"):
        grown, masked = ids, mask

        def fn(x, positions=positions):
            first = {"new": prompt, "last": prompt - 1}.get(positions, 0)
            x[1, first : prompt if positions == "prompt" else None] += v

        for _ in range(5):
            logits = by_hand(model, type(batch)(grown, masked), "resid_post", fn)[:, -1]
            grown = torch.cat([grown, logits.argmax(-1, keepdim=True)], 1)
            masked = torch.cat([masked, torch.ones(2, 1, dtype=torch.long)], 1)
        theirs = model.tokenizer.batch_decode(grown[:, prompt:], skip_special_tokens=True)
        found = iv.generate(model, texts, [iv.add(Where("resid_post", 1, positions=positions, rows=[1]), v)], 5)
        assert found == theirs, positions
    assert iv.generate(model, texts, [], 5) == model.generate(texts, 5)


@torch.no_grad()
def test_attention_between_two_positions_is_cut(model):
    """A pattern's units are its keys: what a head reads at one of them is taken out of z, by hand."""
    batch, group = model.pad([list(range(5, 15))] * 2), model.anatomy.n_heads // model.anatomy.n_kv_heads
    plain = taps.read(model, batch, ["z", "v", "pattern"], [1], positions="all")
    cut = iv.set_to(Where("pattern", 1, heads=[2], units=[3, 4], positions=[-1], rows=[1]), 0.0)
    with applied(model, [cut]):
        edited = taps.read(model, batch, ["z"], [1], positions="all")["z"][0]
    expected = plain["z"][0].clone()
    read = plain["pattern"][0][1, 2, -1, 3:5] @ plain["v"][0][1, 3:5, 2 // group]
    expected[1, -1, 2] -= read
    assert torch.allclose(edited, expected, atol=1e-4)
    assert read.abs().max() > 1e-3
    other = plain["pattern"][0].transpose(1, 2).flip(0)
    with applied(model, [iv.interchange(Where("pattern", 1, units=list(range(10))), other)]):
        swapped = taps.read(model, batch, ["z"], [1], positions="all")["z"][0]
    assert torch.allclose(swapped, plain["z"][0], atol=1e-4)  # both texts are the same


def test_logits_are_a_site(model):
    batch = model.encode(TEXTS)
    with applied(model, [iv.set_to(Where("logits", units=[7], positions="last"), -100.0)]):
        for positions in ("last", "all"):
            out = model.logits(batch, positions).view(3, -1, model.anatomy.unembedding().shape[0])
            assert torch.all(out[:, -1, 7] == -100)
    assert not torch.any(model.logits(batch) == -100)


def test_gradients_flow_through(toys):
    """d logit / d α, d value and d basis by autograd equal finite differences."""
    import copy

    from nullius.models.language_model import LanguageModel

    model = LanguageModel.wrap(copy.deepcopy(toys["llama"].hf).double(), toys["llama"].tokenizer)
    batch = model.encode(TEXTS[:2])
    there = taps.read(model, batch, ["resid_post"], [0], positions="all")["resid_post"][0].flip(0)
    torch.manual_seed(0)
    alpha, value, directions = (torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((2,), (4, 8), (2, 32)))

    def metric(alpha, value, directions):
        ones = [
            iv.scale(Where("z", 0, heads=[1]), alpha),
            iv.set_to(Where("q", 1, positions="last"), value),
            iv.interchange(Where("resid_post", 0, basis=iv.orthonormal(directions), positions=[-2, -1]), there),
        ]
        with applied(model, ones):
            return model.logits(batch)[:, 5].sum()

    metric(alpha, value, directions).backward()
    h = 1e-3  # transformers' RMS norm computes in float32
    for i, tensor in enumerate((alpha, value, directions)):
        step = torch.randn_like(tensor)
        ends = []
        for sign in (1, -1):
            moved = [alpha.detach(), value.detach(), directions.detach()]
            moved[i] = moved[i] + sign * h * step
            ends.append(float(metric(*moved).detach()))
        assert float((tensor.grad * step).sum()) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=0.02, abs=2e-3)


def test_interventions_act_in_order_and_nest(toy):
    batch = toy.encode(TEXTS)
    where = Where("resid_post", 1)
    one, two = iv.set_to(where, 1.0), iv.scale(where, 0.5)
    assert close(ours(toy, batch, one, two), ours(toy, batch, iv.set_to(where, 0.5)))
    assert close(ours(toy, batch, two, one), ours(toy, batch, one))
    with applied(toy, [one]), applied(toy, [two]), torch.no_grad():
        nested = toy.logits(batch, "all")
    assert close(nested, ours(toy, batch, iv.set_to(where, 0.5)))


def test_nothing_is_left_after_an_error(toy):
    before = hooks_left(toy)
    with pytest.raises(UsageError, match="row 7 does not exist: the batch has rows 0 to 2"):
        ours(toy, toy.encode(TEXTS), iv.scale(Where("z", 1, rows=[7]), 0.0))
    assert hooks_left(toy) == before


V = torch.zeros(32)
BAD = [
    (lambda: iv.scale(Where("zz", 1), 0.0), "no site 'zz'"),
    (lambda: iv.scale(Where("z", 3), 0.0), "layer 3 does not exist: llama has layers 0 to 2"),
    (lambda: iv.scale(Where("z", 1, heads=[4]), 0.0), "head 4 does not exist: z of layer 1 has heads 0 to 3"),
    (lambda: iv.scale(Where("k", 1, heads=[2]), 0.0), "head 2 does not exist: k of layer 1 has heads 0 to 1"),
    (lambda: iv.scale(Where("resid_pre", 1, heads=[0]), 0.0), "resid_pre has no heads"),
    (lambda: iv.scale(Where("mlp_post", 1, units=[64]), 0.0), "unit 64 does not exist: mlp_post of layer 1 has units 0 to 63"),
    (lambda: iv.scale(Where("pattern", 1, units=[60]), 0.0), "unit 60 does not exist: pattern of layer 1 has units 0 to"),
    (lambda: iv.scale(Where("pattern", 1, heads=[4]), 0.0), "head 4 does not exist: pattern of layer 1 has heads 0 to 3"),
    (lambda: iv.set_to(Where("pattern", 1), torch.zeros(4, 8)), "want `units`"),
    (lambda: iv.scale(Where("mlp_post", 1, units=[]), 0.0), "at least one"),
    (lambda: iv.scale(Where("mlp_post", 1, units=[3, 3]), 0.0), "once each"),
    (lambda: iv.scale(Where("mlp_post", 1, positions="ends"), 0.0), "no positions 'ends'"),
    (lambda: iv.scale(Where("mlp_post", 1, positions=[2]), 0.0), "column 2 at mlp_post of layer 1 is padding in row 0, which has 9 of 14 tokens"),
    (lambda: iv.scale(Where("mlp_post", 1, positions=[50]), 0.0), "position 50 does not exist: the batch has columns 0 to"),
    (lambda: iv.scale(Where("resid_pre", 1, positions=torch.tensor([[0], [1]])), 0.0), "for 2 rows, not for the 3"),
    (lambda: iv.set_to(Where("resid_pre", 1), torch.zeros(31)), r"must be \[32\], \[rows, 32\] or \[rows, positions, 32\]; got \[31\]"),
    (lambda: iv.set_to(Where("resid_pre", 1), torch.zeros(1, 32)), r"value at resid_pre of layer 1 is \[1, 32\]; this batch asks for \[3, 32\]"),
    (lambda: iv.add(Where("resid_pre", 1), V, torch.ones(2)), r"factor at resid_pre of layer 1 is \[2\]; this batch asks for \[3\]"),
    (lambda: iv.set_to(Where("z", 1, heads=[1]), torch.zeros(4, 8)), r"value at z of layer 1 must be \[1, 8\]"),
    (lambda: iv.interchange(Where("z", 1), torch.zeros(3, 20, 32)), r"must be the whole site \[rows, columns, 4, 8\]"),
    (lambda: iv.interchange(Where("z", 1), torch.zeros(3, 2, 4, 8)), "source at z of layer 1 has 2 columns, the batch"),
    (lambda: iv.interchange(Where("z", 1, positions=[-1]), torch.zeros(2, 9, 4, 8), [0]), "has 2 rows; this batch asks for 3"),
    (lambda: iv.interchange(Where("z", 1, positions=[-1]), torch.zeros(3, 9, 4, 8), [9]), "columns 0 to 8; column 9 was asked for"),
    (lambda: iv.interchange(Where("z", 1, positions=[1]), torch.zeros(3, 9, 4, 8), [0, 1]), "2 columns for 1 positions"),
    (lambda: iv.interchange(Where("z", 1), torch.zeros(3, 9, 4, 8), [0]), "give `where` a list of positions"),
    (lambda: iv.mean_ablate(Where("z", 1, heads=[0]), torch.zeros(8)), r"must be the whole site \[4, 8\]"),
    (lambda: iv.resample_ablate(Where("z", 1), torch.zeros(3, 9, 4, 8), [0, 1, 3]), "donor 3 does not exist"),
    (lambda: iv.scale(Where("resid_pre", 1, basis=torch.ones(2, 32)), 0.0), "not orthonormal"),
    (lambda: iv.scale(Where("resid_pre", 1, basis=torch.ones(2, 30)), 0.0), r"basis at resid_pre of layer 1 must be \[k, 32\]"),
    (lambda: iv.scale(Where("resid_pre", 1, units=[1], basis=torch.eye(32)), 0.0), "not by both"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), BAD)
def test_bad_input_is_one_line(toy, make, message):
    before = hooks_left(toy)
    with pytest.raises(UsageError, match=message) as found:
        ours(toy, toy.encode(TEXTS), make())
    assert "\n" not in str(found.value)
    assert hooks_left(toy) == before


def test_what_an_architecture_lacks_is_said(toys):
    with pytest.raises(SubjectError, match="gpt_neox runs attention and feed-forward in parallel: it has no resid_mid"):
        ours(toys["gpt_neox"], toys["gpt_neox"].encode(TEXTS), iv.scale(Where("resid_mid", 1), 0.0))


def test_null_an_intervention_that_is_none_changes_nothing(model):
    """Scaling by one, adding nothing, the part's own value: bit for bit, or up to rounding where a basis is involved."""
    batch = model.encode(TEXTS)
    plain = model.logits(batch, "all")
    own = taps.read(model, batch, ["z", "resid_post"], [1], positions="all")
    for one in (
        iv.scale(Where("z", 1), 1.0),
        iv.add(Where("resid_post", 1), torch.zeros(model.anatomy.d_model)),
        iv.interchange(Where("z", 1, heads=[2]), own["z"][0]),
    ):
        assert torch.equal(ours(model, batch, one), plain)
    basis = iv.orthonormal(torch.randn(4, model.anatomy.d_model, generator=torch.Generator().manual_seed(0)))
    assert close(ours(model, batch, iv.interchange(Where("resid_post", 1, basis=basis), own["resid_post"][0])), plain)
