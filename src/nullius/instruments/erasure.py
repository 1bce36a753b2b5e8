"""Erasure of a concept from states: LEACE, the smallest change after which no linear probe can tell the classes (Belrose et al. 2023, arXiv
2306.03819).

r(x) = x − W⁺ P W (x − μ), where W = Σ_xx^(−1/2) whitens and P projects onto the columns of W Σ_xz (z: the class). Of all affine maps after which
Σ_xz = 0 it has the least mean squared change (Theorem 4.3). Moments are gathered in a stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nullius.errors import UsageError
from nullius.instruments import checks
from nullius.instruments.interventions import Intervention
from nullius.instruments.where import Where


@dataclass(frozen=True)
class Eraser:
    """x ↦ x − L R (x − μ). mean: μ [d]; left: L [d, k]; right: R [k, d], k at most classes − 1. float64."""

    mean: Tensor
    left: Tensor
    right: Tensor

    def __call__(self, states: Tensor) -> Tensor:
        """Erase the concept from states [.., d]; computed in float64, returned in their own type. Raises UsageError for another width."""
        x = checks.wide(states, len(self.mean), "states to erase from").double()
        return (x - (x - self.mean.to(x.device)) @ self.right.T.to(x.device) @ self.left.T.to(x.device)).to(states.dtype)


class Moments:
    """Running means and covariances of states and classes, batch after batch (Chan, Golub and LeVeque 1983)."""

    def __init__(self, classes: int) -> None:
        if classes < 2:
            raise UsageError("a concept to erase has two classes at least")
        self.classes, self.n = classes, 0
        self._mean: Tensor | None = None
        self._square: Tensor | None = None  # Σ (x, z)(x, z)ᵀ about the mean

    def update(self, states: Tensor, labels: Sequence[int] | Tensor) -> None:
        """Take in states [n, d] with their classes [n], 0 to classes − 1. Raises UsageError for labels of another kind or number, and for states
        that are not finite or of another width than those before."""
        z = _classes(labels).to(states.device)
        if states.ndim != 2 or z.shape != states.shape[:1] or not len(z) or int(z.min()) < 0 or int(z.max()) >= self.classes:
            raise UsageError(f"states {list(states.shape)} need as many labels between 0 and {self.classes - 1}")
        if self._mean is not None:
            checks.wide(states, len(self._mean) - self.classes, "states")
        checks.finite(states, "states")
        both = torch.cat([states.double(), torch.nn.functional.one_hot(z, self.classes).double()], 1)
        mean = both.mean(0)
        square = (both - mean).T @ (both - mean)
        if self._mean is None or self._square is None:
            self._mean, self._square = mean, square
        else:
            gap, n = mean - self._mean, len(z)
            self._square = self._square + square + torch.outer(gap, gap) * (self.n * n / (self.n + n))
            self._mean = self._mean + gap * (n / (self.n + n))
        self.n += len(z)

    def eraser(self, tolerance: float = 1e-10) -> Eraser:
        """The LEACE map. tolerance: variances and covariances below this share of the largest count as zero. Raises UsageError before two
        states, and where all are of one class, which nothing tells from another."""
        if self._mean is None or self._square is None or self.n < 2:
            raise UsageError("no states to learn an erasure from: update() first")
        d = len(self._mean) - self.classes
        present = (self._mean[d:] > 0).nonzero()[:, 0].tolist()
        if len(present) < 2:
            raise UsageError(f"all {self.n} states are of class {present[0]}: there is no other to erase it against")
        covariance, cross = self._square[:d, :d] / self.n, self._square[:d, d:] / self.n
        values, vectors = torch.linalg.eigh(covariance)
        there = values > tolerance * values.max()
        root = values.clamp(min=0).sqrt()
        inverse = torch.where(there, 1 / root.clamp(min=1e-300), 0.0)
        whiten, unwhiten = (vectors * inverse) @ vectors.T, (vectors * (root * there)) @ vectors.T
        u, s, _ = torch.linalg.svd(whiten @ cross, full_matrices=False)
        u = u[:, s > max(1e-8, tolerance)][:, : self.classes - 1]  # correlations with z; one-hot has rank classes − 1
        return Eraser(self._mean[:d], unwhiten @ u, u.T @ whiten)


def leace(states: Tensor, labels: Sequence[int] | Tensor) -> Eraser:
    """Learn to erase classes 0 … from states [n, d] held in memory. labels: [n]. Errors as in `Moments`."""
    z = _classes(labels)
    if not z.numel():
        raise UsageError("no states to learn an erasure from")
    moments = Moments(int(z.max()) + 1)
    moments.update(states, z)
    return moments.eraser()


def _classes(labels: Sequence[int] | Tensor) -> Tensor:
    """Labels as whole numbers: 0.5 is no class, and must not become one."""
    try:
        z = torch.as_tensor(labels)
    except (ValueError, TypeError):
        raise UsageError("the classes of an erasure are whole numbers from 0 on") from None
    if z.is_floating_point() and not bool((z == z.round()).all()):
        raise UsageError("the classes of an erasure are whole numbers from 0 on")
    return z.long()


def erase(where: Where, eraser: Eraser) -> Intervention:
    """Erase the concept at a site while the model runs (a whole site: no heads, units or basis)."""
    if where.heads is not None or where.units is not None or where.basis is not None:
        raise UsageError("erasure acts on a whole site: leave out heads, units and basis")
    return Intervention(where, lambda part, _cells: eraser(part))
