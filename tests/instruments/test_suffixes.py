"""Shared suffixes: the cheapest cut, against trying every one; each start at or before its own; calls that cost nothing are not saved."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.instruments.test_patching import ANSWERS, cell_by_cell, pairs

from nullius.instruments import patching, suffixes

LENGTH = 12


def cost(model, cells, rows, whence, call):
    """What runs cost when the cells of each first position run from `whence`: positions times layers, and calls of layers."""
    layers = model.anatomy.n_layers
    spent = sum(rows * (layers - layer) * (LENGTH - whence[start]) for start, layer in cells)
    bottoms = {}
    for start, layer in cells:
        bottoms[whence[start]] = min(layer, bottoms.get(whence[start], layers))
    return spent + call * sum(layers - bottom for bottom in bottoms.values())


@pytest.mark.cpu
@settings(max_examples=60, deadline=None)
@given(
    cells=st.lists(st.tuples(st.integers(0, LENGTH - 1), st.integers(0, 2)), min_size=1, max_size=8),
    rows=st.integers(1, 3),
    call=st.sampled_from([0.0, 1.0, 5.0, 30.0, 1e6]),
)
def test_no_cut_costs_less(toy, cells, rows, call):
    inside = sum(parameter.numel() for parameter in toy.anatomy.layers[0].parameters())
    before = suffixes.CALL["cpu"]
    suffixes.CALL["cpu"] = call * 2 * inside
    try:
        found = suffixes.shared(toy, LENGTH, rows, cells)
    finally:
        suffixes.CALL["cpu"] = before
    starts = sorted({start for start, _ in cells})
    assert sorted(found) == starts
    assert all(found[start] <= start for start in starts)
    every = []
    for begins in itertools.product([True, False], repeat=len(starts) - 1):
        whence, last = {}, starts[0]
        for start, begin in zip(starts, (True, *begins), strict=True):
            last = start if begin else last
            whence[start] = last
        every.append(cost(toy, cells, rows, whence, call))
    assert abs(cost(toy, cells, rows, found, call) - min(every)) < 1e-6 * max(every)


@pytest.mark.cpu
def test_calls_that_cost_nothing_are_not_saved_and_dear_ones_are(toy, monkeypatch):
    cells = [(start, 0) for start in range(4, LENGTH)]
    monkeypatch.setitem(suffixes.CALL, "cpu", 0.0)
    assert suffixes.shared(toy, LENGTH, 2, cells) == {start: start for start in range(4, LENGTH)}
    monkeypatch.setitem(suffixes.CALL, "cpu", 1e15)
    assert suffixes.shared(toy, LENGTH, 2, cells) == dict.fromkeys(range(4, LENGTH), 4)


def test_cells_that_share_a_suffix_are_still_the_plain_runs(toy, monkeypatch):
    base, source = pairs(toy)
    for call in (0.0, 1e5, 1e15):
        monkeypatch.setitem(suffixes.CALL, "cpu", call)
        for site in ("resid_pre", "resid_post", "attn_out"):
            sweep = patching.residual(toy, base, source, ANSWERS, site=site)
            assert torch.allclose(sweep.values, cell_by_cell(toy, base, source, site, "position"), atol=1e-4)
