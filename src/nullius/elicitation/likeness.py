"""A judge of texts that is no language model: the class whose examples lie nearest in a space of sentences (MiniLM's).

Each class is the mean of its examples' unit vectors, a text belongs to the class with the largest cosine (Rocchio 1971). Whether the judge can be
trusted is measured on its own examples, each told from all others but itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Encode = Callable[[Sequence[str]], NDArray[np.float32]]  # texts → unit vectors [n, width]


@dataclass(frozen=True)
class Likeness:
    """encode: texts to unit vectors; vectors [n, width] of the examples; labels [n]: the class of each, 0 to k − 1."""

    encode: Encode
    vectors: NDArray[np.float32]
    labels: NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[str], labels: Sequence[int], encode: Encode | None = None) -> Likeness:
        """Make a judge of examples. encode: MiniLM when None, whose weights are fetched where they are not there yet (91 MB)."""
        if encode is None:
            from nullius.models.minilm import forward, weights

            encode = forward.load(weights.fetch_weights()).encode
        return cls(encode, encode(texts), np.array(labels))

    def judge(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """The class of each text [n]."""
        return (self.encode(texts) @ _unit(self._sums()).T).argmax(1)

    def left_out(self) -> NDArray[np.int64]:
        """The class of each example by all the others [n]."""
        without = np.repeat(self._sums()[None], len(self.labels), 0)  # [n, k, width]
        without[np.arange(len(self.labels)), self.labels] -= self.vectors
        return np.einsum("nd,nkd->nk", self.vectors, _unit(without)).argmax(1)

    def _sums(self) -> NDArray[np.float32]:
        """Sum of each class's examples [k, width]: only its direction counts."""
        return np.stack([self.vectors[self.labels == k].sum(0) for k in range(int(self.labels.max()) + 1)])


def _unit(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-30)
