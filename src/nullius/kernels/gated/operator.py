"""The public operator: checks what it is given, and hands it to the back end that fits."""

from __future__ import annotations

import os
import warnings
from functools import cache
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from nullius.errors import NulliusError, nearest
from nullius.kernels.gated.chunks import chunked
from nullius.kernels.gated.recurrence import recurrence
from nullius.kernels.gated.traced import traced

Backend = Literal["auto", "triton", "chunks", "recurrence"]


def gated_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    *,
    initial_state: Tensor | None = None,
    scale: float | None = None,
    return_state: bool = False,
    cu_seqlens: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Linear attention with a matrix-valued memory that decays (arXiv 2312.06635).

    S_t = diag(exp log_decay_t) S_{t-1} + k_tᵀ v_t;  o_t = scale · q_t S_t.

    q, k: [B, T, H, K]; v: [B, T, H, V]; bf16, fp16, fp32 or fp64, with states in at least fp32.
    log_decay: natural logarithm of the gate, ≤ 0. [B, T, H, K] a gate per channel (GLA), [B, T, H] one per head and token (scalar gate),
    [H] one per head (RetNet), None for no decay (linear attention). For Triton the last three are written out, K times as large or more.
    initial_state: [B, H, K, V], zero when None. scale: K^−½ when None.
    cu_seqlens: [S + 1] offsets of S sequences packed along T (then B must be 1 and the states are [S, H, K, V]).
    backend: "auto" takes Triton on CUDA (compute capability 8.0 or newer) and chunks elsewhere; on an older GPU it says so.

    Returns o [B, T, H, V], and with `return_state` the last state [B, H, K, V] as well (fp32 or fp64).
    Raises NulliusError naming the tensor whose shape, type or values do not fit.
    """
    _check_shapes(q, k, v)
    batch, length, _, width = q.shape
    gate = _gate(log_decay, q)
    sequences = _sequences(cu_seqlens, batch, length)
    given = _state(initial_state, q, v, batch if sequences is None else len(sequences))
    scale = width**-0.5 if scale is None else scale
    chosen = _choose(backend, q, v)
    offsets = None if sequences is None else [start for start, _ in sequences] + [length]
    end: Tensor | None
    if torch.compiler.is_compiling() and (chosen == "triton" or (chosen == "chunks" and offsets is None)):
        o, end = traced(q, k, v, gate, given, scale, offsets, chosen == "triton")
    elif chosen == "triton":  # which checks the gate as it reads it
        from nullius.kernels.gated.triton_operator import triton_gated

        o, end = triton_gated(q, k, v, gate, given, scale, offsets, return_state)
    else:
        _check_gate(gate)
        form = chunked if chosen == "chunks" else recurrence
        state = _zeros(q, v, batch if sequences is None else len(sequences)) if given is None else given
        wq, wk, wv, wg = (x.to(state.dtype) for x in (q, k, v, gate))
        with torch.autocast(q.device.type, enabled=False):  # which would make products of float32 in bfloat16
            if sequences is None:
                o, end = form(wq, wk, wv, wg, state, scale)
            else:
                cuts = [slice(a, b) for a, b in sequences]
                parts = [form(wq[:, c], wk[:, c], wv[:, c], wg[:, c], state[i : i + 1], scale) for i, c in enumerate(cuts)]
                o, end = torch.cat([part[0] for part in parts], 1), torch.cat([part[1] for part in parts])
        o = o.to(v.dtype)
    return (o, end) if return_state and end is not None else o


def step(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """One token, for decoding. q, k: [B, H, K]; v: [B, H, V]; state: [B, H, K, V], fp32 or fp64, updated in place and returned.

    log_decay: [B, H, K] a gate per channel, [B, H] one per head and row, [H] one per head, None for no decay.
    Returns o [B, H, V] and the state. Raises NulliusError naming the tensor whose shape does not fit, or a gate that is none.
    """
    if q.ndim != 3 or k.shape != q.shape:
        raise NulliusError(f"q and k must both be [B, H, K]; got q {list(q.shape)} and k {list(k.shape)}")
    if v.ndim != 3 or v.shape[:2] != q.shape[:2]:
        raise NulliusError(f"v must be [B, H, V] with the B, H of q, {list(q.shape[:2])}; got {list(v.shape)}")
    if state.shape != (*q.shape, v.shape[-1]):
        raise NulliusError(f"state must be [B, H, K, V] = {[*q.shape, v.shape[-1]]}; got {list(state.shape)}")
    if log_decay is not None:
        if log_decay.shape not in (q.shape, q.shape[:2], q.shape[1:2]):
            wanted = f"[B, H, K] = {list(q.shape)}, [B, H] = {list(q.shape[:2])} or [H] = [{q.shape[1]}]"
            raise NulliusError(f"log_decay must be {wanted}; got {list(log_decay.shape)}")
        gate = log_decay if log_decay.ndim == 3 else log_decay.unsqueeze(-1)
        _check_gate(gate)
        state.mul_(gate.to(state.dtype).exp().unsqueeze(-1))
    with torch.autocast(q.device.type, enabled=False):
        state.addcmul_(k.to(state.dtype).unsqueeze(-1), v.to(state.dtype).unsqueeze(-2))
        o = torch.einsum("bhk,bhkv->bhv", q.to(state.dtype), state) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return o.to(v.dtype), state


def _check_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    if q.ndim != 4 or k.shape != q.shape:
        raise NulliusError(f"q and k must both be [B, T, H, K]; got q {list(q.shape)} and k {list(k.shape)}")
    if v.ndim != 4 or v.shape[:3] != q.shape[:3]:
        raise NulliusError(f"v must be [B, T, H, V] with the B, T, H of q, {list(q.shape[:3])}; got {list(v.shape)}")
    if q.shape[1] == 0:
        raise NulliusError("q has no tokens (T = 0)")
    empty = next((name for name, size in zip("BTHKV", (*q.shape, v.shape[-1]), strict=True) if size == 0), None)
    if empty is not None:
        raise NulliusError(f"q [B, T, H, K] = {list(q.shape)} and v {list(v.shape)} hold nothing: {empty} = 0")
    if max(q.shape[-1], v.shape[-1]) > 512:
        raise NulliusError(f"head dimensions up to 512 are supported; got K = {q.shape[-1]}, V = {v.shape[-1]}")
    if max(q.numel(), v.numel()) >= 2**31:
        raise NulliusError(f"q or v has {max(q.numel(), v.numel())} elements, past the kernel's 32-bit index; split the batch")
    if not (q.dtype == k.dtype == v.dtype and q.is_floating_point()):
        raise NulliusError(f"q, k and v must share one floating type; got {q.dtype}, {k.dtype}, {v.dtype}")


def _gate(log_decay: Tensor | None, q: Tensor) -> Tensor:
    """Broadcast any form of the gate to [B, T, H, K]; the gradient sums back by itself."""
    if log_decay is None:
        return q.new_zeros(()).expand(q.shape)
    heads = q.shape[2]
    if not isinstance(log_decay, Tensor):
        raise NulliusError(f"log_decay must be a tensor, or None for no decay; got {log_decay!r}")
    if log_decay.device != q.device:
        raise NulliusError(f"log_decay lies on {log_decay.device}, q on {q.device}: move one to the other")
    if log_decay.shape == q.shape:
        return log_decay
    if log_decay.shape == q.shape[:3]:
        return log_decay.unsqueeze(-1).expand(q.shape)
    if log_decay.shape == (heads,):
        return log_decay.view(1, 1, heads, 1).expand(q.shape)
    raise NulliusError(
        f"log_decay must be [B, T, H, K] = {list(q.shape)}, [B, T, H] = {list(q.shape[:3])} or [H] = [{heads}]; got {list(log_decay.shape)}"
    )


def _check_gate(gate: Tensor) -> None:
    """One pass that any NaN and any positive value fails. On CUDA it would force a synchronisation at every layer, so it is asynchronous."""
    good = (gate.detach() <= 0).all()
    if gate.is_cuda:
        torch._assert_async(good)
    elif not good:
        what = "NaN" if gate.isnan().any() else f"a positive value, {float(gate.detach().max()):.3g}"
        raise NulliusError(f"log_decay is the logarithm of a gate and must be ≤ 0; it holds {what}")


def _sequences(cu_seqlens: Tensor | None, batch: int, length: int) -> list[tuple[int, int]] | None:
    if cu_seqlens is None:
        return None
    if batch != 1:
        raise NulliusError(f"packed sequences (cu_seqlens) need a batch of 1, got {batch}")
    if not isinstance(cu_seqlens, Tensor) or cu_seqlens.ndim != 1 or cu_seqlens.is_floating_point():
        raise NulliusError(f"cu_seqlens must be a tensor of whole numbers [S + 1]; got {cu_seqlens!r}")
    offsets = cu_seqlens.tolist()
    if len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != length or any(a >= b for a, b in pairwise(offsets)):
        raise NulliusError(f"cu_seqlens must rise from 0 to T = {length}; got {offsets}")
    return list(pairwise(offsets))


def _zeros(q: Tensor, v: Tensor, sequences: int) -> Tensor:
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_zeros((sequences, q.shape[2], q.shape[3], v.shape[3]), dtype=wide)


def _state(initial: Tensor | None, q: Tensor, v: Tensor, sequences: int) -> Tensor | None:
    """The given states, checked. The kernels need no zeros where none are given: a large batch's would take as long to write as its keys."""
    shape = (sequences, q.shape[2], q.shape[3], v.shape[3])
    if initial is None:
        return None
    if initial.shape != shape:
        raise NulliusError(f"initial_state must be [sequences, H, K, V] = {list(shape)}; got {list(initial.shape)}")
    if initial.device != q.device:
        raise NulliusError(f"initial_state lies on {initial.device}, q on {q.device}: move one to the other")
    return initial.to(torch.float64 if q.dtype == torch.float64 else torch.float32)


def _choose(backend: Backend, q: Tensor, v: Tensor) -> Backend:
    if backend not in get_args(Backend):
        raise NulliusError(f"no backend '{backend}'{nearest(str(backend), get_args(Backend))}; there are {', '.join(get_args(Backend))}")
    if backend == "triton" and not q.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise NulliusError(f"the Triton kernels need a CUDA device; q lies on {q.device}: take another backend")
    if backend != "auto":
        return backend
    if not q.is_cuda or q.dtype == torch.float64 or not _known(q.device):
        return "chunks"
    return "triton"


@torch.compiler.assume_constant_result
def _known(device: torch.device) -> bool:
    """`_serves`, which nothing that is compiled looks into."""
    return _serves(device)


@cache
def _serves(device: torch.device) -> bool:
    """Whether the kernels run on a GPU. Where it is too old for them, that is said once."""
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) >= (8, 0):
        return True
    warnings.warn(
        f"{torch.cuda.get_device_name(device)} (compute capability {major}.{minor}) is too old for the kernels of gated linear attention, "
        "which need 8.0: it runs in plain PyTorch instead, more slowly",
        stacklevel=5,
    )
    return False
