"""Gradients of a batch: its parts add up to the whole; on a GPU, recorded passes give what plain ones give."""

from __future__ import annotations

import contextlib
import functools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.training.conftest import losses

from nullius.models import architectures
from nullius.stimuli import recall
from nullius.training import asked, evaluation, program, sentences
from nullius.training.config import Model, Optimiser
from nullius.training.passes import BEFORE, Passes, recordable
from nullius.training.resuming import Kept

SMALL = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def model(**changes):
    torch.manual_seed(0)
    return architectures.create({"model_type": "nullius", **SMALL, **changes}).train()


def passes(body, device="cpu", **how):
    device = torch.device(device)
    return Passes(
        functools.partial(evaluation.loss_of, body.to(device)),
        list(body.parameters()),
        device,
        lambda: torch.autocast(device.type, enabled=False),
        **how,
    )


def test_parts_add_up_to_the_batch():
    rows = torch.randint(0, 50, (6, 17))
    found = []
    for parts in ([rows], rows.split(2)):
        body = model(mixer="gla")
        body.lm_head.weight.grad = torch.ones_like(body.lm_head.weight)  # what is left over from elsewhere goes
        found.append([passes(body)(parts), *(parameter.grad for parameter in body.parameters())])
    for whole, added in zip(*found, strict=True):
        assert torch.allclose(whole, added, atol=1e-6)


def test_what_can_be_recorded():
    assert recordable(model(mixer="gla"))
    assert recordable(model(mixer="mlp"))
    assert recordable(model(mixer="random"))
    assert not recordable(torch.nn.Linear(2, 2))
    estranged = model(mixer="gla")
    architectures.estrange_gates(estranged)  # once, before training: each pass rolls the gates alike
    assert recordable(estranged)
    recomputed = model(mixer="gla")
    recomputed.model.gradient_checkpointing = True
    assert not recordable(recomputed)


class Graph:
    """Stands for a CUDA graph, on the CPU: what was done while it was recorded is done again, into the same memory."""

    def replay(self):
        made, gradients = self.made, self.made.gradients
        for parameter, gradient in gradients:
            parameter.grad = gradient if self.adds else None
        made.made_loss.copy_(made._pass(made.rows, self.parts))
        for parameter, gradient in gradients:
            if not self.adds:
                gradient.copy_(parameter.grad)
            parameter.grad = torch.full_like(gradient, torch.nan)  # whoever asks here, and not for what the graph wrote, finds nothing


@pytest.mark.parametrize("parts", [1, 3])
def test_gradients_of_replayed_passes_replace_those_before(parts, monkeypatch):
    """Losses, norms of gradients and weights are those of plain passes, before recording, at it and after."""
    rows = torch.randint(0, 50, (BEFORE + 3, 2 * parts, 17))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: contextlib.nullcontext())
    found = []
    for record in (False, True):
        body = model(mixer="gla")
        made, seen = passes(body), []
        made.record = record
        Graph.made, Graph.parts, Graph.adds = made, parts, parts > 1
        optimiser = torch.optim.SGD(body.parameters(), lr=0.1)
        for each in rows:
            loss = made(each.split(2))
            seen += [loss.item(), torch.nn.utils.clip_grad_norm_(body.parameters(), 0.5).item()]
            optimiser.step()
            optimiser.zero_grad()
        assert (made.graph is not None) == record
        found.append(torch.tensor(seen + [parameter.detach().norm().item() for parameter in body.parameters()]))
    assert torch.allclose(*found, rtol=1e-6)


def test_a_compiled_run_is_a_recorded_one(tiny, tmp_path, monkeypatch):
    """`compile: true` is enough; losses and measurements are those of the plain run, and a measurement between steps disturbs no graph."""
    config = replace(
        tiny, model=Model(new={"model_type": "nullius", **SMALL, "vocab_size": 400, "mixer": "gla"}), optimiser=Optimiser(rate=3e-3)
    )
    made = []

    class OnAnyDevice(Passes):
        def __init__(self, *given, record, **how):
            super().__init__(*given, record=record, **how)
            self.record = record
            Graph.made, Graph.parts, Graph.adds = self, config.batch // config.micro, True
            made.append(self)

    monkeypatch.setattr(program, "Passes", OnAnyDevice)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: contextlib.nullcontext())
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    runs = [replace(config, out=str(tmp_path / str(compiled)), compile=compiled) for compiled in (False, True)]
    found = [program.train(run) for run in runs]
    assert [passes.graph is not None for passes in made] == [False, True]
    assert losses(runs[0].out) == pytest.approx(losses(runs[1].out), rel=1e-5)
    assert found[0].held_out == pytest.approx(found[1].held_out, rel=1e-5)
    records = [json.loads(line) for line in (Path(runs[1].out) / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [record["step"] for record in records if "held_out" in record] == [6, 12]


# --- small networks of studies ---

KINDS = ("softmax", "gla", "scalar", "retnet", "ungated", "estranged", "mlp", "approximate", "non-approximate", "random", "fixed", "static")


def questions(n=60):
    """Streams that ask at other places, and at another number of them, in every batch."""
    return recall.pairs(n, np.random.default_rng(0), length=24, gaps=0.4)


def trained(kind, device, steps, label="one", bf16=False):
    """As studies do it: a network of two heads (or every other layer's) on streams that ask, its weights, and the loss of its last steps."""
    data, told = questions(), []
    wanted = {**SMALL, "mixer": "gla" if kind == "estranged" else kind, "max_position_embeddings": 24}
    wanted |= {"shadow_tokens": data.tokens[0].tolist()} if kind == "fixed" else {}
    bench = asked.Bench(torch.device(device), 0, Kept(), lambda label, done, total: told.append((label, done, total)))
    how = asked.Recipe(steps, 8, 5e-3, spread=0.1, bf16=bf16)
    hf = bench.trained(label, wanted, data, how, 0, architectures.estrange_gates if kind == "estranged" else None)
    assert told == [(label, step + 1, steps) for step in range(steps)]
    assert all(parameter.grad is None for parameter in hf.parameters())
    return torch.cat([p.detach().flatten().cpu() for p in hf.parameters()]), asked.measure(hf, data[:20])[0]


def test_losses_of_all_positions_are_those_of_the_questions():
    data = questions(7)
    hf = asked.fresh({**SMALL, "mixer": "gla", "vocab_size": data.vocabulary, "initializer_range": 0.3}, 0, "cpu")
    tokens, targets = torch.from_numpy(data.tokens), torch.from_numpy(data.targets)
    there = targets.flatten() != recall.NOTHING
    assert 7 < there.sum() < targets.numel() // 2
    everywhere = asked._losses(hf, tokens, targets, None)[0]
    assert torch.equal(everywhere != 0, there)
    assert asked._mean_loss(hf, torch.stack((tokens, targets))).item() == pytest.approx((everywhere.sum() / there.sum()).item(), rel=1e-6)
    logits = hf(input_ids=tokens, use_cache=False).logits.log_softmax(-1)
    wanted = [-logits[i, t, targets[i, t]].item() for i, t in (targets != recall.NOTHING).nonzero()]
    assert np.mean(wanted) == pytest.approx((everywhere.sum() / there.sum()).item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["gla", "estranged", "random"])
def test_studies_record_what_can_be_recorded(kind, monkeypatch):
    """On a GPU that is imitated, a network comes out as it does plainly."""
    plain = trained(kind, "cpu", BEFORE + 4)
    made = []

    class OnAnyDevice(Passes):
        def __init__(self, *given, record, **how):
            super().__init__(*given, record=record, **how)
            self.record = recordable(given[0].args[0])  # the network that the loss is of
            Graph.made, Graph.parts, Graph.adds = self, 1, False
            made.append(self)

    monkeypatch.setattr(asked, "Passes", OnAnyDevice)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: contextlib.nullcontext())
    recorded = trained(kind, "cpu", BEFORE + 4)
    assert made[0].graph is not None
    for one, other in zip(plain, recorded, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="records on a GPU only")
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_networks_of_studies_come_out_recorded_as_plainly(kind, bf16, monkeypatch):
    recorded = trained(kind, "cuda", BEFORE + 6, bf16=bf16)
    monkeypatch.setattr(asked, "recordable", lambda hf: False)
    plain = trained(kind, "cuda", BEFORE + 6, bf16=bf16)
    np.testing.assert_allclose(plain[1], recorded[1], atol=0.02)
    assert (plain[0] - recorded[0]).norm() < 0.02 * plain[0].norm()  # single weights whose gradient is all but 0 may differ by whole steps


@pytest.mark.skipif(not torch.cuda.is_available(), reason="records on a GPU only")
@pytest.mark.parametrize("positions", [True, False])
def test_networks_of_sentences_come_out_recorded_as_plainly(positions, monkeypatch):
    """GPT-2 of transformers: while it is recorded it asks the GPU nothing, and masks attention by a mask of its own."""
    rows, found, made = torch.randint(0, 20, (40, 32)), [], []

    class Some(Passes):
        def __init__(self, *given, record, **how):
            super().__init__(*given, record=record and not made, **how)
            made.append(self)

    monkeypatch.setattr(sentences, "Passes", Some)
    for _ in range(2):
        gpt = sentences.fresh([str(i) for i in range(19)], sentences.Size(2, 32, 2, 32, positions), 0, device=torch.device("cuda"))
        sentences.train(gpt, rows, BEFORE + 6, rate=1e-2, batch=8, seed=0)
        found.append(torch.cat([p.detach().flatten() for p in gpt.hf.parameters()]))
    assert [passes.graph is not None for passes in made] == [True, False]
    assert (found[0] - found[1]).norm() < 0.02 * found[1].norm()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="records on a GPU only")
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("mixer", ["gla", "softmax"])
def test_recorded_passes_are_the_plain_ones(mixer, parts):
    rows = torch.randint(0, 50, (BEFORE + 3, 2 * parts, 17))
    found = []
    for record in (False, True):
        body = model(mixer=mixer)
        made, seen = passes(body, "cuda", record=record), []
        optimiser = torch.optim.SGD(body.parameters(), lr=0.1)
        for each in rows:
            seen.append(made(each.split(2)).item())
            optimiser.step()
            optimiser.zero_grad()
        assert (made.graph is not None) == record
        found.append(torch.tensor(seen))
    assert torch.allclose(*found, rtol=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="records on a GPU only")
def test_what_cannot_be_recorded_goes_on_plainly():
    body, told = model(mixer="gla"), []
    body.model.norm.register_forward_hook(lambda module, given, made: made * made.mean().item())  # waits for the GPU
    made = passes(body, "cuda", record=True, note=told.append)
    for _ in range(BEFORE + 2):
        assert torch.isfinite(made([torch.randint(0, 50, (2, 17))]))
    assert made.graph is None
    assert len(told) == 1
