"""Taps: what is read is what hooks by hand read; what is edited is edited there alone; nothing stays behind."""

import pytest
import torch
from tests.conftest import FAMILIES, make_toy

from nullius.errors import SubjectError, UsageError
from nullius.instruments import attention, taps
from nullius.instruments.heads import Head
from nullius.models import hooks

TEXTS = ["The capital of France is", "A claim", "Every control must come out null and could fail to"]
SHAPES = {"resid_pre": (32,), "resid_post": (32,), "attn_out": (32,), "mlp_out": (32,), "z": (4, 8), "q": (4, 8)}


@pytest.fixture(params=FAMILIES)
def model(request, toys):
    return toys[request.param]


def hooks_left(model):
    return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.hf.modules()]


def test_shapes(model):
    batch = model.encode(TEXTS)
    anatomy, width = model.anatomy, batch.input_ids.shape[1]
    shapes = {**SHAPES, "k": (anatomy.n_kv_heads, 8), "v": (anatomy.n_kv_heads, 8), "mlp_post": (anatomy.d_mlp,)}
    last = taps.read(model, batch, list(shapes))
    everywhere = taps.read(model, batch, list(shapes), [2, 0], positions="all")
    with pytest.raises(UsageError, match="no layer"):
        taps.read(model, batch, ["z"], [])
    for site, shape in shapes.items():
        assert last[site].shape == (3, 3, *shape), site
        assert everywhere[site].shape == (2, 3, width, *shape), site
        assert torch.equal(everywhere[site][0][:, -1], last[site][2]), site


def test_llama_by_hand(toy):
    """The same numbers as hooks on modules that are known by name."""
    batch, seen = toy.encode(TEXTS), {}
    layer = toy.hf.model.layers[1]
    handles = [
        layer.register_forward_pre_hook(lambda _m, args: seen.update(resid_pre=args[0])),
        layer.register_forward_hook(lambda _m, _a, out: seen.update(resid_post=out)),
        layer.post_attention_layernorm.register_forward_pre_hook(lambda _m, args: seen.update(resid_mid=args[0])),
        layer.self_attn.register_forward_hook(lambda _m, _a, out: seen.update(attn_out=out[0])),
        layer.self_attn.q_proj.register_forward_hook(lambda _m, _a, out: seen.update(q=out.view(*out.shape[:2], 4, 8))),
        layer.self_attn.k_proj.register_forward_hook(lambda _m, _a, out: seen.update(k=out.view(*out.shape[:2], 2, 8))),
        layer.self_attn.v_proj.register_forward_hook(lambda _m, _a, out: seen.update(v=out.view(*out.shape[:2], 2, 8))),
        layer.self_attn.o_proj.register_forward_pre_hook(lambda _m, args: seen.update(z=args[0].view(*args[0].shape[:2], 4, 8))),
        layer.mlp.down_proj.register_forward_pre_hook(lambda _m, args: seen.update(mlp_post=args[0])),
        layer.mlp.register_forward_hook(lambda _m, _a, out: seen.update(mlp_out=out)),
    ]
    with torch.no_grad():
        toy.hf(input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids, use_cache=False)
    for handle in handles:
        handle.remove()
    ours = taps.read(toy, batch, list(seen), [1], positions="all")
    assert len(seen) == 10
    for site, value in seen.items():
        assert torch.equal(ours[site][0], value), site


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi3"])
def test_fused_projections_by_hand(toys, family):
    """q, k and v of a fused map, cut out by the layout that the architecture's own code uses."""
    model = toys[family]
    batch, seen = model.encode(TEXTS), {}
    path = {"gpt2": "transformer.h.1.attn.c_attn", "gpt_neox": "gpt_neox.layers.1.attention.query_key_value"}
    fused = model.hf.get_submodule(path.get(family, "model.layers.1.self_attn.qkv_proj"))
    handle = fused.register_forward_hook(lambda _m, _a, out: seen.update(out=out.detach()))
    ours = taps.read(model, batch, ["q", "k", "v"], [1], positions="all")
    handle.remove()
    out = seen["out"]
    if family == "gpt_neox":
        theirs = dict(zip("qkv", out.view(*out.shape[:2], 4, 24).split(8, -1), strict=True))
    else:
        sizes = [32, 8 * model.anatomy.n_kv_heads, 8 * model.anatomy.n_kv_heads]
        theirs = {part: value.unflatten(-1, (-1, 8)) for part, value in zip("qkv", out.split(sizes, -1), strict=True)}
    for part, value in theirs.items():
        assert torch.equal(ours[part][0], value), part


def test_reading_makes_no_logits_and_leaves_nothing_behind(model):
    calls, before = [], hooks_left(model)
    handle = model.anatomy.unembed.register_forward_hook(lambda *_: calls.append(1))
    taps.read(model, model.encode(TEXTS), ["resid_post", "pattern", "z"])
    handle.remove()
    assert calls == []
    assert hooks_left(model) == before


def test_pattern_is_that_of_eager_attention(model):
    """The model runs a fused kernel, which has no pattern to give; the pass that reads it gives that of the eager implementation."""
    batch = model.encode(TEXTS)
    before = model.hf.config._attn_implementation
    assert before == "sdpa" or (before, model.anatomy.family) == ("eager", "gemma2")  # transformers' own choice: Gemma 2 caps its scores
    with torch.no_grad():
        plain = model.logits(batch, "all")
        ours = taps.read(model, batch, ["pattern"], positions="all")["pattern"]
        model.hf.set_attn_implementation("eager")
        try:
            theirs = torch.stack(
                model.hf(
                    input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids, output_attentions=True
                ).attentions
            )
        finally:
            model.hf.set_attn_implementation(before)
        assert torch.allclose(ours, theirs, atol=1e-5)
        assert torch.equal(model.logits(batch, "all"), plain)
    real = batch.attention_mask.bool()
    rows = ours.transpose(2, 3)[:, real]  # [layers, real tokens, heads, keys]
    assert torch.allclose(rows.sum(-1), torch.ones(rows.shape[:-1]), atol=1e-5)
    width = batch.input_ids.shape[1]
    ahead = ours.masked_select(torch.triu(torch.ones(width, width, dtype=torch.bool), 1).expand_as(ours) & real[None, :, None, :, None])
    assert ahead.abs().max() == 0


def test_a_pattern_read_twice_is_the_same(toy):
    batch = toy.encode(TEXTS)
    first, second = (taps.read(toy, batch, ["pattern"])["pattern"] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("site", ["resid_pre", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z", "mlp_post"])
def test_an_edit_is_what_is_read_there(model, site):
    """Whatever fn returns is what the model goes on with, and what lies below is untouched."""
    batch = model.encode(TEXTS)
    plain = taps.read(model, batch, ["resid_post"], [0])["resid_post"]
    with taps.edit(model, site, 1, lambda value: torch.full_like(value, 0.25)):
        seen = taps.read(model, batch, [site, "resid_post"], positions="all")
    if site in ("resid_pre", "z", "mlp_post"):  # inputs: our hook ran first; outputs are read before or after it alike
        assert torch.all(seen[site][1] == 0.25)
    assert torch.equal(seen["resid_post"][0][:, -1], plain[0])


def test_edited_values_of_one_head_move_no_other_head(model):
    """With fused projections too: v of one head reaches z of its own group alone."""
    batch = model.encode(TEXTS)
    group = model.anatomy.n_heads // model.anatomy.n_kv_heads

    def louder(value):
        value = value.clone()
        value[:, :, 1] *= 2
        return value

    plain = taps.read(model, batch, ["z"], [1])["z"][0]
    with taps.edit(model, "v", 1, louder):
        edited = taps.read(model, batch, ["z"], [1])["z"][0]
    mine = slice(group, 2 * group)
    assert torch.allclose(edited[:, mine], 2 * plain[:, mine], atol=1e-5)
    assert torch.allclose(edited[:, :group], plain[:, :group], atol=1e-6)


def test_edits_nest_and_undo_themselves(toy):
    batch, before = toy.encode(TEXTS), hooks_left(toy)
    with torch.no_grad():
        plain = toy.logits(batch)
        with taps.edit(toy, "resid_post", 0, lambda x: x + 1), taps.edit(toy, "resid_post", 0, lambda x: x - 1):
            assert torch.allclose(toy.logits(batch), plain, atol=1e-4)
        with taps.edit(toy, "z", 0, torch.zeros_like):
            with taps.edit(toy, "mlp_out", 0, torch.zeros_like):
                both = taps.read(toy, batch, ["resid_pre"], [0, 1])["resid_pre"]
            assert torch.allclose(both[0], both[1])  # layer 0 adds nothing
            assert not torch.allclose(toy.logits(batch), plain)
        assert torch.equal(toy.logits(batch), plain)
    assert hooks_left(toy) == before


def test_what_goes_wrong_inside_leaves_nothing_behind(toy):
    batch, before = toy.encode(TEXTS), hooks_left(toy)
    with torch.no_grad():
        plain = toy.logits(batch)
        with pytest.raises(ZeroDivisionError), taps.edit(toy, "z", 1, lambda z: z * (1 / 0)):
            toy.hidden(batch)
        with pytest.raises(UsageError):
            taps.read(toy, batch, ["z", "pattern", "resid_pots"])
        assert torch.equal(toy.logits(batch), plain)
    assert hooks_left(toy) == before
    assert toy.hf.config._attn_implementation == "sdpa"


def test_gradients_flow_through_edits(toys):
    """Attribution patching needs them: d logit / d z by autograd equals a finite difference."""
    for family in ("llama", "gpt2", "gpt_neox"):
        model = toys[family]
        batch = model.encode(TEXTS[:1])
        for site in ("z", "v"):
            delta = torch.zeros(1, requires_grad=True)
            with taps.edit(model, site, 1, lambda x, delta=delta: x + delta):
                model.hidden(batch)[0, -1].sum().backward()
            ends = []
            for step in (1e-2, -1e-2):
                with torch.no_grad(), taps.edit(model, site, 1, lambda x, step=step: x + step):
                    ends.append(float(model.hidden(batch)[0, -1].sum()))
            assert float(delta.grad) == pytest.approx((ends[0] - ends[1]) / 2e-2, rel=0.05, abs=0.02), (family, site)


def test_what_an_architecture_lacks_is_said(toys):
    with pytest.raises(SubjectError, match="gpt_neox runs attention and feed-forward in parallel: it has no resid_mid"):
        taps.read(toys["gpt_neox"], toys["gpt_neox"].encode(TEXTS), ["resid_mid"])


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_what_is_read_beside_a_pattern_is_that_of_a_plain_pass(toy, kernel):
    """Bit for bit: the model's own kernel goes on computing. And only the heads that were asked for are kept."""
    batch, before = toy.encode(TEXTS), toy.hf.config._attn_implementation
    toy.hf.set_attn_implementation(kernel)
    try:
        plain = taps.read(toy, batch, ["resid_post", "z"])
        beside = taps.read(toy, batch, ["resid_post", "z", "pattern"])
        assert all(torch.equal(plain[site], beside[site]) for site in plain)
        some = taps.read(toy, batch, ["pattern", "z", "resid_post"], [1], heads=[3, 0])
        assert torch.equal(some["pattern"][0], beside["pattern"][1][:, [3, 0]])
        assert torch.equal(some["z"][0], plain["z"][1][:, [3, 0]])
        assert torch.equal(some["resid_post"][0], plain["resid_post"][1])
        assert toy.hf.config._attn_implementation == kernel
    finally:
        toy.hf.set_attn_implementation(before)
    with pytest.raises(UsageError, match="head 4 does not exist: z of toy-llama has heads 0 to 3"):
        taps.read(toy, batch, ["z"], heads=[4])


@torch.no_grad()
def test_an_edited_pattern_is_what_z_is_made_with(model):
    """z = pattern · values, with the pattern that fn returns; the identity changes nothing but rounding; other layers are as they were."""
    batch, group = model.encode(TEXTS), model.anatomy.n_heads // model.anatomy.n_kv_heads

    def no_first_key(pattern):
        pattern = pattern.clone()
        pattern[:, 2, :, 1] = 0
        return pattern

    plain = taps.read(model, batch, ["z", "v", "pattern"], positions="all")
    logits = model.logits(batch)
    with taps.edit(model, "pattern", 1, no_first_key):
        edited = taps.read(model, batch, ["z"], positions="all")["z"]
        changed = model.logits(batch)
    values = plain["v"][1].repeat_interleave(group, 2)
    expected = torch.einsum("bhqk,bkhd->bqhd", no_first_key(plain["pattern"][1]), values)
    real = batch.attention_mask.bool()
    assert torch.allclose(edited[1][real], expected[real], atol=1e-4)
    assert torch.equal(edited[0], plain["z"][0])
    assert not torch.allclose(changed, logits, atol=1e-4)
    with taps.edit(model, "pattern", 1, lambda pattern: pattern):
        assert torch.allclose(model.logits(batch), logits, atol=1e-4)
    assert torch.equal(model.logits(batch), logits)


def test_a_kernel_without_a_pattern_is_said(toy, monkeypatch):
    monkeypatch.setattr(type(toy.hf.config), "_attn_implementation", "flash_attention_2")
    with pytest.raises(SubjectError, match="runs flash_attention_2, which gives no attention pattern"):
        taps.read(toy, toy.encode(TEXTS), ["pattern"])


def test_mass_is_the_share_of_a_pattern(model):
    batch = model.encode(TEXTS)
    pattern = taps.read(model, batch, ["pattern"])["pattern"]
    heads, columns = [Head(2, 3), Head(0, 1)], [[4], [-1, -2], [0, 5]]
    found = attention.mass(model, batch, heads, columns)
    for text, chosen in enumerate(columns):
        for i, head in enumerate(heads):
            assert float(found[text, i]) == pytest.approx(float(pattern[head.layer, text, head.head, chosen].sum()), abs=1e-5)
    with pytest.raises(UsageError, match=r"head 0.4 does not exist"):
        attention.mass(model, batch, [Head(0, 4)], columns)


@pytest.mark.parametrize("site", ["resid_pre", "resid_post", "z", "mlp_out"])
def test_a_reader_changes_nothing_whatever_it_returns(toy, site):
    batch = toy.encode(["The capital of France is"])
    before = toy.logits(batch)
    handle = hooks.on_read(toy.anatomy, toy.anatomy.site(site, 1), lambda value: value * 0)
    try:
        assert torch.equal(toy.logits(batch), before)
    finally:
        handle.remove()


def test_chosen_columns_and_logits(model):
    """What is read at some columns is what stands there when all are read; `logits` is a site too."""
    batch = model.encode(TEXTS)
    every = taps.read(model, batch, ["z", "resid_post", "pattern", "logits"], [2, 0], positions="all")
    some = taps.read(model, batch, ["z", "resid_post", "pattern", "logits"], [2, 0], positions=[-1, -3])
    own = taps.read(model, batch, ["z", "pattern", "logits"], [2, 0], positions=[[9, -1], [-1, -2], [0, 3]])
    width, rows = batch.input_ids.shape[1], torch.arange(3)[:, None]
    columns = torch.tensor([[9, width - 1], [width - 1, width - 2], [0, 3]])
    for site in ("z", "resid_post"):
        assert torch.equal(some[site], every[site][:, :, [-1, -3]])
    assert torch.equal(some["pattern"], every["pattern"][:, :, :, [-1, -3]])
    assert torch.equal(own["z"], every["z"][:, rows, columns])
    assert torch.equal(own["pattern"], every["pattern"].transpose(2, 3)[:, rows, columns].transpose(2, 3))
    assert torch.equal(every["logits"], model.logits(batch, "all"))
    assert torch.equal(some["logits"], every["logits"][:, [-1, -3]])
    assert torch.equal(own["logits"], every["logits"][rows, columns])
    assert torch.equal(taps.read(model, batch, ["logits"])["logits"], model.logits(batch))


def test_columns_that_are_not_there_are_named(toy):
    batch = toy.encode(TEXTS)
    for positions, message in (
        ([14], "position 14 does not exist: the batch has columns 0 to 13"),
        ([2], r"column 2 is padding in text 0, which has 9 of 14 tokens: count from the end, or give a list of columns for each text"),
        ([[1], [2]], r"positions must be columns \[P\], or \[3, P\], a list for each text; got \[2, 1\]"),
        ([], r"got \[0\]"),
        ("first", "no positions 'first': give columns, or last or all"),
    ):
        with pytest.raises(UsageError, match=message):
            taps.read(toy, batch, ["z"], positions=positions)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_in_training_a_pattern_is_that_before_dropout_and_reading_it_draws_nothing(tokenizer, kernel):
    model = make_toy("llama", tokenizer)
    model.hf.set_attn_implementation(kernel)
    batch = model.encode(TEXTS)
    plain = taps.read(model, batch, ["pattern"], [0], positions="all")["pattern"]
    model.hf.train()
    for layer in range(model.anatomy.n_layers):
        model.anatomy.attn(layer).attention_dropout = 0.5

    def run():
        torch.manual_seed(0)
        return model.logits(batch)

    before = run()
    assert torch.equal(taps.read(model, batch, ["pattern"], [0], positions="all")["pattern"], plain)
    with attention.watched(model, {1: lambda pattern: None}):
        assert torch.equal(run(), before)
