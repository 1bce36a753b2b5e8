"""The decoders as users of transformers use them: Auto classes, ways of decoding, Trainer, resizing, older checkpoints, numbers out of range."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file
from tests.models.decoders import VOCABULARY, gap, make, published, tokens
from transformers import AutoModel, AutoModelForCausalLM

import nullius
from nullius.errors import NulliusError, UsageError


@pytest.mark.parametrize(("kind", "name"), [("nullius", "DecoderModel"), ("gla", "GLAModel")])
def test_auto_model_is_the_decoder_without_its_unembedding(kind, name, tokenizer, tmp_path):
    if kind == "gla":
        published(tmp_path, tokenizer, VOCABULARY)
    else:
        make("gla").save_pretrained(tmp_path)
    whole, body = (auto.from_pretrained(tmp_path).eval() for auto in (AutoModelForCausalLM, AutoModel))
    assert type(body).__name__ == name
    assert torch.equal(body(tokens()).last_hidden_state, whole.model(tokens()).last_hidden_state)


@pytest.mark.parametrize(("mixer", "allocation"), [("gla", "uniform"), ("gla", "odd"), ("non-approximate", "even"), ("softmax", "uniform")])
def test_every_way_of_decoding_gives_what_it_gives_without_a_cache(mixer, allocation):
    """Sampled with one seed, by beams, the text read in pieces, beyond the length of training, going on from an earlier cache."""
    model, ids = make(mixer, allocation, short_conv=3), tokens()
    padded, mask = torch.cat((torch.zeros(2, 3).long(), ids), 1), torch.ones(2, 22, dtype=torch.long)
    mask[0, :3], padded[1, :3] = 0, 7
    for how in ({"do_sample": True, "top_k": 20}, {"num_beams": 3, "num_return_sequences": 2}, {"prefill_chunk_size": 7}):
        made = []
        for cache in (True, False):
            torch.manual_seed(5)
            rest = {key: value for key, value in how.items() if cache or key != "prefill_chunk_size"}
            made.append(model.generate(padded, attention_mask=mask, max_new_tokens=5, use_cache=cache, pad_token_id=0, **rest))
        assert torch.equal(*made), how
    long = tokens(1, 90)  # of a model with 64 positions
    first, second = (model.generate(long, max_new_tokens=4, do_sample=False, use_cache=cache, pad_token_id=0) for cache in (True, False))
    assert torch.equal(first, second)
    begun = model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0, return_dict_in_generate=True)
    further = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    gone_on = model.generate(begun.sequences, past_key_values=begun.past_key_values, **further)
    assert torch.equal(gone_on, model.generate(begun.sequences, **further))


def test_a_static_cache_is_refused_where_keys_and_values_are_kept():
    how = {"max_new_tokens": 2, "do_sample": False, "pad_token_id": 0, "cache_implementation": "static"}
    assert make("gla").generate(tokens(), **how).shape == (2, 21)
    with pytest.raises(NulliusError, match="no cache of fixed size"):
        make("gla", "odd").generate(tokens(), **how)


@pytest.mark.parametrize("tied", [True, False])
def test_resized_saved_and_loaded_in_bf16(tied, tmp_path):
    model = make("gla", "odd", tie_word_embeddings=tied)
    model.resize_token_embeddings(80)
    assert model(tokens()).logits.shape[-1] == model.config.vocab_size == 80
    assert (model.lm_head.weight is model.model.embeddings.weight) == tied
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert {parameter.dtype for parameter in again.parameters()} == {torch.bfloat16}
    assert gap(again(tokens()).logits.float(), model(tokens()).logits) < 0.2
    state = again(tokens(), use_cache=True).past_key_values.layers[0].get("state")
    assert state.dtype == torch.float32  # whatever the type of the weights


def test_a_convolution_of_width_one_decodes_step_by_step():
    model, ids = make("gla", short_conv=1), tokens()
    out = model(ids[:, :7], use_cache=True)
    for t in range(7, 19):
        out = model(ids[:, t : t + 1], past_key_values=out.past_key_values)
    assert gap(out.logits[:, -1], model(ids, use_cache=False).logits[:, -1]) < 1e-4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"intermediate_size": 0}, "intermediate_size must be a whole number above 0, got 0"),
        ({"num_linear_heads": 0}, "num_linear_heads must be a whole number above 0"),
        ({"expand_v": 0}, "expand_v must be a number above 0, got 0"),
        ({"gate_temperature": math.nan}, "gate_temperature must be a number above 0, got nan"),
        ({"gate_rank": True}, "gate_rank must be a whole number above 0, got True"),
        ({"short_conv": -1}, "short_conv must be a whole number not below 0"),
        ({"initializer_range": -1}, "initializer_range must be a number not below 0"),
        ({"qk_norm": "maybe"}, "qk_norm must be true or false, got 'maybe'"),
        ({"mixers": "gla"}, "mixers must be a list, got 'gla'"),
        ({"mixer": "fixed", "shadow_tokens": [64] * 64}, "shadow_tokens holds 64, which is no token of a vocabulary of 64"),
        ({"hidden_size": 2048}, r"expand_v · hidden_size / num_linear_heads must be at most 512"),
        ({"mixer": "non-approximate", "hidden_size": 1024}, "must be narrower than 512 channels; got 512"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(change, words):
    with pytest.raises(UsageError, match=words):
        make(**{"mixer": "gla", **change})


def test_the_trainer_of_transformers_trains_and_evaluates(tmp_path):
    from transformers import Trainer, TrainingArguments

    rows = [{"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)} for ids in tokens(16, 12)]
    how = TrainingArguments(
        output_dir=str(tmp_path), max_steps=4, per_device_train_batch_size=4, gradient_accumulation_steps=2, learning_rate=1e-2,
        report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(make("gla", "odd"), how, train_dataset=rows, eval_dataset=rows)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before


@pytest.mark.parametrize("files", [1, 2])
def test_published_checkpoints_from_before_gate_and_up_were_apart(files, tokenizer, tmp_path):
    """They hold [gate; up] under the gate's name, in one file or several."""
    weights = published(tmp_path / "new", tokenizer, len(tokenizer))
    published(tmp_path / "old", tokenizer, len(tokenizer))
    old = {name: value for name, value in weights.items() if "up_proj" not in name}
    for name in [name for name in old if "gate_proj" in name]:
        old[name] = torch.cat((weights[name], weights[name.replace("gate_proj", "up_proj")]))
    (tmp_path / "old" / "model.safetensors").unlink()
    names = sorted(old)
    parts = [names[i::files] for i in range(files)]
    where = {name: f"model-{i + 1:05d}-of-{files:05d}.safetensors" for i, part in enumerate(parts) for name in part}
    for part in parts:
        save_file({name: old[name] for name in part}, tmp_path / "old" / where[part[0]], {"format": "pt"})
    (tmp_path / "old" / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    new, same = (nullius.load(tmp_path / name, "cpu") for name in ("new", "old"))
    assert torch.equal(new.hf(tokens()).logits, same.hf(tokens()).logits)
    bare, half = AutoModel.from_pretrained(tmp_path / "old"), AutoModelForCausalLM.from_pretrained(tmp_path / "old", dtype=torch.bfloat16)
    assert torch.equal(bare.eval()(tokens()).last_hidden_state, new.hf.model(tokens()).last_hidden_state)
    assert half.model.layers[1].mlp.up_proj.weight.dtype == torch.bfloat16
    same.hf.save_pretrained(tmp_path / "again")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "again")(tokens()).logits, new.hf(tokens()).logits)
