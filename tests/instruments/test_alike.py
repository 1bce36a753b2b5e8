"""Texts that begin alike: the run whose beginning is made once is that of whole texts, everywhere; where they do not, nothing is shared."""

import numpy as np
import pytest
import torch

from nullius.instruments import alike, knockout, paths, taps, wavefront
from nullius.instruments.heads import Head
from nullius.instruments.questions import Questions
from nullius.models.language_model import Batch

IDS = torch.randint(5, 900, (5, 9), generator=torch.Generator().manual_seed(0))
IDS[:, :6] = IDS[0, :6]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "olmo2", "phi3", "qwen3"])
def test_the_run_is_that_of_whole_texts(toys, family):
    model = toys[family]
    batch = model.pad(IDS.tolist())
    rows = []
    handle = model.anatomy.attn(1).register_forward_hook(lambda _m, _a, output: rows.append(tuple(output[0].shape[:2])))
    once = alike.run_base(model, batch, ["z", "mlp_out"])
    handle.remove()
    assert rows == [(1, 6), (5, 3)]
    whole = wavefront.run_base(model, batch, ["z", "mlp_out"])
    for name in ("stream", "last", "end", "logits"):
        assert torch.allclose(getattr(once, name), getattr(whole, name), atol=1e-4), name
    for site in whole.sites:
        assert torch.allclose(once.sites[site], whole.sites[site], atol=1e-4), site
    for a, b in zip((*once.keys, *once.values), (*whole.keys, *whole.values), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_how_much_is_shared(toy):
    assert alike.beginning(toy.pad(IDS.tolist())) == 6
    assert alike.beginning(toy.pad(IDS[:, 2:].tolist())) == 4
    assert alike.beginning(toy.pad(IDS[:, 4:].tolist())) == 0  # two of five
    assert alike.beginning(toy.pad(IDS[:1].tolist())) == 0
    assert alike.beginning(toy.pad(IDS[[0, 0]].tolist())) == 8
    assert alike.beginning(toy.pad([IDS[0].tolist(), IDS[1, :8].tolist()])) == 0
    other = IDS.clone()
    other[3, 0] += 1
    assert alike.beginning(Batch(other, torch.ones_like(other))) == 0


def both_ways(found, monkeypatch):
    """What a measurement gives with the beginning run once, and with whole texts."""
    used, real = [], alike.beginning
    monkeypatch.setattr(alike, "beginning", lambda batch: used.append(real(batch)) or used[-1])
    once = found()
    assert 6 in used
    monkeypatch.setattr(alike, "beginning", lambda _batch: 0)
    return once, found()


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma2"])
@pytest.mark.parametrize("held", ["none", "all"])
def test_path_patching_and_knock_outs_find_the_same(toys, family, held, monkeypatch):
    model = toys[family]
    base, source = model.pad(IDS.tolist()), model.pad([[*row[:6], row[6] + 1, *row[7:]] for row in IDS.tolist()])
    senders, answers = paths.all_senders(model), [[7, 8]] * 5

    def patched():
        return paths.patch(model, base, source, senders, answers, held_mlps=held).values

    once, whole = both_ways(patched, monkeypatch)
    assert torch.allclose(once, whole, atol=1e-4)
    assert (whole - whole[:, :1]).abs().max() > 1e-2
    if held == "none":
        monkeypatch.undo()
        once, whole = both_ways(lambda: knockout.mean_by_position(model, base), monkeypatch)
        assert torch.allclose(once, whole, atol=1e-5)
        asked = Questions(("",) * 5, tuple(map(tuple, IDS.tolist())), model.logits(base).argmax(-1).numpy())
        monkeypatch.undo()
        once, other = both_ways(lambda: knockout.falls(model, asked, whole, [[Head(1, 0), Head(2, 3)], [Head(0, 1)]]), monkeypatch)
        assert np.array_equal(once, other)


def test_an_open_edit_is_seen_by_whole_texts(toy, monkeypatch):
    """While somebody's hooks are open nothing is shared: an edit may do something else at each position."""
    ran = []
    monkeypatch.setattr(alike, "run_base", lambda *_: ran.append(1))
    with taps.edit(toy, "mlp_out", 0, lambda x: x * torch.linspace(0, 1, 9)[:, None] if x.shape[1] == 9 else x):
        knockout.mean_by_position(toy, toy.pad(IDS.tolist()))
    assert not ran
