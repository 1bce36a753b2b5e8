"""Interventions where a prompt is read in chunks (`prefill_chunk_size`): positions are those of the whole prompt, as without chunks."""

import pytest
import torch
from tests.conftest import make_toy
from transformers import DynamicCache, GenerationConfig

from nullius.errors import UsageError
from nullius.instruments import interventions as iv
from nullius.instruments import steering, taps
from nullius.instruments.where import Where

TEXTS = ["The capital of France is", "A claim about it"]
PUSH = torch.randn(32, generator=torch.Generator().manual_seed(0)) * 2
CHUNKS = (1, 4, 5, 100)  # of nine columns


def write(model, changes, chunk=None, **settings):
    """What is written behind both texts [2, tokens], and the logits of each new token [new, 2, V]."""
    batch = model.encode(TEXTS)
    config = GenerationConfig(
        **{"max_new_tokens": 5, "do_sample": False, "pad_token_id": model.pad_id, "eos_token_id": None, **settings},
        prefill_chunk_size=chunk, return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    with iv.applied(model, list(changes)):
        found = model.hf.generate(input_ids=batch.input_ids, attention_mask=batch.attention_mask, generation_config=config)
    return found.sequences, torch.stack(found.logits)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("positions", ["all", "last", "prompt", "new", (-1,), (-4,), (6, -1), ((5,), (-2,))])
def test_what_is_written_is_what_is_written_without_chunks(toys, family, positions):
    model = toys[family]
    assert model.encode(TEXTS).input_ids.shape[1] == 9
    where = Where(
        "resid_post", 1, positions=positions if isinstance(positions, str) else [list(p) if isinstance(p, tuple) else p for p in positions]
    )
    changes = [iv.add(where, PUSH)]
    (_, plain), (tokens, logits) = write(model, []), write(model, changes)
    assert not torch.allclose(plain, logits, atol=1e-2)
    for chunk in CHUNKS:
        found, scores = write(model, changes, chunk)
        assert torch.equal(found, tokens), chunk
        assert torch.allclose(scores, logits, atol=1e-4), chunk


def test_an_edit_of_one_column_is_made_once_and_there(toy):
    """Of nine columns in chunks of four the sixth lies in the second one: it alone is changed."""
    at = {}

    def seen(x):
        at.setdefault("states", []).append(x.detach().clone())
        return x

    for chunk in (None, 4):
        for changes in ([], [iv.set_to(Where("resid_post", 1, positions=[5]), 7.0)]):
            at.clear()
            with iv.applied(toy, changes), taps.edit(toy, "resid_post", 1, seen):
                write(toy, [], chunk)
            states = torch.cat(at["states"], 1)
            assert states.shape[1] == 9 + 4
            assert [column for column in range(9) if bool((states[:, column] == 7.0).all())] == ([5] if changes else [])
            assert [x.shape[1] for x in at["states"]][:3] == ([9, 1, 1] if chunk is None else [4, 4, 1])


@pytest.mark.parametrize("chunk", CHUNKS)
def test_steering_at_each_new_token_and_values_for_each_position(toy, chunk):
    steered = steering.steer({1: PUSH}, 0.5)
    source = taps.read(toy, ["Every control must come out null", "it"], ["z"], positions="all")["z"][1]
    wide = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(1)) * 2
    for changes in (
        steered,
        [iv.add(Where("resid_pre", 1, positions=[-1, -3, -4]), wide)],  # a value for each row and position
        [iv.interchange(Where("z", 1, heads=[2], positions=[-1, -3]), source, from_positions=[1, 2])],
        [iv.set_to(Where("logits", units=[5, 7], positions="last"), 40.0)],
        [iv.scale(Where("pattern", 1, units=[6], positions=[-2, -1]), 0.0)],
    ):
        tokens, logits = write(toy, changes)
        found, scores = write(toy, changes, chunk)
        assert torch.equal(found, tokens)
        assert torch.allclose(scores, logits, atol=1e-4)


def test_beams_and_another_text_afterwards(toy):
    change = [iv.add(Where("resid_post", 1, positions=[6, -2]), PUSH)]
    assert torch.equal(write(toy, change, 4, num_beams=2)[0], write(toy, change, num_beams=2)[0])
    with iv.applied(toy, change):
        expected = toy.last_logits(TEXTS)
        write(toy, [], 4)
        assert torch.equal(toy.last_logits(TEXTS), expected)  # the clock has gone back to counting passes


def test_behind_a_cached_beginning(toy):
    """Three tokens lie in the cache; the sixth and the last but one are changed behind them."""
    ids = toy.encode(TEXTS[:1]).input_ids

    def write_on(changes, chunk):
        cache = DynamicCache(config=toy.hf.config)
        config = GenerationConfig(max_new_tokens=4, do_sample=False, pad_token_id=toy.pad_id, eos_token_id=None, prefill_chunk_size=chunk)
        with torch.no_grad():
            toy.hf(input_ids=ids[:, :3], past_key_values=cache, use_cache=True)
        with iv.applied(toy, changes):
            return toy.hf.generate(input_ids=ids, past_key_values=cache, generation_config=config)

    plain, change = write_on([], None), [iv.add(Where("resid_post", 1, positions=[6, -2]), PUSH)]
    if not torch.equal(write_on([], 2), plain):
        pytest.skip("this transformers reads a cached beginning again where it reads in chunks")  # 5.17 does
    assert not torch.equal(write_on(change, None), plain)
    assert torch.equal(write_on(change, 2), write_on(change, None))


def test_what_cannot_be_is_one_line_and_leaves_nothing_behind(tokenizer):
    model = make_toy("llama", tokenizer)
    before = dict(vars(model.hf))
    with pytest.raises(UsageError, match="position 9 does not exist: the batch has columns 0 to 8"):
        write(model, [iv.add(Where("resid_post", 1, positions=[9]), PUSH)], 4)
    with pytest.raises(UsageError, match="column 0 at resid_post of layer 1 is padding in row 1"):
        write(model, [iv.add(Where("resid_post", 1, positions=[0]), PUSH)], 4)
    with pytest.raises(UsageError, match="key 6 at pattern of layer 1 is not there yet where a prompt is read in chunks"):
        write(model, [iv.scale(Where("pattern", 1, units=[6]), 0.0)], 4)
    with pytest.raises(UsageError, match="unit 20 does not exist"):
        write(model, [iv.scale(Where("pattern", 1, units=[20]), 0.0)], 4)
    assert vars(model.hf) == before
