"""The Triton back end: plans the launches and ties them to autograd."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
import triton
from torch import Tensor

from nullius.kernels.gated import triton_kernels as kernels


@dataclass(frozen=True)
class Tiles:
    """Tile sizes and warps of one kernel, chosen by hand on an H100; see benchmarks/gla.md."""

    k: int
    v: int
    warps: int
    stages: int


CHUNK = 64
STATES = Tiles(64, 128, 4, 3)
OUTPUTS = Tiles(64, 256, 8, 2)
VALUES = Tiles(64, 256, 8, 2)
KEYS = Tiles(64, 64, 4, 3)
# A segment is a run of chunks that one program walks. Sequences are cut into segments until this many programs fill the machine.
PROGRAMS = 512


@dataclass(frozen=True)
class Plan:
    """Tables of chunks [n, 2] (first token, length), segments [m, 2] (first and past-last chunk), sequences [s, 2] (of segments)."""

    chunk: int
    chunks: Tensor
    segments: Tensor
    sequences: Tensor


@lru_cache(maxsize=64)
def plan(offsets: tuple[int, ...], per_chunk_programs: int, device: torch.device) -> Plan:
    """Cut sequences into chunks and segments. per_chunk_programs: programs that work on one chunk at a time (heads × tiles)."""
    longest = max(b - a for a, b in pairwise(offsets))
    chunk = min(CHUNK, max(16, triton.next_power_of_2(longest)))
    wanted = max(1, PROGRAMS // (per_chunk_programs * (len(offsets) - 1)))
    chunks: list[tuple[int, int]] = []
    segments: list[tuple[int, int]] = []
    sequences: list[tuple[int, int]] = []
    for a, b in pairwise(offsets):
        own = [(i, min(chunk, b - i)) for i in range(a, b, chunk)]
        length = max(4, -(-len(own) // wanted))  # below four chunks a segment costs more than it wins
        cuts = range(len(chunks), len(chunks) + len(own), length)
        sequences.append((len(segments), len(segments) + len(cuts)))
        segments += [(i, min(i + length, len(chunks) + len(own))) for i in cuts]
        chunks += own
    tables = [torch.tensor(rows, dtype=torch.int32, device=device) for rows in (chunks, segments, sequences)]
    return Plan(chunk, *tables)


def triton_gated(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, state: Tensor, scale: float, offsets: list[int] | None
) -> tuple[Tensor, Tensor]:
    """Same contract as `recurrence`, for tensors on CUDA (anywhere under Triton's interpreter); offsets: of packed sequences, if any."""
    batch, length = q.shape[:2]
    bounds = tuple(offsets or range(0, batch * length + 1, length))
    if gate.stride(0) != length * gate.stride(1):
        gate = gate.contiguous()
    o, end = _Gated.apply(q.contiguous(), k.contiguous(), v.contiguous(), gate, state.contiguous(), scale, bounds)
    return o, end


def _tiles(width: int, block: int) -> int:
    return min(block, max(16, triton.next_power_of_2(width)))


class _Call:
    """What all launches of one call share: shapes, strides of the gate, the plan, the precision."""

    def __init__(self, q: Tensor, v: Tensor, gate: Tensor, bounds: tuple[int, ...], scale: float) -> None:
        self.heads, self.K, self.V = q.shape[2], q.shape[3], v.shape[3]
        self.scale = scale
        self.strides = (gate.stride(1), gate.stride(2), gate.stride(3))
        self.exact = q.dtype == torch.float32
        self.kept = torch.float32 if self.exact else q.dtype
        bk, bv = _tiles(self.K, STATES.k), _tiles(self.V, STATES.v)
        self.state_tiles = triton.cdiv(self.K, bk) * triton.cdiv(self.V, bv)
        self.plan = plan(bounds, self.heads * self.state_tiles, q.device)

    def shapes(self, tiles: Tiles) -> dict[str, Any]:
        return {
            "K": self.K,
            "V": self.V,
            "C": self.plan.chunk,
            "BK": _tiles(self.K, tiles.k),
            "BV": _tiles(self.V, tiles.v),
            "PRECISION": "ieee" if self.exact else "tf32",
            "num_warps": tiles.warps,
            "num_stages": tiles.stages,
        }

    def states(self, left: Tensor, right: Tensor, gate: Tensor, first: Tensor, bad: Tensor, *, backwards: bool) -> tuple[Tensor, Tensor]:
        """States at chunk boundaries [chunks, H, K, V] and the last state of each sequence [sequences, H, K, V]."""
        at = self.plan
        shape = (self.heads, self.K, self.V)
        kept = left.new_empty((len(at.chunks), *shape), dtype=self.kept)
        last = torch.empty_like(first)
        constants = self.shapes(STATES)
        grid = (self.state_tiles, len(at.segments), self.heads)
        scale = self.scale if backwards else 1.0

        def walk(start: Tensor, end: Tensor, total: Tensor, from_zero: bool) -> None:
            kernels.states[grid](
                left, right, gate, at.chunks, at.segments, start, kept, end, total, bad, scale, self.heads, *self.strides,
                BACKWARDS=backwards, FROM_ZERO=from_zero, KEEP=not from_zero, TOTAL=from_zero, **constants,
            )  # fmt: skip

        if len(at.segments) == len(at.sequences):
            walk(first, last, bad, False)
            return kept, last
        sums = first.new_empty((len(at.segments), *shape))
        starts = torch.empty_like(sums)
        total = first.new_empty((len(at.segments), self.heads, self.K))
        walk(first, sums, total, True)
        size = {"BK": _tiles(self.K, 32), "BV": _tiles(self.V, 64)}
        tiles = triton.cdiv(self.K, size["BK"]) * triton.cdiv(self.V, size["BV"])
        kernels.join[(tiles, len(at.sequences), self.heads)](
            sums, total, first, starts, last, at.sequences, self.heads, K=self.K, V=self.V, BACKWARDS=backwards, **size
        )
        walk(starts, sums, total, False)
        return kept, last


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, gate: Tensor, state: Tensor, scale: float, bounds: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """Two launches (four where few sequences are cut into segments)."""
        call = _Call(q, v, gate, bounds, scale)
        bad = torch.zeros((), dtype=torch.int32, device=q.device)
        kept, end = call.states(k, v, gate, state, bad, backwards=False)
        o = torch.empty_like(v)
        constants = call.shapes(OUTPUTS)
        grid = (triton.cdiv(call.V, constants["BV"]), len(call.plan.chunks), call.heads)
        kernels.outputs[grid](q, k, v, gate, call.plan.chunks, kept, o, scale, call.heads, *call.strides, **constants)
        torch._assert_async(bad == 0, "log_decay is the logarithm of a gate: it must be ≤ 0 and no NaN")
        ctx.save_for_backward(q, k, v, gate, state)
        ctx.scale, ctx.bounds = scale, bounds
        return o, end

    @staticmethod
    def backward(ctx: Any, d_o: Tensor, d_end: Tensor) -> tuple[Tensor | None, ...]:
        """Four launches. States are recomputed: kept from the forward they would be the largest tensor of the layer."""
        q, k, v, gate, state = ctx.saved_tensors
        call = _Call(q, v, gate, ctx.bounds, ctx.scale)
        at, heads, scale = call.plan, call.heads, ctx.scale
        d_o = d_o.contiguous()
        bad = torch.empty((), dtype=torch.int32, device=q.device)
        kept, _ = call.states(k, v, gate, state, bad, backwards=False)
        d_kept, d_state = call.states(q, d_o, gate, d_end.contiguous(), bad, backwards=True)
        d_q, d_k, d_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        d_gate = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
        constants = call.shapes(VALUES)
        grid = (triton.cdiv(call.V, constants["BV"]), len(at.chunks), heads)
        kernels.value_gradient[grid](q, k, gate, d_o, at.chunks, d_kept, d_v, scale, heads, *call.strides, **constants)
        constants = call.shapes(KEYS)
        grid = (triton.cdiv(call.K, constants["BK"]), len(at.chunks), heads)
        kernels.key_gradients[grid](
            q, k, v, gate, d_o, at.chunks, kept, d_kept, d_q, d_k, d_gate, scale, heads, *call.strides,
            INTRA="ieee" if call.exact else "tf32", **constants,
        )  # fmt: skip
        return d_q, d_k, d_v, d_gate, d_state, None, None
