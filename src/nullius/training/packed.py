"""Packed data sets: all documents of a source as one long row of token ids in a memory-mapped file, made once for each content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from nullius.errors import NulliusError, UsageError
from nullius.models import weights
from nullius.paths import cache_dir
from nullius.training import documents
from nullius.training.config import Source

FORMAT = 1  # of the files below; a new number leaves old caches alone
BATCH = 4 << 20  # characters handed to the tokenizer at once
Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Packed:
    """Token ids [tokens], every document followed by the separator. name: of the source, for messages. key: of what it was made from."""

    name: str
    key: str
    ids: NDArray[Any]
    documents: int

    def windows(self, sequence: int) -> int:
        """How many windows of `sequence` inputs and as many targets (one further on) there are, without overlap of inputs.

        Raises UsageError when there is not even one.
        """
        n = (len(self.ids) - 1) // sequence
        if n < 1:
            raise UsageError(f"{self.name} holds {len(self.ids)} tokens, fewer than one sequence of {sequence} and its last target")
        return n

    def window(self, i: int, sequence: int) -> NDArray[np.int64]:
        """Return window i [sequence + 1]: inputs are all but its last token, targets all but its first."""
        return self.ids[i * sequence : (i + 1) * sequence + 1].astype(np.int64)


def pack(source: Source, tokenizer: Any, separator: int, progress: Progress) -> Packed:
    """Tokenise a source, or take what was made before from the same content with the same tokenizer.

    The cache lies under the hash of the files' content, the tokenizer and what was asked; it appears only when whole, and one process at a
    time makes it. Raises UsageError for bad data (see `documents`), NulliusError when the disk is full.
    """
    paths = documents.files(source)
    asked = [
        FORMAT,
        weights.content_hash(paths),
        _identity(tokenizer),
        separator,
        source.field,
        source.separator,
        [p.suffixes for p in paths],
    ]
    folder = cache_dir() / "packed" / hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:24]
    folder.parent.mkdir(exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "packed.json").is_file():
            _make(folder, paths, source, tokenizer, separator, progress)
    facts = json.loads((folder / "packed.json").read_text("utf-8"))
    ids = np.memmap(folder / "tokens.bin", dtype=facts["dtype"], mode="r")
    if len(ids) != facts["tokens"]:
        raise NulliusError(f"{folder} is damaged ({len(ids)} of {facts['tokens']} tokens); remove it and run again")
    return Packed(Path(source.path).name, folder.name, ids, facts["documents"])


def _identity(tokenizer: Any) -> str:
    """Everything that decides how a text is cut: the whole fast tokenizer, or vocabulary and class where there is only a slow one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    whole = backend.to_str() if backend is not None else json.dumps([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())])
    return hashlib.sha256(whole.encode()).hexdigest()


def _make(folder: Path, paths: Sequence[Path], source: Source, tokenizer: Any, separator: int, progress: Progress) -> None:
    staging = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    dtype = np.dtype(np.uint16 if max(len(tokenizer), separator + 1) <= 1 << 16 else np.uint32)
    tokens = ended = 0
    try:
        staging.mkdir()
        with (staging / "tokens.bin").open("wb") as file:
            for texts, ends in _batches(paths, source, progress):
                rows = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
                for ids, end in zip(rows, ends, strict=True):
                    tokens += _write(file, [*ids, separator] if end else ids, dtype)
                    ended += end
            file.flush()
            os.fsync(file.fileno())
        facts = {"tokens": tokens, "documents": ended, "dtype": dtype.name, "files": [path.name for path in paths]}
        (staging / "packed.json").write_text(json.dumps(facts), "utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # what an older, damaged cache left
        os.replace(staging, folder)
    except OSError as error:
        raise NulliusError(f"cannot write the packed data set in {folder.parent}: {error.strerror or error}; free some space") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write(file: IO[bytes], ids: Sequence[int], dtype: np.dtype) -> int:
    file.write(np.asarray(ids, dtype).tobytes())
    return len(ids)


def _batches(paths: Sequence[Path], source: Source, progress: Progress) -> Iterator[tuple[list[str], list[bool]]]:
    """Pieces of all files in batches that the tokenizer can spread over its threads."""
    total, done = sum(path.stat().st_size for path in paths), 0
    texts: list[str] = []
    ends: list[bool] = []
    size, inside = 0, False
    for path in paths:
        for piece, end, read in documents.pieces(path, source):
            if not piece and not inside:
                continue  # an empty document
            inside = not end
            texts.append(piece)
            ends.append(end)
            size += len(piece)
            if size >= BATCH:
                yield texts, ends
                texts, ends, size = [], [], 0
                progress(f"tokenising {path.name}", (done + read) // 1000, total // 1000)
        done += path.stat().st_size
    if texts:
        yield texts, ends
