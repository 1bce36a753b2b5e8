"""Perturbed texts: noise that leaves the message intact.

>>> glue(["The city of Osaka is in Japan."], "aaa")
['aaaThe city of Osaka is in Japan.']
>>> lead(["The city of Osaka is in Japan."], "Note:")
['Note: The city of Osaka is in Japan.']
"""

from __future__ import annotations

from collections.abc import Iterable


def glue(texts: Iterable[str], letters: str) -> list[str]:
    """Return the texts with `letters` glued to their front, no space between: the noise prefix of Jin et al. 2024 (arXiv 2404.07066)."""
    return [letters + text for text in texts]


def lead(texts: Iterable[str], words: str) -> list[str]:
    """Return the texts led by `words` and a space: a prefix that makes sense, the control for one that does not."""
    return [f"{words} {text}" for text in texts]
