"""Edges: runs with cut edges equal path patching and plain runs; attribution is their derivative; a planted circuit is found by edge."""

import copy

import numpy as np
import pytest
import torch
from tests.conftest import FAMILIES
from tests.instruments.test_patching import ANSWERS, pairs
from tests.instruments.test_paths import wired_chain

from nullius.errors import UsageError
from nullius.instruments import edges, paths
from nullius.instruments.edges import Edge
from nullius.instruments.heads import Head
from nullius.instruments.paths import Mlp, Receiver
from nullius.models.language_model import LanguageModel


@pytest.fixture(params=FAMILIES)
def model(request, toys):
    return toys[request.param]


def plain(model, batch):
    chosen = model.logits(batch).detach().gather(1, torch.tensor(ANSWERS))
    return chosen[:, 0] - chosen[:, 1]


def test_all_edges_are_the_base_run_and_none_the_source_run(model):
    base, source = pairs(model)
    everything = torch.ones_like(edges.nodes(model).allowed)
    values = edges.run(model, base, source, ANSWERS, torch.stack([everything, ~everything]))
    assert torch.allclose(values[0], plain(model, base), atol=2e-4)
    assert torch.allclose(values[1], plain(model, source), atol=2e-4)


def test_one_cut_edge_is_path_patching_with_everything_else_held(model):
    if model.anatomy.site("attn_out", 0).module is not model.anatomy.attn(0):
        pytest.skip("a head's share of a normed output is another thing than the head's z alone")
    base, source = pairs(model)
    some = [Edge("0.1", "q 1.2"), Edge("0.3", "k 2.1"), Edge("mlp 0", "v 2.0"), Edge("1.0", "v 2.1")]
    found = edges.exact(model, base, source, ANSWERS, some)
    senders = [Head(0, 1), Head(0, 3), Mlp(0), Head(1, 0)]
    receivers = [Receiver("q", 1, 2, None), Receiver("k", 2, 1, None), Receiver("v", 2, 0, None), Receiver("v", 2, 1, None)]
    for i, (sender, receiver) in enumerate(zip(senders, receivers, strict=True)):
        path = paths.patch(model, base, source, [sender], ANSWERS, receivers=[receiver], at=None, held_mlps="all")
        assert torch.allclose(found[:, i], path.effect()[:, 0], atol=2e-4)
    direct = edges.exact(model, base, source, ANSWERS, [Edge("0.1", "logits"), Edge("mlp 1", "logits")])
    path = paths.patch(model, base, source, [Head(0, 1), Mlp(1)], ANSWERS, at=None, held_mlps="all")
    assert torch.allclose(direct, path.effect(), atol=2e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2"])
def test_attribution_is_the_derivative_of_a_cut(toys, family):
    """Towards a source that is near, the estimate and the exact effect agree to first order."""
    model = LanguageModel.wrap(copy.deepcopy(toys[family].hf), toys[family].tokenizer)
    base, source = pairs(model)
    with torch.no_grad():  # the source's words become nearly those of the base
        embed = model.anatomy.embed.weight
        embed[source.input_ids] = embed[base.input_ids] + 0.05 * embed[source.input_ids]
    graph = edges.nodes(model)
    some = [graph.edges()[i] for i in np.random.default_rng(0).permutation(int(graph.allowed.sum()))[:40]]
    estimate = edges.attribute(model, base, source, ANSWERS)
    expected = edges.exact(model, base, source, ANSWERS, some)
    found = torch.stack([estimate.scores[:, graph.writers.index(e.writer), graph.readers.index(e.reader)] for e in some], 1)
    assert torch.allclose(found, expected, atol=0.1 * float(expected.abs().max()))
    assert float(expected.abs().max()) > 1e-4


def test_agreement_with_exact_cuts(toy):
    base, source = pairs(toy)
    for steps in (1, 8):
        found = edges.attribute(toy, base, source, ANSWERS, steps=steps)
        seen = edges.agreement(toy, base, source, ANSWERS, found, np.random.default_rng(0))
        assert len(seen.which) == 60
        assert seen.rho > 0.6
        assert seen.missed < 0.1
    noise = edges.Edges(found.nodes, torch.randn(found.scores.shape, generator=torch.Generator().manual_seed(0)))
    blind = edges.agreement(toy, base, source, ANSWERS, noise, np.random.default_rng(0))
    assert abs(blind.rho) < 0.35
    assert blind.missed > 0.25


def test_planted_chain_by_edge(tokenizer):
    model = wired_chain(tokenizer)
    base, source = pairs(model)
    base.input_ids[:, -1] = source.input_ids[:, -1]
    found = edges.attribute(model, base, source, ANSWERS, steps=4)
    silent = [i for i, name in enumerate(found.nodes.writers) if name not in ("embed", "0.2", "2.1")]
    assert found.scores[:, silent].abs().max() < 1e-5
    circuit = found.nodes.mask(
        [Edge(w, r) for w, r in (("embed", "logits"), ("0.2", "logits"), ("2.1", "logits"))]
        + [Edge(w, f"{site} 2.{0 if site != 'q' else 1}") for w in ("embed", "0.2") for site in "qkv"]
        + [Edge("embed", f"{site} 0.{1 if site != 'q' else 2}") for site in "qkv"]
    )
    values = edges.run(model, base, source, ANSWERS, circuit)
    assert torch.allclose(values, plain(model, base), atol=1e-4)
    broken = circuit & ~found.nodes.mask([Edge("2.1", "logits")])
    assert (edges.run(model, base, source, ANSWERS, broken) - plain(model, base)).abs().min() > 1e-3


def test_null_equal_texts(toy):
    base, _ = pairs(toy)
    assert edges.attribute(toy, base, base, ANSWERS).scores.abs().max() == 0
    nothing = torch.zeros_like(edges.nodes(toy).allowed)
    assert torch.allclose(edges.run(toy, base, base, ANSWERS, nothing), plain(toy, base), atol=1e-5)


@pytest.mark.parametrize("n", [1, 3])
def test_the_size_of_a_pass_does_not_matter(toy, n):
    base, source = pairs(toy)
    whole = edges.attribute(toy, base, source, ANSWERS)
    assert torch.allclose(edges.attribute(toy, base, source, ANSWERS, pairs_at_once=1).scores, whole.scores, atol=1e-5)
    masks = torch.stack([whole.keep(20), whole.keep(60)])
    few = edges.run(toy, base, source, ANSWERS, masks, max_rows=n)
    assert torch.allclose(few, edges.run(toy, base, source, ANSWERS, masks), atol=1e-5)
    assert torch.allclose(few[0], edges.run(toy, base, source, ANSWERS, masks[0]), atol=1e-5)


def test_the_strongest_edges_and_refusals(toy):
    base, source = pairs(toy)
    found = edges.attribute(toy, base, source, ANSWERS)
    mean = found.scores.mean(0).abs()
    top = found.strongest(3)
    assert len(set(top)) == 3
    assert float(mean[found.nodes.writers.index(top[0].writer), found.nodes.readers.index(top[0].reader)]) == float(mean.max())
    assert int(found.keep(10).sum()) == 10
    assert len(found.strongest(10**6)) == int(found.nodes.allowed.sum())
    with pytest.raises(UsageError, match=r"no writer '7\.1'"):
        found.nodes.mask([Edge("7.1", "logits")])
    with pytest.raises(UsageError, match="no reader 'logit'; nearest: logits"):
        found.nodes.mask([Edge("0.1", "logit")])
    with pytest.raises(UsageError, match="runs before"):
        found.nodes.mask([Edge("2.1", "q 1.0")])
    with pytest.raises(UsageError, match="keep must be a mask"):
        edges.run(toy, base, source, ANSWERS, torch.ones(2, 2, dtype=torch.bool))


def test_the_model_is_left_as_it_was(toy):
    base, source = pairs(toy)
    before = toy.logits(base)
    edges.attribute(toy, base, source, ANSWERS)
    edges.exact(toy, base, source, ANSWERS, [Edge("0.1", "logits")])
    assert torch.equal(toy.logits(base), before)
