"""Effects and controls as lines: where each lies, how wide its interval is, and zero. Drawn here, since a page has hundreds of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from nullius.web.words import number

WIDTH, HEIGHT = 200.0, 22
ROW, TOP, FOOT = 46, 20, 26  # of a forest plot: a subject's height, room for what was published, and for the axis


def plot(effect: Mapping[str, Any] | None, control: Mapping[str, Any] | None, published: Any, scale: Mapping[str, float]) -> Markup:
    """Return an SVG: the effect above, the control below it, what the paper published dashed, zero thin. An open end reaches the edge.

    Wherever it stands the numbers stand beside it as text, so that nobody is told them twice.
    """
    low, unit = scale["low"], WIDTH / (scale["high"] - scale["low"])

    def at(value: float) -> str:
        return f"{(value - low) * unit:.1f}"

    def line(found: Mapping[str, Any], kind: str, y: float, half: float) -> str:
        left = at(found["lo"]) if found["lo"] is not None else "0"
        right = at(found["hi"]) if found["hi"] is not None else f"{WIDTH:g}"
        return f'<path class="{kind}" d="M{left} {y}H{right}"/><path class="{kind} at" d="M{at(found["estimate"])} {y - half}V{y + half}"/>'

    parts = [f'<path class="zero" d="M{at(0)} 0V{HEIGHT}"/>']
    if isinstance(published, int | float):
        parts.append(f'<path class="pub" d="M{at(published)} 0V{HEIGHT}"/>')
    if control:
        parts.append(line(control, "ctl", 16.5, 3))
    if effect:
        parts.append(line(effect, "eff", 7, 4.5))
    head = f'<svg class="plot" viewBox="0 0 {WIDTH:g} {HEIGHT}" preserveAspectRatio="none" aria-hidden="true">'
    return Markup(f"{head}{''.join(parts)}</svg>")


def forest(rows: Sequence[Mapping[str, Any]], published: Any, scale: Mapping[str, float]) -> Markup:
    """Return a forest plot as an SVG: for each subject its effect and, below it in grey, the control; zero and the published value through all.

    It is as wide as its place, and its letters stay as large as they are: places across are shares of the width. Told in words by its label; the
    numbers stand in the table under it.
    """
    low, unit = scale["low"], 100 / (scale["high"] - scale["low"])
    top = TOP if isinstance(published, int | float) else 4
    end = top + ROW * len(rows)

    def at(value: float | None, open_end: float) -> str:
        return f"{open_end if value is None else (value - low) * unit:.2f}%"

    def upright(value: float, kind: str, y: float, to: float) -> str:
        return f'<line class="{kind}" x1="{at(value, 0)}" x2="{at(value, 0)}" y1="{y:g}" y2="{to:g}"/>'

    def text(value: float, y: float, words: str) -> str:
        side = "start" if (value - low) * unit < 10 else "end" if (value - low) * unit > 90 else "middle"
        return f'<text x="{at(value, 0)}" y="{y:g}" text-anchor="{side}">{words}</text>'

    parts = [upright(0, "zero", top, end)]
    if isinstance(published, int | float):
        parts += [upright(published, "pub", top - 4, end), text(published, 12, f"published {number(published)}")]
    for i, row in enumerate(rows):
        y = top + ROW * i
        parts.append(f'<text class="name" x="0" y="{y + 13}">{escape(row["subject"])}</text>')
        for found, kind, middle, half in ((row["effect"], "eff", y + 23, 5), (row["control"], "ctl", y + 33, 3)):
            if found:
                parts.append(f'<line class="{kind}" x1="{at(found["lo"], 0)}" x2="{at(found["hi"], 100)}" y1="{middle}" y2="{middle}"/>')
                parts.append(upright(found["estimate"], f"{kind} at", middle - half, middle + half))
    parts.append(f'<line class="axis" x1="0" x2="100%" y1="{end + 2}" y2="{end + 2}"/>')
    for value in ticks(low, scale["high"]):
        parts += [upright(value, "axis", end + 2, end + 6), text(value, end + 20, f"{value:g}".replace("-", "−"))]
    said = f"Forest plot of {len(rows)} subjects, effect and control of each; the table after it has the numbers"
    head = f'<svg class="forest" width="100%" height="{end + FOOT}" role="img" aria-label="{said}">'
    return Markup(f"{head}{''.join(parts)}</svg>")


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers within a span, at most so many: steps of 1, 2 or 5 times a power of ten.

    >>> ticks(-0.11, 0.46)
    [-0.1, 0.0, 0.1, 0.2, 0.3, 0.4]
    """
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(power * size for size in (1, 2, 5, 10, 20) if math.floor(high / (power * size)) - math.ceil(low / (power * size)) < most)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [round(i * step, 12) for i in range(first, last + 1)]
