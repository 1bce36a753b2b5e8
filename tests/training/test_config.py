"""Configurations are read strictly; schedules, optimisers and the count of operations do what they say."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nullius.errors import NulliusError, UsageError
from nullius.training import config as configuration
from nullius.training import measurement
from nullius.training.config import Config, Optimiser, Schedule, differences, plain
from nullius.training.optimisers import Optimisers, outside_layers
from nullius.training.schedules import factor

GOOD = """
out: run
steps: 100
sequence: 64
batch: 8
data: {train: [{path: a.txt, weight: 2}]}
tokenizer: {vocabulary: 500}
model: {new: {model_type: llama}}
optimiser: {rate: 3e-4, betas: [0.9, 0.99]}
"""


def read(tmp_path, text, *changes) -> Config:
    path = tmp_path / "c.yaml"
    path.write_text(text, "utf-8")
    return configuration.load(path, changes)


def test_a_good_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = read(tmp_path, GOOD, "steps=7", "schedule.name=wsd", "evaluate.samples=[The, A]")
    assert config.steps == 7
    assert config.optimiser.rate == 3e-4  # YAML reads a text
    assert config.optimiser.betas == (0.9, 0.99)
    assert config.schedule == Schedule("wsd")
    assert config.evaluate.samples == ("The", "A")
    assert config.data.train[0].path == str(tmp_path / "a.txt")
    assert config.data.train[0].weight == 2.0
    assert config.out == str(tmp_path / "run")
    assert differences(plain(config), read(tmp_path, GOOD)) == ["schedule.name was 'wsd', is 'cosine'"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("stpes=3", "unknown key 'stpes'; nearest: steps"),
        ("optimiser.rat=3", "unknown key 'rat' in optimiser; nearest: rate"),
        ("zzz=3", "unknown key 'zzz'; known: out"),
        ("steps=many", "steps must be a whole number, not 'many'"),
        ("steps=1.5", "steps must be a whole number, not 1.5"),
        ("steps=true", "steps must be a whole number, not True"),
        ("compile=1", "compile must be true or false, not 1"),
        ("optimiser.rate=fast", "optimiser.rate must be a number, not 'fast'"),
        ("optimiser.betas=[1, 2, 3]", "optimiser.betas must be a list of 2"),
        ("optimiser.name=muno", "optimiser.name is 'muno'; choose adamw, muon; nearest: muon"),
        ("optimiser=fast", "optimiser must be a section with keys, not 'fast'"),
        ("data.train=[{weight: 1}]", r"key 'path' is missing in data.train\[0\]"),
        ("data.train=[]", "data.train names no file"),
        ("data.train=[{path: a, weight: 0}]", "every weight in data.train must be above 0"),
        ("steps=0", "steps must be above 0"),
        ("optimiser.clip=-1", "optimiser.clip must not be below 0"),
        ("schedule.floor=2", "parts of a whole"),
        ("model.load=x", "model needs one of new"),
        ("model.new={hidden_size: 3}", "model.new needs a model_type"),
        ("tokenizer={}", "tokenizer needs one of load"),
        ("tokenizer.load=x", "tokenizer needs one of load"),
        ("model.lora={}", "finetune a model that model.load names"),
        ("model={load: x, lora: {}, parts: {mlps: [0]}}", "not both"),
        ("optimiser.betas=[0.9, 1.5]", r"optimiser.betas\[1\] must be at least 0 and below 1, not 1.5"),
        ("optimiser.momentum=1", "optimiser.momentum must be at least 0 and below 1, not 1.0"),
        ("optimiser.weight_decay=-1", "optimiser.weight_decay must not be below 0, not -1.0"),
        ("optimiser.rate=.nan", "optimiser.rate must be a number, not nan"),
        ("data.train=[{path: a, weight: .inf}]", r"data.train\[0\].weight must be a number, not inf"),
        ('data.train=[{path: ""}]', "a path in data is empty; write . for"),
        ('out=""', "out is empty"),
        ("seed=-1", "seed must not be below 0"),
        ("seed=9223372036854775808", r"seed must be below 2\^63"),
        ("evaluate.sample_tokens=0", "evaluate.sample_tokens must be above 0"),
        ("peak_tflops=-1", "peak_tflops must not be below 0"),
        ("tokenizer.vocabulary=-5", "tokenizer.vocabulary must not be below 0"),
        ("model={load: x, lora: {rank: 0}}", "model.lora.rank must be above 0"),
        ("model={load: x, lora: {dropout: 2}}", "model.lora.dropout must be at least 0 and below 1"),
        ("model.new={model_type: [llama]}", r"model.new.model_type must be a text, not \['llama'\]"),
        ("model.new={model_type: llama, 3: 4}", "a key of model.new must be a text, not 3"),
        ("steps", "write section.key=value"),
        ("steps.more=1", "leads to no key"),
        ("steps=[", r"^-s steps=\[: expected"),
        ("out=" + "[" * 1500, "too deep in each other$"),
    ],
)
def test_bad_ones(tmp_path, change, words):
    with pytest.raises(UsageError, match=words) as error:
        read(tmp_path, GOOD, change)
    assert "\n" not in str(error.value)


def test_an_empty_file_with_changes_is_an_empty_file(tmp_path):
    with pytest.raises(UsageError, match="holds no keys"):
        read(tmp_path, "", "steps=3")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no keys"),
        ("- a\n- b", "holds no keys"),
        ("out: " + "[" * 1500, "c.yaml: lists or sections stand too deep"),
        ("steps: 1\nsteps: 2\n", "c.yaml, line 2: key 'steps' is given twice"),
        ("a: [1,\nb: 2\n", "c.yaml, line "),
        ("steps: 1\n", "key 'out' is missing"),
    ],
)
def test_bad_files(tmp_path, text, words):
    with pytest.raises(UsageError, match=words):
        read(tmp_path, text)


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"out: run\nname: b\xe4d\n")
    with pytest.raises(UsageError, match=r"c.yaml, line 2: not UTF-8"):
        configuration.load(tmp_path / "c.yaml")
    with pytest.raises(UsageError, match=r"cannot read .*No such file"):
        configuration.load(tmp_path / "none.yaml")


@given(
    name=st.sampled_from(["constant", "cosine", "linear", "wsd"]),
    steps=st.integers(1, 300),
    warmup=st.integers(0, 100),
    floor=st.floats(0, 1),
    decay=st.floats(0, 1),
)
def test_schedules_rise_stay_and_fall(name, steps, warmup, floor, decay):
    rates = [factor(Schedule(name, warmup, floor, decay), step, steps) for step in range(steps)]
    assert all(0 < rate <= 1 or rate >= floor for rate in rates)
    rise, fall = rates[: min(warmup, steps)], rates[warmup:]
    assert rise == sorted(rise)
    assert fall == sorted(fall, reverse=True)
    if fall:
        assert fall[0] == 1
        assert fall[-1] >= floor - 1e-12
        if name == "constant":
            assert set(fall) == {1.0}


def test_wsd_stays_and_then_falls():
    rates = [factor(Schedule("wsd", 10, 0.1, 0.25), step, 100) for step in range(101)]
    assert rates[10:76] == [1.0] * 66
    assert rates[100] == pytest.approx(0.1)
    assert math.isclose(rates[87], 1 - 0.9 * 12 / 25)


def test_who_gets_muon(toy):
    named = dict(toy.hf.named_parameters())
    adamw, muon = Optimisers(named, Optimiser("muon"), outside_layers(toy.hf), fused=False).all
    names = {id(value): name for name, value in named.items()}
    by_muon = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    assert by_muon == {name for name, value in named.items() if ".layers." in name and value.ndim == 2}
    decayed, free = adamw.param_groups
    assert {names[id(p)] for p in decayed["params"]} == {"model.embed_tokens.weight", "lm_head.weight"}
    assert free["weight_decay"] == 0.0
    assert all(p.ndim == 1 for p in free["params"])


def test_state_of_other_sizes_is_refused(toy):
    optimisers = Optimisers(dict(toy.hf.named_parameters()), Optimiser(), set(), fused=False)
    with pytest.raises(NulliusError, match=r"model.norm.weight \[7\] does not fit: this model has a weight of \[32\]"):
        optimisers.restore({"model.norm.weight/exp_avg": torch.zeros(7)})
    with pytest.raises(NulliusError, match="no such weight"):
        optimisers.restore({"nothing/exp_avg": torch.zeros(7)})


def test_operations_are_counted_as_torch_counts_them(toys):
    """Against torch's own counter, which counts the masked half of the attention too."""
    from torch.utils.flop_counter import FlopCounterMode

    for family in ("llama", "gpt2", "gpt_neox"):
        hf = toys[family].hf
        tokens = torch.zeros(1, 256, dtype=torch.long)
        hf.set_attn_implementation("eager")
        try:
            with FlopCounterMode(display=False) as counter:
                hf(input_ids=tokens).logits.sum().backward()
        finally:
            hf.set_attn_implementation("sdpa")
            hf.zero_grad(set_to_none=True)
        mixing = 3 * 6 * 256 * 32  # layers · 6 · T · width
        assert (measurement.flops_per_token(hf, 256) + mixing) * 256 == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_metrics_behind_the_step_are_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st', "utf-8")
    metrics = measurement.Metrics(path, 2)
    metrics.write({"step": 3, "loss": 1.0})
    assert path.read_text("utf-8") == '{"step": 1}\n{"step": 2}\n{"step": 3, "loss": 1.0}\n'


def test_peaks():
    assert measurement.peak_tflops(torch.device("cpu")) == 0
    assert measurement.peak_tflops(torch.device("cpu"), 2.5) == 2.5


def test_metrics_go_on_behind_any_sample_and_any_torn_line(tmp_path):
    """A sample may hold ends of lines that JSON does not escape; a line may be torn in the middle of a character."""
    path = tmp_path / "metrics.jsonl"
    metrics = measurement.Metrics(path, 0)
    metrics.write({"step": 0, "loss": 3.0, "grad_norm": math.inf, "held_out": math.nan})
    assert json.loads(path.read_text("ascii"), parse_constant=pytest.fail) == {"step": 0, "loss": 3.0, "grad_norm": None, "held_out": None}
    path.unlink()
    metrics.write({"step": 1, "continuation": "a\u2028b\u0085c ü"})
    metrics.write({"step": 2, "held_out": 3.0})
    written = path.read_bytes()
    older = '{"step": 2, "continuation": "a\u2028ü"}\n'.encode()  # as it was written before
    path.write_bytes(written + older + '{"step": 2, "continuation": "ü'.encode()[:-1])
    measurement.Metrics(path, 2)
    assert path.read_bytes() == written + older
    assert len(path.read_text("utf-8").split("\n")) == 4


def test_metrics_on_a_full_disk_are_one_line(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n', "utf-8")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(NulliusError, match=r"^cannot write .*metrics.jsonl: No space left on device; free some space"):
        measurement.Metrics(path, 1)
    assert [each.name for each in tmp_path.iterdir()] == ["metrics.jsonl"]


GARBAGE = [
    None,
    [],
    {},
    "",
    "x",
    "\u2028",
    -1,
    0,
    1.5,
    True,
    math.nan,
    math.inf,
    10**400,
    [[]],
    [None],
    {"a": None},
    {1: 2},
    ["a", 1],
    b"\xff",
]
EVERY_KEY = [
    *(
        "out",
        "steps",
        "sequence",
        "batch",
        "micro",
        "precision",
        "compile",
        "recompute",
        "seed",
        "log",
        "peak_tflops",
        "data",
        "tokenizer",
        "model",
    ),
    *(
        "data.train",
        "data.evaluate",
        "tokenizer.load",
        "tokenizer.vocabulary",
        "model.new",
        "model.new.model_type",
        "model.new.size",
        "model.load",
    ),
    *(
        "model.parts",
        "model.parts.heads",
        "model.parts.mlps",
        "model.parts.maps",
        "model.parts.shared",
        "model.lora",
        "model.lora.rank",
        "optimiser",
    ),
    *(
        "model.lora.targets",
        "optimiser.name",
        "optimiser.rate",
        "optimiser.betas",
        "optimiser.momentum",
        "optimiser.clip",
        "schedule",
        "schedule.name",
    ),
    *("schedule.warmup", "schedule.floor", "evaluate", "evaluate.every", "evaluate.samples", "save", "save.keep"),
]


@pytest.mark.parametrize("key", EVERY_KEY)
def test_any_value_of_any_key_is_taken_or_refused_in_one_line(tmp_path, key):
    tree, said = yaml.safe_load(GOOD), []
    for garbage in GARBAGE:
        changed = copy.deepcopy(tree)
        *sections, last = key.split(".")
        inside = changed
        for section in sections:
            inside = inside.setdefault(section, {})
        inside[last] = garbage
        path = tmp_path / "c.yaml"
        path.write_text(yaml.safe_dump(changed), "utf-8")
        try:
            configuration.load(path)
        except UsageError as error:
            said.append(str(error))
    assert said
    assert not [line for line in said if "\n" in line]
