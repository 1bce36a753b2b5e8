"""What a decoder remembers between steps: keys and values where a layer attends, a state of fixed size where it is recurrent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer, StaticLayer

from nullius.errors import NulliusError
from nullius.models.architectures.config import GATED, DecoderConfig

RECURRENT = (*GATED, "mlp", "non-approximate")


class State(CacheLayerMixin):
    """The state of one recurrent layer: tensors by name, the first axis of each being the batch. `seen`: tokens so far."""

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.tensors: dict[str, Tensor] = {}
        self.seen = 0

    def get(self, name: str) -> Tensor | None:
        """Return a tensor, or None before the first step."""
        return self.tensors.get(name)

    def put(self, **tensors: Tensor) -> None:
        """Replace tensors."""
        self.tensors.update(tensors)

    def count(self, tokens: int) -> None:
        """Add to the tokens seen."""
        self.seen += tokens

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: a state is made by its layer."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """A recurrent layer has neither keys nor values."""
        raise NulliusError("a recurrent layer keeps a state, not keys and values")

    def get_seq_length(self) -> int:
        """Return the number of tokens so far."""
        return self.seen

    def get_max_length(self) -> int:
        """Return -1: the state has the same size whatever the length."""
        return -1

    get_max_cache_shape = get_max_length  # its name in older releases of transformers

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the length of past and new tokens, and the offset of the first."""
        return self.seen + query_length, 0

    def _each(self, change: Any) -> None:
        self.tensors = {name: change(value) for name, value in self.tensors.items()}

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take the states of other rows (beam search)."""
        self._each(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        self._each(lambda x: x[indices])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        self._each(lambda x: x.repeat_interleave(repeats, 0))

    def crop(self, max_length: int) -> None:
        """A recurrent state cannot forget its last tokens."""
        raise NulliusError("a recurrent state cannot go back in time: this way of decoding needs softmax layers alone")

    def reset(self) -> None:
        """Forget everything."""
        self.tensors, self.seen = {}, 0

    def offload(self) -> None:
        """Move to the CPU."""
        self._each(lambda x: x.to("cpu"))

    def prefetch(self) -> None:
        """States come back to the device of their layer when they are used."""


def prepare(cache: Cache | None, config: DecoderConfig) -> Cache:
    """Return a cache whose layers fit the decoder's: a new one, or the one given (an empty one of `generate` gets its layers exchanged)."""
    mixers = config.mixers or []
    if cache is not None and any(isinstance(layer, StaticLayer) for layer in cache.layers) and not set(mixers) <= set(RECURRENT):
        raise NulliusError(
            "a decoder's keys and values grow: no cache of fixed size (cache_implementation 'static') is taken; leave it out"
        )
    if cache is not None and [isinstance(layer, State) for layer in cache.layers] == [name in RECURRENT for name in mixers]:
        return cache
    layers: list[Any] = [State() if name in RECURRENT else DynamicLayer() for name in mixers]
    if cache is None:
        return Cache(layers=layers)
    if cache.get_seq_length():
        raise NulliusError("this cache was made by another model: its layers do not fit")
    cache.layers, cache.layer_class_to_replicate = layers, None
    return cache


def gather(values: Tensor, positions: Tensor) -> Tensor:
    """Take rows of values [1, H, L, D] at positions [B, T]: [B, H, T, D]."""
    return torch.nn.functional.embedding(positions, values[0].transpose(0, 1).flatten(1)).unflatten(-1, values.shape[1::2]).transpose(1, 2)
