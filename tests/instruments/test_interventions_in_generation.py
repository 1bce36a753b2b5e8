"""Interventions while the model writes: behind a cached prefix, in beams, with settings of the checkpoint's own, and without a cache."""

import copy

import pytest
import torch
from tests.conftest import make_toy
from transformers import GenerationConfig

from nullius.errors import UsageError
from nullius.instruments import interventions as iv
from nullius.instruments import steering, taps
from nullius.instruments.where import Where

TEXTS = ["The capital of France is", "A claim about it"]
PUSH = torch.randn(32, generator=torch.Generator().manual_seed(0)) * 2


def test_behind_a_cached_prefix_columns_are_those_of_the_whole_prompt(toy):
    """Five tokens lie in the cache; the first pass carries the prompt's other four, the second one a new token. Twice, from the same prefix."""
    ids = torch.cat([toy.encode(TEXTS[:1]).input_ids, torch.tensor([[7]])], 1)
    assert ids.shape == (1, 10)
    with torch.no_grad():
        prefix = toy.hf(input_ids=ids[:, :5], use_cache=True).past_key_values

    def passes(by_hand=()):
        cache = copy.deepcopy(prefix)
        for start, stop in ((5, 9), (9, 10)):
            here = torch.isin(torch.arange(start, stop), torch.tensor(by_hand, dtype=torch.long))[None, :, None]
            with taps.edit(toy, "resid_post", 1, lambda x, here=here: x + PUSH * here):
                yield toy.hf(input_ids=ids[:, start:stop], past_key_values=cache, use_cache=True).logits

    cases = {"new": [9], "prompt": [5, 6, 7, 8], "last": [8, 9], "all": [5, 6, 7, 8, 9], (-1,): [8], (6, -2): [6, 7]}
    with torch.no_grad():
        for positions, columns in cases.items():
            expected = list(passes(columns))
            where = Where("resid_post", 1, positions=positions if isinstance(positions, str) else list(positions))
            with iv.applied(toy, [iv.add(where, PUSH)]):
                for _ in range(2):
                    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(passes(), expected, strict=True)), positions


def test_rows_of_beams_are_rows_of_the_pass(toy):
    """All beams of a text are changed where all of its rows are named; the other text writes what it writes alone."""
    batch = toy.encode(TEXTS)
    settings = GenerationConfig(max_new_tokens=5, num_beams=3, do_sample=False, pad_token_id=toy.pad_id, eos_token_id=None)

    def write(*changes):
        with iv.applied(toy, list(changes)):
            return toy.hf.generate(input_ids=batch.input_ids, attention_mask=batch.attention_mask, generation_config=settings)

    plain, both = write(), write(iv.add(Where("resid_post", 1, positions="last"), PUSH))
    second = write(iv.add(Where("resid_post", 1, positions="last", rows=[3, 4, 5]), PUSH))
    assert not torch.equal(plain[1], both[1])
    assert torch.equal(second, torch.stack([plain[0], both[1]]))


def test_settings_of_the_checkpoint_do_not_decide_what_greedy_means(tokenizer):
    model = make_toy("llama", tokenizer)
    plain = model.generate(TEXTS[:1], 6)
    for name, value in (("repetition_penalty", 5.0), ("no_repeat_ngram_size", 1), ("do_sample", True), ("use_cache", False)):
        setattr(model.hf.generation_config, name, value)
    assert iv.generate(model, TEXTS[:1], [], 6) == steering.write(model, TEXTS[:1], [], steering.Decoding(6)) == plain
    harder = steering.Decoding(6, repetition_penalty=5.0)
    assert steering.write(model, TEXTS[:1], [], harder) != plain


def test_generation_without_a_cache_is_refused(toy):
    """Each of its passes carries the whole text: none would be told from another text, and -1 would be another token in each."""
    batch = toy.encode(TEXTS)
    settings = GenerationConfig(max_new_tokens=3, do_sample=False, use_cache=False, pad_token_id=toy.pad_id)
    before = dict(vars(toy.hf))
    with pytest.raises(UsageError, match="must keep its cache"), iv.applied(toy, [iv.add(Where("resid_post", 1, positions=[-1]), PUSH)]):
        toy.hf.generate(input_ids=batch.input_ids, attention_mask=batch.attention_mask, generation_config=settings)
    assert vars(toy.hf) == before
    toy.hf.generate(input_ids=batch.input_ids, attention_mask=batch.attention_mask, generation_config=settings)
    guessed = GenerationConfig(max_new_tokens=6, do_sample=False, prompt_lookup_num_tokens=2, pad_token_id=toy.pad_id, eos_token_id=None)
    with pytest.raises(UsageError, match="takes one token a pass"), iv.applied(toy, [iv.add(Where("resid_post", 1), PUSH)]):
        toy.hf.generate(input_ids=batch.input_ids[:1], generation_config=guessed)
    assert vars(toy.hf) == before
    with pytest.raises(UsageError, match="at least 1 new tokens"):
        iv.generate(toy, TEXTS, [], 0)


def test_rows_of_one_batch_keep_their_order_whatever_their_length(toy):
    texts = ["A", *TEXTS, "one two three four five six seven"]
    pushes = torch.randn(4, 32, generator=torch.Generator().manual_seed(1)) * 2
    change = iv.add(Where("resid_post", 1, positions="last"), pushes)
    with iv.applied(toy, [change]):
        found, written = toy.last_logits(texts), toy.generate(texts, 3)
    for i, text in enumerate(texts):
        with iv.applied(toy, [iv.add(change.where, pushes[i])]):
            assert torch.allclose(toy.last_logits([text])[0], found[i], atol=1e-4)
            assert toy.generate([text], 3) == [written[i]]


@pytest.mark.parametrize("site", ["resid_mid", "resid_pre", "mlp_post"])
def test_gradients_flow_where_activations_are_checkpointed(tokenizer, site):
    model = make_toy("llama", tokenizer)
    batch, found = model.encode(TEXTS), []
    model.hf.train()
    for checkpointed in (False, True):
        if checkpointed:
            (getattr(model.hf, "activation_checkpointing_enable", None) or model.hf.gradient_checkpointing_enable)()
        nudge = torch.zeros(model.anatomy.site(site, 1).width, device=model.device, requires_grad=True)
        with iv.applied(model, [iv.add(Where(site, 1, positions=[-1]), nudge)]):
            model.logits(batch)[:, 5].sum().backward()
        found.append(nudge.grad)
    assert torch.allclose(*found)
    assert float(found[0].norm()) > 1e-3
