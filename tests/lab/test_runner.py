"""A run: what it leaves behind when it ends well, when the subject or the study fails, and when it is repeated."""

import json
import random
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tests.lab.tiny import tiny_study

from nullius.errors import NulliusError, SubjectError, UsageError
from nullius.lab import Claim, Lab, Needs, Option, above_control, artefacts, environment, journal, study
from nullius.lab import rerun as reruns
from nullius.lab.records import dumps
from nullius.lab.runner import run

CLAIM = Claim("c", "a claim", above_control(0.1), control="nothing")


def make(function, *, claims=(CLAIM,), options=()):
    return study("made-here", claims=claims, options=options)(function)


def good(lab: Lab) -> None:
    lab.finding("c", treated=lab.rng.normal(1, 0.1, 20), control=lab.rng.normal(0, 0.1, 20))


class Watcher:
    def __init__(self) -> None:
        self.said: list[str] = []

    def step(self, label: str, done: int, total: int | None) -> None:
        self.said.append(f"{label} {done}/{total}")

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def subject():
    from tests.lab.tiny import SUBJECT

    return SUBJECT


def test_a_run_holds_everything_needed_to_judge_and_repeat_it(subject):
    watcher = Watcher()
    record = run(tiny_study, subject, seed=3, listener=watcher)
    data = record.to_dict()
    assert data == journal.get_run(data["id"])
    assert (data["schema"], data["state"], data["seed"], data["full"]) == ("nullius.run/1", "done", 3, False)
    assert data["subject"]["sha256"] == subject.weights_sha256
    assert data["tokens"] > 100
    assert min(data["wall_seconds"], data["cpu_seconds"], data["peak_bytes"]) > 0
    about = data["environment"]
    assert about["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"lab/verdicts.py", "lab/lab.py", "models/language_model.py", "tiny.py"} <= about["files"].keys()
    assert "cli/main.py" not in about["files"]
    assert about["threads"] in (1, torch.get_num_threads())
    assert [v["claim"] for v in data["verdicts"]] == ["said-before", "seen-twice"] == list(data["samples"])
    assert record.verdict("seen-twice").to_dict() == data["verdicts"][1]
    assert watcher.said[:2] == ["loading the subject 0/None", data["notes"][0]]
    assert "said-before 0/14" in watcher.said
    assert json.loads(dumps(data))["id"] == data["id"]


def test_sums_in_no_fixed_order_are_a_note_instead_of_warnings(subject, recwarn):
    def careless(lab: Lab) -> None:
        warnings.warn("_bincount_cuda does not have a deterministic implementation, but you set ...", stacklevel=1)  # as torch does on CUDA
        warnings.warn("cuDNN Attention defaults to a non-deterministic algorithm. To ...", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
        good(lab)

    for _ in range(2):  # the second run in a process knows as well as the first
        notes = run(make(careless), subject).to_dict()["notes"]
        assert [note for note in notes if "no fixed order" in note and note.endswith(": bincount_cuda, cuDNN Attention")]
    assert {str(warning.message) for warning in recwarn} == {"something else"}
    assert not [note for note in run(make(good), subject).to_dict()["notes"] if "no fixed order" in note]


def test_artefacts_hold_the_samples_and_are_checked(subject):
    data = run(make(good), subject).to_dict()
    files = {entry["name"]: Path(entry["path"]) for entry in data["artefacts"]}
    table = pq.read_table(files["samples.parquet"])
    expected = np.random.default_rng(0).normal(1, 0.1, 20)
    assert table.filter(np.array(table["role"]) == "treated")["value"].to_numpy() == pytest.approx(expected, abs=0)
    stored = json.loads(files["environment.json"].read_text())
    assert stored == data["environment"]
    assert artefacts.damaged(data) == []
    files["figure.svg"].write_text("another")
    files["samples.parquet"].unlink()
    assert artefacts.damaged(data) == ["figure.svg", "samples.parquet"]


def test_notes_and_steps_are_events(subject):
    def talkative(lab: Lab) -> None:
        for i in lab.progress(range(5000), "counting"):
            if i % 1000 == 0:
                lab.note(f"at {i}")
        good(lab)

    run_id = run(make(talkative), subject).data["id"]
    events = journal.events(run_id)
    assert [event["seq"] for event in events] == list(range(len(events)))
    assert [event["payload"]["text"] for event in events if event["kind"] == "note"] == [f"at {i}" for i in range(0, 5000, 1000)]
    assert events[-1]["payload"] == {"label": "counting", "done": 5000, "total": 5000}
    assert len(events) < 200, "steps are thinned out"


def test_a_gate_ends_a_study_out_of_reach(subject):
    def gated(lab: Lab) -> None:
        lab.require(np.zeros(20), above=0.5, what="count to two")
        raise AssertionError("never reached")

    record = run(make(gated), subject)
    assert record.data["state"] == "done"
    assert [verdict.word for verdict in record.verdicts] == ["out of reach"]
    assert "count to two" in record.verdicts[0].reason
    assert record.data["samples"] == {}


def test_a_claim_that_needs_more_is_out_of_reach(subject):
    claims = (CLAIM, Claim("large", "needs more", above_control(), control="nothing", needs=Needs(parameters=1e9)))
    record = run(make(good, claims=claims), subject)
    assert [verdict.word for verdict in record.verdicts] == ["holds", "out of reach"]
    assert list(record.data["samples"]) == ["c"]


def left_out(lab: Lab) -> None:
    pass


def unregistered(lab: Lab) -> None:
    lab.finding("other", treated=[1.0, 2.0], control=[0.0, 0.0])


def breaks(lab: Lab) -> None:
    lab.note("so far, so good")
    {}["Lisbon"]


@pytest.mark.parametrize(
    ("function", "message"),
    [(left_out, "left out claim 'c'"), (unregistered, "never registered a claim 'other'"), (breaks, "KeyError: 'Lisbon'")],
)
def test_a_study_that_breaks_is_one_line_and_a_record_with_its_traceback(subject, function, message):
    with pytest.raises(NulliusError, match=message) as caught:
        run(make(function), subject)
    assert str(caught.value).startswith("study 'made-here' failed on tiny: ")
    assert "\n" not in str(caught.value)
    (data,) = journal.list_runs()
    assert data["state"] == "failed"
    assert message in data["reason"]
    assert data["verdicts"] == []
    (log,) = data["artefacts"]
    assert log["name"] == "log.txt"
    assert "Traceback" in Path(log["path"]).read_text()
    assert artefacts.damaged(data) == []
    if function is breaks:
        assert data["notes"] == ["so far, so good"]


def test_a_subject_that_cannot_be_loaded_leaves_a_failed_run():
    with pytest.raises(SubjectError, match="unknown model 'smolm2-135m'") as caught:
        run(make(good), "smolm2-135m")
    (data,) = journal.list_runs()
    assert (data["state"], data["reason"], data["artefacts"]) == ("failed", str(caught.value), [])
    assert data["subject"] == {"name": "smolm2-135m"}


@pytest.mark.parametrize("how", [{"seed": -1}, {"seed": 2**63}, {"options": {"x": "y"}}, {"options": {"size": "huge"}}])
def test_what_cannot_be_asked_leaves_no_row(subject, how):
    with pytest.raises(UsageError):
        run(make(good, options=(Option("size", ("small", "large"), "of it"),)), subject, **how)
    assert journal.list_runs() == []


def draws(lab: Lab) -> None:
    everywhere = [random.random(), float(np.random.rand()), float(torch.rand(())), lab.rng.random()]  # noqa: NPY002
    lab.finding("c", treated=everywhere, control=everywhere[::-1])


def test_every_generator_is_seeded(subject):
    first = run(make(draws), subject, seed=5)
    torch.rand(7), random.random()
    again = reruns.rerun(first.to_dict(), study=make(draws), subject=subject)
    assert again.same
    assert again.changed == ()
    assert again.differences == {}
    assert again.again["rerun_of"] == first.data["id"]
    other = run(make(draws), subject, seed=6).to_dict()
    comparison = reruns.compare(first.to_dict(), other)
    assert (comparison.same, comparison.changed, comparison.differences) == (False, ("c",), {"seed": (5, 6)})


def test_a_rerun_names_what_differs(subject, toy):
    before = run(tiny_study, subject, threads=1).to_dict()
    after = run(make(good), toy, threads=2).to_dict()
    found = reruns.differences(before, after)
    assert found["threads"] == (1, 2)
    assert found["slug"] == ("tiny-study", "made-here")
    assert found["subject"] == (subject.weights_sha256[:12], toy.weights_sha256[:12])
    assert found["tiny.py"][1] is None
    assert json.loads(dumps(reruns.compare(before, after).to_dict()))["schema"] == "nullius.rerun/1"


def test_a_rerun_names_another_tokenizer_under_the_same_weights(subject):
    before = run(tiny_study, subject).to_dict()
    after = json.loads(json.dumps(before))
    after["environment"]["subject"]["tokenizer"] = "0123456789abcdef"
    assert reruns.differences(before, after) == {"tokenizer": (before["environment"]["subject"]["tokenizer"], "0123456789abcdef")}
    del before["environment"]["subject"]  # a record from before these were kept
    assert reruns.differences(before, after) == {}


def test_only_finished_runs_are_repeated(subject):
    with pytest.raises(NulliusError):
        run(make(left_out), subject)
    with pytest.raises(UsageError, match="is failed: only finished runs can be repeated"):
        reruns.rerun(journal.list_runs()[0])


def test_conditions_hold_during_a_run_and_end_with_it(subject):
    before = torch.get_num_threads()
    seen = []

    def looks(lab: Lab) -> None:
        seen.append((torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()))
        good(lab)

    assert run(make(looks), subject, threads=2).data["environment"]["threads"] == 2
    assert seen == [(2, True)]
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == (before, False)


def test_a_crowded_machine_gets_one_thread(monkeypatch):
    monkeypatch.setattr("os.getloadavg", lambda: (1e6, 0.0, 0.0))
    with environment.conditions(None) as threads:
        assert threads == torch.get_num_threads() == 1


def test_sources_follow_imports_and_data_files():
    from nullius.lab import studies

    files = environment.source_files(studies.get("factual-recall"))
    wanted = {"studies/mechanisms/factual_recall.py", "stimuli/capitals.py", "stimuli/data/capitals.csv", "instruments/heads.py"}
    assert wanted <= files.keys()
    assert not {"stimuli/concepts.py", "training/next_word.py", "lab/drawing.py"} & files.keys()


def test_strict_json_has_no_infinity():
    assert json.loads(dumps({"lo": float("-inf"), "more": [float("nan"), 1.5, "é"]})) == {"lo": None, "more": [None, 1.5, "é"]}


def test_every_key_is_documented(subject):
    page = (Path(__file__).parents[2] / "docs" / "records.md").read_text("utf-8")
    record = run(tiny_study, subject).to_dict()
    parts = [record, record["subject"], record["subject"]["provenance"], record["environment"], record["environment"]["seconds"]]
    parts += [record["verdicts"][0], record["verdicts"][0]["effect"], record["artefacts"][0], reruns.compare(record, record).to_dict()]
    for key in {key for part in parts for key in part}:
        assert f"`{key}`" in page, key
    for table in ("run", "subject", "finding", "verdict", "artefact", "run_event"):
        assert f"`{table}`" in page
