"""Decoders of our own as a whole: chunks, padding, packing, saving, compiling, names and configurations, anatomy."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.decoders import CASES, PLAIN, gap, make, tokens
from transformers import AutoConfig, AutoModelForCausalLM

import nullius
from nullius.errors import NulliusError, SubjectError, UsageError
from nullius.instruments import taps
from nullius.models import architectures
from nullius.models.language_model import LanguageModel

# --- the decoder as a whole ---


@pytest.mark.parametrize(("mixer", "allocation"), CASES)
def test_step_by_step_padded_packed_and_generated(mixer, allocation):
    model, ids = make(mixer, allocation, short_conv=3), tokens()
    full = model(ids, use_cache=False).logits
    out = model(ids[:, :7], use_cache=True)
    parts = [out.logits]
    for t in range(7, 19):
        out = model(ids[:, t : t + 1], past_key_values=out.past_key_values, use_cache=True)
        parts.append(out.logits)
    assert gap(torch.cat(parts, 1), full) < 1e-4
    mask = torch.ones(2, 24, dtype=torch.long)
    mask[0, :5], mask[1, :2] = 0, 0
    padded = torch.zeros(2, 24, dtype=torch.long)
    padded[0, 5:], padded[1, 2:] = ids[0], torch.cat((ids[1], ids[1, :3]))
    logits = model(padded, attention_mask=mask, use_cache=False).logits
    assert gap(logits[0, 5:], full[0]) < 1e-4
    assert gap(logits[1, 2:21], full[1]) < 1e-4
    packed = model(ids[:1], cu_seqlens=torch.tensor([0, 8, 19]), use_cache=False).logits
    assert gap(packed, torch.cat((model(ids[:1, :8]).logits, model(ids[:1, 8:]).logits), 1)) < 1e-4
    made = model.generate(padded, attention_mask=mask, max_new_tokens=5, do_sample=False, pad_token_id=0)[:, 24:]
    grown = ids[:1]
    for _ in range(5):
        grown = torch.cat((grown, model(grown, use_cache=False).logits[:, -1:].argmax(-1)), 1)
    assert torch.equal(made[0], grown[0, 19:])
    assert model.generate(ids, max_new_tokens=3, num_beams=2, do_sample=False, pad_token_id=0).shape == (2, 22)


@pytest.mark.parametrize(
    ("mixer", "allocation"), [("gla", "uniform"), ("gla", "odd"), ("non-approximate", "even"), ("random", "odd"), ("fixed", "uniform")]
)
def test_saved_and_loaded(mixer, allocation, tokenizer, tmp_path):
    torch.manual_seed(0)
    vocabulary = len(tokenizer)
    model = architectures.create({**PLAIN, "mixer": mixer, "allocation": allocation, "vocab_size": vocabulary}).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    subject = nullius.load(tmp_path, "cpu")
    assert type(subject.hf) is type(model)
    assert subject.hf.config.mixers == model.config.mixers
    assert torch.equal(subject.hf(tokens()).logits, model(tokens()).logits)
    assert len(subject.generate(["a b"], 3)) == 1


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    mixer=st.sampled_from(["gla", "non-approximate", "random"]),
    seed=st.integers(0, 99),
)
def test_packed_and_padded_rows_come_out_as_alone(lengths, mixer, seed):
    """For any lengths: packed into one row, or padded on either side to one width, each text has the logits that it has alone."""
    model, ids = make(mixer, "odd"), tokens(1, sum(lengths), seed)[0]
    texts = ids.split(lengths)
    alone = [model(text[None], use_cache=False).logits[0] for text in texts]
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    assert gap(model(ids[None], cu_seqlens=offsets, use_cache=False).logits[0], torch.cat(alone)) < 1e-4
    width = max(lengths) + 1
    for left in (True, False):
        places = [slice(width - n, width) if left else slice(0, n) for n in lengths]
        batch, mask = torch.zeros(len(texts), width, dtype=torch.long), torch.zeros(len(texts), width, dtype=torch.long)
        for row, (place, text) in enumerate(zip(places, texts, strict=True)):
            batch[row, place], mask[row, place] = text, 1
        logits = model(batch, attention_mask=mask, use_cache=False).logits
        assert gap(torch.cat([logits[row, place] for row, place in enumerate(places)]), torch.cat(alone)) < 1e-4


def test_gradients_with_and_without_checkpointing():
    for mixer in ("gla", "random"):
        found = []
        for checkpointing in (False, True):
            model = make(mixer, "odd").train()
            if checkpointing:
                model.activation_checkpointing_enable() if hasattr(
                    model, "activation_checkpointing_enable"
                ) else model.gradient_checkpointing_enable()
            model(tokens(), labels=tokens()).loss.backward()
            found.append([p.grad for p in model.parameters()])
        assert all(a is not None and torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))


def test_loss_is_that_of_the_next_token():
    model, ids = make("gla"), tokens()
    assert float(model(ids, labels=ids).loss) == pytest.approx(
        float(F.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())), rel=1e-5
    )


def test_tied_and_untied():
    model = make()
    assert model.lm_head.weight is model.model.embeddings.weight
    model = make(tie_word_embeddings=False)
    assert model.lm_head.weight is not model.model.embeddings.weight


def test_chunks_equal_recurrence_over_long_texts():
    """Longer than one chunk in one pass (chunks), and token by token (recurrence)."""
    model = make("gla", gate_temperature=0.5)
    ids = tokens(1, 150)
    out, parts = model(ids[:, :1], use_cache=True), []
    parts.append(out.logits)
    for t in range(1, 150):
        out = model(ids[:, t : t + 1], past_key_values=out.past_key_values)
        parts.append(out.logits)
    assert gap(torch.cat(parts, 1), model(ids, use_cache=False).logits) < 1e-3


def test_patterns_where_there_are_any():
    model = make("approximate", "odd")
    model.set_attn_implementation("eager")
    out = model(tokens(), output_attentions=True, output_hidden_states=True)
    assert [p.shape for p in out.attentions] == [(2, 2, 19, 19)] * 3
    assert all(torch.allclose(p.sum(-1), torch.ones(2, 2, 19), atol=1e-5) for p in out.attentions)
    assert len(out.hidden_states) == 4
    model.set_attn_implementation("sdpa")
    assert gap(out.logits, model(tokens()).logits) < 1e-5
    model = make("gla", "even")
    model.set_attn_implementation("eager")
    assert [p is None for p in model(tokens(), output_attentions=True).attentions] == [False, True, False]


def test_skipped_layers_leave_the_others():
    model = make("mlp", "odd")
    whole = model(tokens()).logits
    with architectures.skipping(model, [0, 2]):
        some = model(tokens(), use_cache=False).logits
        with pytest.raises(NulliusError, match="step by step"):
            model(tokens(), use_cache=True)
    alone = make("softmax", num_hidden_layers=1)
    alone.model.layers[0] = model.model.layers[1]
    alone.model.embeddings, alone.model.norm, alone.lm_head = model.model.embeddings, model.model.norm, model.lm_head
    assert gap(some, alone(tokens(), use_cache=False).logits) < 1e-6
    assert torch.equal(model(tokens()).logits, whole)
    with pytest.raises(UsageError, match="layer 3 does not exist"), architectures.skipping(model, [3]):
        pass


# --- names, configurations, errors ---


def test_allocations():
    named = {pattern: architectures.allocate(pattern, 24) for pattern in architectures.ALLOCATIONS}
    assert {pattern: len(layers) for pattern, layers in named.items()} == {
        "uniform": 24, "odd": 12, "even": 12, "top": 12, "middle": 12, "bottom": 12, "fourth": 6, "first": 1, "last": 1, "ends": 2
    }  # fmt: skip
    assert named["odd"][:2] == [0, 2]
    assert named["fourth"] == [3, 7, 11, 15, 19, 23]
    assert named["middle"] == list(range(6, 18))
    assert named["top"][0] == 12


@pytest.mark.parametrize(
    ("name", "millions"),
    [("gla-340m", 340), ("llama-340m", 340), ("gla-1.3b", 1340), ("llama-1.3b", 1340), ("qwen-500m", 500), ("qwen-1.7b", 1700)],
)
def test_sizes_are_those_of_the_papers(name, millions):
    with torch.device("meta"):
        model = architectures.create(name)
    count = sum(p.numel() for p in model.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.12)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("gla-340", "no architecture 'gla-340'; nearest: gla-340m"),
        ({"mixer": "gls"}, "no mixer 'gls'; nearest: gla"),
        ({"hiden_size": 3}, "no key 'hiden_size'; nearest: hidden_size"),
        ({"hidden_size": 100, "num_attention_heads": 16}, "hidden_size 100 must be a multiple"),
        ({"mixer": "fixed"}, "need shadow_tokens"),
        ({"mixer": "random", "base": "gla", "allocation": "odd"}, "share a decoder with softmax only"),
        ({"allocation": "od"}, "no allocation 'od'; nearest: odd"),
        ({"mixers": ["gla"], "num_hidden_layers": 2}, "mixers names 1 layers"),
        ({"hidden_size": "many"}, "hidden_size must be a whole number above 0, got 'many'"),
        ({"model_type": "llama"}, "not an architecture of this project"),
    ],
)
def test_bad_configurations_are_one_line(wanted, message):
    with pytest.raises(UsageError, match=message) as caught:
        architectures.create(wanted)
    assert "\n" not in str(caught.value)


def test_bad_input_is_one_line():
    model = make("random")
    with pytest.raises(NulliusError, match="at most 64 tokens"):
        model(tokens(1, 65))
    with pytest.raises(NulliusError, match=r"attention_mask must be \[batch, tokens\] = \[2, 19\]"):
        model(tokens(), attention_mask=torch.ones(2, 5))
    with pytest.raises(NulliusError, match="batch of 1"):
        model(tokens(), cu_seqlens=torch.tensor([0, 19]))
    with pytest.raises(NulliusError, match="input_ids or inputs_embeds"):
        model()


def test_created_from_a_name_with_changes():
    config = architectures.named("gla-340m", num_hidden_layers=2, vocab_size=100)
    assert (config.mixers, config.vocab_size, config.intermediate_size, config.hidden_size) == (["gla"] * 2, 100, 2816, 1024)
    again = AutoConfig.for_model(**config.to_dict())
    assert again.mixers == config.mixers
    assert isinstance(
        AutoModelForCausalLM.from_config(architectures.named("llama-340m", num_hidden_layers=1, vocab_size=9)),
        architectures.DecoderForCausalLM,
    )


# --- anatomy ---


@pytest.mark.parametrize(("mixer", "allocation"), [*CASES])
def test_anatomy(mixer, allocation, tokenizer):
    torch.manual_seed(0)
    model = LanguageModel.wrap(
        architectures.create({**PLAIN, "mixer": mixer, "allocation": allocation, "vocab_size": len(tokenizer)}), tokenizer
    )
    from nullius.models.loading import _self_test

    with torch.no_grad():
        _self_test(model)
    batch = model.encode(["the river rose in the night", "a"])
    own = model.anatomy.attn(2).head_sites
    for site in ("q", "k", "v", "z", "pattern"):
        if site in own:
            value = taps.read(model, batch, [site], layers=[2])[site]
            assert value.shape[2] == own[site]
        else:
            with pytest.raises(SubjectError, match=f"layer 2 mixes tokens by {model.anatomy.attn(2).name}: it has no {site}"):
                model.anatomy.site(site, 2)
    assert model.anatomy.has("mlp_post", 0)
    assert not model.anatomy.parallel


@pytest.mark.parametrize("mixer", ["gla", "softmax", "non-approximate"])
def test_compiled_layers_compute_the_same_from_one_piece_of_code(mixer):
    """Ten layers, more than torch would compile one by one before it gives up. A layer is one graph, its operator one node of it."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 10, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 30}
    model = architectures.create({**shape, "mixer": mixer}).train()
    ids = torch.randint(0, 30, (2, 20))

    def gradients():
        model.zero_grad()
        loss = model(input_ids=ids, use_cache=False).logits.square().mean()
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()])

    plain = gradients()
    compiled = []

    def backend(graph, _inputs):
        compiled.append(graph)
        return graph.forward

    for layer in model.model.layers:
        layer.compile(backend=backend)
    traced = gradients()
    assert traced[0] == pytest.approx(plain[0], rel=1e-6)
    assert torch.allclose(traced[1], plain[1], atol=1e-7)
    assert len(compiled) == 1
    torch._dynamo.reset()


@pytest.mark.parametrize("mixer", ["gla", "non-approximate"])
def test_compiled_layers_take_packed_sequences(mixer):
    """Two packings in turn: their offsets are no part of the graphs."""
    torch._dynamo.reset()
    model = architectures.create({"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 30, "mixer": mixer})
    ids, offsets = torch.randint(0, 30, (1, 12)), (torch.tensor([0, 5, 12]), torch.tensor([0, 2, 7, 12]))
    plain = [model(input_ids=ids, cu_seqlens=each, use_cache=False).logits for each in offsets]
    for layer in model.model.layers:
        layer.compile(backend="eager")
    for each, expected in zip(offsets, plain, strict=True):
        assert torch.allclose(model(input_ids=ids, cu_seqlens=each, use_cache=False).logits, expected, atol=1e-6)
    torch._dynamo.reset()


def test_under_autocast_stream_and_norms_have_the_type_of_the_maps():
    model = architectures.create({"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 30, "mixer": "gla"})
    ids, seen = torch.randint(0, 30, (2, 9)), []
    for part in (model.model.layers[1], model.model.layers[1].attn_norm, model.model.norm):
        part.register_forward_hook(lambda _m, args, out: seen.extend((args[0].dtype, out.dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        narrow = model(input_ids=ids, use_cache=False).logits
    assert set(seen) == {torch.bfloat16}
    seen.clear()
    wide = model(input_ids=ids, use_cache=False).logits
    assert set(seen) == {torch.float32}
    assert torch.allclose(narrow.float(), wide, atol=0.02)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
