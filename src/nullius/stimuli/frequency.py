"""How frequent a word or name is in text: the Zipf scale of the `wordfreq` package, a stated proxy for counts in a training corpus."""

from __future__ import annotations

from functools import cache

import wordfreq


@cache
def zipf(name: str, language: str = "en") -> float:
    """Return log10 of the frequency per billion words (Zipf scale, 0 when unseen; several words are combined as wordfreq does)."""
    return float(wordfreq.zipf_frequency(name.strip(), language))
