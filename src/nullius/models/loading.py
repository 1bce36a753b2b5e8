"""`nullius.load`: a name from sources.toml, a hub id, a directory or a GGUF file becomes a subject."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import psutil
import torch

from nullius.errors import SubjectError, nearest
from nullius.models import fetch, gguf, hooks
from nullius.models.anatomy import self_test
from nullius.models.language_model import LanguageModel, Provenance
from nullius.models.sources import sources
from nullius.paths import cache_dir

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def load(name: str, device: str | None = None, dtype: torch.dtype | None = None, *, allow_pickle: bool = False) -> LanguageModel:
    """Load a subject.

    name: a name from `nullius models`, a directory or GGUF file, or a hub id (owner/name). device: the best there is when None. dtype: float32
    when None (bfloat16 on CUDA from 2 B parameters on). Weights must be safetensors or GGUF; pickles are refused unless allow_pickle.
    Raises SubjectError with one clear line for whatever cannot be found, verified, mapped or held in memory.
    """
    where = _device(device)
    folder, label, facts = _locate(name)
    if not allow_pickle:
        _refuse_pickles(folder)
    size = _weights_size(folder)
    dtype = dtype or (torch.bfloat16 if where.type == "cuda" and size["parameters"] >= 2e9 else torch.float32)
    _check_memory(label, size["parameters"] * dtype.itemsize, where)
    hf, tokenizer = _from_folder(folder, dtype, allow_pickle)
    model = LanguageModel(hf.to(where), tokenizer, label, weights_hash(folder), Provenance(**facts))
    _self_test(model)
    model.tokens_seen = 0
    return model


def _device(device: str | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise SubjectError(f"no device '{device}'; write cpu, cuda or cuda:1") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise SubjectError("no CUDA device here; leave --device out to use the CPU")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise SubjectError(f"no device '{device}': {torch.cuda.device_count()} CUDA devices here")
    return chosen


def _locate(name: str) -> tuple[Path, str, dict[str, str]]:
    """Return the folder of the weights, the subject's label, and its provenance."""
    if name in sources():
        source = sources()[name]
        folder = fetch.fetch(source)
        facts = json.loads((folder / "subject.json").read_text("utf-8"))
        return folder, name, {key: facts[key] for key in ("source", "licence", "quantisation")}
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise SubjectError(f"no file {path}")
        return _dequantised(path), path.stem, {"source": f"file {path.name}", "quantisation": "a GGUF file, dequantised"}
    if path.is_dir():
        return path, path.resolve().name, {"source": f"directory {path.name}"}
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _from_hub(name), name, {"source": f"hub {name}"}
    if path.exists():
        raise SubjectError(
            f"{path} is a file; a subject is a directory with safetensors, a .gguf file, a hub id or a name of `nullius models`"
        )
    raise SubjectError(
        f"unknown model '{name}'{nearest(name, sources())}; `nullius models` lists what there is, or give a directory or hub id"
    )


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "tokenizer*", "*.txt", "*.model"]
    with contextlib.suppress(Exception):
        return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=True))
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, etag_timeout=5))
    except Exception as error:
        kind = type(error).__name__
        if kind == "RepositoryNotFoundError":
            raise SubjectError(f"the hub has no model '{name}'{nearest(name, [s.hub for s in sources().values()])}") from None
        raise SubjectError(f"cannot fetch '{name}': the hub does not answer ({kind}), and nothing of it is cached") from None


def _dequantised(path: Path) -> Path:
    """Dequantise a user's GGUF file once, under the hash of its content."""
    gguf.check(path)
    folder = cache_dir() / "models" / f"gguf-{fetch.sha256(path)[:16]}"
    if not (folder / "config.json").is_file():
        staging = folder.with_name(f".{folder.name}.{os.getpid()}")
        staging.mkdir(parents=True, exist_ok=True)
        gguf.dequantise(path, staging)
        os.replace(staging, folder)
    return folder


def _refuse_pickles(folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickles = [path.name for path in folder.iterdir() if path.suffix in PICKLES]
    if pickles:
        raise SubjectError(
            f"{folder} holds pickled weights ({pickles[0]}), which can run code when loaded; convert them to safetensors first"
        )
    raise SubjectError(f"{folder} holds no weights (*.safetensors); a subject needs config.json, a tokenizer and safetensors")


def _weights_size(folder: Path) -> dict[str, float]:
    """Read the headers of all safetensors files and check that each file is whole. Returns the number of parameters."""
    parameters = 0
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(length))
        except (struct.error, ValueError, MemoryError, OverflowError):
            raise SubjectError(f"{path} is truncated or damaged (its header cannot be read); fetch it again") from None
        tensors = [entry for key, entry in header.items() if key != "__metadata__"]
        end = 8 + length + max((entry["data_offsets"][1] for entry in tensors), default=0)
        if path.stat().st_size < end:
            raise SubjectError(f"{path} is truncated: {path.stat().st_size} of {end} bytes; fetch it again")
        for entry in tensors:
            count = 1
            for extent in entry["shape"]:
                count *= extent
            parameters += count
    return {"parameters": float(parameters)}


def _check_memory(label: str, needed: float, where: torch.device) -> None:
    """Refuse a model that will not fit, before loading it. Activations and logits are given a fifth."""
    free = torch.cuda.mem_get_info(where)[0] if where.type == "cuda" else psutil.virtual_memory().available
    if needed * 1.2 > free:
        raise SubjectError(
            f"{label} needs about {needed * 1.2 / 2**30:.1f} GiB and {where} has {free / 2**30:.1f} GiB free; take a smaller one"
        )


def _from_folder(folder: Path, dtype: torch.dtype, allow_pickle: bool) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise SubjectError(f"{folder} has no usable config.json: {str(error).splitlines()[0]}") from None
    names = config.architectures or []
    if getattr(config, "is_encoder_decoder", False) or any("MaskedLM" in n or n.endswith("EncoderModel") for n in names):
        raise SubjectError(f"{folder.name} is an encoder ({names[0] if names else config.model_type}); nullius needs a causal decoder")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        hf = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=None if allow_pickle else True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise SubjectError(f"{folder} cannot be loaded: {str(error).strip().splitlines()[0]}") from None
    if getattr(config, "is_decoder", None) is False and hf.get_output_embeddings() is None:
        raise SubjectError(f"{folder.name} is an encoder ({config.model_type}); nullius needs a causal decoder")
    return hf, tokenizer


def weights_hash(folder: Path) -> str:
    """SHA-256 over all safetensors files of a folder, remembered by their size and time of change."""
    files = sorted(folder.glob("*.safetensors"))
    stamp = hashlib.sha256(repr([(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in files]).encode()).hexdigest()
    memory = cache_dir() / "hashes" / stamp
    if memory.is_file():
        return memory.read_text("ascii")
    digest = hashlib.sha256("".join(fetch.sha256(path) for path in files).encode()).hexdigest()
    memory.parent.mkdir(exist_ok=True)
    temporary = memory.with_suffix(f".{os.getpid()}")
    temporary.write_text(digest, "ascii")
    os.replace(temporary, memory)
    return digest


def _self_test(model: LanguageModel) -> None:
    """Run the anatomy's self-test on four tokens."""
    batch = model.pad([[i % model.anatomy.unembedding().shape[0] for i in (1, 2, 3, 5)]])
    anatomy = model.anatomy

    def read(sites: tuple[str, ...], layers: list[int]) -> dict[str, torch.Tensor]:
        kept: dict[str, list[torch.Tensor]] = {name: [] for name in sites}
        handles = [hooks.on_read(anatomy, anatomy.site(name, i), kept[name].append) for name in sites for i in layers]
        model.hidden(batch)
        for handle in handles:
            handle.remove()
        return {name: torch.stack(values) for name, values in kept.items()}

    @contextlib.contextmanager
    def edit(site: str, layer: int, fn: Any) -> Any:
        handles = hooks.on_write(anatomy, anatomy.site(site, layer), fn)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    with torch.no_grad():
        self_test(anatomy, read, edit, lambda: model.hidden(batch))
