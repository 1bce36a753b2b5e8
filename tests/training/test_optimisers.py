"""Optimisers against the papers' formulas in float64, schedules at every step, and the norm that is clipped."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from nullius.training.config import Model, Optimiser, Schedule
from nullius.training.optimisers import Optimisers
from nullius.training.program import train
from nullius.training.schedules import factor

replace = dataclasses.replace
FACTORS = (0.5, 1.0, 1.0, 0.3)


def gradients(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in FACTORS]


def stepped(how, weights, outside=frozenset()):
    """Weights after one step for each factor, by name; and the gradients that were used."""
    named = {name: nn.Parameter(value.clone()) for name, value in weights.items()}
    given = {name: gradients(value.shape, seed) for seed, (name, value) in enumerate(weights.items())}
    optimisers = Optimisers(named, how, set(outside), fused=False)
    for i, part in enumerate(FACTORS):
        for name, parameter in named.items():
            parameter.grad = given[name][i].to(parameter.dtype).clone()
        optimisers.step(part)
        assert all(parameter.grad is None for parameter in named.values())
    return {name: parameter.detach() for name, parameter in named.items()}, given


def adamw(weight, given, how, decay):
    """Loshchilov and Hutter (2019), algorithm 2, with the bias corrections written out."""
    first = second = torch.zeros_like(weight)
    for i, (gradient, part) in enumerate(zip(given, FACTORS, strict=True), 1):
        rate = how.rate * part
        first = how.betas[0] * first + (1 - how.betas[0]) * gradient
        second = how.betas[1] * second + (1 - how.betas[1]) * gradient**2
        unbiased = first / (1 - how.betas[0] ** i), second / (1 - how.betas[1] ** i)
        weight = weight - rate * decay * weight - rate * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
    return weight


def test_adamw_is_its_formula_and_decays_matrices_alone():
    how = Optimiser(rate=0.02, betas=(0.8, 0.95), weight_decay=0.3)
    weights = {"matrix": torch.ones(4, 3, dtype=torch.float64), "norm": torch.ones(5, dtype=torch.float64)}
    found, given = stepped(how, weights)
    assert torch.allclose(found["matrix"], adamw(weights["matrix"], given["matrix"], how, 0.3), rtol=1e-12)
    assert torch.allclose(found["norm"], adamw(weights["norm"], given["norm"], how, 0.0), rtol=1e-12)


@pytest.mark.parametrize("shape", [(12, 12), (8, 20), (20, 8)])
def test_muon_is_its_formula(shape):
    """Jordan et al. (2024): Nesterov momentum, five steps of their quintic iteration, here in float64 (torch's own is bfloat16); scaled by
    0.2 √max(rows, columns) as Liu et al. (2025) do."""
    how = Optimiser("muon", rate=0.02, momentum=0.9, weight_decay=0.3)
    begin = torch.ones(shape, dtype=torch.float64)
    found, given = stepped(how, {"matrix": begin, "embedding": begin}, {"embedding"})
    weight, momentum = begin, torch.zeros_like(begin)
    for gradient, part in zip(given["matrix"], FACTORS, strict=True):
        momentum = 0.9 * momentum + 0.1 * gradient
        x = 0.1 * gradient + 0.9 * momentum
        x = x / x.norm()
        x = x.T if shape[0] > shape[1] else x
        for _ in range(5):
            square = x @ x.T
            x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
        values = torch.linalg.svdvals(x)
        assert 0.6 < values.min() <= values.max() < 1.3  # nearly orthogonal, as they say
        x = x.T if shape[0] > shape[1] else x
        weight = weight * (1 - how.rate * part * 0.3) - how.rate * part * 0.2 * math.sqrt(max(shape)) * x
    moved = (weight - begin).norm()
    assert (found["matrix"] - weight).norm() / moved < 0.02
    assert torch.allclose(found["embedding"], adamw(begin, given["embedding"], how, 0.3), rtol=1e-12)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule("constant", 2), [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1, 1, 1]),
        (Schedule("linear", 2, floor=0.2), [1 / 3, 2 / 3, 1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]),
        (Schedule("cosine", 2), [1 / 3, 2 / 3, *((1 + math.cos(math.pi * i / 8)) / 2 for i in range(8))]),
        (Schedule("cosine", 0, floor=0.1), [0.1 + 0.45 * (1 + math.cos(math.pi * i / 10)) for i in range(10)]),
        (Schedule("wsd", 1, decay=0.4), [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]),
        (Schedule("wsd", 8, decay=0.5), [*(i / 9 for i in range(1, 9)), 1, 0.5]),
        (Schedule("linear", 20), [i / 21 for i in range(1, 11)]),
    ],
)
def test_schedules_at_every_step(schedule, expected):
    assert [factor(schedule, step, 10) for step in range(10)] == pytest.approx(expected, abs=1e-12)


def test_the_norm_is_that_of_the_whole_batch_and_what_is_clipped(tiny, tmp_path):
    """However the batch is cut; noted before it is clipped. The first moment of AdamW holds what was left of it."""
    norms = []
    for micro, clip in ((0, 1e6), (1, 1e6), (1, 1e-3)):
        model = Model(new={**tiny.model.new, "attention_dropout": 0.0})
        optimiser = Optimiser(rate=1e-2, betas=(0.9, 0.95), clip=clip)
        config = replace(tiny, out=str(tmp_path / f"{micro}-{clip}"), micro=micro, steps=1, model=model, optimiser=optimiser)
        folder = train(config).checkpoint
        lines = (Path(config.out) / "metrics.jsonl").read_text("utf-8").splitlines()
        norms.append(next(record["norm"] for record in map(json.loads, lines) if "norm" in record))
        moments = load_file(folder / "state" / "optimiser.safetensors")
        first = math.sqrt(sum(float(value.square().sum()) for name, value in moments.items() if name.endswith("/exp_avg")))
        assert first == pytest.approx(0.1 * min(clip, norms[-1]), rel=1e-3)
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-4)
    assert norms[0] > 0.1
