"""Small nonlinear probes: one hidden layer on every layer of the model at once, for `probes.cross_validate` and whatever takes a `probes.Fit`.

What a nonlinear probe reads and a linear one does not is either held nonlinearly or learnt by the probe itself: look at its selectivity on a
control task (`control_tasks`; Hewitt and Liang 2019) before believing it. Pimentel et al. 2020 (arXiv 2004.03061) argue for the larger probe all
the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nullius.errors import UsageError
from nullius.instruments import checks
from nullius.instruments.probes import Fit, Probes, checked


@dataclass(frozen=True)
class MLPProbes(Probes):
    """score(x) = relu((x − mean) / deviation · first + inner) · weights + bias.

    weights: [layers, labellings, hidden]; bias: [layers, labellings]; first: [layers, labellings, d, hidden]; inner: [layers, labellings, hidden];
    mean, deviation: [layers, 1, d].
    """

    first: Tensor
    inner: Tensor
    mean: Tensor
    deviation: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """Return log odds of label 1 [labellings, layers, items] of features [layers, items, d]. Raises UsageError for other layers or another
        width."""
        layers, _, d = self.mean.shape
        if features.ndim != 3 or (features.shape[0], features.shape[2]) != (layers, d):
            raise UsageError(f"these probes read features [{layers}, items, {d}]; got {list(features.shape)}")
        x = (features.to(self.first) - self.mean) / self.deviation
        hidden = torch.relu(torch.einsum("lnd,lrdh->lrnh", x, self.first) + self.inner[:, :, None])
        return (torch.einsum("lrnh,lrh->lrn", hidden, self.weights) + self.bias[:, :, None]).transpose(0, 1)


def mlp(hidden: int = 16, steps: int = 200, learning_rate: float = 0.02, decay: float = 1e-3, seed: int = 0) -> Fit:
    """Return a fit: full-batch Adam on the logistic loss of standardised features, all layers and labellings as one batched product.

    decay: weight of ½|parameters|² in the loss (of one item). Every probe starts alike, so that
    one fitted among others is the one fitted alone. Raises UsageError for fewer than one hidden unit or step; the fit's errors are those of
    `probes.logistic`.
    """
    checks.at_least(hidden, 1, "the number of hidden units")
    checks.at_least(steps, 1, "the number of steps")

    def fit(features: Tensor, labels: Tensor) -> Probes:
        y = checked(features, labels).float()
        x = features.float()
        mean, deviation = x.mean(1, keepdim=True), x.std(1, correction=0, keepdim=True)
        deviation = torch.where(deviation > 1e-6 * (1 + mean.abs()), deviation, 1.0)
        x = (x - mean) / deviation
        layers, _, d = x.shape
        shape, generator = (layers, len(y)), torch.Generator().manual_seed(seed)
        first = (torch.randn(d, hidden, generator=generator) / d**0.5).to(x.device).expand(*shape, d, hidden)
        weights = (torch.randn(hidden, generator=generator) / hidden**0.5).to(x.device).expand(*shape, hidden)
        parameters = [first, torch.zeros(*shape, hidden, device=x.device), weights, torch.zeros(*shape, device=x.device)]
        with torch.enable_grad():
            parameters = [p.clone().requires_grad_() for p in parameters]
            optimiser = torch.optim.Adam(parameters, learning_rate)
            for _ in range(steps):
                first, inner, weights, bias = parameters
                scores = MLPProbes(weights, bias, first, inner, torch.zeros_like(mean), torch.ones_like(deviation)).scores(x)
                loss = torch.nn.functional.binary_cross_entropy_with_logits(scores, y[:, None].expand_as(scores), reduction="none")
                size = sum(p.square().flatten(2).sum(2).sum() if p.ndim > 2 else p.sum() * 0 for p in parameters)
                optimiser.zero_grad()
                (loss.mean(2).sum() + decay / 2 * size).backward()  # a sum over probes: each is a problem of its own
                optimiser.step()
        first, inner, weights, bias = (p.detach() for p in parameters)
        return MLPProbes(weights, bias, first, inner, mean, deviation)

    return fit
