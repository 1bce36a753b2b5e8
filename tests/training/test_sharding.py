"""Two processes under torchrun, on the CPU: the losses of one process, and checkpoints that either can go on from."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tests.training.conftest import TINY, losses

from nullius.models.loading import load
from nullius.training.config import Model, plain
from nullius.training.program import train

replace = dataclasses.replace


def test_two_processes_are_one_run(tiny, tmp_path):
    config = replace(tiny, model=Model(new={**TINY, "attention_dropout": 0.0}), steps=8, micro=0)
    alone = replace(config, out=str(tmp_path / "alone"))
    train(alone)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in plain(config).items() if value is not None}), "utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for steps in (4, 8):  # the second takes up the sharded optimiser of the first; a launch each: a process joins one group only
        command = [*launch, "-m", "nullius.cli.main", "train", str(path), "-s", f"steps={steps}", "--device", "cpu"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("steps, loss") == 1
    assert "going on from step-000004" in done.stderr
    train(replace(config, steps=10))  # one process goes on from what two have left
    train(replace(alone, steps=10))
    assert losses(config.out) == pytest.approx(losses(alone.out), abs=2e-3)
    weights = [load(Path(run.out) / "step-000010").hf.state_dict() for run in (config, alone)]
    assert all(torch.allclose(a, b, atol=2e-3) for a, b in zip(*(w.values() for w in weights), strict=True))
