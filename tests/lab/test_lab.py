"""What a study hands over, as the lab takes it: gates, clusters, pairs; and what it refuses, in one line that names the claim."""

import numpy as np
import pytest
from tests.lab.tiny import SUBJECT

from nullius.errors import StudyError
from nullius.lab import Claim, Lab, Option, above_control, correlation_above, study, trend
from nullius.lab.lab import OutOfReach

CLAIMS = (
    Claim("mean", "a mean", above_control(), control="another"),
    Claim("pairs", "a correlation", correlation_above(), control="another"),
    Claim("levels", "a trend", trend("increasing", "low", "high"), control="another"),
)


@pytest.fixture
def lab():
    made = study("made-here", claims=CLAIMS, options=(Option("colour", ("red", "blue"), "which"),))(lambda _lab: None)
    return Lab(made, SUBJECT)


def ones(hits, n):
    return np.repeat([1.0, 0.0], [hits, n - hits])


def test_a_gate_is_passed_by_the_whole_interval(lab):
    assert not lab.require(ones(24, 40), above=0.5, what="count", claims=("mean",))  # 0.6, and an interval that reaches down to 0.43
    assert lab.require(ones(30, 40), above=0.5, what="count", claims=("mean",))
    assert not lab.require([], above=0.0, what="be asked at all", claims=("mean",))
    assert not lab.require(ones(30, 40), above=0.5, what="count", claims=("mean",), clusters=np.arange(40) // 10)  # four clusters
    assert [gate.passed for gate in lab.gates] == [False, True, False, False]
    assert lab.gates[0].claims == ("mean",)


def test_a_gate_of_the_whole_study_ends_it(lab):
    assert lab.require(ones(30, 40), above=0.5, what="count")
    with pytest.raises(OutOfReach, match="count to two"):
        lab.require(ones(24, 40), above=0.5, what="count to two")
    with pytest.raises(StudyError, match="never registered a claim 'other'"):
        lab.require(ones(24, 40), above=0.5, what="count", claims=("other",))


def test_the_control_has_the_same_clusters_where_the_lengths_agree(lab):
    lab.finding("mean", treated=[1, 2, 3, 4], control=[0, 0, 0, 1], clusters=["fr", "fr", "de", "de"])
    found = lab.findings["mean"]
    assert found.paired
    assert found.treated.clusters.tolist() == found.control.clusters.tolist() == [0, 0, 1, 1]


def test_the_control_has_clusters_of_its_own_where_they_are_given_or_the_lengths_differ(lab):
    lab.finding("mean", treated=[1, 2, 3], control=[0, 0], clusters=["fr", "fr", "de"])
    assert not lab.findings["mean"].paired
    assert lab.findings["mean"].control.clusters.tolist() == [2, 3]
    given = {"clusters": {"low": ["fr", "de"], "high": ["fr", "de"]}, "control_clusters": {"low": ["it", "fr"], "high": ["it", "fr"]}}
    lab.finding("levels", treated={"low": [1, 2], "high": [3, 4]}, control={"high": [1, 2], "low": [3, 4]}, **given)
    assert lab.findings["levels"].treated.clusters.tolist() == [0, 1, 0, 1]
    assert lab.findings["levels"].control.clusters.tolist() == [2, 0, 2, 0]
    assert lab.findings["levels"].control.values.tolist() == [3, 4, 1, 2]  # in the order of the claim's levels


@pytest.mark.parametrize(
    ("claim", "treated", "more", "said"),
    [
        ("other", [1, 2], {}, "never registered a claim 'other'"),
        ("mean", [1, np.nan], {}, "claim 'mean', treated: 1 of 2 samples are not finite"),
        ("mean", [1], {}, r"at least two samples in one dimension, got shape \(1,\)"),
        ("mean", [[1, 2], [3, 4]], {}, r"got shape \(2, 2\)"),
        ("mean", {"low": [1, 2]}, {}, "expected one array of samples, got dict"),
        ("mean", [1, 2], {"clusters": ["fr"]}, r"2 samples but cluster labels of shape \(1,\)"),
        ("mean", [1, 2, 3], {"paired": True}, "paired samples of different lengths, 3 and 2"),
        ("pairs", [1, 2], {}, "takes a pair"),
        ("pairs", ([1, 2], [1, 2, 3]), {}, "x has 2 items, y 3"),
        ("levels", {"low": [1, 2]}, {}, r"levels \['low', 'high'\], got \['low'\]"),
        ("levels", {"low": [1, 2], "high": [1]}, {}, "level 'high': expected at least two samples"),
    ],
)
def test_what_does_not_fit_a_claim_is_named(lab, claim, treated, more, said):
    with pytest.raises(StudyError, match=said):
        lab.finding(claim, treated=treated, control=[1, 2], **more)


def test_a_claim_is_reported_once(lab):
    lab.finding("mean", treated=[1, 2], control=[1, 2])
    with pytest.raises(StudyError, match="reported twice"):
        lab.finding("mean", treated=[1, 2], control=[1, 2])


def test_scale_and_options(lab):
    assert lab.scale(quick=1, full=2) == 1
    assert Lab(lab.study, SUBJECT, full=True).scale(quick=1, full=2) == 2
    assert lab.option("colour") == "red"
    assert Lab(lab.study, SUBJECT, options={"colour": "blue"}).option("colour") == "blue"
    with pytest.raises(StudyError, match="declares no option 'size'"):
        lab.option("size")


def test_progress_counts_what_is_done_and_not_what_is_begun(lab):
    said = []
    lab.listener.step = lambda label, done, total: said.append((label, done, total))
    seen = [(item, said[-1][1]) for item in lab.progress(iter("ab"), "reading", 2)]
    assert seen == [("a", 0), ("b", 1)]
    assert said == [("reading", 0, 2), ("reading", 1, 2), ("reading", 2, 2)]
