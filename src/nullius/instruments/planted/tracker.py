"""An entity tracker, planted: what is in which box, found by place or by label (`nullius.models.wired_tracker`, which says how)."""

from __future__ import annotations

from nullius.instruments.heads import Head
from nullius.models import wired_tracker
from nullius.models.wired_tracker import LABELS, OBJECTS, wired

__all__ = ["DETECTOR", "FETCHER", "LABELS", "OBJECTS", "STRUCTURE", "TRANSMITTER", "build"]

STRUCTURE, DETECTOR, TRANSMITTER, FETCHER = (
    Head(*head) for head in (wired_tracker.STRUCTURE, wired_tracker.DETECTOR, wired_tracker.TRANSMITTER, wired_tracker.FETCHER)
)
build = wired
