"""Circuits: a planted circuit is complete, faithful and minimal; random ones are nothing; runs equal plain ablation."""

from contextlib import ExitStack
from functools import partial

import numpy as np
import pytest
import torch
from tests.instruments.test_edges import plain
from tests.instruments.test_patching import ANSWERS, pairs
from tests.instruments.test_paths import wired_chain

from nullius.errors import UsageError
from nullius.instruments import circuits, edges, taps
from nullius.instruments.circuits import WHOLE, Group, Keep
from nullius.instruments.heads import Head
from nullius.instruments.paths import Mlp


def texts(n=12, length=8):
    generator = torch.Generator().manual_seed(2)
    return torch.randint(5, 1000, (n, length), generator=generator)


def batch_of(model, n=12, length=8):
    return model.pad(texts(n, length).tolist())


def test_means_by_position(toy):
    batch = batch_of(toy)
    means = circuits.position_means(toy, batch, batch_size=5)
    found = taps.read(toy, batch, ["z", "mlp_out"], positions="all")
    assert torch.allclose(means.z, found["z"].mean(1), atol=1e-5)
    assert torch.allclose(means.mlp_out, found["mlp_out"].mean(1), atol=1e-5)


def test_what_is_not_kept_is_at_its_mean(toys):
    for family in ("llama", "gpt2", "gemma2"):
        model = toys[family]
        batch = batch_of(model)
        means = circuits.position_means(model, batch)
        answers = [7] * 12
        at = tuple(i % 7 for i in range(12))
        keep = Keep((Group("a", (Head(0, 1), Head(2, 3)), at, (Mlp(1),)), Group("b", (Head(1, 0),), None)))

        def ablate(z, layer, means=means, at=at):  # written out, text by text
            out = means.z[layer].expand_as(z).clone()
            for i in range(12):
                for head in {0: [1], 1: [], 2: [3]}[layer]:
                    out[i, at[i], head] = z[i, at[i], head]
            if layer == 1:
                out[:, :, 0] = z[:, :, 0]
            return out

        def ablate_mlp(x, layer, means=means, at=at):
            out = means.mlp_out[layer].expand_as(x).clone()
            if layer == 1:
                for i in range(12):
                    out[i, at[i]] = x[i, at[i]]
            return out

        with ExitStack() as stack, torch.no_grad():
            for layer in range(3):
                stack.enter_context(taps.edit(model, "z", layer, partial(ablate, layer=layer)))
                stack.enter_context(taps.edit(model, "mlp_out", layer, partial(ablate_mlp, layer=layer)))
            expected = circuits.probability(model.logits(batch).float(), model.token_ids(answers)).numpy()
        found = circuits.evaluate(model, batch, answers, [keep], means, score=circuits.probability, mlps=True)[0]
        assert np.allclose(found, expected, rtol=1e-4)
        whole = circuits.evaluate(model, batch, answers, [WHOLE], means, score=circuits.probability, mlps=True)[0]
        with torch.no_grad():
            assert np.allclose(whole, circuits.probability(model.logits(batch).float(), model.token_ids(answers)).numpy(), rtol=1e-4)


@pytest.mark.parametrize("max_rows", [1, 7, 30])
def test_the_size_of_a_pass_does_not_matter(toy, max_rows):
    batch = batch_of(toy)
    means = circuits.position_means(toy, batch)
    keeps = [
        WHOLE,
        Keep(()),
        Keep((Group("a", (Head(2, 1),), tuple(7 - i % 2 for i in range(12))),)),
        Keep((Group("b", (Head(2, 0),)),), rest=True),
    ]
    one = circuits.evaluate(toy, batch, [9] * 12, keeps, means, score=circuits.probability)
    assert np.allclose(circuits.evaluate(toy, batch, [9] * 12, keeps, means, score=circuits.probability, max_rows=max_rows), one, rtol=1e-4)
    assert len({round(float(value), 9) for value in one[:, 0]}) == 4


def copier(tokenizer):
    """A model in which 2.0 and 2.1 are twins, either of which can say the answer; all else is silent. Answers: what it says."""
    model = wired_chain(tokenizer)
    attention, width = model.hf.model.layers[2].self_attn, model.anatomy.d_head
    with torch.no_grad():
        model.anatomy.o_proj(0).weight.zero_()
        attention.q_proj.weight[:width] = attention.q_proj.weight[width : 2 * width]
        attention.o_proj.weight.mul_(20)
        attention.o_proj.weight[:, :width] = attention.o_proj.weight[:, width : 2 * width]
    batch = batch_of(model, n=40)
    return model, batch, model.logits(batch).argmax(-1).tolist()


def test_planted_circuit(tokenizer):
    model, batch, answers = copier(tokenizer)
    means = circuits.position_means(model, batch)
    twins = Group("twins", (Head(2, 0), Head(2, 1)))
    padded = Group("padded", (Head(2, 0), Head(1, 0), Head(2, 1), Head(2, 3)))
    silent = Group("silent", (Head(0, 0), Head(1, 1)))
    whole, right, nothing, wrong = circuits.evaluate(model, batch, answers, [WHOLE, Keep((twins,)), Keep(()), Keep((silent,))], means)
    assert circuits.faithfulness(right, whole) == 1.0
    assert circuits.faithfulness(nothing, whole) < 0.5
    assert np.array_equal(nothing, wrong)  # null: silent heads are as good as none
    left, missed = circuits.minimal(model, batch, answers, [padded], 0, means)
    assert left.heads == twins.heads
    assert missed[Head(1, 0)] == missed[Head(2, 3)] == 0
    parts = [*circuits.random_parts([twins], 4, np.random.default_rng(0)), [twins]]
    assert circuits.completeness(model, batch, answers, [twins], parts, means).max() < 1e-9  # nothing outside stands in for it
    one = twins.only([Head(2, 0)])
    assert circuits.completeness(model, batch, answers, [one], [[one]], means)[0] > 0.3  # its twin does, and is not in the circuit


def test_a_circuit_is_assembled_from_scores(tokenizer):
    """Scores: what the loss of each head costs. The twins carry all that heads do."""
    model, batch, answers = copier(tokenizer)
    means = circuits.position_means(model, batch)
    scores = torch.zeros(3, 4)
    scores[2, 0], scores[2, 1], scores[1, 2] = -3.0, 2.0, 0.5
    assert circuits.strongest(scores, 2).heads == (Head(2, 0), Head(2, 1))
    assert circuits.strongest(torch.stack([scores, -scores]), 0).heads == ()
    curve = circuits.node_faithfulness(model, batch, answers, scores, [0, 1, 2, 12], means, score=circuits.correct)
    assert curve[[0, 2, 3]] == pytest.approx([0, 1, 1])
    assert 0.3 < curve[1] < 1
    null = circuits.node_faithfulness(model, batch, answers, scores.flip(0), [2], means, score=circuits.correct)
    assert null == pytest.approx([0])  # heads of another layer carry nothing
    with pytest.raises(UsageError, match="a group of 13 heads"):
        circuits.strongest(scores, 13)
    with pytest.raises(UsageError, match="scores of heads are not finite"):
        circuits.strongest(scores * torch.nan, 1)
    with pytest.raises(UsageError, match="without any head"):
        circuits.node_faithfulness(model, batch, answers, scores, [1], means, score=lambda logits, _: logits[:, 0] * 0)


def test_circuits_by_edge(tokenizer):
    model = wired_chain(tokenizer)
    base, source = pairs(model)
    base.input_ids[:, -1] = source.input_ids[:, -1]
    found = edges.attribute(model, base, source, ANSWERS, steps=4)
    every = int(found.nodes.allowed.sum())
    curve = circuits.edge_faithfulness(model, base, source, ANSWERS, found, [0, 25, every])
    assert curve[0] == pytest.approx(0, abs=1e-4)
    assert curve[2] == pytest.approx(1, abs=1e-4)
    assert curve[1] == pytest.approx(1, abs=0.05)
    assert float(plain(model, base).mean()) != pytest.approx(float(plain(model, source).mean()))
    with pytest.raises(UsageError, match="nothing for a circuit to carry"):
        circuits.edge_faithfulness(model, base, base, ANSWERS, found, [0])


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        (Keep((Group("a", (Head(9, 0),)),)), r"head 9\.0 does not exist"),
        (Keep((Group("a", (), -1, (Mlp(7),)),)), "mlp 7 does not exist"),
        (Keep((Group("a", (Head(0, 0),), 99),)), "position 99 does not exist"),
        (Keep((Group("a", (Head(0, 0),), (1, 2)),)), "2 positions for 12 pairs"),
    ],
)
def test_refusals(toy, keep, words):
    batch = batch_of(toy)
    means = circuits.position_means(toy, batch)
    with pytest.raises(UsageError, match=words):
        circuits.evaluate(toy, batch, [9] * 12, [keep], means)
    with pytest.raises(UsageError, match="these have 5"):
        circuits.evaluate(toy, batch_of(toy, length=5), [9] * 12, [WHOLE], means)
    with pytest.raises(UsageError, match="3 answers for 12"):
        circuits.evaluate(toy, batch, [9] * 3, [WHOLE], means)
    with pytest.raises(UsageError, match="do not have one length"):
        circuits.position_means(toy, toy.encode(["one", "one two three four"]))


def test_what_is_taken_away_is_taken_by_where_it_stands(toy):
    """−1, the last column's number and a list of it are one place: the part must go from circuit and model alike."""
    texts, answers = batch_of(toy, n=4), [1, 2, 3, 4]
    means, last = circuits.position_means(toy, texts), texts.input_ids.shape[1] - 1
    heads = (Head(0, 0), Head(1, 1))
    groups = [Group("a", heads), Group("b", (Head(1, 2),), -2)]
    ways = [[Group("part", heads, at)] for at in (-1, last, (last,) * 4)]
    found = circuits.completeness(toy, texts, answers, groups, ways, means, score=circuits.probability)
    assert found[0] == pytest.approx(found[1], abs=1e-9)
    assert found[0] == pytest.approx(found[2], abs=1e-9)
    lesser, bare = (Keep(tuple(groups[1:])), Keep(tuple(groups), without=(Group("part", heads, None),)))
    one, other = circuits.evaluate(toy, texts, answers, [lesser, bare], means, score=circuits.probability)
    assert np.allclose(one, other)


def test_parts_draw_feed_forward_blocks_too(toy):
    groups = [Group("a", (Head(0, 0),), None, (Mlp(0), Mlp(1), Mlp(2)))]
    parts = circuits.random_parts(groups, 40, np.random.default_rng(0))
    counts = [len(part[0].mlps) for part in parts]
    assert 0.3 < np.mean(counts) / 3 < 0.7
    means = circuits.position_means(toy, batch_of(toy))
    found = circuits.completeness(toy, batch_of(toy), [1] * 12, groups, parts[:2], means, score=circuits.probability, mlps=True)
    assert (found > 0).all()
