"""The model of a run: made from a configuration, or loaded to be finetuned whole, in parts, or through adapters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nullius.errors import UsageError, nearest
from nullius.training import checkpoints, lora, processes
from nullius.training.config import Config
from nullius.training.lora import Lora
from nullius.training.parts import Masks, Parts

ADAPTER = ".lora_"


@dataclass
class Trainee:
    """hf: the plain model, whose class and config are saved. body: what is called (hf itself, or hf with adapters around its maps). masks: which
    weights are trained; None: all. lora: the adapters, if any. outside: names of the weights of the embedding and the unembedding."""

    hf: Any
    body: Any
    masks: Masks | None = None
    lora: Lora | None = None


def build(config: Config, tokenizer: Any) -> Trainee:
    """Make or load the model, in float32 on the CPU. The seed decides fresh weights and adapters."""
    model = config.model
    if model.new:
        return _plain(new(model.new, tokenizer, config.sequence, config.seed))
    from nullius.models.loading import load

    subject = load(model.load, "cpu", torch.float32)
    _check_lengths(subject.hf.config, len(tokenizer), config.sequence, model.load)
    if model.parts is not None:
        return Trainee(subject.hf, subject.hf, Parts(**dataclasses.asdict(model.parts)).masks(subject))
    if model.lora is not None:
        how = Lora(**dataclasses.asdict(model.lora))
        body = lora.add(subject.hf, how, config.seed)
        return Trainee(subject.hf, body, {name: None for name, value in body.named_parameters() if value.requires_grad}, how)
    return _plain(subject.hf)


def new(wanted: Mapping[str, Any], tokenizer: Any, sequence: int, seed: int) -> Any:
    """Make a model with fresh weights. The tokenizer's size and special tokens are filled in where the configuration leaves them open.

    Raises UsageError: an unknown model_type or key (with the nearest), a value that transformers refuses, a vocabulary or context too small.
    """
    from transformers import AutoModelForCausalLM

    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    fill: dict[str, Any] = {"vocab_size": len(tokenizer), **{name: getattr(tokenizer, name) for name in names}}
    try:
        made = _own(wanted, fill, sequence) if "size" in wanted or wanted["model_type"] == "nullius" else _theirs(wanted, fill, sequence)
        _check_lengths(made, len(tokenizer), sequence, "model.new")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return AutoModelForCausalLM.from_config(made, dtype=torch.float32)
    except UsageError:
        raise
    except Exception as error:  # code of a hundred architectures says no in its own way; the user gets one line
        why = f"no such value as {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:300]
        raise UsageError(f"model.new: {why}") from None


def _own(wanted: Mapping[str, Any], fill: Mapping[str, Any], sequence: int) -> Any:
    """Configuration of an architecture of this project; it bounds no length (but where its attention does)."""
    from nullius.models import architectures

    return architectures.make_config({"max_position_embeddings": max(2048, sequence), **fill, **wanted})


def _theirs(wanted: Mapping[str, Any], fill: dict[str, Any], sequence: int) -> Any:
    """Configuration of an architecture of transformers, which takes any key in silence and must be asked which it knows."""
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    from nullius.models import architectures  # makes its model types known  # noqa: F401

    kind = wanted["model_type"]
    if kind not in CONFIG_MAPPING:
        raise UsageError(f"model.new: unknown model_type '{kind}'{nearest(str(kind), CONFIG_MAPPING)}")
    default = AutoConfig.for_model(kind)
    if type(default) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UsageError(f"model.new: {kind} is no decoder that could learn to predict the next token; take llama, gpt2, nullius ...")
    known = default.to_dict().keys() | default.attribute_map.keys()
    for key in wanted:
        if key not in known:
            raise UsageError(f"model.new: {kind} has no key '{key}'{nearest(key, known)}")
    if "max_position_embeddings" in known and default.max_position_embeddings < sequence:
        fill["max_position_embeddings"] = sequence
    given = {default.attribute_map.get(key, key) for key in wanted}
    return AutoConfig.for_model(**{key: value for key, value in fill.items() if default.attribute_map.get(key, key) not in given}, **wanted)


def in_float8(trainee: Trainee, device: torch.device) -> None:
    """Train the linear maps inside the layers with products of eight bits.

    Raises UsageError for a device that has none, or on which they come out wrong when they are tried; a model without such maps; and adapters, whose
    maps are too thin to gain by it.
    """
    from nullius.kernels import float8
    from nullius.models.architectures.float8 import trained_in_float8

    if not float8.works(device):
        what = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        raise UsageError(
            f"precision: float8 needs a GPU of compute capability 8.9 or later (H100, L40, RTX 4090), here is {what}; take bf16"
        )
    if not float8.right(device):
        raise UsageError(f"precision: float8 does not give the right numbers on {device} with this PyTorch, Triton and driver; take bf16")
    if trainee.lora is not None:
        raise UsageError("precision: float8 gains nothing with model.lora; take bf16")
    if not trained_in_float8(processes.layers(trainee.hf)):
        raise UsageError("precision: float8 finds no linear map with sides that are multiples of 128 in this model's layers; take bf16")


def restore(trainee: Trainee, folder: Path, state: Mapping[str, Any]) -> None:
    """Put a checkpoint's weights into a model that `build` made; with LoRA the adapters alone (the weights below are those loaded)."""
    if trainee.lora is None:
        checkpoints.read_weights(folder, trainee.hf)
        return
    named = dict(trainee.body.named_parameters())
    saved = state.get("adapters", {})
    for name in trainee.masks or {}:
        if name not in saved or saved[name].shape != named[name].shape:
            raise UsageError(f"{folder} has no adapter {name} of size {list(named[name].shape)}: it was made with other adapters")
        with torch.no_grad():
            named[name].copy_(saved[name])


def weights_to_save(trainee: Trainee) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the plain model's weights, adapters' updates added, and the adapters by name. Every process must call it."""
    everything = checkpoints.weights_of(trainee.body)
    if trainee.lora is None:
        return everything, {}
    adapters = {name: value for name, value in everything.items() if ADAPTER in name}
    plain = {name: value for name, value in everything.items() if ADAPTER not in name}
    scale = trainee.lora.alpha / trainee.lora.rank
    merged = {}
    for name, value in plain.items():
        stem = name.removesuffix(".base_layer.weight")
        if stem != name:
            update = adapters[f"{stem}.lora_B.default.weight"] @ adapters[f"{stem}.lora_A.default.weight"] * scale
            value = value + (update if update.shape == value.shape and not _transposed(trainee.body, stem) else update.T)
        merged[name.removeprefix("base_model.model.").replace(".base_layer.", ".")] = value
    return merged, adapters


def _transposed(body: Any, stem: str) -> bool:
    """Whether a map stores its weight as [in, out] (GPT-2)."""
    return bool(body.get_submodule(stem).fan_in_fan_out)


def _plain(hf: Any) -> Trainee:
    return Trainee(hf, hf)


def _check_lengths(made: Any, vocabulary: int, sequence: int, where: str) -> None:
    text = made.get_text_config()
    if text.vocab_size < vocabulary:
        raise UsageError(f"{where}: a vocabulary of {text.vocab_size} is too small for the tokenizer's {vocabulary} entries")
    longest = getattr(text, "max_position_embeddings", None)
    if longest is not None and longest < sequence:
        raise UsageError(f"{where} takes at most {longest} tokens; a sequence of {sequence} is too long (max_position_embeddings)")
