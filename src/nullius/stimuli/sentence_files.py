"""Sentences of a user's text file, told apart by a simple rule: they end in . ! or ? before a space and a capital letter, or with the line."""

from __future__ import annotations

import re
from pathlib import Path

from nullius.errors import UsageError

END = re.compile(r"(?<=[.!?])[\"”’)]*\s+(?=[\"“‘(]*[A-ZÀ-ÞΑ-ΩА-Я])")


def split(text: str) -> list[str]:
    """Return the sentences of a text in their order."""
    return [part.strip() for line in text.splitlines() for part in END.split(line.strip()) if part.strip()]


def read(path: str | Path, *, at_least: int) -> list[str]:
    """Return the sentences of a UTF-8 file in their order. Raises UsageError: no such file, not UTF-8 (with the line), too few sentences."""
    found: list[str] = []
    number = 0
    try:
        with Path(path).open("rb") as file:
            for line in file:
                number += 1
                found += split(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise UsageError(f"{path}, line {number}: not UTF-8; convert the file") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    if len(found) < at_least:
        raise UsageError(f"{path} holds {len(found)} sentences, {at_least} are needed")
    return found
