"""How frequent a name is in text.

Two providers: the Zipf scale of the `wordfreq` package, a stated proxy for counts in a training corpus; or a file of counts taken from the
training corpus itself (a CSV with the columns name and count).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import wordfreq

from nullius.errors import UsageError

Frequency = Callable[[str], float]


@cache
def zipf(name: str) -> float:
    """Return the Zipf frequency of an English word or name: log10 of its occurrences per billion words, 0 when unseen.

    Several words are combined as wordfreq does (as if they occurred independently): a rough proxy for names of two words.
    """
    return float(wordfreq.zipf_frequency(name.strip(), "en"))


def from_counts(path: Path | str) -> Frequency:
    """Return a function name → log10(1 + count) that reads a CSV with the columns name and count; a name not in it counts as unseen.

    Raises UsageError when the file cannot be read or has no such columns.
    """
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            counts = {row["name"].strip(): float(row["count"]) for row in csv.DictReader(file)}
    except OSError as error:
        raise UsageError(f"cannot read the counts file {path}: {error.strerror}") from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UsageError(f"the counts file {path} must be a CSV with the columns name and count, one number a line") from None
    return lambda name: math.log10(1 + counts.get(name.strip(), 0.0))


def provider(path: str | None = None) -> tuple[Frequency, str]:
    """Return the counts of a file when one is given, else Zipf frequencies, with what they are in words."""
    if path:
        return from_counts(path), f"log10 of the counts in {Path(path).name}"
    return zipf, "Zipf frequency of wordfreq (a proxy for counts in the training corpus)"
