"""Triton kernels of gated linear attention. Formulas and names as in `chunks`; the scale is folded into Q.

What decides the speed. With K = 256, V = 512 and C = 64 the states at chunk boundaries are the largest tensor by far (0.54 GB in bf16 for 32,768
tokens of 4 heads, as much as all inputs and outputs), and what is made of the gate (a running sum, exponentials, the scores P) is wanted by
every block of V columns. Hence:

- `prepare` makes Q ⊙ e^b, K ⊙ e^(b_C − b) and e^(b_C) once, and `scores` P;
- `walk` carries a [BV, K] tile of the state along the chunks in registers and multiplies the outputs out on its way, so that the forward
  pass never writes a state to memory. Backwards, the same kernel with the roles of Q and K exchanged gives dV from dH;
- only `key_gradients`, which needs H and dH at once, reads states that two walks have left in memory.

Tensors are [N, H, D], all tokens of all sequences in one row index. Exponents are in base 2.
"""

from __future__ import annotations

import triton
import triton.language as tl

# A channel that fades by more than 2^-230 (e^-160) inside one chunk leaves fp32 when its exponent is split in two halves: see `chunks`.
STRONG: tl.constexpr = tl.constexpr(-230.0)


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
def _gate(
    pointer, first, count, head, by_token, by_head, by_channel, width: tl.constexpr, start, rows: tl.constexpr, columns: tl.constexpr
):
    """Load a tile of the gate. Its strides may be 0: one gate for all channels, or for all tokens. A closed gate (−∞) becomes e^−10,000."""
    i = tl.arange(0, rows)
    j = start + tl.arange(0, columns)
    offset = (first + i)[:, None] * by_token + head * by_head + j[None, :] * by_channel
    gate = tl.load(pointer + offset, mask=(i < count)[:, None] & (j < width)[None, :], other=0.0)
    return tl.where(gate < -1e4, -1e4, gate).to(gate.dtype)


@triton.jit
def _double(x, dtype: tl.constexpr):
    """x ≈ large + small, both of `dtype`: twice its bits."""
    large = x.to(dtype)
    return large, (x - large.to(tl.float32)).to(dtype)


@triton.jit
def _running_sum(x, dtype: tl.constexpr, C: tl.constexpr, REVERSE: tl.constexpr):
    """Running sum along the rows of x [C, *], fp32, as a product with a triangle of ones: a scan would wait for other warps at every step.

    x in fp32 is taken apart into two numbers of `dtype`, unless that is fp32 too."""
    i = tl.arange(0, C)
    triangle = tl.where((i[:, None] <= i[None, :]) if REVERSE else (i[:, None] >= i[None, :]), 1.0, 0.0)
    if x.dtype != tl.float32:
        total = tl.dot(triangle.to(x.dtype), x)
    elif dtype == tl.float32:
        total = tl.dot(triangle, x, input_precision="ieee")
    else:
        large, small = _double(x, dtype)
        total = tl.dot(triangle.to(dtype), large)
        total = tl.dot(triangle.to(dtype), small, total)
    return total


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
def _product(large, small, x, PRECISION: tl.constexpr):
    """(large + small) x, with x taken apart alike. bf16 twice has 16 bits, more than the 11 of tf32, whose
    operands would have to stand in registers."""
    x_large, x_small = _double(x, large.dtype)
    product = tl.dot(large, x_large, input_precision=PRECISION)
    if large.dtype != tl.float32:
        product = tl.dot(small, x_large, product, input_precision=PRECISION)
        product = tl.dot(large, x_small, product, input_precision=PRECISION)
    return product


@triton.jit
def prepare(
    q, k, gate, table, grown, faded, fade, bad,
    scale, heads, by_token, by_head, by_channel,
    K: tl.constexpr, C: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """For BK channels of one chunk: grown = scale · Q ⊙ e^b, faded = K ⊙ e^(b_C − b), fade = b_C (base 2).

    `bad` is set when a gate is positive or NaN.
    """
    k0 = tl.program_id(0) * BK
    chunk = tl.program_id(1)
    head = tl.program_id(2)
    first = tl.load(table + 2 * chunk)
    count = tl.load(table + 2 * chunk + 1)
    g = _gate(gate, first, count, head, by_token, by_head, by_channel, K, k0, C, BK)
    if tl.sum(((g > 0) | (g != g)).to(tl.int32)) > 0:
        tl.store(bad, 1)
    b_q = _tile(q, first, count, head, heads, K, k0, C, BK)
    b_k = _tile(k, first, count, head, heads, K, k0, C, BK)
    b = _running_sum(g, q.dtype.element_ty, C, False) * 1.4426950408889634
    last = tl.sum(g.to(tl.float32), 0) * 1.4426950408889634
    _store(grown, b_q * (tl.exp2(b) * scale), first, count, head, heads, K, k0, C, BK)
    _store(faded, b_k * tl.exp2(last[None, :] - b), first, count, head, heads, K, k0, C, BK)
    j = k0 + tl.arange(0, BK)
    tl.store(fade + (chunk * heads + head) * K + j, last, mask=j < K)


@triton.jit
def scores(
    grown, faded, q, k, gate, table, fade, p,
    scale, heads, by_token, by_head, by_channel,
    K: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, GATES_ARE_STRONG: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """P of one chunk of one head. Launched twice: for chunks that no channel leaves by more than `STRONG`, where P is the product of
    grown ⊙ e^(−b_C / 2) and faded ⊙ e^(−b_C / 2), and for the others, one column at a time, each difference of exponents taken before the
    exponential. Most programs of the second launch leave at once; within the first, its registers would slow every chunk down."""
    chunk = tl.program_id(0)
    head = tl.program_id(1)
    strongest = 0.0
    for k0 in range(0, K, BK):
        j = k0 + tl.arange(0, BK)
        strongest = tl.minimum(strongest, tl.min(tl.load(fade + (chunk * heads + head) * K + j, mask=j < K, other=0.0), 0))
    if (strongest <= STRONG) != GATES_ARE_STRONG:
        return
    first = tl.load(table + 2 * chunk)
    count = tl.load(table + 2 * chunk + 1)
    i = tl.arange(0, C)
    total = tl.zeros((C, C), tl.float32)
    for k0 in range(0, K, BK):
        if not GATES_ARE_STRONG:
            j = k0 + tl.arange(0, BK)
            half = tl.exp2(-0.5 * tl.load(fade + (chunk * heads + head) * K + j, mask=j < K, other=0.0))
            up = _tile(grown, first, count, head, heads, K, k0, C, BK).to(tl.float32) * half[None, :]
            down = _tile(faded, first, count, head, heads, K, k0, C, BK).to(tl.float32) * half[None, :]
            large, small = _double(up, q.dtype.element_ty)
            total += _product(large, small, tl.trans(down), PRECISION)
        else:
            b_q = _tile(q, first, count, head, heads, K, k0, C, BK).to(tl.float32) * scale
            b_k = _tile(k, first, count, head, heads, K, k0, C, BK).to(tl.float32)
            g = _gate(gate, first, count, head, by_token, by_head, by_channel, K, k0, C, BK)
            b = tl.cumsum(g.to(tl.float32) * 1.4426950408889634, 0)
            for column in range(C):
                b_j = tl.sum(tl.where((i == column)[:, None], b, 0.0), 0)
                k_j = tl.sum(tl.where((i == column)[:, None], b_k, 0.0), 0)
                p_j = tl.sum(b_q * k_j[None, :] * tl.exp2(tl.minimum(b - b_j[None, :], 0.0)), 1)
                total += tl.where((i == column)[None, :], p_j[:, None], 0.0)
    total = tl.where(i[:, None] >= i[None, :], total, 0.0)
    tl.store(p + _square(chunk, head, heads, C), total.to(p.dtype.element_ty))


@triton.jit
def walk(
    read, write, right, p, fade, segments, first_state, out, kept, last_state, total,
    heads,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    VP: tl.constexpr, BACKWARDS: tl.constexpr, FROM_ZERO: tl.constexpr, OUT: tl.constexpr, KEEP: tl.constexpr, TOTAL: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Carry a [BV, K] tile of the transposed state along the chunks of one segment.

    Forwards: read = grown, write = faded, right = V: Oᵀ = Hᵀ readᵀ + Vᵀ Pᵀ; Hᵀ ← Hᵀ ⊙ e^(b_C) + Vᵀ write. Backwards, from the last chunk to
    the first, with read = faded, write = grown, right = dO: dVᵀ = dHᵀ readᵀ + dOᵀ P; dHᵀ ← dHᵀ ⊙ e^(b_C) + dOᵀ write.
    Transposed, because a matrix unit takes its left factor from registers, where the state is: the state never passes through shared memory.
    OUT: write the outputs. KEEP: write the state that each chunk starts with (backwards: ends with) into `kept` [chunks, H, V, K].
    FROM_ZERO: ignore `first_state`. TOTAL: also write the segment's whole decay, for `join`.
    """
    v0 = tl.program_id(0) * BV
    segment = tl.program_id(1)
    head = tl.program_id(2)
    begin = tl.load(segments + 3 * segment)
    end = tl.load(segments + 3 * segment + 1)
    chunk0 = tl.load(segments + 3 * segment + 2)
    n = (end - begin + C - 1) // C
    i = tl.arange(0, BK)
    j = v0 + tl.arange(0, BV)
    inside = (i < K)[None, :] & (j < V)[:, None]
    where_state = (segment.to(tl.int64) * heads + head) * K * V + i[None, :] * V + j[:, None]
    state = tl.zeros((BV, BK), tl.float32)
    if not FROM_ZERO:
        state += tl.load(first_state + where_state, mask=inside, other=0.0)
    whole = tl.full((BK,), 1.0, tl.float32)
    for step in range(0, n):
        at = n - 1 - step if BACKWARDS else step
        first = begin + at * C
        count = end - first
        chunk = chunk0 + at
        b_write = _tile(write, first, count, head, heads, K, 0, C, BK)
        b_right = _tile(right, first, count, head, heads, V, v0, C, BV)
        decay = tl.exp2(tl.load(fade + (chunk * heads + head) * K + i, mask=i < K, other=0.0))
        rounded = state.to(right.dtype.element_ty)
        if KEEP:
            kept.store([(chunk * heads + head) * VP + v0, 0], rounded)
        if OUT:
            b_read = _tile(read, first, count, head, heads, K, 0, C, BK)
            b_p = tl.load(p + _square(chunk, head, heads, C))
            if not BACKWARDS:
                b_p = tl.trans(b_p)
            o = tl.dot(rounded, tl.trans(b_read), input_precision=PRECISION)
            o = tl.dot(tl.trans(b_right), b_p, o, input_precision=PRECISION)
            _store(out, tl.trans(o), first, count, head, heads, V, v0, C, BV)
        state = tl.dot(tl.trans(b_right), b_write, state * decay[None, :], input_precision=PRECISION)
        if TOTAL:
            whole *= decay
    tl.store(last_state + where_state, state, mask=inside)
    if TOTAL:
        if v0 == 0:
            tl.store(total + (segment * heads + head) * K + i, whole, mask=i < K)


@triton.jit
def join(
    sums, total, first_state, starts, last_state, sequences, heads,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BACKWARDS: tl.constexpr,
):  # fmt: skip
    """Turn the sums that segments gathered from zero into the state each segment starts with. Elementwise; one program a sequence and tile."""
    tiles_v: tl.constexpr = (V + BV - 1) // BV
    k0 = (tl.program_id(0) // tiles_v) * BK
    v0 = (tl.program_id(0) % tiles_v) * BV
    sequence = tl.program_id(1)
    head = tl.program_id(2)
    begin = tl.load(sequences + 2 * sequence)
    end = tl.load(sequences + 2 * sequence + 1)
    i = k0 + tl.arange(0, BK)
    where, inside = _state_offsets(sequence, head, heads, K, V, k0, v0, BK, BV)
    state = tl.load(first_state + where, mask=inside, other=0.0)
    for step in range(begin, end):
        segment = begin + end - 1 - step if BACKWARDS else step
        at, ok = _state_offsets(segment, head, heads, K, V, k0, v0, BK, BV)
        tl.store(starts + at, state, mask=ok)
        decay = tl.load(total + (segment * heads + head) * K + i, mask=i < K, other=0.0)
        state = state * decay[:, None] + tl.load(sums + at, mask=ok, other=0.0)
    tl.store(last_state + where, state, mask=inside)


@triton.jit
def score_gradient(
    d_o, v, table, d_p, scale, heads,
    V: tl.constexpr, C: tl.constexpr, BV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dP = scale · dO Vᵀ, zero above the diagonal, for one chunk of one head, as a sum of two numbers of the type of `d_p` (see `_double`):
    [2, chunks, H, C, C]."""
    chunk = tl.program_id(0)
    head = tl.program_id(1)
    first = tl.load(table + 2 * chunk)
    count = tl.load(table + 2 * chunk + 1)
    dp = tl.zeros((C, C), tl.float32)
    for v0 in range(0, V, BV):
        b_v = _tile(v, first, count, head, heads, V, v0, C, BV)
        b_do = _tile(d_o, first, count, head, heads, V, v0, C, BV)
        dp = tl.dot(b_do, tl.trans(b_v), dp, input_precision=PRECISION)
    i = tl.arange(0, C)
    large, small = _double(tl.where(i[:, None] >= i[None, :], dp * scale, 0.0), d_p.dtype.element_ty)
    where = _square(chunk, head, heads, C)
    tl.store(d_p + where, large)
    tl.store(d_p + tl.num_programs(0).to(tl.int64) * heads * C * C + where, small)


@triton.jit
def key_gradients(
    q, k, v, gate, fade, d_o, table, d_p, states, d_states, d_q, d_k, d_gate,
    scale, heads, by_token, by_head, by_channel,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, VP: tl.constexpr,
    GATES_ARE_STRONG: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dQ, dK and the gate's gradient for BK channels of one chunk. Launched twice, like `scores`.

    The gate's gradient is a running sum of differences q ⊙ dq − k ⊙ dk, in which rounding does not average out. Hence products inside the
    chunk in twice the bits of the inputs, and the scale in dP, where it reaches both terms alike: on the diagonal they are equal.
    """
    k0 = tl.program_id(0) * BK
    chunk = tl.program_id(1)
    head = tl.program_id(2)
    j = k0 + tl.arange(0, BK)
    last = tl.load(fade + (chunk * heads + head) * K + j, mask=j < K, other=0.0)
    if (tl.min(last, 0) <= STRONG) != GATES_ARE_STRONG:
        return
    first = tl.load(table + 2 * chunk)
    count = tl.load(table + 2 * chunk + 1)
    dq = tl.zeros((C, BK), tl.float32)
    dk = tl.zeros((C, BK), tl.float32)
    held = tl.zeros((BV, BK), tl.float32)
    for v0 in range(0, V, BV):
        b_v = _tile(v, first, count, head, heads, V, v0, C, BV)
        b_do = _tile(d_o, first, count, head, heads, V, v0, C, BV)
        h = states.load([(chunk * heads + head) * VP + v0, k0])
        dh = d_states.load([(chunk * heads + head) * VP + v0, k0])
        dq = tl.dot(b_do, h, dq, input_precision=PRECISION)
        dk = tl.dot(b_v, dh, dk, input_precision=PRECISION)
        held += h.to(tl.float32) * dh.to(tl.float32)
    where = _square(chunk, head, heads, C)
    large = tl.load(d_p + where)
    small = tl.load(d_p + tl.num_programs(1).to(tl.int64) * heads * C * C + where)
    b_q = _tile(q, first, count, head, heads, K, k0, C, BK).to(tl.float32)
    b_k = _tile(k, first, count, head, heads, K, k0, C, BK).to(tl.float32)
    g = _gate(gate, first, count, head, by_token, by_head, by_channel, K, k0, C, BK)
    b = _running_sum(g, q.dtype.element_ty, C, False) * 1.4426950408889634
    dq *= tl.exp2(b) * scale
    dk *= tl.exp2(last[None, :] - b)
    beyond = tl.exp2(last) * tl.sum(held, 0) + tl.sum(b_k * dk, 0)
    if not GATES_ARE_STRONG:
        half = 0.5 * last[None, :]
        up = tl.exp2(b - half)
        down = tl.exp2(half - b)
        dq += _product(large, small, b_k * down, PRECISION) * up
        dk += _product(tl.trans(large), tl.trans(small), b_q * up, PRECISION) * down
    else:
        dp = large.to(tl.float32) + small.to(tl.float32)
        rows = tl.arange(0, C)
        for i in range(C):
            b_i = tl.sum(tl.where((rows == i)[:, None], b, 0.0), 0)
            k_i = tl.sum(tl.where((rows == i)[:, None], b_k, 0.0), 0)
            dp_i = tl.sum(tl.where((rows == i)[None, :], dp, 0.0), 1)
            weighted = dp_i[:, None] * tl.exp2(tl.minimum(b - b_i[None, :], 0.0))
            dq += weighted * k_i[None, :]
            dk += tl.where((rows == i)[:, None], tl.sum(weighted * b_q, 0)[None, :], 0.0)
    db = b_q * dq - b_k * dk
    dg = _running_sum(db, q.dtype.element_ty, C, True) + beyond[None, :]
    _store(d_q, dq, first, count, head, heads, K, k0, C, BK)
    _store(d_k, dk, first, count, head, heads, K, k0, C, BK)
    _store(d_gate, dg, first, count, head, heads, K, k0, C, BK)
