"""`nullius train` on a subject: selected parts and adapters with gradient accumulation, in bf16, and taken up again, alone and together."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nullius.errors import UsageError
from nullius.training.config import Adapters, Model, Optimiser, Save, Schedule, Selected, Tokens
from nullius.training.program import train

replace = dataclasses.replace
KINDS = {
    "parts": {"parts": Selected(heads=((0, 2),), projections=((1, "gate_proj"), (-1, "self_attn.o_proj")), final_norm=True)},
    "adapters": {"lora": Adapters(rank=2, targets=("up_proj", "v_proj"), layers=(-1,))},
}
TRAINED = {
    "parts": {"layers.0.self_attn.q_proj", "layers.0.self_attn.o_proj", "layers.1.mlp.gate_proj", "layers.2.self_attn.o_proj", "norm"},
    "adapters": {"layers.2.mlp.up_proj", "layers.2.self_attn.v_proj"},
}


@pytest.fixture(scope="module")
def folder(toy, tmp_path_factory):
    """A subject of three layers as a directory, without dropout."""
    path = tmp_path_factory.mktemp("subject")
    toy.hf.save_pretrained(path)
    toy.tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def run(tiny, folder, tmp_path):
    """Train it in four steps, or some; weights by name."""

    def do(name, kind, **changes):
        config = replace(tiny, out=str(tmp_path / name), tokenizer=Tokens(), model=Model(load=str(folder), **KINDS[kind]), steps=4)
        config = replace(
            config, optimiser=Optimiser(rate=1e-2), schedule=Schedule("constant"), save=Save(every=2), micro=2, evaluate=tiny.evaluate
        )
        return load_file(train(replace(config, **changes)).checkpoint / "model.safetensors")

    return do


def far(a, b):
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_alone_are_trained_however_it_is_done(run, kind, folder):
    before = load_file(folder / "model.safetensors")
    names = {f"model.{name}.weight" for name in TRAINED[kind]}
    parts = run("parts", kind)
    assert {name for name in parts if not torch.equal(parts[name], before[name])} == names
    assert far(parts, run("whole", kind, micro=0)) < 1e-5  # gradients of parts of a batch add up
    half = run("bf16", kind, precision="bf16", steps=2)
    assert {name for name in half if not torch.equal(half[name], before[name])} == names
    again = run("bf16", kind, precision="bf16")  # goes on from step 2
    straight = run("straight", kind, precision="bf16")
    assert all(torch.equal(again[name], straight[name]) for name in again)
    assert 1e-6 < far(parts, again) < 0.05


def test_a_run_from_before_a_key_was_there_goes_on(run, tmp_path):
    """What its configuration does not say is what it would be by default; other adapters are still others."""
    run("old", "adapters", steps=2)
    state = next(Path(tmp_path / "old").glob("step-000002/state/state.json"))
    facts = json.loads(state.read_text("utf-8"))
    assert facts["config"]["model"]["lora"].pop("targets") == ["up_proj", "v_proj"]
    state.write_text(json.dumps(facts), "utf-8")
    with pytest.raises(UsageError, match=r"model.lora.targets was \[\], is \['up_proj', 'v_proj'\]"):
        run("old", "adapters")
    facts["config"]["model"]["lora"] |= {"targets": ["up_proj", "v_proj"]}
    assert facts["config"]["model"]["lora"].pop("dropout") == 0.0
    state.write_text(json.dumps(facts), "utf-8")
    run("old", "adapters")
