"""Resume a forward pass from a layer: what lies below an edit cannot change, so it is computed once and kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nullius.errors import SubjectError
from nullius.models import hooks
from nullius.models.language_model import Batch, LanguageModel


@torch.no_grad()
def run_keeping(model: LanguageModel, batch: Batch, layers: Sequence[int]) -> tuple[Tensor, dict[int, Tensor]]:
    """Run the decoder once; return its output at the last position [B, d_model], and the input of each of `layers` [B, T, d_model]."""
    kept: dict[int, Tensor] = {}
    handles = []
    try:
        for layer in layers:
            handles.append(hooks.on_read(model.anatomy, model.anatomy.site("resid_pre", layer), partial(kept.__setitem__, layer)))
        hidden = model.hidden(batch)[:, -1]
    finally:
        for handle in handles:
            handle.remove()
    return hidden, kept


@contextmanager
def from_layer(model: LanguageModel, layer: int, resid_pre: Tensor) -> Iterator[None]:
    """While open, every forward pass skips the layers below `layer`, whose input is `resid_pre` [B, T, d_model] instead.

    The batch fed meanwhile must be the one that `resid_pre` came from (or the same rows repeated in both).
    """
    with skipped(model, range(layer)):
        if layer:
            model.anatomy.layers[0].forward = lambda *_args, **_kwargs: model.anatomy.returned(0, resid_pre)
        yield


@contextmanager
def skipped(model: LanguageModel, layers: Iterable[int]) -> Iterator[None]:
    """While open, some layers hand through the stream that they are given."""
    blocks = {layer: model.anatomy.layers[layer] for layer in layers}

    def skip(layer: int, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Any:
        return model.anatomy.returned(layer, hidden_states)

    for layer, block in blocks.items():
        block.forward = partial(skip, layer)
    try:
        yield
    finally:
        for block in blocks.values():
            del block.forward  # uncovers the method of its class


@contextmanager
def rows_joining(model: LanguageModel) -> Iterator[None]:
    """While open, a model that does not bear rows that join on the way (GPT-BigCode) says so in one line."""
    try:
        yield
    except RuntimeError as error:
        if "is invalid for input of size" not in str(error):
            raise
        raise SubjectError(
            f"{model.anatomy.family} does not bear rows that join on the way up: path patching cannot be done on it"
        ) from None
