"""The C library's heap around a sweep: freed memory is given back, and what a sweep allocates lies in large pages.

A layer's weights and what passes through it are thousands of pages of 4 kB, more than a CPU core knows the addresses of: in pages of 2 MB its
products are some per cent faster. Linux gives such pages on demand, place by place; on other systems nothing happens.
"""

from __future__ import annotations

import ctypes
import sys

import torch

PAGE = 2**21
LARGEST = (
    15 * PAGE
)  # glibc takes pieces of this size from its heap once it has seen one freed, and then keeps up to twice that at the heap's end
MADV_HUGEPAGE = 14


def give_back() -> None:
    """Give freed memory back to the system. A C library keeps what lies between pieces in use: after loading a model and after a sweep some 50 MB."""
    trim = _function("malloc_trim")
    if trim is not None:
        trim(0)


def take_large_pages() -> None:
    """Have the next 50 MB that are allocated at the heap's end lie in large pages; nothing of it is touched here."""
    advise = _function("madvise")
    if advise is None or _function("malloc_trim") is None:
        return
    torch.empty(LARGEST, dtype=torch.uint8)  # freed at once
    for piece in [torch.empty(12 * PAGE, dtype=torch.uint8) for _ in range(2)]:
        start = -(-piece.data_ptr() // PAGE) * PAGE
        end = (piece.data_ptr() + len(piece)) // PAGE * PAGE
        advise(
            ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_HUGEPAGE
        )  # whether the system takes the advice does not matter here


def _function(name: str) -> ctypes._NamedFuncPointer | None:
    """A function of the C library, on Linux, where it has it (malloc_trim: only glibc)."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
