"""Intervals as readers meet them: enough decimals to see how large, and on which side of zero; no minus before nothing."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nullius.lab import wording


@pytest.mark.parametrize(
    ("ends", "text"),
    [
        ((0.41, 0.3, 0.52), "0.41 [0.30, 0.52]"),
        ((0.00071, 0.0004, 0.0011), "0.0007 [0.0004, 0.0011]"),
        ((-0.001, -0.2, 0.0012), "−0.001 [−0.200, 0.001]"),
        ((-0.0, 0.0, 0.0), "0.00 [0.00, 0.00]"),
        ((2.5, None, None), "2.50 [−∞, ∞]"),
    ],
)
def test_intervals_in_words(ends, text):
    assert wording.interval(*ends) == text


@example([-1.0, 0.125, 1.0])
@given(st.lists(st.floats(-100, 100), min_size=3, max_size=3).map(sorted))
def test_no_minus_stands_before_nothing_and_what_is_shown_is_near(ends):
    lo, estimate, hi = ends
    shown = [
        float(word)
        for word in wording.interval(estimate, lo, hi).replace("−", "-").replace("[", "").replace("]", "").split(", ")[0].split()
    ]
    assert all(math.copysign(1, value) > 0 for value in shown if value == 0)
    assert shown == pytest.approx([estimate, lo], abs=0.005 + 1e-9)  # half a unit of the last digit: 0.125 is shown as 0.12
