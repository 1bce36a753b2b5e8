"""What users and machines do to a run: folders copied, killed savings left, attempts given up, signals at any time, models that cannot work."""

import dataclasses
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from tests.training.conftest import losses
from typer.testing import CliRunner

from nullius.errors import NulliusError, UsageError
from nullius.training import checkpoints, evaluation, packed, processes, program, stopping, trial, vocabularies
from nullius.training.config import Evaluate, Model, Optimiser, Save, Source, Tokens
from nullius.training.program import Silent, Stopped, train

replace = dataclasses.replace


def made(folder: Path, *names: str) -> None:
    """Empty checkpoints."""
    for name in names:
        (folder / name / "state").mkdir(parents=True)
        (folder / name / "state" / "state.json").write_text("{}", "utf-8")


def test_checkpoints_are_sorted_by_number_and_copies_are_nobodys(tmp_path):
    made(tmp_path, "step-999999", "step-1000000", "step-1000000-mine", "step-best", "step-000007")
    assert [path.name for path in checkpoints.saved(tmp_path)] == ["step-000007", "step-999999", "step-1000000"]
    assert checkpoints.latest(tmp_path).name == "step-1000000"


def test_the_newest_stay_past_a_million_steps(tmp_path, toy, tokenizer):
    made(tmp_path, "step-999998", "step-999999")
    state = {"optimiser": {}, "step": 1_000_000}
    checkpoints.save(tmp_path, 1_000_000, toy.hf, tokenizer, checkpoints.weights_of(toy.hf), state, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1000000", "step-999999"]


def test_one_training_in_a_folder_at_a_time_which_clears_what_was_left(tiny):
    out = Path(tiny.out)
    for name in (".step-000003", ".old-step-000001", "step-mine", ".other"):
        (out / name / "state").mkdir(parents=True)
    with checkpoints.alone(out):
        assert sorted(path.name for path in out.iterdir()) == [".other", "step-mine"]
        with pytest.raises(UsageError, match=r"another process is training in .*run: wait until it has ended"):
            train(tiny)
    train(replace(tiny, steps=1))
    assert len(losses(out)) == 1


def test_a_tokenizer_left_by_another_attempt_is_made_anew(tiny):
    with pytest.raises(UsageError, match="fewer than one sequence"):
        train(replace(tiny, sequence=100_000))
    folder = Path(tiny.out) / "tokenizer"
    assert len(vocabularies.load(str(folder))) == 400
    train(replace(tiny, steps=1, tokenizer=Tokens(vocabulary=420)))
    assert len(vocabularies.load(str(folder))) == 420
    before = (folder / "tokenizer.json").stat().st_mtime_ns
    train(replace(tiny, steps=2, tokenizer=Tokens(vocabulary=420)))
    assert (folder / "tokenizer.json").stat().st_mtime_ns == before


def test_a_tokenizer_that_the_disk_has_no_room_for(tiny, monkeypatch):
    """Its library raises an error of no kind."""

    class Full:
        def save_pretrained(self, folder):
            (Path(folder) / "tokenizer.json").write_text("{", "utf-8")
            raise Exception("No space left on device (os error 28)")

    monkeypatch.setattr(vocabularies, "train", lambda *_: Full())
    with pytest.raises(checkpoints.SaveError, match=r"cannot write .*tokenizer: No space left on device \(os error 28\); free some space"):
        train(tiny)
    assert list(Path(tiny.out).iterdir()) == []


def test_a_checkpoint_without_its_optimiser_does_not_go_on(tiny):
    train(replace(tiny, steps=1))
    (Path(tiny.out) / "step-000001" / "state" / "optimiser.safetensors").unlink()
    with pytest.raises(NulliusError, match=r"step-000001 cannot be read \(its state/optimiser.safetensors is missing\)"):
        train(tiny)


def test_the_text_may_move_and_the_held_out_text_change(tiny, corpus, tmp_path):
    train(replace(tiny, steps=1))
    for name in ("text.txt", "other.txt"):
        (tmp_path / name).write_bytes((corpus / name).read_bytes())
    moved = tuple(replace(source, path=str(tmp_path / Path(source.path).name)) for source in tiny.data.train)
    train(replace(tiny, steps=2, data=replace(tiny.data, train=moved, evaluate=())))
    assert len(losses(tiny.out)) == 2
    with pytest.raises(UsageError, match=r"data.train was .*'weight': 3.0.* is .*'weight': 2.0"):
        train(replace(tiny, data=replace(tiny.data, train=(replace(moved[0], weight=2.0), moved[1]))))


@pytest.mark.parametrize(("number", "name", "code"), [(signal.SIGTERM, "SIGTERM", 143), (signal.SIGINT, "Ctrl-C", 130)])
def test_a_signal_while_data_is_prepared_ends_at_once(tiny, monkeypatch, number, name, code):
    write = packed._write

    def interrupted(*how):
        os.kill(os.getpid(), number)
        return write(*how)

    monkeypatch.setattr(packed, "_write", interrupted)
    text = Path(tiny.out).parent / "own.txt"
    text.write_text(f"A text of this test alone, {name}. " * 200, "utf-8")
    with pytest.raises(Stopped, match=f"stopped by {name} before its first step") as stopped:
        train(replace(tiny, data=replace(tiny.data, train=(Source(str(text)),)), tokenizer=Tokens(vocabulary=262)))
    assert stopped.value.exit_code == code
    assert not list((Path(os.environ["NULLIUS_CACHE"]) / "packed").glob(".*"))


class Signals(Silent):
    """Sends Ctrl-C twice, so many seconds apart, at step 2."""

    def __init__(self, monkeypatch, apart):
        self.monkeypatch, self.apart = monkeypatch, apart

    def step(self, done, total, facts):
        if done == 2:
            os.kill(os.getpid(), signal.SIGINT)
            now = stopping.time.monotonic()
            self.monkeypatch.setattr(stopping.time, "monotonic", lambda: now + self.apart)
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("apart", "words"), [(0.1, "by Ctrl-C after step 2 of 12; saved"), (2, "by a second Ctrl-C in the middle of a step; nothing")]
)
def test_a_second_ctrl_c_stops_at_once_but_not_one_that_was_passed_on_twice(tiny, monkeypatch, apart, words):
    with pytest.raises(Stopped, match=words) as stopped:
        train(tiny, Signals(monkeypatch, apart))
    assert stopped.value.exit_code == 130


def test_a_run_that_has_ended_says_so_and_no_loss(tiny, tmp_path):
    import yaml

    from nullius.cli.main import app
    from nullius.training.config import plain

    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in plain(tiny).items() if value is not None}), "utf-8")
    for words in ("2 steps, loss ", "2 steps: "):
        done = CliRunner().invoke(app, ["train", str(path), "-s", "steps=2"])
        assert done.stdout.startswith(words), done.output
    assert "all 2 steps had been made before" in done.stderr


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("a page"), RuntimeError("[enforce] DefaultCPUAllocator: can't allocate"), MemoryError()]
)
def test_a_device_without_memory_is_one_line(tiny, monkeypatch, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr(evaluation, "loss_of", full)
    with pytest.raises(program.OutOfMemory) as caught:
        train(tiny)
    assert str(caught.value) == (
        "cpu has no memory left: set micro below 2, set recompute: true, set precision: bf16 or shard it over several GPUs by torchrun; "
        "the same command goes on from the newest checkpoint"
    )


def test_gates_of_a_training_that_diverges_are_told_as_that(tiny):
    gla = {
        "model_type": "nullius",
        "mixer": "gla",
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    with pytest.raises(
        NulliusError, match=r"^step 3 has weights that are no numbers \(log_decay .* NaN\); there is no checkpoint yet; lower"
    ) as caught:
        train(replace(tiny, model=Model(new=gla), optimiser=Optimiser(rate=1e30, clip=0.0), save=Save(100), log=100))
    assert "\n" not in str(caught.value)


def test_weights_that_are_no_numbers_do_not_take_the_place_of_good_ones(tiny):
    train(replace(tiny, steps=2, save=Save(1, keep=1), optimiser=Optimiser(clip=0.0)))

    class Breaks(Silent):
        def step(self, done, total, facts):
            if done == 4:
                model.lm_head.weight.data[0, 0] = torch.nan

    def build(*how):
        nonlocal model
        trainee = made_by(*how)
        model = trainee.hf
        return trainee

    made_by, model = program.building.build, None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program.building, "build", build)
        with pytest.raises(
            NulliusError, match=r"after step 4 the weight \S+ holds what is no number, .*newest checkpoint is .*step-000003; lower"
        ):
            train(replace(tiny, steps=6, save=Save(1, keep=1), optimiser=Optimiser(clip=0.0)), Breaks())
    assert [path.name for path in checkpoints.saved(Path(tiny.out))] == ["step-000003"]
    train(replace(tiny, steps=6, save=Save(1, keep=1), optimiser=Optimiser(clip=0.0)))
    assert len(losses(tiny.out)) == 6


def test_a_check_that_fails_on_a_gpu_is_one_line(tiny, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("CUDA error: device-side assert triggered\nCompile with `TORCH_USE_CUDA_DSA`\n")

    monkeypatch.setattr(evaluation, "loss_of", fails)
    with pytest.raises(
        NulliusError, match=r"^a check on cpu failed: gates hold NaN, .*; lower optimiser.rate, or lengthen schedule.warmup$"
    ):
        train(tiny)


@pytest.mark.parametrize("name", ["foo", "cuda:x", "meta"])
def test_devices_that_there_are_not(tiny, name):
    with pytest.raises(UsageError, match=f"device '{name}'"):
        train(tiny, device=name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_key_value_heads": 3}, r"model.new makes no pass \(RuntimeError: "),
        ({"attention_dropout": 7.0}, "makes no pass .*dropout probability has to be between 0 and 1"),
        ({"num_hidden_layers": 0}, "model.new has no layers"),
    ],
)
def test_models_that_could_be_made_and_not_trained(tiny, change, words):
    with pytest.raises(UsageError, match=words) as caught:
        train(replace(tiny, model=Model(new={**tiny.model.new, **change})))
    assert "\n" not in str(caught.value)


def test_models_that_would_read_the_answer(tiny):
    bert = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    with pytest.raises(UsageError, match="tokens of this bert see later ones, so that it would learn to read the answer; is_decoder: true"):
        train(replace(tiny, model=Model(new=bert)))
    train(replace(tiny, model=Model(new={**bert, "is_decoder": True}), steps=1))


def test_a_trial_leaves_the_model_and_all_random_numbers_as_they_were(toy):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    toy.hf.eval()
    trial.run(toy.hf, 16)
    assert torch.equal(torch.rand(2), expected)
    assert not toy.hf.training
    assert processes.layers(toy.hf)


def test_rounding_is_no_look_ahead(toy):
    """What differs in float32 and not in float64 is rounding, however large a norm has made it; weights and mode come back."""

    def rounded(module, inputs, output):
        return output + 1e-3 * torch.arange(len(output)).view(-1, 1, 1) if output.dtype == torch.float32 else output

    before = {name: value.clone() for name, value in toy.hf.state_dict().items()}
    hook = processes.layers(toy.hf)[-1].mlp.register_forward_hook(rounded)
    toy.hf.eval()
    trial.run(toy.hf, 16)
    hook.remove()
    assert not toy.hf.training
    assert all(torch.equal(value, before[name]) and value.dtype == before[name].dtype for name, value in toy.hf.state_dict().items())

    def leaking(module, inputs, output):
        return output + 1e-3 * output[:, -1:]

    hook = processes.layers(toy.hf)[-1].mlp.register_forward_hook(leaking)
    with pytest.raises(UsageError, match="see later ones"):
        trial.run(toy.hf, 16)
    hook.remove()


def test_samples_longer_than_the_model_go_on_from_their_last_tokens(tiny):
    gpt2 = {"model_type": "gpt2", "n_positions": 32, "n_embd": 32, "n_layer": 1, "n_head": 2}
    config = replace(tiny, model=Model(new=gpt2), steps=1, evaluate=Evaluate(1, 4, ("A claim",), 40), save=Save(1))
    train(config)
    sample = [json.loads(line) for line in (Path(tiny.out) / "metrics.jsonl").read_text("utf-8").splitlines()][-1]
    assert sample["beginning"] == "A claim"


def test_looking_leaves_no_trace(tiny, tmp_path):
    """With measurements and samples at every step, or none: the same losses, though the model has dropout."""
    often, never = replace(tiny, steps=6, evaluate=Evaluate(1, 4, ("A claim",), 3)), replace(tiny, steps=6, out=str(tmp_path / "never"))
    never = replace(never, evaluate=Evaluate(100), data=replace(tiny.data, evaluate=()))
    train(often)
    train(never)
    assert losses(often.out) == losses(never.out)
