"""The configuration of a training run: one small tree of dataclasses, read strictly from YAML."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from nullius.errors import UsageError, nearest


@dataclass(frozen=True)
class Source:
    """Text to train on. path: a file, a pattern (corpus/*.txt) or a folder, seen from the working folder; .txt, .jsonl or .parquet, also
    .gz and .xz. weight: its share of the mixture, relative to the others'. field: the key (jsonl) or column (parquet) that holds the text.
    separator: the line that ends a document in .txt; a file without it is one document."""

    path: str
    weight: float = 1.0
    field: str = "text"
    separator: str = "<|endoftext|>"


@dataclass(frozen=True)
class Data:
    """train: what is trained on, mixed by weight. evaluate: what the loss is measured on meanwhile (none: no measurement)."""

    train: tuple[Source, ...]
    evaluate: tuple[Source, ...] = ()


@dataclass(frozen=True)
class Tokens:
    """The tokenizer: loaded (a subject's name, a hub id, a directory), or trained on the training text (byte-level BPE of that many entries).
    Neither: that of the model that is loaded."""

    load: str = ""
    vocabulary: int = 0


@dataclass(frozen=True)
class Selected:
    """Parts to train, the rest staying as it is: see `nullius.training.parts.Parts`."""

    heads: tuple[tuple[int, int], ...] = ()
    mlps: tuple[int, ...] = ()
    projections: tuple[tuple[int, str], ...] = ()
    layers: tuple[int, ...] = ()
    embeddings: bool = False
    final_norm: bool = False
    maps: tuple[Literal["q", "k", "v", "o"], ...] = ("q", "k", "v", "o")
    shared: Literal["whole", "any", "never"] = "whole"


@dataclass(frozen=True)
class Adapters:
    """Low-rank adapters to train instead of the weights: see `nullius.training.lora.Lora`."""

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Model:
    """new: a configuration of transformers (`model_type` and its keys) or of this project (`size`, a name, or `model_type: nullius`, and keys to
    change); the size of the vocabulary and the special tokens are filled in from the tokenizer.
    load: a subject to finetune (name, hub id, directory), whole, in parts, or by LoRA."""

    new: dict[str, Any] = field(default_factory=dict)
    load: str = ""
    parts: Selected | None = None
    lora: Adapters | None = None


@dataclass(frozen=True)
class Optimiser:
    """name: adamw, or muon (for the matrices inside the layers; AdamW for all else). rate: the highest of the schedule. weight_decay: of
    matrices only. clip: largest norm of the gradient (0: any)."""

    name: Literal["adamw", "muon"] = "adamw"
    rate: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.95)
    momentum: float = 0.95
    weight_decay: float = 0.1
    clip: float = 1.0


@dataclass(frozen=True)
class Schedule:
    """How the rate moves, after `warmup` steps of linear rise: constant; cosine or linear down to `floor` (a part of the highest); wsd (warm-up,
    stable, decay): constant, then linear over the last `decay` part of all steps."""

    name: Literal["constant", "cosine", "linear", "wsd"] = "cosine"
    warmup: int = 0
    floor: float = 0.0
    decay: float = 0.2


@dataclass(frozen=True)
class Evaluate:
    """every: steps between two measurements. sequences: of the held-out text, the first. samples: beginnings that the model continues by
    `sample_tokens` tokens, greedily."""

    every: int = 500
    sequences: int = 64
    samples: tuple[str, ...] = ()
    sample_tokens: int = 40


@dataclass(frozen=True)
class Save:
    """every: steps between two checkpoints (one is always written at the end). keep: how many, the newest."""

    every: int = 500
    keep: int = 2


@dataclass(frozen=True)
class Config:
    """A training run. out: folder of checkpoints and metrics. sequence: tokens. batch: sequences a step, over all processes. micro: sequences
    in one forward pass of one process (0: its whole share); smaller ones are accumulated. precision: bf16 (autocast; weights and optimiser
    stay float32), float8 (the same, with products of eight bits inside the layers) or fp32. recompute: keep only each layer's input and compute
    the rest again on the way back. log: steps between two lines of metrics. peak_tflops: of one device, for utilisation (0: by its name)."""

    out: str
    data: Data
    model: Model
    steps: int
    sequence: int
    batch: int
    tokenizer: Tokens = field(default_factory=Tokens)
    micro: int = 0
    optimiser: Optimiser = field(default_factory=Optimiser)
    schedule: Schedule = field(default_factory=Schedule)
    evaluate: Evaluate = field(default_factory=Evaluate)
    save: Save = field(default_factory=Save)
    precision: Literal["fp32", "bf16", "float8"] = "fp32"
    compile: bool = False
    recompute: bool = False
    seed: int = 0
    log: int = 10
    peak_tflops: float = 0.0


# Keys that may differ when a run goes on: none of them touches the steps that have been made
MAY_CHANGE = ("out", "steps", "evaluate", "save", "log", "peak_tflops", "compile", "recompute", "micro")


def load(path: Path, changes: Sequence[str] = ()) -> Config:
    """Read a YAML file. changes: "section.key=value", put in its place. Paths are seen from the working folder.

    Raises UsageError with one line: not a file, not UTF-8, not YAML (with the line), a key unknown (with the nearest), missing, or given twice,
    a value of the wrong type or out of range.
    """
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        number = path.read_bytes()[: error.start].count(b"\n") + 1
        raise UsageError(f"{path}, line {number}: not UTF-8") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    tree = _yaml(text, str(path), True)
    if not isinstance(tree, dict):
        raise UsageError(f"{path} holds no keys; docs/training.md shows what a configuration looks like")
    for change in changes:
        _put(tree, change)
    config: Config = _read(Config, tree, "", str(path))
    _check(config, str(path))
    return _absolute(config, Path.cwd())


def plain(config: Config) -> dict[str, Any]:
    """Return a configuration as plain data, tuples as lists."""
    return _lists(dataclasses.asdict(config))


def differences(before: Mapping[str, Any], config: Config) -> list[str]:
    """Name, with both values, each key of an earlier configuration (plain) that differs and on which the steps made so far hang.

    Where the text lies is none of them: that it is the same is known by its content. Nor is the held-out text.
    """
    then, now = ({**tree, "data": _shares(tree["data"])} for tree in (_filled(before), plain(config)))
    old, new = ({key: value for key, value in _flat(tree).items() if key.partition(".")[0] not in MAY_CHANGE} for tree in (then, now))
    return [f"{key} was {old.get(key)!r}, is {new.get(key)!r}" for key in sorted(new.keys() | old.keys()) if new.get(key) != old.get(key)]


def _filled(before: Mapping[str, Any]) -> dict[str, Any]:
    """An earlier configuration (plain) with the defaults of keys that there were not yet when it was written."""
    try:
        return plain(_read(Config, dict(before), "", ""))
    except UsageError:  # a key that there is no longer
        return dict(before)


def _shares(data: Mapping[str, Any]) -> dict[str, Any]:
    return {"train": [{key: value for key, value in source.items() if key != "path"} for source in data["train"]]}


class _Strict(yaml.SafeLoader):
    """YAML in which a key may not stand twice (the standard lets the last one win)."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.MarkedYAMLError(problem=f"key '{key.value}' is given twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _yaml(text: str, where: str, lines: bool) -> Any:
    """Read YAML. where, lines: what an error names, and whether with the line in it."""
    try:
        return yaml.load(text, Loader=_Strict)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark and lines else ""
        raise UsageError(f"{where}{line}: {error.problem or 'not YAML'}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{where}: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise UsageError(f"{where}: lists or sections stand too deep in each other") from None


def _put(tree: Any, change: str) -> None:
    where, equals, value = change.partition("=")
    *sections, key = where.strip().split(".")
    if not equals:
        raise UsageError(f"'{change}' changes nothing: write section.key=value")
    for section in sections:
        tree = tree.setdefault(section, {}) if isinstance(tree, dict) else None
    if not isinstance(tree, dict):
        raise UsageError(f"'{where}' leads to no key of the configuration")
    tree[key] = _yaml(value, f"-s {change}", False)


def _read(kind: Any, value: Any, where: str, path: str) -> Any:
    """Make a value of a type out of what YAML gave."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _read(inside[0], value, where, path)
    if dataclasses.is_dataclass(kind):
        return _section(kind, value, where, path)
    if origin is tuple and isinstance(value, list):
        kinds = [inside[0]] * len(value) if inside[-1] is Ellipsis else list(inside)
        if len(kinds) == len(value):
            return tuple(_read(k, v, f"{where}[{i}]", path) for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if origin is Literal:
        if value in inside:
            return value
        near = nearest(value, map(str, inside)) if isinstance(value, str) else ""
        raise UsageError(f"{path}: {where} is {value!r}; choose {', '.join(map(str, inside))}{near}")
    if origin is dict and isinstance(value, dict):
        return value
    if kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            if math.isfinite(float(value)):
                return float(value)  # YAML reads 3e-4 as a text
        except (ValueError, OverflowError):
            pass
    elif kind in (int, bool, str) and type(value) is kind:
        return value
    raise UsageError(f"{path}: {where} must be {_say(kind)}, not {value!r}")


def _section(kind: Any, value: Any, where: str, path: str) -> Any:
    if not isinstance(value, dict):
        raise UsageError(f"{path}: {where} must be a section with keys, not {value!r}")
    types_of = typing.get_type_hints(kind)
    spot = f" in {where}" if where else ""
    for key in value:
        if key not in types_of:
            hint = nearest(str(key), types_of) or f"; known: {', '.join(types_of)}"
            raise UsageError(f"{path}: unknown key '{key}'{spot}{hint}")
    for entry in dataclasses.fields(kind):
        no_default = entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        if no_default and entry.name not in value:
            raise UsageError(f"{path}: key '{entry.name}' is missing{spot}")
    return kind(**{key: _read(types_of[key], v, f"{where}.{key}" if where else key, path) for key, v in value.items()})


def _say(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    if kind in names:
        return names[kind]
    inside = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        return "a list" if inside[-1] is Ellipsis else f"a list of {len(inside)}"
    return "a section with keys"


def _check(config: Config, path: str) -> None:
    """Refuse what has the right type and no sense."""
    model, tokens, sources = config.model, config.tokenizer, (*config.data.train, *config.data.evaluate)
    lora = model.lora or Adapters()
    positive: dict[str, float] = {"steps": config.steps, "sequence": config.sequence, "batch": config.batch, "log": config.log}
    positive |= {"evaluate.every": config.evaluate.every, "evaluate.sequences": config.evaluate.sequences}
    positive |= {"evaluate.sample_tokens": config.evaluate.sample_tokens, "optimiser.rate": config.optimiser.rate}
    positive |= {
        "save.every": config.save.every,
        "save.keep": config.save.keep,
        "model.lora.rank": lora.rank,
        "model.lora.alpha": lora.alpha,
    }
    for key, value in positive.items():
        if value <= 0:
            raise UsageError(f"{path}: {key} must be above 0, not {value}")
    not_negative: dict[str, float] = {"micro": config.micro, "seed": config.seed, "tokenizer.vocabulary": tokens.vocabulary}
    not_negative |= {"optimiser.clip": config.optimiser.clip, "optimiser.weight_decay": config.optimiser.weight_decay}
    not_negative |= {"schedule.warmup": config.schedule.warmup, "peak_tflops": config.peak_tflops}
    for key, value in not_negative.items():
        if value < 0:
            raise UsageError(f"{path}: {key} must not be below 0, not {value}")
    below_one = {"optimiser.betas[0]": config.optimiser.betas[0], "optimiser.betas[1]": config.optimiser.betas[1]}
    below_one |= {"optimiser.momentum": config.optimiser.momentum, "model.lora.dropout": lora.dropout}
    for key, value in below_one.items():
        if not 0 <= value < 1:
            raise UsageError(f"{path}: {key} must be at least 0 and below 1, not {value}")
    if config.seed >= 2**63:
        raise UsageError(f"{path}: seed must be below 2^63, not {config.seed}")
    if not 0 <= config.schedule.floor <= 1 or not 0 <= config.schedule.decay <= 1:
        raise UsageError(f"{path}: schedule.floor and schedule.decay are parts of a whole, between 0 and 1")
    if not config.out or not all(source.path for source in sources):
        raise UsageError(f"{path}: {'out' if not config.out else 'a path in data'} is empty; write . for the working folder")
    odd = next((key for key in model.new if not isinstance(key, str)), None)
    if odd is not None:
        raise UsageError(f"{path}: a key of model.new must be a text, not {odd!r}")
    for key in ("model_type", "size"):
        if not isinstance(model.new.get(key, ""), str):
            raise UsageError(f"{path}: model.new.{key} must be a text, not {model.new[key]!r}")
    if bool(model.new) == bool(model.load):
        raise UsageError(f"{path}: model needs one of new (a configuration) and load (a subject to finetune)")
    if model.new and not {"model_type", "size"} & model.new.keys():
        raise UsageError(f"{path}: model.new needs a model_type (llama, gpt2, nullius ...) or a size (gla-340m ...)")
    if (tokens.load and tokens.vocabulary) or (model.new and not (tokens.load or tokens.vocabulary)):
        raise UsageError(f"{path}: tokenizer needs one of load (a name) and vocabulary (to train one of that size)")
    if model.parts is not None and model.lora is not None:
        raise UsageError(f"{path}: train selected parts (model.parts) or adapters (model.lora), not both")
    if model.new and (model.parts or model.lora):
        raise UsageError(f"{path}: model.parts and model.lora finetune a model that model.load names; a new one is trained whole")
    if not config.data.train:
        raise UsageError(f"{path}: data.train names no file")
    if any(source.weight <= 0 for source in config.data.train):
        raise UsageError(f"{path}: every weight in data.train must be above 0")


def _absolute(config: Config, folder: Path) -> Config:
    """Make paths absolute. What is no directory (a subject's name) stays as it is."""

    def at(text: str) -> str:
        return str(folder / Path(text).expanduser())

    def subject(text: str) -> str:
        return at(text) if text and Path(at(text)).is_dir() else text

    train, evaluate = (tuple(dataclasses.replace(s, path=at(s.path)) for s in side) for side in (config.data.train, config.data.evaluate))
    model = dataclasses.replace(config.model, load=subject(config.model.load))
    tokens = dataclasses.replace(config.tokenizer, load=subject(config.tokenizer.load))
    return dataclasses.replace(config, out=at(config.out), data=Data(train, evaluate), model=model, tokenizer=tokens)


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
