"""nullius: take nobody's word for it. Papers on language models, run on the model you choose.

    import nullius
    model = nullius.load("smollm2-135m")

Importing this package is cheap; torch is imported when the first model is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]

if TYPE_CHECKING:
    from nullius.models.loading import load


def __getattr__(name: str) -> Any:
    if name == "load":
        from nullius.models.loading import load

        return load
    raise AttributeError(f"module 'nullius' has no attribute {name!r}")
