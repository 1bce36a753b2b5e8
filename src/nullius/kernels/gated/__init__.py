"""Gated linear attention: one operator, three back ends (recurrence, chunks in PyTorch, Triton)."""

from nullius.kernels.gated.operator import gated_linear_attention, step

__all__ = ["gated_linear_attention", "step"]
