"""Triton kernels of the gradients of gated linear attention, but for dV, which `walk` makes. Names as in `triton_kernels`.

`walk_gradients` carries the states once more, for what dQ takes from earlier chunks (dO Hᵀ) and dK from later ones (V dHᵀ), and
`key_gradients` adds what they take from their own chunk. Only Σ_v H ⊙ dH needs both states at once: one in eight is written to memory for it.

The gate's gradient is a running sum of differences q ⊙ dq − k ⊙ dk in which nearly everything cancels: a pair of tokens adds in one row what
it takes away in another. So it is made of the very numbers, as rounded, that the products are made of, on both sides; the states enter in twice
the bits of bf16; and the diagonal of P, which cancels in every row, is left out.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nullius.kernels.gated.triton_kernels import _after, _double, _gate, _product, _running_sum, _square, _state_offsets, _store, _tile


@triton.jit
def _rounded(x, dtype: tl.constexpr):
    """x in fp32, rounded to what `dtype` holds."""
    rounded = x.to(dtype).to(tl.float32)
    if dtype == tl.bfloat16:
        rounded = ((x.to(tl.uint32, bitcast=True) + 0x8000) & 0xFFFF0000).to(tl.float32, bitcast=True)
    return rounded


@triton.jit
def _half(x, axis: tl.constexpr):
    """x ≈ half · scale: of 11 bits whatever the range of x is. The scale is one number along `axis` (None: in all)."""
    largest = tl.max(tl.abs(x), axis, keep_dims=axis is not None)
    scale = tl.maximum(largest, 1e-30) * 2.0**-14
    return (x * (1.0 / scale)).to(tl.float16), scale


@triton.jit
def _through(state, x, start, PRECISION: tl.constexpr):
    """start + state x, with a state in twice the bits of bf16: the gate's gradient is a difference of two such products."""
    large, small = _double(state, x.dtype)
    product = tl.dot(large, x, start, input_precision=PRECISION)
    if x.dtype == tl.bfloat16:
        product = tl.dot(small, x, product, input_precision=PRECISION)
    return product


@triton.jit
def _turn(
    state, part, b_write, decay, right, other, first, count, head, heads,
    V: tl.constexpr, v0, C: tl.constexpr, BV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One chunk of one tile of the state: what it gives to `part`, then what it becomes."""
    b_right = _tile(right, first, count, head, heads, V, v0, C, BV)
    b_other = _tile(other, first, count, head, heads, V, v0, C, BV)
    part = _through(state, tl.trans(b_other), part, PRECISION)
    return tl.dot(b_write, b_right, state * decay[:, None], input_precision=PRECISION), part


@triton.jit
def _load_state(pointer, index, head, heads, K: tl.constexpr, V: tl.constexpr, k0, v0, BK: tl.constexpr, BV: tl.constexpr):
    where, inside = _state_offsets(index, head, heads, K, V, k0, v0, BK, BV)
    return tl.load(pointer + where, mask=inside, other=0.0)


@triton.jit
def _store_state(pointer, state, index, head, heads, K: tl.constexpr, V: tl.constexpr, k0, v0, BK: tl.constexpr, BV: tl.constexpr):
    where, inside = _state_offsets(index, head, heads, K, V, k0, v0, BK, BV)
    tl.store(pointer + where, state, mask=inside)


@triton.jit
def _share(parts, sizes, part, row, i, wanted, K: tl.constexpr, C: tl.constexpr, BK: tl.constexpr):
    """Store one chunk's share of one tile of V."""
    inside = (i < K) & wanted
    if parts.dtype.element_ty == tl.float16:
        part, size = _half(part, 1)
        tl.store(sizes + row + i, tl.reshape(size, (BK,)), mask=inside)
    tl.store(parts + row * C + i[:, None] * C + tl.arange(0, C)[None, :], part, mask=inside[:, None])


@triton.jit
def walk_gradients(
    write, right, other, fade, segments, first_state, parts, sizes, kept, edges,
    chunks, blocks, heads,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, R: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PIECES: tl.constexpr,
    BACKWARDS: tl.constexpr, FROM_ZERO: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Carry a [BK, PIECES · BV] tile of the state along the chunks of one segment, for what dQ and dK take from other chunks. In one, two or
    four pieces side by side: a product takes its left factor from registers, and only one piece of it at a time need be there.

    Forwards: write = faded, right = V, other = dO: H dOᵀ, of which dQ is made; H ← e^(b_C) ⊙ H + writeᵀ V. Backwards: write = grown, right =
    dO, other = V: dH Vᵀ, of which dK is made; dH ← e^(b_C) ⊙ dH + writeᵀ dO. `parts` [tiles of V, chunks, H, K, C] receives each tile's share,
    in half precision (of fp32: in fp32) and units of `sizes` [tiles of V, chunks, H, K].
    The gate's gradient wants Σ_v H ⊙ dH as well: not at the end of every chunk, whose states would have to be written and read, but of every
    block of R chunks. Forwards writes H there (`kept` [blocks, H, K, V]), backwards multiplies it by its dH (`edges` [tiles of V, blocks, H, K]).
    R = 1, of fp32: without what the chunk's own keys add, by the H at its start.
    """
    width: tl.constexpr = PIECES * BV
    tiles_v: tl.constexpr = (V + width - 1) // width
    k0 = (tl.program_id(0) // tiles_v) * BK
    tile = tl.program_id(0) % tiles_v
    v0 = tile * width
    segment = tl.program_id(1)
    head = tl.program_id(2)
    begin = tl.load(segments + 8 * segment)
    end = tl.load(segments + 8 * segment + 1)
    chunk0 = tl.load(segments + 8 * segment + 2)
    block0 = tl.load(segments + 8 * segment + 3)
    start_row = tl.load(segments + 8 * segment + 4 + BACKWARDS)
    n = (end - begin + C - 1) // C
    m = (n + R - 1) // R
    i = k0 + tl.arange(0, BK)
    state = tl.zeros((BK, BV), tl.float32)
    second = tl.zeros((BK, BV), tl.float32)
    third = tl.zeros((BK, BV), tl.float32)
    fourth = tl.zeros((BK, BV), tl.float32)
    if not FROM_ZERO:
        state += _load_state(first_state, start_row, head, heads, K, V, k0, v0, BK, BV)
        if PIECES > 1:
            second += _load_state(first_state, start_row, head, heads, K, V, k0, v0 + BV, BK, BV)
        if PIECES > 2:
            third += _load_state(first_state, start_row, head, heads, K, V, k0, v0 + 2 * BV, BK, BV)
            fourth += _load_state(first_state, start_row, head, heads, K, V, k0, v0 + 3 * BV, BK, BV)
    following = chunk0 + n - 1 if BACKWARDS else chunk0
    decay = tl.load(fade + (following * heads + head) * K + i, mask=i < K, other=0.0)
    # two loops: with its work inside the loop over chunks a block's end would take registers from every chunk
    for turn in range(0, m):
        of = m - 1 - turn if BACKWARDS else turn
        block = block0 + of
        past = tl.minimum((of + 1) * R, n)
        if BACKWARDS:
            edge = tl.sum(state * _load_state(kept, block, head, heads, K, V, k0, v0, BK, BV), 1)
            if PIECES > 1:
                edge += tl.sum(second * _load_state(kept, block, head, heads, K, V, k0, v0 + BV, BK, BV), 1)
            if PIECES > 2:
                edge += tl.sum(third * _load_state(kept, block, head, heads, K, V, k0, v0 + 2 * BV, BK, BV), 1)
                edge += tl.sum(fourth * _load_state(kept, block, head, heads, K, V, k0, v0 + 3 * BV, BK, BV), 1)
            if R == 1:
                edge *= tl.exp2(tl.load(fade + ((chunk0 + of) * heads + head) * K + i, mask=i < K, other=0.0))
            tl.store(edges + ((tile * blocks + block) * heads + head) * K + i, edge, mask=i < K)
        elif R == 1:
            _store_state(kept, state, block, head, heads, K, V, k0, v0, BK, BV)
        part = tl.zeros((BK, C), tl.float32)
        row = ((tile * chunks + chunk0).to(tl.int64) * heads + head) * K
        for step in range(of * R, past):
            # the share of the chunk before, while this one's tiles are on their way
            _share(parts, sizes, part, row, i, step > of * R, K, C, BK)
            at = past - 1 - (step - of * R) if BACKWARDS else step
            first = begin + at * C
            count = end - first
            chunk = chunk0 + at
            b_write = tl.trans(_tile(write, first, count, head, heads, K, k0, C, BK))
            now = tl.exp2(decay)
            # the next chunk's, as this load would be waited for
            following = tl.maximum(chunk - 1, chunk0) if BACKWARDS else tl.minimum(chunk + 1, chunk0 + n - 1)
            decay = tl.load(fade + (following * heads + head) * K + i, mask=i < K, other=0.0)
            part = tl.zeros((BK, C), tl.float32)
            state, part = _turn(state, part, b_write, now, right, other, first, count, head, heads, V, v0, C, BV, PRECISION)
            if PIECES > 1:
                second, part = _turn(second, part, b_write, now, right, other, first, count, head, heads, V, v0 + BV, C, BV, PRECISION)
            if PIECES > 2:
                third, part = _turn(third, part, b_write, now, right, other, first, count, head, heads, V, v0 + 2 * BV, C, BV, PRECISION)
                fourth, part = _turn(fourth, part, b_write, now, right, other, first, count, head, heads, V, v0 + 3 * BV, C, BV, PRECISION)
            row = ((tile * chunks + chunk).to(tl.int64) * heads + head) * K
        _share(parts, sizes, part, row, i, True, K, C, BK)
        if not BACKWARDS and R > 1:
            _store_state(kept, state, block, head, heads, K, V, k0, v0, BK, BV)
            if PIECES > 1:
                _store_state(kept, second, block, head, heads, K, V, k0, v0 + BV, BK, BV)
            if PIECES > 2:
                _store_state(kept, third, block, head, heads, K, V, k0, v0 + 2 * BV, BK, BV)
                _store_state(kept, fourth, block, head, heads, K, V, k0, v0 + 3 * BV, BK, BV)


@triton.jit
def score_gradient(
    d_o, v, table, d_p, sizes, diagonal, scale, heads,
    V: tl.constexpr, C: tl.constexpr, BV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dP = scale · dO Vᵀ below the diagonal, for one chunk of one head: [chunks, H, C, C] in half precision (of fp32: in fp32) and units of
    `sizes` [chunks, H]; and on it, `diagonal` [chunks, H, C]."""
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
    dp *= scale
    tl.store(diagonal + (chunk * heads + head) * C + i, tl.sum(tl.where(i[:, None] == i[None, :], dp, 0.0), 1))
    dp = tl.where(i[:, None] > i[None, :], dp, 0.0)
    if d_p.dtype.element_ty == tl.float16:
        dp, size = _half(dp, None)
        tl.store(sizes + chunk * heads + head, size)
    tl.store(d_p + _square(chunk, head, heads, C), dp)


@triton.jit
def _shares(parts, sizes, row, stride, j, first_j, TILES: tl.constexpr, K: tl.constexpr, C: tl.constexpr, BK: tl.constexpr):
    """The sum of the shares that `walk_gradients` wrote, [C, BK]. row: of the first share's first channel; stride: rows between shares."""
    total = tl.zeros((C, BK), tl.float32)
    for tile in tl.static_range(TILES):
        part = tl.trans(parts.load([row + tile * stride + first_j, 0])).to(tl.float32)
        if parts.dtype == tl.float16:
            part *= tl.load(sizes + row + tile * stride + j, mask=j < K, other=0.0)[None, :]
        total += part
    return total


@triton.jit
def _strong(b_q, b_k, g, b, dp, last, strongest, STRONG: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr):
    """What dQ takes from the chunk's own keys and dK from its queries, when a product in half precision has not the range."""
    dtype: tl.constexpr = b_q.dtype
    i = tl.arange(0, C)
    b_q = b_q.to(tl.float32)
    b_k = b_k.to(tl.float32)
    from_keys = tl.zeros((C, BK), tl.float32)
    from_queries = tl.zeros((C, BK), tl.float32)
    if strongest > STRONG:
        up = tl.exp2(b - 0.5 * last[None, :])
        down = tl.exp2(0.5 * last[None, :] - b)
        large, small = _double(dp, dtype)
        from_keys = _product(large, small, b_k * down, from_keys, PRECISION) * up
        from_queries = _product(tl.trans(large), tl.trans(small), b_q * up, from_queries, PRECISION) * down
    else:
        # decay from key j to query i: a product of gates, as differences of b have lost the digits of a gate where b is large
        decay = tl.zeros((C, BK), tl.float32)
        opening = tl.exp2(g * 1.4426950408889634)
        for step in range(C):
            j = C - 1 - step
            next_gate = tl.sum(tl.where((i == j + 1)[:, None], opening, 0.0), 0)
            decay = tl.where((i > j)[:, None], decay * next_gate[None, :], tl.where((i == j)[:, None], 1.0, 0.0))
            k_j = tl.sum(tl.where((i == j)[:, None], b_k, 0.0), 0)
            dp_j = tl.sum(tl.where((i == j)[None, :], dp, 0.0), 1)
            weighted = dp_j[:, None] * decay
            from_keys += weighted * k_j[None, :]
            from_queries += tl.where((i == j)[:, None], tl.sum(weighted * b_q, 0)[None, :], 0.0)
    return from_keys, from_queries


@triton.jit
def key_gradients(
    q, k, gate, fade, table, d_p, sizes, diagonal, parts_q, sizes_q, parts_k, sizes_k, edges, d_q, d_k, d_gate,
    scale, chunks, blocks, heads,
    K: tl.constexpr, C: tl.constexpr, R: tl.constexpr, BK: tl.constexpr, TILES: tl.constexpr, LOADED_BY_TILE: tl.constexpr,
    MILD: tl.constexpr, STRONG: tl.constexpr, FADED: tl.constexpr, GATES_ARE_MILD: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dQ, dK and the gate's gradient for BK channels of one block of chunks, from its last chunk to its first.

    Launched twice. First for blocks in which no channel fades by more than 2^MILD in a chunk: there products inside a chunk fit into half
    precision (see `_half`). Then for the others: with products of numbers in twice the bits of bf16, which has the range; and beyond 2^STRONG
    one row at a time. Most often all programs of the second launch leave at once, because `strong_scores` has not cleared the flag.

    Beyond a chunk the gate's gradient is Σ_v H ⊙ dH at its end, known at the end of a block (`edges`), and summed on from there. Where the
    chunk fades by more than 2^FADED all of it comes from the chunk's own keys, Σ_t k ⊙ dK of dH alone, and is taken from these: it will be
    subtracted again, and what is left is small. In fp32 (R = 1) nothing is subtracted: `edges` leaves out the chunk's own keys.
    """
    if not GATES_ARE_MILD:
        if tl.load(fade + chunks * heads * K) != 0:
            return
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
    if (strongest > MILD) != GATES_ARE_MILD:
        return
    dtype: tl.constexpr = d_q.dtype.element_ty
    beyond = tl.zeros((BK,), tl.float32)
    for tile in tl.static_range(TILES):
        beyond += tl.load(edges + ((tile * blocks + block) * heads + head) * K + j, mask=j < K, other=0.0)
    for step in tl.range(0, n, num_stages=STAGES):
        chunk = chunk0 + n - 1 - step
        first = begin + (n - 1 - step) * C
        count = end - first
        row = chunk * heads + head
        last = tl.load(fade + row * K + j, mask=j < K, other=0.0)
        own = tl.load(diagonal + row * C + i)[:, None]
        dp = d_p.load([row * C, 0])
        size = 1.0
        if dtype != tl.float32:
            size = tl.load(sizes + row)
        g = _gate(gate, first, count, head, heads, K, k0, C, BK)
        b = _running_sum(g, dtype, C, False) * 1.4426950408889634
        if LOADED_BY_TILE:
            real = (i < count)[:, None]
            b_q = tl.where(real, q.load([first, head * K + k0]), 0.0)
            b_k = tl.where(real, k.load([first, head * K + k0]), 0.0)
        else:
            b_q = _tile(q, first, count, head, heads, K, k0, C, BK)
            b_k = _tile(k, first, count, head, heads, K, k0, C, BK)
        # e^(b_i − b_j) = e^(b_i − b_C / 2) e^(b_C / 2 − b_j), in the smaller range of each; made again where they are used, as registers are few
        if GATES_ARE_MILD:
            x = b_k.to(tl.float32) * tl.exp2(0.5 * last[None, :] - b)
            y = b_q.to(tl.float32) * tl.exp2(b - 0.5 * last[None, :])
            x_size = 1.0
            y_size = 1.0
            if dtype != tl.float32:
                x, x_size = _half(x, None)
                y, y_size = _half(y, None)
            from_keys = tl.dot(dp, x, input_precision=PRECISION) * (size * x_size)
            db = from_keys * (y.to(tl.float32) * y_size)
        else:
            from_keys, from_queries = _strong(
                b_q, b_k, g.to(tl.float32), b, dp.to(tl.float32) * size, last, strongest, STRONG, C, BK, PRECISION
            )
            db = b_q.to(tl.float32) * from_keys - b_k.to(tl.float32) * from_queries
        # grown and faded, as the states were made of them (see `prepare`)
        share = _shares(parts_q, sizes_q, row * K, chunks * heads * K, j, k0, TILES, K, C, BK)
        half = 0.5 * tl.load(fade + row * K + j, mask=j < K, other=0.0, volatile=True)[None, :]
        if GATES_ARE_MILD:
            from_keys *= tl.exp2(b - half)
        if GATES_ARE_MILD and dtype != tl.float32:
            grow = tl.exp2(b - half) * (tl.exp2(half) * scale)
            grown = b_q.to(tl.float32) * grow
        else:
            grow = tl.exp2(b)
            grown = b_q.to(tl.float32) * scale * grow
            grow *= scale
        db += _rounded(grown, dtype) * share
        _store(d_q, from_keys + share * grow + own * b_k.to(tl.float32), first, count, head, heads, K, k0, C, BK)
        if GATES_ARE_MILD:
            from_queries = tl.dot(tl.trans(dp), y, input_precision=PRECISION) * (size * y_size)
            db -= from_queries * (x.to(tl.float32) * x_size)
        share = _shares(parts_k, sizes_k, row * K, chunks * heads * K, j, k0, TILES, K, C, BK)
        half = 0.5 * tl.load(fade + row * K + j, mask=j < K, other=0.0, volatile=True)[None, :]
        if GATES_ARE_MILD:
            from_queries *= tl.exp2(half - b)
        wither = tl.exp2(half - b) * tl.exp2(half)
        if not GATES_ARE_MILD or dtype == tl.float32:
            wither = tl.exp2(_after(g, b, last, dtype))
        taken = _rounded(b_k.to(tl.float32) * wither, dtype) * share
        _store(d_k, from_queries + share * wither + own * b_q.to(tl.float32), first, count, head, heads, K, k0, C, BK)
        if R == 1:
            # what ends at the chunk's end by what began before: a sum over earlier keys, from which nothing is taken away again
            earlier = tl.where(i[:, None] > i[None, :], 1.0, 0.0)
            dg = _running_sum(db, dtype, C, True) + beyond[None, :] + tl.dot(earlier, taken, input_precision=PRECISION)
        else:
            if FADED > MILD or not GATES_ARE_MILD:
                if strongest <= FADED:
                    beyond = tl.where(last > FADED, beyond, tl.sum(taken, 0))
            db -= taken
            dg = _running_sum(db, dtype, C, True, 3) + beyond[None, :]
            beyond += tl.sum(db, 0)
        _store(d_gate, dg, first, count, head, heads, K, k0, C, BK)
