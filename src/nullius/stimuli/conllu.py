"""Texts with word classes from CoNLL-U files (https://universaldependencies.org/format.html), as treebanks and taggers write them."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

from nullius.errors import NulliusError
from nullius.stimuli.windows import BOUNDARY, TaggedText, tagged

UNPACKERS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.decompress, ".xz": lzma.decompress}


def read(path: str | Path) -> TaggedText:
    """Read words (FORM, lower-cased) and universal word classes (UPOS); plain, .gz or .xz.

    Punctuation and symbols (PUNCT, SYM) are dropped, and one boundary ends each sentence. Of a contraction (`2-3 im`) its parts
    are read, since only they have classes; empty nodes (`8.1`) are skipped. Raises NulliusError, naming the line, for what is no CoNLL-U.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        lines = UNPACKERS.get(path.suffix, bytes)(content).decode("utf-8").split("\n")
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise NulliusError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    pairs: list[tuple[str, str]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            if pairs and pairs[-1][0] != BOUNDARY:
                pairs.append((BOUNDARY, "PUNCT"))
            continue
        if line.startswith("#"):
            continue
        fields = line.rstrip("\r").split("\t")
        if len(fields) != 10:
            raise NulliusError(f"{path}, line {number}: {len(fields)} fields instead of the ten of CoNLL-U (tab-separated)")
        index, form, _, upos = fields[:4]
        if "-" in index or "." in index:
            continue
        if not index.isdecimal() or upos in ("", "_"):
            raise NulliusError(f"{path}, line {number}: expected a word number and a word class (UPOS), got '{index}' and '{upos}'")
        if upos not in ("PUNCT", "SYM"):
            pairs.append((form.lower(), upos))
    if not pairs:
        raise NulliusError(f"{path} holds no words")
    return tagged(pairs)
