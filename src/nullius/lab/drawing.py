"""Drawing figures for paper and page: SVG and PNG with matplotlib, no global state. The same figure always gives the same bytes."""

from __future__ import annotations

import html as escape
import io
import itertools
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nullius.lab.figures import Figure, Heatmap, Panel, Series
from nullius.lab.interactive import html
from nullius.lab.looks import INK, PALE, SIGNED_SCALE, UNSIGNED_SCALE, Look, grid, looks
from nullius.lab.wording import describe, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawn

__all__ = ["html", "png", "svg"]

FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "nullius",
    # Text is measured in the font that comes with matplotlib, which is wider than those of FONTS: it fits whichever the reader has
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "axes.titlesize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.8,
    "hatch.linewidth": 0.7,
    "axes.unicode_minus": True,
    "text.parse_math": False,  # a dollar sign in a label is a dollar sign
}


UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")  # not allowed in XML


def svg(figure: Figure) -> str:
    """Draw a figure as an SVG document: text stays text, with a title and a description for screen readers."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    out = io.StringIO()
    with _settings():
        FigureCanvasSVG(_draw(figure)).print_svg(out, metadata={"Date": None, "Creator": "nullius"})
    text = re.sub(r"(style=\"[^\"]*)'DejaVu Sans'", lambda found: found[1] + FONTS, out.getvalue())
    title, description = f"{figure.name}-title", f"{figure.name}-description"  # several figures may stand in one page
    start, end = text.index("<svg"), text.index(">", text.index("<svg"))
    opening = f'{text[start:end]} role="img" aria-labelledby="{title} {description}">'
    words = f'<title id="{title}">{escape.escape(figure.title)}</title>\n <desc id="{description}">{escape.escape(describe(figure))}</desc>'
    return UNPRINTABLE.sub("", f"{text[:start]}{opening}\n {words}{text[end + 1 :]}")


def png(figure: Figure, dots_per_inch: float = 144) -> bytes:
    """Draw a figure as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    out = io.BytesIO()
    with _settings():
        drawn = _draw(figure)
        drawn.set_dpi(dots_per_inch)
        FigureCanvasAgg(drawn).print_png(out, metadata={"Software": None})
    return out.getvalue()


@contextmanager
def _settings() -> Iterator[None]:
    """Our settings and nobody else's, whatever matplotlibrc says; letters that matplotlib's font lacks are the reader's font's business."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _draw(figure: Figure) -> Drawn:
    """Lay out the panels: those that run sideways below each other, others side by side, at most three in a row."""
    from matplotlib.figure import Figure as Drawn
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    count, (rows, columns, stacked) = len(figure.panels), grid(figure)
    width = {1: 6.4, 2: 9.2, 3: 11.4}[columns]
    shared = _shared_legend(figure)
    heights = [max(_height(p, width / columns, shared) for p in figure.panels[row * columns : (row + 1) * columns]) for row in range(rows)]
    title = textwrap.wrap(figure.title, int(width * 12)) or [""]
    total = sum(heights) + 0.25 * len(title) + (0.45 if shared else 0.1)
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06, hspace=0.04, wspace=0.03)
    drawn = Drawn(figsize=(width, total), layout=layout, facecolor="white")
    cells = drawn.add_gridspec(rows, columns, height_ratios=heights)
    for i, panel in enumerate(figure.panels):
        axes = drawn.add_subplot(cells[i // columns, i % columns])
        letter = f"{chr(ord('A') + i)}  " if 1 < count <= 26 and (panel.title or not stacked) else ""
        if letter or panel.title:
            axes.set_title(letter + "\n".join(textwrap.wrap(panel.title, int((width / columns - 0.7) * 11))), loc="left", fontweight="bold")
        if isinstance(panel, Heatmap):
            _heatmap(drawn, axes, panel, width / columns)
        else:
            before = figure.panels[i - 1] if i and (stacked or i % columns) else None
            heading = not stacked or not isinstance(before, Panel) or before.x_label != panel.x_label or bool(panel.title)
            _panel(axes, panel, width / columns, legend=not shared, heading=heading)
            if (
                not stacked
                and isinstance(before, Panel)
                and (before.y_label, before.y_range) == (panel.y_label, panel.y_range)
                and panel.y_range
            ):
                axes.set_ylabel("")  # the panel to the left has the same axis
    if shared:
        handles, labels = _handles(drawn.axes, figure.panels)
        drawn.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, handlelength=3)
    drawn.suptitle("\n".join(title), x=0.012, ha="left", fontsize=11.5, fontweight="bold")
    return drawn


def _height(panel: Panel | Heatmap, width: float, shared: bool) -> float:
    """Height of a panel in inches, with its title and its legend."""
    if isinstance(panel, Heatmap):
        return 3.6
    legend = 0 if shared or len(panel.series) < 2 else -(-len(panel.series) // _legend_columns(panel, width))
    title = 0.25 if panel.title else 0.0
    return (0.65 + 0.4 * len(panel.categories()) if panel.sideways else 3.2) + title + 0.19 * legend


def _shared_legend(figure: Figure) -> bool:
    """Whether one legend below serves all panels: what has the same name looks the same, and no name is missing for long."""
    panels = [panel for panel in figure.panels if isinstance(panel, Panel)]
    if len(panels) < 2 or len(panels) < len(figure.panels):
        return False
    seen: dict[str, tuple[Look, str]] = {}
    for panel in panels:
        for series, look in zip(panel.series, looks(panel.series), strict=True):
            if seen.setdefault(series.name, (look, series.kind)) != (look, series.kind):
                return False
    return all(len(seen) - len(panel.series) <= 2 for panel in panels)


def _handles(drawn: Sequence[Axes], panels: Sequence[Panel | Heatmap]) -> tuple[list[Any], list[str]]:
    """Legend entries of several axes in the order of the series, each name once; a series without a name has none."""
    found: dict[str, Any] = {}
    for axes in drawn:
        found |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    names = dict.fromkeys(series.name for panel in panels if isinstance(panel, Panel) for series in panel.series)
    shown = [name for name in names if name in found]
    return [found[name] for name in shown], shown


def _panel(axes: Axes, panel: Panel, width: float, *, legend: bool, heading: bool) -> None:
    categories, sideways = panel.categories(), panel.sideways
    styles = looks(panel.series)
    clouds = [s for s in panel.series if s.kind != "bars" and not _is_tick(s)]
    bars = [s for s in panel.series if s.kind == "bars"]
    for series, look in zip(panel.series, styles, strict=True):
        at = [float(categories.index(str(x))) if categories else float(x) for x in series.x]
        if _is_tick(series):
            _ticks(axes, series, look, at, sideways)
        elif series.kind == "bars":
            thick = 0.8 / len(bars) * (1.0 if categories else _spacing(panel))
            _bars(axes, series, look, [x + (bars.index(series) - (len(bars) - 1) / 2) * thick for x in at], thick, sideways)
        elif series.kind == "points":
            apart = 0.24 if sideways else 0.14
            shift = (clouds.index(series) - (len(clouds) - 1) / 2) * apart if categories else 0.0
            _points(axes, series, look, [x + shift for x in at], sideways)
        else:
            _line(axes, series, look, at)
    lines = _axes(axes, panel, categories, width, heading=heading)
    for series, look in zip(panel.series, styles, strict=True):
        _open_ends(axes, series, look, categories, clouds, sideways)
    if legend and len(panel.series) > 1:
        _legend(axes, panel, lines, width)


def _is_tick(series: Series) -> bool:
    return series.kind == "points" and series.labelled and series.role in ("published", "reference")


def _spacing(panel: Panel) -> float:
    """The smallest distance between two x of a panel with numbers."""
    places = sorted({float(x) for series in panel.series for x in series.x})
    return min((b - a for a, b in itertools.pairwise(places)), default=1.0)


def _values(series: Series) -> list[float]:
    return [float("nan") if y is None else y for y in series.y]


def _errors(series: Series) -> list[list[float]] | None:
    """Lengths below and above each point; nothing where an interval is open."""
    if not series.intervals():
        return None
    below = [max(0.0, y - lo) if y is not None and lo is not None else 0.0 for lo, y, _ in series.intervals()]
    above = [max(0.0, hi - y) if y is not None and hi is not None else 0.0 for _, y, hi in series.intervals()]
    return [below, above]


def _marks(look: Look, size: float = 5) -> dict[str, Any]:
    inside = look.colour if look.filled else "white"
    return {"marker": look.marker, "markersize": size, "markerfacecolor": inside, "markeredgecolor": look.colour, "markeredgewidth": 1.3}


def _line(axes: Axes, series: Series, look: Look, x: list[float]) -> None:
    dash: Any = (0, look.dash) if look.dash else "-"
    marks = _marks(look, 4.5) if len(x) <= 40 and series.role not in ("published", "reference") else {}
    every = max(1, len(x) // 14)
    axes.plot(x, _values(series), color=look.colour, linestyle=dash, linewidth=look.width, markevery=every, label=series.name, **marks)
    if series.intervals():
        lo, hi = ([float("nan") if end is None else end for end in column] for column in (series.lo or (), series.hi or ()))
        axes.fill_between(x, lo, hi, color=look.colour, alpha=0.14, linewidth=0)


def _points(axes: Axes, series: Series, look: Look, at: list[float], sideways: bool) -> None:
    style = {"linestyle": "none", "color": look.colour, "elinewidth": 1.4, "capsize": 2.5, "label": series.name, **_marks(look, 5.5)}
    if sideways:
        axes.errorbar(_values(series), at, xerr=_errors(series), **style)
    else:
        axes.errorbar(at, _values(series), yerr=_errors(series), **style)


def _bars(axes: Axes, series: Series, look: Look, at: list[float], thick: float, sideways: bool) -> None:
    # White strokes on a dark fill: hatches stay visible in grey print
    error = {"ecolor": INK, "elinewidth": 1.1, "capsize": 2.5}
    style: dict[str, Any] = {"color": look.colour, "hatch": look.hatch, "edgecolor": "white", "linewidth": 0.6, "label": series.name}
    if sideways:
        axes.barh(at, _values(series), thick, xerr=_errors(series), error_kw=error, **style)
    else:
        axes.bar(at, _values(series), thick, yerr=_errors(series), error_kw=error, **style)


def _ticks(axes: Axes, series: Series, look: Look, at: list[float], sideways: bool) -> None:
    """A stroke across each category; a published one with its number, once where it is the same for all."""
    same = len(set(series.y)) == 1 and len(at) > 1
    reach = 0.5 if same else 0.4
    ends = [place - reach for place in at], [place + reach for place in at]
    dash: Any = (0, look.dash) if series.role == "reference" else "-"
    stroke = axes.vlines if sideways else axes.hlines
    if series.role == "published":  # a white edge, to be seen on dark bars
        stroke(_values(series), *ends, colors="white", linewidth=look.width + 2.4)
    stroke(_values(series), *ends, colors=look.colour, linestyles=dash, linewidth=look.width + 0.3, label=series.name)
    shown = list(zip(at, series.y, strict=True)) if series.role == "published" else []
    for place, y in shown[:1] if same else shown:
        if y is not None:
            spot, away, side = ((y, place - reach), (0, 0), "center") if sideways else ((place + reach, y), (2, 0), "left")
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}
            up = "bottom" if sideways else "center"
            axes.annotate(number(y), spot, away, textcoords="offset points", ha=side, va=up, fontsize=8, bbox=box)


def _open_ends(axes: Axes, series: Series, look: Look, categories: list[str], clouds: list[Series], sideways: bool) -> None:
    """Where an interval is open, an arrow to the edge of the axes."""
    if series.kind == "line":
        return
    low, high = axes.get_xlim() if sideways else axes.get_ylim()
    for i, (lo, y, hi) in enumerate(series.intervals()):
        shift = (clouds.index(series) - (len(clouds) - 1) / 2) * (0.24 if sideways else 0.14) if categories and series in clouds else 0.0
        place = (categories.index(str(series.x[i])) if categories else float(series.x[i])) + shift
        for end, edge in ((lo, low), (hi, high)):
            if y is not None and end is None:
                tip, tail = ((edge, place), (y, place)) if sideways else ((place, edge), (place, y))
                axes.annotate(
                    "", tip, tail, arrowprops={"arrowstyle": "->", "color": look.colour, "shrinkA": 0, "shrinkB": 0, "linewidth": 1.4}
                )


def _axes(axes: Axes, panel: Panel, categories: list[str], width: float, *, heading: bool) -> int:
    """Scales, names, grid and zero line. Returns how many lines of text the tick labels below take."""
    from matplotlib.ticker import MaxNLocator

    sideways, lines = panel.sideways, 1
    if categories and sideways:
        axes.set_yticks(range(len(categories)), ["\n".join(textwrap.wrap(label, 34)) for label in categories])
        axes.set_ylim(len(categories) - 0.4, -0.6)
    elif categories:
        room = max(6, int(width * 10 / len(categories)))
        wrapped = [textwrap.wrap(label, room, break_long_words=False) or [""] for label in categories]
        lines = max(len(label) for label in wrapped)
        longest = max(len(line) for label in wrapped for line in label)  # a word that does not break is written smaller
        axes.set_xticks(range(len(categories)), ["\n".join(label) for label in wrapped], fontsize=9 * max(0.75, min(1, room / longest)))
        axes.set_xlim(-0.6, len(categories) - 0.4)
    elif panel.log_x:
        axes.set_xscale("log")
        places = _log_ticks(sorted({float(x) for series in panel.series for x in series.x}))
        axes.set_xticks(places, [f"{x:,g}" for x in places])
        axes.set_xticks([], minor=True)
    if sideways:
        axes.xaxis.set_major_locator(MaxNLocator(max(3, round(width))))  # numbers of seven characters have room for themselves
    elif not categories and not panel.log_x and all(float(x).is_integer() for series in panel.series for x in series.x):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # there is no layer 2.5
    axes.set_xlabel(panel.y_label if sideways else panel.x_label)
    if sideways and heading:  # the name of the categories heads their list
        style: dict[str, Any] = {"ha": "right", "va": "bottom", "fontsize": 9, "fontstyle": "italic", "annotation_clip": False}
        axes.annotate(panel.x_label, (0, 1), (-4, 2), xycoords="axes fraction", textcoords="offset points", **style)
    elif not sideways:
        axes.set_ylabel(panel.y_label)
    if panel.y_range:
        margin = 0.02 * (panel.y_range[1] - panel.y_range[0])  # markers on the edge of the range are drawn whole
        (axes.set_xlim if sideways else axes.set_ylim)(panel.y_range[0] - margin, panel.y_range[1] + margin)
    low, high = axes.get_xlim() if sideways else axes.get_ylim()
    if low < 0 < high:
        (axes.axvline if sideways else axes.axhline)(0, color=INK, linewidth=0.8, zorder=0.9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x" if sideways else "y", color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    if sideways:
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    return lines


def _log_ticks(places: list[float], most: int = 6) -> list[float]:
    """Of the points' places those that have room for a number, on a logarithmic axis: each at least 1 / most of its length from the last."""
    step = (places[-1] / places[0]) ** (1 / most) if places else 1.0
    chosen: list[float] = []
    for x in places:
        if not chosen or x >= chosen[-1] * step * 0.999:
            chosen.append(x)
    return chosen


def _legend_columns(panel: Panel, width: float) -> int:
    """How many columns of legend fit under a panel `width` inches wide. Entries run down the columns, the first ones being the longer."""
    names = [len(series.name) + 9 for series in panel.series]  # a handle is as wide as nine letters
    left = 0.3 + min(34, max(map(len, panel.categories()))) / 13 if panel.sideways else 0.7
    for columns in range(min(3, len(names)), 1, -1):
        each, more = divmod(len(names), columns)
        starts = [i * each + min(i, more) for i in range(columns + 1)]
        if sum(max(names[a:b]) for a, b in itertools.pairwise(starts)) <= (width - left) * 13:
            return columns
    return 1


def _legend(axes: Axes, panel: Panel, lines: int, width: float) -> None:
    """Below the axes, where no data can be hidden: the legend starts under the tick labels and the axis label."""
    from matplotlib.transforms import ScaledTranslation

    figure: Any = axes.figure
    below = axes.transAxes + ScaledTranslation(0, -(22 + 12 * lines) / 72, figure.dpi_scale_trans)
    handles, labels = _handles([axes], [panel])
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0, 0), "bbox_transform": below, "borderaxespad": 0.3}
    axes.legend(handles, labels, ncols=_legend_columns(panel, width), frameon=False, handlelength=3, columnspacing=1.4, **place)


def _heatmap(drawn: Drawn, axes: Axes, panel: Heatmap, width: float) -> None:
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import MaxNLocator

    values = np.ma.masked_invalid(np.array([[np.nan if v is None else v for v in row] for row in panel.values]))
    rows, columns = values.shape
    scale = LinearSegmentedColormap.from_list("nullius", SIGNED_SCALE if panel.signed else UNSIGNED_SCALE)
    limits: dict[str, Any] = {"vmin": -panel.reach if panel.signed else 0.0, "vmax": panel.reach}
    seams: dict[str, Any] = {"edgecolors": "white", "linewidth": 0.4} if rows * columns <= 1024 else {"rasterized": True}
    axes.set_facecolor(PALE)  # cells without a value
    image = axes.pcolormesh(np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5, values, cmap=scale, **limits, **seams)
    bar = drawn.colorbar(image, ax=axes, label=panel.value_label, shrink=0.9, pad=0.02, aspect=28)
    bar.outline.set_visible(False)
    if panel.signed:
        below = np.argwhere(values.filled(0.0) < -0.06 * panel.reach)
        size = 120 / max(rows, columns)
        shades = ["white" if values[row, column] < -0.45 * panel.reach else INK for row, column in below]
        axes.scatter(below[:, 1], below[:, 0], s=min(size, 9) ** 2, marker="_", c=shades, linewidths=0.9)
    for row, column in panel.mark:
        for colour, thick in (("white", 3.4), (INK, 1.8)):
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=colour, linewidth=thick, zorder=3))
    for axis, ticks in ((axes.xaxis, panel.x_ticks), (axes.yaxis, panel.y_ticks)):
        if ticks:
            axis.set_ticks(range(len(ticks)), list(ticks))
        else:
            axis.set_major_locator(MaxNLocator(integer=True))
    if panel.x_ticks and max(map(len, panel.x_ticks)) * columns > (width - 1.3) * 13:
        axes.tick_params(axis="x", rotation=90)
    axes.tick_params(length=0)
    axes.set(xlabel=panel.x_label, ylabel=panel.y_label)
    for spine in axes.spines.values():
        spine.set_visible(False)
