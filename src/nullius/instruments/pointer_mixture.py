"""A mixture of three pointers over n candidates, fitted to how a model's answers move under interchange (Gur-Arieh et al. 2025, section 5).

    logit(a) = w · exp(−(a − p)² / 2σ(p)²) + g_lex[k] · 1{a = k} + g_ref[i] · 1{a = i},    σ(p) = c₂ (p/n)² + c₁ (p/n) + c₀

for pointers to place p (blurry), to the key at k and to the answer at i (sharp). Fitted to mean probabilities of the candidates, cell by cell of
(p, k, i), by the Jensen–Shannon divergence in bits; judged on cells that were not fitted by the similarity 1 − JSD.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from nullius.errors import NulliusError, UsageError
from nullius.instruments import checks

Floats = NDArray[np.float64]
TERMS = ("positional", "lexical", "reflexive")


@dataclass(frozen=True)
class Cells:
    """at: places (p, k, i) [cells, 3]. target: mean probabilities of the candidates [cells, n]. count: samples in each cell [cells]."""

    at: NDArray[np.int64]
    target: Floats
    count: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.at)

    def part(self, rows: ArrayLike) -> Cells:
        """Some of the cells."""
        chosen = np.asarray(rows) if np.size(rows) else np.empty(0, dtype=np.int64)
        return Cells(self.at[chosen], self.target[chosen], self.count[chosen])

    def split(self, rng: np.random.Generator) -> tuple[Cells, Cells, Cells]:
        """Split at random into 70 % to fit, 15 % to stop by, 15 % to judge by. Raises UsageError for fewer than five cells: a part would be empty."""
        checks.at_least(len(self), 5, "the number of cells to split")
        order = rng.permutation(len(self))
        first, second = round(0.7 * len(self)), round(0.85 * len(self))
        return self.part(order[:first]), self.part(order[first:second]), self.part(order[second:])

    def permuted(self, rng: np.random.Generator, column: int | None = None) -> Cells:
        """The targets of other cells (all of each target together); or one of the three places shuffled over cells."""
        order = rng.permutation(len(self))
        if column is None:
            return Cells(self.at, self.target[order], self.count[order])
        at = self.at.copy()
        at[:, column] = at[order, column]
        return Cells(at, self.target, self.count)


def cells(at: ArrayLike, probabilities: ArrayLike) -> Cells:
    """Average the probabilities [samples, n] of samples at the same places [samples, 3]. Raises UsageError for samples that are no distributions, as
    many as there are places."""
    given = np.asarray(probabilities, dtype=np.float64)
    if given.ndim != 2 or np.shape(at) != (len(given), 3):
        raise UsageError(f"samples need places [n, 3] and probabilities [n, candidates]; got {list(np.shape(at))} and {list(given.shape)}")
    if not (np.isfinite(given).all() and (given >= 0).all() and np.allclose(given.sum(1), 1, atol=1e-3)):
        raise UsageError("probabilities of candidates must not be below 0, and must add up to 1 in each sample")
    places, inverse, count = np.unique(np.asarray(at, dtype=np.int64), axis=0, return_inverse=True, return_counts=True)
    total = np.zeros((len(places), given.shape[1]))
    np.add.at(total, inverse.ravel(), given)
    return Cells(places, total / count[:, None], count)


@dataclass(frozen=True)
class Mixture:
    """Fitted parameters. w: weight of the positional term; sigma: (c₂, c₁, c₀); lexical, reflexive: tables [n]. terms: those that are in it."""

    n: int
    terms: tuple[str, ...]
    w: float
    sigma: tuple[float, float, float]
    lexical: Floats
    reflexive: Floats
    one_hot: bool

    def width(self, p: ArrayLike) -> Floats:
        """σ at places p."""
        x = np.asarray(p, dtype=np.float64) / self.n
        return np.abs(self.sigma[0] * x**2 + self.sigma[1] * x + self.sigma[2]) + 1e-6

    def predict(self, at: ArrayLike) -> Floats:
        """Probabilities of the candidates [cells, n] at places [cells, 3]. Raises UsageError for places that are not among the n."""
        _among(at, self.n)
        free = {"w": self.w, "sigma": self.sigma, "lexical": self.lexical, "reflexive": self.reflexive}
        tensors = {name: torch.as_tensor(np.asarray(value, dtype=np.float64)) for name, value in free.items()}
        return _logits(tensors, torch.as_tensor(np.asarray(at)), self.n, self.terms, self.one_hot).softmax(-1).numpy()


def fit(
    train: Cells,
    stop: Cells,
    terms: Collection[str] = TERMS,
    *,
    one_hot: bool = False,
    rate: float = 0.05,
    epochs: int = 5000,
    patience: int = 500,
) -> Mixture:
    """Fit with Adam on all cells at once, and keep the parameters best on `stop`; ends when `patience` epochs brought nothing better.

    terms: which of TERMS are in the mixture. one_hot: the positional term is 1{a = p} instead of a Gaussian.
    Raises NulliusError for a term that does not exist; UsageError for no cell to fit or to stop by, places that are not among the candidates, other
    numbers of these, and less than one epoch.
    """
    checks.at_least(epochs, 1, "epochs")
    if not len(train) or not len(stop) or train.target.shape[1] != stop.target.shape[1]:
        raise UsageError(
            f"a mixture needs cells to fit and to stop by, of as many candidates; got {train.target.shape} and {stop.target.shape}"
        )
    for part in (train, stop):
        _among(part.at, train.target.shape[1])
    if not set(terms) <= set(TERMS):
        raise NulliusError(f"the terms of a mixture are {', '.join(TERMS)}; got {', '.join(terms)}")
    n = train.target.shape[1]
    start = {"w": 1.0, "sigma": [0.0, 0.0, 3.0], "lexical": [0.0] * n, "reflexive": [0.0] * n}
    free = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in start.items()}
    optimiser = torch.optim.Adam(free.values(), lr=rate)
    chosen = tuple(term for term in TERMS if term in terms)
    data = [(torch.as_tensor(part.at), torch.as_tensor(part.target)) for part in (train, stop)]
    best, kept, since = np.inf, {}, 0
    for _ in range(epochs):
        optimiser.zero_grad()
        with torch.enable_grad():
            loss = _divergence(_logits(free, data[0][0], n, chosen, one_hot).softmax(-1), data[0][1]).mean()
            if loss.requires_grad:
                loss.backward()
                optimiser.step()
        with torch.no_grad():
            now = float(_divergence(_logits(free, data[1][0], n, chosen, one_hot).softmax(-1), data[1][1]).mean())
        since += 1
        if now < best - 1e-7:
            best, since = now, 0
            kept = {name: value.detach().clone().numpy() for name, value in free.items()}
        if since >= patience:
            break
    w, sigma = float(kept["w"]), tuple(float(value) for value in kept["sigma"])
    return Mixture(n, chosen, w, (sigma[0], sigma[1], sigma[2]), kept["lexical"], kept["reflexive"], one_hot)


def _logits(free: dict[str, Tensor], at: Tensor, n: int, terms: Sequence[str], one_hot: bool) -> Tensor:
    places = torch.arange(n, dtype=torch.float64)
    p, k, i = at.T
    out = torch.zeros(len(at), n, dtype=torch.float64)
    if "positional" in terms:
        x = p.double() / n
        sigma = free["sigma"][0] * x**2 + free["sigma"][1] * x + free["sigma"][2]
        distance = (places[None] - p[:, None].double()) ** 2
        bump = (distance == 0).double() if one_hot else torch.exp(-distance / (2 * (sigma.abs() + 1e-6)[:, None] ** 2))
        out = out + free["w"] * bump
    for name, where in (("lexical", k), ("reflexive", i)):
        if name in terms:
            out = out + free[name][where][:, None] * torch.nn.functional.one_hot(where, n)
    return out


def _divergence(a: Tensor, b: Tensor) -> Tensor:
    """Jensen–Shannon divergence in bits of distributions [.., n]: [..]."""
    middle = (a + b) / 2
    halves = [torch.special.xlogy(x, x) - torch.special.xlogy(x, middle.clamp(min=1e-300)) for x in (a, b)]
    return (halves[0] + halves[1]).sum(-1) / (2 * np.log(2))


def similarity(predicted: ArrayLike, target: ArrayLike) -> Floats:
    """1 − Jensen–Shannon divergence in bits, cell by cell: [cells, n] twice → [cells]; 1 the same, 0 nothing in common. Raises UsageError for other
    shapes."""
    if np.shape(predicted) != np.shape(target):
        raise UsageError(f"distributions must be compared one by one; got {list(np.shape(predicted))} and {list(np.shape(target))}")
    return 1 - _divergence(*(torch.as_tensor(np.asarray(x, dtype=np.float64)) for x in (predicted, target))).numpy()


def divergences(predicted: ArrayLike, target: ArrayLike) -> tuple[float, float]:
    """Mean Kullback–Leibler divergence in bits, of target from prediction and of prediction from target (probabilities below 1e-9 count as that)."""
    p, t = (np.clip(np.asarray(x, dtype=np.float64), 1e-9, None) for x in (predicted, target))
    return float((t * np.log2(t / p)).sum(1).mean()), float((p * np.log2(p / t)).sum(1).mean())


def one_hot(at: ArrayLike, n: int) -> Floats:
    """The prevailing view: everything on the group at place p. [cells, n]."""
    return np.eye(n)[np.asarray(at)[:, 0]]


def uniform(count: int, n: int) -> Floats:
    """Knowing nothing: [count, n]."""
    return np.full((count, n), 1 / n)


def compare(train: Cells, stop: Cells, judged: Cells, rng: np.random.Generator, fit: Callable[..., Mixture] = fit) -> dict[str, Floats]:
    """Similarities on cells not fitted, and what they are measured against, each [judged cells].

    full, one-hot, uniform: similarity of the mixture and of both rivals. gain: of the mixture over the rival that is better on `stop`. kl: its
    `divergences` [2]. null: of a mixture over uniform where targets are permuted over cells. Each term's name: what the mixture loses without it;
    with " null": what it loses where that pointer's place was shuffled over cells before the fit, so that there was nothing to lose.
    """
    n = judged.target.shape[1]

    def judge(parts: Sequence[Cells], terms: Collection[str] = TERMS) -> Floats:
        return similarity(fit(parts[0], parts[1], terms).predict(parts[2].at), parts[2].target)

    parts = (train, stop, judged)
    whole = fit(train, stop, TERMS).predict(judged.at)
    good = similarity(whole, judged.target)
    rivals = [similarity(guess, judged.target) for guess in (one_hot(judged.at, n), uniform(len(judged), n))]
    better = int(np.argmax([similarity(guess, stop.target).mean() for guess in (one_hot(stop.at, n), uniform(len(stop), n))]))
    empty = [part.permuted(rng) for part in parts]
    found = {"full": good, "one-hot": rivals[0], "uniform": rivals[1], "gain": good - rivals[better]}
    found["kl"] = np.array(divergences(whole, judged.target))
    found["null"] = judge(empty) - similarity(uniform(len(judged), n), empty[2].target)
    for column, name in enumerate(TERMS):
        without = [term for term in TERMS if term != name]
        shuffled = [part.permuted(rng, column) for part in parts]
        found[name], found[f"{name} null"] = good - judge(parts, without), judge(shuffled) - judge(shuffled, without)
    return found


def _among(at: ArrayLike, n: int) -> None:
    places = np.asarray(at)
    if places.ndim != 2 or places.shape[1] != 3 or (places.size and not (places.min() >= 0 and places.max() < n)):
        raise UsageError(
            f"places must be [cells, 3], each from 0 to {n - 1}; got {list(places.shape)} {places.min(initial=0)} to {places.max(initial=0)}"
        )
