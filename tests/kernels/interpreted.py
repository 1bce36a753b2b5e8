"""bf16 under Triton's interpreter, which has numpy's types alone: it keeps bf16 as bits and cannot multiply them. Here it learns to.

Of the kernels only what they do with bf16 is taught: conversion, constants and products; their arithmetic is in fp32. Import before the kernels.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

_cast, _dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot


def _wide(handle: TensorHandle) -> TensorHandle:
    """bf16 or fp16 as fp32."""
    kind = handle.dtype.scalar
    if kind == tl.bfloat16:
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
    return TensorHandle(handle.data.astype(np.float32), tl.float32) if kind == tl.float16 else handle


def _rounded(data: np.ndarray) -> TensorHandle:
    bits = torch.from_numpy(np.ascontiguousarray(data, dtype=np.float32)).to(torch.bfloat16).view(torch.int16)
    return TensorHandle(bits.numpy().view(np.uint16), tl.bfloat16)


def _convert(self: InterpreterBuilder, source: TensorHandle, kind: tl.dtype) -> TensorHandle:
    if source.dtype.scalar == kind.scalar:
        return source
    source = _wide(source) if source.dtype.scalar == tl.bfloat16 else source
    if kind.scalar == tl.bfloat16:
        return _rounded(source.data)
    return source if source.dtype.scalar == kind.scalar else _cast(self, source, kind)


def _multiply(self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, start: TensorHandle, *how: object) -> TensorHandle:
    return _dot(self, _wide(a), _wide(b), start, *how)


InterpreterBuilder.cast_impl = _convert
InterpreterBuilder.create_dot = _multiply
InterpreterBuilder.get_bf16 = lambda self, value: _rounded(np.array([value]))
