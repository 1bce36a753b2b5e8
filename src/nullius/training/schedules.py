"""How the learning rate moves: a pure function of the step, so that a run that goes on needs no state of it."""

from __future__ import annotations

import math

from nullius.training.config import Schedule


def factor(schedule: Schedule, step: int, steps: int) -> float:
    """Return what part of the highest rate step `step` (from 0) of `steps` takes.

    Warm-up rises linearly and reaches 1 at step `warmup`; the fall would reach `floor` one step after the last, so that none is wasted.

    >>> [round(factor(Schedule("linear", warmup=2), step, 6), 2) for step in range(6)]
    [0.33, 0.67, 1.0, 0.75, 0.5, 0.25]
    """
    if step < schedule.warmup:
        return (step + 1) / (schedule.warmup + 1)
    start = schedule.warmup
    if schedule.name == "wsd":
        start = max(start, steps - round(schedule.decay * steps))
    done = min(1.0, max(0.0, (step - start) / max(1, steps - start)))
    fallen = {"constant": 0.0, "cosine": (1 - math.cos(math.pi * done)) / 2, "linear": done, "wsd": done}[schedule.name]
    return 1 - (1 - schedule.floor) * fallen
