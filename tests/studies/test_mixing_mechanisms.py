"""The study finds the three pointers wired into a reader, and turns away a subject that cannot bind."""

import pytest

from nullius.instruments.planted import binding
from nullius.lab import runner
from nullius.lab.studies import get


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NULLIUS_DATA", str(tmp_path_factory.mktemp("data")))
        yield runner.run(get("mixing-mechanisms"), binding.build(), seed=0)


@pytest.mark.parametrize("name", ["positional", "lexical", "reflexive"])
def test_every_wired_pointer_is_found(planted, name):
    assert planted.verdict(f"{name}-mechanism").word == "holds"


def test_the_mixture_beats_its_rivals_and_needs_each_term(planted):
    assert planted.verdict("mixture-beats-rivals").word == "holds"
    assert all(planted.verdict(f"needs-{name}-term").effect.estimate > 0.005 for name in ("positional", "lexical", "reflexive"))


def test_the_reader_follows_a_pointer_and_nothing_moves_unasked(planted):
    assert planted.verdict("pointer-not-answer").word == "holds"
    assert planted.verdict("nothing-moves-unasked").word == "holds"


def test_the_layer_is_the_one_where_it_was_decided(planted):
    assert f"layer {binding.DECIDED}" in planted.verdict("lexical-mechanism").note


def test_pairs_whose_key_and_answer_meet_are_left_out_of_the_shares(planted):
    """One pair for each cell of (p, k, i) with k and i not p: 150, in 30 of which k = i. The two sharp pointers have 48 pairs as control."""
    seen = {name: planted.verdict(f"{name}-mechanism").effect.n for name in ("positional", "lexical", "reflexive")}
    assert seen == {"positional": 120, "lexical": 120 + 48, "reflexive": 120 + 48}


def test_what_the_reader_cannot_do_is_out_of_reach(planted):
    for claim in ("fillers-weaken-keys", "fillers-blur-places", "answer-last-lexical", "mixture-agrees", "same-pattern-everywhere"):
        assert planted.verdict(claim).word == "out of reach"


def test_a_subject_that_cannot_bind_is_out_of_reach(toy):
    record = runner.run(get("mixing-mechanisms"), toy, seed=0)
    assert {verdict.word for verdict in record.verdicts} == {"out of reach"}
