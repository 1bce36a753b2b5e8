"""A text of the user's own for studies that train on text: the file that NULLIUS_TEXT names, whole, in bytes, or in tokens made for it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nullius.errors import UsageError
from nullius.training import documents
from nullius.training.config import Source

VARIABLE = "NULLIUS_TEXT"


@dataclass(frozen=True)
class OwnText:
    """name: of the file. sha256: of the text (16 hex digits), so that a run says what it was trained on."""

    name: str
    text: str
    sha256: str


def read(most: int | None = None) -> OwnText:
    """Return the text of the file, its first `most` characters where that is given.

    The file is one that `nullius train` takes (.txt, .md, .jsonl, .parquet; also .gz, .xz). Raises UsageError: none is named, none is there, empty,
    not UTF-8 (with the line).
    """
    named = os.environ.get(VARIABLE)
    if not named:
        raise UsageError(f"text=file needs a text: set {VARIABLE} to a file (.txt, .jsonl, .parquet, also .gz or .xz)")
    path = Path(named).expanduser()
    if not path.is_file():
        raise UsageError(f"{VARIABLE} names {path}, which is no file")
    source = Source(str(path))
    parts: list[str] = []
    size = 0
    for file in documents.files(source):
        for piece, ends, _ in documents.pieces(file, source):
            parts += [piece, "\n"] if ends else [piece]
            size += len(piece)
            if most is not None and size >= most:
                break
    text = "".join(parts)[:most]
    return OwnText(path.name, text, hashlib.sha256(text.encode()).hexdigest()[:16])


def byte_pairs(texts: Sequence[str], entries: int) -> Any:
    """Train a byte-level BPE of up to `entries` entries on texts (tokenizers.Tokenizer); every text can be cut, whatever it holds."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=entries, initial_alphabet=alphabet, show_progress=False))
    return bpe


def tokens(text: str, entries: int) -> tuple[NDArray[np.int64], int]:
    """Cut a text into tokens of a BPE trained on it: token ids [n], and how many there are to choose from."""
    lines = [line for line in text.split("\n") if line.strip()]
    bpe = byte_pairs(lines, entries)
    cut = [np.asarray(each.ids, np.int64) for each in bpe.encode_batch(lines)]
    return np.concatenate(cut), bpe.get_vocab_size()
