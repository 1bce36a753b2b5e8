"""Toys: tiny random models of every family with a real tokenizer, so that tests need no download."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from nullius.models.language_model import LanguageModel
from tests import devices
from tests.databases import ON_POSTGRES, journal_database, journal_on_postgres, only_sqlite, own_database, postgres

__all__ = ["journal_database", "journal_on_postgres", "only_sqlite", "postgres"]
SMALL = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3, "vocab_size": 2000, "max_position_embeddings": 1024}
GROUPED = {**SMALL, "intermediate_size": 64, "num_key_value_heads": 2}
FAMILIES = {
    "llama": GROUPED,
    "gemma": {**GROUPED, "head_dim": 8},
    "gemma2": {**GROUPED, "head_dim": 8, "sliding_window": 256},
    "gemma3_text": {**GROUPED, "head_dim": 8, "sliding_window": 256},
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 8},
    "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 3, "vocab_size": 2000, "n_positions": 1024},
    "gpt_neox": {**SMALL, "intermediate_size": 64},
    "olmo": {**GROUPED},
    "olmo2": {**GROUPED},
    "phi3": {**GROUPED, "pad_token_id": 0},
}


if devices.DEVICE != "cpu":
    devices.wrap_there()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 2 000 entries, trained on the project's own text: any string round-trips."""
    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    root = Path(__file__).parents[1]
    texts = [path.read_text("utf-8") for path in [*sorted(root.glob("src/nullius/stimuli/data/*.csv")), root / "CONTRIBUTING.md"]]
    tokens.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


def make_toy(family: str, tokenizer: PreTrainedTokenizerFast) -> LanguageModel:
    """A random model of a family; weights larger than usual, so that heads and neurons matter."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **FAMILIES[family])
    hf = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if parameter.ndim == 2 and "embed" not in name and "wte" not in name:
                parameter.mul_(6)
    return LanguageModel.wrap(hf, tokenizer, f"toy-{family}")


@pytest.fixture(scope="session")
def toys(tokenizer: PreTrainedTokenizerFast) -> dict[str, LanguageModel]:
    """One tiny random model per family."""
    return {family: make_toy(family, tokenizer) for family in FAMILIES}


@pytest.fixture(scope="session")
def toy(toys: dict[str, LanguageModel]) -> LanguageModel:
    """A tiny random Llama."""
    return toys["llama"]


@pytest.fixture(autouse=True)
def kernels_of_the_cpu(request: pytest.FixtureRequest) -> None:
    """What is about the CPU's kernels is left out on a GPU."""
    if devices.DEVICE != "cpu" and request.node.get_closest_marker("cpu"):
        pytest.skip("about kernels of the CPU")


@pytest.fixture(autouse=True)
def own_data_folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Runs of a test go into a folder of their own, and those on PostgreSQL into a database of their own."""
    monkeypatch.setenv("NULLIUS_DATA", str(tmp_path_factory.mktemp("data")))
    if ON_POSTGRES and request.path.parent.name in ("cli", "lab", "studies"):  # the feed's and the web's choose their own
        with own_database(request.getfixturevalue("journal_on_postgres"), "TEMPLATE journal", monkeypatch):
            yield
    else:
        yield
