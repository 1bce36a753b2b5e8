"""The in-memory loop: it learns what it is shown, the same each time, from answers alone where asked, and leaves the subject alone."""

import numpy as np
import pytest
import torch

from nullius.errors import NulliusError, UsageError
from nullius.training.finetune import finetune
from nullius.training.lora import Lora
from nullius.training.parts import Parts

TEXTS = ["the river runs to the sea", "a doctor reads a letter", "the castle stands by the market"]
PAIRS = [("3 + 4 =", " seven"), ("2 + 2 =", " four"), ("1 + 4 =", " five")]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.hf.state_dict().values(), b.hf.state_dict().values(), strict=True))


def test_it_learns_and_repeats_itself(toy):
    before = toy.last_logits(TEXTS)
    first, second, other = (finetune(toy, TEXTS, 30, rate=3e-3, batch=2, seed=seed) for seed in (1, 1, 2))
    assert first.losses[-3:].mean() < first.losses[:3].mean() - 1
    assert np.array_equal(first.losses, second.losses)
    assert same(first.model, second.model)
    assert not same(first.model, other.model)
    assert torch.equal(toy.last_logits(TEXTS), before)
    assert first.model.weights_sha256 not in (toy.weights_sha256, other.model.weights_sha256)


def test_answers_alone_are_targets(toy):
    """At rate 0 the loss is that of the answers' tokens, scored one by one without padding."""
    tuned = finetune(toy, PAIRS, 1, rate=0.0, batch=3)
    total, tokens = 0.0, 0
    for prompt, answer in PAIRS:
        ids = [toy.bos_id, *toy.tokens(prompt + answer)]
        given = 1 + len(toy.tokens(prompt))
        scores = toy.hf(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        total -= float(sum(scores[i - 1, ids[i]] for i in range(given, len(ids))))
        tokens += len(ids) - given
    assert tuned.losses[0] == pytest.approx(total / tokens, rel=1e-5)
    assert same(tuned.model, toy)


def test_token_rows_are_taken_as_they_are(toy):
    rows = torch.arange(24).view(3, 8)
    tuned = finetune(toy, rows, 1, rate=0.0, batch=3)
    logits = toy.hf(input_ids=rows).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
    assert tuned.losses[0] == pytest.approx(float(expected), rel=1e-5)


def test_parts_learn_and_the_rest_stays(toy):
    parts = Parts(heads=((1, 0), (1, 1)))
    tuned = finetune(toy, PAIRS, 5, rate=1e-2, parts=parts, weight_decay=0.1)
    masks = parts.masks(toy)
    for (name, new), old in zip(tuned.model.hf.named_parameters(), toy.hf.parameters(), strict=True):
        mask = masks.get(name)
        assert torch.equal(new != old, torch.zeros_like(new, dtype=torch.bool) if mask is None else mask & (new != old))
        assert mask is None or (new != old)[mask].all()
    assert tuned.trained == sum(int(mask.sum()) for mask in masks.values())
    assert tuned.losses[-1] < tuned.losses[0]
    again, none = (finetune(toy, PAIRS, steps, rate=1e-2, parts=parts, weight_decay=0.1) for steps in (5, 0))
    assert again.model.weights_sha256 == tuned.model.weights_sha256 != none.model.weights_sha256


def test_lora_is_merged_into_a_plain_model(toy):
    tuned = finetune(toy, PAIRS, 20, rate=1e-2, lora=Lora(rank=2, targets=("q_proj", "v_proj")))
    assert type(tuned.model.hf) is type(toy.hf)
    changed = {name for (name, a), b in zip(tuned.model.hf.named_parameters(), toy.hf.parameters(), strict=True) if not torch.equal(a, b)}
    assert changed == {f"model.layers.{i}.self_attn.{part}_proj.weight" for i in range(3) for part in "qv"}
    assert tuned.losses[-1] < tuned.losses[0]
    assert tuned.trained == 3 * 2 * (32 + 32 + 32 + 16)


@pytest.mark.parametrize(
    ("lora", "wanted"),
    [
        (Lora(2, targets=("gate_proj",), layers=(1,)), {"1.mlp.gate_proj"}),
        (
            Lora(2, targets=("mlp.up_proj", "q_proj"), layers=(0, -1)),
            {f"{i}.{name}" for i in (0, 2) for name in ("mlp.up_proj", "self_attn.q_proj")},
        ),
        (Lora(2, layers=(1,)), {f"1.self_attn.{part}_proj" for part in "qkvo"} | {f"1.mlp.{part}_proj" for part in ("gate", "up", "down")}),
    ],
)
def test_lora_in_some_layers(toy, lora, wanted):
    tuned = finetune(toy, PAIRS, 2, rate=1e-2, lora=lora)
    changed = {name for (name, a), b in zip(tuned.model.hf.named_parameters(), toy.hf.parameters(), strict=True) if not torch.equal(a, b)}
    assert changed == {f"model.layers.{name}.weight" for name in wanted}


def test_lora_on_a_tied_unembedding(toys):
    """Merged, it would change the embedding as well; where nothing is tied it may be trained."""
    assert toys["gemma"].hf.config.tie_word_embeddings
    with pytest.raises(UsageError, match="lm_head shares its weight with the embedding"):
        finetune(toys["gemma"], PAIRS, 1, lora=Lora(targets=("lm_head",)))
    tuned = finetune(toys["gpt_neox"], PAIRS, 2, rate=1e-2, lora=Lora(2, targets=("lm_head",)))
    old = dict(toys["gpt_neox"].hf.named_parameters())
    assert {name for name, new in tuned.model.hf.named_parameters() if not torch.equal(new, old[name])} == {"lm_head.weight"}


def test_snapshots_see_the_model_on_its_way(toy):
    seen = {}
    tuned = finetune(toy, TEXTS, 4, rate=1e-2, snapshots=(0, 2, 4), on_snapshot=lambda step, m: seen.update({step: m.last_logits(TEXTS)}))
    assert torch.allclose(seen[0], toy.last_logits(TEXTS), atol=1e-5)
    assert torch.allclose(seen[4], tuned.model.last_logits(TEXTS), atol=1e-5)
    assert not torch.allclose(seen[2], seen[4], atol=1e-3)


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        ([], {}, "no data"),
        ([("a prompt", "")], {}, "no token to predict"),
        (TEXTS, {"parts": Parts(mlps=(0,)), "lora": Lora()}, "not both"),
        (TEXTS, {"lora": Lora(targets=("q_prj",))}, "no linear map 'q_prj' in this model; nearest: q_proj, .*; there are down_proj, "),
        (TEXTS, {"lora": Lora(targets=("lm_head",), layers=(0, 2))}, "no linear map 'lm_head' in layers 0, 2 of this model"),
        (TEXTS, {"lora": Lora(layers=(3,))}, "layer 3 does not exist: this model has layers 0 to 2"),
        (TEXTS, {"lora": Lora(rank=0)}, "the rank of an adapter is a whole number of at least 1, not 0"),
        (TEXTS, {"lora": Lora(rank=1.5)}, "the rank of an adapter is a whole number of at least 1, not 1.5"),
        (TEXTS, {"lora": Lora(alpha=float("nan"))}, "alpha scales the update: a number above 0, not nan"),
        (TEXTS, {"lora": Lora(targets="q_proj")}, r"targets stand in a tuple: \('q_proj',\)"),
        (TEXTS, {"lora": Lora(layers=("a",))}, "layer a does not exist"),
        ("the river", {}, r"one text stands in a list: \['the river'\]"),
        ([("a", "b", "c")], {}, r"pairs \(prompt, answer\); got \('a', 'b', 'c'\)"),
        ([1, 2], {}, r"pairs \(prompt, answer\); got 1"),
        (torch.arange(5), {}, r"whole numbers \[n, T\], of at least 2 tokens; got torch.int64 \[5\]"),
        (torch.ones(2, 5), {}, r"got torch.float32 \[2, 5\]"),
        (torch.ones(2, 1).long(), {}, r"got torch.int64 \[2, 1\]"),
        (torch.full((2, 5), 99999), {}, "99999 is no token of toy-llama"),
        (TEXTS, {"batch": 0}, "batch must be a whole number of at least 1, not 0"),
        (TEXTS, {"warmup": -1}, "warmup must be a whole number of at least 0, not -1"),
        (TEXTS, {"seed": 0.5}, "seed must be a whole number"),
        (TEXTS, {"rate": float("nan")}, "rate must be a number of at least 0, not nan"),
        (TEXTS, {"rate": float("inf")}, "rate must be a number of at least 0, not inf"),
        (TEXTS, {"clip": -1.0}, "clip must be a number of at least 0, not -1.0"),
        (TEXTS, {"decay": 2.0}, "decay must be a number of at least 0 and at most 1, not 2.0"),
        (TEXTS, {"optimiser": "sgd"}, "the optimiser is adamw or muon, not 'sgd'"),
        (TEXTS, {"snapshots": (5,)}, r"before steps 0 to 0 and at the end \(1\), not at 5"),
        (TEXTS, {"lora": Lora(dropout=1.0)}, "dropout is a part of the input"),
    ],
)
def test_bad_input(toy, data, options, words):
    with pytest.raises(UsageError, match=words):
        finetune(toy, data, 1, **options)


def test_a_loss_that_is_no_number_ends_it(toy):
    with pytest.raises(NulliusError, match="the loss of step 2 is nan: lower the rate"):
        finetune(toy, TEXTS, 3, rate=1e30)


def test_clip_0_clips_nothing(toy):
    """As in a configuration of `nullius train`."""
    free, wide = (finetune(toy, TEXTS, 2, rate=1e-3, clip=clip) for clip in (0.0, 1e9))
    assert same(free.model, wide.model)
    assert not same(free.model, toy)
