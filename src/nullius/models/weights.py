"""Weight files of a folder, looked at without loading them: which they are, whether they are whole, how many parameters, their hash."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import struct
from pathlib import Path

from nullius.errors import SubjectError
from nullius.paths import cache_dir

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
REFUSAL = "pickled weights, which can run code when loaded: convert them to safetensors, or pass allow_pickle=True if you trust them"


def files(folder: Path, allow_pickle: bool = False) -> list[Path]:
    """Return the weight files of a folder: those that an index names, else model.safetensors, else all safetensors.

    Raises SubjectError when there are none, when one that the index names is missing, or when there are only pickles (unless allowed).
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError):
            raise SubjectError(f"{index} is damaged; fetch it again") from None
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise SubjectError(f"{folder} lacks {len(missing)} of its {len(names)} weight files ({missing[0]}); fetch them again")
        return [folder / name for name in names]
    single = folder / "model.safetensors"
    found = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    if found:
        return found
    pickles = sorted(path for path in folder.iterdir() if path.suffix in PICKLES and path.is_file())
    if pickles and allow_pickle:
        return pickles
    if pickles:
        raise SubjectError(f"{folder} holds only {REFUSAL} ({pickles[0].name})")
    raise SubjectError(f"{folder} holds no weights (*.safetensors); a subject needs config.json, a tokenizer and safetensors")


def whole(folder: Path, allow_pickle: bool = False) -> bool:
    """Whether a folder has a config and all of its weight files."""
    try:
        return (folder / "config.json").is_file() and bool(files(folder, allow_pickle))
    except SubjectError:
        return False


def parameters(path: Path) -> int:
    """Read the header of a safetensors file and return its number of parameters. Raises SubjectError when the file is not whole."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size:
                raise ValueError
            header = json.loads(file.read(length))
            entries = [entry for key, entry in header.items() if key != "__metadata__"]
            end = 8 + length + max((entry["data_offsets"][1] for entry in entries), default=0)
            count = sum(math.prod(entry["shape"]) for entry in entries)
    except (struct.error, ValueError, KeyError, AttributeError, TypeError):
        raise SubjectError(f"{path} is truncated or damaged (its header cannot be read); fetch it again") from None
    if size < end:
        raise SubjectError(f"{path} is truncated: {size} of {end} bytes; fetch it again")
    return count


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(paths: list[Path]) -> str:
    """SHA-256 over the SHA-256 of each file, in order; remembered in the cache under their paths, sizes and times of change."""
    stamp = repr([(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths])
    memory = cache_dir() / "hashes" / hashlib.sha256(stamp.encode()).hexdigest()
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if len(digest := memory.read_text("ascii")) == 64:
            return digest
    digest = hashlib.sha256("".join(sha256(path) for path in paths).encode()).hexdigest()
    temporary = memory.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):  # a full disk is no reason not to load: it is hashed again next time
        memory.parent.mkdir(exist_ok=True)
        try:
            temporary.write_text(digest, "ascii")
            os.replace(temporary, memory)
        finally:
            temporary.unlink(missing_ok=True)
    return digest


def note(folder: Path) -> str:
    """Return how the weights of a folder were rounded by whoever published them: "" when its config names no quantisation."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8")).get("quantization_config") or {}
        bits = config.get("bits") or config.get("w_bit") or (4 if config.get("load_in_4bit") else 8 if config.get("load_in_8bit") else None)
    except (OSError, ValueError, AttributeError):
        return ""  # loading it will say what is wrong with this config
    return f"{f'{bits}-bit roundings' if bits else 'roundings'} ({config.get('quant_method', 'unnamed method')})" if config else ""


def licence(folder: Path) -> str:
    """Return the licence that a model card (README.md) states, or ""."""
    card = folder / "README.md"
    if not card.is_file():
        return ""
    lines = card.read_text("utf-8", errors="replace").partition("---\n")[2].partition("\n---")[0].splitlines()
    stated = {key.strip(): value.strip().strip("'\"") for key, _, value in (line.partition(":") for line in lines)}
    return stated.get("license_name") or stated.get("license", "")


def check_room(folder: Path, needed: int, what: str) -> None:
    """Raise SubjectError when the disk of a folder (or of its nearest parent that exists) has less room than needed."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise SubjectError(f"{what} needs {needed / 1e9:.1f} GB in {folder}, {free / 1e9:.1f} GB are free; make room or set NULLIUS_CACHE")
