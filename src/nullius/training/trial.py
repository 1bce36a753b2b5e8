"""A trial of a new model before anything is made for it: what its configuration lets through, and its first step would not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nullius.errors import NulliusError, UsageError
from nullius.training import processes

TOKENS = 8


@torch.no_grad()
def run(hf: Any, sequence: int) -> None:
    """Pass a few tokens through a model on the CPU, as in training and as in evaluation; its random numbers stay as they were.

    Raises UsageError: the model has no layers, makes no pass, or lets tokens see later ones, so that it would learn to read the answer.
    """
    if not processes.layers(hf):
        raise UsageError("model.new has no layers; set num_hidden_layers (or what it is called there) above 0")
    tokens = torch.arange(min(sequence, TOKENS)).remainder(hf.config.get_text_config().vocab_size).repeat(2, 1)
    tokens[1, -1] = 0
    training = hf.training
    try:
        with torch.random.fork_rng(devices=[]):
            hf.train()(input_ids=tokens, use_cache=False)
            first, other = hf.eval()(input_ids=tokens, use_cache=False).logits
    except NulliusError as error:
        raise UsageError(f"model.new makes no pass: {error}") from None
    except Exception as error:  # code of a hundred architectures fails in its own way; the user gets one line
        raise UsageError(f"model.new makes no pass ({type(error).__name__}: {' '.join(str(error).split())[:200]})") from None
    finally:
        hf.train(training)
    if tokens.shape[1] > 2 and _differ(first, other) and _differ_in_double(hf, tokens):
        kind = hf.config.model_type
        raise UsageError(
            f"model.new: tokens of this {kind} see later ones, so that it would learn to read the answer; is_decoder: true may help"
        )


def _differ(first: Tensor, other: Tensor, at_most: float = 1e-4) -> bool:
    """Whether the logits [T, V] of two sequences differ before their last tokens, which alone are not the same."""
    return not torch.allclose(first[:-1], other[:-1], atol=at_most, rtol=at_most)


def _differ_in_double(hf: Any, tokens: Tensor) -> bool:
    """The same in float64: a norm behind a product that is 0 but for its rounding can make as much of rounding errors as a small model makes of a
    token (6e-4 in a gated decoder of 24 layers, 2e-3 in an encoder of two). The weights come back as they were."""
    training = hf.training
    try:
        first, other = hf.double().eval()(input_ids=tokens, use_cache=False).logits
    except Exception:  # code that knows no float64: then what was seen in float32 counts
        return True
    finally:
        hf.float().train(training)
    return _differ(first, other, 1e-6)
