"""The figure of training runs: loss, held-out loss, speed over tokens or steps, out of the metrics that `nullius train` leaves."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from nullius.errors import UsageError
from nullius.lab.figures import Figure, Panel, Role, Series

ROLES = cast("tuple[Role, ...]", ("effect", "second", "third", "control", "reference", "published"))
MOST = 400  # points of a line; more would not be seen


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the records of a run's metrics.jsonl. Raises UsageError: no such file, a line that is no record (but for the last, being written)."""
    path = folder / "metrics.jsonl" if folder.is_dir() else folder
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UsageError(f"no metrics of a training run in {folder}: {error.strerror}") from None
    found = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            found.append(record)
        elif number < len(lines):
            raise UsageError(f"{path}, line {number}: no record of a training run")
    if not any("loss" in record for record in found):
        raise UsageError(f"{path} holds no loss yet")
    return found


def figure(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Draw runs side by side, name → records: the loss of each step, averaged where there are more steps than points; the held-out loss; tokens per
    second. At most six runs, which can be told apart."""
    if len(runs) > len(ROLES):
        raise UsageError(f"at most {len(ROLES)} runs can be told apart in one figure; got {len(runs)}")
    wanted = {"loss": "nats per token", "held_out": "nats per token", "tokens_per_second": "tokens per second"}
    titles = {"loss": "training", "held_out": "held-out text", "tokens_per_second": "speed"}
    panels = []
    for key, unit in wanted.items():
        lines = []
        for role, (name, records) in zip(ROLES, runs.items(), strict=False):
            points = [
                (float(r["step"]), math.nan if r[key] is None else float(r[key]))  # null: a number that was none
                for r in records
                if isinstance(r.get("step"), int | float) and key in r and isinstance(r[key], int | float | None)
            ]
            if any(math.isfinite(y) for _, y in points):
                lines.append(Series(name, *_thinned(points), role=role))
        if lines:
            panels.append(Panel(titles[key], "step", unit, tuple(lines)))
    if not panels:
        raise UsageError(f"no loss of {', '.join(runs)} is a finite number")
    return Figure("training", ", ".join(runs), tuple(panels), "Each point of a line is the mean over the steps up to the next one.")


def _thinned(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float | None]]:
    """At most MOST points, each the mean of its piece; none where the training had diverged."""
    size = -(-len(points) // MOST)
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    means = [sum(y for _, y in part) / len(part) for part in parts]
    return [part[-1][0] for part in parts], [mean if math.isfinite(mean) else None for mean in means]
