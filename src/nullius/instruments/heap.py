"""The C library's heap around a sweep: what was freed is given back to the system."""

from __future__ import annotations

import ctypes
import sys


def give_back() -> None:
    """Give freed memory back to the system. A C library keeps what lies between pieces in use: after loading a model and after a sweep some 50 MB."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None  # glibc's own
    if trim is not None:
        trim(0)
