"""Runs with `precision: float8`: refused where nothing multiplies eight bits; elsewhere the same program, and an ordinary model at its end."""

from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tests.training.conftest import TINY, losses
from torch import nn

from nullius.errors import UsageError
from nullius.kernels import float8
from nullius.training import building
from nullius.training.config import Model, Optimiser
from nullius.training.lora import Lora
from nullius.training.program import train


def test_float8_is_for_gpus_that_have_it(tiny, monkeypatch):
    config = replace(tiny, precision="float8")
    with pytest.raises(UsageError, match=r"precision: float8 needs a GPU of compute capability 8\.9 or later .*, here is cpu; take bf16"):
        train(config, device="cpu")
    monkeypatch.setattr(float8, "works", lambda device: True)
    with monkeypatch.context() as patch:
        patch.setattr(float8, "right", lambda device: False)
        with pytest.raises(UsageError, match=r"float8 does not give the right numbers on cpu .*; take bf16"):
            building.in_float8(building.Trainee(None, None), torch.device("cpu"))
    with pytest.raises(UsageError, match="float8 finds no linear map with sides that are multiples of 128"):
        train(
            replace(config, out=tiny.out + "0", model=Model(new={"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2})),
            device="cpu",
        )
    with pytest.raises(UsageError, match=r"float8 gains nothing with model\.lora"):
        building.in_float8(building.Trainee(None, None, lora=Lora()), torch.device("cpu"))


def test_a_run_in_float8_leaves_an_ordinary_model(tiny, monkeypatch):
    """What it trains is 32 bits wide, and so is what it saves; it stops and goes on with the same losses."""
    monkeypatch.setattr(float8, "works", lambda device: True)
    model = Model(new={**TINY, "hidden_size": 128, "intermediate_size": 256, "num_key_value_heads": 4})
    config = replace(tiny, precision="float8", optimiser=Optimiser(rate=3e-3), model=model, micro=4)
    found = train(config, device="cpu")
    whole, saved = losses(tiny.out), load_file(found.checkpoint / "model.safetensors")
    assert whole[-1] < whole[0] - 0.3
    assert {value.dtype for value in saved.values()} == {torch.float32}
    hf = transformers.AutoModelForCausalLM.from_pretrained(found.checkpoint)
    assert type(hf.model.layers[0].mlp.down_proj) is nn.Linear
    again = replace(config, out=tiny.out + "2", steps=4)
    train(again, device="cpu")
    train(replace(again, steps=12), device="cpu")
    assert losses(again.out) == whole
