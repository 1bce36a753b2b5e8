"""Calibration: the contract of a case, exact intervals, what is stored and how it is said, and when it is too old."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import beta
from typer.testing import CliRunner

from nullius.cli import main
from nullius.errors import StudyError, UsageError
from nullius.lab import calibration
from nullius.lab.calibration import Trial

PERFECT, BLIND, NERVOUS = Trial(2, 2, 0, 10), Trial(0, 2, 0, 10), Trial(2, 2, 5, 10)


def make(trial, seeds=5, instrument="thermometer", by_nature="", name="fever"):
    return calibration.Case(instrument, name, "fever", "no fever", ("taps",), seeds, by_nature, lambda seed: trial)


@pytest.fixture
def only(monkeypatch):
    """Replace all registered cases."""

    def put(*cases):
        monkeypatch.setattr(calibration, "_load", lambda: None)
        monkeypatch.setattr(calibration, "_CASES", {(one.instrument, one.name): one for one in cases})

    return put


def test_intervals_of_independent_things_are_those_of_clopper_and_pearson():
    found = calibration.rates([Trial(1, 1, 0, 1)] * 48 + [Trial(0, 1, 1, 1)] * 2)
    assert found["recovered"] == {"found": 48, "of": 50, "trials": 50, "lo": found["recovered"]["lo"], "hi": found["recovered"]["hi"]}
    assert found["recovered"]["lo"] == pytest.approx(beta.ppf(0.025, 48, 3))
    assert found["recovered"]["hi"] == pytest.approx(beta.ppf(0.975, 49, 2))
    assert found["alarms"]["lo"] == pytest.approx(beta.ppf(0.025, 2, 49))
    assert calibration.rates([Trial(0, 0, 0, 3)] * 4)["recovered"] is None


def test_things_of_one_seed_are_not_independent():
    """360 null things in 20 draws say no more than 20, for all one knows."""
    together = calibration.rates([Trial(0, 0, 9, 18), *[Trial(0, 0, 0, 18)] * 19])["alarms"]
    apart = calibration.rates([*[Trial(0, 0, 1, 18)] * 9, *[Trial(0, 0, 0, 18)] * 11])["alarms"]
    assert together["found"] == apart["found"] == 9
    assert together["hi"] == apart["hi"] > 0.15  # what a seed's things share cannot be read off so few
    none = calibration.rates([Trial(0, 0, 0, 18)] * 20)["alarms"]
    assert (none["lo"], none["of"]) == (0, 360)
    assert none["hi"] == pytest.approx(beta.ppf(0.975, 1, 20))
    assert calibration.rates([Trial(3, 3, 0, 0)])["recovered"]["lo"] == pytest.approx(0.025)  # one draw tells little of the next


@pytest.mark.parametrize(("rate", "alike"), [(0.05, 0.0), (0.05, 0.7), (0.05, 1.0), (0.3, 0.7)])
def test_intervals_over_seeds_cover_the_rate(rate, alike):
    """In a share `alike` of seeds all ten things come out as one does."""
    rng, misses = np.random.default_rng(0), 0
    for _ in range(200):
        alone, single = rng.random((20, 10)) < rate, rng.random((20, 1)) < rate
        counts = np.where(rng.random((20, 1)) < alike, single, alone).sum(1)
        found = calibration.rates([Trial(0, 0, int(count), 10) for count in counts])["alarms"]
        misses += not found["lo"] <= rate <= found["hi"]
    assert misses <= 10


@pytest.mark.parametrize(("trial", "state"), [(PERFECT, "ok"), (BLIND, "falls short"), (NERVOUS, "falls short")])
def test_goals_are_asked_of_both_rates(trial, state):
    row = calibration.row([calibration.run_case(make(trial))])
    assert row["state"] == state
    assert row["recovered"]["of"] == 10
    assert row["alarms"]["of"] == 50


def test_seeds_differ_and_add_up():
    one = calibration.Case("x", "y", "p", "n", ("taps",), 4, "", lambda seed: Trial(seed % 2, 1, 0, 1))
    assert calibration.run_case(one).total == Trial(2, 4, 0, 4)


def test_what_fails_by_nature_stands_beside_the_rates():
    row = calibration.row([calibration.run_case(make(PERFECT)), calibration.run_case(make(BLIND, by_nature="it is asleep", name="asleep"))])
    assert row["state"] == "ok"
    assert row["recovered"]["found"] == 10
    assert row["by_nature"][0]["by_nature"] == "it is asleep"
    assert row["by_nature"][0]["recovered"]["found"] == 0


def test_impossible_trials_and_unknown_modules_are_refused():
    with pytest.raises(StudyError, match="3 of 2"):
        Trial(3, 2, 0, 1)
    with pytest.raises(StudyError, match="no_such_thing"):
        calibration.case("x", planted="a", null="b", modules=["no_such_thing"])(lambda seed: PERFECT)
    with pytest.raises(UsageError, match="nearest: taps"):
        calibration.cases(["tapz"])


def test_a_stored_calibration_is_said_and_ages_with_the_code(only, monkeypatch):
    only(make(Trial(1, 1, 0, 4), seeds=48))
    assert calibration.latest() == {}
    assert "never calibrated" in calibration.lines_of([{"rests_on": ["thermometer"]}])["thermometer"]
    calibration.calibrate()
    said = calibration.lines_of([{"rests_on": ["thermometer"]}, {}])["thermometer"]
    assert said == "thermometer: recovers 48/48 planted, 0/192 false alarms (calibrated just now)"
    monkeypatch.setattr(calibration, "code_digest", lambda modules: "changed")
    stale = calibration.latest()["thermometer"]
    assert stale["state"] == calibration.STALE
    assert "older than the instrument's code" in calibration.line("thermometer", stale)


def test_the_newest_calibration_counts(only):
    only(make(BLIND))
    calibration.calibrate()
    only(make(PERFECT))
    calibration.calibrate()
    assert calibration.latest()["thermometer"]["state"] == "ok"


def test_the_code_of_what_an_instrument_is_built_on_counts(monkeypatch, tmp_path):
    for name, text in {
        "top": "from nullius.instruments.middle import x\n",
        "middle": "from nullius.instruments import (\n    low,\n)\n",
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "low.py").write_text("x = 1\n")
    monkeypatch.setattr(calibration, "INSTRUMENTS", tmp_path)
    before, middle = calibration.code_digest(["top"]), calibration.code_digest(["middle"])
    (tmp_path / "low.py").write_text("x = 2\n")
    assert calibration.code_digest(["top"]) != before
    (tmp_path / "top.py").write_text("from nullius.instruments.middle import y\n")
    (tmp_path / "low.py").write_text("x = 1\n")
    assert calibration.code_digest(["middle"]) == middle


def test_code_of_other_rooms_counts_where_a_case_names_it():
    assert "training.parts" in calibration._imports("from nullius.training.parts import Parts\n")
    assert set(calibration._imports("from nullius.training import lora as adapters, parts\n")) == {"training.lora", "training.parts"}
    assert calibration.code_digest(["training.parts"]) != calibration.code_digest(["training.lora"])
    with pytest.raises(StudyError, match=r"training\.none"):
        calibration.case("x", planted="a", null="b", modules=["training.none"])(lambda seed: PERFECT)


def test_ago():
    now = datetime(2026, 5, 4, 12, tzinfo=UTC)
    ages = [(timedelta(seconds=3), "just now"), (timedelta(minutes=1), "1 minute ago"), (timedelta(hours=5), "5 hours ago")]
    for back, said in [*ages, (timedelta(days=3, hours=2), "3 days ago")]:
        assert calibration.ago((now - back).isoformat(), now) == said


def test_the_command_prints_rates_and_exits_3_where_one_falls_short(only):
    only(make(PERFECT), make(BLIND, instrument="sundial"), make(BLIND, by_nature="it is asleep", name="asleep"))
    done = CliRunner().invoke(main.app, ["calibrate"])
    assert done.exit_code == 3
    assert "10/10 [0.48, 1.00]" in done.stdout  # five draws
    assert "over draws" in done.stdout
    assert "falls short" in done.stdout
    assert "it is asleep" in done.stdout
    assert CliRunner().invoke(main.app, ["calibrate", "thermometer", "--json"]).exit_code == 0


def test_every_case_of_the_project_says_what_it_plants():
    found = calibration.cases()
    assert {"patching", "probes", "head scaling", "distributed alignment search", "taps"} <= {one.instrument for one in found}
    assert all(one.planted and one.null and one.seeds >= 1 for one in found)


def test_every_module_of_the_instruments_has_a_case_or_a_reason_why_not():
    named = {module for one in calibration.cases() for module in one.modules}
    page = (Path(__file__).parents[2] / "docs" / "calibration.md").read_text("utf-8")
    reasons = page.split("## What has no line")[1].split("\n## ")[0]
    without = {path.stem for path in calibration.INSTRUMENTS.glob("*.py") if path.stem != "__init__"} - named
    assert without == set(re.findall(r"`(\w+)`", reasons))


@pytest.mark.parametrize(
    "name",
    [
        "heads_of_induction",
        "copying_head_off",
        "copying_head_writes",
        "used_directions",
        "written_entries",
        "planted_classes",
        "terms_of_a_mixture",
        "broken_head_mended",
        "capital_in_the_lens",
        "neuron_that_scales",
        "groups_of_words",
        "agreement_of_signs",
        "looks_of_heads",
        "chosen_inside",
        "selectivity",
        "steered",
        "words_before",
        "graph_of_the_chain",
        "slopes_between_clusters",
        "half_a_step",
        "chosen_among_six",
        "tones_of_nouns",
        "readers_made_up",
        "acquired_concepts",
        "ablated_heads",
        "neurons_and_subspaces",
        "principal_component",
        "sets_that_decide",
        "neuron_of_a_sum",
    ],
)
def test_one_seed_of_a_case_recovers_what_is_planted(name):
    """The whole is `nullius calibrate`; one seed shows that a case still runs and finds."""
    one = next(case for case in calibration.cases() if case.name == name)
    trial = one.run(0)
    assert trial.found == trial.planted
    assert trial.alarms <= 0.15 * trial.nulls


@pytest.mark.parametrize("name", ["saturated_attention", "head_that_others_read"])
def test_what_must_fail_by_nature_does(name):
    one = next(case for case in calibration.cases() if case.name == name)
    trial = one.run(0)
    assert one.by_nature
    assert trial.found < trial.planted
