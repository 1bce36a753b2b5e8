"""Whole runs: what is interrupted goes on as if it had not been, to the bit; checkpoints are subjects; nothing is ever half-written."""

import copy
import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.training.conftest import losses

import nullius
from nullius.errors import NulliusError, UsageError
from nullius.models.loading import load
from nullius.training import checkpoints
from nullius.training.config import Adapters, Model, Optimiser, Save, Selected, Tokens, plain
from nullius.training.parts import Parts
from nullius.training.program import Silent, Stopped, train

replace = dataclasses.replace


class At(Silent):
    """Does something when a step has been reported."""

    def __init__(self, at, work):
        self.at, self.work = at, work

    def step(self, done, total, facts):
        if done == self.at:
            self.work()


@pytest.fixture
def uninterrupted(tiny, tmp_path_factory):
    """Losses and weights of the whole run, made once."""
    out = tmp_path_factory.getbasetemp() / "uninterrupted"
    if not (out / "step-000012").is_dir():
        train(replace(tiny, out=str(out)))
    return losses(out), load_file(out / "step-000012" / "model.safetensors")


def test_a_run_learns_and_leaves_subjects(tiny):
    result = train(replace(tiny, steps=40, save=Save(every=10, keep=2)))
    seen = losses(tiny.out)
    assert seen[-1] < seen[0] - 0.3
    assert result.held_out is not None
    assert sorted(path.name for path in Path(tiny.out).iterdir()) == ["metrics.jsonl", "step-000030", "step-000040", "tokenizer"]
    model = load(result.checkpoint)
    saved = load_file(result.checkpoint / "model.safetensors")
    assert torch.equal(model.hf.model.norm.weight, saved["model.norm.weight"])
    assert model.tokens("A claim") == load(Path(tiny.out) / "step-000030").tokens("A claim")
    assert model.tokenizer.decode(model.tokens("Ünïcode 12\n")) == "Ünïcode 12\n"
    records = [json.loads(line) for line in (Path(tiny.out) / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert {"held_out", "continuation", "tokens_per_second", "peak_memory"} <= {key for record in records for key in record}
    assert train(replace(tiny, steps=40, save=Save(every=10, keep=2))).checkpoint == result.checkpoint  # nothing left to do


def test_killed_and_begun_again_is_the_same_run(tiny, uninterrupted, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in plain(tiny).items() if value is not None}), "utf-8")
    code = f"""
import os, signal
from pathlib import Path
from nullius.training import config, program
class Kill(program.Silent):
    def step(self, done, total, facts):
        if done == 7:
            os.kill(os.getpid(), signal.SIGKILL)
program.train(config.load(Path({str(path)!r})), Kill())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert checkpoints.latest(Path(tiny.out)).name == "step-000004"
    (Path(tiny.out) / ".step-000008").mkdir()  # what a run that is killed while it saves leaves behind
    with (Path(tiny.out) / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    train(tiny)
    seen, weights = uninterrupted
    assert losses(tiny.out) == seen
    final = load_file(Path(tiny.out) / "step-000012" / "model.safetensors")
    assert all(torch.equal(final[name], value) for name, value in weights.items())


@pytest.mark.parametrize(("number", "name", "code"), [(signal.SIGTERM, "SIGTERM", 143), (signal.SIGINT, "Ctrl-C", 130)])
def test_a_signal_saves_and_ends(tiny, uninterrupted, number, name, code):
    with pytest.raises(Stopped, match=f"stopped by {name} after step 5 of 12; saved .*step-000005; the same command goes on") as stopped:
        train(tiny, At(5, lambda: os.kill(os.getpid(), number)))
    assert stopped.value.exit_code == code
    assert signal.getsignal(number) is not None
    train(tiny)
    assert losses(tiny.out) == uninterrupted[0]


@pytest.mark.parametrize(("at", "kept"), [(0, "nothing had been saved yet"), (5, "step-000004 is the last that was saved")])
def test_a_signal_that_ends_a_compiler_too_is_one_line(tiny, uninterrupted, at, kept):
    def compiling():
        os.kill(os.getpid(), signal.SIGTERM)
        raise subprocess.CalledProcessError(-signal.SIGTERM, "cc")

    with pytest.raises(
        Stopped, match=rf"stopped by SIGTERM in the middle of a step \(CalledProcessError\); .*{kept}; the same command"
    ) as stopped:
        train(tiny, At(at or 1, compiling))
    assert stopped.value.exit_code == 143
    train(tiny)
    assert losses(tiny.out) == uninterrupted[0]


def test_an_error_that_nobody_asked_for_is_an_error(tiny):
    with pytest.raises(ZeroDivisionError):
        train(tiny, At(5, lambda: 1 / 0))


def test_disk_full_leaves_the_last_checkpoint_whole(tiny):
    """The system refuses to let any file grow beyond 20 kB: writing the checkpoint of step 8 fails halfway."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(checkpoints.SaveError, match=r"cannot save .*step-000008: .*; step-000004 is whole\. Free some space"):
            train(tiny, At(6, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in Path(tiny.out).iterdir()) == ["metrics.jsonl", "step-000004", "tokenizer"]
    load(Path(tiny.out) / "step-000004")
    train(tiny)
    assert len(losses(tiny.out)) == 12


def test_accumulation_and_recomputation_change_nothing_but_rounding(tiny, tmp_path):
    without_dropout = replace(tiny, model=Model(new={**tiny.model.new, "attention_dropout": 0.0}), steps=4)
    runs = []
    for name, micro, recompute in (("a", 0, False), ("b", 1, False), ("c", 2, True)):
        config = replace(without_dropout, out=str(tmp_path / name), micro=micro, recompute=recompute)
        train(config)
        runs.append(torch.tensor(losses(config.out)))
    assert torch.allclose(runs[0], runs[1], atol=1e-3)
    assert torch.allclose(runs[0], runs[2], atol=1e-3)


def test_bf16_keeps_float32_weights(tiny):
    result = train(replace(tiny, steps=3, precision="bf16"))
    assert {value.dtype for value in load_file(result.checkpoint / "model.safetensors").values()} == {torch.float32}
    assert all(5 < loss < 7 for loss in losses(tiny.out))


@pytest.fixture
def base(tiny, tmp_path):
    """A checkpoint to finetune."""
    return str(train(replace(tiny, out=str(tmp_path / "base"), steps=4)).checkpoint)


def finetuning(tiny, base, **how):
    return replace(tiny, tokenizer=Tokens(), model=Model(load=base, **how), optimiser=Optimiser(rate=1e-2), steps=6, save=Save(every=3))


def test_selected_parts_alone_change_and_go_on(tiny, base, tmp_path):
    config = finetuning(tiny, base, parts=Selected(heads=((1, 2), (1, 3)), mlps=(0,)))
    train(replace(config, steps=3))
    whole = replace(config, out=str(tmp_path / "whole"))
    train(config)
    train(whole)
    assert losses(config.out) == losses(whole.out)
    before, after = (load_file(Path(folder) / "model.safetensors") for folder in (base, Path(config.out) / "step-000006"))
    masks = Parts(heads=((1, 2), (1, 3)), mlps=(0,)).masks(load(base))
    for name, value in before.items():
        mask = masks.get(name)
        held = torch.ones_like(value, dtype=torch.bool) if name not in masks else torch.zeros_like(value).bool() if mask is None else ~mask
        assert torch.equal(after[name][held], value[held]), name
        assert (after[name] != value)[~held].float().mean() > 0.9 if name in masks else True


def test_adapters_are_saved_as_a_plain_model_and_go_on(tiny, base, tmp_path):
    config = finetuning(tiny, base, lora=Adapters(rank=2))
    train(replace(config, steps=3))
    whole = replace(config, out=str(tmp_path / "whole"))
    train(config)
    train(whole)
    assert losses(config.out) == losses(whole.out)
    model, plain_model = load(Path(config.out) / "step-000006"), load(base)
    assert type(model.hf) is type(plain_model.hf)
    assert torch.equal(model.hf.model.embed_tokens.weight, plain_model.hf.model.embed_tokens.weight)
    assert not torch.equal(model.hf.model.layers[0].mlp.up_proj.weight, plain_model.hf.model.layers[0].mlp.up_proj.weight)


def test_merged_adapters_compute_what_the_adapted_model_did(toys):
    from nullius.training import building, lora

    for family in ("llama", "gpt2"):  # Linear, and Conv1D
        hf = copy.deepcopy(toys[family].hf)
        how = lora.Lora(rank=3, alpha=6)
        body = lora.add(hf, how, 0)
        torch.manual_seed(1)
        for name, value in body.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(value.data, std=0.1)
        weights, adapters = building.weights_to_save(building.Trainee(hf, body, None, how))
        plain_hf = copy.deepcopy(toys[family].hf)
        checkpoints.fill(plain_hf, weights, "merged")
        tokens = torch.arange(20).view(2, 10)
        expected = body.eval()(input_ids=tokens).logits
        assert adapters
        assert torch.allclose(plain_hf(input_ids=tokens).logits, expected, atol=1e-4)
        assert not torch.allclose(toys[family].hf(input_ids=tokens).logits, expected, atol=1e-2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"optimiser": Optimiser("muon", rate=1e-3)}, "optimiser.rate was 0.003, is 0.001"),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"model": Model(new={"model_type": "llama", "hidden_size": 64})}, "model.new.hidden_size was 32, is 64"),
    ],
)
def test_another_configuration_does_not_go_on(tiny, change, words):
    train(replace(tiny, steps=1))
    with pytest.raises(UsageError, match=words):
        train(replace(tiny, **change))


def test_another_text_does_not_go_on(tiny, tmp_path):
    text = tmp_path / "mine.txt"
    text.write_text(Path(tiny.data.train[0].path).read_text("utf-8"), "utf-8")
    mine = replace(tiny, data=replace(tiny.data, train=(replace(tiny.data.train[0], path=str(text)),)), steps=1)
    train(mine)
    text.write_text(text.read_text("utf-8") + " And more.", "utf-8")
    with pytest.raises(UsageError, match="made with other training text"):
        train(replace(mine, steps=2))


def test_a_checkpoint_of_other_sizes(tiny):
    train(replace(tiny, steps=4))
    folder = Path(tiny.out) / "step-000004"
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(48)
    from safetensors.torch import save_file

    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(NulliusError, match=r"is of another size: model.norm.weight is \[48\] there, \[32\] in this model"):
        train(tiny)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"model_type": "lama"}, "unknown model_type 'lama'; nearest: .*llama"),
        ({"model_type": "t5"}, "model.new: t5 is no decoder"),
        ({"model_type": "llama", "hidden_act": "sillu"}, "model.new: no such value as 'sillu'"),
        ({"model_type": "llama", "hiden_size": 32}, "llama has no key 'hiden_size'; nearest: hidden_size"),
        ({"model_type": "llama", "hidden_size": "wide"}, "model.new: .*hidden_size"),
        ({"model_type": "llama", "vocab_size": 100}, "a vocabulary of 100 is too small for the tokenizer's 400"),
        ({"model_type": "gpt2", "n_positions": 16}, "takes at most 16 tokens; a sequence of 32"),
    ],
)
def test_models_that_cannot_be_made(tiny, model, words):
    with pytest.raises(UsageError, match=words) as error:
        train(replace(tiny, model=Model(new=model)))
    assert "\n" not in str(error.value)


def test_a_loss_that_is_no_number_ends_the_run(tiny):
    with pytest.raises(NulliusError, match=r"the loss of step .* is nan; there is no checkpoint yet; lower optimiser.rate"):
        train(replace(tiny, optimiser=Optimiser(rate=1e30, clip=0.0), save=Save(every=100)))


def test_a_compiler_that_fails_is_told_in_one_line(tiny, monkeypatch):
    from torch._dynamo.exc import TorchDynamoException

    from nullius.training import evaluation

    def fails(*_, **__):
        raise TorchDynamoException("a page of\nC++")

    monkeypatch.setattr(evaluation, "loss_of", fails)
    with pytest.raises(NulliusError, match=r"^torch.compile does not manage this model here \(a page of C\+\+\); set compile: false$"):
        train(tiny)


def test_the_command_line_says_one_line(tiny, tmp_path, monkeypatch, capsys):
    from typer.testing import CliRunner

    from nullius.cli.main import app, main

    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in plain(tiny).items() if value is not None}), "utf-8")
    done = CliRunner().invoke(app, ["train", str(path), "-s", "steps=2"])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("2 steps, loss ")
    assert "step 2/2  loss" in done.stderr
    monkeypatch.setattr(sys, "argv", ["nullius", "train", str(path), "-s", "stpes=2"])
    with pytest.raises(SystemExit) as wrong:
        main()
    assert wrong.value.code == 2
    assert capsys.readouterr().err == f"nullius: {path}: unknown key 'stpes'; nearest: steps\n"
    assert nullius.__version__
