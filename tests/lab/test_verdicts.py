"""The rule, kind by kind, on findings made by hand; and that it always gives exactly one of four words."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tests.lab.simulate import samples

from nullius.errors import StudyError
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
from nullius.lab.findings import Finding
from nullius.lab.lab import Gate
from nullius.lab.statistics import Estimate, Interval, estimate
from nullius.lab.studies import study
from nullius.lab.verdicts import barrier, conclude, decide

NULL = (-0.1, 0.1)


def judge(expect, effect, control=NULL, p_holm=0.001):
    """p itself is always small: what decides is p after Holm."""
    made = (Interval(sum(ends) / 2, *ends, 50, 50, "by hand") for ends in (effect, control))
    return decide(expect, Estimate(*made, 0.001), p_holm)[0]


@pytest.mark.parametrize(
    ("expect", "effect", "control", "word"),
    [
        (above_control(), (0.1, 0.5), NULL, "holds"),
        (above_control(), (-0.1, 0.5), NULL, "inconclusive"),
        (above_control(), (-0.5, -0.1), NULL, "fails"),
        (above_control(0.2), (0.1, 0.5), NULL, "inconclusive"),
        (above_control(0.2), (-0.05, 0.05), NULL, "fails"),  # a precise zero
        (above_control(0.2), (0.01, 0.1), NULL, "fails"),  # an effect, and too small to matter
        (above_control(), (0.1, 0.5), (0.01, 0.02), "inconclusive"),  # margin 0: any effect of the control matters
        (above_control(0.05), (0.1, 0.5), (0.01, 0.02), "holds"),  # too small to matter
        (above_control(0.05), (0.1, 0.5), (0.01, 0.2), "inconclusive"),
        (above_control(0.05, null=0.5), (0.1, 0.5), (0.45, 0.55), "holds"),
        (above_control(0.05, null=0.5), (0.1, 0.5), NULL, "inconclusive"),
        (above_control(0.2), (0.1, 0.2), NULL, "inconclusive"),  # an end that touches the boundary decides nothing
        (above_control(), (-0.5, -0.1), (0.2, 0.3), "inconclusive"),  # no verdict at all without a null control
        (below_control(0.2), (-0.5, -0.3), NULL, "holds"),
        (below_control(0.2), (-0.1, 0.1), NULL, "fails"),
        (below_control(0.2), (-0.3, 0.1), NULL, "inconclusive"),
        (at_least(0.9, null=0.5), (0.9, 1.0), (0.45, 0.55), "holds"),
        (at_least(0.9, null=0.5), (0.7, 0.8), (0.45, 0.55), "fails"),
        (at_least(0.9, null=0.5), (0.8, 0.95), (0.45, 0.55), "inconclusive"),
        (at_least(0.9, null=0.5), (0.7, 0.9), (0.45, 0.55), "inconclusive"),  # "at least" reaches to the bound itself
        (at_least(0.9, null=0.5), (0.92, 1.0), (0.6, 0.7), "inconclusive"),
        (at_least(0.9, null=0.5), (0.92, 1.0), (0.51, 0.53), "holds"),  # a tenth of the way from chance to the bound is 0.04
        (at_least(0.9, null=0.5), (0.92, 1.0), (0.55, 0.57), "inconclusive"),  # and more than that is too much
        (at_least(0.9, null=0.5), (0.92, 1.0), (0.1, 0.95), "inconclusive"),  # a control that could be anything
        (at_most(0.1, null=0.5), (0.02, 0.1), (0.45, 0.55), "holds"),
        (at_most(0.1, null=0.5), (0.2, 0.3), (0.45, 0.55), "fails"),
        (correlation_above(0.2), (0.25, 0.6), NULL, "holds"),
        (correlation_above(0.2), (-0.1, 0.1), NULL, "fails"),
        (correlation_below(-0.2), (-0.6, -0.25), NULL, "holds"),
        (correlation_below(-0.2), (-0.1, 0.1), NULL, "fails"),
        (correlation_below(-0.2), (-0.3, 0.1), NULL, "inconclusive"),
        (equivalent(0.2), (-0.1, 0.1), (0.5, 0.9), "holds"),
        (equivalent(0.2), (-0.1, 0.1), (-0.9, -0.5), "holds"),
        (equivalent(0.2), (-0.1, 0.1), NULL, "inconclusive"),  # nothing could have been seen
        (equivalent(0.2), (-0.1, 0.1), (0.1, 0.9), "inconclusive"),
        (equivalent(0.2), (0.3, 0.5), (0.5, 0.9), "fails"),
        (equivalent(0.2), (0.2, 0.5), (0.5, 0.9), "inconclusive"),
        (equivalent(0.2), (0.1, 0.3), (0.5, 0.9), "inconclusive"),
        (trend("increasing", "a", "b"), (0.1, 0.5), NULL, "holds"),
        (trend("decreasing", "a", "b", margin=0.1), (-0.5, -0.2), NULL, "holds"),
        (trend("decreasing", "a", "b", margin=0.1), (-0.05, 0.2), NULL, "fails"),
        (ordering("a", "b"), (0.1, 0.5), NULL, "holds"),
        (ordering("a", "b"), (0.1, 0.5), (0.2, 0.4), "inconclusive"),  # the control is ordered too
        (ordering("a", "b", margin=0.2), (0.3, 0.5), NULL, "holds"),
        (ordering("a", "b", margin=0.2), (0.05, 0.15), NULL, "fails"),  # in order, by too little to matter
        (ordering("a", "b", margin=0.2), (0.1, 0.5), NULL, "inconclusive"),
        (ordering("a", "b", margin=0.2), (0.3, 0.5), (0.05, 0.15), "holds"),  # so is the control
    ],
)
def test_the_rule(expect, effect, control, word):
    assert judge(expect, effect, control) == word


def test_a_claim_on_its_side_still_needs_holm():
    assert judge(above_control(), (0.1, 0.5), p_holm=0.06) == "inconclusive"
    assert judge(above_control(), (-0.5, -0.1), p_holm=0.99) == "fails"


def test_samples_that_say_nothing_decide_nothing():
    nothing = Interval(0.3, -np.inf, np.inf, 9, 1, "none: one cluster")
    something = Interval(0.3, 0.2, 0.4, 9, 9)
    null = Interval(0, -0.1, 0.1, 9, 9)
    assert decide(above_control(), Estimate(nothing, null, 0.01), 0.01)[0] == "inconclusive"
    assert decide(above_control(), Estimate(something, nothing, 0.01), 0.01)[0] == "inconclusive"


RNG = np.random.default_rng(11)
GOOD = Finding("first", samples(1 + RNG.normal(size=40) / 4), samples(RNG.normal(size=40) / 4), True)
FIRST = Claim("first", "One is more than the other", above_control(0.2), control="the other")
SECOND = Claim("second", "Large subjects only", above_control(), control="none such", needs=Needs(parameters=1e9))
FACTS = {"parameters": 1e8, "chat": False, "full": False}


def of(*claims):
    return study("toy-study", claims=claims)(lambda lab: None)


def test_each_claim_gets_one_verdict_in_the_order_of_the_study():
    verdicts = conclude(of(SECOND, FIRST), {"first": GOOD}, [], **FACTS)
    assert [(verdict.claim.id, verdict.word) for verdict in verdicts] == [("second", "out of reach"), ("first", "holds")]
    assert verdicts[0].effect is None
    plain = verdicts[1].to_dict()
    assert plain["effect"]["estimate"] == pytest.approx((GOOD.treated.values - GOOD.control.values).mean())
    assert plain["digest"] == FIRST.digest
    assert plain["p"] == plain["p_holm"] <= 0.05


def test_numbers_of_a_claim_out_of_reach_are_kept():
    found = dataclasses.replace(GOOD, claim="second")
    verdicts = conclude(of(FIRST, SECOND), {"first": GOOD, "second": found}, [], **FACTS)
    assert verdicts[1].word == "out of reach"
    assert "1 B parameters" in verdicts[1].reason
    assert verdicts[1].effect is not None
    assert verdicts[1].p_holm is None
    assert verdicts[0].p_holm == verdicts[0].p  # and it is no member of Holm's family


@pytest.mark.parametrize(
    ("needs", "reason"),
    [
        (Needs(parameters=1e9), "at least 1 B parameters"),
        (Needs(chat=True), "instruction-tuned"),
        (Needs(full=True), "--full"),
        (Needs(also="a size ladder of one family"), "a size ladder"),
    ],
)
def test_unmet_needs_are_said_in_words(needs, reason):
    claim = dataclasses.replace(FIRST, needs=needs)
    assert reason in (barrier(claim, [], **FACTS) or "")
    if not needs.also:
        assert barrier(claim, [], parameters=2e9, chat=True, full=True) is None


def test_a_gate_not_passed_puts_its_claims_out_of_reach():
    third = dataclasses.replace(FIRST, id="third")
    gate = Gate("capitals known", 0.02, 0.0, 0.06, 0.1, False, ("third",))
    verdicts = conclude(of(FIRST, third), {"first": GOOD}, [gate], **FACTS)
    assert [verdict.word for verdict in verdicts] == ["holds", "out of reach"]
    assert "capitals known: 0.02" in verdicts[1].reason
    whole = dataclasses.replace(gate, claims=())
    assert {verdict.word for verdict in conclude(of(FIRST, third), {}, [whole], **FACTS)} == {"out of reach"}
    passed = dataclasses.replace(gate, passed=True)
    with pytest.raises(StudyError, match="left out claim 'third'"):
        conclude(of(FIRST, third), {"first": GOOD}, [passed], **FACTS)


def test_a_study_that_breaks_the_contract_is_an_error():
    with pytest.raises(StudyError, match="left out claim 'first'"):
        conclude(of(FIRST), {}, [], **FACTS)
    with pytest.raises(StudyError, match="never registered a claim 'other'"):
        conclude(of(FIRST), {"first": GOOD, "other": GOOD}, [], **FACTS)
    with pytest.raises(StudyError, match="without its control"):
        conclude(of(FIRST), {"first": dataclasses.replace(GOOD, control=samples([]))}, [], **FACTS)


def test_numbers_rest_on_the_words_of_the_claim():
    """The seed comes from the digest: the same claim gives the same numbers, another wording other resamples."""
    skewed = Finding("first", samples(RNG.exponential(size=40)), samples(RNG.normal(size=40) / 4), True)
    one, again = (conclude(of(FIRST), {"first": skewed}, [], **FACTS)[0] for _ in range(2))
    assert one == again
    reworded = dataclasses.replace(FIRST, wording="One is larger")
    assert conclude(of(reworded), {"first": skewed}, [], **FACTS)[0].effect != one.effect


values = st.one_of(
    arrays(np.float64, 6, elements=st.floats(-1e6, 1e6)),
    arrays(np.float64, 6, elements=st.sampled_from([0.0, 1.0])),
    arrays(np.float64, 6, elements=st.just(0.3)),
    arrays(np.float64, 6, elements=st.floats(-1e-9, 1e-9)),
)
clusters = st.sampled_from([np.arange(6), np.array([0, 0, 1, 1, 2, 2]), np.zeros(6, int), np.array([0, 1, 2, 0, 1, 2])])
expectations = st.sampled_from(
    [
        above_control(),
        above_control(0.3, null=0.5),
        below_control(),
        at_least(0.5, null=0.0),
        at_most(-2.0, null=0.0),
        correlation_above(),
        correlation_above(0.2, method="pearson"),
        correlation_below(),
        equivalent(0.4, to=0.5),
        trend("increasing", "a", "b", "c"),
        trend("decreasing", "a", "b", "c", margin=0.2),
        ordering("a", "b", "c"),
    ]
)


@given(expectations, values, values, clusters, clusters, st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_finite_samples_give_exactly_one_word(expect, treated, control, own, others, paired):
    level = np.array([0, 0, 1, 1, 2, 2]) if expect.levels else None
    a = samples(treated, own, x=control, level=level)
    b = samples(control, own if paired else others, x=treated, level=level)
    found = estimate(expect, a, b, paired, resamples=49)
    for interval in (found.effect, found.control):
        assert not np.isnan([interval.estimate, interval.lo, interval.hi]).any()
        assert interval.lo <= interval.hi
    assert 0 <= found.p <= 1
    word, reason = decide(expect, found, found.p)
    assert word in ("holds", "fails", "inconclusive")
    assert reason


@given(
    arrays(np.float64, 20, elements=st.floats(-3, 3).map(lambda x: round(x, 2))),
    arrays(np.float64, 20, elements=st.floats(-3, 3).map(lambda x: round(x, 2))),
    st.sampled_from([0.0, 0.2, 1.0]),
    st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_above_and_below_are_mirror_images(treated, control, margin, paired):
    treated, control = treated + 0.123, control + 0.123  # 0/1 samples are rates, and their negatives are not
    up = estimate(above_control(margin), samples(treated), samples(control, start=99), paired, resamples=199)
    down = estimate(below_control(margin), samples(-treated), samples(-control, start=99), paired, resamples=199)
    assert down.effect.lo == pytest.approx(-up.effect.hi, abs=1e-6)
    assert down.effect.hi == pytest.approx(-up.effect.lo, abs=1e-6)
    assert down.p == pytest.approx(up.p)
