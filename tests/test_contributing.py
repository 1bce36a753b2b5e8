"""The worked example of CONTRIBUTING.md is a whole study: it goes through, verdict, figure, record and all."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from nullius.lab import runner, studies
from nullius.lab.studies import Study

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"


@pytest.fixture
def example(tmp_path, monkeypatch) -> Study:
    code = re.search(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    assert code
    path = tmp_path / "word_repetition.py"
    path.write_text(code[1], "utf-8")
    spec = importlib.util.spec_from_file_location("word_repetition", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "word_repetition", module)
    spec.loader.exec_module(module)
    return module.word_repetition


def test_the_worked_example_ends_in_a_verdict(example, toy):
    record = runner.run(example, toy, seed=1)
    (verdict,) = record.verdicts
    assert verdict.word in ("holds", "fails", "inconclusive")
    assert verdict.effect.n == 10
    data = record.to_dict()
    assert data["state"] == "done"
    assert data["tokens"] > 0
    assert {"samples.parquet", "figure.svg", "figure.html", "figure.json", "environment.json"} == {a["name"] for a in data["artefacts"]}
    for artefact in data["artefacts"]:
        assert Path(artefact["path"]).stat().st_size == artefact["bytes"]


def test_its_test_passes(example, toy, monkeypatch):
    """The page's second block is a test of the first; what it looks up by name is found by file in a checkout, and put there here."""
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)[1]
    monkeypatch.setattr(studies, "get", lambda slug: {"word-repetition": example}[slug])
    names: dict[str, object] = {}
    exec(code, names)
    names["test_through_on_a_toy"](toy)


def test_the_same_seed_gives_the_same_numbers(example, toy):
    first, second, other = (runner.run(example, toy, seed=seed).to_dict() for seed in (1, 1, 2))
    assert first["environment"]["samples"] == second["environment"]["samples"] != other["environment"]["samples"]
