"""Sweeps and path patching on families whose code has ways of its own: they agree with plain runs, or one line says that they cannot be done."""

import pytest
import torch
from tests.models.test_dataflow import DECODERS, HYBRIDS, build

from nullius.errors import SubjectError
from nullius.instruments import direct_effects, edges, interchange, patching, paths, resumable, taps
from nullius.instruments.heads import Head

BASE, SOURCE, ANSWERS = [[5, 6, 7, 8, 9, 10], [5, 6, 11, 8, 9, 12]], [[5, 6, 17, 8, 9, 10], [5, 6, 21, 8, 9, 12]], [[5, 6], [7, 8]]


def made(name, tokenizer):
    family, sizes, _ = DECODERS[name]
    return build(family, tokenizer, **sizes)


@pytest.mark.parametrize("name", ["cohere", "falcon, groups", "gptj", "gpt_oss", "granite, scaled", "mpt"])
def test_every_patch_agrees_with_a_plain_run(name, tokenizer):
    """Layers that return tuples, change tensors in place, multiply what they add, take the stream as well: all cells and senders are checked."""
    model = made(name, tokenizer)
    base, source = model.pad(BASE), model.pad(SOURCE)
    for sweep in (patching.residual(model, base, source, ANSWERS, checks=30), patching.heads(model, base, source, ANSWERS, checks=24)):
        assert sweep.checked >= 24
        assert float((sweep.values - sweep.base[:, None, None]).abs().max()) > 1e-4
    senders = paths.all_senders(model)
    receivers = paths.receivers_of(model, "q", [Head(2, 1)])
    for more in ({}, {"receivers": receivers, "held_mlps": "all"}, {"free_heads": [Head(2, 1), Head(1, 0)], "at": 2}):
        found = paths.patch(model, base, source, senders, ANSWERS, checks=len(senders), at=more.pop("at", None), **more)
        assert found.checked == len(senders)
    found = direct_effects.decompose(model, ["The capital of France is"], [5], [7])
    assert torch.allclose(found.total, found.logit, atol=1e-4)


@pytest.mark.parametrize("name", ["bloom", "falcon, serial", "llama4", "opt", "xglm"])
def test_what_cannot_be_run_from_the_middle_is_said(name, tokenizer):
    model = made(name, tokenizer)
    base, source = model.pad(BASE), model.pad(SOURCE)
    said = f"the layers of {model.anatomy.family} cannot be run from the middle of a text \\(.*\\): sweeps and path patching cannot be done on it"
    for run in (
        lambda: patching.heads(model, base, source, ANSWERS),
        lambda: paths.patch(model, base, source, [Head(0, 1)], ANSWERS),
        lambda: interchange.last_token(model, ["a claim"], ["a claim"], [[1, 2]], [0]),
    ):
        with pytest.raises(SubjectError, match=said):
            run()
    taps.read(model, base, ["z", "resid_post"])
    if model.anatomy.lies_flat:
        with pytest.raises(SubjectError, match="edges cannot be cut there"):
            edges.nodes(model)


def test_recurrences_are_named(tokenizer):
    model = build("lfm2", tokenizer, **HYBRIDS["lfm2"])
    with pytest.raises(SubjectError, match=r"cannot be run from the middle of a text \(layer 0 mixes tokens by Lfm2ShortConv\)"):
        patching.residual(model, model.pad(BASE), model.pad(SOURCE), ANSWERS)


def test_rows_that_do_not_join(tokenizer):
    model = made("gpt_bigcode", tokenizer)
    patching.heads(model, model.pad(BASE), model.pad(SOURCE), ANSWERS)
    with pytest.raises(SubjectError, match="gpt_bigcode does not bear rows that join on the way up: path patching cannot be done on it"):
        paths.patch(model, model.pad(BASE), model.pad(SOURCE), [Head(0, 1), Head(0, 2)], ANSWERS)


def test_a_models_hooks_are_no_part_of_the_trial(tokenizer):
    """Under an edit that spoils every pass nothing is concluded about the model."""
    model = made("mistral", tokenizer)
    with taps.edit(model, "resid_post", 0, lambda x: x * 0):
        resumable.check(model)
    assert model.anatomy not in resumable._tried
    resumable.check(model)
    assert resumable._tried[model.anatomy] == ""


def test_a_model_that_takes_few_tokens(tokenizer):
    """It is tried on as many as it takes, and every cell of its sweep is as a plain run has it."""
    model = build("gpt2", tokenizer, max_position_embeddings=4)
    base, source = model.pad([row[:4] for row in BASE]), model.pad([row[:4] for row in SOURCE])
    sweep = patching.residual(model, base, source, ANSWERS, checks=12)
    assert sweep.checked == 12
    assert float((sweep.values - sweep.base[:, None, None]).abs().max()) > 1e-4
