"""The study finds what was wired into a transformer, finds nothing where it was left out, and turns away a subject that knows nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
from tests.wired import known_facts, wired

from nullius.lab import runner
from nullius.lab.studies import get
from nullius.stimuli import frequency
from nullius.training import sentences


def strengths(seed=0, by_frequency=False):
    """Memory of each country: spread so that the context wins about a third of the time; stronger for frequent countries if asked."""
    facts = known_facts()
    values = np.clip(np.random.default_rng(seed).logistic(1.6, 0.6, len(facts)), 0.3, 4.5)
    if by_frequency:
        order = np.argsort([frequency.zipf(fact.country) for fact in facts])
        values[order] = np.sort(values)
    return {fact.country: float(value) for fact, value in zip(facts, values, strict=True)}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NULLIUS_DATA", str(tmp_path_factory.mktemp("data")))
        yield runner.run(get("factual-recall"), wired(strengths(by_frequency=True)), seed=4)


def test_the_wired_head_decides_on_countries_never_used_to_choose_it(planted):
    verdict = planted.verdict("one-head-to-context")
    assert verdict.word == "holds"
    assert verdict.effect.estimate > 0.5
    assert "head 0.2 × 5" in verdict.note
    assert planted.verdict("beats-random-to-context").word == "holds"


def test_the_wired_frequency_effect_is_found_with_its_sign(planted):
    verdict = planted.verdict("country-frequency")
    assert verdict.word == "holds"
    assert verdict.effect.estimate < -0.5
    assert planted.verdict("city-frequency").word != "holds"  # none was wired in


def test_nothing_else_is_damaged_and_the_other_relation_is_out_of_reach(planted):
    assert planted.verdict("no-damage").effect.estimate == 1
    assert planted.verdict("head-transfers").word == "out of reach"
    assert planted.verdict("most-answers-flip").word == "out of reach"
    assert planted.verdict("larger-follow-less").word == "out of reach"


def test_attribution_agrees_with_ablation(planted):
    assert planted.verdict("attribution-is-causal").effect.estimate > 0.7


def test_both_figures_are_drawn(planted):
    names = {artefact["name"] for artefact in planted.to_dict()["artefacts"]}
    assert {"figure.svg", "figure.json", "figure-frequency.svg"} <= names
    figure = next(artefact["path"] for artefact in planted.to_dict()["artefacts"] if artefact["name"] == "figure.json")
    heat, curves = json.loads(Path(figure).read_text("utf-8"))["panels"]
    assert (len(heat["values"]), len(heat["values"][0])) == (3, 8)
    assert heat["mark"] == [[0, 2]]
    rates = {series["name"]: series["y"] for series in curves["series"]}
    assert rates["in-context"] == sorted(rates["in-context"])  # more of that head, more of the context
    assert len(set(rates["in-context, random heads"])) == 1


def test_no_frequency_effect_is_invented(planted):
    record = runner.run(get("factual-recall"), wired(strengths(seed=1), memory="mlp"), seed=1)
    assert record.verdict("one-head-to-context").word == "holds"
    assert record.verdict("country-frequency").word != "holds"
    assert record.verdict("city-frequency").word != "holds"


def test_a_subject_that_knows_no_capitals_is_out_of_reach(toy):
    record = runner.run(get("factual-recall"), toy)
    assert {verdict.word for verdict in record.verdicts} == {"out of reach"}


def test_a_subject_that_has_no_word_for_any_capital_is_out_of_reach():
    """All names begin with its one token for what it does not know: there is no fact to ask for."""
    record = runner.run(get("factual-recall"), sentences.fresh(["a", "b"], sentences.Size(1, 16, 2, 32), 0), seed=0)
    assert {verdict.word for verdict in record.verdicts} == {"out of reach"}
    assert "name capitals without context" in record.verdict("no-damage").reason
