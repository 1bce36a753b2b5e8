"""Train small decoders on streams that ask: matched data for all that are compared, and what each gets right, sequence by sequence."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nullius.models import architectures
from nullius.stimuli.recall import NOTHING, Asked
from nullius.training.passes import Passes, recordable
from nullius.training.resuming import Kept

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Recipe:
    """How to train: steps of `batch` sequences; rate: the highest of AdamW, reached in a tenth of the steps, then down a cosine to a tenth."""

    steps: int = 300
    batch: int = 32
    rate: float = 3e-3
    weight_decay: float = 0.01
    spread: float = 0.1  # standard deviation of the first weights; small networks that learn for minutes need more than the usual 0.02
    bf16: bool = False  # compute in bfloat16 what bears it, on a GPU; weights and optimiser stay float32

    @classmethod
    def of_tokens(cls, tokens: int, length: int, batch: int, rate: float, **more: Any) -> Recipe:
        """As many steps as a budget of tokens allows, in batches of sequences of `length`."""
        return cls(max(1, tokens // (batch * length)), batch, rate, **more)


def fresh(wanted: Mapping[str, Any], seed: int, device: torch.device | str) -> Any:
    """Make a decoder (see `architectures.create`) with weights drawn from a seed; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hf: Any = architectures.create(wanted)
    return hf.to(device)


@dataclass(frozen=True)
class Bench:
    """What the networks of one study share: their device and seed, where they are kept, and who hears how far each is (label, done, total)."""

    device: torch.device
    seed: int
    store: Kept
    show: Callable[[str, int, int], None]

    def trained(
        self, label: str, wanted: Mapping[str, Any], data: Asked, how: Recipe, number: int, prepare: Callable[[Any], None] | None = None
    ) -> Any:
        """Make and train a network, or take it up as it was trained before the study was interrupted.

        Networks of one number begin with the same random numbers and see the same batches. prepare: changes it before training.
        """
        hf = self.fresh(wanted, data.vocabulary, how, number)
        if prepare is not None:
            prepare(hf)

        def train() -> None:
            fit(hf, data, how, self._seed(number), lambda done, total: self.show(label, done, total))

        self.store.train(hf.eval(), label, train)
        return hf

    def fresh(self, wanted: Mapping[str, Any], vocabulary: int, how: Recipe, number: int) -> Any:
        """The same network before training."""
        return fresh({**wanted, "vocab_size": vocabulary, "initializer_range": how.spread}, self._seed(number), self.device).eval()

    def _seed(self, number: int) -> int:
        return self.seed * 1000 + number


def fit(hf: Any, data: Asked, how: Recipe, seed: int, on_step: Callable[[int, int], None] | None = None) -> float:
    """Train a causal model of transformers in place, the loss taken where the stream asks. Returns the mean loss of the last tenth of the steps.

    The order of the data depends on the seed alone: models trained with one seed see the same batches. The norm of the gradient is clipped at 1.
    On a GPU passes are recorded where that can be (see `passes`): small networks would wait for the processor.
    """
    device = next(hf.parameters()).device
    cuda = device.type == "cuda"
    tokens, targets = (torch.from_numpy(x).to(device) for x in (data.tokens, data.targets))
    order = np.random.default_rng(seed)
    # all at once: each copy makes the processor wait for the GPU
    batches = torch.from_numpy(np.stack([order.integers(len(data), size=how.batch) for _ in range(how.steps)])).to(device)
    optimiser = torch.optim.AdamW(hf.parameters(), lr=how.rate, weight_decay=how.weight_decay, betas=(0.9, 0.95), fused=cuda)
    warm = max(1, how.steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min((step + 1) / warm, 0.55 + 0.45 * np.cos(np.pi * min(1.0, max(0, step - warm) / max(1, how.steps - warm)))),
    )
    autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=how.bf16 and cuda)
    passes = Passes(partial(_mean_loss, hf), list(hf.parameters()), device, autocast, record=cuda and recordable(hf), note=warnings.warn)
    hf.train()
    losses: list[Tensor] = []
    for step, rows in enumerate(batches):
        losses.append(passes([torch.stack((tokens[rows], targets[rows]))]))
        torch.nn.utils.clip_grad_norm_(hf.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if on_step is not None:
            on_step(step + 1, how.steps)
    hf.eval().zero_grad()  # gradients of a recorded pass would keep its memory
    return float(torch.stack(losses[-max(1, how.steps // 10) :]).mean())


@torch.no_grad()
def measure(hf: Any, data: Asked, batch: int = 128) -> tuple[Floats, Floats]:
    """Return for each sequence [n] the mean loss in nats where it asks, and the share of its questions that the likeliest symbol answers.

    Sequences that ask nothing are not allowed.
    """
    device = next(hf.parameters()).device
    found: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(data), batch):
        part = data[start : start + batch]
        found.append(_per_sequence(hf, torch.from_numpy(part.tokens).to(device), torch.from_numpy(part.targets).to(device)))
    loss, right = (torch.cat([pair[i] for pair in found]).double().cpu().numpy() for i in (0, 1))
    return loss, right


def _mean_loss(hf: Any, rows: Tensor) -> Tensor:
    """Mean loss where it is asked. rows [2, n, T]: tokens and targets."""
    tokens, targets = rows
    there = targets.flatten() != NOTHING
    # a recorded pass has one shape, whatever is asked; elsewhere no logits are made in vain
    places = None if rows.is_cuda or bool(there.all()) else there.nonzero()[:, 0]
    return _losses(hf, tokens, targets, places)[0].sum() / there.sum()


def _losses(hf: Any, tokens: Tensor, targets: Tensor, places: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Loss [q], logits [q, V] and target [q] at each question, only there. places [q]: where the batch asks, row after row; None: at all positions,
    the loss 0 where nothing is asked."""
    hidden, wanted = hf.model(input_ids=tokens, use_cache=False).last_hidden_state.flatten(0, 1), targets.flatten()
    if places is not None:
        hidden, wanted = hidden[places], wanted[places]
    logits = hf.lm_head(hidden).float()
    return F.cross_entropy(logits, wanted, reduction="none", ignore_index=NOTHING), logits, wanted


def _per_sequence(hf: Any, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    places = (targets.flatten() != NOTHING).nonzero()[:, 0]
    loss, logits, wanted = _losses(hf, tokens, targets, places)
    rows = places // tokens.shape[1]
    count = torch.bincount(rows, minlength=len(tokens))
    sums = count.new_zeros((2, len(tokens)), dtype=torch.float64)
    for to, x in zip(sums, (loss, logits.argmax(-1) == wanted), strict=True):
        to.index_add_(0, rows, x.double())  # not bincount, which sums in no fixed order on CUDA
    loss, right = sums / count
    return loss, right
