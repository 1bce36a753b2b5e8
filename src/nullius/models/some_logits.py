"""Logits of some tokens, as the model itself makes them: for a while, its vocabulary projection makes no others.

The rows of the other tokens are not read, and where weights are mapped from a file they do not come into memory: a fifth of SmolLM2-135M.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F


@contextmanager
def only(unembed: nn.Module, tokens: Tensor | slice) -> Iterator[bool]:
    """While open, a vocabulary projection makes the logits of tokens [k] only: [.., k]. Gives False where it cannot, and all of them come."""
    if type(unembed) is not nn.Linear or "forward" in vars(unembed):
        yield False
        return
    bias: Tensor | None = unembed.bias
    unembed.forward = partial(F.linear, weight=unembed.weight[tokens], bias=None if bias is None else bias[tokens])  # type: ignore[method-assign]
    try:
        yield True
    finally:
        del unembed.forward  # uncovers the method of its class


def of(unembed: nn.Module, tokens: Tensor, run: Callable[[], Tensor]) -> Tensor:
    """Logits of tokens [n, k], from a run that returns the model's own logits [n, V]; it may be run twice (see below)."""
    some, places = tokens.unique(return_inverse=True)
    try:
        with only(unembed, some) as can:
            found = run() if can else None
    except (RuntimeError, IndexError):  # code behind the projection that counts on the whole vocabulary
        found = None
    if found is not None and found.shape[-1] == len(some):
        return found.gather(1, places)
    return run().gather(1, tokens)
