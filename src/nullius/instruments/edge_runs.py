"""The runs behind `edges`: every reader gets an input of its own, and what every writer writes is seen as it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nullius.errors import SubjectError, UsageError, nearest
from nullius.instruments import taps
from nullius.instruments.direct_effects import pulled_back
from nullius.models import hooks
from nullius.models.anatomy import Anatomy
from nullius.models.dataflow import first_output, with_input
from nullius.models.language_model import Batch, LanguageModel

if TYPE_CHECKING:
    from nullius.instruments.edges import Edge

Hear = Callable[[slice], Tensor]  # readers → what is added to the stream that each reads [rows, readers, T, d_model]
Write = Callable[[slice, Tensor], None]  # (writers, what they write [writers, rows, T, d_model])


@dataclass(frozen=True, eq=False)
class Nodes:
    """The writers and readers of a model by name, in the order in which they run. allowed: which pairs are edges [writers, readers]."""

    writers: tuple[str, ...]
    readers: tuple[str, ...]
    allowed: Tensor

    @cached_property
    def _numbers(self) -> tuple[dict[str, int], dict[str, int]]:
        return {name: i for i, name in enumerate(self.writers)}, {name: i for i, name in enumerate(self.readers)}

    def mask(self, which: Sequence[Edge]) -> Tensor:
        """Bool [writers, readers], true at the edges given. Raises UsageError for one that does not exist."""
        mask = torch.zeros_like(self.allowed)
        writers, readers = self._numbers
        for edge in which:
            if isinstance(edge, str):
                raise UsageError(f"'{edge}' is no Edge(writer, reader)")
            for name, known, kind in ((edge.writer, writers, "writer"), (edge.reader, readers, "reader")):
                if name not in known:
                    raise UsageError(f"no {kind} '{name}'{nearest(name, known)}")
            at = writers[edge.writer], readers[edge.reader]
            if not self.allowed[at]:
                raise UsageError(f"no edge {edge}: what reads there runs before what writes")
            mask[at] = True
        return mask

    def edge(self, index: int) -> Edge:
        """The edge at a flat index of [writers, readers]."""
        from nullius.instruments.edges import Edge

        writer, reader = divmod(index, len(self.readers))
        return Edge(self.writers[writer], self.readers[reader])

    def edges(self) -> list[Edge]:
        """All edges."""
        return [self.edge(int(i)) for i in self.allowed.flatten().nonzero()[:, 0]]


def nodes(model: LanguageModel) -> Nodes:
    """Writers and readers of a model. Raises SubjectError where queries, keys and values cannot be told apart by head."""
    anatomy = model.anatomy
    if anatomy.lies_flat:
        raise SubjectError(f"the feed-forward blocks of {anatomy.family} are not modules that read the stream: edges cannot be cut there")
    writers, readers = [("embed", -1.0)], []  # with the time at which each has run, or runs
    for layer in range(anatomy.n_layers):
        writers += [(f"{layer}.{head}", layer + 0.2) for head in range(anatomy.n_heads)] + [(f"mlp {layer}", layer + 0.4)]
        for name in "qkv":
            readers += [(f"{name} {layer}.{head}", layer + 0.1) for head in range(anatomy.site(name, layer).heads)]
        readers.append((f"mlp {layer}", layer + (0.1 if anatomy.parallel else 0.3)))
    readers.append(("logits", float(anatomy.n_layers)))
    allowed = torch.tensor([[wrote < reads for _, reads in readers] for _, wrote in writers])
    return Nodes(tuple(name for name, _ in writers), tuple(name for name, _ in readers), allowed)


@contextmanager
def split(model: LanguageModel, graph: Nodes, hear: Hear, write: Write | None) -> Iterator[None]:
    """While open, each reader reads the stream plus what `hear` adds for it, and `write` is told what every writer writes."""
    anatomy = model.anatomy
    stream: dict[str, Tensor] = {}
    reader, writer = 0, 1
    with ExitStack() as stack:
        if write is not None:
            tell = write
            stack.callback(hooks.on_read(anatomy, anatomy.site("resid_pre", 0), lambda x: tell(slice(0, 1), x[None])).remove)
        for layer in range(anatomy.n_layers):
            stack.callback(hooks.on_read(anatomy, anatomy.site("resid_pre", layer), partial(stream.__setitem__, "pre")).remove)
            for name in "qkv":
                size = anatomy.site(name, layer).heads
                edit = partial(_read_by_head, anatomy, name, layer, stream, hear, slice(reader, reader + size))
                stack.enter_context(taps.edit(model, name, layer, edit))
                reader += size
            source = "pre" if anatomy.parallel else "mid"
            if source == "mid":
                stack.callback(hooks.on_read(anatomy, anatomy.site("resid_mid", layer), partial(stream.__setitem__, "mid")).remove)
            hook = partial(_read_mlp, anatomy.mlp_norm(layer), stream, source, hear, slice(reader, reader + 1))
            stack.callback(anatomy.mlp(layer).register_forward_pre_hook(hook, with_kwargs=True).remove)
            reader += 1
            if write is not None:
                stack.enter_context(_writes(anatomy, layer, writer, write))
            writer += anatomy.n_heads + 1
        last = slice(reader, reader + 1)
        stack.callback(anatomy.final_norm.register_forward_pre_hook(lambda _module, args: (args[0] + hear(last)[:, 0],)).remove)
        yield


def _read_by_head(anatomy: Anatomy, name: str, layer: int, stream: dict[str, Tensor], hear: Hear, which: slice, _old: Tensor) -> Tensor:
    """The site's value when each head reads a stream of its own [rows, T, heads, d_head]."""
    site, norm = anatomy.site(name, layer), anatomy.attn_norm(layer)
    own = stream["pre"][:, None] + hear(which)  # [rows, heads, T, d]
    rows = own.flatten(0, 1)
    rows = rows if norm is None else norm(rows)
    every = anatomy.split_heads(site, first_output(site.module.forward(rows)))  # forward: past the hooks, of which this is one
    return every.unflatten(0, own.shape[:2]).diagonal(dim1=1, dim2=3).movedim(-1, 2)


def _read_mlp(
    norm: nn.Module | None, stream: dict[str, Tensor], source: str, hear: Hear, which: slice, _module: Any, args: Any, kwargs: Any
) -> tuple[Any, Any]:
    own = stream[source] + hear(which)[:, 0]
    return with_input(args, kwargs, own if norm is None else norm(own))


@contextmanager
def _writes(anatomy: Anatomy, layer: int, writer: int, write: Write) -> Iterator[None]:
    """Tell what the heads of a layer (writers from number `writer` on) and its feed-forward block write."""
    kept: dict[str, Tensor] = {}
    heads = anatomy.n_heads
    norm, factor = anatomy.post_norm(layer, "attn"), anatomy.site("attn_out", layer).factor

    def attention(_module: Any, _args: Any, output: Any) -> None:
        share = torch.einsum("rthd,hdm->hrtm", kept.pop("z"), anatomy.o_weight(layer))
        if norm is not None:  # an RMS norm is a diagonal map: pulling back through it is pushing forward
            total = first_output(output).expand_as(share).flatten(0, -2)
            share = pulled_back(norm, total, share.flatten(0, -2)).to(share.dtype).view(share.shape)
        write(slice(writer, writer + heads), share * factor)

    with ExitStack() as stack:
        stack.callback(hooks.on_read(anatomy, anatomy.site("z", layer), partial(kept.__setitem__, "z")).remove)
        stack.callback(anatomy.attn(layer).register_forward_hook(attention).remove)
        tell = lambda x: write(slice(writer + heads, writer + heads + 1), x[None])  # noqa: E731
        stack.callback(hooks.on_read(anatomy, anatomy.site("mlp_out", layer), tell).remove)
        yield


@torch.no_grad()
def contributions(model: LanguageModel, batch: Batch, graph: Nodes) -> Tensor:
    """What every writer writes in a plain run [writers, n, T, d_model]. They add up to the last residual stream, up to biases."""
    n, length = batch.input_ids.shape
    out = torch.zeros(len(graph.writers), n, length, model.anatomy.d_model, device=model.device, dtype=model.dtype)
    anatomy = model.anatomy
    with ExitStack() as stack:
        stack.callback(hooks.on_read(anatomy, anatomy.site("resid_pre", 0), partial(out.__setitem__, 0)).remove)
        for layer in range(anatomy.n_layers):
            stack.enter_context(_writes(anatomy, layer, 1 + layer * (anatomy.n_heads + 1), out.__setitem__))
        model.hidden(batch)
    return out
