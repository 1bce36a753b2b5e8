"""TeX in titles and abstracts made readable: accents and simple formulas become Unicode; what cannot be read stays as it is."""

from __future__ import annotations

import logging
import re
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from nullius.feed.text import one_line

if TYPE_CHECKING:
    from pylatexenc.latex2text import LatexNodes2Text

_SUPERSCRIPT = str.maketrans(
    "0123456789+-=()abcdefghijklmnoprstuvwxyzABDEGHIJKLMNOPRTUVW",
    "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻᴬᴮᴰᴱᴳᴴᴵᴶᴷᴸᴹᴺᴼᴾᴿᵀᵁⱽᵂ",
)
_SUBSCRIPT = str.maketrans("0123456789+-=()aehijklmnoprstuvx", "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓ")
_SCRIPT = re.compile(r"([_^])(?:\{([^{}]{1,80})\}|([A-Za-z0-9+\-]))")
_SCRIPTED = re.compile(r"(\\[A-Za-z]+)(?=[_^])")
_PLAIN = re.compile(r"\w+|\\[A-Za-z]+")
_RELATION = re.compile(r"\s*([≤≥∈∉≈≠→∼≪≫⊂⊆∝×↦⟶≃≅⊗⊕])\s*")
_SILENT = "em it bf rm sc tt sl sf cal displaystyle left right big Big bigl bigr Bigl Bigr bigg Bigg operatorname limits nolimits"
_COMMANDS = 1_000  # of TeX that are read in one text; more is no abstract, and takes seconds
_FORMULA = re.compile(r"\$\$?([^$\n]{1,200})\$\$?")
_DOLLAR = "\ue000"  # stands for \$, which begins no formula


@lru_cache(maxsize=4096)
def readable(text: str) -> str:
    r"""Return a text for reading: one line, TeX letters and simple $…$ as Unicode. The result is plain text: escape it.

    >>> readable(r"Schr\"odinger at $O(n^2)$, 5 % of $\alpha$")
    'Schrödinger at O(n²), 5 % of α'
    >>> readable(r"$\sum_{i=1}^n \alpha_i \le \|W\|_F$ for $x \in \mathbb{R}^d$, $e^{-\beta t}$, from $5 to $7")
    '∑ᵢ₌₁ⁿ αᵢ ≤ ‖W‖_F for x ∈ ℝᵈ, e^(-β t), from $5 to $7'
    """
    line = one_line(text)
    if "\\" not in line and "$" not in line:
        return line
    line = _FORMULA.sub(_formula, line.replace(r"\$", _DOLLAR))
    return one_line(_words(line) if "\\" in line else line).replace(_DOLLAR, "$")  # a formula may have brought line breaks of its own


def _formula(match: re.Match[str]) -> str:
    tex = match[1]
    if "\\" not in tex and tex != tex.strip():  # from $5 to $7
        return match[0]
    tex = re.sub(r"\\[td]frac", r"\\frac", tex)
    tex = _SCRIPT.sub(_script, _SCRIPTED.sub(r"\1{}", tex))  # {}: a raised letter is no part of the name before it
    return _RELATION.sub(r" \1 ", _words(tex, "based-on-source"))


def _script(match: re.Match[str]) -> str:
    table = _SUPERSCRIPT if match[1] == "^" else _SUBSCRIPT
    inner = (match[2] or match[3]).strip()
    if all(ord(character) in table for character in inner):
        return inner.translate(table)
    return f"{match[1]}{inner}" if _PLAIN.fullmatch(inner) else f"{match[1]}({inner})"


def _words(tex: str, spaces: str = "macros") -> str:
    if not 0 < tex.count("\\") <= _COMMANDS or tex.count("{") != tex.count("}"):
        return tex
    try:
        # what is a comment or a column to TeX is a sign in an abstract
        return str(_decoder(spaces).latex_to_text(re.sub(r"(?<!\\)([%&#])", r"\\\1", tex))) or tex
    except Exception:  # a parser of other people's TeX: whatever it trips over is shown as written
        return tex


@cache
def _decoder(spaces: str) -> LatexNodes2Text:
    from pylatexenc.latex2text import LatexNodes2Text, MacroTextSpec, get_default_latex_context_db

    logging.getLogger("pylatexenc").setLevel(logging.CRITICAL)  # it warns on the screen of each command that lacks its arguments
    known = get_default_latex_context_db()
    said = {"colon": ": ", "|": "‖", "ne": "≠", **dict.fromkeys(_SILENT.split(), "")}
    known.add_context_category("written", prepend=True, macros=[MacroTextSpec(name, text) for name, text in said.items()])
    known.set_unknown_macro_spec(MacroTextSpec("", lambda node: f"\\{node.macroname}{node.macro_post_space}"))  # stays as it is
    return LatexNodes2Text(known, math_mode="text", keep_comments=False, strict_latex_spaces=spaces)


# Scripts that one language, or a common guess, stands for; of Han it is told by what stands beside it
_SCRIPTS = (
    ("ja", "\u3040-\u30ff"),
    ("ko", "\uac00-\ud7af\u1100-\u11ff"),
    ("zh", "\u3400-\u4dbf\u4e00-\u9fff"),
    ("ru", "\u0400-\u04ff"),
    ("el", "\u0370-\u03ff"),
    ("ar", "\u0600-\u06ff"),
    ("he", "\u0590-\u05ff"),
    ("hi", "\u0900-\u097f"),
    ("th", "\u0e00-\u0e7f"),
)
# Words that are frequent in one language and are no words of English titles
_FREQUENT = {
    "fr": "de le la les des une du et est pour dans sur avec par au aux l d qu",
    "de": "der die das und für mit von im zur zum ein eine einer über des auf ist nicht den",
    "es": "de el la los las del y para con una por sobre en se que al",
    "it": "il lo gli della dei delle e per con una nel sulla di che dell degli",
    "pt": "de o os das dos do da e para com uma em sobre no na que ao",
    "nl": "het een van voor met op de en bij naar zijn niet",
    "vi": "của và cho trong các một những với là được",
}
_ENGLISH = frozenset({"the", "of", "and", "for", "on", "with", "to", "from", "by", "is", "are", "how", "what", "can", "using", "its"})


@lru_cache(maxsize=4096)
def language(text: str) -> str | None:
    """Return the language of a title as `lang` names it, where it is not English; None where it is, or where that cannot be told.

    By its script, else by its frequent words: at least two, more than of any other language, and none of English.

    >>> [language(t) for t in ("大規模言語モデル", "Les modèles de langue et la mémoire", "Attention is all you need", "Le Monde: a corpus of news")]
    ['ja', 'fr', None, None]
    """
    letters = [character for character in text if character.isalpha()]
    for name, span in _SCRIPTS:
        own = len(re.findall(f"[{span}]", text))
        if own and own >= (1 if name == "ja" else 0.4 * len(letters)):
            return name if name != "ja" or own + len(re.findall("[\u4e00-\u9fff]", text)) >= 0.4 * len(letters) else None
    words = re.findall(r"[^\W\d_]+", text.lower().replace("\u2019", "'"))
    if _ENGLISH & set(words):
        return None
    counts = sorted(((sum(word in frequent.split() for word in words), name) for name, frequent in _FREQUENT.items()), reverse=True)
    (most, name), (second, _) = counts[0], counts[1]
    return name if most >= 2 and most > second else None
