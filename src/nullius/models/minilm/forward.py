"""all-MiniLM-L6-v2 in numpy: six BERT layers of width 384, the mean over tokens, unit length (Reimers and Gurevych 2019, arXiv 1908.10084).

The weights are float32 and stay in their file: it is mapped into memory, and a text touches only the rows of its own tokens. So a process that
asks once is ready in some hundredths of a second, where torch takes seconds. The result agrees with transformers to about 1e-7.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
LAYERS, HEADS, WIDTH = 6, 12, 384
TOKENS = 256  # at 128 the mean reciprocal rank of paraphrase queries falls by .12
BATCH = 16
# erf as a ratio of odd and even polynomials on [-4, 4] (the coefficients of Eigen); the error is below 2e-7
_ERF_ODD = [-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05]
_ERF_ODD += [-7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02]
_ERF_EVEN = [-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03, -1.42647390514189e-02]


class MiniLM:
    """The model in a folder with model.safetensors and tokenizer.json."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self.weights = mapped(folder / "model.safetensors")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(TOKENS)

    def encode(self, texts: Sequence[str]) -> Array:
        """Return unit vectors, shape (texts, 384). Texts of like length are computed together; what lies past 256 tokens is not read."""
        tokens = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(texts)), key=lambda i: len(tokens[i]))
        out = np.empty((len(texts), WIDTH), np.float32)
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            out[chosen] = self._forward([tokens[i] for i in chosen])
        return out

    def _forward(self, rows: list[list[int]]) -> Array:
        length = max(map(len, rows))
        ids = np.zeros((len(rows), length), np.int64)
        mask = np.zeros((len(rows), length), np.float32)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        weights = self.weights
        x = weights["embeddings.word_embeddings.weight"][ids] + weights["embeddings.position_embeddings.weight"][:length]
        x = self._normalise(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings")
        bias = np.where(mask[:, None, None, :] > 0, np.float32(0), np.float32(-1e9))
        for layer in range(LAYERS):
            name = f"encoder.layer.{layer}"
            x = self._normalise(x + self._attention(x, bias, name), f"{name}.attention.output")
            inner = _gelu(self._linear(x, f"{name}.intermediate.dense"))
            x = self._normalise(x + self._linear(inner, f"{name}.output.dense"), f"{name}.output")
        mean = (x * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
        return np.asarray(mean / np.linalg.norm(mean, axis=1, keepdims=True), np.float32)

    def _attention(self, x: Array, bias: Array, name: str) -> Array:
        rows, length, _ = x.shape
        q, k, v = (
            self._linear(x, f"{name}.attention.self.{part}").reshape(rows, length, HEADS, -1).transpose(0, 2, 1, 3)
            for part in ("query", "key", "value")
        )
        scores = q @ k.transpose(0, 1, 3, 2) / np.float32(np.sqrt(WIDTH // HEADS)) + bias
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        z = (scores / scores.sum(-1, keepdims=True)) @ v
        return self._linear(z.transpose(0, 2, 1, 3).reshape(rows, length, WIDTH), f"{name}.attention.output.dense")

    def _linear(self, x: Array, name: str) -> Array:
        return np.asarray(x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"], np.float32)

    def _normalise(self, x: Array, name: str) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred * centred).mean(-1, keepdims=True) + np.float32(1e-12))
        return np.asarray(scaled * self.weights[f"{name}.LayerNorm.weight"] + self.weights[f"{name}.LayerNorm.bias"], np.float32)


def _gelu(x: Array) -> Array:
    return np.asarray(x * (erf(x / np.float32(np.sqrt(2))) + 1) * np.float32(0.5), np.float32)


def erf(x: Array) -> Array:
    """Return the error function in float32. scipy has it too, and takes longer to import than a search may last."""
    x = np.clip(x, -4, 4)
    square = x * x
    odd, even = (np.full_like(x, coefficients[0]) for coefficients in (_ERF_ODD, _ERF_EVEN))
    for coefficient in _ERF_ODD[1:]:
        odd = odd * square + np.float32(coefficient)
    for coefficient in _ERF_EVEN[1:]:
        even = even * square + np.float32(coefficient)
    return np.asarray(x * odd / even, np.float32)


def mapped(path: Path) -> dict[str, Array]:
    """Return the float32 tensors of a safetensors file as views of the file: eight bytes of length, a header of JSON, the numbers."""
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    start = 8 + int.from_bytes(content[:8], "little")
    header = {name: entry for name, entry in json.loads(content[8:start]).items() if entry.get("dtype") == "F32"}
    found = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        found[name] = np.frombuffer(content, "<f4", (last - first) // 4, start + first).reshape(entry["shape"])
    return found


@lru_cache(maxsize=1)
def load(folder: Path) -> MiniLM:
    """Return the model in a folder, loaded once."""
    return MiniLM(folder)
