"""From bytes to text: capped in size, decoded by mark, declaration or charset, cleaned of what databases and parsers refuse."""

from __future__ import annotations

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from nullius.errors import NulliusError
from nullius.feed.text import clean

MOST_FROM_FILE = 200_000_000
MOST_FROM_WEB = 10_000_000
CHUNK = 1 << 18
_MARKS = [(codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32")]
_MARKS += [(codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")]
_OTHER = {
    b"PK\x03\x04": "a zip archive",
    b"%PDF-": "a PDF",
    b"\xfd7zXZ": "an xz archive",
    b"BZh": "a bzip2 archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
}
_OTHER |= {b"\x1f\x8b": "a gzip file within a gzip file", b"SQLite format 3\0": "a database"}
_DECLARED = re.compile(
    rb"""<\?xml[^>]{0,200}?encoding=["']([A-Za-z0-9._-]{2,40})["']|<meta[^>]{0,200}?charset=["']?([A-Za-z0-9._-]{2,40})"""
)


class TooLarge(NulliusError):
    """More bytes than an importer takes."""


@dataclass
class Document:
    """Bytes to import. name: for messages; most: the largest size taken; charset: as the sender declared it; warnings: filled while reading."""

    content: BinaryIO
    name: str
    most: int = MOST_FROM_FILE
    charset: str | None = None
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, content: bytes, name: str = "input", most: int = MOST_FROM_FILE, charset: str | None = None) -> Document:
        """Make a document of bytes in memory."""
        return cls(io.BytesIO(content), name, most, charset)

    def other(self) -> str:
        """Return what this is, where its first bytes say that it is no text; else an empty string."""
        first = next(self._chunks(16), b"")
        return next((kind for mark, kind in _OTHER.items() if first.startswith(mark)), "")

    def start(self, size: int = 65_536) -> str:
        """Return the beginning of the text, for a look at what it is."""
        return next(self.text(size), "")

    def text(self, size: int = CHUNK) -> Iterator[str]:
        """Give the text in pieces from the beginning. Raises TooLarge past the limit, NulliusError for a damaged gzip file."""
        encoding = self._encoding()
        decoder = codecs.getincrementaldecoder(encoding)(errors="replace" if encoding == "cp1252" else "surrogatepass")
        line = ""
        for piece in self._chunks(size):
            try:
                text = line + decoder.decode(piece)
            except UnicodeDecodeError:  # a part of a mark, or UTF-16 with an odd end: what follows is not text
                return
            line = "\r" if text.endswith("\r") else ""  # its line feed may come with the next piece
            if text := clean(text.removesuffix("\r") if line else text):
                yield text.replace("\r\n", "\n").replace("\r", "\n")

    def _encoding(self) -> str:
        first = next(self._chunks(4096), b"")
        for mark, encoding in _MARKS:
            if first.startswith(mark):
                return encoding
        declared = _DECLARED.search(first)
        asked = [self.charset, (declared[1] or declared[2]).decode("ascii") if declared else None, "utf-8"]
        for name in asked:
            if name and self._can(name):
                return name
        warning = f"{self.name} is not UTF-8: read as Windows-1252"
        if warning not in self.warnings:
            self.warnings.append(warning)
        return "cp1252"

    def _can(self, encoding: str) -> bool:
        """Whether the whole content decodes. UTF-16 without a mark and codecs that are no text encodings are never chosen."""
        try:
            if not codecs.lookup(encoding)._is_text_encoding or codecs.lookup(encoding).name.startswith(
                ("utf-16", "utf-32", "utf-7", "unicode")
            ):
                return False
            # a surrogate alone, which some programs write as three bytes, does not make all else of a text something other than UTF-8
            errors = "surrogatepass" if codecs.lookup(encoding).name == "utf-8" else "strict"
            decoder = codecs.getincrementaldecoder(encoding)(errors)
            for piece in self._chunks(CHUNK):
                decoder.decode(piece)
            decoder.decode(b"", final=False)
        except (LookupError, UnicodeDecodeError, TypeError):
            return False
        return True

    def _chunks(self, size: int) -> Iterator[bytes]:
        """Give the bytes from the beginning, unpacked when they are gzip; never more than allowed, however small they were packed."""
        self.content.seek(0)
        packed = self.content.read(2) == b"\x1f\x8b"
        self.content.seek(0)
        source: BinaryIO = gzip.GzipFile(fileobj=self.content) if packed else self.content  # type: ignore[assignment]
        total = 0
        while True:
            try:
                piece = source.read(size)
            except (EOFError, OSError, zlib.error) as error:
                if not packed:
                    raise
                raise NulliusError(f"{self.name} is a damaged gzip file: {error}") from None
            if not piece:
                return
            total += len(piece)
            if total > self.most:
                raise TooLarge(f"{self.name} is larger than {self.most // 1_000_000} MB{' unpacked' if packed else ''}: import it in parts")
            yield piece
