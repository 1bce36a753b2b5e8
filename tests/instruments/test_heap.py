"""Memory around a sweep: advice for large pages reaches the heap and costs nothing, and what is freed goes back."""

import sys
from pathlib import Path

import pytest
import torch

from nullius.instruments import heap

pytestmark = [
    pytest.mark.cpu,
    pytest.mark.skipif(
        sys.platform != "linux" or heap._function("malloc_trim") is None or not Path("/sys/kernel/mm/transparent_hugepage").exists(),
        reason="glibc on a Linux that knows large pages",
    ),
]


def resident():
    """Resident memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def advised():
    """How many MB of this process's memory are to lie in large pages."""
    size, total = 0, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line.startswith("Size:"):
            size = int(line.split()[1])
        if line.startswith("VmFlags:") and "hg" in line.split():
            total += size
    return total / 1024


def test_what_is_allocated_next_lies_in_large_pages_and_nothing_is_touched_before():
    heap.give_back()
    held, there = resident(), advised()
    heap.take_large_pages()
    assert advised() - there >= 35
    assert resident() - held < 12  # of 48: a page or two in which the C library notes something
    heap.give_back()


def test_freed_memory_goes_back():
    pieces = [torch.ones(2**14) for _ in range(2000)]  # 128 MB, each from the heap
    last = torch.ones(2**14)
    held = resident()
    del pieces
    heap.give_back()
    assert held - resident() > 100
    assert last.sum() == 2**14


def test_null_on_another_system_nothing_happens(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert heap._function("malloc_trim") is None
    there = advised()
    heap.take_large_pages()
    heap.give_back()
    assert advised() == there
