"""Drawing figures to explore: one HTML file that needs nothing else, with plotly's basic build inside it, packed (0.5 MB).

That build draws lines, points and bars. A heatmap is drawn as bars, one for each cell, so that the build with everything (4.7 MB in each file) is
not needed. A page that has the library already takes the packed one out: `without_library`.
"""

from __future__ import annotations

import base64
import html as escape
import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from nullius.lab.figures import Figure, Heatmap, Panel, Series
from nullius.lab.looks import INK, PALE, SIGNED_SCALE, UNSIGNED_SCALE, Look, grid, looks, mix
from nullius.lab.wording import describe, table

SYMBOL = {"o": "circle", "s": "square", "^": "triangle-up", "v": "triangle-down", "D": "diamond", "d": "diamond-tall", "P": "cross"}
SYMBOL |= {"X": "x", "h": "hexagon", "x": "x-thin", "+": "cross-thin"}
PATTERN = {"": "", "///": "/", "\\\\\\": "\\", "...": ".", "xxx": "x", "---": "-", "ooo": ".", "|||": "|", "++": "+", "**": "."}
STYLE = """
body { margin: 1.5rem auto; padding: 0 1rem; max-width: 76rem; color: #1a1a1a; background: #fff; font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.25rem } figure { margin: 0 } table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0 }
th, td { text-align: left; padding: .15rem .8rem .15rem 0; border-bottom: 1px solid #dcdcdc } caption { text-align: left; font-weight: 600 }
details { overflow-x: auto } summary { cursor: pointer }
"""
LIBRARY = "plotly-basic.min.js.gz"
_BEGIN, _END = '<script id="library" type="text/plain">', "</script><!-- library -->"
DRAW = """
(async () => {
  if (!window.Plotly) {
    const packed = Uint8Array.from(atob(document.getElementById("library").textContent), (letter) => letter.charCodeAt(0));
    const script = document.createElement("script");
    script.textContent = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
    document.head.append(script);
  }
  const { data, layout, config } = JSON.parse(document.getElementById("drawing").textContent);
  Plotly.newPlot("figure", data, layout, config);
})();
"""


def html(figure: Figure) -> str:
    """Draw a figure as one HTML file: hover for values, click the legend to hide; caption and all values as tables stand below."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    rows, columns, _ = grid(figure)
    heights = [0.9 + 0.4 * len(p.categories()) if isinstance(p, Panel) and p.sideways else 4.2 for p in figure.panels[::columns]]
    height = 95 * sum(heights) + 80 * (rows - 1)
    bars = any(isinstance(panel, Heatmap) for panel in figure.panels)  # a colour bar needs room to the right of its panel
    gaps = {"horizontal_spacing": 0.13 if bars else 0.08, "vertical_spacing": 80 / height}
    titles = [escape.escape(panel.title) for panel in figure.panels]
    drawn = make_subplots(rows, columns, subplot_titles=titles, row_heights=heights, **gaps)
    named: set[str] = set()
    for i, panel in enumerate(figure.panels):
        place = {"row": i // columns + 1, "col": i % columns + 1}
        if isinstance(panel, Heatmap):
            for trace in _heatmap(go, panel, i, columns, rows, gaps):
                drawn.add_trace(trace, **place)
            _cells(drawn, panel, place)
            for row, column in panel.mark:
                box = {"x0": column - 0.5, "x1": column + 0.5, "y0": row - 0.5, "y1": row + 0.5}
                drawn.add_shape(type="rect", **box, line={"color": INK, "width": 2}, **place)
        else:
            for series, look in zip(panel.series, looks(panel.series), strict=True):
                trace = _trace(go, panel, series, look)
                trace.update(legendgroup=series.name, showlegend=series.name not in named)
                named.add(series.name)
                drawn.add_trace(trace, **place)
            _axes(drawn, panel, place)
        sideways = isinstance(panel, Panel) and panel.sideways
        x_label, y_label = (panel.y_label, panel.x_label) if sideways else (panel.x_label, panel.y_label)
        drawn.update_xaxes(title_text=escape.escape(x_label), **place)
        drawn.update_yaxes(title_text=escape.escape(y_label), **place)
    drawn.update_xaxes(gridcolor=PALE, zerolinecolor=INK, zerolinewidth=1, automargin=True)
    drawn.update_yaxes(gridcolor=PALE, zerolinecolor=INK, zerolinewidth=1, automargin=True)
    legend = {"orientation": "h", "x": 0, "y": 1, "yref": "container", "yanchor": "top"}
    font = {"family": "system-ui, sans-serif", "size": 14, "color": INK}
    drawn.update_layout(
        template="plotly_white", height=int(height) + 130, barmode="group", legend=legend, font=font, margin={"t": 90, "r": 20}
    )
    config: dict[str, Any] = {"responsive": True, "displaylogo": False, "toImageButtonOptions": {"format": "svg", "filename": figure.name}}
    config |= {"showSendToCloud": False, "modeBarButtonsToRemove": ["select2d", "lasso2d"]}  # no button that sends anything anywhere
    return _page(figure, _script(json.dumps({**json.loads(drawn.to_json()), "config": config}, separators=(",", ":"))))


@cache
def library() -> bytes:
    """Return the library that draws these figures, as script, packed with gzip."""
    return files("nullius.lab").joinpath(LIBRARY).read_bytes()


def without_library(page: str, address: str) -> str | None:
    """Return a page of `html` that loads the library from an address instead of holding it; None for a page that was not made by `html`."""
    start, end = page.find(_BEGIN), page.find(_END)
    if start < 0 or end < start:
        return None
    return f'{page[:start]}<script src="{escape.escape(address)}"></script>{page[end + len(_END) :]}'


def _script(drawing: str) -> str:
    """The place of the drawing, the library, what is drawn, and what draws it. No text of a figure can end a script."""
    packed = base64.b64encode(library()).decode()
    safe = drawing.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return (
        f'<div id="figure"></div>{_BEGIN}{packed}{_END}\n'
        f'<script id="drawing" type="application/json">{safe}</script><script>{DRAW}</script>'
    )


def _page(figure: Figure, plot: str) -> str:
    title = escape.escape(figure.title)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n<body><h1>{title}</h1>\n'
        f'<figure aria-label="{escape.escape(describe(figure))}">{plot}<figcaption>{escape.escape(figure.caption)}</figcaption></figure>\n'
        f"<details><summary>All values</summary>{''.join(_table(panel) for panel in figure.panels)}</details>\n</body></html>\n"
    )


def _table(panel: Panel | Heatmap) -> str:
    heads, rows = table(panel)
    top = "".join(f'<th scope="col">{escape.escape(head)}</th>' for head in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><caption>{escape.escape(panel.title)}</caption><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>\n"


def _axes(drawn: Any, panel: Panel, place: dict[str, int]) -> None:
    categories = panel.categories()
    if categories:
        kind = {"type": "category", "categoryorder": "array", "categoryarray": categories}
        if panel.sideways:
            drawn.update_yaxes(autorange="reversed", **kind, **place)
        else:
            drawn.update_xaxes(**kind, **place)
    if panel.y_range:
        (drawn.update_xaxes if panel.sideways else drawn.update_yaxes)(range=list(panel.y_range), **place)
    if panel.log_x:
        drawn.update_xaxes(type="log", **place)


def _cells(drawn: Any, panel: Heatmap, place: dict[str, int]) -> None:
    """Axes of a heatmap: they end where its cells end."""
    for update, ticks, n in (
        (drawn.update_xaxes, panel.x_ticks, len(panel.values[0])),
        (drawn.update_yaxes, panel.y_ticks, len(panel.values)),
    ):
        update(range=[-0.5, n - 0.5], showgrid=False, zeroline=False, **place)
        shown = range(0, n, 1 if ticks else -(-n // 12))
        update(tickvals=list(shown), ticktext=[escape.escape(ticks[k]) if ticks else str(k) for k in shown], **place)


def _heatmap(go: Any, panel: Heatmap, i: int, columns: int, rows: int, gaps: dict[str, float]) -> list[Any]:
    """A heatmap, each cell a bar, and its colour bar at its own right edge; marked cells are named in the hover text."""
    colours = SIGNED_SCALE if panel.signed else UNSIGNED_SCALE
    low, high = -panel.reach if panel.signed else 0.0, panel.reach
    width = (1 - gaps["horizontal_spacing"] * (columns - 1)) / columns
    height = (1 - gaps["vertical_spacing"] * (rows - 1)) / rows
    right = (i % columns + 1) * width + (i % columns) * gaps["horizontal_spacing"]
    middle = 1 - (i // columns) * (height + gaps["vertical_spacing"]) - height / 2
    bar = {"title": {"text": escape.escape(panel.value_label), "side": "right"}, "x": right, "y": middle, "len": height, "thickness": 12}
    cells = [(r, c, value) for r, row in enumerate(panel.values) for c, value in enumerate(row) if value is not None]
    told = [
        [
            escape.escape(panel.x_ticks[c]) if panel.x_ticks else c,
            escape.escape(panel.y_ticks[r]) if panel.y_ticks else r,
            value,
            "marked" if (r, c) in panel.mark else "",
        ]
        for r, c, value in cells
    ]
    x_label, y_label = escape.escape(panel.x_label), escape.escape(panel.y_label)
    shades = [_shade(value, low, high, colours) for _, _, value in cells]
    bars = go.Bar(
        x=[c for _, c, _ in cells],
        y=[1] * len(cells),
        base=[r - 0.5 for r, _, _ in cells],
        width=1,
        offset=-0.5,
        marker={"color": shades, "line": {"color": "white", "width": 1}},
        customdata=told,
        hovertemplate=f"{x_label} %{{customdata[0]}}, {y_label} %{{customdata[1]}}: %{{customdata[2]:.4g}} %{{customdata[3]}}<extra></extra>",
        showlegend=False,
    )
    scale = [[k / (len(colours) - 1), colour] for k, colour in enumerate(colours)]
    marker = {"color": [low], "colorscale": scale, "cmin": low, "cmax": high, "colorbar": bar, "showscale": True}
    return [bars, go.Scatter(x=[None], y=[None], mode="markers", marker=marker, hoverinfo="skip", showlegend=False)]


def _shade(value: float, low: float, high: float, colours: Sequence[str]) -> str:
    """The colour of a value on a scale from low to high, mixed from the two nearest ones."""
    place = min(max((value - low) / (high - low), 0.0), 1.0) * (len(colours) - 1)
    first = min(int(place), len(colours) - 2)
    return mix(colours[first], colours[first + 1], place - first)


def _trace(go: Any, panel: Panel, series: Series, look: Look) -> Any:
    errors = None
    if series.intervals():
        above = [hi - y if y is not None and hi is not None else None for _, y, hi in series.intervals()]
        below = [y - lo if y is not None and lo is not None else None for lo, y, _ in series.intervals()]
        colour = INK if series.kind == "bars" else look.colour
        errors = {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "color": colour, "thickness": 1.3, "width": 3}
    sideways = panel.sideways
    across, along = (list(series.y), list(series.x)) if sideways else (list(series.x), list(series.y))
    common = {"x": across, "y": along, "name": escape.escape(series.name), ("error_x" if sideways else "error_y"): errors}
    if series.kind == "bars":
        pattern = {"shape": PATTERN[look.hatch], "fgcolor": "white", "fillmode": "overlay"}
        return go.Bar(**common, orientation="h" if sideways else "v", marker={"color": look.colour, "pattern": pattern})
    tick = series.kind == "points" and series.labelled and series.role in ("published", "reference")
    symbol = SYMBOL[look.marker] + ("" if look.filled else "-open")
    size = 8
    if tick:
        symbol, size = "line-ns" if sideways else "line-ew", 12
    marker = {"symbol": symbol, "size": size, "color": look.colour, "line": {"color": look.colour, "width": 2}}
    mode = "markers" if series.kind == "points" else "lines" if series.role in ("published", "reference") else "lines+markers"
    dash = ",".join(f"{part:g}px" for part in look.dash) or "solid"
    return go.Scatter(**common, mode=mode, line={"color": look.colour, "dash": dash, "width": look.width + 0.4}, marker=marker)
