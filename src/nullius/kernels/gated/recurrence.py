"""The plain recurrence (Yang et al. 2023, arXiv 2312.06635, eq. 3): the definition against which every other form is checked."""

from __future__ import annotations

import torch
from torch import Tensor


def recurrence(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """S_t = diag(exp g_t) S_{t-1} + k_tᵀ v_t;  o_t = scale · q_t S_t, one token after the other.

    q, k, log_decay: [B, T, H, K]; v: [B, T, H, V]; state: [B, H, K, V]. Returns o [B, T, H, V] and the last state.
    Differentiable by autograd; the time axis is unbound once, since indexing inside the loop makes the backward quadratic in T.
    """
    outputs = []
    for q_t, k_t, v_t, g_t in zip(q.unbind(1), k.unbind(1), v.unbind(1), log_decay.unbind(1), strict=True):
        state = state * g_t.exp().unsqueeze(-1) + k_t.unsqueeze(-1) * v_t.unsqueeze(-2)
        outputs.append(torch.einsum("bhk,bhkv->bhv", q_t, state))
    return torch.stack(outputs, 1) * scale, state
