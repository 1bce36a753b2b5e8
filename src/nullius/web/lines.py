"""An effect and its control as lines: where each lies, how wide its interval is, and zero. Drawn here, since a page has hundreds of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

WIDTH, HEIGHT = 200.0, 22


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
