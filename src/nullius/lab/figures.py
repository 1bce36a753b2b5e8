"""Figures as data: what is drawn, with the paper's axes. How it is drawn stands in `drawing`; no drawing library here.

All numbers are finite; None stands for a missing point, or for the open end of an interval. A figure that cannot be drawn raises ValueError
where it is made, with one line that names the series and the entry.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Kind = Literal["line", "points", "bars"]
Role = Literal["effect", "second", "third", "control", "published", "reference"]
GLYPH = {"holds": "●", "fails": "✕", "inconclusive": "◐", "out of reach": "○", "not run": "·"}


@dataclass(frozen=True)
class Series:
    """One curve, cloud or set of bars. x: numbers or labels [n]; y: numbers [n]; lo, hi: ends of an interval around each y [n].

    kind: a line carries its interval as a band, points and bars carry it as bars.
    role decides colour, dash and marker: effects in colour; the control in grey; a published value and a reference (a margin, chance) as a
    tick across its category when they are points, as a thin line otherwise.
    y None: no point there. lo None (or −inf), hi None (or inf) beside a y: the interval is open on that side.
    """

    name: str
    x: Sequence[float | str]
    y: Sequence[float | None]
    lo: Sequence[float | None] | None = None
    hi: Sequence[float | None] | None = None
    kind: Kind = "line"
    role: Role = "effect"

    def __post_init__(self) -> None:
        where = f"series '{self.name}'"
        _one_of(self.kind, get_args(Kind), f"{where}: kind")
        _one_of(self.role, get_args(Role), f"{where}: role")
        if (self.lo is None) != (self.hi is None):
            raise ValueError(f"{where}: an interval needs both lo and hi")
        x = list(self.x)
        words = [isinstance(value, str) for value in x]
        if any(words) and not all(words):
            raise ValueError(f"{where}: x mixes labels and numbers")
        object.__setattr__(self, "x", tuple(x) if any(words) else _numbers(x, f"{where}: x", missing=False))
        object.__setattr__(self, "y", _numbers(self.y, f"{where}: y"))
        for name, opening in (("lo", -math.inf), ("hi", math.inf)):
            if getattr(self, name) is not None:
                ends = [None if end == opening else end for end in getattr(self, name)]
                object.__setattr__(self, name, _numbers(ends, f"{where}: {name}"))
        for name in ("x", "lo", "hi"):
            if getattr(self, name) is not None and len(getattr(self, name)) != len(self.y):
                raise ValueError(f"{where}: {name} has {len(getattr(self, name))} entries, y has {len(self.y)}")
        if not self.y:
            raise ValueError(f"{where}: it has no points")
        for i, (lo, y, hi) in enumerate(self.intervals()):
            if lo is not None and hi is not None and lo > hi:
                raise ValueError(f"{where}: the interval of entry {i} runs backwards, [{lo:g}, {hi:g}]")
            if y is None and (lo is not None or hi is not None):
                raise ValueError(f"{where}: entry {i} has an interval but no y")

    def intervals(self) -> list[tuple[float | None, float | None, float | None]]:
        """Return (lo, y, hi) of each entry, or nothing when the series has no intervals."""
        return list(zip(self.lo, self.y, self.hi, strict=True)) if self.lo is not None and self.hi is not None else []

    @property
    def labelled(self) -> bool:
        """Whether x are labels of categories."""
        return isinstance(self.x[0], str)


@dataclass(frozen=True)
class Panel:
    """One pair of axes, named as in the paper. x_label names x and y_label names y, on whichever side they are drawn.

    horizontal: categories are listed down the left side, values run across. Where their labels would not fit below, that is done anyway.
    """

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    y_range: tuple[float, float] | None = None
    log_x: bool = False
    horizontal: bool = False

    def __post_init__(self) -> None:
        where = f"panel '{self.title}'"
        object.__setattr__(self, "series", tuple(self.series))
        if not self.series:
            raise ValueError(f"{where}: it has no series")
        if len({series.labelled for series in self.series}) > 1:
            raise ValueError(f"{where}: some series have labels for x, others numbers")
        if self.horizontal and not self.series[0].labelled:
            raise ValueError(f"{where}: only categories can be drawn horizontally")
        if self.y_range is not None:
            low, high = (float(value) for value in self.y_range)
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(f"{where}: y_range must rise, got [{low:g}, {high:g}]")
            object.__setattr__(self, "y_range", (low, high))
        if self.log_x and (self.series[0].labelled or min(float(x) for series in self.series for x in series.x) <= 0):
            raise ValueError(f"{where}: a logarithmic axis needs numbers above 0")

    def categories(self) -> list[str]:
        """Return the labels on x in order of appearance; empty when x are numbers."""
        return list(dict.fromkeys(str(x) for series in self.series for x in series.x)) if self.series[0].labelled else []

    @property
    def sideways(self) -> bool:
        """Whether categories run down the left side: asked for, or their labels would not fit below. Lines always run left to right."""
        fits = sum(len(label) + 2 for label in self.categories()) <= 48
        return self.horizontal or (self.series[0].labelled and not fits and all(series.kind != "line" for series in self.series))


@dataclass(frozen=True)
class Heatmap:
    """A matrix of values [rows, columns], row 0 at the bottom. mark: (row, column) cells to outline.

    x_ticks, y_ticks: one label for each column and row; their numbers when empty. Where values of both signs occur zero is the middle of the
    colours and negative cells carry a minus sign, so that the sign survives grey print.
    """

    title: str
    x_label: str
    y_label: str
    values: Sequence[Sequence[float | None]]
    value_label: str
    mark: tuple[tuple[int, int], ...] = ()
    x_ticks: tuple[str, ...] = ()
    y_ticks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        where = f"heatmap '{self.title}'"
        rows = tuple(_numbers(row, f"{where}: row {i}") for i, row in enumerate(self.values))
        if not rows or not rows[0]:
            raise ValueError(f"{where}: it has no values")
        if len({len(row) for row in rows}) != 1:
            raise ValueError(f"{where}: rows of different lengths, {sorted({len(row) for row in rows})}")
        object.__setattr__(self, "values", rows)
        object.__setattr__(self, "mark", tuple((int(row), int(column)) for row, column in self.mark))
        for row, column in self.mark:
            if not (0 <= row < len(rows) and 0 <= column < len(rows[0])):
                raise ValueError(f"{where}: no cell ({row}, {column}) to mark in {len(rows)} rows and {len(rows[0])} columns")
        for name, length in (("x_ticks", len(rows[0])), ("y_ticks", len(rows))):
            ticks = tuple(str(tick) for tick in getattr(self, name))
            if ticks and len(ticks) != length:
                raise ValueError(f"{where}: {len(ticks)} {name} for {length} {'columns' if name == 'x_ticks' else 'rows'}")
            object.__setattr__(self, name, ticks)

    @property
    def reach(self) -> float:
        """Return the largest magnitude; 1 when every value is 0 or missing."""
        return max((abs(value) for row in self.values for value in row if value is not None), default=0.0) or 1.0

    @property
    def signed(self) -> bool:
        """Whether some value is negative."""
        return any(value is not None and value < 0 for row in self.values for value in row)


@dataclass(frozen=True)
class Figure:
    """A figure of one or more panels. name: short, of small letters, digits and hyphens (it names files); caption: what is seen, in words."""

    name: str
    title: str
    panels: tuple[Panel | Heatmap, ...]
    caption: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "panels", tuple(self.panels))
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,60}", self.name):
            raise ValueError(f"a figure's name is made of small letters, digits and hyphens, not '{self.name}'")
        if not self.panels:
            raise ValueError(f"figure '{self.name}': it has no panels")

    def to_dict(self) -> dict[str, Any]:
        """Return the figure as plain data, the documented shape nullius.figure/1."""
        return {"schema": "nullius.figure/1", **asdict(self)}


def from_dict(data: Mapping[str, Any]) -> Figure:
    """Undo `Figure.to_dict`, also after a passage through JSON. Raises ValueError for data of another shape."""
    try:
        panels: list[Panel | Heatmap] = []
        for panel in data["panels"]:
            if "series" in panel:
                panels.append(Panel(**{**panel, "series": tuple(Series(**entry) for entry in panel["series"])}))
            else:
                panels.append(Heatmap(**panel))
        return Figure(data["name"], data["title"], tuple(panels), data["caption"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a figure of the shape nullius.figure/1: {error}") from None


def forest(title: str, rows: Sequence[tuple[str, Mapping[str, Any]]], *, of: str, value: str) -> Panel:
    """Return a forest plot: point and interval of each row, its control in grey, margin and published value as ticks.

    rows: (label, verdict as plain data); a row without an effect is left out. of: what the rows are; value: what the numbers are.
    Raises ValueError when no row has an effect.
    """
    measured = [(label, row) for label, row in rows if row.get("effect")]
    if not measured:
        raise ValueError(f"forest plot '{title}': nothing was measured")
    series = [_intervals("effect", "effect", measured)]
    controlled = [(label, row) for label, row in measured if row.get("control")]
    if controlled:
        series.append(_intervals("control", "control", controlled))
    margins = [(label, side) for label, row in measured for side in _margins(row)]
    if margins:
        series.append(Series("margin", [label for label, _ in margins], [side for _, side in margins], kind="points", role="reference"))
    published = [(label, number) for label, row in measured if (number := _number(row.get("published"))) is not None]
    if published:
        series.append(Series("published", [label for label, _ in published], [at for _, at in published], kind="points", role="published"))
    return Panel(title, of, value, tuple(series), horizontal=True)


def verdict_figure(title: str, verdicts: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Return a forest plot of a run's verdicts, a panel for each unit of measurement. None when nothing was measured."""
    panels = []
    measured = [verdict for verdict in verdicts if verdict["effect"]]
    for unit in dict.fromkeys(verdict["unit"] or verdict["statistic"] for verdict in measured):
        rows = [(f"{GLYPH[v['word']]} {v['claim']}", v) for v in measured if (v["unit"] or v["statistic"]) == unit]
        panels.append(forest("", rows, of="claim", value=unit))
    words = ", ".join(f"{GLYPH[word]} {word}" for word in GLYPH if any(verdict["word"] == word for verdict in measured))
    caption = (
        f"Effect of each claim beside its control; bars are 95% intervals. The margin is the smallest effect that would matter. {words}."
    )
    return Figure("verdicts", title, tuple(panels), caption) if panels else None


def _intervals(name: str, role: Role, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> Series:
    y, lo, hi = ([_number(row[name][key]) for _, row in rows] for key in ("estimate", "lo", "hi"))
    return Series(name, [label for label, _ in rows], y, lo, hi, "points", role)


def _margins(verdict: Mapping[str, Any]) -> list[float]:
    margin = _number(verdict.get("margin"))
    if margin is None:
        return []
    return [-margin, margin] if verdict.get("kind") == "equivalent" else [margin]


def _number(value: Any) -> float | None:
    """A finite number, or None for anything else (a published value may be words, an interval open)."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _numbers(values: Sequence[Any], where: str, *, missing: bool = True) -> tuple[float | None, ...]:
    numbers: list[float | None] = []
    for i, value in enumerate(values):
        if value is None and missing:
            numbers.append(None)
            continue
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"{where}: entry {i} is {value!r}, not a number") from None
        if not math.isfinite(number):
            raise ValueError(f"{where}: entry {i} is {number}{'; give None where there is no value' if missing else ''}")
        numbers.append(number)
    return tuple(numbers)


def _one_of(value: str, known: Sequence[str], where: str) -> None:
    if value not in known:
        raise ValueError(f"{where} is one of {', '.join(known)}, not '{value}'")
