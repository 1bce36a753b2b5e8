"""Decoders that differ in how they mix tokens and in nothing else: trained on the same batches from the same random numbers, and taken apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nullius.errors import UsageError
from nullius.models import architectures
from nullius.stimuli import grammar, recall
from nullius.stimuli.recall import Asked
from nullius.stimuli.windows import Vocabulary
from nullius.training import asked, own_text
from nullius.training.asked import Bench, Floats, Recipe
from nullius.training.own_text import OwnText

Key = tuple[str, str]  # mixer, allocation: see `architectures`
Nets = dict[Key, list[Any]]  # one decoder for each seed
Shape = Mapping[str, Any]  # keys of the configuration that all share
BATCH = 32


def name(key: Key) -> str:
    """What a decoder is called in figures and notes."""
    return f"{key[0]}, {'all' if key[1] == 'uniform' else 'every other'}"


@dataclass(frozen=True)
class Corpus:
    """A text in order and with its words in random order: windows to train and to test on. by_frequency: nats of each test window [n] for who
    knows how frequent each word is, and no more."""

    text: tuple[Asked, Asked]
    shuffled: tuple[Asked, Asked]
    by_frequency: Floats


def corpus(own: OwnText | None, words: int, length: int, test: int, entries: int, rng: np.random.Generator) -> Corpus:
    """Cut a text into windows of `length`, the last `test` of them held out.

    own: a user's text, in tokens of a BPE of `entries` entries; None: `words` words of the grammar. Raises UsageError for too short a text.
    """
    if own is None:
        tagged = grammar.english_text(words, rng)
        vocabulary = Vocabulary(tagged, 512)
        stream, log_frequency = vocabulary.encode(tagged.words), vocabulary.log_frequency
    else:
        stream, size = own_text.tokens(own.text, entries)
        if len(stream) < 4 * test * (length + 1):
            raise UsageError(f"{own.name} holds {len(stream)} tokens, {4 * test * (length + 1)} are needed")
        counts = np.bincount(stream, minlength=size) + 1.0
        log_frequency = np.log(counts / counts.sum())
    whole, shuffled = (recall.next_symbols(each, length, len(log_frequency)) for each in (stream, rng.permutation(stream)))
    held_out = whole[-test:]
    return Corpus((whole[:-test], held_out), (shuffled[:-test], shuffled[-test:]), -log_frequency[held_out.targets].mean(1))


def shape(width: int, layers: int) -> dict[str, Any]:
    """A small decoder with four heads."""
    return {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 4, "intermediate_size": 2 * width}


def _wanted(common: Shape, key: Key, data: Asked) -> dict[str, Any]:
    length = data.tokens.shape[1]
    shadow = {"max_position_embeddings": length, "shadow_tokens": data.tokens[0].tolist() if key[0] == "fixed" else None}
    return {**common, **shadow, "mixer": key[0], "allocation": key[1]}


def train(bench: Bench, common: Shape, keys: Iterable[Key], data: Asked, how: Recipe, seeds: int, label: str) -> Nets:
    """Train one decoder of each key for each seed. label: of the data, for progress and for what is kept."""

    def one(key: Key, number: int) -> Any:
        told = f"{label}: training {key[0]} {key[1]}, {number + 1} of {seeds}"
        return bench.trained(told, _wanted(common, key, data), data, how, number)

    return {key: [one(key, number) for number in range(seeds)] for key in keys}


def untrained(bench: Bench, common: Shape, keys: Iterable[Key], data: Asked, how: Recipe, seeds: int) -> Nets:
    """The same decoders before training."""
    return {key: [bench.fresh(_wanted(common, key, data), data.vocabulary, how, number) for number in range(seeds)] for key in keys}


def loss(nets: Sequence[Any], data: Asked) -> Floats:
    """Nats per question of each sequence, one decoder after the other [seeds · n]."""
    return np.concatenate([asked.measure(hf, data, BATCH)[0] for hf in nets])


def accuracy(nets: Sequence[Any], data: Asked) -> Floats:
    """Share of questions answered rightly in each sequence, one decoder after the other [seeds · n]."""
    return np.concatenate([asked.measure(hf, data)[1] for hf in nets])


def rise(nets: Sequence[Any], data: Asked, without: Callable[..., AbstractContextManager[None]], allocation: str) -> Floats:
    """How much the loss of each sequence rises [seeds · n] when the layers of an allocation are taken away: `architectures.skipping`, `averaging`."""
    parts = []
    for hf in nets:
        whole = loss([hf], data)
        with without(hf, architectures.allocate(allocation, hf.config.num_hidden_layers)):
            parts.append(loss([hf], data) - whole)
    return np.concatenate(parts)


def largest_scores(nets: Sequence[Any], data: Asked) -> Floats:
    """log10 of the largest |score| in each query-free layer, for each sequence: [layers, seeds · n]."""
    found = [torch.cat([architectures.score_ranges(hf, rows) for rows in _tokens(hf, data)], 1) for hf in nets]
    return torch.cat(found, 1).log10().double().cpu().numpy()


def _tokens(hf: Any, data: Asked) -> Iterator[torch.Tensor]:
    device = next(hf.parameters()).device
    for start in range(0, len(data), BATCH):
        yield torch.from_numpy(data.tokens[start : start + BATCH]).to(device)
