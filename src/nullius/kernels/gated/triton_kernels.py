"""Triton kernels of gated linear attention. Formulas and names as in `chunks`; the scale is folded into Q.

What decides the speed. With K = 256, V = 512 and C = 64 the states at chunk boundaries are the largest tensor by far (0.54 GB in bf16 for 32,768
tokens of 4 heads, as much as all inputs and outputs), and what is made of the gate (a running sum, exponentials, the scores P) is wanted by
every block of V columns. Hence:

- `prepare` makes Q ⊙ e^b, K ⊙ e^(b_C − b), b_C and P once;
- `walk` carries a [BV, K] tile of the state along the chunks in registers and multiplies the outputs out on its way, so that the forward
  pass never writes a state to memory. Backwards, the same kernel with the roles of Q and K exchanged gives dV from dH.

Tensors are [N, H, D], all tokens of all sequences in one row index. Exponents are in base 2.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tile(pointer, first, count, head, heads, width: tl.constexpr, start, rows: tl.constexpr, columns: tl.constexpr):
    """Load [rows, columns] of a contiguous [N, H, width] tensor: tokens from `first`, channels from `start`; zero outside."""
    i = tl.arange(0, rows)
    j = start + tl.arange(0, columns)
    offset = (first + i)[:, None] * (heads * width) + head * width + j[None, :]
    return tl.load(pointer + offset, mask=(i < count)[:, None] & (j < width)[None, :], other=0.0)


@triton.jit
def _store(pointer, value, first, count, head, heads, width: tl.constexpr, start, rows: tl.constexpr, columns: tl.constexpr):
    """Store [rows, columns] into a contiguous [N, H, width] tensor."""
    i = tl.arange(0, rows)
    j = start + tl.arange(0, columns)
    offset = (first + i)[:, None] * (heads * width) + head * width + j[None, :]
    tl.store(pointer + offset, value.to(pointer.dtype.element_ty), mask=(i < count)[:, None] & (j < width)[None, :])


@triton.jit
def _gate(pointer, first, count, head, heads, width: tl.constexpr, start, rows: tl.constexpr, columns: tl.constexpr):
    """Load a tile of the gate. A closed gate (−∞) becomes e^−104, which is 0 as well in fp32: sums of larger numbers would be rounded."""
    gate = _tile(pointer, first, count, head, heads, width, start, rows, columns)
    return tl.maximum(gate.to(tl.float32), -104.0, propagate_nan=tl.PropagateNan.ALL).to(gate.dtype)


@triton.jit
def _upper(x, dtype: tl.constexpr):
    """The part of x in fp32 that `dtype` holds. bf16 is the upper half of fp32: conversions there and back cost many times a mask."""
    upper = x.to(dtype).to(tl.float32)
    if dtype == tl.bfloat16:
        upper = (x.to(tl.uint32, bitcast=True) & 0xFFFF0000).to(tl.float32, bitcast=True)
    return upper


@triton.jit
def _double(x, dtype: tl.constexpr):
    """x ≈ large + small, both of `dtype`: twice its bits."""
    large = _upper(x, dtype)
    return large.to(dtype), (x - large).to(dtype)


@triton.jit
def _running_sum(x, dtype: tl.constexpr, C: tl.constexpr, REVERSE: tl.constexpr, TERMS: tl.constexpr = 2):
    """Running sum along the rows of x [C, *], fp32, as a product with a triangle of ones: a scan would wait for other warps at every step.

    x in fp32 is taken apart into TERMS numbers of bf16, or two of fp16, in units that make them fit; where `dtype` is fp32 there is no matrix
    unit to use, and it is scanned."""
    if dtype == tl.float32:
        return tl.cumsum(x.to(tl.float32), 0, reverse=REVERSE)
    i = tl.arange(0, C)
    triangle = tl.where((i[:, None] <= i[None, :]) if REVERSE else (i[:, None] >= i[None, :]), 1.0, 0.0).to(dtype)
    terms: tl.constexpr = 2 if dtype == tl.float16 else TERMS if x.dtype == tl.float32 else 1
    x = x.to(tl.float32)
    scale = 1.0
    if dtype == tl.float16:
        scale = tl.maximum(tl.max(tl.abs(x)), 1e-30) * 2.0**-14
        x *= 1.0 / scale
    large = _upper(x, dtype)
    total = tl.dot(triangle, large.to(dtype))
    if terms > 2:
        x -= large
        large = _upper(x, dtype)
        total = tl.dot(triangle, large.to(dtype), total)
    if terms > 1:
        total = tl.dot(triangle, (x - large).to(dtype), total)
    return total * scale


@triton.jit
def _after(g, b, last, dtype: tl.constexpr):
    """b_C − b; in fp32 as a sum of its own, since that of strong gates is too large to have the digits of a single one."""
    after = last[None, :] - b
    if dtype == tl.float32:
        after = (tl.cumsum(g, 0, reverse=True) - g) * 1.4426950408889634
    return after


@triton.jit
def _state_offsets(index, head, heads, K: tl.constexpr, V: tl.constexpr, k0, v0, BK: tl.constexpr, BV: tl.constexpr):
    """Offsets and mask of a [BK, BV] tile of a [*, H, K, V] tensor (or of any other two sizes)."""
    i = k0 + tl.arange(0, BK)
    j = v0 + tl.arange(0, BV)
    base = (index.to(tl.int64) * heads + head) * K * V
    return base + i[:, None] * V + j[None, :], (i < K)[:, None] & (j < V)[None, :]


@triton.jit
def _square(index, head, heads, C: tl.constexpr):
    """Offsets of a [C, C] tile of a [chunks, H, C, C] tensor."""
    i = tl.arange(0, C)
    return (index.to(tl.int64) * heads + head) * C * C + i[:, None] * C + i[None, :]


@triton.jit
def _product(large, small, x, start, PRECISION: tl.constexpr):
    """start + (large + small) x, with x taken apart alike. bf16 twice has 16 bits, more than the 11 of tf32, whose operands would have to
    stand in registers."""
    x_large, x_small = _double(x, large.dtype)
    product = tl.dot(large, x_large, start, input_precision=PRECISION)
    if large.dtype != tl.float32:
        product = tl.dot(small, x_large, product, input_precision=PRECISION)
        product = tl.dot(large, x_small, product, input_precision=PRECISION)
    return product


@triton.jit
def _larger(x, y):
    """The larger one; NaN where either is."""
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _exponents(g, dtype: tl.constexpr, C: tl.constexpr):
    """b − b_C / 2 and b_C / 2 (base 2), both [C, *], as products of the gate with matrices of halves (see `_running_sum`): what is the same in
    all rows would, as a sum along them, have to go through shared memory."""
    i = tl.arange(0, C)
    terms: tl.constexpr = 2 if dtype == tl.float16 or g.dtype == tl.float32 else 1
    around = tl.where(i[:, None] >= i[None, :], 0.5, -0.5).to(dtype)
    everywhere = tl.full((C, C), 0.5, dtype)
    unit = 1.4426950408889634
    if terms == 1:
        large = g
    else:
        g = g.to(tl.float32)
        if dtype == tl.float16:
            scale = tl.maximum(tl.max(tl.abs(g)), 1e-30) * 2.0**-14
            g *= 1.0 / scale
            unit *= scale
        large = _upper(g, dtype)
        small = (g - large).to(dtype)
        large = large.to(dtype)
    middle = tl.dot(around, large)
    half = tl.dot(everywhere, large)
    if terms > 1:
        middle = tl.dot(around, small, middle)
        half = tl.dot(everywhere, small, half)
    return middle * unit, half * unit


@triton.jit
def _eleven(x):
    """x in fp32 plus half a unit of the 11 bits that tf32 keeps of it: it is rounded then, where the matrix unit cuts off."""
    return (x.to(tl.uint32, bitcast=True) + 0x1000).to(tl.float32, bitcast=True)


@triton.jit
def prepare(
    q, k, gate, table, grown, faded, fade, p, good,
    scale, heads,
    K: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, TWICE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """For one chunk of one head: grown = scale · Q ⊙ e^b, faded = K ⊙ e^(b_C − b), fade = b_C (base 2), and P as a sum of two numbers of its
    type (see `_double`), [2, chunks, H, C, C]: the product of X = Q ⊙ e^(b − b_C / 2) and Y = K ⊙ e^(b_C / 2 − b).

    In 16 bits grown and faded are X and Y times e^(b_C / 2), which saves an exponential; where a channel fades too strongly for X and Y to
    be finite, `strong_scores` makes all of it anew. `good` is cleared when a gate is positive or NaN; the flag behind `fade` is set (see there).
    """
    chunk = tl.program_id(0)
    head = tl.program_id(1)
    first = tl.load(table + 2 * chunk)
    count = tl.load(table + 2 * chunk + 1)
    dtype: tl.constexpr = q.dtype.element_ty
    i = tl.arange(0, C)
    total = tl.zeros((C, C), tl.float32)
    worst = tl.full((C, BK // 8), -1.0, tl.float32)
    for k0 in range(0, K, BK):
        b_q = _tile(q, first, count, head, heads, K, k0, C, BK).to(tl.float32) * scale
        b_k = _tile(k, first, count, head, heads, K, k0, C, BK).to(tl.float32)
        g = _gate(gate, first, count, head, heads, K, k0, C, BK)
        # eight neighbours are one thread's
        worst = _larger(worst, tl.reduce(tl.reshape(g.to(tl.float32), (C, BK // 8, 8)), 2, _larger))
        if dtype == tl.float32:
            b = _running_sum(g, dtype, C, False) * 1.4426950408889634
            last = tl.sum(g.to(tl.float32), 0) * 1.4426950408889634
            half = 0.5 * last[None, :] + tl.zeros((C, BK), tl.float32)
            x = b_q * tl.exp2(b - half)
            y = b_k * tl.exp2(half - b)
            grow = b_q * tl.exp2(b)
            wither = b_k * tl.exp2(_after(g, b, last, dtype))
        else:
            middle, half = _exponents(g, dtype, C)
            x = b_q * tl.exp2(middle)
            y = b_k * tl.exp2(-middle)
            grow = x * tl.exp2(half)
            wither = y * tl.exp2(half)
        j = k0 + tl.arange(0, BK)
        tl.store(fade + (chunk * heads + head) * K + j[None, :] + 0 * i[:, None], 2.0 * half, mask=(j < K)[None, :] & (i == 0)[:, None])
        _store(grown, grow, first, count, head, heads, K, k0, C, BK)
        _store(faded, wither, first, count, head, heads, K, k0, C, BK)
        if dtype == tl.bfloat16:
            total = tl.dot(_eleven(x), tl.trans(_eleven(y)), total, input_precision="tf32")
        else:
            large, small = _double(x, dtype)
            total = _product(large, small, tl.trans(y), total, PRECISION)
    if tl.sum(((worst > 0) | (worst != worst)).to(tl.int32)) > 0:
        tl.store(good, 0.0)
    if (chunk == 0) & (head == 0):
        tl.store(fade + tl.num_programs(0) * heads * K, 1.0)
    _store_scores(p, total, chunk, head, heads, tl.num_programs(0), C, TWICE)


@triton.jit
def _store_scores(p, total, chunk, head, heads, chunks, C: tl.constexpr, TWICE: tl.constexpr):
    i = tl.arange(0, C)
    total = tl.where(i[:, None] >= i[None, :], total, 0.0)
    # rounded, not masked as by `_double`: forwards only the first number is used
    large = total.to(p.dtype.element_ty)
    where = _square(chunk, head, heads, C)
    tl.store(p + where, large)
    if TWICE:
        tl.store(p + chunks.to(tl.int64) * heads * C * C + where, (total - large.to(tl.float32)).to(p.dtype.element_ty))


@triton.jit
def strong_scores(
    q, k, gate, table, grown, faded, fade, p,
    scale, heads,
    K: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, WIDE: tl.constexpr, MILD: tl.constexpr, STRONG: tl.constexpr, TWICE: tl.constexpr,
):  # fmt: skip
    """What `prepare` makes, anew for a chunk of a head where a channel fades by more than 2^STRONG: P one column at a time, each difference of
    exponents taken before the exponential. Nearly always all programs leave at once; within `prepare` the registers wanted here would slow
    every chunk down. The flag behind `fade` is cleared where a channel fades by more than 2^MILD."""
    chunk = tl.program_id(0)
    head = tl.program_id(1)
    j = tl.arange(0, WIDE)
    strongest = tl.min(tl.load(fade + (chunk * heads + head) * K + j, mask=j < K, other=0.0), 0)
    if strongest <= MILD:
        tl.store(fade + tl.num_programs(0) * heads * K, 0.0)
    if strongest > STRONG:
        return
    first = tl.load(table + 2 * chunk)
    count = tl.load(table + 2 * chunk + 1)
    i = tl.arange(0, C)
    total = tl.zeros((C, C), tl.float32)
    for k0 in range(0, K, BK):
        b_q = _tile(q, first, count, head, heads, K, k0, C, BK).to(tl.float32) * scale
        b_k = _tile(k, first, count, head, heads, K, k0, C, BK).to(tl.float32)
        g = _gate(gate, first, count, head, heads, K, k0, C, BK).to(tl.float32) * 1.4426950408889634
        b = tl.cumsum(g, 0)
        _store(grown, b_q * tl.exp2(b), first, count, head, heads, K, k0, C, BK)
        # a sum of its own: the difference b_C − b of strong gates has not the digits of a single one
        _store(faded, b_k * tl.exp2(tl.cumsum(g, 0, reverse=True) - g), first, count, head, heads, K, k0, C, BK)
        for column in range(C):
            b_j = tl.sum(tl.where((i == column)[:, None], b, 0.0), 0)
            k_j = tl.sum(tl.where((i == column)[:, None], b_k, 0.0), 0)
            p_j = tl.sum(b_q * k_j[None, :] * tl.exp2(tl.minimum(b - b_j[None, :], 0.0)), 1)
            total += tl.where((i == column)[None, :], p_j[:, None], 0.0)
    _store_scores(p, total, chunk, head, heads, tl.num_programs(0), C, TWICE)


@triton.jit
def walk(
    read, write, right, p, fade, segments, first_state, out, last_state, total,
    chunks, heads,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    BACKWARDS: tl.constexpr, FROM_ZERO: tl.constexpr, OUT: tl.constexpr, LAST: tl.constexpr, TOTAL: tl.constexpr,
    LATE: tl.constexpr, BY_TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Carry a [BV, K] tile of the transposed state along the chunks of one segment.

    Forwards: read = grown, write = faded, right = V: Oᵀ = Hᵀ readᵀ + Vᵀ Pᵀ; Hᵀ ← Hᵀ ⊙ e^(b_C) + Vᵀ write. Backwards, from the last chunk to
    the first, with read = faded, write = grown, right = dO: dVᵀ = dHᵀ readᵀ + dOᵀ P; dHᵀ ← dHᵀ ⊙ e^(b_C) + dOᵀ write.
    Transposed, because a matrix unit takes its left factor from registers, where the state is: the state never passes through shared memory.
    OUT: write the outputs; LATE: in the next chunk's turn, as with two stages loads start after all the work of a chunk. FROM_ZERO: there is
    no `first_state`. LAST: write the state at the end, where the table asks for it. TOTAL: also write the whole decay, for `join`; and leave
    at once where the table does not ask for the state at the end. BY_TILE: all chunks are whole, and the four tensors of the loop come as
    descriptors: each product then waits for its own tiles alone, and no registers are taken by addresses.
    """
    v0 = tl.program_id(0) * BV
    segment = tl.program_id(1)
    head = tl.program_id(2)
    begin = tl.load(segments + 8 * segment)
    end = tl.load(segments + 8 * segment + 1)
    chunk0 = tl.load(segments + 8 * segment + 2)
    start_row = tl.load(segments + 8 * segment + 4 + BACKWARDS)
    last_row = tl.load(segments + 8 * segment + 6 + BACKWARDS)
    if TOTAL:
        if last_row < 0:
            return
    n = (end - begin + C - 1) // C
    i = tl.arange(0, BK)
    j = v0 + tl.arange(0, BV)
    inside = (i < K)[None, :] & (j < V)[:, None]
    where_state = i[None, :] * V + j[:, None]
    state = tl.zeros((BV, BK), tl.float32)
    if not FROM_ZERO:
        state += tl.load(first_state + (start_row.to(tl.int64) * heads + head) * K * V + where_state, mask=inside, other=0.0)
    whole = tl.full((BK,), 1.0, tl.float32)
    o = tl.zeros((BV, C), tl.float32)
    row = chunk0 + n - 1 if BACKWARDS else chunk0
    decay = tl.load(fade + (row * heads + head) * K + i, mask=i < K, other=0.0)
    for step in range(0, n):
        at = n - 1 - step if BACKWARDS else step
        first = begin + at * C
        count = end - first
        chunk = chunk0 + at
        factor = state.to(out.dtype.element_ty)
        now = tl.exp2(decay)
        # the next chunk's, as this load would be waited for
        row = tl.maximum(chunk - 1, chunk0) if BACKWARDS else tl.minimum(chunk + 1, chunk0 + n - 1)
        decay = tl.load(fade + (row * heads + head) * K + i, mask=i < K, other=0.0)
        if OUT and LATE:
            # the outputs of the chunk before, while this one's tiles are on their way
            before = first + C if BACKWARDS else first - C
            _store(out, tl.trans(o), before, tl.where(step > 0, end - before, 0), head, heads, V, v0, C, BV)
        if OUT:
            if BY_TILE:
                o = tl.dot(factor, tl.trans(read.load([first, head * K])), input_precision=PRECISION)
                b_right = right.load([first, head * V + v0])
                b_p = p.load([(chunk * heads + head) * C, 0])
            else:
                b_read = _tile(read, first, count, head, heads, K, 0, C, BK)
                o = tl.dot(factor, tl.trans(b_read), input_precision=PRECISION)
                b_right = _tile(right, first, count, head, heads, V, v0, C, BV)
                b_p = tl.load(p + _square(chunk, head, heads, C))
            if not BACKWARDS:
                b_p = tl.trans(b_p)
            o = tl.dot(tl.trans(b_right), b_p, o, input_precision=PRECISION)
            if BACKWARDS:
                if BY_TILE:
                    b_p = p.load([((chunks + chunk) * heads + head) * C, 0])
                else:
                    b_p = tl.load(p + chunks * heads * C * C + _square(chunk, head, heads, C))
                o = tl.dot(tl.trans(b_right), b_p, o, input_precision=PRECISION)
            if not LATE:
                _store(out, tl.trans(o), first, count, head, heads, V, v0, C, BV)
        elif BY_TILE:
            b_right = right.load([first, head * V + v0])
        else:
            b_right = _tile(right, first, count, head, heads, V, v0, C, BV)
        b_write = write.load([first, head * K]) if BY_TILE else _tile(write, first, count, head, heads, K, 0, C, BK)
        state = tl.dot(tl.trans(b_right), b_write, state * now[None, :], input_precision=PRECISION)
        if TOTAL:
            whole *= now
    if OUT and LATE:
        first = begin if BACKWARDS else begin + (n - 1) * C
        _store(out, tl.trans(o), first, end - first, head, heads, V, v0, C, BV)
    if LAST:
        tl.store(last_state + (last_row.to(tl.int64) * heads + head) * K * V + where_state, state, mask=inside & (last_row >= 0))
    if TOTAL:
        if v0 == 0:
            tl.store(total + (last_row * heads + head) * K + i, whole, mask=i < K)


@triton.jit
def join(
    sums, total, first_state, starts, sequences, pieces, heads,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BACKWARDS: tl.constexpr, FROM_ZERO: tl.constexpr,
):  # fmt: skip
    """Turn the sums that pieces gathered from zero into the states that segments start with. Elementwise; one program a sequence and tile."""
    tiles_v: tl.constexpr = (V + BV - 1) // BV
    k0 = (tl.program_id(0) // tiles_v) * BK
    v0 = (tl.program_id(0) % tiles_v) * BV
    sequence = tl.program_id(1)
    head = tl.program_id(2)
    begin = tl.load(sequences + 2 * sequence)
    end = tl.load(sequences + 2 * sequence + 1)
    i = k0 + tl.arange(0, BK)
    where, inside = _state_offsets(sequence, head, heads, K, V, k0, v0, BK, BV)
    state = tl.zeros((BK, BV), tl.float32)
    if not FROM_ZERO:
        state += tl.load(first_state + where, mask=inside, other=0.0)
    for step in range(begin, end):
        piece = begin + end - 1 - step if BACKWARDS else step
        starting = tl.load(pieces + 8 * piece + 4 + BACKWARDS) >= 0
        summed = tl.load(pieces + 8 * piece + 6 + BACKWARDS) >= 0
        at, ok = _state_offsets(piece, head, heads, K, V, k0, v0, BK, BV)
        more = tl.load(sums + at, mask=ok & summed, other=0.0)
        decay = tl.load(total + (piece * heads + head) * K + i, mask=(i < K) & summed, other=0.0)
        tl.store(starts + at, state, mask=ok & starting)
        state = state * decay[:, None] + more
