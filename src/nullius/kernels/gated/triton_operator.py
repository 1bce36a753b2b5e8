"""The Triton back end: plans the launches and ties them to autograd.

For small layers the processor that launches kernels is what takes time. Hence everything that depends on shapes alone is made once and kept
(`_Launches`), and kernels are started as compiled, without Triton's lookup and its look at every pointer.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from nullius.kernels.gated import triton_gradients as gradients
from nullius.kernels.gated import triton_kernels as kernels
from nullius.kernels.gated.triton_plan import PROGRAMS, plan, ratio, width


@dataclass(frozen=True)
class Tiles:
    """Tile sizes and warps of one kernel, chosen by hand; see benchmarks/gla.md."""

    k: int
    v: int
    warps: int
    stages: int
    registers: int | None = None  # of a thread, at most; fewer let more programs run at once


CHUNK = 64
BLOCK = 8  # chunks between two states that are written to memory
PREPARE = Tiles(32, 0, 4, 4, 160)
STRONG_SCORES = Tiles(32, 0, 4, 3, 128)  # it spills; but nearly always its programs leave at once, and then many should fit
SCORE_GRADIENT = Tiles(0, 64, 4, 3)
WALK = Tiles(0, 128, 8, 3)  # k: all of it; v shrinks where K is larger than 256, and stages where it is larger than 128
WALK_BY_TILE = 256  # K from where on a walk loads by tile: the processor, which describes tiles at every launch, is slow for smaller layers
GRADIENTS = Tiles(128, 256, 8, 2)  # half of v and a stage more where K is smaller or the programs are too few
GRADIENTS_PIECE = 64  # columns of v side by side: a product takes its left factor from registers, a piece at a time
KEYS = Tiles(32, 0, 4, 1)
KEYS_AHEAD = 2  # stages of its loop
SUMS_STAGES = 3  # of a walk without outputs, where K is at most 256


def triton_gated(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, state: Tensor | None, scale: float, offsets: list[int] | None, last: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Same contract as `recurrence`, for tensors on CUDA (anywhere under Triton's interpreter).

    state: None for zeros. offsets: of packed sequences, if any. last: whether the last states are wanted, else None."""
    learning = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, gate, state))
    q, k, v, gate, state = laid_out(q, k, v, gate, state)
    cuts = bounds(q, offsets)
    with at(q):
        if learning:
            o, end = _Gated.apply(q, k, v, gate, state, scale, cuts, last)
        else:
            o, end, *_ = forward(_launches(q, v, gate, cuts, k, state), q, k, v, gate, state, scale, last, learning)
    return o, end


def at(q: Tensor) -> AbstractContextManager[Any]:
    """The device of q as the one that is launched on; it nearly always is already."""
    away = q.is_cuda and q.device.index != torch.cuda.current_device()
    return torch.cuda.device(q.device) if away else nullcontext()


def bounds(q: Tensor, offsets: Sequence[int] | None) -> tuple[int, ...]:
    """Where sequences begin and end in one row of all tokens."""
    batch, length = int(q.shape[0]), int(q.shape[1])
    return tuple(offsets or range(0, batch * length + 1, length))


def laid_out(q: Tensor, k: Tensor, v: Tensor, gate: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """The inputs as the kernels read them: contiguous. A gate that is the same along an axis is written out as well, [B, T, H, K] (of a scalar
    gate K times its own size): read in place it stopped the gradients' kernel on an H200 (benchmarks/gla.md)."""
    return q.contiguous(), k.contiguous(), v.contiguous(), gate.contiguous(), None if state is None else state.contiguous()


class _Launches:
    """What all calls of one shape share: the plan, tile sizes, constants, kernels as compiled. Its methods launch one kernel each."""

    def __init__(
        self,
        bounds: tuple[int, ...],
        heads: int,
        key: int,
        value: int,
        dtype: torch.dtype,
        device: torch.device,
        aligned: bool = True,
    ) -> None:
        self.heads, self.K, self.V, self.device = heads, key, value, device.index
        exact = dtype == torch.float32
        wide, tall = width(key), width(value)
        chunk = min(CHUNK, max(16, 32768 // (wide * dtype.itemsize)))
        # a walk holds [C, K] tiles of Q and K in shared memory, 32 KB each, and a [K, BV] tile of the state in registers, 128 KB
        walk_v = min(tall, max(16, 32768 // wide), 32 if exact else WALK.v)
        self.walk_tiles = ratio(value, walk_v)
        block = 1 if exact else BLOCK
        self.plan = plan(bounds, heads * self.walk_tiles, chunk, block, device)
        at = self.plan
        self.chunks, self.blocks, self.segments, self.pieces, self.sequences = map(
            len, (at.chunks, at.blocks, at.segments, at.pieces, at.sequences)
        )
        self.cut = self.segments > self.sequences
        self.sums_stages = 2 if exact or wide > 256 else SUMS_STAGES
        turn_k, turn_v = min(wide, GRADIENTS.k), min(tall, GRADIENTS.v)
        if exact:
            turn_k, turn_v = min(wide, 32), min(tall, 64)
        elif turn_k < 128 or len(at.segments) * heads * ratio(key, turn_k) * ratio(value, turn_v) < 0.9 * PROGRAMS:
            turn_v = min(turn_v, 128)
        pieces = max(1, turn_v // GRADIENTS_PIECE) if turn_k * turn_v > 64 * 128 else 1
        self.turn_k, self.turn_v, self.turn_tiles = turn_k, turn_v, ratio(value, turn_v)
        self.half = torch.float32 if exact else torch.float16
        precision = "ieee" if exact else "tf32"
        # A channel that fades by more than this in one chunk leaves the range of its type when the exponent is split in two halves (2^-230 is
        # e^-160; fp16 has five bits of exponent): see `chunks`. In half precision scaled to fit there is room for 2^-24. And a channel that fades by
        # more than 2^-12 takes nothing across the chunk that bf16 would show.
        strong, mild = -12.0 if dtype == torch.float16 else -230.0, -230.0 if exact else -24.0

        def constants(tiles: Tiles, **extra: Any) -> dict[str, Any]:
            few = {} if tiles.registers is None else {"maxnreg": tiles.registers}
            return {"C": self.plan.chunk, "num_warps": tiles.warps, "num_stages": tiles.stages, **few, **extra}

        # a tile is loaded at once from rows that begin at multiples of 16 bytes
        self.by_tile = aligned and heads * key * dtype.itemsize % 16 == 0
        # a walk, straight into its products, also only where nothing of a tile is to be left out; and a tile has at most 256 columns
        full = all((b - a) % self.plan.chunk == 0 for a, b in pairwise(bounds)) and key == wide and value % walk_v == 0
        self.walk_v, self.walk_by_tile = walk_v, full and aligned and WALK_BY_TILE <= wide <= 256 and not exact
        # fp32 has no matrix unit: its products are written out, and large ones take a minute to compile
        keys = {
            "K": key,
            "R": block,
            "BK": 16 if exact else min(KEYS.k, wide),
            "TILES": self.turn_tiles,
            "LOADED_BY_TILE": self.by_tile,
            "MILD": mild,
            "STRONG": min(strong, mild),
            "FADED": -12.0,
            "STAGES": 1 if exact else KEYS_AHEAD,
            "PRECISION": precision,
        }
        join = {"K": key, "V": value, "BK": min(32, wide), "BV": min(64, tall)}
        self.join_tiles = ratio(key, join["BK"]) * ratio(value, join["BV"])
        self.constants: dict[Any, dict[str, Any]] = {
            kernels.prepare: constants(PREPARE, K=key, BK=min(PREPARE.k, wide), PRECISION=precision),
            kernels.strong_scores: constants(STRONG_SCORES, K=key, BK=min(STRONG_SCORES.k, wide), WIDE=wide, MILD=mild, STRONG=strong),
            kernels.walk: constants(
                replace(WALK, stages=WALK.stages if wide <= 128 else 2),
                K=key,
                V=value,
                BK=wide,
                BV=walk_v,
                LATE=wide > 128,
                BY_TILE=self.walk_by_tile,
                PRECISION=precision,
            ),
            kernels.join: join,
            gradients.score_gradient: constants(SCORE_GRADIENT, V=value, BV=min(SCORE_GRADIENT.v, tall), PRECISION=precision),
            gradients.walk_gradients: constants(
                replace(GRADIENTS, stages=2 if turn_v > 128 else 3),
                K=key,
                V=value,
                R=block,
                BK=turn_k,
                BV=turn_v // pieces,
                PIECES=pieces,
                PRECISION=precision,
            ),
            gradients.key_gradients: constants(KEYS, **keys),
        }
        self.compiled: dict[Any, tuple[Any, tuple[Any, ...], tuple[Any, ...]]] = {}
        self.descriptors: dict[tuple[int, ...], TensorDescriptor] = {}

    def launch(self, kernel: Any, grid: tuple[int, int, int], *arguments: Any, **flags: Any) -> None:
        """Launch a kernel, the second time without asking Triton which it is: binding and describing every argument at every launch takes
        the processor longer than the GPU needs for a small layer. `arguments` are all at addresses that are multiples of 16, or the kernel is
        compiled anew: see `_launches`. A kernel has the same grid whenever it has the same flags, but for `walk`, whose TOTAL tells."""
        key = (kernel.__name__, *flags.values())
        known = self.compiled.get(key)
        if known is not None:
            start, before, after = known
            # addresses as numbers: of a tensor's the driver is asked whether it is the GPU's
            numbers = [x.data_ptr() if isinstance(x, Tensor) else x for x in arguments]
            start(*grid, torch._C._cuda_getCurrentRawStream(self.device), *before, *numbers, *after)
            return
        constants = self.constants[kernel] | flags
        compiled = kernel[grid](*arguments, **constants)
        if compiled is not None:  # None: interpreted
            before = (compiled.function, compiled.packed_metadata, None, None, None)  # no hooks, and nothing to tell them
            self.compiled[key] = compiled.run, before, tuple(constants[name] for name in kernel.arg_names[len(arguments) :])

    def describe(self, x: Tensor, row: int, height: int, width: int) -> TensorDescriptor:
        """x as rows of `row` elements, to be loaded in tiles. The descriptor's own checks are made once for every shape."""
        shape = (x.numel() // row, row, height, width)
        known = self.descriptors.get(shape)
        if known is None:
            known = TensorDescriptor(x, [shape[0], row], [row, 1], [height, width])
            known.base = None
            self.descriptors[shape] = known
        described = object.__new__(TensorDescriptor)
        described.__dict__.update(known.__dict__, base=x)
        return described

    def prepare(self, q: Tensor, k: Tensor, gate: Tensor, scale: float, twice: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return scale · Q ⊙ e^b, K ⊙ e^(b_C − b), and b_C [chunks, H, K] (base 2) with a flag behind it, 1 where all gates fade mildly; P
        [2, chunks, H, C, C], or unless `twice` the first of its two numbers alone; and a number that is 1 where all gates are gates."""
        grown, faded = torch.empty_like(q), torch.empty_like(k)
        fade = q.new_empty((self.chunks * self.heads * self.K + 1,), dtype=torch.float32)
        good = fade.new_ones(())
        p = q.new_empty((2 if twice else 1, self.chunks, self.heads, self.plan.chunk, self.plan.chunk))
        grid, tensors = (self.chunks, self.heads, 1), (q, k, gate, self.plan.chunks, grown, faded, fade, p)
        self.launch(kernels.prepare, grid, *tensors, good, scale, self.heads, TWICE=twice)
        self.launch(kernels.strong_scores, grid, *tensors, scale, self.heads, TWICE=twice)
        return grown, faded, fade, p, good

    def walk_inputs(self, read: Tensor, write: Tensor, right: Tensor, scores: Tensor) -> tuple[Any, ...]:
        """What `walk` loads in every chunk."""
        if not self.walk_by_tile:
            return read, write, right, scores
        c, row = self.plan.chunk, self.heads * self.K
        squares = scores if scores.dtype == torch.float32 else self.describe(scores, c, c, c)
        return (
            self.describe(read, row, c, self.K),
            self.describe(write, row, c, self.K),
            self.describe(right, self.heads * self.V, c, self.walk_v),
            squares,
        )

    def starts(self, write: Tensor, right: Tensor, fade: Tensor, first: Tensor | None, backwards: bool) -> Tensor | None:
        """Return the states that segments start with (backwards: end with), in the rows that the plan says."""
        if not self.cut:
            return first
        sums = fade.new_empty((self.pieces, self.heads, self.K, self.V))
        starts = torch.empty_like(sums)
        total = fade.new_empty((self.pieces, self.heads, self.K))
        given = self.walk_inputs(write, write, right, fade)
        tensors = (*given, fade, self.plan.pieces, fade, right, sums, total)
        flags = {"BACKWARDS": backwards, "FROM_ZERO": True, "OUT": False, "LAST": True, "TOTAL": True, "num_stages": self.sums_stages}
        self.launch(kernels.walk, (self.walk_tiles, self.pieces, self.heads), *tensors, self.chunks, self.heads, **flags)
        joined = (sums, total, fade if first is None else first, starts, self.plan.sequences, self.plan.pieces)
        flags = {"BACKWARDS": backwards, "FROM_ZERO": first is None}
        self.launch(kernels.join, (self.join_tiles, self.sequences, self.heads), *joined, self.heads, **flags)
        return starts

    def walk(
        self,
        read: Tensor,
        write: Tensor,
        right: Tensor,
        scores: Tensor,
        fade: Tensor,
        starts: Tensor | None,
        last: Tensor | None,
        backwards: bool,
    ) -> Tensor:
        """Return the outputs (backwards: dV); write the last states (backwards: the gradients of the first), if asked to."""
        outputs = torch.empty_like(right)
        flags = {"BACKWARDS": backwards, "FROM_ZERO": starts is None, "OUT": True, "LAST": last is not None, "TOTAL": False}
        first, end = fade if starts is None else starts, fade if last is None else last
        tensors = (*self.walk_inputs(read, write, right, scores), fade, self.plan.segments, first, outputs, end, fade)
        self.launch(kernels.walk, (self.walk_tiles, self.segments, self.heads), *tensors, self.chunks, self.heads, **flags)
        return outputs

    def walk_gradients(
        self, write: Tensor, right: Tensor, other: Tensor, fade: Tensor, starts: Tensor | None, kept: Tensor, edges: Tensor, backwards: bool
    ) -> tuple[Tensor, Tensor]:
        """Return H dOᵀ (backwards: dH Vᵀ) by tile of V, and the units it is in; write `kept` (backwards: `edges`)."""
        parts = right.new_empty((self.turn_tiles, self.chunks, self.heads, self.K, self.plan.chunk), dtype=self.half)
        sizes = fade.new_empty(parts.shape[:-1])
        tensors = (write, right, other, fade, self.plan.segments, fade if starts is None else starts, parts, sizes, kept, edges)
        grid = (ratio(self.K, self.turn_k) * self.turn_tiles, self.segments, self.heads)
        flags = {"BACKWARDS": backwards, "FROM_ZERO": starts is None}
        self.launch(gradients.walk_gradients, grid, *tensors, self.chunks, self.blocks, self.heads, **flags)
        return parts, sizes

    def score_gradient(self, d_o: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return dP below the diagonal [chunks, H, C, C], the units it is in, and its diagonal [chunks, H, C]."""
        c = self.plan.chunk
        d_p = v.new_empty((self.chunks, self.heads, c, c), dtype=self.half)
        sizes = v.new_empty(d_p.shape[:2], dtype=torch.float32)
        diagonal = sizes.new_empty(d_p.shape[:3])
        grid = (self.chunks, self.heads, 1)
        self.launch(gradients.score_gradient, grid, d_o, v, self.plan.chunks, d_p, sizes, diagonal, scale, self.heads)
        return d_p, sizes, diagonal

    def key_gradients(
        self,
        q: Tensor,
        k: Tensor,
        gate: Tensor,
        fade: Tensor,
        within: tuple[Tensor, Tensor, Tensor],
        from_earlier: tuple[Tensor, Tensor],
        from_later: tuple[Tensor, Tensor],
        edges: Tensor,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return dQ, dK and the gate's gradient. within: what `score_gradient` returns."""
        d_q, d_k, d_gate = torch.empty_like(q), torch.empty_like(k), torch.empty_like(gate)
        c, width = self.plan.chunk, self.constants[gradients.key_gradients]["BK"]
        inputs: list[Any] = [q, k]
        if self.by_tile:
            row = self.heads * self.K
            inputs = [self.describe(x, row, c, width) for x in (q, k)]
        squares, *parts = (
            self.describe(x, c, *tile) for x, tile in ((within[0], (c, c)), (from_earlier[0], (width, c)), (from_later[0], (width, c)))
        )
        shares = (parts[0], from_earlier[1], parts[1], from_later[1])
        tensors = (*inputs, gate, fade, self.plan.blocks, squares, *within[1:], *shares, edges, d_q, d_k, d_gate)
        numbers = (scale, self.chunks, self.blocks, self.heads)
        grid = (ratio(self.K, width), self.blocks, self.heads)
        self.launch(gradients.key_gradients, grid, *tensors, *numbers, GATES_ARE_MILD=True)
        self.launch(gradients.key_gradients, grid, *tensors, *numbers, GATES_ARE_MILD=False)
        return d_q, d_k, d_gate


@lru_cache(maxsize=256)
def _shared(_gate: torch.dtype, *shape: Any) -> _Launches:
    """Launches are kept for each shape and type of gate: the layer's gate is float32 beside 16-bit queries."""
    return _Launches(*shape)


def _launches(q: Tensor, v: Tensor, gate: Tensor, bounds: tuple[int, ...], *others: Tensor | None) -> _Launches:
    """The launches of this shape. Triton compiles anew for tensors whose address is no multiple of 16: these get launches of their own, which
    are not kept. What a CUDA graph has recorded is kept for good: the graph reads its tables, and may outlive its place among the others."""
    shape = (bounds, q.shape[2], q.shape[3], v.shape[3], q.dtype, q.device)
    aligned = all(x is None or x.data_ptr() % 16 == 0 for x in (q, v, gate, *others))
    call = _shared(gate.dtype, *shape) if aligned else _Launches(*shape, aligned=False)
    if q.is_cuda and torch.cuda.is_current_stream_capturing():
        _recorded.add(call)
    return call


_recorded: set[_Launches] = set()


def forward(
    call: _Launches,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor,
    state: Tensor | None,
    scale: float,
    last: bool = True,
    learning: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Three launches (five where few sequences are cut into segments). Returns the outputs, the last states, and what `backward` takes besides
    the inputs. last: whether last states are wanted; learning: whether `backward` is to follow."""
    grown, faded, fade, p, good = call.prepare(q, k, gate, scale, learning)
    end = fade.new_empty((call.sequences, call.heads, call.K, call.V)) if last else None
    starts = call.starts(faded, v, fade, state, False)
    o = call.walk(grown, faded, v, p, fade, starts, end, False)
    torch._assert_async(good, "log_decay is the logarithm of a gate: it must be ≤ 0 and no NaN")
    return o, end, grown, faded, fade, p, starts


def backward(
    d_o: Tensor | None, d_end: Tensor | None, saved: tuple[Tensor, ...], scale: float, bounds: tuple[int, ...], state: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Six launches. States are made anew: they are the largest tensors by far. saved: q, k, v, gate and what `forward` returned for this.
    state: whether the first states' gradient is wanted."""
    q, k, v, gate, grown, faded, fade, p, starts = saved
    d_o = torch.zeros_like(v) if d_o is None else d_o.contiguous()
    d_end = None if d_end is None else d_end.contiguous()
    call = _launches(q, v, gate, bounds, k, d_o, d_end)
    d_state = fade.new_empty((call.sequences, call.heads, call.K, call.V)) if state else None
    d_starts = call.starts(grown, d_o, fade, d_end, True)
    d_v = call.walk(faded, grown, d_o, p, fade, d_starts, d_state, True)
    kept = fade.new_empty((call.blocks, call.heads, call.K, call.V))
    edges = fade.new_empty((call.turn_tiles, call.blocks, call.heads, call.K))
    from_earlier = call.walk_gradients(faded, v, d_o, fade, starts, kept, edges, False)
    from_later = call.walk_gradients(grown, d_o, v, fade, d_starts, kept, edges, True)
    within = call.score_gradient(d_o, v, scale)
    d_q, d_k, d_gate = call.key_gradients(q, k, gate, fade, within, from_earlier, from_later, edges, scale)
    return d_q, d_k, d_v, d_gate, d_state


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, gate: Tensor, state: Tensor | None, scale: float, bounds: tuple[int, ...], last: bool
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        o, end, *saved = forward(_launches(q, v, gate, bounds, k, state), q, k, v, gate, state, scale, last)
        ctx.save_for_backward(q, k, v, gate, *saved)
        ctx.scale, ctx.bounds = scale, bounds
        return o, end

    @staticmethod
    def backward(ctx: Any, d_o: Tensor | None, d_end: Tensor | None) -> tuple[Tensor | None, ...]:
        return (*backward(d_o, d_end, ctx.saved_tensors, ctx.scale, ctx.bounds, ctx.needs_input_grad[4]), None, None, None)
