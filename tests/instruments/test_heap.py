"""Memory around a sweep: what is freed goes back."""

import ctypes
import sys
from pathlib import Path

import pytest
import torch

from nullius.instruments import heap

GLIBC = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim")


def resident():
    """Resident memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


@pytest.mark.cpu
@pytest.mark.skipif(not GLIBC, reason="of glibc")
def test_freed_memory_goes_back():
    pieces = [torch.ones(2**14) for _ in range(2000)]  # 128 MB, each from the heap
    last = torch.ones(2**14)
    held = resident()
    del pieces
    heap.give_back()
    assert held - resident() > 100
    assert last.sum() == 2**14


def test_on_another_system_nothing_happens(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", None)  # it would be an error to look for a function
    heap.give_back()
