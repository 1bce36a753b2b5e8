"""Looking into a trained decoder, and taking parts away at evaluation: layers, what a mixer says beyond its mean; gates from elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from nullius.errors import UsageError
from nullius.models.architectures.decoder import DecoderForCausalLM
from nullius.models.architectures.gated import GatedLinearAttention
from nullius.models.architectures.queryfree import QueryFreeAttention


def _checked(model: DecoderForCausalLM, layers: Iterable[int]) -> frozenset[int]:
    chosen = frozenset(layers)
    beyond = sorted(i for i in chosen if not 0 <= i < model.config.num_hidden_layers)
    if beyond:
        raise UsageError(f"layer {beyond[0]} does not exist: this decoder has layers 0 to {model.config.num_hidden_layers - 1}")
    return chosen


@contextlib.contextmanager
def skipping(model: DecoderForCausalLM, layers: Iterable[int]) -> Iterator[None]:
    """Leave layers out for a while (HybridSkip: those with the variant). Raises UsageError for a layer that does not exist."""
    before, model.model.skipped = model.model.skipped, _checked(model, layers)
    try:
        yield
    finally:
        model.model.skipped = before


@contextlib.contextmanager
def averaging(model: DecoderForCausalLM, layers: Iterable[int]) -> Iterator[None]:
    """Put the mean over all tokens of a batch in place of what the mixers of some layers add: nothing of any token is left, the shift is.

    Unlike `skipping` it leaves the distribution of the stream where later layers expect it. Raises UsageError for a layer that does not exist.
    """

    def mean(_module: Any, _args: Any, output: Any) -> Any:
        return (output[0].mean((0, 1), keepdim=True).expand_as(output[0]), *output[1:])

    handles: list[Any] = [model.model.layers[i].attn.register_forward_hook(mean) for i in _checked(model, layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def estrange_gates(model: DecoderForCausalLM) -> None:
    """From now on, let every gate be computed from another sequence of the batch: it has the right distribution, and knows nothing.

    A control for what a gate does because of what it sees. Training and evaluation need batches of at least two sequences.
    """
    for module in model.modules():
        if isinstance(module, GatedLinearAttention):
            module.log_gate = _estranged(module.log_gate)  # type: ignore[method-assign]


def _estranged(own: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
    def gate(x: Tensor, *narrow: Tensor) -> Tensor | None:
        found = own(x, *narrow)
        return found if found is None or found.ndim == 1 else found.roll(1, 0)

    return gate


@torch.no_grad()
def score_ranges(model: DecoderForCausalLM, tokens: Tensor) -> Tensor:
    """Return for each query-free layer the largest |score| of each sequence: [layers, B]. tokens: [B, T]."""
    return torch.stack([scores.abs().amax((1, 2)).float() for scores in _scores(model, tokens).values()])


@torch.no_grad()
def patterns(model: DecoderForCausalLM, tokens: Tensor) -> dict[int, Tensor]:
    """Return the attention patterns [B, H, T, T] of the layers that have one, by layer. tokens: [B, T].

    Query-free layers form none, and have one all the same: the softmax over the tokens up to each of their scores.
    """
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        made = model.model(input_ids=tokens, use_cache=False, output_attentions=True).attentions
    finally:
        model.set_attn_implementation(before)
    found = {layer: pattern for layer, pattern in enumerate(made) if pattern is not None}
    future = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool, device=tokens.device).triu(1)
    for layer, scores in _scores(model, tokens).items():
        rows = scores.transpose(1, 2).unsqueeze(-2).expand(-1, -1, tokens.shape[1], -1)
        found[layer] = rows.masked_fill(future, -torch.inf).softmax(-1)
    return dict(sorted(found.items()))


def _scores(model: DecoderForCausalLM, tokens: Tensor) -> dict[int, Tensor]:
    """Scores [B, T, H] of the query-free layers, by layer."""
    found: dict[int, Tensor] = {}

    def keep(module: Any, args: Any) -> None:
        found[module.layer] = module.scores(args[0])

    handles = [part.register_forward_pre_hook(keep) for part in model.modules() if isinstance(part, QueryFreeAttention)]
    try:
        if handles:
            model.model(input_ids=tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found
