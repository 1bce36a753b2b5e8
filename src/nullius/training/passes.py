"""The gradients of a batch: forward and backward passes over its parts, made one by one, or recorded once and replayed.

A step of a small model starts thousands of kernels, and the processor can take longer to start them than the GPU to run them. All passes of a
run do the same with other numbers, so that on a GPU one of them can be recorded (a CUDA graph) and started whole from then on. What is
recorded starts kernels by their address: `torch._dynamo.reset()`, which lets compiled ones go, may not be called while it is in use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nullius.models.architectures.decoder import DecoderForCausalLM

BEFORE = 3  # batches made plainly before a pass is recorded: in them kernels are compiled and chosen, and tables made


def recordable(body: Any) -> bool:
    """Whether nothing in a model's pass waits for the GPU or changes from one pass to the next, but for its numbers: known of the project's own
    decoders."""
    return isinstance(body, DecoderForCausalLM) and not body.model.gradient_checkpointing


class Passes:
    """Makes gradients. loss: the mean loss of a part. parameters: those that get gradients. autocast: makes the context of a forward pass.
    record: whether to record a pass; then all parts must have one shape. note: told when that fails; passes are made plainly then."""

    def __init__(
        self,
        loss: Callable[[Tensor], Tensor],
        parameters: Sequence[nn.Parameter],
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]],
        record: bool = False,
        note: Callable[[str], None] = print,
    ) -> None:
        self.loss, self.parameters, self.device, self.autocast = loss, list(parameters), device, autocast
        self.record, self.note, self.made = record and device.type == "cuda", note, 0
        self.graph: Any = None
        # a stream for plain passes too: what they leave behind in autograd's graph may belong to no other stream than the recorded one's
        self.stream = torch.cuda.Stream(device) if self.record else None

    def __call__(self, parts: Sequence[Tensor]) -> Tensor:
        """Put the gradients of the mean loss over all parts (one tensor each) into the parameters, in place of what is there. Returns that loss."""
        if self.record and self.graph is None and self.made >= BEFORE:
            self._record(parts)
        self.made += 1
        loss = torch.zeros((), device=self.device)
        if self.graph is None:
            for parameter in self.parameters:
                parameter.grad = None
            with self._aside():
                for rows in parts:
                    loss += self._pass(self._moved(rows), len(parts))
            return loss
        if len(parts) > 1:
            torch._foreach_zero_([gradient for _, gradient in self.gradients])
        for rows in parts:
            self.rows.copy_(self._moved(rows))
            self.graph.replay()
            loss += self.made_loss
        for parameter, gradient in self.gradients:
            parameter.grad = gradient
        return loss

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Work on the stream of recorded passes, after what was begun here and before what follows."""
        if self.stream is None:
            yield
            return
        here = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            yield
        here.wait_stream(self.stream)

    def _pass(self, rows: Tensor, parts: int) -> Tensor:
        with self.autocast():
            loss = self.loss(rows) / parts
        loss.backward()
        return loss.detach()

    def _moved(self, rows: Tensor) -> Tensor:
        """Rows on the device; from pinned memory, or the processor would wait until the GPU gets there."""
        if self.device.type == "cuda" and not rows.is_cuda:
            rows = rows.pin_memory()
        return rows.to(self.device, non_blocking=True)

    def _record(self, parts: Sequence[Tensor]) -> None:
        """Record a pass. Its gradients are put where the first one's lie, or, with several parts, added to them."""
        self.rows = self._moved(parts[0]).clone()
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter) if len(parts) > 1 else None
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                self.made_loss = self._pass(self.rows, len(parts))
        except RuntimeError as error:
            first = error.__context__ or error  # that the recording was broken off, which is told last, says nothing
            self.record, why = False, (str(first).splitlines() or [""])[0]
            self.note(f"passes cannot be recorded here ({why}): they are made one by one")
            return
        self.graph = graph
        self.gradients = [(parameter, parameter.grad) for parameter in self.parameters if parameter.grad is not None]
