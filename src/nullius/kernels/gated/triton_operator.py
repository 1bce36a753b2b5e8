"""The Triton back end: plans the launches and ties them to autograd."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from nullius.kernels.gated import triton_kernels as kernels


@dataclass(frozen=True)
class Tiles:
    """Tile sizes and warps of one kernel, chosen by hand; see benchmarks/gla.md."""

    k: int
    v: int
    warps: int
    stages: int


CHUNK = 64
PREPARE = Tiles(64, 0, 4, 1)
SCORES = Tiles(32, 64, 4, 3)  # k: of P; v: of its gradient
WALK = Tiles(0, 128, 8, 2)  # k: all of it; v shrinks where K is larger than 256
KEYS = Tiles(64, 64, 4, 4)
# A segment is a run of chunks that one program walks. Sequences are cut into segments until this many programs fill the machine.
PROGRAMS = 128


@dataclass(frozen=True)
class Plan:
    """Tables: chunks [n, 2] (first token, length), segments [m, 3] (first and past-last token, first chunk), sequences [s, 2] (first and
    past-last segment)."""

    chunk: int
    chunks: Tensor
    segments: Tensor
    sequences: Tensor


@lru_cache(maxsize=64)
def plan(offsets: tuple[int, ...], programs: int, largest_chunk: int, device: torch.device) -> Plan:
    """Cut sequences into chunks and segments. programs: those that walk one sequence side by side (heads × tiles of V)."""
    longest = max(b - a for a, b in pairwise(offsets))
    chunk = min(largest_chunk, max(16, triton.next_power_of_2(longest)))
    wanted = max(1, PROGRAMS // (programs * (len(offsets) - 1)))
    chunks: list[tuple[int, int]] = []
    segments: list[tuple[int, int, int]] = []
    sequences: list[tuple[int, int]] = []
    for a, b in pairwise(offsets):
        length = max(4, triton.cdiv(triton.cdiv(b - a, chunk), wanted)) * chunk  # below four chunks a segment costs more than it wins
        starts = range(a, b, length)
        sequences.append((len(segments), len(segments) + len(starts)))
        segments += [(i, min(i + length, b), len(chunks) + (i - a) // chunk) for i in starts]
        chunks += [(i, min(chunk, b - i)) for i in range(a, b, chunk)]
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
    with torch.cuda.device(q.device) if q.is_cuda else nullcontext():
        o, end = _Gated.apply(q.contiguous(), k.contiguous(), v.contiguous(), gate, state.contiguous(), scale, bounds)
    return o, end


def _width(size: int) -> int:
    return max(16, triton.next_power_of_2(size))


# Kernels as compiled, with their constants in the order of their arguments. Triton looks a kernel up by binding and describing every argument
# at every launch, which for a small layer takes the processor longer than the GPU takes to run it.
_COMPILED: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}


class _Call:
    """What all launches of one call share: shapes, strides of the gate, the plan, the precision."""

    def __init__(self, q: Tensor, v: Tensor, gate: Tensor, bounds: tuple[int, ...], scale: float, *others: Tensor) -> None:
        self.heads, self.K, self.V = q.shape[2], q.shape[3], v.shape[3]
        self.scale = scale
        self.strides = (gate.stride(1), gate.stride(2), gate.stride(3))
        self.exact = q.dtype == torch.float32
        self.precision = "ieee" if self.exact else "tf32"
        wide = _width(self.K)
        # a walk holds [C, K] tiles of Q and K in shared memory, 32 KB each, and a [K, BV] tile of the state in registers, 128 KB
        self.walk_v = min(_width(self.V), max(16, 32768 // wide), 32 if self.exact else WALK.v)
        self.walk_tiles = triton.cdiv(self.V, self.walk_v)
        self.rows = self.walk_tiles * self.walk_v  # of the kept states, whole tiles of them
        chunk = min(CHUNK, max(16, 32768 // (wide * q.element_size())))
        self.plan = plan(bounds, self.heads * self.walk_tiles, chunk, q.device)
        self.aligned = all(x.data_ptr() % 16 == 0 for x in (q, v, gate, *others))
        self.key = (self.heads, self.K, self.V, q.dtype, gate.dtype, self.strides, self.plan.chunk, q.device)

    def launch(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        """Launch a kernel, the second time without asking Triton which it is. What Triton would compile anew for is in the key."""
        key = (kernel.fn.__name__, *constants.values(), self.key)
        if self.aligned and key in _COMPILED:
            compiled, values = _COMPILED[key]
            compiled[(*grid, 1, 1)[:3]](*arguments, *values)
            return
        compiled = kernel[grid](*arguments, **constants)
        if self.aligned and compiled is not None:  # None: interpreted
            _COMPILED[key] = compiled, tuple(constants[name] for name in kernel.arg_names[len(arguments) :])

    def constants(self, tiles: Tiles, **extra: Any) -> dict[str, Any]:
        return {"C": self.plan.chunk, "num_warps": tiles.warps, "num_stages": tiles.stages, **extra}

    def prepare(self, q: Tensor, k: Tensor, gate: Tensor, bad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return scale · Q ⊙ e^b, K ⊙ e^(b_C − b) and b_C [chunks, H, K] (base 2)."""
        grown, faded = torch.empty_like(q), torch.empty_like(k)
        fade = q.new_empty((len(self.plan.chunks), self.heads, self.K), dtype=torch.float32)
        constants = self.constants(PREPARE, K=self.K, BK=min(PREPARE.k, _width(self.K)))
        grid = (triton.cdiv(self.K, constants["BK"]), len(self.plan.chunks), self.heads)
        numbers = (self.scale, self.heads, *self.strides)
        self.launch(kernels.prepare, grid, q, k, gate, self.plan.chunks, grown, faded, fade, bad, *numbers, **constants)
        return grown, faded, fade

    def scores(self, grown: Tensor, faded: Tensor, q: Tensor, k: Tensor, gate: Tensor, fade: Tensor) -> Tensor:
        """Return P [chunks, H, C, C]."""
        c = self.plan.chunk
        p = q.new_empty((len(self.plan.chunks), self.heads, c, c))
        constants = self.constants(SCORES, K=self.K, BK=min(SCORES.k, _width(self.K)), PRECISION=self.precision)
        tensors = (grown, faded, q, k, gate, self.plan.chunks, fade, p)
        for strong in (False, True):
            numbers = (self.scale, self.heads, *self.strides)
            self.launch(kernels.scores, tuple(p.shape[:2]), *tensors, *numbers, GATES_ARE_STRONG=strong, **constants)
        return p

    def walk(
        self,
        read: Tensor,
        write: Tensor,
        right: Tensor,
        scores: Tensor,
        fade: Tensor,
        first: Tensor,
        *,
        out: bool,
        keep: bool,
        backwards: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return outputs, states at the edges of chunks [chunks · H · V, K] (padded to tiles), last states [sequences, H, K, V]."""
        at, shape = self.plan, (self.heads, self.K, self.V)
        outputs = torch.empty_like(right) if out else right
        kept = right.new_empty((len(at.chunks) * self.heads * self.rows, _width(self.K))) if keep else right
        target = TensorDescriptor.from_tensor(kept, [self.walk_v, _width(self.K)]) if keep else right
        last = torch.empty_like(first)
        constants = self.constants(
            WALK, K=self.K, V=self.V, BK=_width(self.K), BV=self.walk_v, VP=self.rows, BACKWARDS=backwards, PRECISION=self.precision
        )
        grid = (self.walk_tiles, len(at.segments), self.heads)

        def launch(start: Tensor, end: Tensor, total: Tensor, **what: bool) -> None:
            flags = {name: what.get(name, False) for name in ("FROM_ZERO", "OUT", "KEEP", "TOTAL")}
            place = target if flags["KEEP"] else right
            tensors = (read, write, right, scores, fade, at.segments, start, outputs, place, end, total)
            self.launch(kernels.walk, grid, *tensors, self.heads, **flags, **constants)

        def go(start: Tensor, end: Tensor, total: Tensor) -> None:
            if out:
                launch(start, end, total, OUT=True)
            if keep:  # a walk of its own: outputs, states and what is loaded ahead do not fit into shared memory together
                launch(start, end, total, KEEP=True)

        if len(at.segments) == len(at.sequences):
            go(first, last, fade)
            return outputs, kept, last
        sums = first.new_empty((len(at.segments), *shape))
        starts = torch.empty_like(sums)
        total = first.new_empty((len(at.segments), self.heads, self.K))
        launch(first, sums, total, FROM_ZERO=True, TOTAL=True)
        size = {"BK": min(32, _width(self.K)), "BV": min(64, _width(self.V))}
        tiles = triton.cdiv(self.K, size["BK"]) * triton.cdiv(self.V, size["BV"])
        joined = (sums, total, first, starts, last, at.sequences)
        grid_of_join = (tiles, len(at.sequences), self.heads)
        self.launch(kernels.join, grid_of_join, *joined, self.heads, K=self.K, V=self.V, **size, BACKWARDS=backwards)
        go(starts, sums, total)
        return outputs, kept, last


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, gate: Tensor, state: Tensor, scale: float, bounds: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """Four launches (six where few sequences are cut into segments)."""
        call = _Call(q, v, gate, bounds, scale, k, state)
        bad = torch.zeros((), dtype=torch.int32, device=q.device)
        grown, faded, fade = call.prepare(q, k, gate, bad)
        p = call.scores(grown, faded, q, k, gate, fade)
        o, _, end = call.walk(grown, faded, v, p, fade, state, out=True, keep=False, backwards=False)
        torch._assert_async(bad == 0, "log_decay is the logarithm of a gate: it must be ≤ 0 and no NaN")
        ctx.save_for_backward(q, k, v, gate, state, p)
        ctx.scale, ctx.bounds = scale, bounds
        return o, end

    @staticmethod
    def backward(ctx: Any, d_o: Tensor, d_end: Tensor) -> tuple[Tensor | None, ...]:
        """Seven launches. What is as large as the inputs or larger is recomputed: kept from the forward it would double their memory."""
        q, k, v, gate, state, p = ctx.saved_tensors
        d_o, d_end = d_o.contiguous(), d_end.contiguous()
        call = _Call(q, v, gate, ctx.bounds, ctx.scale, k, state, d_o, d_end)
        chunks, heads, scale = call.plan.chunks, call.heads, ctx.scale
        bad = torch.empty((), dtype=torch.int32, device=q.device)
        grown, faded, fade = call.prepare(q, k, gate, bad)
        d_v, d_kept, d_state = call.walk(faded, grown, d_o, p, fade, d_end, out=True, keep=True, backwards=True)
        _, kept, _ = call.walk(grown, faded, v, p, fade, state, out=False, keep=True, backwards=False)
        d_q, d_k = grown, faded  # no longer needed: their memory is
        d_gate = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
        d_p = p.new_empty((2, *p.shape))
        constants = call.constants(SCORES, V=call.V, BV=min(SCORES.v, _width(call.V)), PRECISION=call.precision)
        call.launch(kernels.score_gradient, (len(chunks), heads), d_o, v, chunks, d_p, scale, heads, **constants)
        tile = {"BK": min(KEYS.k, _width(call.K)), "BV": min(KEYS.v, call.walk_v)}
        constants = call.constants(KEYS, K=call.K, V=call.V, VP=call.rows, PRECISION=call.precision, **tile)
        both = [TensorDescriptor.from_tensor(states, [tile["BV"], tile["BK"]]) for states in (kept, d_kept)]
        tensors = (q, k, v, gate, fade, d_o, chunks, d_p, *both, d_q, d_k, d_gate)
        grid = (triton.cdiv(call.K, tile["BK"]), len(chunks), heads)
        for strong in (False, True):
            call.launch(kernels.key_gradients, grid, *tensors, scale, heads, *call.strides, GATES_ARE_STRONG=strong, **constants)
        return d_q, d_k, d_v, d_gate, d_state, None, None
