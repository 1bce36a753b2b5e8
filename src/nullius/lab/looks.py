"""How each series looks: colour for those who see it; dash, marker and hatch for those who do not, and for grey print.

The only colours are those of Okabe and Ito (2008), which readers of every kind of colour vision tell apart, their mixtures with black and
white, and greys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nullius.lab.figures import Figure, Panel, Series

BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
INK, GREY, PALE = "#1a1a1a", "#767676", "#dcdcdc"


@dataclass(frozen=True)
class Look:
    """dash: lengths of strokes and gaps in points, empty for a full line. marker: matplotlib's letter. filled: else its inside is white."""

    colour: str
    dash: tuple[float, ...] = ()
    marker: str = "o"
    filled: bool = True
    hatch: str = ""
    width: float = 1.6


EFFECTS = (
    Look(BLUE, (), "o", True, ""),
    Look(VERMILLION, (6, 2), "s", False, "///"),
    Look(GREEN, (6, 2, 1.5, 2), "^", True, "..."),
    Look(PURPLE, (2, 1.5), "v", False, "xxx"),
    Look(ORANGE, (9, 2, 1.5, 2, 1.5, 2), "P", True, "---"),
    Look(SKY, (4, 1.5), "X", False, "ooo"),
)
CONTROLS = (Look(GREY, (3, 2), "D", False, "\\\\\\", 1.3), Look("#8a8a8a", (1.5, 1.5), "h", False, "|||", 1.3))
PUBLISHED = (Look(INK, (5, 3), "d", True, "", 1.2),)
REFERENCES = (Look("#4d4d4d", (1, 2), "x", True, "++", 1.0), Look("#4d4d4d", (4, 2, 1, 2), "+", True, "**", 1.0))
_FAMILY = {"control": CONTROLS, "published": PUBLISHED, "reference": REFERENCES}
_FIRST = {"effect": 0, "second": 1, "third": 2}


def looks(series: Sequence[Series]) -> list[Look]:
    """Return a look for each series of a panel. A role gives its own look the first time, the next free one of its kind after that."""
    wanted = [_FIRST.get(entry.role) for entry in series]
    reserved = {first for first in wanted if first is not None}
    used: dict[str, int] = {}
    taken: set[int] = set()
    chosen = []
    for entry, first in zip(series, wanted, strict=True):
        if first is None:
            family = _FAMILY[entry.role]
            chosen.append(family[used.get(entry.role, 0) % len(family)])
            used[entry.role] = used.get(entry.role, 0) + 1
            continue
        if first in taken:
            free = [i for i in range(len(EFFECTS)) if i not in taken | reserved] or [i for i in range(len(EFFECTS)) if i not in taken]
            first = free[0] if free else len(chosen) % len(EFFECTS)
        taken.add(first)
        chosen.append(EFFECTS[first])
    return chosen


def mix(colour: str, other: str, share: float) -> str:
    """Return `colour` with `share` (0 to 1) of `other` in it."""
    pairs = ((int(colour[i : i + 2], 16), int(other[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


# Both scales are white at zero. The second darkens all the way; the first does so on both sides, so negative cells also carry a minus sign.
SIGNED = (mix(VERMILLION, "#000000", 0.35), VERMILLION, mix(VERMILLION, "#ffffff", 0.55), "#ffffff", mix(BLUE, "#ffffff", 0.55), BLUE)
SIGNED_SCALE = (*SIGNED, mix(BLUE, "#000000", 0.35))
UNSIGNED_SCALE = ("#ffffff", mix(SKY, "#ffffff", 0.45), SKY, BLUE, mix(BLUE, "#000000", 0.6))


def grid(figure: Figure) -> tuple[int, int, bool]:
    """Return rows, columns and whether panels are stacked: those that run sideways below each other, others at most three in a row."""
    stacked = all(isinstance(panel, Panel) and panel.sideways for panel in figure.panels)
    columns = 1 if stacked else min(len(figure.panels), 2 if len(figure.panels) == 4 else 3)
    return -(-len(figure.panels) // columns), columns, stacked
