"""Documents out of files: plain text, JSON lines, parquet; whole or compressed; read piece by piece, and refused with file and line."""

from __future__ import annotations

import glob
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from nullius.errors import UsageError
from nullius.training.config import Source

PIECE = 1 << 20  # characters after which a long document is handed on, at the end of a line
SUFFIXES = (".txt", ".md", ".jsonl", ".parquet")


def files(source: Source) -> list[Path]:
    """Return the files of a source, in order of their names. Raises UsageError when there are none or one of them is of no known kind."""
    path = Path(source.path)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.is_file() and _kind(p) in SUFFIXES)
    elif path.is_file():
        found = [path]
    else:
        found = sorted(p for p in map(Path, glob.glob(source.path, recursive=True)) if p.is_file())
    if not found:
        raise UsageError(f"no data at {path}: give a file, a pattern or a folder with {', '.join(SUFFIXES)}")
    for file in found:
        if _kind(file) not in SUFFIXES:
            raise UsageError(f"{file} is of no known kind: data is {', '.join(SUFFIXES)}, plain, .gz or .xz")
        if file.stat().st_size == 0:
            raise UsageError(f"data file {file} is empty")
    return found


def pieces(path: Path, source: Source) -> Iterator[tuple[str, bool, int]]:
    """Yield a file's text as (piece, whether a document ends with it, bytes read so far); long documents come in several pieces.

    Raises UsageError naming file and line: not UTF-8, not JSON, no such field, not a text; or when the file holds no text at all.
    """
    kind = {".txt": _text, ".md": _text, ".jsonl": _lines_of_json, ".parquet": _parquet}[_kind(path)]
    some = False
    for piece, ends, read in kind(path, source):
        some = some or bool(piece.strip())
        yield piece, ends, read
    if not some:
        raise UsageError(f"data file {path} holds no text")


def _kind(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix in (".gz", ".xz") else path.suffix


def _open(path: Path, raw: IO[bytes]) -> Iterable[bytes]:
    if path.suffix == ".xz":
        return lzma.open(raw)
    return gzip.open(raw) if path.suffix == ".gz" else raw


def _lines(path: Path) -> Iterator[tuple[int, str, int]]:
    """Yield (number from 1, line with its end, bytes of the file read so far)."""
    with path.open("rb") as raw:
        try:
            for number, line in enumerate(_open(path, raw), 1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")  # a byte-order mark
                yield number, line.decode("utf-8"), raw.tell()
        except UnicodeDecodeError as error:
            raise UsageError(f"{path}, line {number}: not UTF-8 (byte {error.start + 1} of the line); convert the file") from None
        except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
            raise UsageError(f"{path} is damaged: {error}") from None


def _text(path: Path, source: Source) -> Iterator[tuple[str, bool, int]]:
    waiting, size, read = io.StringIO(), 0, 0
    for _, line, read in _lines(path):
        if line.rstrip("\r\n") == source.separator:
            yield waiting.getvalue().rstrip("\n"), True, read
            waiting, size = io.StringIO(), 0
            continue
        waiting.write(line)
        size += len(line)
        if size >= PIECE:
            yield waiting.getvalue(), False, read
            waiting, size = io.StringIO(), 0
    yield waiting.getvalue().rstrip("\n"), True, read


def _lines_of_json(path: Path, source: Source) -> Iterator[tuple[str, bool, int]]:
    for number, line, read in _lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path}, line {number}: not JSON ({error})") from None
        text = record.get(source.field) if isinstance(record, dict) else None
        if not isinstance(text, str):
            fields = record if isinstance(record, dict) else {}
            held = f"; it has {', '.join(list(fields)[:8])}" if fields else ""
            held = f", but {json.dumps(fields[source.field])[:40]}" if source.field in fields else held
            raise UsageError(f"{path}, line {number}: no text under '{source.field}'{held}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(text[error.start]):04x}"
            raise UsageError(f"{path}, line {number}: not Unicode, {half} is half a character; write it out, or as two halves") from None
        yield text, True, read


def _parquet(path: Path, source: Source) -> Iterator[tuple[str, bool, int]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    try:
        table = pq.ParquetFile(path)
        if source.field not in table.schema_arrow.names:
            raise UsageError(f"{path} has no column '{source.field}'; it has {', '.join(table.schema_arrow.names)}")
        size, rows = path.stat().st_size, max(1, table.metadata.num_rows)
        for batch in table.iter_batches(1024, columns=[source.field]):
            for text in batch.column(0).to_pylist():
                row += 1
                if not isinstance(text, str):
                    raise UsageError(f"{path}, row {row}: '{source.field}' holds no text")
                yield text, True, size * row // rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        after = f" after row {row}" if row else ""
        raise UsageError(f"{path} cannot be read as parquet{after}: {str(error).splitlines()[0]}") from None
