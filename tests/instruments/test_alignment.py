"""Distributed alignment search finds a planted subspace; random and shuffled ones carry nothing; the model is left as it was."""

import numpy as np
import pytest
import torch

from nullius.errors import UsageError
from nullius.instruments import alignment, interchange
from nullius.instruments.interchange import At
from nullius.instruments.planted import modular
from nullius.lab.calibrations.interchange import _pairs

PLACE = At("resid_post", 0)


def test_a_summand_is_found_in_a_state_that_holds_both():
    model, rng = modular.build(), np.random.default_rng(0)
    before = {name: value.clone() for name, value in model.hf.state_dict().items()}
    pairs = _pairs(model, "a", 800, rng)
    tested = alignment.search(model, pairs, PLACE, modular.MODULUS, rng)
    assert tested.learned.mean() > 0.8
    assert tested.random.mean() < 0.3
    assert tested.shuffled.mean() < 0.3
    assert interchange.accuracy(model, pairs, PLACE).mean() < 0.3  # the whole state carries the other summand too
    basis = tested.alignment.basis
    assert torch.allclose(basis @ basis.T, torch.eye(modular.MODULUS), atol=1e-5)
    assert tested.alignment.loss[-1] < tested.alignment.loss[0]
    assert all(torch.equal(value, before[name]) for name, value in model.hf.state_dict().items())
    assert all(parameter.grad is None for parameter in model.hf.parameters())


def test_the_same_seed_gives_the_same_basis():
    model = modular.build()
    pairs = _pairs(model, "b", 60, np.random.default_rng(0))
    one, two = (alignment.learn(model, pairs, PLACE, 3, np.random.default_rng(5), steps=5).basis for _ in range(2))
    assert torch.equal(one, two)


def test_the_better_of_two_starts_is_returned():
    model = modular.build()
    pairs = _pairs(model, "a", 60, np.random.default_rng(0))
    rng = np.random.default_rng(5)
    alone = [alignment.learn(model, pairs, PLACE, 3, rng, steps=20, starts=1) for _ in range(2)]
    both = alignment.learn(model, pairs, PLACE, 3, np.random.default_rng(5), steps=20, starts=2)
    assert torch.equal(both.basis, min(alone, key=lambda one: one.end).basis)
    assert alone[0].end != alone[1].end


def test_dimensions_that_do_not_exist_are_refused():
    model = modular.build()
    pairs = _pairs(model, "a", 20, np.random.default_rng(0))
    with pytest.raises(UsageError, match="takes 1 to 47 dimensions, not 48"):
        alignment.learn(model, pairs, PLACE, 48, np.random.default_rng(0))
