"""Small networks that learn to predict the next word, and what stands in each of their stages meanwhile.

Three architectures of one shape, embedding → layers → dense → softmax over words: a stack of LSTMs, a causal Transformer, and a bag of words
that knows which words came before but not in which order. They are trained on windows of running text, with the loss at every position, so
that the last position is trained on what the windows are for: the tenth word from nine.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Kind = Literal["lstm", "transformer", "bag"]


@dataclass(frozen=True)
class Size:
    """Widths: of the embedding, of each layer, of the dense layer. All of a Transformer's layers must be as wide as its embedding."""

    embedding: int = 100
    layers: tuple[int, ...] = (256, 128)
    dense: int = 128


class NextWord(nn.Module):
    """What the three have in common. A subclass maps embedded words to the output of each of its layers."""

    def __init__(self, vocabulary: int, embedding: int, last: int, dense: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, embedding)
        self.dense = nn.Linear(last, dense)
        self.unembed = nn.Linear(dense, vocabulary)

    def layers(self, embedded: Tensor) -> dict[str, Tensor]:
        """Map embedded words [B, T, E] to name → output [B, T, ·] of each layer; position t sees words 0 … t only."""
        raise NotImplementedError

    def stages(self, words: Tensor) -> dict[str, Tensor]:
        """Map words [B, T] to name → activation [B, T, ·] of each stage: the embedding, the layers, the last dense layer before the softmax."""
        embedded = self.embed(words)
        layers = self.layers(embedded)
        return {"embedding": embedded, **layers, "dense": torch.tanh(self.dense(list(layers.values())[-1]))}

    def forward(self, words: Tensor) -> Tensor:
        """Logits [B, T, V] of the word after each position of words [B, T]."""
        return self.unembed(self.stages(words)["dense"])


class LSTM(NextWord):
    """A stack of LSTMs."""

    def __init__(self, vocabulary: int, size: Size) -> None:
        super().__init__(vocabulary, size.embedding, size.layers[-1], size.dense)
        widths = (size.embedding, *size.layers)
        self.stack = nn.ModuleList(nn.LSTM(a, b, batch_first=True) for a, b in pairwise(widths))

    def layers(self, embedded: Tensor) -> dict[str, Tensor]:
        """Hidden state of each LSTM."""
        found = {}
        for i, layer in enumerate(self.stack, 1):
            embedded = found[f"lstm {i}"] = layer(embedded)[0]
        return found


class CausalTransformer(NextWord):
    """A pre-norm Transformer with learned positions; each position attends to itself and those before it."""

    def __init__(self, vocabulary: int, size: Size, positions: int = 64, heads: int = 4) -> None:
        width = size.embedding
        super().__init__(vocabulary, width, width, size.dense)
        self.position = nn.Embedding(positions, width)
        blocks = [nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True) for _ in size.layers]
        self.blocks = nn.ModuleList(blocks)

    def layers(self, embedded: Tensor) -> dict[str, Tensor]:
        """Residual stream after each block."""
        length = embedded.shape[1]
        x = embedded + self.position.weight[:length]
        mask = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        found = {}
        for i, block in enumerate(self.blocks, 1):
            x = found[f"block {i}"] = block(x, src_mask=mask)
        return found


class BagOfWords(NextWord):
    """The mean of the words so far, through dense layers: an ablation that cannot know word order."""

    def __init__(self, vocabulary: int, size: Size) -> None:
        super().__init__(vocabulary, size.embedding, size.layers[-1], size.dense)
        widths = (size.embedding, *size.layers)
        self.stack = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def layers(self, embedded: Tensor) -> dict[str, Tensor]:
        """Output of each dense layer."""
        counts = torch.arange(1, embedded.shape[1] + 1, device=embedded.device)[:, None]
        x = embedded.cumsum(1) / counts
        found = {}
        for i, layer in enumerate(self.stack, 1):
            x = found[f"layer {i}"] = torch.tanh(layer(x))
        return found


def build(kind: Kind, vocabulary: int, size: Size, seed: int) -> NextWord:
    """Return a network with weights drawn from the seed; torch's global generator is left as it was."""
    makers: dict[str, Callable[[int, Size], NextWord]] = {"lstm": LSTM, "transformer": CausalTransformer, "bag": BagOfWords}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return makers[kind](vocabulary, size)


@dataclass(frozen=True)
class Fit:
    """How training went. steps, losses: when the held-out loss (nats per word at the last position) was measured, and what it was."""

    steps: tuple[int, ...]
    losses: tuple[float, ...]
    kept: int  # the step whose weights were kept

    @property
    def best(self) -> float:
        """The lowest held-out loss."""
        return min(self.losses)


@dataclass(frozen=True)
class Schedule:
    """How to train. every: steps between measurements of the held-out loss; patience: measurements without a new minimum that end training.

    width: words of a window, the last predicted from all others. batch: windows of a step. rate: of AdamW.
    """

    seed: int
    max_steps: int = 2000
    every: int = 100
    patience: int = 3
    width: int = 10
    batch: int = 64
    rate: float = 3e-3


def fit(
    network: NextWord,
    text: Ints,
    held_out: Ints,
    how: Schedule,
    *,
    on_step: Callable[[int, int], None] | None = None,
    snapshots: Sequence[int] = (),
    on_snapshot: Callable[[int, NextWord], None] | None = None,
) -> Fit:
    """Train a network in place on windows of running text until the held-out loss stops falling; the best weights are kept.

    text, held_out: word numbers [n]. Every window starts at a random place of the text; the norm of the gradient is clipped at 1. The loss is
    measured on up to 2 000 held-out windows. on_step(done, max_steps) is called after each step; on_snapshot(step, network) at the given steps
    (0: before the first). The same seed gives the same weights on the same machine.
    """
    generator = np.random.default_rng(how.seed)
    device = network.embed.weight.device
    view = np.lib.stride_tricks.sliding_window_view
    train = torch.from_numpy(np.ascontiguousarray(view(text, how.width))).to(device)
    test = view(held_out, how.width)
    test = test[np.unique(np.linspace(0, len(test) - 1, min(2000, len(test))).astype(np.int64))]
    optimiser = torch.optim.AdamW(network.parameters(), lr=how.rate, weight_decay=0.01)
    steps, losses, kept, best = [0], [float(-log_probability(network, test).mean())], 0, copy.deepcopy(network.state_dict())
    for step in range(how.max_steps):
        if step in snapshots and on_snapshot is not None:
            on_snapshot(step, network)
        windows = train[torch.from_numpy(generator.integers(len(train), size=how.batch)).to(device)]
        loss = nn.functional.cross_entropy(network(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        if on_step is not None:
            on_step(step + 1, how.max_steps)
        if (step + 1) % how.every and step + 1 < how.max_steps:
            continue
        steps.append(step + 1)
        losses.append(float(-log_probability(network, test).mean()))
        if losses[-1] < min(losses[:-1]):
            kept, best = step + 1, copy.deepcopy(network.state_dict())
        elif step + 1 - kept >= how.patience * how.every:
            break
    network.load_state_dict(best)
    return Fit(tuple(steps), tuple(losses), kept)


@torch.no_grad()
def log_probability(network: NextWord, windows: Ints) -> NDArray[np.float64]:
    """Log-probability [n], in nats, of the last word of windows [n, width] given those before it."""
    parts = []
    for part in _batches(network, windows):
        logits = network.unembed(network.stages(part[:, :-1])["dense"][:, -1])
        parts.append(logits.log_softmax(-1).gather(1, part[:, -1:])[:, 0])
    return torch.cat(parts).double().cpu().numpy()


@torch.no_grad()
def record(network: NextWord, contexts: Ints) -> dict[str, Floats]:
    """Return name → activations [n, ·] of each stage at the last word of contexts [n, T].

    `input`: the embeddings of all T words side by side, what the network is given. Then each layer, then `dense`, the last layer before the softmax.
    """
    parts: dict[str, list[Tensor]] = {}
    for words in _batches(network, contexts):
        stages = network.stages(words)
        parts.setdefault("input", []).append(stages.pop("embedding").flatten(1))
        for name, value in stages.items():
            parts.setdefault(name, []).append(value[:, -1])
    return {name: torch.cat(values).float().cpu().numpy() for name, values in parts.items()}


def _batches(network: NextWord, windows: Ints) -> list[Tensor]:
    return list(torch.from_numpy(np.ascontiguousarray(windows)).to(network.embed.weight.device).split(512))
