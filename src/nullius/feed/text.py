"""Text as the feed compares and shows it: keys for titles and names, TeX letters made readable, first sentences."""

from __future__ import annotations

import re
import unicodedata

_END = re.compile(r"(?<=[.!?])[\"')\]]?\s+(?=[\"'(\[]?[A-Z0-9À-Þ])")
_NO_END = re.compile(r"(?:\b(?:e\.g|i\.e|cf|vs|al|etc|Fig|Eq|Sec|Dr|No|resp|approx|[A-Z])\.)$")
_REFUSED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")
_ARXIV = re.compile(r"(?:arxiv:)?(?:(\d{4}\.\d{4,5})|([a-z-]{2,12})(?:\.[a-z-]{2,12})?/(\d{7}))(?:v(\d{1,3}))?", re.IGNORECASE | re.ASCII)
_NO_LETTER = str.maketrans(dict.fromkeys(chr(code) for code in range(128) if not chr(code).isalnum()))


def key(text: str) -> str:
    """Return what is left of a title or name when form does not count: NFKD, casefold, letters and digits only.

    >>> key("Do LLMs “Feel”?  Émotion")
    'dollmsfeelemotion'
    """
    if text.isascii():  # of these there are many, and they need no normal form
        return text.lower().translate(_NO_LETTER)
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKD", text).casefold()))


def arxiv_id(text: str) -> tuple[str, int | None] | None:
    """Return an arXiv id as arXiv writes it (no version, of an old one no subject class) and the version; None for anything else.

    >>> arxiv_id("arXiv:2310.15910v2"), arxiv_id("math.GT/0309136"), arxiv_id("hal-01234")
    (('2310.15910', 2), ('math/0309136', None), None)
    """
    match = _ARXIV.fullmatch(text.strip())
    if match is None:
        return None
    new, archive, number, version = match.groups()
    return (new or f"{archive.lower()}/{number}"), int(version) if version else None


def clean(text: str) -> str:
    """Drop NULs and lone surrogates, which databases refuse, and other control characters, which terminals obey."""
    return text if text.isprintable() else _REFUSED.sub("", text)


def one_line(text: str) -> str:
    """Return a text with every run of white space, hard line breaks too, made one space."""
    return " ".join(clean(text).split())


def first_sentences(text: str, n: int = 2) -> str:
    """Return the first n sentences of a text; abbreviations such as "et al." end none.

    >>> first_sentences("We test it (cf. Fig. 2). It holds. It is small.")
    'We test it (cf. Fig. 2). It holds.'
    """
    found: list[str] = []
    for part in _END.split(one_line(text)):
        if found and _NO_END.search(found[-1]):
            found[-1] = f"{found[-1]} {part}"
        elif len(found) == n:
            break
        else:
            found.append(part)
    return " ".join(found)
