"""The operator as one node of a compiled graph.

`torch.compile` cannot look into kernels, and an `autograd.Function` around them would cut its graph in two. Here forward and backward are two
operators of PyTorch's dispatcher, of which the compiler knows the shapes of all results. Eager code keeps to the plain functions, which
the processor gets through faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nullius.kernels.gated.chunks import _Chunked, closed, form_for

ARGUMENTS, HOW = "Tensor q, Tensor k, Tensor v, Tensor gate, Tensor? state", "float scale, int[]? offsets, bool triton"
KEPT = 5  # tensors that `triton_operator.backward` takes besides the arguments
# Results, of the first: outputs, last states, what is kept. Of the second: gradients of the arguments. Empty tensors stand for none.
FORWARD = f"({ARGUMENTS}, {HOW}) -> (Tensor, Tensor{', Tensor' * KEPT})"
BACKWARD = f"(Tensor? d_o, Tensor? d_end, {ARGUMENTS}, Tensor[] kept, {HOW}, bool d_state) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"


def traced(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, state: Tensor | None, scale: float, offsets: list[int] | None, triton: bool
) -> tuple[Tensor, Tensor]:
    """Same contract as `triton_gated`. triton: whether its kernels are used, else chunks in plain PyTorch, which know no offsets."""
    o, end, *_ = _forward(q, k, v, gate, state, scale, offsets, triton)
    return o, end


@torch.library.custom_op("nullius::gated_linear_attention", mutates_args=(), schema=FORWARD)
def _forward(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, state: Tensor | None, scale: float, offsets: Sequence[int] | None, triton: bool
) -> tuple[Tensor, ...]:
    if not triton:
        from nullius.kernels.gated.operator import _check_gate

        _check_gate(gate)
        first = _first(q, v, state)
        wq, wk, wv, wg = (x.to(first.dtype) for x in (q, k, v, gate))
        o, end = _Chunked.forward(_Context(), wq, wk, wv, wg, first, scale)
        return o.to(v.dtype).contiguous(), end.contiguous(), *_none(end, KEPT)
    from nullius.kernels.gated import triton_operator as kernels

    with kernels.at(q):
        inputs = kernels.laid_out(q, k, v, gate, state)
        call = kernels._launches(inputs[0], inputs[2], inputs[3], kernels.bounds(q, offsets), inputs[1], inputs[4])
        return _results(call, kernels.forward(call, *inputs, scale))


@_forward.register_fake
def _shapes(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, state: Tensor | None, scale: float, offsets: Sequence[int] | None, triton: bool
) -> tuple[Tensor, ...]:
    if not triton:
        end = _first(q, v, None)
        return v.new_empty(v.shape), end, *_none(end, KEPT)
    from nullius.kernels.gated import triton_operator as kernels

    class Dry(kernels._Launches):
        """Allocates results and launches nothing."""

        def launch(self, *_: Any, **__: Any) -> None: ...

    call = Dry(kernels.bounds(q, offsets), q.shape[2], q.shape[3], v.shape[3], q.dtype, q.device)
    return _results(call, kernels.forward(call, *kernels.laid_out(q, k, v, gate, state), scale))


@torch.library.custom_op("nullius::gated_linear_attention_backward", mutates_args=(), schema=BACKWARD)
def _backward(
    d_o: Tensor | None,
    d_end: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor,
    state: Tensor | None,
    kept: Sequence[Tensor],
    scale: float,
    offsets: Sequence[int] | None,
    triton: bool,
    d_state: bool,
) -> tuple[Tensor, ...]:
    if not triton:
        first = _first(q, v, state)
        context = _Context(*(x.to(first.dtype) for x in (q, k, v)), closed(gate.to(first.dtype)), first)
        context.scale, (context.fast, context.chunk) = scale, form_for(context.saved_tensors[3])
        d_o, d_end = torch.zeros_like(v) if d_o is None else d_o, torch.zeros_like(first) if d_end is None else d_end
        found: Any = _Chunked.backward(context, d_o.to(first.dtype), d_end)
        d_first = found[4]
        typed = (d.to(x.dtype).contiguous() for d, x in zip(found[:4], (q, k, v, gate), strict=True))
        return *typed, d_first.contiguous() if d_state else _none(first, 1)[0]
    from nullius.kernels.gated import triton_operator as kernels

    with kernels.at(q):
        *inputs, first_states = kernels.laid_out(q, k, v, gate, state)
        saved: Any = (*inputs, *kept[:-1], kept[-1] if kept[-1].numel() else first_states)
        gradients: Any
        *gradients, d_given = kernels.backward(d_o, d_end, saved, scale, kernels.bounds(q, offsets), d_state)
    return *gradients, _none(q, 1)[0] if d_given is None else d_given


@_backward.register_fake
def _gradient_shapes(
    d_o: Tensor | None, d_end: Tensor | None, q: Tensor, k: Tensor, v: Tensor, gate: Tensor, state: Tensor | None, *others: Any
) -> tuple[Tensor, ...]:
    *_, d_state = others
    return *(x.new_empty(x.shape) for x in (q, k, v, gate)), torch.empty_like(state) if d_state and state is not None else _none(q, 1)[0]


def _note(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, scale, offsets, triton = inputs
    ctx.save_for_backward(*tensors, *output[2:])
    ctx.how = scale, offsets, triton
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, d_o: Tensor | None, d_end: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
    arguments, kept = ctx.saved_tensors[:-KEPT], ctx.saved_tensors[-KEPT:]
    wanted = ctx.needs_input_grad[4]
    *found, d_state = _backward(d_o, d_end, *arguments, list(kept), *ctx.how, wanted)
    return *found, d_state if wanted else None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_note)


class _Context:
    """What `_Chunked` notes on its way."""

    def __init__(self, *saved: Tensor) -> None:
        self.saved_tensors = saved
        self.scale, self.fast, self.chunk = 1.0, True, 1

    def save_for_backward(self, *saved: Tensor) -> None:
        """Keep nothing: the operator's own arguments are kept."""


def _first(q: Tensor, v: Tensor, state: Tensor | None) -> Tensor:
    """The first states [B, H, K, V], zero where none are given."""
    shape = (q.shape[0], q.shape[2], q.shape[3], v.shape[3])
    return q.new_zeros(shape, dtype=torch.float64 if q.dtype == torch.float64 else torch.float32) if state is None else state


def _none(like: Tensor, n: int) -> tuple[Tensor, ...]:
    return tuple(like.new_empty(0) for _ in range(n))


def _results(call: Any, made: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    """Uncut, the states that segments start with are those given: an operator may not return its arguments."""
    results: Any
    *results, starts = made
    return *results, starts if call.cut else _none(results[0], 1)[0]
