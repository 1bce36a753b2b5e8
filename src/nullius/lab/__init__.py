"""The lab: claims, findings, statistics, verdicts, runs. What a study imports stands here; nothing heavy is imported before it is used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nullius.lab.claims import (
        Claim,
        Needs,
        above_control,
        at_least,
        at_most,
        below_control,
        correlation_above,
        correlation_below,
        equivalent,
        ordering,
        trend,
    )
    from nullius.lab.figures import Figure, Heatmap, Panel, Series
    from nullius.lab.lab import Lab
    from nullius.lab.studies import Option, study

_CLAIMS = "Claim Needs above_control at_least at_most below_control correlation_above correlation_below equivalent ordering trend"
_HOMES = {
    **dict.fromkeys(_CLAIMS.split(), "claims"),
    **dict.fromkeys(["Figure", "Heatmap", "Panel", "Series"], "figures"),
    "Lab": "lab",
    "Option": "studies",
    "study": "studies",
}
__all__ = [
    "Claim",
    "Figure",
    "Heatmap",
    "Lab",
    "Needs",
    "Option",
    "Panel",
    "Series",
    "above_control",
    "at_least",
    "at_most",
    "below_control",
    "correlation_above",
    "correlation_below",
    "equivalent",
    "ordering",
    "study",
    "trend",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"nullius.lab.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'nullius.lab' has no attribute {name!r}")
