"""Dossiers and the results page: made from the journal, of claims as they are worded today."""

import pytest

from nullius.errors import UsageError
from nullius.lab import dossiers, runner, studies


def test_the_results_page_is_made_from_the_journal(toy):
    assert "##  " not in dossiers.results_page()
    study = studies.get("factual-recall")
    record = runner.run(study, toy, seed=3)
    page = dossiers.results_page()
    assert "## factual-recall" in page
    for claim in study.claims:
        assert f"**{claim.id}**" in page
    assert page.count("○ out of reach") == len(study.claims)
    assert record.to_dict()["subject"]["sha256"][:16] in page


def test_a_dossier_lists_what_was_run_and_what_is_missing(toy):
    with pytest.raises(UsageError, match="no verdicts on"):
        dossiers.dossier(toy.name)
    runner.run(studies.get("factual-recall"), toy)
    found = dossiers.dossier(toy.name)
    assert [paper["slug"] for paper in found["questions"]["mechanisms"]] == ["factual-recall"]
    assert found["missing"] == sorted(studies.modules().keys() - {"factual-recall"})
    assert [study.slug for study in dossiers.missing(toy.name, full=False)] == found["missing"]
    assert len(dossiers.missing(toy.name, full=True)) == len(studies.modules())


def test_an_open_interval_is_written_as_one():
    found = {"estimate": 0.5, "lo": None, "hi": None}
    cell = dossiers._cell({"word": "inconclusive", "effect": {**found, "n": 2}, "control": found, "seed": 0})
    assert "[−∞, ∞]" in cell
