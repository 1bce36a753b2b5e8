"""A small text, and configurations of runs on it that take a second."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nullius.training.config import Config, Data, Evaluate, Model, Optimiser, Save, Schedule, Source, Tokens

ROOT = Path(__file__).parents[2]
TINY = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY |= {"num_key_value_heads": 2, "tie_word_embeddings": True, "attention_dropout": 0.1}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """Two files, text and held out, out of the project's own pages."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "text.txt").write_text((ROOT / "docs" / "verdicts.md").read_text("utf-8"), "utf-8")
    (folder / "other.txt").write_text((ROOT / "CONTRIBUTING.md").read_text("utf-8"), "utf-8")
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch) -> None:
    """Packed data sets of all tests go into one folder of their own."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    folder.mkdir(exist_ok=True)
    monkeypatch.setenv("NULLIUS_CACHE", str(folder))


@pytest.fixture
def tiny(corpus, tmp_path) -> Config:
    """Twelve steps of a Llama with 25 k weights, with dropout, mixing, Muon and a held-out text."""
    return Config(
        out=str(tmp_path / "run"),
        data=Data((Source(str(corpus / "text.txt"), 3.0), Source(str(corpus / "other.txt"))), (Source(str(corpus / "other.txt")),)),
        tokenizer=Tokens(vocabulary=400),
        model=Model(new=dict(TINY)),
        steps=12,
        sequence=32,
        batch=4,
        micro=2,
        optimiser=Optimiser("muon", rate=3e-3),
        schedule=Schedule("constant", warmup=3),
        evaluate=Evaluate(every=6, sequences=4, samples=("A claim",), sample_tokens=3),
        save=Save(every=4),
        log=1,
    )


def losses(out: str | Path) -> list[float]:
    """The loss of every step, as the run's file has them; each step once and in order."""
    records = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text("utf-8").splitlines()]
    steps = [(record["step"], record["loss"]) for record in records if "loss" in record]
    assert [step for step, _ in steps] == list(range(1, len(steps) + 1))
    return [loss for _, loss in steps]
