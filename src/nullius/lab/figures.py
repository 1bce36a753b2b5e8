"""Figures as data: what is drawn, with the paper's axes; how it is drawn stands in `drawing`. No drawing library here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["line", "points", "bars"]
Role = Literal["effect", "second", "third", "control", "published", "reference"]


@dataclass(frozen=True)
class Series:
    """One curve, cloud or set of bars. x: numbers or labels [n]; y: numbers [n]; lo, hi: interval ends [n] or None.

    role decides colour, dash and marker: effects in colour, the control in grey, the published value as a dashed line.
    """

    name: str
    x: Sequence[float] | Sequence[str]
    y: Sequence[float]
    lo: Sequence[float] | None = None
    hi: Sequence[float] | None = None
    kind: Kind = "line"
    role: Role = "effect"

    def __post_init__(self) -> None:
        for name in ("x", "y", "lo", "hi"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, tuple(v if isinstance(v, str) else float(v) for v in value))
                if len(value) != len(self.y):
                    raise ValueError(f"series '{self.name}': {name} has {len(value)} entries, y has {len(self.y)}")
        if (self.lo is None) != (self.hi is None):
            raise ValueError(f"series '{self.name}': an interval needs both lo and hi")


@dataclass(frozen=True)
class Panel:
    """One pair of axes, named as in the paper."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    y_range: tuple[float, float] | None = None
    log_x: bool = False


@dataclass(frozen=True)
class Heatmap:
    """A matrix of values [rows, columns]; `mark` lists (row, column) cells to outline. Zero is the middle of the colour scale."""

    title: str
    x_label: str
    y_label: str
    values: Sequence[Sequence[float]]
    value_label: str
    mark: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(tuple(float(v) for v in row) for row in self.values))
        object.__setattr__(self, "mark", tuple((int(a), int(b)) for a, b in self.mark))
        if len({len(row) for row in self.values}) != 1:
            raise ValueError(f"heatmap '{self.title}': rows of different lengths")


@dataclass(frozen=True)
class Figure:
    """A named figure of one or more panels with a caption."""

    name: str
    title: str
    panels: tuple[Panel | Heatmap, ...]
    caption: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the figure as plain data."""
        return asdict(self)


def from_dict(data: dict[str, Any]) -> Figure:
    """Undo `Figure.to_dict`."""
    panels: list[Panel | Heatmap] = []
    for panel in data["panels"]:
        if "series" in panel:
            series = tuple(Series(**entry) for entry in panel["series"])
            y_range = tuple(panel["y_range"]) if panel["y_range"] else None
            panels.append(Panel(**{**panel, "series": series, "y_range": y_range}))
        else:
            panels.append(Heatmap(**panel))
    return Figure(data["name"], data["title"], tuple(panels), data["caption"])


def verdict_figure(title: str, verdicts: Sequence[dict[str, Any]]) -> Figure | None:
    """A forest plot of a run's verdicts: effect and control of each claim with intervals. None when nothing was measured."""
    measured = [v for v in verdicts if v["effect"]]
    if not measured:
        return None

    def series(key: str, role: Role, name: str) -> Series:
        rows = [v[key] for v in measured]
        finite = [{k: max(min(row[k], 1e6), -1e6) for k in ("estimate", "lo", "hi")} for row in rows]
        labels = [v["claim"] for v in measured]
        columns = ([row[k] for row in finite] for k in ("estimate", "lo", "hi"))
        return Series(name, labels, *columns, kind="points", role=role)

    panel = Panel("", "claim", "statistic, 95% interval", (series("effect", "effect", "effect"), series("control", "control", "control")))
    return Figure("verdicts", title, (panel,), "Effect of each claim beside its control; bars are 95% intervals.")
