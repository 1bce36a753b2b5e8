"""Simulated low precision: the numbers a rounded model would compute with, on hardware that need not have the type.

`absmax` rounds the weights of every linear layer inside the decoder blocks to a grid of 2^bits − 1 levels, symmetric about 0, one scale
per output channel (the row that makes one output number): scale = max|w| / (2^(bits−1) − 1). This is the weight half of LLM.int8()
(Dettmers et al. 2022, arXiv 2208.07339), whose activations are rounded too, save for outliers. Embeddings and unembedding keep their type.

`sixteen_bit` rounds weights and the output of every leaf module to bfloat16 or float16. Sums inside a module stay in float32, as the
accumulators of 16-bit matrix units do.

Both are context managers that leave the subject, bit for bit, as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from nullius.errors import SubjectError, UsageError
from nullius.models.language_model import LanguageModel


def round_absmax(weight: Tensor, bits: int = 8, *, dim: int = 1) -> Tensor:
    """Return a weight matrix rounded to the symmetric grid of `bits` bits, one scale per slice along `dim`.

    weight: [out, in] with dim=1 (a row is a channel), [in, out] with dim=0. No entry moves by more than half its channel's scale.
    """
    top = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(dim, keepdim=True).float() / top
    scale = torch.where(scale > 0, scale, 1.0)
    return ((weight.float() / scale).round().clamp(-top, top) * scale).to(weight.dtype)


@contextmanager
def absmax(model: LanguageModel, bits: int = 8) -> Iterator[int]:
    """Within the context the blocks' linear weights are rounded to `bits` bits per channel; yields how many matrices were.

    Raises UsageError for fewer than 2 bits or more than 16, SubjectError when the blocks hold no linear layer.
    """
    if not 2 <= bits <= 16:
        raise UsageError(f"absmax rounding takes 2 to 16 bits, not {bits}")
    layers = [module for block in model.anatomy.layers for module in block.modules() if isinstance(module, (nn.Linear, Conv1D))]
    if not layers:
        raise SubjectError(f"{model.name}: its blocks hold no linear layer whose weights could be rounded")
    with _restored([module.weight for module in layers]), torch.no_grad():
        for module in layers:
            module.weight.copy_(round_absmax(module.weight, bits, dim=0 if isinstance(module, Conv1D) else 1))
        yield len(layers)


@contextmanager
def sixteen_bit(model: LanguageModel, dtype: torch.dtype = torch.bfloat16) -> Iterator[None]:
    """Within the context weights and the outputs of leaf modules are rounded to `dtype` (bfloat16 or float16)."""
    leaves = [module for module in model.hf.modules() if not any(True for _ in module.children())]
    handles = [module.register_forward_hook(lambda module, args, output: _rounded(output, dtype)) for module in leaves]
    try:
        with _restored(list(model.hf.parameters())), torch.no_grad():
            for parameter in model.hf.parameters():
                parameter.copy_(parameter.to(dtype))
            yield
    finally:
        for handle in handles:
            handle.remove()


def _rounded(output: Any, dtype: torch.dtype) -> Any:
    if isinstance(output, Tensor) and output.is_floating_point():
        return output.to(dtype).to(output.dtype)
    if isinstance(output, tuple):
        return tuple(_rounded(part, dtype) for part in output)
    return output


@contextmanager
def _restored(weights: Sequence[Tensor]) -> Iterator[None]:
    originals = [weight.detach().clone() for weight in weights]
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, original in zip(weights, originals, strict=True):
                weight.copy_(original)
