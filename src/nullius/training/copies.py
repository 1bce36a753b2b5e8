"""A copy of a model to train, and the interventions that are open on the subject while it trains.

Hooks cannot be copied with a model: what they know of each other (the mask that one makes and others read) would fall apart, and the copy would
keep them for good. So the copy is made without them, and those of the subject are lent to it, the same objects, for as long as it trains.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

OWN = {"transformers.utils.output_capturing", "nullius.models.language_model"}  # whose hooks only look, and belong to the model
DICTS = ("_forward_hooks", "_forward_pre_hooks")


def plain(hf: Any) -> Any:
    """Copy a model without the interventions that are open on it."""
    memo = {id(hooks): OrderedDict(_kept(hooks)) for part in hf.modules() for hooks in (getattr(part, name) for name in DICTS)}
    return copy.deepcopy(hf, memo)


def interventions(hf: nn.Module) -> bool:
    """Whether somebody's hooks are open on a model."""
    return any(len(_kept(hooks)) < len(hooks) for part in hf.modules() for hooks in (getattr(part, name) for name in DICTS))


@contextmanager
def lent(hf: nn.Module, to: nn.Module) -> Iterator[None]:
    """While open, the interventions on a model's parts act on the parts of the same names of another; where one got adapters, on both together."""
    with ExitStack() as stack:
        for name, part in hf.named_modules():
            for key, hook in part._forward_hooks.items():
                if not _own(hook):
                    named, always = key in part._forward_hooks_with_kwargs, key in part._forward_hooks_always_called
                    handle = to.get_submodule(name).register_forward_hook(hook, with_kwargs=named, always_call=always)
                    stack.callback(handle.remove)
            for key, hook in part._forward_pre_hooks.items():
                if not _own(hook):
                    named = key in part._forward_pre_hooks_with_kwargs
                    stack.callback(to.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=named).remove)
        yield


def _own(hook: Any) -> bool:
    return getattr(hook, "__module__", "") in OWN


def _kept(hooks: Any) -> dict[int, Any]:
    """A model's own hooks; one with a state of its own (a count) anew for a copy."""
    return {key: copy.copy(hook) for key, hook in hooks.items() if _own(hook)}
