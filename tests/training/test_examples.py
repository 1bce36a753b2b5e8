"""The examples can be read, and name models that can be made."""

from pathlib import Path

import pytest

from nullius.training import config as configuration

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_valid(path):
    config = configuration.load(path)
    assert config.steps > 0
    if "size" in config.model.new:
        from nullius.models import architectures

        assert architectures.make_config(config.model.new).vocab_size == 32_000


@pytest.mark.parametrize("name", ["tiny.yaml", "finetune-heads.yaml"])
def test_small_examples_find_their_text(name, monkeypatch):
    from nullius.training import documents

    monkeypatch.chdir(EXAMPLES[0].parents[1])
    path = next(path for path in EXAMPLES if path.name == name)
    for source in configuration.load(path).data.train:
        assert sum(len(piece) for file in documents.files(source) for piece, _, _ in documents.pieces(file, source)) > 1000


def test_the_baseline_differs_in_the_model_alone():
    gla, llama = (configuration.load(path) for path in EXAMPLES if path.name in ("gla-340m.yaml", "llama-340m.yaml"))
    assert configuration.differences(configuration.plain(gla), llama) == ["model.new.size was 'gla-340m', is 'llama-340m'"]
