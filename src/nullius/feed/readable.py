"""TeX in titles and abstracts made readable: accents and simple formulas become Unicode; what cannot be read stays as it is."""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from nullius.feed.text import one_line

if TYPE_CHECKING:
    from pylatexenc.latex2text import LatexNodes2Text

_SUPERSCRIPT = str.maketrans("0123456789+-=()ni", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ")
_SUBSCRIPT = str.maketrans("0123456789+-=()aeijknx", "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑᵢⱼₖₙₓ")
_SCRIPT = re.compile(r"([_^])(?:\{([^{}\\]{1,8})\}|([A-Za-z0-9+\-]))")
_FORMULA = re.compile(r"\$([^$\n]{1,200})\$")


@lru_cache(maxsize=4096)
def readable(text: str) -> str:
    r"""Return a text for reading: one line, TeX letters and simple $…$ as Unicode. The result is plain text: escape it.

    >>> readable(r"Schr\"odinger at $O(n^2)$, 5 % of $\alpha$")
    'Schrödinger at O(n²), 5 % of α'
    """
    line = one_line(text)
    if "\\" not in line and "$" not in line:
        return line
    line = _FORMULA.sub(lambda match: f"{_formula(match[1])}", line)
    return one_line(_words(line)) if "\\" in line else line


def _formula(tex: str) -> str:
    return _words(_SCRIPT.sub(_script, tex))


def _script(match: re.Match[str]) -> str:
    table = _SUPERSCRIPT if match[1] == "^" else _SUBSCRIPT
    inner = match[2] or match[3]
    return inner.translate(table) if all(ord(character) in table for character in inner) else match[0]


def _words(tex: str) -> str:
    if "\\" not in tex or tex.count("{") != tex.count("}"):
        return tex
    try:
        # what is a comment or a column to TeX is a sign in an abstract
        return str(_decoder().latex_to_text(re.sub(r"(?<!\\)([%&#])", r"\\\1", tex))) or tex
    except Exception:  # a parser of other people's TeX: whatever it trips over is shown as written
        return tex


@cache
def _decoder() -> LatexNodes2Text:
    from pylatexenc.latex2text import LatexNodes2Text

    return LatexNodes2Text(math_mode="text", keep_comments=False)
