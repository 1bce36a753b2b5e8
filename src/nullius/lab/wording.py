"""A figure in words and as a table, for readers who cannot see it."""

from __future__ import annotations

from functools import lru_cache

from nullius.lab.figures import Figure, Heatmap, Panel, Series


def number(value: float | str | None) -> str:
    """Four significant digits with a true minus sign; a dash for nothing; words as they are."""
    if isinstance(value, str):
        return value
    return "–" if value is None else f"{value:.4g}".replace("-", "−")


@lru_cache(maxsize=8192)  # a matrix of 20 x 10 shows 400, each for wide and for narrow screens
def interval(*ends: float | None) -> str:
    """0.41 [0.30, 0.52] of estimate, lower and upper end (None: open), with as many decimals as show how large it is, two to four."""
    largest = max(abs(end) for end in ends if end is not None)
    digits = 2 if largest >= 0.05 or not largest else 3 if largest >= 0.005 else 4
    # on which side of zero an interval ends must be seen
    while digits < 4 and any(end and abs(end) < 0.5 * 10**-digits for end in ends[1:]):
        digits += 1
    texts = ["" if end is None else f"{end:.{digits}f}" for end in ends]
    estimate, lo, hi = (text.replace("-", "−" if float(text) else "") if text else "" for text in texts)  # −0.00 is 0.00
    return f"{estimate} [{lo or '−∞'}, {hi or '∞'}]"


def describe(figure: Figure) -> str:
    """Return the caption, then a sentence for each series: where it begins, ends and lies."""
    parts = [figure.caption] if figure.caption else []
    for panel in figure.panels:
        name = f"{panel.title}: " if panel.title else ""
        if isinstance(panel, Heatmap):
            found = [
                (value, row, column) for row, line in enumerate(panel.values) for column, value in enumerate(line) if value is not None
            ]
            text = f"{name}{panel.value_label} for {len(panel.values)} × {len(panel.values[0])} cells, {panel.y_label} by {panel.x_label}"
            if found:
                (low, *lowest), (high, *highest) = min(found), max(found)
                text += f"; from {number(low)} at {_cell(panel, *lowest)} to {number(high)} at {_cell(panel, *highest)}"
            parts.append(text + ".")
        else:
            parts.append(f"{name}{panel.y_label} against {panel.x_label}. " + " ".join(_series(series) for series in panel.series))
    return " ".join(parts)


def _cell(panel: Heatmap, row: int, column: int) -> str:
    y, x = panel.y_ticks[row] if panel.y_ticks else row, panel.x_ticks[column] if panel.x_ticks else column
    return f"{panel.y_label} {y}, {panel.x_label} {x}"


def _series(series: Series) -> str:
    points = [(x, y) for x, y in zip(series.x, series.y, strict=True) if y is not None]
    if not points:
        return f"{series.name}: no values."
    if series.labelled or len(points) <= 3:
        return f"{series.name}: " + ", ".join(f"{number(x)} {number(y)}" for x, y in points) + "."
    values = [y for _, y in points]
    ends = f"{number(values[0])} at the left to {number(values[-1])} at the right"
    return f"{series.name}: {len(points)} points, from {ends}, between {number(min(values))} and {number(max(values))}."


def table(panel: Panel | Heatmap) -> tuple[list[str], list[list[str]]]:
    """Return the heads and the rows of a panel's values, as text."""
    if isinstance(panel, Heatmap):
        heads = [f"{panel.y_label} \\ {panel.x_label}", *(panel.x_ticks or map(str, range(len(panel.values[0]))))]
        names = panel.y_ticks or tuple(map(str, range(len(panel.values))))
        return heads, [[name, *map(number, row)] for name, row in zip(names, panel.values, strict=True)]
    rows = []
    for series in panel.series:
        ends = series.intervals() or [(None, y, None) for y in series.y]
        for x, (lo, y, hi) in zip(series.x, ends, strict=True):
            rows.append([series.name, number(x), number(y), number(lo), number(hi)])
    return ["series", panel.x_label, panel.y_label, "from", "to"], rows
