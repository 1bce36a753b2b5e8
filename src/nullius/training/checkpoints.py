"""Checkpoints: directories that `nullius.load` loads, written whole or not at all, the newest few kept.

step-000200/            config.json, model.safetensors, the tokenizer: a subject like any other
    state/              what going on needs: optimiser.safetensors, state.json, and the adapters where LoRA is trained
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nullius.errors import NulliusError, UsageError
from nullius.training.optimisers import whole

PREFIX = "step-"


class SaveError(NulliusError):
    """A checkpoint could not be written; those before it are whole."""


def saved(out: Path) -> list[Path]:
    """Return the checkpoints of a run, the newest last. Half-written ones, and copies that somebody made, have other names and do not count."""
    found = [path for path in out.glob(f"{PREFIX}*") if (path / "state" / "state.json").is_file()]
    return sorted((path for path in found if _number(path).isdecimal()), key=lambda path: int(_number(path)))


def latest(out: Path) -> Path | None:
    """Return the newest checkpoint of a run, or None."""
    return next(reversed(saved(out)), None)


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Keep a run's folder to one training at a time, and clear away what one that was killed while it saved has left there.

    Raises UsageError when another process trains there. Where folders cannot be locked (Windows, some network disks) nothing is checked.
    """
    handle = None
    try:
        import fcntl

        handle = os.open(out, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            if handle is not None:
                os.close(handle)
            raise UsageError(f"another process is training in {out}: wait until it has ended, or choose another `out`") from None
    try:
        for left in (*out.glob(f".{PREFIX}*"), *out.glob(f".old-{PREFIX}*")):
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def weights_of(hf: nn.Module) -> dict[str, Tensor]:
    """Return all weights of a model as whole tensors on the CPU, tied ones once. Every process must call it: shards are gathered."""
    seen: set[int] = set()
    state = {}
    for name, value in hf.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            seen.add(id(value))
            state[name] = whole(value).contiguous()
    return state


def save(out: Path, step: int, hf: Any, tokenizer: Any, weights: Mapping[str, Tensor], state: Mapping[str, Any], keep: int) -> Path:
    """Write a checkpoint and let the oldest go.

    hf: the plain model (its class and config are stored). weights: its weights. state: "optimiser" (and "adapters") → tensors; all else is plain
    data. Raises SaveError when the disk is full or read-only; the checkpoints before stay as they are.
    """
    folder = out / f"{PREFIX}{step:06d}"
    staging = out / f".{folder.name}"
    try:
        shutil.rmtree(staging, ignore_errors=True)
        (staging / "state").mkdir(parents=True)
        hf.save_pretrained(staging, state_dict=dict(weights))
        write_tokenizer(tokenizer, staging)
        tensors = {key: state[key] for key in ("optimiser", "adapters") if key in state}
        for key, value in tensors.items():
            save_file({name: tensor.contiguous() for name, tensor in value.items()}, staging / "state" / f"{key}.safetensors")
        facts = {key: value for key, value in state.items() if key not in tensors}
        (staging / "state" / "state.json").write_text(json.dumps(facts, indent=1), "utf-8")
        _settle(staging)
        if folder.exists():
            _remove(folder)
        os.replace(staging, folder)
        _sync(out)
    except (OSError, SafetensorError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        before = latest(out)
        rest = f"{before.name} is whole" if before else "there is no earlier one"
        raise SaveError(f"cannot save {folder}: {why}; {rest}. Free some space and run the same command again") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    for old in saved(out)[:-keep]:
        _remove(old)
    return folder


def write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer's files. Raises OSError when the disk is full, where its library raises an error of no kind."""
    try:
        tokenizer.save_pretrained(folder)
    except OSError:
        raise
    except Exception as error:
        raise OSError((str(error).splitlines() or [type(error).__name__])[0]) from None


def whole_folder(folder: Path, fill: Callable[[Path], Any]) -> None:
    """Let `fill` write a folder's files; the folder appears, or is exchanged, only when all are there. Raises SaveError when the disk is full."""
    staging = folder.with_name(f".{folder.name}")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
        fill(staging)
        _settle(staging)
        shutil.rmtree(folder, ignore_errors=True)  # an older one, which nothing needs
        os.replace(staging, folder)
        _sync(folder.parent)
    except OSError as error:
        raise SaveError(f"cannot write {folder}: {error.strerror or error}; free some space and run the same command again") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def read_state(folder: Path) -> dict[str, Any]:
    """Return what `save` was given as state. Raises NulliusError for a damaged file."""
    try:
        state = json.loads((folder / "state" / "state.json").read_text("utf-8"))
        for path in (folder / "state").glob("*.safetensors"):
            state[path.stem] = load_file(path)
        if "optimiser" not in state:
            raise OSError("its state/optimiser.safetensors is missing")
    except (OSError, ValueError, SafetensorError) as error:
        raise NulliusError(f"{folder} cannot be read ({str(error).splitlines()[0]}); remove it to go on from the one before") from None
    return state


def read_weights(folder: Path, hf: nn.Module) -> None:
    """Load a checkpoint's weights into a model that was made like it. Raises NulliusError naming a weight of another size."""
    from nullius.models import weights

    found: dict[str, Tensor] = {}
    for path in weights.files(folder):
        try:
            found |= load_file(path)
        except (OSError, SafetensorError) as error:
            raise NulliusError(
                f"{path} cannot be read ({str(error).splitlines()[0]}); remove {folder} to go on from the one before"
            ) from None
    fill(hf, found, str(folder))


@torch.no_grad()
def fill(hf: nn.Module, found: Mapping[str, Tensor], where: str) -> None:
    """Put tensors into a model by name. Raises NulliusError when one is missing, of another size, or unknown."""
    seen: set[int] = set()
    own = {}
    for name, value in hf.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            seen.add(id(value))
            own[name] = value
    for name, value in own.items():
        if name not in found:
            raise NulliusError(f"{where} lacks the weight {name}: it was made by another model")
        if found[name].shape != value.shape:
            raise NulliusError(f"{where} is of another size: {name} is {list(found[name].shape)} there, {list(value.shape)} in this model")
    unknown = sorted(found.keys() - own.keys() - hf.state_dict().keys())
    if unknown:
        raise NulliusError(f"{where} has a weight that this model lacks: {unknown[0]} (and {len(unknown) - 1} more)")
    for name, value in own.items():
        value.copy_(found[name])


def _number(folder: Path) -> str:
    return folder.name.removeprefix(PREFIX)


def _remove(folder: Path) -> None:
    """Remove a checkpoint; one that is half gone must not look like one."""
    hidden = folder.with_name(f".old-{folder.name}")
    shutil.rmtree(hidden, ignore_errors=True)
    os.replace(folder, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _settle(folder: Path) -> None:
    """Wait until the disk has every file of a folder."""
    for path in sorted(folder.rglob("*")):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return  # folders cannot be opened here (Windows)
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
