"""Published checkpoints of gated attention, and Mamba: they load, or say in one line why not."""

import pytest
import torch
from tests.models.decoders import published, tokens
from transformers import AutoConfig, AutoModelForCausalLM

import nullius
from nullius.errors import SubjectError
from nullius.models import architectures


def test_published_checkpoints_load(tokenizer, tmp_path):
    weights = published(tmp_path / "gla", tokenizer, len(tokenizer))
    subject = nullius.load(tmp_path / "gla", "cpu")
    assert subject.hf.config.intermediate_size == 256
    size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": len(tokenizer), "intermediate_size": 256}
    ours = architectures.create({**size, "mixer": "gla", "tie_word_embeddings": False}).eval()
    ours.load_state_dict(weights)
    assert torch.equal(subject.hf(tokens()).logits, ours(tokens()).logits)
    assert len(subject.generate(["a b"], 3)) == 1
    subject.hf.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    again = nullius.load(tmp_path / "again", "cpu")
    assert torch.equal(again.hf(tokens()).logits, ours(tokens()).logits)
    with pytest.raises(SubjectError, match="has no pattern"):
        subject.anatomy.site("pattern", 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_output_gate": False}, "use_output_gate = False is not supported"),
        ({"feature_map": "relu"}, "feature_map = 'relu' is not supported"),
        ({"num_kv_heads": 1}, "fewer key heads"),
        ({"hidden_size": 128}, "its weights have other sizes than its config.json says"),
    ],
)
def test_other_published_variants_are_refused(changes, message, tokenizer, tmp_path):
    published(tmp_path, tokenizer, len(tokenizer), **changes)
    with pytest.raises(SubjectError, match=message) as caught:
        nullius.load(tmp_path, "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_mamba_runs_or_says_why_not(family, tokenizer, tmp_path):
    small = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": len(tokenizer), "state_size": 8}
    small |= {"num_heads": 4, "head_dim": 16, "n_groups": 1} if family == "mamba2" else {}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **small))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(SubjectError, match=f"cannot map {family}: ") as caught:
        nullius.load(tmp_path, "cpu")
    assert "\n" not in str(caught.value)
