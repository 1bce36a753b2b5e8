"""The study finds what was wired by hand, nothing where tuning changed nothing, and goes through on trained trackers."""

import json
from pathlib import Path

import numpy as np
import pytest

from nullius.errors import SubjectError
from nullius.instruments import tracking
from nullius.instruments.planted.tracker import LABELS, OBJECTS, wired
from nullius.instruments.tracking import Models, Sizes
from nullius.lab import Lab, runner
from nullius.lab.lab import Silent
from nullius.lab.studies import get
from nullius.models.language_model import LanguageModel
from nullius.stimuli import boxes
from nullius.studies.mechanisms import entity_tracking as module
from nullius.training.finetune import finetune
from nullius.training.trackers import Plan, fresh, tokenizer

SLUG = "entity-tracking"
FEW = Sizes(24, 64, 32, 160, 96, 3, 2)


@pytest.fixture(autouse=True, scope="module")
def few():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "QUICK", FEW)
        yield


def run_with(monkeypatch, base, tuned, stranger, seed=0):
    models = Models(base, tuned, stranger, 4, OBJECTS, LABELS, "short")
    monkeypatch.setattr(module, "_models", lambda lab: models)
    return runner.run(get(SLUG), base, seed=seed)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """The base does not pass two of the four places on; tuning has mended that and nothing else. The stranger does the same in another basis."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NULLIUS_DATA", str(tmp_path_factory.mktemp("data")))
        record = run_with(patch, wired(4, broken=(1, 3)), wired(4), wired(4, turned=True))
    return record  # what was patched is as before: other tests run the study as it is


def test_planted_truth_is_found(planted):
    words = {verdict.claim.id: verdict.word for verdict in planted.verdicts}
    assert set(words) == {claim.id for claim in module.CLAIMS}
    for claim in (
        "tuning-helps", "circuit-found", "same-circuit", "circuit-beats-base", "position-tuned", "object-base", "object-tuned",
        "better-fetching", "more-than-detectors", "needs-one-basis", "cut-query", "cut-earlier",
    ):  # fmt: skip
        assert words[claim] == "holds", f"{claim}: {planted.verdict(claim)}"
    effects = {verdict.claim.id: verdict.effect.estimate for verdict in planted.verdicts if verdict.effect}
    assert abs(effects["no-label"]) < 0.2
    assert effects["cut-object"] > 0.6
    assert effects["in-bands"] > 0.2
    assert planted.verdict("same-circuit").effect.estimate == pytest.approx(1, abs=0.02)
    assert planted.verdict("at-7b").word == "out of reach"
    assert any(
        "value fetchers 3.3; position transmitters 2.0; position detectors 1.2; structure readers 0." in note
        for note in planted.data["notes"]
    )


def test_the_figure_is_drawn(planted):
    artefacts = {artefact["name"]: artefact["path"] for artefact in planted.to_dict()["artefacts"]}
    panels = json.loads(Path(artefacts["figure.json"]).read_text("utf-8"))["panels"]
    assert len(panels) == 3
    assert (len(panels[1]["values"]), len(panels[1]["values"][0])) == (8, 3)
    assert {"object", "query", "earlier", "random"} == {series["name"] for series in panels[2]["series"]}


def test_a_circuit_that_does_nothing_fails_against_the_whole_base(monkeypatch):
    """Alone in the tuned model it says what no head at all says, far less than the base: how little it does in the base is no excuse."""
    monkeypatch.setattr(tracking, "alone", lambda model, prompts, wanted, means: np.zeros((len(wanted), len(prompts))))
    found = {}
    monkeypatch.setattr(Lab, "finding", lambda lab, claim, **how: found.setdefault(claim, how))
    base, tuned = wired(4, broken=(1, 3)), wired(4)
    models, lab = Models(base, tuned, None, 4, OBJECTS, LABELS, "short"), Lab(get(SLUG), base)
    test = models.draw(lab.rng, 40)
    whole = [tracking.right(model, test) for model in (base, tuned)]
    circuit = dict.fromkeys(tracking.ROLES, ((0, 0),))
    monkeypatch.setattr(tracking, "random_like", lambda *_: circuit)
    monkeypatch.setattr(module.circuits, "completeness", lambda *_: np.zeros(2 + len(tracking.ROLES)))
    monkeypatch.setattr(module.circuits, "random_parts", lambda *_: [])
    module._report_circuit(lab, models, test, circuit, (None, None), whole)
    np.testing.assert_array_equal(found["circuit-beats-base"]["treated"], -whole[0])
    assert not found["circuit-beats-base"]["control"].any()


def test_one_group_that_carries_the_label_does_not_go_under_in_four(monkeypatch):
    """Transmitters say the label's object in every second pair, the others never."""
    found, roles = {}, iter([role for _ in "bt" for role in tracking.ROLES for _ in range(5)])  # five masks for each role and model
    said = np.tile([1.0, 0.0], 12)
    monkeypatch.setattr(tracking, "carried", lambda *_, **__: (said * (next(roles) == "position transmitter"), ()))
    monkeypatch.setattr(Lab, "finding", lambda lab, claim, **how: found.setdefault(claim, how))
    base = wired(4)
    circuit = dict.fromkeys(tracking.ROLES, ((0, 0),))
    models = Models(base, base, None, 4, OBJECTS, LABELS, "short")
    module._report_masks(Lab(get(SLUG), base), models, {"base": circuit, "tuned": circuit})
    assert found["no-label"]["treated"].tolist() == said[12:].tolist()


def test_null_where_tuning_changed_nothing_and_no_position_is_carried(monkeypatch):
    """One tracker by label is base, tuned and unrelated model."""
    other = wired(4, "label")
    record = run_with(monkeypatch, other, other, other)
    for claim in ("tuning-helps", "circuit-beats-base", "better-fetching", "more-than-detectors", "needs-one-basis"):
        verdict = record.verdict(claim)
        assert verdict.word != "holds"
        if claim == "circuit-beats-base":  # no circuit of the paper's shape does the task by label: alone it is worse than the whole
            assert verdict.word == "fails"
        else:  # exactly nothing is pasted
            assert verdict.effect.estimate == pytest.approx(0, abs=1e-9)
    for claim in ("position-base", "position-tuned", "no-label"):
        assert record.verdict(claim).word != "holds"


def test_through_on_trained_trackers(toy, monkeypatch, tmp_path):
    monkeypatch.setenv("NULLIUS_CACHE", str(tmp_path))
    small = Plan(objects=8, labels=6, every=10, good=0.9)
    monkeypatch.setattr(module.trackers, "Plan", lambda seed: small)
    record = runner.run(get(SLUG), toy)
    assert {verdict.claim.id for verdict in record.verdicts} == {claim.id for claim in module.CLAIMS}
    assert record.verdict("tuning-helps").effect is not None


def test_a_subject_without_the_words_is_one_line(toy):
    with pytest.raises(SubjectError, match=r"as one token: too few for 4 boxes"):
        runner.run(get(SLUG), toy, options={"pair": "subject"})


class Heard(Silent):
    def __init__(self) -> None:
        self.labels: set[str] = set()

    def step(self, label: str, done: int, total: int | None) -> None:
        self.labels.add(label)


@pytest.fixture
def untaught(monkeypatch, tmp_path):
    """A tracker that has learnt nothing, as the subject of a pair."""
    monkeypatch.setenv("NULLIUS_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "PAIR_QUICK", Sizes(4, 16, 4, 24, 16, 2, 2))
    words = tokenizer(Plan())
    return LanguageModel.wrap(fresh(Plan(), len(words), 0), words, "fresh")


def test_a_subject_that_cannot_track_is_out_of_reach_before_it_is_finetuned(untaught, tmp_path):
    record = runner.run(get(SLUG), untaught, options={"pair": "subject"})
    assert {verdict.word for verdict in record.verdicts} == {"out of reach"}
    assert not (tmp_path / "finetuned").exists()


def test_a_subject_and_its_finetuned_copy_go_through(untaught, monkeypatch, tmp_path):
    """One that names objects at random, let past the gates of the whole study: claims are measured; the copy is kept, and not trained again."""
    require = Lab.require
    monkeypatch.setattr(Lab, "require", lambda lab, right, **how: not how.get("claims") or require(lab, right, **how))
    words, labels = (tracking.one_token(untaught, pool) for pool in (boxes.OBJECTS, boxes.LABELS))
    some = boxes.draw(np.random.default_rng(0), 160, 4, objects=words, labels=labels)
    guessing = finetune(untaught, [(item.prompt, item.answer) for item in some], 40, rate=3e-3, name="fresh").model
    how, first, again = {"pair": "subject"}, Heard(), Heard()
    record = runner.run(get(SLUG), guessing, options=how, listener=first)
    measured = {verdict.claim.id for verdict in record.verdicts if verdict.effect}
    assert measured >= {"tuning-helps", "circuits-overlap", "position-tuned", "no-label", "better-fetching", "cut-object", "in-bands"}
    assert any("10 steps on boxes" in note for note in record.data["notes"])
    assert len(list((tmp_path / "finetuned").iterdir())) == 1
    assert {"tuning", *(f"path patching in {name}" for name in ("fresh", "fresh (tuned)"))} <= first.labels
    kept = module._models(Lab(get(SLUG), guessing, options=how, listener=again))
    assert kept.tuned.weights_sha256 != guessing.weights_sha256
    assert "tuning" not in again.labels
