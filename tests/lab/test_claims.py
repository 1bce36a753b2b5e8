"""Claims: what enters their digest, how they say what is expected, and which are refused."""

import dataclasses

import pytest

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
from nullius.lab.studies import describe
from nullius.lab.verdicts import Verdict

CLAIM = Claim("one", "One is more than the other", above_control(0.2), control="the other")


@pytest.mark.parametrize(
    ("expect", "boundary", "wording"),
    [
        (above_control(0.2), 0.2, "mean of treated − control: above 0.2"),
        (below_control(0.2, null=0.5), -0.2, "mean of treated − control: below -0.2"),
        (below_control(), 0.0, "mean of treated − control: below 0"),
        (at_least(0.9, null=0.5), 0.9, "mean: at or above 0.9"),
        (at_most(0.1, null=0.5), 0.1, "mean: at or below 0.1"),
        (correlation_above(0.3), 0.3, "Spearman correlation: above 0.3"),
        (correlation_below(-0.3, method="pearson"), -0.3, "Pearson correlation: below -0.3"),
        (trend("decreasing", "a", "b", "c", margin=0.1), -0.1, "Kendall's tau-b with level over a, b, c: below -0.1"),
        (ordering("a", "b", "c"), 0.0, "smallest adjacent difference of means in the order a > b > c: above 0"),
        (equivalent(0.05, to=0.5), 0.05, "mean − 0.5: within ±0.05"),
    ],
)
def test_an_expectation_in_words(expect, boundary, wording):
    claim = dataclasses.replace(CLAIM, expect=expect)
    assert expect.wording == describe(claim)["expected"] == wording
    assert expect.boundary == describe(claim)["margin"] == Verdict(claim, "holds", "").to_dict()["margin"] == boundary


@pytest.mark.parametrize(
    "change",
    [
        {"wording": "Another sentence"},
        {"control": "another"},
        *(
            {"expect": expect}
            for expect in (above_control(0.1), below_control(0.2), above_control(0.2, null=0.5), equivalent(0.2), trend("increasing"))
        ),
    ],
)
def test_another_wording_expectation_or_control_is_another_claim(change):
    assert dataclasses.replace(CLAIM, **change).digest != CLAIM.digest


def test_what_is_only_shown_is_not_in_the_digest():
    other = dataclasses.replace(CLAIM, id="two", published=0.88, unit="nats", needs=Needs(full=True), rests_on=("taps",))
    assert other.digest == CLAIM.digest


def test_an_equivalence_without_margin_and_an_order_of_one_are_refused():
    for margin in (0.0, -0.1):
        with pytest.raises(ValueError, match="needs a margin above 0"):
            equivalent(margin)
    with pytest.raises(ValueError, match="at least two conditions"):
        ordering("alone")
