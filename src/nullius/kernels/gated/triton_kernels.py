"""Triton kernels of gated linear attention: chunk states, outputs, and gradients. Formulas and names as in `chunks`.

Where the time goes. With K = 256, V = 512 and C = 64 a chunk of one head reads 0.2 MB and multiplies 50 MFLOP, so the operator is bound by
memory, and what decides is how often tensors cross it. Hence: the running sum of the gate is recomputed in every kernel (64 additions a
channel) instead of being written in fp32 and read back; scores P are recomputed in registers instead of being stored; no kernel writes
scaled copies of q and k. The only intermediates are the states at chunk boundaries, in the type of the inputs.

Tensors are [N, H, D], all tokens of all sequences in one row index; a table gives each chunk its first token and its length.
Exponents are in base 2: gates are multiplied by 1 / ln 2 once, as they are loaded.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = 1.4426950408889634
# A channel that fades by more than 2^-230 (e^-160) inside one chunk leaves fp32 when its exponent is split in two halves: see `chunks`.
STRONGEST_FAST = -230.0


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
    """Load a tile of the gate, base 2, fp32. Its strides may be 0: one gate for all channels, or for all tokens."""
    i = tl.arange(0, rows)
    j = start + tl.arange(0, columns)
    offset = (first + i)[:, None] * by_token + head * by_head + j[None, :] * by_channel
    gate = tl.load(pointer + offset, mask=(i < count)[:, None] & (j < width)[None, :], other=0.0)
    return gate.to(tl.float32) * 1.4426950408889634


@triton.jit
def _state_offsets(index, head, heads, K: tl.constexpr, V: tl.constexpr, k0, v0, BK: tl.constexpr, BV: tl.constexpr):
    """Offsets and mask of a [BK, BV] tile of a [*, H, K, V] tensor."""
    i = k0 + tl.arange(0, BK)
    j = v0 + tl.arange(0, BV)
    base = (index.to(tl.int64) * heads + head) * K * V
    return base + i[:, None] * V + j[None, :], (i < K)[:, None] & (j < V)[None, :]


@triton.jit
def states(
    left, right, gate, table, segments, first_state, chunk_states, last_state, total, bad,
    scale, heads, by_token, by_head, by_channel,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    BACKWARDS: tl.constexpr, FROM_ZERO: tl.constexpr, KEEP: tl.constexpr, TOTAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Carry a [BK, BV] tile of the state along the chunks of one segment.

    Forwards (left = k, right = v): H ← e^(b_C) ⊙ H + (K ⊙ e^(b_C − b))ᵀ V. Backwards (left = q, right = dO): dH ← e^(b_C) ⊙ dH +
    scale · (Q ⊙ e^b)ᵀ dO. KEEP: write the state each chunk starts with (backwards: ends with). FROM_ZERO: ignore `first_state`.
    TOTAL: also write the segment's whole decay, for `join`. `bad` is set when a gate is positive or NaN.
    """
    tiles_v: tl.constexpr = (V + BV - 1) // BV
    k0 = (tl.program_id(0) // tiles_v) * BK
    v0 = (tl.program_id(0) % tiles_v) * BV
    segment = tl.program_id(1)
    head = tl.program_id(2)
    begin = tl.load(segments + 2 * segment)
    end = tl.load(segments + 2 * segment + 1)
    where_state, inside = _state_offsets(segment, head, heads, K, V, k0, v0, BK, BV)
    state = tl.zeros((BK, BV), tl.float32)
    if not FROM_ZERO:
        state += tl.load(first_state + where_state, mask=inside, other=0.0)
    whole = tl.zeros((BK,), tl.float32)
    for step in range(begin, end):
        chunk = begin + end - 1 - step if BACKWARDS else step
        first = tl.load(table + 2 * chunk)
        count = tl.load(table + 2 * chunk + 1)
        g = _gate(gate, first, count, head, by_token, by_head, by_channel, K, k0, C, BK)
        a = _tile(left, first, count, head, heads, K, k0, C, BK)
        r = _tile(right, first, count, head, heads, V, v0, C, BV)
        if KEEP:
            where, ok = _state_offsets(chunk, head, heads, K, V, k0, v0, BK, BV)
            tl.store(chunk_states + where, state.to(chunk_states.dtype.element_ty), mask=ok)
        b = tl.cumsum(g, 0)
        last = tl.sum(g, 0)
        if BACKWARDS:
            a = (a * tl.exp2(b) * scale).to(right.dtype.element_ty)
        else:
            a = (a * tl.exp2(last[None, :] - b)).to(right.dtype.element_ty)
            if v0 == 0:
                wrong = tl.sum(((g > 0) | (g != g)).to(tl.int32))
                if wrong > 0:
                    tl.store(bad, 1)
        state = state * tl.exp2(last)[:, None] + tl.dot(tl.trans(a), r, input_precision=PRECISION)
        whole += last
    tl.store(last_state + where_state, state, mask=inside)
    if TOTAL:
        if v0 == 0:
            i = k0 + tl.arange(0, BK)
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
        state = state * tl.exp2(decay)[:, None] + tl.load(sums + at, mask=ok, other=0.0)
    tl.store(last_state + where, state, mask=inside)


@triton.jit
def _scores(q, k, b, last, C: tl.constexpr, PRECISION: tl.constexpr):
    """This tile's share of P [C, C], not yet masked. q, k: as loaded; b, last: base 2."""
    if tl.min(last, 0) > -230.0:
        half = 0.5 * last[None, :]
        grown = (q * tl.exp2(b - half)).to(q.dtype)
        faded = (k * tl.exp2(half - b)).to(q.dtype)
        scores = tl.dot(grown, tl.trans(faded), input_precision=PRECISION)
    else:  # strong gates: one column of P at a time, the difference taken before the exponential
        rows = tl.arange(0, C)
        scores = tl.zeros((C, C), tl.float32)
        for j in range(C):
            b_j = tl.sum(tl.where((rows == j)[:, None], b, 0.0), 0)
            k_j = tl.sum(tl.where((rows == j)[:, None], k.to(tl.float32), 0.0), 0)
            column = tl.sum(q.to(tl.float32) * k_j[None, :] * tl.exp2(tl.minimum(b - b_j[None, :], 0.0)), 1)
            scores += tl.where((rows == j)[None, :], column[:, None], 0.0)
    return scores


@triton.jit
def outputs(
    q, k, v, gate, table, chunk_states, o,
    scale, heads, by_token, by_head, by_channel,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """O = scale · [(Q ⊙ e^b) H + P V] for one chunk and BV columns."""
    v0 = tl.program_id(0) * BV
    chunk = tl.program_id(1)
    head = tl.program_id(2)
    first = tl.load(table + 2 * chunk)
    count = tl.load(table + 2 * chunk + 1)
    out = tl.zeros((C, BV), tl.float32)
    scores = tl.zeros((C, C), tl.float32)
    for k0 in range(0, K, BK):
        b_q = _tile(q, first, count, head, heads, K, k0, C, BK)
        b_k = _tile(k, first, count, head, heads, K, k0, C, BK)
        g = _gate(gate, first, count, head, by_token, by_head, by_channel, K, k0, C, BK)
        where, inside = _state_offsets(chunk, head, heads, K, V, k0, v0, BK, BV)
        h = tl.load(chunk_states + where, mask=inside, other=0.0)
        b = tl.cumsum(g, 0)
        last = tl.sum(g, 0)
        out += tl.dot((b_q * tl.exp2(b)).to(h.dtype), h, input_precision=PRECISION)
        scores += _scores(b_q, b_k, b, last, C, PRECISION)
    i = tl.arange(0, C)
    scores = tl.where(i[:, None] >= i[None, :], scores, 0.0)
    b_v = _tile(v, first, count, head, heads, V, v0, C, BV)
    out += tl.dot(scores.to(b_v.dtype), b_v, input_precision=PRECISION)
    _store(o, out * scale, first, count, head, heads, V, v0, C, BV)


@triton.jit
def value_gradient(
    q, k, gate, d_o, table, d_states, d_v,
    scale, heads, by_token, by_head, by_channel,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dV = scale · Pᵀ dO + (K ⊙ e^(b_C − b)) dH for one chunk and BV columns."""
    v0 = tl.program_id(0) * BV
    chunk = tl.program_id(1)
    head = tl.program_id(2)
    first = tl.load(table + 2 * chunk)
    count = tl.load(table + 2 * chunk + 1)
    out = tl.zeros((C, BV), tl.float32)
    scores = tl.zeros((C, C), tl.float32)
    for k0 in range(0, K, BK):
        b_q = _tile(q, first, count, head, heads, K, k0, C, BK)
        b_k = _tile(k, first, count, head, heads, K, k0, C, BK)
        g = _gate(gate, first, count, head, by_token, by_head, by_channel, K, k0, C, BK)
        where, inside = _state_offsets(chunk, head, heads, K, V, k0, v0, BK, BV)
        dh = tl.load(d_states + where, mask=inside, other=0.0)
        b = tl.cumsum(g, 0)
        last = tl.sum(g, 0)
        out += tl.dot((b_k * tl.exp2(last[None, :] - b)).to(dh.dtype), dh, input_precision=PRECISION)
        scores += _scores(b_q, b_k, b, last, C, PRECISION)
    i = tl.arange(0, C)
    scores = tl.where(i[:, None] >= i[None, :], scores, 0.0) * scale
    b_do = _tile(d_o, first, count, head, heads, V, v0, C, BV)
    out += tl.dot(tl.trans(scores.to(b_do.dtype)), b_do, input_precision=PRECISION)
    _store(d_v, out, first, count, head, heads, V, v0, C, BV)


@triton.jit
def key_gradients(
    q, k, v, gate, d_o, table, chunk_states, d_states, d_q, d_k, d_gate,
    scale, heads, by_token, by_head, by_channel,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    PRECISION: tl.constexpr, INTRA: tl.constexpr,
):  # fmt: skip
    """dQ, dK and the gate's gradient for one chunk and BK channels. INTRA: precision of the products inside the chunk, since the gate's
    gradient is a running sum of differences q ⊙ dq − k ⊙ dk in which rounding does not average out."""
    k0 = tl.program_id(0) * BK
    chunk = tl.program_id(1)
    head = tl.program_id(2)
    first = tl.load(table + 2 * chunk)
    count = tl.load(table + 2 * chunk + 1)
    dp = tl.zeros((C, C), tl.float32)
    dq = tl.zeros((C, BK), tl.float32)
    dk = tl.zeros((C, BK), tl.float32)
    held = tl.zeros((BK,), tl.float32)
    for v0 in range(0, V, BV):
        b_v = _tile(v, first, count, head, heads, V, v0, C, BV)
        b_do = _tile(d_o, first, count, head, heads, V, v0, C, BV)
        where, inside = _state_offsets(chunk, head, heads, K, V, k0, v0, BK, BV)
        h = tl.load(chunk_states + where, mask=inside, other=0.0)
        dh = tl.load(d_states + where, mask=inside, other=0.0)
        dp += tl.dot(b_do, tl.trans(b_v), input_precision=PRECISION)
        dq += tl.dot(b_do.to(h.dtype), tl.trans(h), input_precision=PRECISION)
        dk += tl.dot(b_v.to(dh.dtype), tl.trans(dh), input_precision=PRECISION)
        held += tl.sum(h.to(tl.float32) * dh.to(tl.float32), 1)
    rows = tl.arange(0, C)
    dp = tl.where(rows[:, None] >= rows[None, :], dp * scale, 0.0)
    b_q = _tile(q, first, count, head, heads, K, k0, C, BK).to(tl.float32)
    b_k = _tile(k, first, count, head, heads, K, k0, C, BK).to(tl.float32)
    g = _gate(gate, first, count, head, by_token, by_head, by_channel, K, k0, C, BK)
    b = tl.cumsum(g, 0)
    last = tl.sum(g, 0)
    dq *= tl.exp2(b) * scale
    dk *= tl.exp2(last[None, :] - b)
    beyond = tl.exp2(last) * held + tl.sum(b_k * dk, 0)
    if tl.min(last, 0) > -230.0:
        half = 0.5 * last[None, :]
        up = tl.exp2(b - half)
        down = tl.exp2(half - b)
        dq += tl.dot(dp, b_k * down, input_precision=INTRA) * up
        dk += tl.dot(tl.trans(dp), b_q * up, input_precision=INTRA) * down
    else:
        for j in range(C):
            b_j = tl.sum(tl.where((rows == j)[:, None], b, 0.0), 0)
            k_j = tl.sum(tl.where((rows == j)[:, None], b_k, 0.0), 0)
            dp_j = tl.sum(tl.where((rows == j)[None, :], dp, 0.0), 1)
            weighted = dp_j[:, None] * tl.exp2(tl.minimum(b - b_j[None, :], 0.0))
            dq += weighted * k_j[None, :]
            dk += tl.where((rows == j)[:, None], tl.sum(weighted * b_q, 0)[None, :], 0.0)
    db = b_q * dq - b_k * dk
    dg = tl.cumsum(db, 0, reverse=True) + beyond[None, :]
    _store(d_q, dq, first, count, head, heads, K, k0, C, BK)
    _store(d_k, dk, first, count, head, heads, K, k0, C, BK)
    _store(d_gate, dg, first, count, head, heads, K, k0, C, BK)
