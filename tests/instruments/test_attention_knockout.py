"""Attention knockout: equals attention weights set to nothing by hand, in every layer prefix; a planted edge matters in its layer alone."""

import pytest
import torch
from tests.conftest import FAMILIES
from tests.instruments.test_circuits import batch_of
from tests.instruments.test_paths import wired_chain
from tests.models.test_dataflow import DECODERS, HYBRIDS, build

from nullius.errors import SubjectError, UsageError
from nullius.instruments import attention_knockout, taps

CUTS = [(7, 2), (tuple(4 + i % 3 for i in range(12)), 1)]


@pytest.mark.parametrize("family", FAMILIES)
def test_up_to_each_layer_is_the_plain_run_with_these_layers_blocked(toys, family):
    model = toys[family]
    batch = batch_of(model)
    found = attention_knockout.up_to_each_layer(model, batch, CUTS)
    with torch.no_grad():
        assert torch.allclose(found[0], model.logits(batch), atol=2e-4)
        for upto in range(1, model.anatomy.n_layers + 1):
            with attention_knockout.blocked(model, 12, 8, CUTS, range(upto)):
                expected = model.logits(batch)
            assert torch.allclose(found[upto], expected, atol=2e-4)
            assert not torch.allclose(found[upto], found[0], atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_neox"])
def test_the_pattern_shows_the_cut(toys, family):
    """What went to the cut key is shared out among the others, in proportion."""
    model = toys[family]
    batch = batch_of(model)
    before = taps.read(model, batch, ["pattern"], [0], positions="all")["pattern"][0]
    with attention_knockout.blocked(model, 12, 8, CUTS, [0], heads=[1, 2]):
        after = taps.read(model, batch, ["pattern"], [0], positions="all")["pattern"][0]
    assert torch.equal(before[:, [0, 3]], after[:, [0, 3]]) or torch.allclose(before[:, [0, 3]], after[:, [0, 3]], atol=1e-6)
    expected = before.clone()
    for i in range(12):
        for query, key in ((7, 2), (4 + i % 3, 1)):
            expected[i, 1:3, query, key] = 0
    expected = expected / expected.sum(-1, keepdim=True)
    assert torch.allclose(after[:, 1:3], expected[:, 1:3], atol=1e-5)


def test_planted_edge(tokenizer):
    """Only heads 0.2 and 2.1 write: an edge that only layer 2 uses matters from the cut in layer 2 on, and one that nobody uses never."""
    model = wired_chain(tokenizer)
    with torch.no_grad():
        model.anatomy.o_proj(0).weight.zero_()
    batch = batch_of(model)
    pattern = taps.read(model, batch, ["pattern"], [2], positions="all")["pattern"][0][:, 1, -1]  # of 2.1, at the last token
    used = tuple(pattern[:, :-1].argmax(-1).tolist())
    found = attention_knockout.up_to_each_layer(model, batch, [(-1, used)])
    change = (found - found[0]).abs().amax((1, 2))
    assert change[:3].max() < 1e-4
    assert change[3] > 1e-2
    aside = attention_knockout.up_to_each_layer(
        model, batch, [(5, 1)]
    )  # what position 5 sees does not reach the last token: nothing is read there
    assert (aside - aside[0]).abs().max() < 1e-4
    silent = attention_knockout.up_to_each_layer(model, batch, [(-1, used)], heads=[0, 3])
    assert (silent - silent[0]).abs().max() < 1e-4


def test_the_model_is_left_as_it_was(toy):
    batch = batch_of(toy)
    before = toy.logits(batch)
    attention_knockout.up_to_each_layer(toy, batch, CUTS)
    assert torch.equal(toy.logits(batch), before)


@pytest.mark.parametrize(
    ("cuts", "words"),
    [
        ([(2, 5)], "which comes later"),
        ([(0, 0)], "left with nothing"),
        ([(9, 1)], "position 9 does not exist"),
        ([((1, 2), 0)], "2 positions for 12"),
        ([(None, 1)], "from one position to one position"),
    ],
)
def test_refusals(toy, cuts, words):
    with pytest.raises(UsageError, match=words):
        attention_knockout.up_to_each_layer(toy, batch_of(toy), cuts)
    with pytest.raises(UsageError, match="heads 0 to 3"):
        attention_knockout.up_to_each_layer(toy, batch_of(toy), [(7, 2)], heads=[4])
    with pytest.raises(UsageError, match="do not have one length"):
        attention_knockout.up_to_each_layer(toy, ["one", "one two three four"], [(-1, 0)])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "gpt_neox"])
def test_a_window_says_who_sees_whom(toys, family):
    """A later token can be seen and an earlier one not; a causal window changes nothing; a function of the ids is asked in every pass."""
    model = toys[family]
    batch = batch_of(model)
    n, length = batch.input_ids.shape
    causal = torch.ones(length, length, dtype=torch.bool).tril().expand(n, -1, -1)
    plain = model.logits(batch).detach()
    with attention_knockout.window(model, causal):
        assert torch.allclose(model.logits(batch), plain, atol=1e-5)
    sees = causal.clone()
    sees[:, 2, 5], sees[3, 7, 1] = True, False
    with attention_knockout.window(model, sees, [1]):
        below, pattern = (x.float() for x in taps.read(model, batch, ["pattern"], [0, 1], positions="all")["pattern"])
    assert float(below[..., 2, 5].abs().max()) == 0
    assert float(pattern[..., 2, 5].min()) > 0
    assert float(pattern[3, :, 7, 1].abs().max()) == 0 < float(pattern[4, :, 7, 1].min())
    asked = []
    with attention_knockout.window(model, lambda ids: asked.append(ids.shape) or causal[: len(ids)]), torch.enable_grad():
        loss = model.logits(batch).square().mean()
        (gradient,) = torch.autograd.grad(loss, model.hf.get_input_embeddings().weight)
    assert asked == [batch.input_ids.shape]
    assert float(gradient.abs().max()) > 0


@pytest.mark.parametrize(
    ("sees", "words"),
    [
        (torch.ones(2, 3, 3), r"sees must be bool \[n, T, T\], or \[n, 4, T, T\]; got torch.float32 \[2, 3, 3\]"),
        (torch.ones(2, 3, 4, 4, dtype=torch.bool), r"got torch.bool \[2, 3, 4, 4\]"),
        (
            torch.eye(3, dtype=torch.bool)[[0, 1, 0]][None] & torch.tensor([True, True, False]).diag(),
            "text 0: position 2 would see nothing",
        ),
    ],
)
def test_a_window_that_cannot_be(toy, sees, words):
    with pytest.raises(UsageError, match=words), attention_knockout.window(toy, sees):
        pass


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "gpt_neox"])
def test_what_is_cut_outside_stays_cut_and_padding_stays_hidden(toys, family):
    """Cuts nest, within a window too; a padded text gives what it gives alone; nothing is broadcast."""
    model = toys[family]
    batch = batch_of(model)
    n, length = batch.input_ids.shape
    sees = torch.ones(length, length, dtype=torch.bool).tril().repeat(n, 1, 1)
    sees[:, 6, 1] = False
    with (
        attention_knockout.window(model, sees, [1]),
        attention_knockout.blocked(model, n, length, [(5, 2)], [1]),
        attention_knockout.blocked(model, n, length, [(5, 3)], [1], heads=[0]),
    ):
        pattern = taps.read(model, batch, ["pattern"], [1], positions="all")["pattern"][0]
    assert float(pattern[:, :, 6, 1].max()) == float(pattern[:, :, 5, 2].max()) == float(pattern[:, 0, 5, 3].max()) == 0
    assert float(pattern[:, 1:, 5, 3].min()) > 0
    padded = model.encode(["The capital of France is", "A claim"])
    rows, width = padded.input_ids.shape
    alone = model.encode(["A claim"])
    with torch.no_grad():
        with attention_knockout.blocked(model, rows, width, [(-1, -2)], [0, 1]):
            together = model.logits(padded)
        with attention_knockout.blocked(model, 1, alone.input_ids.shape[1], [(-1, -2)], [0, 1]):
            assert torch.allclose(model.logits(alone)[0], together[1], atol=1e-5)
        with attention_knockout.window(model, sees), pytest.raises(UsageError, match="some are padded"):
            model.logits(padded)
        for few, many in (((1, length), (n, length)), ((n, length - 1), (n, length))):
            message = f"are for {few[0]} texts of {few[1]} tokens; this pass carries {many[0]} of {many[1]}"
            with attention_knockout.blocked(model, *few, [(5, 2)], [1]), pytest.raises(UsageError, match=message):
                model.logits(batch)
        with attention_knockout.window(model, sees[:1]), pytest.raises(UsageError, match=f"sees are for 1 texts of {length} tokens"):
            model.logits(batch)
        with attention_knockout.blocked(model, 2, 9, [(5, 2)], [1]), pytest.raises(UsageError, match="carries 2 of 1 "):
            model.generate(["The capital of France is"] * 2, 3)


@pytest.mark.parametrize("name", ["mpt", "bloom", "gpt_oss", "opt"])
@torch.no_grad()
def test_masks_of_all_kinds(tokenizer, name):
    """Masks that say what is hidden, that are added to a bias, that leave room for a sink, of texts laid end to end."""
    family, sizes, _ = DECODERS[name]
    model = build(family, tokenizer, **sizes)
    padded, alone = model.encode(["The capital of France is", "A claim"]), model.encode(["A claim"])
    with attention_knockout.blocked(model, *padded.input_ids.shape, [(-1, -2)], range(model.anatomy.n_layers)):
        pattern = taps.read(model, padded, ["pattern"])["pattern"]
        together = model.logits(padded)
    assert float(pattern[..., -2].max()) == 0 < float(pattern[..., -1].min())
    with attention_knockout.blocked(model, *alone.input_ids.shape, [(-1, -2)], range(model.anatomy.n_layers)):
        assert torch.allclose(model.logits(alone)[0], together[1], atol=1e-4)


def test_a_layer_that_does_not_attend_is_said(tokenizer):
    model = build("lfm2", tokenizer, **HYBRIDS["lfm2"])
    with pytest.raises(SubjectError, match="layer 0 of lfm2 mixes tokens by Lfm2ShortConv"):
        attention_knockout.blocked(model, 1, 3, [(-1, -2)], [0]).__enter__()
    with pytest.raises(SubjectError, match="layer 0 of lfm2 mixes tokens by Lfm2ShortConv"):
        attention_knockout.window(model, torch.ones(1, 3, 3, dtype=torch.bool)).__enter__()
