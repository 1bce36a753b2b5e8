"""Small networks that learn to predict the next word from nine, and the activations at each of their stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

STAGES = ("input", "LSTM 1", "LSTM 2", "dense")


class NextWord(nn.Module):
    """Embedding → LSTM → LSTM → dense (tanh) → vocabulary. Word vectors are trained from scratch: no class is given at the input."""

    def __init__(self, vocabulary: int, embedding: int = 48, first: int = 96, second: int = 64, dense: int = 48) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.first = nn.LSTM(embedding, first, batch_first=True)
        self.second = nn.LSTM(first, second, batch_first=True)
        self.dense = nn.Linear(second, dense)
        self.out = nn.Linear(dense, vocabulary)

    def stages(self, words: Tensor) -> list[Tensor]:
        """Activations after nine words [B, 9] at each of STAGES: the nine embeddings in a row, last states, the dense layer [B, D]."""
        x = self.embedding(words)
        one, _ = self.first(x)
        two, _ = self.second(one)
        return [x.flatten(1), one[:, -1], two[:, -1], torch.tanh(self.dense(two[:, -1]))]

    def forward(self, words: Tensor) -> Tensor:
        """Logits of the next word [B, vocabulary]."""
        return self.out(self.stages(words)[-1])


@dataclass(frozen=True)
class Trained:
    """A trained network with its held-out loss (nats a word) before each epoch and after the last."""

    network: NextWord
    losses: tuple[float, ...]


def untrained(vocabulary: int, seed: int) -> NextWord:
    """A freshly initialised network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NextWord(vocabulary)


def train(
    windows: np.ndarray, held_out: np.ndarray, vocabulary: int, seed: int, epochs: int, step: Callable[[int], None] = lambda _: None
) -> Trained:
    """Train on windows [n, 10] (nine words and the next) with Adam until the held-out loss stops falling, at most `epochs` times.

    The best network by held-out loss is returned. step(epoch) is called after each. Deterministic for a seed and a number of threads.
    """
    network = untrained(vocabulary, seed)
    generator = torch.Generator().manual_seed(seed)
    data, test = (torch.from_numpy(np.ascontiguousarray(x)) for x in (windows, held_out))
    optimiser = torch.optim.Adam(network.parameters(), lr=4e-3)
    losses = [loss_of(network, test)]
    best = {key: value.clone() for key, value in network.state_dict().items()}
    for epoch in range(epochs):
        for rows in torch.randperm(len(data), generator=generator).split(256):
            batch = data[rows]
            loss = nn.functional.cross_entropy(network(batch[:, :-1]), batch[:, -1])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        losses.append(loss_of(network, test))
        step(epoch + 1)
        if losses[-1] > min(losses[:-1]):
            break
        best = {key: value.clone() for key, value in network.state_dict().items()}
    network.load_state_dict(best)
    return Trained(network, tuple(losses))


@torch.no_grad()
def loss_of(network: NextWord, windows: Tensor) -> float:
    """Cross-entropy of the next word, nats."""
    return float(nn.functional.cross_entropy(network(windows[:, :-1]), windows[:, -1]))


@torch.no_grad()
def activations(network: NextWord, windows: np.ndarray) -> dict[str, np.ndarray]:
    """Activations at each stage for windows [n, 10]: stage → [n, D], float64."""
    words = torch.from_numpy(np.ascontiguousarray(windows[:, :-1]))
    return {name: value.double().numpy() for name, value in zip(STAGES, network.stages(words), strict=True)}
