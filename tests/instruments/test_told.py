"""Situations told in manners: what falls without the components that write one, and what falls without random ones."""

import numpy as np
import pytest
import torch

from nullius.instruments.head_choice import two_drawn
from nullius.instruments.told import Told


def told_of(width, situations=40, k=3, layers=2, d=6):
    generator = torch.Generator().manual_seed(0)
    manner = torch.eye(k, d)
    states = manner + 0.01 * torch.randn(layers, situations, k, d, generator=generator)
    half = list(range(situations // 2)), list(range(situations // 2, situations))
    return Told(states, states, None, None, *half), torch.rand(layers, situations, k, width, generator=generator)


@pytest.mark.parametrize("width", [4, 9])
def test_what_falls_is_what_the_best_write(width):
    """Component 1 alone adds to a manner. Of nine, random pairs leave it out; of four they may hold it, and differ by nothing all the same."""
    told, effects = told_of(width)
    effects = 0.01 * effects
    effects[..., 1] = 0.5
    best, one, other = told.fall(effects, told.mlp, told.post, 2, np.random.default_rng(0))
    lead = torch.einsum("lkd,lkd->k", told.contrast(told.post).double(), told.mlp.double()).numpy()
    expected = effects[:, told.test].sort(-1, descending=True).values[..., 0].sum(0).numpy() / lead
    assert np.all(best >= expected)
    assert np.all(best - expected < 0.03)
    assert best.shape == one.shape == other.shape == (20, 3)
    difference = one - other
    assert abs(difference.mean()) < 3 * difference.std() / difference.size**0.5
    assert (one.max() < 0.1) == (width == 9)
    assert not np.array_equal(one[0], one[1])  # drawn anew for each situation


def test_two_drawn_are_never_one_set_and_differ_by_nothing():
    values = [np.full(3000, float(i)) for i in range(4)]
    mine, against = two_drawn(values, np.random.default_rng(0))
    assert np.all(mine != against)
    assert set(mine) == set(against) == {0.0, 1.0, 2.0, 3.0}
    assert abs((mine - against).mean()) < 0.12
