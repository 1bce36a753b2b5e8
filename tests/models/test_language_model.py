"""A subject: what it feeds the model, and what it counts."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conftest import make_toy
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from nullius.errors import SubjectError
from nullius.models.language_model import LanguageModel, untrained

TEXTS = ["A claim", "Every control must come out null and could fail to", "The capital of France is"]


def words(bos=False):
    """A tokenizer of whole words; with bos, it puts <s> before every text by itself (as Llama and Gemma do)."""
    tokens = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2, "a": 3, "b": 4}, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos:
        tokens.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokens, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_texts_are_padded_on_the_left_and_positions_start_at_the_first_token(toy):
    model = LanguageModel.wrap(toy.hf, words())
    batch = model.encode(["a b a", "b"])
    assert batch.input_ids.tolist() == [[0, 3, 4, 3], [1, 1, 0, 4]]  # padded with the end of text, begun with its beginning
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3], [0, 0, 0, 1]]
    assert model.encode(["a b a", "b"], bos=False).input_ids.tolist() == [[3, 4, 3], [1, 1, 4]]


def test_beginning_of_text(toy):
    """The document separator where there is one, else the tokenizer's own; never two of them."""
    assert toy.bos_id == toy.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    own = LanguageModel.wrap(toy.hf, words(bos=True))
    assert own.encode(["a b"]).input_ids.tolist() == [[0, 3, 4]]
    assert own.encode(["<s> a b"]).input_ids.tolist() == [[0, 3, 4]]
    assert own.encode(["a b"], bos=False).input_ids.tolist() == [[3, 4]]
    assert LanguageModel.wrap(toy.hf, words()).bos_id == 0


def test_empty_texts_are_refused(toy):
    for texts in ([], ["a", ""]):
        with pytest.raises(SubjectError, match="without tokens"):
            toy.encode(texts, bos=False)
    assert toy.encode([""]).input_ids.tolist() == [[toy.bos_id]]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(min_size=1, max_size=20))
def test_any_text_is_kept(toy, text):
    assert toy.tokenizer.decode(toy.tokens(text)) == text
    assert toy.first_token(text) in range(2000)


def test_first_token_of_a_continuation(toy):
    assert toy.first_token(" Paris") == toy.tokens("The capital is Paris")[len(toy.tokens("The capital is"))]
    with pytest.raises(SubjectError, match="has no token"):
        toy.first_token("")


def test_last_logits_keep_their_order_and_their_texts(toy):
    together = toy.last_logits(TEXTS * 2, batch_size=2)
    alone = torch.cat([toy.last_logits([text]) for text in TEXTS])
    assert torch.allclose(together, torch.cat([alone, alone]), atol=1e-5)


def test_logits_last_are_the_last_of_all(toys):
    for model in toys.values():
        batch = model.encode(TEXTS)
        with torch.no_grad():
            assert torch.allclose(model.logits(batch), model.logits(batch, "all")[:, -1], atol=1e-5)


def test_hidden_makes_no_logits(toy):
    calls = []
    handle = toy.anatomy.unembed.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        hidden = toy.hidden(toy.encode(TEXTS))
        assert calls == []
        logits = toy.logits(toy.encode(TEXTS), "all")
    handle.remove()
    assert calls == [1]
    assert torch.allclose(hidden @ toy.anatomy.unembedding().T, logits, atol=1e-5)


def test_tokens_are_counted_by_each_model_for_itself(toy):
    model = LanguageModel.wrap(copy.deepcopy(toy.hf), toy.tokenizer)
    before = toy.tokens_seen
    batch = model.encode(TEXTS)
    with torch.no_grad():
        model.hidden(batch)
        model.logits(batch)
    assert model.tokens_seen == 2 * batch.input_ids.numel()
    assert toy.tokens_seen == before
    model.tokens_seen = 0
    model.generate(["a"], 3)
    assert model.tokens_seen >= len(model.tokens("a")) + 1


def test_greedy_whatever_the_model_asks_for(tokenizer):
    """Instruct models bring a generation config that samples and punishes repetition."""
    model = make_toy("llama", tokenizer)
    config = model.hf.generation_config
    config.do_sample, config.repetition_penalty, config.temperature, config.top_k, config.no_repeat_ngram_size = True, 5.0, 2.0, 3, 1
    ids = [model.bos_id, *model.tokens(TEXTS[0])]
    start = len(ids)
    with torch.no_grad():
        for _ in range(8):
            ids.append(int(model.hf(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
    assert model.generate(TEXTS, 8)[0] == tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_untrained_is_the_same_architecture_and_knows_nothing_of_the_weights(toys):
    for model in toys.values():
        blank = untrained(model, seed=1)
        assert blank.parameters == model.parameters
        assert blank.weights_sha256 == untrained(model, seed=1).weights_sha256
        assert blank.weights_sha256 not in (model.weights_sha256, untrained(model, seed=2).weights_sha256)
        assert blank.dtype == model.dtype
        assert blank.name.endswith("(untrained)")


def test_untrained_leaves_the_random_state_alone(toy):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    untrained(toy, seed=1)
    assert torch.equal(torch.rand(1), expected)


def test_the_hash_of_a_wrapped_model_is_that_of_its_weights(toy):
    same = LanguageModel.wrap(copy.deepcopy(toy.hf), toy.tokenizer)
    assert same.weights_sha256 == toy.weights_sha256
    with torch.no_grad():
        same.hf.model.norm.weight[0] += 1e-6
    assert LanguageModel.wrap(same.hf, toy.tokenizer).weights_sha256 != toy.weights_sha256
