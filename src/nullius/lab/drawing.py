"""Drawing figures: SVG with matplotlib for paper and page, self-contained interactive HTML with plotly. Readable in greyscale."""

from __future__ import annotations

import html as escape
import io
from typing import Any

from nullius.lab.figures import Figure, Heatmap, Panel, Series

# Okabe-Ito colours: told apart by colour-blind readers; the order of luminance and the dashes and markers keep them apart in grey print.
COLOUR = {
    "effect": "#0072B2",
    "second": "#D55E00",
    "third": "#009E73",
    "control": "#8c8c8c",
    "published": "#000000",
    "reference": "#000000",
}
MARKER = {"effect": "o", "second": "s", "third": "^", "control": "D", "published": "_", "reference": "."}
DASH = {"effect": "-", "second": "-", "third": "-.", "control": "--", "published": ":", "reference": ":"}
HATCH = {"effect": "", "second": "//", "third": "..", "control": "xx", "published": "", "reference": ""}


def svg(figure: Figure) -> str:
    """Draw a figure as an SVG document with text as text, a title and a description for screen readers. Deterministic."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    settings = {"svg.fonttype": "none", "svg.hashsalt": "nullius", "font.family": "sans-serif", "font.size": 10}
    with matplotlib.rc_context(settings):
        drawn = _matplotlib(figure)
        out = io.StringIO()
        FigureCanvasSVG(drawn).print_svg(out, metadata={"Date": None, "Creator": "nullius", "Title": figure.title})
    text = out.getvalue()
    head = f"<title>{escape.escape(figure.title)}</title><desc>{escape.escape(figure.caption)}</desc>"
    start = text.index(">", text.index("<svg")) + 1
    return text[:start] + head + text[start:]


def png(figure: Figure, scale: float = 1.0) -> bytes:
    """Draw a figure as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    out = io.BytesIO()
    drawn = _matplotlib(figure)
    drawn.set_dpi(110 * scale)
    FigureCanvasAgg(drawn).print_png(out)
    return out.getvalue()


def _matplotlib(figure: Figure) -> Any:
    import matplotlib.figure

    count = len(figure.panels)
    drawn = matplotlib.figure.Figure(figsize=(max(5.2, 4.4 * count), 4.2), layout="constrained")
    for i, panel in enumerate(figure.panels):
        axes = drawn.add_subplot(1, count, i + 1)
        if isinstance(panel, Heatmap):
            _heatmap(drawn, axes, panel)
        else:
            _panel(axes, panel)
        axes.set_xlabel(panel.x_label)
        axes.set_ylabel(panel.y_label)
        if panel.title:
            axes.set_title(panel.title, fontsize=10, loc="left")
    drawn.suptitle(figure.title, fontsize=11, x=0.01, ha="left", fontweight="bold", wrap=True)
    return drawn


def _panel(axes: Any, panel: Panel) -> None:
    bars = [series for series in panel.series if series.kind == "bars"]
    labels = _labels(panel)
    for series in panel.series:
        x = [labels.index(str(v)) for v in series.x] if labels else list(series.x)
        colour = COLOUR[series.role]
        errors = None
        if series.lo is not None and series.hi is not None:
            below = [max(0.0, y - lo) for y, lo in zip(series.y, series.lo, strict=True)]
            above = [max(0.0, hi - y) for y, hi in zip(series.y, series.hi, strict=True)]
            errors = [below, above]
        if series.kind == "bars":
            width = 0.8 / len(bars)
            shifted = [v + (bars.index(series) - (len(bars) - 1) / 2) * width for v in x]
            style = {"color": colour, "hatch": HATCH[series.role], "edgecolor": "white", "ecolor": "#222222", "capsize": 2}
            axes.bar(shifted, series.y, width, yerr=errors, label=series.name, **style)
        elif series.kind == "points" or labels:
            shift = 0.12 * ([s.name for s in panel.series].index(series.name) - (len(panel.series) - 1) / 2) if labels else 0.0
            fmt = {"color": colour, "marker": MARKER[series.role], "linestyle": "none" if series.kind == "points" else DASH[series.role]}
            axes.errorbar([v + shift for v in x], series.y, yerr=errors, label=series.name, capsize=2, markersize=4, **fmt)
        else:
            few = len(x) <= 40
            axes.plot(
                x, series.y, DASH[series.role], color=colour, marker=MARKER[series.role] if few else "", markersize=4, label=series.name
            )
            if series.lo is not None:
                axes.fill_between(x, series.lo, series.hi, color=colour, alpha=0.18, linewidth=0)
    if labels:
        long = max(map(len, labels)) * len(labels) > 45
        axes.set_xticks(range(len(labels)), labels, rotation=35 if long else 0, ha="right" if long else "center", fontsize=8 if long else 9)
    if panel.log_x:
        axes.set_xscale("log")
    if panel.y_range:
        axes.set_ylim(*panel.y_range)
    low, high = axes.get_ylim()
    if low < 0 < high:
        axes.axhline(0, color="#222222", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    if len(panel.series) > 1:
        axes.legend(frameon=False, fontsize=8)


def _labels(panel: Panel) -> list[str]:
    """The categories of a panel whose x are words, in order of appearance; empty for numbers."""
    if not any(isinstance(v, str) for series in panel.series for v in series.x):
        return []
    return list(dict.fromkeys(str(v) for series in panel.series for v in series.x))


def _heatmap(drawn: Any, axes: Any, panel: Heatmap) -> None:
    from matplotlib.patches import Rectangle

    reach = max((abs(v) for row in panel.values for v in row), default=1.0) or 1.0
    image = axes.imshow(panel.values, cmap="RdBu_r", vmin=-reach, vmax=reach, aspect="auto", origin="lower", interpolation="nearest")
    for row, column in panel.mark:
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=1.6))
    drawn.colorbar(image, ax=axes, label=panel.value_label, shrink=0.85)


def html(figure: Figure) -> str:
    """Draw a figure as one HTML file that needs nothing else (plotly inside): hover for values, click the legend to hide."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    count = len(figure.panels)
    drawn = make_subplots(1, count, subplot_titles=[panel.title for panel in figure.panels])
    for i, panel in enumerate(figure.panels, 1):
        if isinstance(panel, Heatmap):
            hover = f"{panel.x_label} %{{x}}, {panel.y_label} %{{y}}: %{{z:.3g}}<extra></extra>"
            scale = {"colorscale": "RdBu_r", "zmid": 0, "colorbar": {"title": panel.value_label}}
            drawn.add_trace(go.Heatmap(z=panel.values, hovertemplate=hover, **scale), 1, i)
        else:
            for series in panel.series:
                drawn.add_trace(_trace(go, series), 1, i)
            if panel.y_range:
                drawn.update_yaxes(range=panel.y_range, row=1, col=i)
            if panel.log_x:
                drawn.update_xaxes(type="log", row=1, col=i)
        drawn.update_xaxes(title_text=panel.x_label, row=1, col=i)
        drawn.update_yaxes(title_text=panel.y_label, row=1, col=i)
    drawn.update_layout(title=figure.title, template="plotly_white", width=max(640, 520 * count), height=480, barmode="group")
    page = drawn.to_html(include_plotlyjs=True, full_html=True, div_id="figure")
    return page.replace("<head>", f"<head><title>{escape.escape(figure.title)}</title>", 1)


def _trace(go: Any, series: Series) -> Any:
    errors = None
    if series.lo is not None and series.hi is not None:
        above = [hi - y for y, hi in zip(series.y, series.hi, strict=True)]
        below = [y - lo for y, lo in zip(series.y, series.lo, strict=True)]
        errors = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
    colour = COLOUR[series.role]
    if series.kind == "bars":
        pattern = {"shape": {"//": "/", "..": ".", "xx": "x"}.get(HATCH[series.role], "")}
        return go.Bar(x=series.x, y=series.y, name=series.name, error_y=errors, marker={"color": colour, "pattern": pattern})
    dash = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}[DASH[series.role]]
    symbols = {"o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "_": "line-ew", ".": "circle"}
    mode = "markers" if series.kind == "points" else "lines+markers"
    marker = {"symbol": symbols[MARKER[series.role]]}
    return go.Scatter(
        x=series.x, y=series.y, name=series.name, error_y=errors, mode=mode, line={"color": colour, "dash": dash}, marker=marker
    )
