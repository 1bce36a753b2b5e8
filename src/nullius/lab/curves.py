"""Curves from samples: a mean with its 95% interval at each point, over clusters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nullius.lab.figures import Role, Series
from nullius.lab.statistics import mean_interval


def curve(
    name: str,
    x: Sequence[float],
    samples: Sequence[ArrayLike],
    clusters: Sequence | None = None,
    role: Role = "effect",
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> Series:
    """Return the curve of means of `samples` (one array [n] for each x) with their intervals; clusters: labels of the items [n].

    bounds: what the quantity cannot leave (0 and 1 for a rate): interval ends are cut there. An end that is not known stays open.
    """
    points = [mean_interval(np.asarray(values, dtype=float), clusters) for values in samples]

    def end(value: float) -> float | None:
        return float(np.clip(value, *bounds)) if np.isfinite(np.clip(value, *bounds)) else None

    return Series(name, x, [p.estimate for p in points], [end(p.lo) for p in points], [end(p.hi) for p in points], role=role)


def thirds(
    name: str, x: ArrayLike, y: ArrayLike, clusters: Sequence, role: Role = "effect", bounds: tuple[float, float] = (-np.inf, np.inf)
) -> Series:
    """Return the mean of y [n] in the lower, middle and upper third of x [n], each with its interval over clusters."""
    values, outcome, labels = np.asarray(x, dtype=float), np.asarray(y, dtype=float), np.asarray(clusters)
    parts: list[NDArray] = np.array_split(np.argsort(values, kind="stable"), 3)
    points = [curve(name, [float(values[part].mean())], [outcome[part]], labels[part].tolist(), role, bounds) for part in parts]
    lo, hi = ([(getattr(point, end) or (None,))[0] for point in points] for end in ("lo", "hi"))
    return Series(name, [float(point.x[0]) for point in points], [point.y[0] for point in points], lo, hi, role=role)
