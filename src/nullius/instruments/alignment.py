"""Distributed alignment search: a learned rotation of a state, k dimensions of which carry a variable of a causal model (Geiger et al. 2024).

The k × d basis is orthonormal throughout (QR of free parameters) and is learned so that, with what lies in its span taken from the source, the
model says what the causal model says when the variable comes from there. Everything is judged on pairs with base texts not used to learn it, next to
two controls: a random basis of the same size, and a basis learned with shuffled counterfactual answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nullius.errors import UsageError
from nullius.instruments import checks, interchange
from nullius.instruments.interchange import At, Counterfactuals
from nullius.instruments.interventions import orthonormal
from nullius.models.language_model import LanguageModel


@dataclass(frozen=True)
class Alignment:
    """A learned basis [k, width], orthonormal rows; loss: mean negative log-probability of the wanted token at each step, in nats."""

    at: At
    basis: Tensor
    loss: tuple[float, ...]

    @property
    def end(self) -> float:
        """Mean loss of the last tenth of the steps."""
        return float(np.mean(self.loss[-max(1, len(self.loss) // 10) :]))


@dataclass(frozen=True)
class Tested:
    """Accuracy on held-out pairs, each [n]: with the learned basis, a random one, and one learned from shuffled answers."""

    alignment: Alignment
    learned: NDArray[np.float64]
    random: NDArray[np.float64]
    shuffled: NDArray[np.float64]


def learn(
    model: LanguageModel,
    train: Counterfactuals,
    at: At,
    k: int,
    rng: np.random.Generator,
    *,
    steps: int = 250,
    rate: float = 0.02,
    batch_size: int = 32,
    starts: int = 2,
    on_step: Callable[[int, int], None] | None = None,
) -> Alignment:
    """Learn a basis of k dimensions with Adam. The model's weights are left as they are.

    The loss has local minima (a variable whose values are half in the basis): the best of `starts` random starts, by the mean loss of the last tenth
    of its steps, is returned. Raises UsageError where k is not 1 … width − 1, for less than one step, start or pair, and as
    `interchange.transplant`.
    """
    checks.at_least_one(steps=steps, starts=starts, batch_size=batch_size)
    width = _width(model, at)
    if not 1 <= k < width:
        raise UsageError(f"an alignment at {at.site} takes 1 to {width - 1} dimensions, not {k}")
    pairs = interchange.prepare(model, train, at)
    wanted = torch.tensor(pairs.wanted, device=model.device)
    best: Alignment | None = None
    for start in range(starts):
        free = random_basis(k, width, rng).to(model.device).requires_grad_()
        optimiser = torch.optim.Adam([free], lr=rate)
        losses = []
        for step in range(steps):
            rows = rng.choice(len(train), min(batch_size, len(train)), replace=False).tolist()
            with torch.enable_grad():
                loss = torch.nn.functional.cross_entropy(pairs.logits(rows, orthonormal(free)), wanted[rows])
                (free.grad,) = torch.autograd.grad(loss, free)
            optimiser.step()
            losses.append(float(loss.detach()))
            if on_step is not None:
                on_step(start * steps + step + 1, starts * steps)
        found = Alignment(at, orthonormal(free.detach()), tuple(losses))
        if best is None or found.end < best.end:
            best = found
    assert best is not None
    return best


def search(
    model: LanguageModel,
    pairs: Counterfactuals,
    at: At,
    k: int,
    rng: np.random.Generator,
    *,
    steps: int = 250,
    rate: float = 0.02,
    starts: int = 2,
) -> Tested:
    """Learn on half of the base texts, and test on the other half beside both controls."""
    train, held_out = pairs.split(rng)
    found, null = (learn(model, side, at, k, rng, steps=steps, rate=rate, starts=starts) for side in (train, train.shuffled(rng)))
    chance = random_basis(k, _width(model, at), rng).to(model.device)
    return Tested(found, *(interchange.accuracy(model, held_out, at, basis) for basis in (found.basis, chance, null.basis)))


def random_basis(k: int, width: int, rng: np.random.Generator) -> Tensor:
    """k orthonormal directions drawn uniformly [k, width]."""
    return orthonormal(torch.tensor(rng.normal(size=(k, width)), dtype=torch.float32))


def _width(model: LanguageModel, at: At) -> int:
    """Of the state at a place: of one head at sites that have heads."""
    return model.anatomy.site(at.site, at.layer).width
