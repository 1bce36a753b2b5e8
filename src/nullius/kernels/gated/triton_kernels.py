"""Triton kernels of gated linear attention. Formulas and names as in `chunks`; the scale is folded into Q.

What decides the speed. With K = 256, V = 512 and C = 64 the states at chunk boundaries are the largest tensor by far (0.54 GB in bf16 for 32,768
tokens of 4 heads, as much as all inputs and outputs), and what is made of the gate (a running sum, exponentials, the scores P) is wanted by
every block of V columns. Hence:

- `prepare` makes Q ⊙ e^b, K ⊙ e^(b_C − b) and e^(b_C) once, and `scores` P;
- `walk` carries a [BV, K] tile of the state along the chunks in registers and multiplies the outputs out on its way, so that the forward
  pass never writes a state to memory. Backwards, the same kernel with the roles of Q and K exchanged gives dV from dH;
- `walk_gradients` does the same for what dQ takes from earlier chunks (dO Hᵀ) and dK from later ones (V dHᵀ), and `key_gradients` adds what
  they take from their own chunk. Only Σ_v H ⊙ dH needs both states at once: one in four is written to memory for it.

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

    x in fp32 is taken apart into two numbers of `dtype`; where that is fp32 too there is no matrix unit to use, and it is scanned."""
    if dtype == tl.float32:
        return tl.cumsum(x.to(tl.float32), 0, reverse=REVERSE)
    i = tl.arange(0, C)
    triangle = tl.where((i[:, None] <= i[None, :]) if REVERSE else (i[:, None] >= i[None, :]), 1.0, 0.0).to(dtype)
    large, small = _double(x.to(tl.float32), dtype)
    total = tl.dot(triangle, large)
    if x.dtype == tl.float32:
        total = tl.dot(triangle, small, total)
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
    K: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, STRONG: tl.constexpr, GATES_ARE_STRONG: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """P of one chunk of one head. Launched twice: for chunks in which no channel fades by more than 2^STRONG, where P is the product of
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
        b_q = _tile(q, first, count, head, heads, K, k0, C, BK).to(tl.float32) * scale
        b_k = _tile(k, first, count, head, heads, K, k0, C, BK).to(tl.float32)
        g = _gate(gate, first, count, head, by_token, by_head, by_channel, K, k0, C, BK)
        if not GATES_ARE_STRONG:
            j = k0 + tl.arange(0, BK)
            half = 0.5 * tl.load(fade + (chunk * heads + head) * K + j, mask=j < K, other=0.0)
            b = _running_sum(g, q.dtype.element_ty, C, False) * 1.4426950408889634
            up = b_q * tl.exp2(b - half[None, :])
            down = b_k * tl.exp2(half[None, :] - b)
            large, small = _double(up, q.dtype.element_ty)
            total = _product(large, small, tl.trans(down), total, PRECISION)
        else:
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
    read, write, right, p, fade, segments, first_state, out, last_state, total,
    heads,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    BACKWARDS: tl.constexpr, FROM_ZERO: tl.constexpr, OUT: tl.constexpr, LAST: tl.constexpr, TOTAL: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Carry a [BV, K] tile of the transposed state along the chunks of one segment.

    Forwards: read = grown, write = faded, right = V: Oᵀ = Hᵀ readᵀ + Vᵀ Pᵀ; Hᵀ ← Hᵀ ⊙ e^(b_C) + Vᵀ write. Backwards, from the last chunk to
    the first, with read = faded, write = grown, right = dO: dVᵀ = dHᵀ readᵀ + dOᵀ P; dHᵀ ← dHᵀ ⊙ e^(b_C) + dOᵀ write.
    Transposed, because a matrix unit takes its left factor from registers, where the state is: the state never passes through shared memory.
    OUT: write the outputs. FROM_ZERO: there is no `first_state`. LAST: write the state at the end, where the table asks for it. TOTAL:
    also write the whole decay, for `join`; and leave at once where the table does not ask for the state at the end.
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
    for step in range(0, n):
        at = n - 1 - step if BACKWARDS else step
        first = begin + at * C
        count = end - first
        chunk = chunk0 + at
        b_write = _tile(write, first, count, head, heads, K, 0, C, BK)
        b_right = _tile(right, first, count, head, heads, V, v0, C, BV)
        decay = tl.exp2(tl.load(fade + (chunk * heads + head) * K + i, mask=i < K, other=0.0))
        if OUT:
            b_read = _tile(read, first, count, head, heads, K, 0, C, BK)
            b_p = tl.load(p + _square(chunk, head, heads, C))
            if not BACKWARDS:
                b_p = tl.trans(b_p)
            o = tl.dot(state.to(right.dtype.element_ty), tl.trans(b_read), input_precision=PRECISION)
            o = tl.dot(tl.trans(b_right), b_p, o, input_precision=PRECISION)
            _store(out, tl.trans(o), first, count, head, heads, V, v0, C, BV)
        state = tl.dot(tl.trans(b_right), b_write, state * decay[None, :], input_precision=PRECISION)
        if TOTAL:
            whole *= decay
    if LAST:
        tl.store(last_state + (last_row.to(tl.int64) * heads + head) * K * V + where_state, state, mask=inside & (last_row >= 0))
    if TOTAL:
        if v0 == 0:
            tl.store(total + (last_row * heads + head) * K + i, whole, mask=i < K)


@triton.jit
def walk_gradients(
    write, right, other, fade, segments, first_state, parts, kept, edges,
    chunks, blocks, heads,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, R: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    BACKWARDS: tl.constexpr, FROM_ZERO: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Carry a [BK, BV] tile of the state along the chunks of one segment, for what dQ and dK take from other chunks.

    Forwards: write = faded, right = V, other = dO: H dOᵀ, of which dQ is made; H ← e^(b_C) ⊙ H + writeᵀ V. Backwards: write = grown, right =
    dO, other = V: dH Vᵀ, of which dK is made; dH ← e^(b_C) ⊙ dH + writeᵀ dO. `parts` [tiles of V, chunks, H, K, C] receives each tile's share.
    The gate's gradient wants Σ_v H ⊙ dH as well: not at the end of every chunk, whose states would have to be written and read, but of every
    block of R chunks. Forwards writes H there (`kept` [blocks, H, K, V]), backwards multiplies it by its dH (`edges` [tiles of V, blocks, H, K]).
    """
    tiles_v: tl.constexpr = (V + BV - 1) // BV
    k0 = (tl.program_id(0) // tiles_v) * BK
    tile = tl.program_id(0) % tiles_v
    v0 = tile * BV
    segment = tl.program_id(1)
    head = tl.program_id(2)
    begin = tl.load(segments + 8 * segment)
    end = tl.load(segments + 8 * segment + 1)
    chunk0 = tl.load(segments + 8 * segment + 2)
    block0 = tl.load(segments + 8 * segment + 3)
    start_row = tl.load(segments + 8 * segment + 4 + BACKWARDS)
    n = (end - begin + C - 1) // C
    i = k0 + tl.arange(0, BK)
    where, inside = _state_offsets(start_row, head, heads, K, V, k0, v0, BK, BV)
    state = tl.zeros((BK, BV), tl.float32)
    if not FROM_ZERO:
        state += tl.load(first_state + where, mask=inside, other=0.0)
    for step in range(0, n):
        at = n - 1 - step if BACKWARDS else step
        is_last = (at % R == R - 1) | (at == n - 1)
        block = block0 + at // R
        first = begin + at * C
        count = end - first
        chunk = chunk0 + at
        if BACKWARDS:
            if is_last:
                where_kept, _ = _state_offsets(block, head, heads, K, V, k0, v0, BK, BV)
                edge = tl.sum(state * tl.load(kept + where_kept, mask=inside, other=0.0).to(tl.float32), 1)
                tl.store(edges + ((tile * blocks + block) * heads + head) * K + i, edge, mask=i < K)
        b_write = _tile(write, first, count, head, heads, K, k0, C, BK)
        b_right = _tile(right, first, count, head, heads, V, v0, C, BV)
        b_other = _tile(other, first, count, head, heads, V, v0, C, BV)
        decay = tl.exp2(tl.load(fade + (chunk * heads + head) * K + i, mask=i < K, other=0.0))
        part = tl.dot(state.to(right.dtype.element_ty), tl.trans(b_other), input_precision=PRECISION)
        where_part = ((tile * chunks + chunk).to(tl.int64) * heads + head) * K * C + i[:, None] * C + tl.arange(0, C)[None, :]
        tl.store(parts + where_part, part.to(parts.dtype.element_ty), mask=(i < K)[:, None])
        state = tl.dot(tl.trans(b_write), b_right, state * decay[:, None], input_precision=PRECISION)
        if not BACKWARDS:
            if is_last:
                where_kept, _ = _state_offsets(block, head, heads, K, V, k0, v0, BK, BV)
                tl.store(kept + where_kept, state.to(kept.dtype.element_ty), mask=inside)


@triton.jit
def join(
    sums, total, first_state, starts, sequences, heads,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BACKWARDS: tl.constexpr, FROM_ZERO: tl.constexpr,
):  # fmt: skip
    """Turn the sums that pieces gathered from zero into the state each piece starts with. Elementwise; one program a sequence and tile."""
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
        at, ok = _state_offsets(piece, head, heads, K, V, k0, v0, BK, BV)
        tl.store(starts + at, state, mask=ok)
        decay = tl.load(total + (piece * heads + head) * K + i, mask=i < K, other=0.0)
        state = state * decay[:, None] + tl.load(sums + at, mask=ok, other=0.0)


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
    q, k, gate, fade, table, d_p, parts_q, parts_k, edges, d_q, d_k, d_gate,
    scale, chunks, blocks, heads, by_token, by_head, by_channel,
    K: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, TILES: tl.constexpr, LOADED_BY_TILE: tl.constexpr,
    STRONG: tl.constexpr, FADED: tl.constexpr, GATES_ARE_STRONG: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dQ, dK and the gate's gradient for BK channels of one block of chunks, from its last chunk to its first. Launched twice, like `scores`.

    The gate's gradient is a running sum of differences q ⊙ dq − k ⊙ dk, in which rounding does not average out. Hence products inside the
    chunk in twice the bits of the inputs, and the scale in dP, where it reaches both terms alike: on the diagonal they are equal. Beyond a
    chunk the sum is Σ_v H ⊙ dH at its end, known at the end of a block (`edges`), and summed on from there. Where the chunk fades by more than
    2^FADED all of it comes from the chunk's own keys, Σ_t k ⊙ dK of dH alone, and is taken from these: it will be subtracted again, and what
    is left is small.
    """
    k0 = tl.program_id(0) * BK
    block = tl.program_id(1)
    head = tl.program_id(2)
    begin = tl.load(table + 3 * block)
    end = tl.load(table + 3 * block + 1)
    chunk0 = tl.load(table + 3 * block + 2)
    n = (end - begin + C - 1) // C
    i = tl.arange(0, C)
    j = k0 + tl.arange(0, BK)
    strongest = 0.0
    for step in range(0, n):
        last = tl.load(fade + ((chunk0 + step) * heads + head) * K + j, mask=j < K, other=0.0)
        strongest = tl.minimum(strongest, tl.min(last, 0))
    if (strongest <= STRONG) != GATES_ARE_STRONG:
        return
    beyond = tl.zeros((BK,), tl.float32)
    for tile in tl.static_range(TILES):
        beyond += tl.load(edges + ((tile * blocks + block) * heads + head) * K + j, mask=j < K, other=0.0)
    for step in range(0, n):
        chunk = chunk0 + n - 1 - step
        first = begin + (n - 1 - step) * C
        count = end - first
        real = (i < count)[:, None]
        g = _gate(gate, first, count, head, by_token, by_head, by_channel, K, k0, C, BK)
        last = tl.load(fade + (chunk * heads + head) * K + j, mask=j < K, other=0.0)
        b = _running_sum(g, d_q.dtype.element_ty, C, False) * 1.4426950408889634
        if LOADED_BY_TILE:
            b_q = tl.where(real, q.load([first, head * K + k0]), 0.0).to(tl.float32)
            b_k = tl.where(real, k.load([first, head * K + k0]), 0.0).to(tl.float32)
        else:
            b_q = _tile(q, first, count, head, heads, K, k0, C, BK).to(tl.float32)
            b_k = _tile(k, first, count, head, heads, K, k0, C, BK).to(tl.float32)
        dq = tl.zeros((BK, C), tl.float32)
        dk = tl.zeros((BK, C), tl.float32)
        for tile in tl.static_range(TILES):
            row = ((tile * chunks + chunk) * heads + head) * K + k0
            dq += parts_q.load([row, 0]).to(tl.float32)
            dk += parts_k.load([row, 0]).to(tl.float32)
        row = (chunk * heads + head) * C
        large = d_p.load([row, 0])
        small = d_p.load([chunks * heads * C + row, 0])
        if not GATES_ARE_STRONG:
            # e^b = e^(b − b_C / 2) e^(b_C / 2): what comes from other chunks enters the products as their start
            half = 0.5 * last[None, :]
            middle = tl.exp2(half)
            up = tl.exp2(b - half)
            down = tl.exp2(half - b)
            dk = tl.trans(dk) * middle
            if strongest <= FADED:
                beyond = tl.where(last > FADED, beyond, tl.sum(b_k * down * dk, 0))
            dq = _product(large, small, b_k * down, tl.trans(dq) * (middle * scale), PRECISION) * up
            dk = _product(tl.trans(large), tl.trans(small), b_q * up, dk, PRECISION) * down
        else:
            dq = tl.trans(dq) * (tl.exp2(b) * scale)
            dk = tl.trans(dk) * tl.exp2(last[None, :] - b)
            beyond = tl.where(last > FADED, beyond, tl.sum(b_k * dk, 0))
            dp = large.to(tl.float32) + small.to(tl.float32)
            for row in range(C):
                b_i = tl.sum(tl.where((i == row)[:, None], b, 0.0), 0)
                k_i = tl.sum(tl.where((i == row)[:, None], b_k, 0.0), 0)
                dp_i = tl.sum(tl.where((i == row)[None, :], dp, 0.0), 1)
                weighted = dp_i[:, None] * tl.exp2(tl.minimum(b - b_i[None, :], 0.0))
                dq += weighted * k_i[None, :]
                dk += tl.where((i == row)[:, None], tl.sum(weighted * b_q, 0)[None, :], 0.0)
        db = b_q * dq - b_k * dk
        dg = _running_sum(db, d_q.dtype.element_ty, C, True) + beyond[None, :]
        beyond += tl.sum(db, 0)
        _store(d_q, dq, first, count, head, heads, K, k0, C, BK)
        _store(d_k, dk, first, count, head, heads, K, k0, C, BK)
        _store(d_gate, dg, first, count, head, heads, K, k0, C, BK)
