"""Screening: the exact values of what was patched, the true best where the estimate sees it, and an honest miss rate where it does not."""

import pytest
import torch
from tests.conftest import FAMILIES, make_toy
from tests.instruments.test_patching import ANSWERS, pairs

from nullius.errors import UsageError
from nullius.instruments import attribution, patching, screening


def best_of(sweep, top):
    effect = (sweep.values - sweep.base[:, None, None]).mean(0)
    order = effect.abs().flatten().argsort(descending=True, stable=True)[:top].tolist()
    return [divmod(i, effect.shape[1]) for i in order], effect


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_where_it_was_spent(toys, family):
    model = toys[family]
    base, source = pairs(model)
    found = screening.residual(model, base, source, ANSWERS, top=3, candidates=8, cheap=0.01, sample=5, reach=0)
    _, effect = best_of(patching.residual(model, base, source, ANSWERS), 3)
    spent = ~found.exact.isnan()
    assert int(spent.sum()) == 14  # the last layer at the last position costs next to nothing
    assert torch.allclose(found.exact[spent], effect[spent], atol=1e-4)
    values = [abs(float(effect[cell])) for cell in found.best]
    assert values == sorted(values, reverse=True)


def test_with_every_cell_but_one_it_is_the_sweep(toy):
    base, source = pairs(toy)
    for screen, sweep, cells, more in (
        (screening.residual, patching.residual, 18, {"reach": 0}),
        (screening.heads, patching.heads, 12, {}),
    ):
        found = screen(toy, base, source, ANSWERS, top=5, candidates=cells - 1, cheap=0, sample=5, **more)
        assert list(found.best) == best_of(sweep(toy, base, source, ANSWERS), 5)[0]
        assert (found.passed_over, found.sampled) == (1, 1)


def test_what_costs_least_is_patched_whatever_the_estimate_says(toy, monkeypatch):
    """With an estimate that puts the cheapest cells last, they are patched all the same, up to the share of the work that they were given."""
    base, source = pairs(toy)
    grid = patching.residual_grid(toy, base, source, ANSWERS, "resid_pre", None, patching.difference)
    work = {cell: grid.work(cell) for cell in grid.all_cells()}
    assert (work[2, 9], work[0, 9], work[0, 4]) == (1, 3, 18)
    dear = torch.zeros(2, 3, 10)
    for cell, cost in work.items():
        dear[:, *cell] = cost
    monkeypatch.setattr(attribution, "estimate", lambda cells, at: dear)
    found = screening.screen(grid, top=1, candidates=1, cheap=0.1, sample=0)
    spent = {divmod(int(i), 10) for i in (~found.exact.isnan()).flatten().nonzero()}
    assert spent == {(0, 4), (2, 9), (2, 8), (1, 9), (2, 7), (0, 9)}  # of 126 in all: 1 + 2 + 2 + 3 + 3
    assert found.interval == (0, 1)
    more = screening.screen(grid, top=1, candidates=1, cheap=1.0, sample=0)  # no more than a plain run of 10 positions through 3 layers
    spent = sorted(work[divmod(int(i), 10)] for i in (~more.exact.isnan()).flatten().nonzero())
    assert spent == [1, 2, 2, 3, 3, 4, 4, 5, 6, 18]


def test_the_layers_around_the_best_are_patched_until_none_is_better(toy, monkeypatch):
    """With an estimate that puts forward one cell of the best position, the others of that position are found, and nothing else is spent."""
    base, source = pairs(toy, first=7)  # with 9 all layers of the last position say the same, to rounding
    grid = patching.residual_grid(toy, base, source, ANSWERS, "resid_pre", None, patching.difference)
    _, effect = best_of(patching.residual(toy, base, source, ANSWERS), 1)
    scores = torch.zeros(2, 3, 10)
    scores[:, 2, 9] = 1
    monkeypatch.setattr(attribution, "estimate", lambda cells, at: scores)
    found = screening.screen(grid, top=1, candidates=1, cheap=0, sample=0, reach=1)
    up = [2] if abs(effect[2, 9]) > abs(effect[1, 9]) else [2, 1] if abs(effect[1, 9]) > abs(effect[0, 9]) else [2, 1, 0]
    assert found.best == ((up[-1], 9),)
    spent = {divmod(int(i), 10) for i in (~found.exact.isnan()).flatten().nonzero()}
    assert spent == {(layer, 9) for layer in range(max(0, up[-1] - 1), 3)}
    alone = screening.screen(grid, top=1, candidates=1, cheap=0, sample=0, reach=0)
    assert alone.best == ((2, 9),)


def test_candidates_are_of_several_columns(toy, monkeypatch):
    """Of an estimate that sees one position only, two layers of it are put forward before any other; with no reach the estimate alone decides."""
    base, source = pairs(toy)
    grid = patching.residual_grid(toy, base, source, ANSWERS, "resid_pre", None, patching.difference)
    scores = torch.zeros(2, 3, 10)
    scores[:, :, 5], scores[:, 1, 7] = 2, 1
    monkeypatch.setattr(attribution, "estimate", lambda cells, at: scores)
    asked = []
    monkeypatch.setattr(type(grid), "run", lambda self, cells, **_: asked.append(list(cells)) or 1 / 0)
    for reach in (0, 1):
        with pytest.raises(ZeroDivisionError):
            screening.screen(grid, top=1, candidates=3, cheap=0, sample=0, reach=reach)
    assert asked == [[(0, 5), (1, 5), (2, 5)], [(0, 5), (1, 5), (1, 7)]]


def test_planted_one_head_is_found_and_nothing_is_missed(tokenizer):
    """A model in which one head writes: the estimate puts it first, and no drawn cell belongs there."""
    model = make_toy("llama", tokenizer)
    width = model.anatomy.d_head
    with torch.no_grad():
        for layer in range(model.anatomy.n_layers):
            model.anatomy.down_proj(layer).weight.zero_()
            for head in range(model.anatomy.n_heads):
                if (layer, head) != (1, 2):
                    model.anatomy.o_proj(layer).weight[:, head * width : (head + 1) * width].zero_()
    base, source = pairs(model)
    found = screening.heads(model, base, source, ANSWERS, top=1, candidates=2, sample=10)
    assert found.best == ((1, 2),)
    assert found.missed == 0
    assert found.interval[0] == 0
    assert found.interval[1] == pytest.approx(1 - 0.025 ** (1 / 10))


def test_null_a_blind_estimate_is_told_by_its_miss_rate(toy, monkeypatch):
    """With scores that know nothing, the random sample finds what was passed over, and the interval says so."""
    base, source = pairs(toy)
    honest = patching.residual(toy, base, source, ANSWERS)
    _, effect = best_of(honest, 18)
    upside_down = 1 / (effect.abs() + 1e-9)  # the smallest effects first
    monkeypatch.setattr(attribution, "estimate", lambda cells, at: upside_down[None].repeat(2, 1, 1))
    found = screening.residual(toy, base, source, ANSWERS, top=4, candidates=4, cheap=0, sample=14, reach=0)
    assert found.missed == 4
    assert found.miss_rate == pytest.approx(4 / 14)
    assert found.interval[0] > 0.05
    assert "4 of 14 cells drawn from 14 passed over belong among the best 4: 28.6%" in str(found)


def test_agreement_with_the_exact_sweep(toy):
    base, source = pairs(toy)
    sweep = patching.residual(toy, base, source, ANSWERS)
    effect = sweep.values - sweep.base[:, None, None]
    same = attribution.agreement(effect, sweep, k=5)
    assert (same.spearman, same.top, same.sign) == (pytest.approx(1.0), 1.0, 1.0)
    opposite = attribution.agreement(-effect, sweep, k=5)
    assert (opposite.spearman, opposite.top, opposite.sign) == (pytest.approx(-1.0), 1.0, 0.0)
    random = attribution.agreement(torch.randn(effect.shape, generator=torch.Generator().manual_seed(0)), sweep, k=5)
    assert abs(random.spearman) < 0.6
    with pytest.raises(UsageError, match="only 18 cells have an effect"):
        attribution.agreement(effect, sweep, k=19)


def test_estimates_of_blocks_and_subspaces_add_up(toy):
    """Blocks of neurons together are the whole feed-forward block to first order; a whole space is the stream itself."""
    base, source = pairs(toy)
    blocks = attribution.estimate(patching.neuron_grid(toy, base, source, ANSWERS, 4, patching.difference))
    one = attribution.estimate(patching.neuron_grid(toy, base, source, ANSWERS, 1, patching.difference))
    assert torch.allclose(blocks.sum(-1), one[..., 0], atol=1e-4)
    whole = attribution.attribution(toy, base, source, ANSWERS)
    halves = [
        attribution.estimate(patching.residual_grid(toy, base, source, ANSWERS, "resid_pre", half, patching.difference))
        for half in torch.eye(32).split(16)
    ]
    assert torch.allclose(halves[0] + halves[1], whole, atol=1e-4)


def test_bad_input(toy):
    base, source = pairs(toy)
    with pytest.raises(UsageError, match="10 ≤ 5 < 17 does not hold"):
        screening.residual(toy, base, source, ANSWERS, top=10, candidates=5)
    with pytest.raises(UsageError, match="3 ≤ 18 < 18"):
        screening.residual(toy, base, source, ANSWERS, top=3, candidates=18, cheap=0)
