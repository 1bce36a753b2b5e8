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
from nullius.training import asked
from nullius.training.asked import Recipe

SLUG = "deconstructing-attention"
TINY = Recipe(3, 4, 5e-3)


def plan(kinds):
    return module.Plan(kinds, 2, 16, 2, 24, TINY, TINY, TINY, 12)


@pytest.fixture
def gates_open(monkeypatch):
    """Networks of three steps can do nothing: let them through, so that verdicts are about their samples."""
    monkeypatch.setattr(Lab, "require", lambda *_args, **_kwargs: True)


def test_equal_networks_show_nothing(toy, monkeypatch, gates_open):
    """Null: every decoder is the same query-free hybrid. No claim about a difference between decoders may hold."""
    monkeypatch.setattr(module, "QUICK", plan(module.QUICK_KINDS))
    real = module._network
    monkeypatch.setattr(module, "_network", lambda lab, plan, key, *rest: real(lab, plan, ("non-approximate", "odd"), *rest))
    record = runner.run(get(SLUG), toy)
    words = {verdict.claim.id: verdict.word for verdict in record.verdicts}
    assert set(words) == {claim.id for claim in module.CLAIMS}
    within = {"skipping-destroys", "their-mixing-counts", "context-helps-attention"}  # these look inside one decoder
    assert not [claim for claim, word in words.items() if word == "holds" and claim not in within]
    assert words["zero-shot"] == words["hybrid-closes-fixed"] == "out of reach"


def test_every_variant_goes_through_at_full_scale(toy, monkeypatch, gates_open):
    monkeypatch.setattr(module, "FULL", plan(module.FULL_KINDS))
    record = runner.run(get(SLUG), toy, full=True)
    assert {record.verdict(f"hybrid-closes-{kind}").word for kind in ("approximate", "random", "fixed")} != {"out of reach"}


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
