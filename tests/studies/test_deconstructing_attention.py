"""The study goes through on tiny networks; what is taken from a trained decoder is what was named; recall needs queries."""

import numpy as np
import pytest
import torch

from nullius.errors import UsageError
from nullius.lab import Lab, runner
from nullius.lab.studies import get
from nullius.models import architectures
from nullius.stimuli import recall
from nullius.studies.architectures import deconstructing_attention as module
from nullius.training import asked, variants
from nullius.training.asked import Recipe

SLUG = "deconstructing-attention"
TINY = Recipe(3, 4, 5e-3)


SHAPE = variants.shape(16, 2)


def plan(kinds, seeds=2):
    return module.Plan(kinds, seeds, SHAPE, SHAPE, 24, TINY, TINY, TINY, 12, 3, entries=300)


@pytest.fixture
def gates_open(monkeypatch):
    """Networks of three steps can do nothing: let them through, so that verdicts are about their samples."""
    monkeypatch.setattr(Lab, "require", lambda *_args, **_kwargs: True)


def test_equal_networks_show_nothing(toy, monkeypatch, gates_open):
    """Null: every decoder is the same query-free hybrid. No claim about a difference between decoders may hold."""
    monkeypatch.setattr(module, "QUICK", plan(module.QUICK_KINDS))
    real = variants._wanted
    monkeypatch.setattr(variants, "_wanted", lambda common, key, data: real(common, ("non-approximate", "odd"), data))
    record = runner.run(get(SLUG), toy)
    words = {verdict.claim.id: verdict.word for verdict in record.verdicts}
    assert set(words) == {claim.id for claim in module.CLAIMS}
    within = {
        "skipping-destroys",
        "every-hybrid-breaks",
        "their-mixing-counts",
        "context-helps-attention",
        "outliers-are-late",
    }  # these look inside one decoder
    assert not [claim for claim, word in words.items() if word == "holds" and claim not in within]
    assert words["zero-shot"] == words["hybrid-closes-fixed"] == "out of reach"


def test_every_variant_goes_through_at_full_scale_on_a_text_of_ones_own(toy, monkeypatch, gates_open, tmp_path):
    monkeypatch.setattr(module, "FULL", plan(module.FULL_KINDS, 1))
    path = tmp_path / "text.txt"
    words = np.random.default_rng(0).choice(["river", "stone", "cloud", "bird", "tree", "\n"], 3000)
    path.write_text(" ".join(words.tolist()), "utf-8")
    monkeypatch.setenv("NULLIUS_TEXT", str(path))
    record = runner.run(get(SLUG), toy, full=True, options={"text": "file"})
    assert {record.verdict(f"hybrid-closes-{kind}").word for kind in ("approximate", "random", "fixed")} != {"out of reach"}
    assert record.verdict("hybrid-stays-small").word == "out of reach"
    assert record.verdict("hybrid-stays-small").effect is not None
    broken = record.verdict("every-hybrid-breaks")
    assert [note.split()[0] for note in broken.note.split("; ")] == list(module.FULL_KINDS)
    assert broken.effect.n == 6  # half of the windows: the other half has said which hybrid is hurt least
    assert {"figure.svg", "figure-maps.svg"} <= {entry["name"] for entry in record.data["artefacts"]}
    path.write_text("too short", "utf-8")
    with pytest.raises(UsageError, match=r"text\.txt holds 2 tokens"):
        runner.run(get(SLUG), toy, full=True, options={"text": "file"})


def make(mixer, allocation="uniform", layers=2, **changes):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 2, "vocab_size": 50, "intermediate_size": 48}
    return architectures.create({**shape, "mixer": mixer, "allocation": allocation, "initializer_range": 0.2, **changes}).double().eval()


def test_averaging_leaves_the_shift_alone():
    model = make("non-approximate", "odd")
    ids = torch.randint(0, 50, (3, 10))
    mixed = []
    handle = model.model.layers[0].attn.register_forward_hook(lambda _m, _a, out: mixed.append(out[0]))
    whole = model(ids, use_cache=False).logits
    with architectures.averaging(model, [0]):
        changed = model(ids, use_cache=False, output_hidden_states=True).hidden_states[1]
    handle.remove()
    layer = model.model.layers[0]
    x = model.model.embeddings(ids) + mixed[0].mean((0, 1))
    assert torch.allclose(changed, x + layer.mlp(layer.mlp_norm(x)), atol=1e-12)
    assert torch.equal(model(ids, use_cache=False).logits, whole)
    with pytest.raises(UsageError, match="layer 2 does not exist"), architectures.averaging(model, [2]):
        pass


def test_score_ranges_against_their_definition():
    model = make("non-approximate", layers=1)
    ids = torch.randint(0, 50, (3, 10))
    layer = model.model.layers[0]
    x = layer.attn_norm(model.model.embeddings(ids))
    q, k = (p(x).view(3, 10, 2, 16) for p in (layer.attn.q_proj, layer.attn.k_proj))
    expected = ((q * torch.sigmoid(q) * k).sum(-1) / 4).abs().flatten(1).max(1).values
    found = architectures.score_ranges(model, ids)
    assert found.shape == (1, 3)
    assert torch.allclose(found[0].double(), expected, rtol=1e-5)
    with torch.no_grad():
        layer.attn.k_proj.weight.mul_(1000)
    assert torch.allclose(architectures.score_ranges(model, ids), found * 1000, rtol=1e-4)


def test_recall_needs_queries():
    """Planted: with attention a slot's value is recalled; without any mixing nothing but what is likeliest can be said."""
    rng = np.random.default_rng(0)
    train, test = (recall.until_reset(n, rng, length=24, resets=0.0, shape=recall.Slots(2, 2, 4)) for n in (3000, 80))
    right = {}
    for mixer, steps in (("softmax", 200), ("mlp", 40)):
        torch.manual_seed(0)
        shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48, "initializer_range": 0.15}
        hf = architectures.create({**shape, "vocab_size": train.vocabulary, "mixer": mixer})
        asked.fit(hf, train, Recipe(steps, 32, 8e-3), 0)
        right[mixer] = asked.measure(hf, test)[1].mean()
    assert right["softmax"] > 0.9
    assert right["mlp"] < 0.6
