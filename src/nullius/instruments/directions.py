"""Directions: unit vectors in a model's states along which something varies.

States are [.., n, d]: of one layer, or of all of them stacked; what is found is [.., d], layer by layer. Items of a *group* share everything but
the class (a scenario told in six emotions); contrasts within groups take away what the group is about. Directions are float64, in the states' units
where they are not scaled to length 1.

Whatever learns a direction raises UsageError, one line, for states that are not finite, of another shape, or too few, and for labels that are not 0
and 1, one for each item.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from nullius.errors import UsageError
from nullius.instruments import checks


def unit(x: Tensor) -> Tensor:
    """Vectors [.., d] of length 1; a zero vector stays zero."""
    return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-30)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of vectors [.., d] and [.., d]: [..]. 0 where one of them is zero. Raises UsageError for vectors of different widths."""
    checks.wide(b, a.shape[-1], "the vectors compared")
    return (unit(a.double()) * unit(b.double())).sum(-1)


def projection(states: Tensor, directions: Tensor) -> Tensor:
    """Length of states [.., n, d] along the unit vector of each direction [.., k, d]: [.., n, k]. Raises UsageError for different widths."""
    checks.wide(directions, states.shape[-1], "directions")
    return states.float() @ unit(directions.float()).mT.to(states.device)


def difference_of_means(states: Tensor, labels: ArrayLike) -> Tensor:
    """Mean of the items with label 1 minus that of those with label 0, not scaled: [.., d]. labels: [n]."""
    ones = _two(states, labels)
    return states[..., ones, :].double().mean(-2) - states[..., ~ones, :].double().mean(-2)


def lda(states: Tensor, labels: ArrayLike, shrinkage: float | None = None) -> Tensor:
    """Fisher's linear discriminant Σ⁻¹(μ₁ − μ₀), unit length [.., d]; Σ: pooled covariance within classes, shrunk towards a multiple of 1.

    shrinkage: between 0 (none) and 1; None: that of Ledoit and Wolf 2004, layer by layer. Raises UsageError also where Σ has no inverse: no item
    differs from its class's mean, or, unshrunk, fewer than d of them do.
    """
    ones = _two(states, labels)
    if shrinkage is not None and not 0 <= shrinkage <= 1:
        raise UsageError(f"shrinkage must lie between 0 and 1, not {shrinkage}")
    x = states.double()
    d = x.shape[-1]
    centred = torch.cat([part - part.mean(-2, keepdim=True) for part in (x[..., ones, :], x[..., ~ones, :])], -2)
    covariance = centred.mT @ centred / centred.shape[-2]
    level = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)
    if not bool((level > 1e-20 * x.square().mean((-2, -1)).clamp(min=1e-30)).all()):
        raise UsageError("a discriminant needs items that differ within their class: these do not vary")
    weight = torch.full_like(level, shrinkage) if shrinkage is not None else _ledoit_wolf(centred, covariance, level)
    if bool((weight < 1e-9).any()) and bool((torch.linalg.matrix_rank(covariance[weight < 1e-9], hermitian=True) < d).any()):
        raise UsageError(
            f"{x.shape[-2]} items do not span {d} dimensions within their classes: a discriminant needs more, or a shrinkage above 0"
        )
    eye = torch.eye(d, dtype=x.dtype, device=x.device)
    shrunk = (1 - weight)[..., None, None] * covariance + (weight * level)[..., None, None] * eye
    return unit(torch.linalg.solve(shrunk, difference_of_means(states, labels)[..., None])[..., 0])


def _ledoit_wolf(centred: Tensor, covariance: Tensor, level: Tensor) -> Tensor:
    n, d = centred.shape[-2:]
    squares = centred.square()
    spread = ((squares.mT @ squares).sum((-2, -1)) / n - covariance.square().sum((-2, -1))) / (d * n)  # variance of the entries of Σ
    distance = covariance.square().sum((-2, -1)) / d - level.square()
    return (torch.minimum(spread, distance) / distance.clamp(min=1e-30)).clamp(0, 1)


def pca(states: Tensor, k: int = 1) -> Tensor:
    """The k first principal directions, orthonormal [.., k, d], each with its largest entry positive.

    Raises UsageError for more of them than the states vary in.
    """
    if states.ndim < 2:
        raise UsageError(f"principal directions are those of states [.., n, d]; got {list(states.shape)}")
    n, d = checks.finite(states, "states").shape[-2:]
    if not 1 <= k <= min(n - 1, d):
        raise UsageError(f"{n} states of {d} entries have 1 to {min(n - 1, d)} principal directions, not {k}")
    x = states.double() - states.double().mean(-2, keepdim=True)
    _, sizes, axes = torch.linalg.svd(x, full_matrices=False)
    rank = int((sizes > 1e-10 * states.double().norm(dim=(-2, -1)).clamp(min=1e-300)[..., None]).sum(-1).min())
    if rank < k:
        raise UsageError(f"the states vary in {rank} directions: there are no {k} principal ones")
    found = axes[..., :k, :]
    largest = found.gather(-1, found.abs().argmax(-1, keepdim=True))
    return found * largest.sign()


def contrastive(first: Tensor, second: Tensor, *, principal: bool = False) -> Tensor:
    """Unit direction [.., d] of pairs of states [.., n, d] that differ in one respect: mean of the differences, or their first principal axis.

    principal: the direction of largest mean square of the differences, *not* centred, signed towards their mean (Zou et al. 2023, arXiv
    2310.01405).
    """
    if first.shape != second.shape or first.ndim < 2 or not first.shape[-2]:
        raise UsageError(f"pairs must be [.., n, d], as many on both sides; got {list(first.shape)} and {list(second.shape)}")
    difference = checks.finite(first.double() - second.double(), "the differences of pairs")
    mean = difference.mean(-2)
    if not principal:
        return unit(mean)
    axis = torch.linalg.svd(difference, full_matrices=False).Vh[..., 0, :]
    return axis * torch.where((axis * mean).sum(-1, keepdim=True) < 0, -1.0, 1.0)


def group_contrast(states: Tensor) -> Tensor:
    """Unit directions of classes [.., classes, d] from states [.., groups, classes, d], every group in every class.

    Mean over groups of what each class has beyond its group's mean. Over classes the directions sum to zero before they are scaled.
    """
    return unit(_contrasts(states).mean(-3))


def _contrasts(states: Tensor) -> Tensor:
    if states.ndim < 3 or states.shape[-3] < 2 or states.shape[-2] < 2:
        raise UsageError(f"group contrasts need states [.., groups, classes, d] with two of each at least; got {list(states.shape)}")
    x = checks.finite(states.double(), "states")
    return x - x.mean(-2, keepdim=True)


def nearest(states: Tensor, directions: Tensor, centre: Tensor) -> Tensor:
    """Which direction [.., classes, d] each state [.., n, d], less a centre [.., d], has the largest cosine with: [.., n].

    Raises UsageError for different widths and for states that are not finite.
    """
    for x, what in ((directions, "directions"), (centre, "the centre")):
        checks.wide(x, states.shape[-1], what)
    checks.finite(states, "states")
    return (unit(states.double() - centre.double()[..., None, :]) @ unit(directions.double()).mT).argmax(-1)


def leave_group_out(states: Tensor, *, within: bool = False) -> NDArray[np.float64]:
    """Whether each state is nearest to its own class's direction: [.., groups, classes], from states [.., groups, classes, d].

    Directions come from all *other* groups, and so does the centre, so that an item is classified by itself; `within`: the centre is the mean of
    the item's own group, which takes away what the group is about, and presumes that it is at hand in all classes. Chance is one in `classes`.
    """
    contrasts, x = _contrasts(states), states.double()
    n = x.shape[-3]
    others = unit((contrasts.sum(-3, keepdim=True) - contrasts) / (n - 1))  # [.., groups, classes, d]
    means = x.mean(-2)
    centre = means if within else (means.sum(-2, keepdim=True) - means) / (n - 1)  # [.., groups, d]
    said = nearest(x, others, centre)
    return (said == torch.arange(x.shape[-2], device=x.device)).double().cpu().numpy()


def permuted(states: Tensor, rng: np.random.Generator) -> Tensor:
    """The same states [.., groups, classes, d] with classes permuted within each group, alike at all layers: what nothing can be learnt from."""
    if states.ndim < 3:
        raise UsageError(f"classes are permuted in states [.., groups, classes, d]; got {list(states.shape)}")
    groups, classes = states.shape[-3:-1]
    order = torch.tensor(np.stack([rng.permutation(classes) for _ in range(groups)]), device=states.device)
    return states.gather(-2, order[..., None].expand(states.shape))


def random_like(directions: Tensor, rng: np.random.Generator) -> Tensor:
    """Random directions of the same shape [.., d] and lengths."""
    noise = torch.tensor(rng.normal(size=tuple(directions.shape)), dtype=directions.dtype, device=directions.device)
    return unit(noise) * directions.norm(dim=-1, keepdim=True)


def arranged(states: Tensor, groups: Sequence[object], classes: Sequence[object]) -> Tensor:
    """States [.., n, d] as [.., groups, classes, d], both in order of first appearance. Raises UsageError where a group lacks a class, or has it
    twice."""
    if not len(groups) == len(classes) == states.shape[-2]:
        raise UsageError(f"{states.shape[-2]} states need as many groups and classes, not {len(groups)} and {len(classes)}")
    rows, columns = list(dict.fromkeys(groups)), list(dict.fromkeys(classes))
    place = {pair: i for i, pair in enumerate(zip(groups, classes, strict=True))}
    if len(place) != len(groups) or len(place) != len(rows) * len(columns):
        raise UsageError(f"{len(groups)} states do not fill {len(rows)} groups of {len(columns)} classes, one each")
    order = torch.tensor([[place[row, column] for column in columns] for row in rows], device=states.device)
    return states[..., order, :]


def _two(states: Tensor, labels: ArrayLike) -> Tensor:
    if states.ndim < 2 or np.shape(labels) != (states.shape[-2],):
        raise UsageError(f"{len(np.ravel(labels))} labels do not fit states {list(states.shape)}: one for each of [.., n, d]")
    ones = torch.as_tensor(checks.binary(labels, states.shape[-2], "a direction between two classes") == 1, device=states.device)
    if not 0 < int(ones.sum()) < len(ones):
        raise UsageError("a direction between two classes needs items with label 1 and items with label 0")
    checks.finite(states, "states")
    return ones
