"""The study goes through on a toy, calls what cannot be read undefined, and finds a planted order of depths."""

import numpy as np
import pytest
import torch

from nullius.errors import UsageError
from nullius.instruments import readings
from nullius.lab import runner
from nullius.lab.studies import get
from nullius.studies.representations import concept_depth as module

SLUG = "concept-depth"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("NULLIUS_DATA", str(tmp_path))
    monkeypatch.delenv("NULLIUS_CONCEPTS", raising=False)


def few(monkeypatch, n=48):
    whole = module.concepts.in_package
    monkeypatch.setattr(module.concepts, "in_package", lambda rng, _n: tuple(c for c in whole(rng, n) if c.name != "coin-4"))


def test_through_on_a_toy(toy, monkeypatch):
    few(monkeypatch)
    before = {name: value.clone() for name, value in toy.hf.state_dict().items()}
    record = runner.run(get(SLUG), toy)
    words = {verdict.claim.id: verdict.word for verdict in record.verdicts}
    assert set(words) == {claim.id for claim in module.CLAIMS}
    assert words["factual-decodable"] != "holds"  # random weights know no city
    assert words["bigger-earlier"] == "out of reach"
    assert all(torch.equal(before[name], value) for name, value in toy.hf.state_dict().items())
    again = runner.run(get(SLUG), toy)
    assert [v.effect for v in again.verdicts] == [v.effect for v in record.verdicts]


@pytest.mark.parametrize("options", [{"prompt": "sentiment", "position": "instruction-end"}, {"site": "resid_post", "prompt": "own"}])
def test_options(toys, monkeypatch, options):
    few(monkeypatch, 40)
    assert len(runner.run(get(SLUG), toys["gpt_neox"], options=options).verdicts) == len(module.CLAIMS)


def test_position_needs_a_prompt(toy):
    with pytest.raises(UsageError, match="needs an instruction"):
        runner.run(get(SLUG), toy, options={"position": "instruction-end"})


def planted(onsets, delay=0, layers=10):
    """A stand-in for reading a subject: each concept's label is in the states from its kind's layer on (None: nowhere), `delay` layers
    later where the text begins with noise. The same items have nearly the same states under every condition."""

    def read(model, concept, site, rng, seed=0):
        states = np.random.default_rng(sum(map(ord, concept.name))).normal(size=(layers, len(concept), 24))
        states += 0.03 * rng.normal(size=states.shape)
        onset = None if "untrained" in model.name else onsets[concept.kind]
        if onset is not None:
            states[onset + delay * concept.texts[0].startswith("aaa") :, :, 3] += 20 * concept.labels
        return readings.probe(concept, torch.tensor(states), rng, seed)

    return read


def test_planted_depths_are_found(toy, monkeypatch):
    few(monkeypatch, 240)
    monkeypatch.setattr(module, "read", planted({"factual": 2, "emotional": 2, "inferential": 6}, delay=2))
    record = runner.run(get(SLUG), toy)
    effect = {verdict.claim.id: verdict.effect for verdict in record.verdicts if verdict.effect}
    control = {verdict.claim.id: verdict.control for verdict in record.verdicts if verdict.control}
    assert effect["factual-decodable"].lo > 0.3
    assert effect["emotional-decodable"].lo > 0.3
    assert effect["inference-deeper"].estimate == pytest.approx(0.4, abs=0.06)
    assert effect["emotion-deeper-than-fact"].estimate == pytest.approx(0, abs=0.05)  # planted at the same layer
    assert effect["noise-delays"].estimate == pytest.approx(0.2, abs=0.05)
    assert effect["eight-bit-delays"].estimate == pytest.approx(0, abs=0.03)  # planted alike
    assert effect["sixteen-bit-equal"].estimate == pytest.approx(0, abs=0.03)
    assert control["sixteen-bit-equal"].lo > 0.02  # the planted delay of a tenth
    assert all(abs(control[claim].estimate) < 0.06 for claim in ("inference-deeper", "emotion-deeper-than-fact", "noise-delays"))
    held = {verdict.claim.id for verdict in record.verdicts if verdict.word == "holds"}
    assert not held & {"emotion-deeper-than-fact", "eight-bit-delays"}


def test_inference_never_decodable_is_out_of_reach(toy, monkeypatch):
    few(monkeypatch, 120)
    monkeypatch.setattr(module, "read", planted({"factual": 2, "emotional": 2, "inferential": None}))
    record = runner.run(get(SLUG), toy)
    assert record.verdict("inference-deeper").word == "out of reach"
    assert "read a concept said to be deeper" in record.verdict("inference-deeper").reason
    assert record.verdict("factual-decodable").word == "holds"


@pytest.mark.subject
def test_default_subject_reads_facts_and_feelings(monkeypatch):
    import nullius

    subject = nullius.load("smollm2-135m")
    rng = np.random.default_rng(0)
    for concept in (module.concepts.city(rng, 120), module.concepts.sentiment(rng, 120)):
        assert readings.read(subject, concept, "resid_mid_normed", rng).decodable()
