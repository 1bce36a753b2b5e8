"""Tests of the instruments on a GPU: with NULLIUS_TEST_DEVICE=cuda every subject that a test wraps lives there.

A test makes its own tensors on the CPU. Where the test itself computes from both, the CPU's are moved; where the package does, nothing is
moved, so that a device which the package forgot still fails the test.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter, tree_map

from nullius.models.language_model import LanguageModel

DEVICE = os.environ.get("NULLIUS_TEST_DEVICE", "cpu")
TESTS = str(Path(__file__).parent)
PACKAGE = str(Path(TESTS).parent / "src")
TO_ARRAYS = (torch.Tensor.numpy, torch.Tensor.__array__)
IN_PLACE = ("__setitem__", "copy_")
AS_THEY_ARE = ("__set__", "grad", "backward")  # a parameter that is moved, and what is differentiated by, must stay the very tensor


def _asked_by_a_test() -> bool:
    """Whether the innermost frame that is the project's own is a test's, not the package's."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(PACKAGE):
            return False
        if name.startswith(TESTS) and name != __file__:
            return True
        frame = frame.f_back
    return False


def drawn(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> torch.Tensor:
    """Random numbers of a generator, which is the CPU's, put where they are wanted: in place where the call is."""
    target = next((x for x in (*args[:1], kwargs.get("tensor")) if isinstance(x, torch.Tensor)), None)
    if target is None:
        return func(*args, **{**kwargs, "device": "cpu"}).to(kwargs.get("device") or "cpu")
    copy = target.detach().cpu()
    func(*tree_map(lambda x: copy if x is target else x, args), **{name: copy if x is target else x for name, x in kwargs.items()})
    with torch.no_grad():
        return target.copy_(copy)


class OnOneDevice(TorchFunctionMode):
    """Moves a test's own tensors beside the subject's."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The call, with tensors of both devices on the GPU; arrays are made of copies on the CPU."""
        kwargs = kwargs or {}
        if func in TO_ARRAYS and _asked_by_a_test():
            return func(args[0].detach().cpu() if func is torch.Tensor.__array__ else args[0].cpu(), *args[1:], **kwargs)
        if "generator" in kwargs and _asked_by_a_test():
            return drawn(func, args, kwargs)
        if func.__name__ in AS_THEY_ARE:
            return func(*args, **kwargs)
        kinds = {x.device.type for x in tree_iter((args, kwargs)) if isinstance(x, torch.Tensor)}
        if len(kinds) > 1 and _asked_by_a_test():
            written = args[0].device if args and func.__name__ in IN_PLACE else DEVICE  # what is written into stays where it is
            args, kwargs = tree_map(lambda x: x.to(written) if isinstance(x, torch.Tensor) else x, (args, kwargs))
        return func(*args, **kwargs)


def wrap_there() -> None:
    """From now on `LanguageModel.wrap` moves what it wraps, a test's tensors follow, and values are compared wherever they lie."""
    inner, compare = LanguageModel.wrap.__func__, torch.testing.assert_close

    def wrap(cls: type[LanguageModel], hf: Any, *rest: Any, **more: Any) -> LanguageModel:
        hf = hf.to(DEVICE)
        left = [name for name, tensor in hf.state_dict().items() if tensor.device.type != torch.device(DEVICE).type]
        assert not left, f"still on the CPU: {left}"
        return inner(cls, hf, *rest, **more)

    LanguageModel.wrap = classmethod(wrap)
    torch.testing.assert_close = lambda *values, **more: compare(*values, **{"check_device": False, **more})
    OnOneDevice().__enter__()  # for good: fixtures of modules are made before those of tests
