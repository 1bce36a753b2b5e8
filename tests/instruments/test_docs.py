"""The page of the instruments: every example on it runs, in the order of the page."""

import re
from pathlib import Path

import pytest
import torch
from tests.conftest import FAMILIES
from tokenizers import AddedToken
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import nullius
from nullius.models.language_model import LanguageModel

PAGE = Path(__file__).parents[2] / "docs" / "instruments.md"
WORDS = (" Paris", " Rome", " Madrid", " Berlin", " France", " Italy", " Spain", " Germany")


@pytest.fixture
def model(tokenizer):
    """A toy for which the words of the page are one token each."""
    own = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    own.add_tokens([AddedToken(word, normalized=False) for word in WORDS])
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **{**FAMILIES["llama"], "vocab_size": 2100}))
    return LanguageModel.wrap(hf, own, "smollm2-135m")


def test_every_example_runs(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nullius, "load", lambda _name: model, raising=False)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(blocks) >= 10
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)
    assert "belong among the best 4" in capsys.readouterr().out
    assert (tmp_path / "activations" / "index.json").exists()
