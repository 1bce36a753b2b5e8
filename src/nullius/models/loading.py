"""`nullius.load`: a name from sources.toml, a hub id, a directory or a GGUF file becomes a subject."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from nullius.errors import NulliusError, SubjectError, nearest
from nullius.models import fetch, gguf, hooks, hub, weights
from nullius.models.anatomy import self_test
from nullius.models.language_model import LanguageModel, Provenance
from nullius.models.sources import sources
from nullius.paths import cache_dir


@dataclass(frozen=True)
class Place:
    """A folder with weights on this machine, what to call the subject, and where it came from."""

    folder: Path
    label: str
    provenance: Provenance


def load(
    name: str | Path, device: str | torch.device | None = None, dtype: torch.dtype | None = None, *, allow_pickle: bool = False
) -> LanguageModel:
    """Load a subject.

    name: a name from `nullius models`, a hub id (owner/name), a directory or a GGUF file. device: the best there is when None. dtype: float32
    when None (bfloat16 on CUDA from 2 B parameters on). Weights must be safetensors or GGUF; pickles are refused unless allow_pickle.
    Raises SubjectError with one clear line for whatever cannot be found, verified, mapped or held in memory.

    >>> model = load("smollm2-135m")  # doctest: +SKIP
    >>> model.last_logits(["The capital of France is"]).shape  # doctest: +SKIP
    torch.Size([1, 49152])
    """
    where = _device(device)
    place = locate(str(name), where, dtype, allow_pickle)
    files = weights.files(place.folder, allow_pickle)
    parameters = sum(weights.parameters(path) for path in files if path.suffix == ".safetensors")
    dtype = dtype or _default_dtype(parameters, where)
    _check_memory(place.label, parameters * dtype.itemsize, where)
    hf, tokenizer = _from_folder(place.folder, dtype, allow_pickle)
    model = LanguageModel(hf.to(where), tokenizer, place.label, weights.content_hash(files), place.provenance)
    _self_test(model)
    model.tokens_seen = 0
    return model


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise SubjectError(f"no device '{device}'; write cpu, cuda or cuda:1") from None
    if chosen.type not in ("cpu", "cuda"):
        raise SubjectError(f"nullius computes on cpu and cuda, not on '{device}'; leave --device out to take the best there is")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise SubjectError("no CUDA device here; leave --device out to use the CPU")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise SubjectError(f"no device '{device}': {torch.cuda.device_count()} CUDA devices here")
    return chosen


def _default_dtype(parameters: int, where: torch.device) -> torch.dtype:
    return torch.bfloat16 if where.type == "cuda" and parameters >= 2e9 else torch.float32


def locate(name: str, where: torch.device, dtype: torch.dtype | None = None, allow_pickle: bool = False) -> Place:
    """Find a subject's folder, fetching it first where needed; what could never fit into memory is not fetched."""
    if not name.strip():
        raise SubjectError("a subject has a name: one of `nullius models`, a hub id, a directory or a GGUF file")
    if name in sources():
        source = sources()[name]
        if not source.here:
            _check_memory(name, source.parameters * (dtype or _default_dtype(source.parameters, where)).itemsize, where)
        return Place(fetch.fetch(source), name, Provenance(**source.provenance))
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        inside = sorted(path.glob("*.gguf"))
        if len(inside) == 1 and not any(path.glob("*.safetensors")):
            path = inside[0]
        elif path.is_dir() and len(inside) > 1 and not any(path.glob("*.safetensors")):
            raise SubjectError(f"{path} holds {len(inside)} GGUF files: give the path of one ({inside[0].name} ...)")
        else:
            found = Provenance(f"directory {path.resolve().name}", weights.licence(path), weights.note(path))
            return Place(path, path.resolve().name, found)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise SubjectError(f"no file {path}")
        folder, note = _dequantised(path)
        return Place(folder, path.stem, Provenance(f"file {path.name}", "", note))
    if path.exists():
        raise SubjectError(
            f"{path} is a file; a subject is a directory with safetensors, a .gguf file, a hub id or a name of `nullius models`"
        )
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        snapshot = hub.cached(name, allow_pickle) or hub.download(name, allow_pickle)
        return Place(snapshot.folder, name, Provenance(**snapshot.facts(name)))
    if "/" in name or name.startswith("~"):
        raise SubjectError(f"no directory or file {name}; a subject is one of these, a hub id (owner/name) or a name of `nullius models`")
    raise SubjectError(
        f"unknown model '{name}'{nearest(name, sources())}; `nullius models` lists what there is, or give a directory or hub id"
    )


def _dequantised(path: Path) -> tuple[Path, str]:
    """Dequantise a user's GGUF file once, under the hash of its content."""
    header = gguf.check(path)
    folder = cache_dir() / "models" / f"gguf-{weights.sha256(path)[:16]}"
    with fetch.lock(folder.name):
        if not folder.is_dir():
            weights.check_room(folder, 4 * header.parameters, path.name)
            fetch.say(f"{path.name}: dequantising once, for later loads in a second")
            with fetch.staging(folder) as staging:
                gguf.dequantise(path, staging)
    return folder, header.note


def _says_gguf(config: Any) -> bool:
    """Whether a config still says what its weights were before they were dequantised."""
    quantisation = getattr(config, "quantization_config", None)
    method = quantisation.get("quant_method") if isinstance(quantisation, dict) else getattr(quantisation, "quant_method", None)
    return getattr(method, "value", method) == "gguf"


def _check_memory(label: str, needed: float, where: torch.device) -> None:
    """Refuse a model that will not fit, before loading it. Activations and logits are given a fifth."""
    free = torch.cuda.mem_get_info(where)[0] if where.type == "cuda" else psutil.virtual_memory().available
    if needed * 1.2 > free:
        raise SubjectError(
            f"{label} needs about {needed * 1.2 / 2**30:.1f} GiB and {where} has {free / 2**30:.1f} GiB free; take a smaller one"
        )


def _from_folder(folder: Path, dtype: torch.dtype, allow_pickle: bool) -> tuple[Any, Any]:
    """Load what transformers makes of a folder. Raises SubjectError when it is no causal decoder or lacks weights."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from nullius.models import architectures  # noqa: F401  (makes them known to transformers)

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    part = "config.json"
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        _refuse_encoder(folder.name, config)
        if _says_gguf(config):  # though its weights are plain tensors now: transformers would refuse to save the model, or to train it
            del config.quantization_config
        part = "tokenizer"
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        part = "weights"
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=dtype, use_safetensors=not allow_pickle or None, trust_remote_code=False, output_loading_info=True
        )
    except NulliusError:
        raise
    except Exception as error:  # files made by anyone, read by code of a hundred architectures: whatever it is, the user gets one line
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if "ignore_mismatched_sizes" in reason:
            reason = "its weights have other sizes than its config.json says"
        again = "; delete this folder, and it is fetched anew" if folder.parent == cache_dir() / "models" else ""
        raise SubjectError(f"{folder} cannot be loaded ({part}): {reason}{again}") from error
    hf, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise SubjectError(f"{folder} lacks {len(missing)} weights of a {type(hf).__name__} ({missing[0]} ...): they would be random")
    return hf, tokenizer


def _refuse_encoder(name: str, config: Any) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    kind = (config.architectures or [config.model_type])[0]
    causal = any("CausalLM" in text or "LMHead" in text or "ForConditionalGeneration" in text for text in config.architectures or [])
    if (
        config.is_encoder_decoder
        or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING
        or (getattr(config, "is_decoder", 1) is False and not causal)
    ):
        raise SubjectError(f"{name} is not a decoder ({kind}); nullius needs a causal language model, not an encoder")


def _self_test(model: LanguageModel) -> None:
    """Run the anatomy's self-test on two rows of four tokens that differ in the last."""
    batch = model.pad([[i % model.anatomy.unembedding().shape[0] for i in row] for row in ((1, 2, 3, 5), (1, 2, 3, 6))])
    anatomy = model.anatomy

    def read(sites: tuple[str, ...], layers: list[int]) -> dict[str, torch.Tensor]:
        kept: dict[str, list[torch.Tensor]] = {name: [] for name in sites}
        handles = [hooks.on_read(anatomy, anatomy.site(name, i), kept[name].append) for name in sites for i in layers]
        hidden = model.hidden(batch)
        for handle in handles:
            handle.remove()
        if not torch.isfinite(hidden).all():
            raise SubjectError(
                f"{model.name} computes values that are not finite: its weights are damaged, or {model.dtype} is too narrow for it"
            )
        return {"hidden": hidden, **{name: torch.stack(values) for name, values in kept.items()}}

    @contextlib.contextmanager
    def edit(site: str, layer: int, fn: hooks.Edit) -> Iterator[None]:
        handles = hooks.on_write(anatomy, anatomy.site(site, layer), fn)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    with torch.no_grad():
        self_test(anatomy, read, edit, lambda: model.hidden(batch))
