"""Situations told in manners: what falls without the components that write one, and what falls without random ones."""

import numpy as np
import pytest
import torch

from nullius.instruments.head_choice import two_drawn
from nullius.instruments.told import Told


def told_of(model, situations=40, k=3):
    """States of which the manners are told by three channels, and random components."""
    generator = torch.Generator().manual_seed(0)
    states = torch.eye(k, 32) + 0.01 * torch.randn(3, situations, k, 32, generator=generator)
    z, cells = (torch.randn(3, situations, k, *shape, generator=generator) for shape in ((4, 8), (64,)))
    return Told(states, states, z, cells, *(list(range(situations))[i::2] for i in (0, 1)))


def test_a_half_that_nobody_asks_about_may_be_empty(toys):
    """As where directions are made of some situations and nothing is tested on others."""
    told = Told.read(toys["llama"], ["one", "two words"], (1, 1, 2), ([0], []), components=False)
    assert (told.tuning, told.test) == ([0], [])
    assert told.mlp.isfinite().all()


@pytest.mark.parametrize("kind", ["head", "neuron"])
def test_what_falls_is_what_the_best_write(toys, kind):
    """Of 64 neurons random pairs leave the best two out; of four heads they may hold them, and differ by nothing all the same."""
    model = toys["llama"]
    told = told_of(model)
    effects = told.effects(model)[kind]
    best, one, other = told.fall(model, kind, effects, 2, np.random.default_rng(0))
    lead = torch.einsum("lkd,lkd->k", told.contrast(told.post).double(), told.mlp.double()).numpy()
    chosen = effects[:, told.tuning].mean(1).argsort(-1, descending=True)[:, None, :, :2].expand(-1, 20, -1, -1)
    expected = effects[:, told.test].gather(-1, chosen).sum((0, 3)).numpy() / lead  # without a norm behind the block they add up
    np.testing.assert_allclose(best, expected, atol=1e-4)
    assert best.shape == one.shape == other.shape == (20, 3)
    difference = one - other
    assert abs(difference.mean()) < 3 * difference.std() / difference.size**0.5
    assert not np.array_equal(one[0], one[1])  # drawn anew for each situation


def test_random_ones_leave_the_best_out_where_there_are_others(toys):
    model = toys["llama"]
    told = told_of(model)
    effects = torch.zeros(3, 40, 3, 64)
    effects[..., 5:7] = 1.0  # said to be best, whatever they do
    told.cells[..., 5:7] = 0.0  # they do nothing
    told.cells[..., :5] = told.cells[..., 7:] = 1.0
    best, one, _ = told.fall(model, "neuron", effects, 2, np.random.default_rng(0))
    assert not best.any()
    assert np.abs(one).min() > 0


def test_two_drawn_are_never_one_set_and_differ_by_nothing():
    values = [np.full(3000, float(i)) for i in range(4)]
    mine, against = two_drawn(values, np.random.default_rng(0))
    assert np.all(mine != against)
    assert set(mine) == set(against) == {0.0, 1.0, 2.0, 3.0}
    assert abs((mine - against).mean()) < 0.12
