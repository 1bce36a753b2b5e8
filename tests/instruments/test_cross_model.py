"""Cross-model patching: from itself nothing changes; a head that only the donor has is found; other shapes and vocabularies are refused."""

import copy

import pytest
import torch
from tests.conftest import FAMILIES, make_toy
from tests.instruments.test_circuits import batch_of

from nullius.errors import SubjectError, UsageError
from nullius.instruments import cross_model, patching, taps
from nullius.instruments.circuits import Group
from nullius.instruments.heads import Head
from nullius.instruments.path_runs import Mlp
from nullius.models.language_model import LanguageModel

GROUPS = [Group("a", (Head(0, 1), Head(1, 3)), tuple(i % 8 for i in range(12))), Group("b", (Head(2, 0), Head(2, 2)))]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", ["z", "q", "k", "v"])
def test_null_a_model_gives_itself_what_it_has(toys, family, site):
    model = toys[family]
    batch = batch_of(model)
    plain = model.logits(batch).detach()
    for hold in (False, True):
        assert torch.allclose(cross_model.patch(model, model, batch, GROUPS, site=site, hold=hold), plain, atol=1e-5)


def tuned(model, change):
    """A copy with some heads' output projection changed."""
    other = LanguageModel.wrap(copy.deepcopy(model.hf), model.tokenizer, "tuned")
    width = other.anatomy.d_head
    with torch.no_grad():
        for head in change:
            other.anatomy.o_proj(head.layer).weight[:, head.head * width : (head.head + 1) * width].normal_(
                generator=torch.Generator().manual_seed(head.head)
            )
    return other


def test_planted_queries_are_what_differs(toy):
    """The donor differs in the query of 2.1 alone: pasting it makes the model the donor; pasting another, or its keys, changes nothing."""
    donor = LanguageModel.wrap(copy.deepcopy(toy.hf), toy.tokenizer, "tuned")
    width = toy.anatomy.d_head
    with torch.no_grad():
        donor.hf.model.layers[2].self_attn.q_proj.weight[width : 2 * width].mul_(-1)
    batch = batch_of(toy)
    goal, plain = donor.logits(batch).detach(), toy.logits(batch).detach()
    assert not torch.allclose(goal, plain, atol=1e-3)
    group = Group("found", (Head(2, 1),))
    assert torch.allclose(cross_model.patch(toy, donor, batch, [group], site="q"), goal, atol=1e-5)
    assert torch.allclose(cross_model.patch(toy, donor, batch, [group], site="z"), goal, atol=1e-5)
    assert torch.allclose(cross_model.patch(toy, donor, batch, [group], site="v"), plain, atol=1e-5)
    assert torch.allclose(cross_model.patch(toy, donor, batch, [Group("other", (Head(2, 3),))], site="q"), plain, atol=1e-5)


def test_it_is_what_hooks_by_hand_give(toy):
    donor = tuned(toy, [Head(0, 2), Head(1, 0)])
    batch = batch_of(toy)
    theirs = taps.read(donor, batch, ["z"], positions="all")["z"]

    def paste(z):
        z = z.clone()
        for i in range(12):
            z[i, i % 8, 3] = theirs[1][i, i % 8, 3]
        return z

    with torch.no_grad(), taps.edit(toy, "z", 1, paste):
        expected = toy.logits(batch)
    group = Group("a", (Head(1, 3),), tuple(i % 8 for i in range(12)))
    assert torch.allclose(cross_model.patch(toy, donor, batch, [group], batch_size=5), expected, atol=1e-5)


def test_planted_blocks_are_what_differs(toy):
    """The donor differs in one feed-forward block: pasting it makes the model the donor, pasting another changes nothing."""
    donor = LanguageModel.wrap(copy.deepcopy(toy.hf), toy.tokenizer, "tuned")
    with torch.no_grad():
        donor.hf.model.layers[1].mlp.down_proj.weight.mul_(-1)
    batch = batch_of(toy)
    goal, plain = donor.logits(batch).detach(), toy.logits(batch).detach()
    assert not torch.allclose(goal, plain, atol=1e-3)
    everywhere = Group("found", (), None, (Mlp(1),))
    assert torch.allclose(cross_model.patch(toy, donor, batch, [everywhere]), goal, atol=1e-5)
    assert torch.allclose(cross_model.patch(toy, donor, batch, [Group("other", (), None, (Mlp(0),))]), plain, atol=1e-5)
    with pytest.raises(UsageError, match="group 'found' holds feed-forward blocks, which have no q"):
        cross_model.patch(toy, donor, batch, [everywhere], site="q")


def test_held_values_stop_what_goes_through_other_positions(toy):
    """A paste at an earlier position reaches the last token only through other tokens' outputs, or through its own attention to them."""
    donor = tuned(toy, [Head(0, 2)])
    batch = batch_of(toy)
    early = [Group("v", (Head(1, 0),))]
    free = cross_model.patch(toy, donor, batch, early, site="v")
    held = cross_model.patch(toy, donor, batch, early, site="v", hold=True)
    assert not torch.allclose(free, held, atol=1e-4)


def test_refusals(toy, toys, tokenizer):
    batch = batch_of(toy)
    with pytest.raises(SubjectError, match="not of one architecture: family is gpt2 and llama"):
        cross_model.patch(toy, toys["gpt2"], batch, GROUPS)
    other = make_toy("llama", tokenizer)
    other.tokenizer = copy.deepcopy(tokenizer)
    other.tokenizer.add_tokens(["<new>"])
    with pytest.raises(SubjectError, match="do not share a vocabulary"):
        cross_model.patch(toy, other, batch, GROUPS)
    with pytest.raises(UsageError, match=r"a: head 1.9 does not exist: toy-llama has heads 0 to 3 in each layer"):
        cross_model.patch(toy, toy, batch, [Group("a", (Head(1, 9),))])
    with pytest.raises(UsageError, match=r"a: head 9.0 does not exist: toy-llama has layers 0 to 2"):
        cross_model.patch(toy, toy, batch, [Group("a", (Head(9, 0),))])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("site", ["resid_post", "mlp_out"])
def test_a_sweep_over_two_models_is_plain_patching_cell_by_cell(toys, family, site):
    """All cells are checked against plain runs; a model that is its own donor gives the sweep of one; one text for both leaves the models apart."""
    model = toys[family]
    donor = tuned(model, [Head(1, 2)]) if family == "llama" else LanguageModel.wrap(copy.deepcopy(model.hf), model.tokenizer, "tuned")
    with torch.no_grad():
        donor.anatomy.mlp(1).register_forward_hook(lambda _m, _a, out: out.roll(1, -1))
    base, source = batch_of(model), batch_of(model, 12, 8)
    source.input_ids[:, 3:] = source.input_ids[:, 3:].roll(1, 0)
    answers = [[11, 12]] * 12
    found = cross_model.residual(model, donor, base, source, answers, site=site, checks=24)
    assert found.checked == 24
    assert float((found.values - found.base[:, None, None])[:, :, :3].abs().max()) > 1e-5  # where the texts are alike the states are not
    last = donor.logits(source).float().detach()
    assert torch.allclose(found.source, last[:, 11] - last[:, 12], atol=1e-5)
    itself = cross_model.residual(model, model, base, source, answers, site=site)
    assert torch.allclose(itself.values, patching.residual(model, base, source, answers, site=site).values, atol=1e-4)
    with pytest.raises(SubjectError, match="not of one architecture"):
        cross_model.residual(model, toys["qwen3"], base, source, answers)
