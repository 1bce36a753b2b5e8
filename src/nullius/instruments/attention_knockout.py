"""Attention knockout (Geva et al. 2023): which earlier token a position must be able to see, and up to which layer.

An edge from a query position to a key position is cut by masking it, so that the attention that went there is shared out among the others. With
the edges cut in all layers up to L, for each L, the curve shows in which layers the information crosses. `window` says who sees whom altogether.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nullius.errors import SubjectError, UsageError
from nullius.instruments import taps, wavefront
from nullius.instruments.path_runs import At, positions
from nullius.models.dataflow import first_input
from nullius.models.language_model import Batch, LanguageModel

Cut = tuple[At, At]  # (query position, key position): an index each, or one for each text


@contextmanager
def blocked(
    model: LanguageModel, n: int, length: int, cuts: Sequence[Cut], layers: Sequence[int], heads: Sequence[int] | None = None
) -> Iterator[None]:
    """While open, no query position attends to its key position in the layers (and heads) given. For batches of n texts of `length` columns.

    Positions are columns of the batch (−1 the last; texts are left-padded). May be nested: what is cut outside stays cut, and so does what a
    layer's own mask hides (padding, what lies before its window).
    Raises UsageError for positions that do not exist, a key after its query, or a query that nothing would be left for, and, when the model runs,
    for a pass of another shape (in generation, say); SubjectError for a layer that does not attend and, when the model runs, where its attention
    takes no mask.
    """
    closed = _closed(model, n, length, cuts, heads)
    with ExitStack() as stack:
        for layer in layers:
            model.anatomy.o_proj(layer)  # or it says that this layer does not attend
            module = model.anatomy.attn(layer)
            stack.callback(module.register_forward_pre_hook(partial(_masked, model, layer, closed), with_kwargs=True).remove)
        yield


@contextmanager
def window(model: LanguageModel, sees: Tensor | Callable[[Tensor], Tensor], layers: Sequence[int] | None = None) -> Iterator[None]:
    """While open, positions attend to those that they are said to see and to no others, later ones among them, in some layers (None: in all).

    sees: bool [n, query, key], or [n, heads, query, key], for batches of n texts of one length; or a function that makes it of each pass's token
    ids [n, T]. What the layer's own mask was (causal, sliding, edges cut by a `blocked` outside) is replaced, and gradients flow, so that a model can
    be trained so too. A model that sees later tokens cannot keep keys and values in generation.
    Raises UsageError for another shape, or a query that sees nothing, when the model runs where `sees` is a function; when it runs, for texts that
    are padded, and a pass of another shape; SubjectError, when the model runs, where its attention takes no mask.
    """
    said: dict[str, Tensor] = {}

    def look(_module: Any, args: Any, kwargs: Any) -> None:
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 2 and not bool(mask.all()):
            raise UsageError("a window is for texts of one length: some are padded")
        if callable(sees):
            said["mask"] = _additive(model, sees(args[0] if args else kwargs["input_ids"]))

    if not callable(sees):
        said["mask"] = _additive(model, sees)
    with ExitStack() as stack:
        stack.callback(model.anatomy.decoder.register_forward_pre_hook(look, with_kwargs=True).remove)
        for layer in range(model.anatomy.n_layers) if layers is None else layers:
            model.anatomy.o_proj(layer)
            hook = partial(_replaced, model.anatomy.family, said)
            stack.callback(model.anatomy.attn(layer).register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


def _additive(model: LanguageModel, sees: Tensor) -> Tensor:
    wide, heads = sees[:, None] if sees.ndim == 3 else sees, model.anatomy.n_heads
    if sees.dtype != torch.bool or wide.ndim != 4 or wide.shape[1] not in (1, heads) or wide.shape[2] != wide.shape[3]:
        raise UsageError(f"sees must be bool [n, T, T], or [n, {heads}, T, T]; got {sees.dtype} {list(sees.shape)}")
    blind = (~wide).all(-1).nonzero()
    if len(blind):
        raise UsageError(f"text {int(blind[0, 0])}: position {int(blind[0, 2])} would see nothing; let it see at least its own token")
    closed = ~wide.to(model.device)
    return torch.zeros(wide.shape, dtype=model.dtype, device=model.device).masked_fill_(closed, torch.finfo(model.dtype).min)


@torch.no_grad()
def up_to_each_layer(model: LanguageModel, texts: Sequence[str] | Batch, cuts: Sequence[Cut], heads: Sequence[int] | None = None) -> Tensor:
    """Logits at the last position with the edges cut in no layer, in layer 0, in layers 0 and 1, ..., in all [n_layers + 1, n, V].

    The run with all cut gives what every other one has below its last cut layer; these then travel up together, as rows of one batch, over
    the positions from the first query on. Raises as `blocked`, and UsageError for texts that do not have one length.
    """
    batch = model.batch(texts)
    if not bool(batch.attention_mask.all()):
        raise UsageError("the texts do not have one length: a position would not mean the same in all of them")
    n, length = batch.input_ids.shape
    anatomy = model.anatomy
    base = wavefront.run_base(model, batch)
    everywhere = range(anatomy.n_layers)
    with blocked(model, n, length, cuts, everywhere, heads):
        cut = taps.read(model, batch, ["resid_pre", "resid_post"], positions="all")
    last = anatomy.final_norm(cut["resid_post"][-1][:, -1])
    rows = [base.last]
    if anatomy.n_layers > 1:
        start = min(int(found.min()) for query, _ in cuts if (found := positions(query, n, length)) is not None)
        mixed = replace(base, stream=cut["resid_pre"])
        rows += list(wavefront.wave(model, mixed, start, list(everywhere[1:]), 1, "resid_pre", lambda _layer, _x: None)[:, 0])
    rows.append(last)
    return anatomy.logits(torch.stack(rows))


def _closed(model: LanguageModel, n: int, length: int, cuts: Sequence[Cut], heads: Sequence[int] | None) -> Tensor:
    """Which edges are cut: bool [n, heads or 1, query, key]."""
    width = model.anatomy.n_heads
    for head in heads or ():
        if not 0 <= head < width:
            raise UsageError(f"head {head} does not exist: {model.name} has heads 0 to {width - 1} in each layer")
    closed = torch.zeros(n, 1, length, length, dtype=torch.bool, device=model.device)
    row = torch.arange(n)
    for pair in cuts:
        query, key = (positions(at, n, length) for at in pair)
        if query is None or key is None:
            raise UsageError("an edge goes from one position to one position: give an index, or one for each text")
        if bool((key > query).any()):
            i = int((key > query).nonzero()[0])
            raise UsageError(f"text {i}: position {int(query[i])} cannot see position {int(key[i])} in any case, which comes later")
        closed[row, 0, query, key] = True
    blind = (closed[:, 0] | ~_causal(length, closed.device)).all(-1)
    if bool(blind.any()):
        i, query_at = (int(x) for x in blind.nonzero()[0])
        raise UsageError(f"text {i}: position {query_at} would be left with nothing to attend to; leave it at least its own token")
    if heads is None:
        return closed
    chosen = torch.zeros(width, dtype=torch.bool, device=closed.device)
    chosen[list(heads)] = True
    return closed & chosen[None, :, None, None]


def _causal(length: int, device: torch.device) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def _replaced(family: str, said: Mapping[str, Tensor], _module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """A hook before an attention: another mask."""
    if "attention_mask" not in kwargs:
        raise SubjectError(f"the attention of {family} is not called with a mask: no window can be put over it")
    _same_shape("sees", said["mask"], args, kwargs)
    return args, {**kwargs, "attention_mask": said["mask"]}


def _masked(model: LanguageModel, layer: int, closed: Tensor, _module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """A hook before an attention: the mask that it would have, with the edges cut."""
    if "attention_mask" not in kwargs:
        raise SubjectError(f"the attention of {model.anatomy.family} is not called with a mask: its edges cannot be cut")
    _same_shape("the cuts", closed, args, kwargs)
    mask: Tensor | None = kwargs["attention_mask"]
    if mask is None:  # a fused kernel's own: causal, and the text is no longer than the layer's window
        mask = _causal(closed.shape[-1], closed.device)[None, None]
    if mask.dtype != torch.bool:
        return args, {**kwargs, "attention_mask": mask.masked_fill(closed, torch.finfo(mask.dtype).min)}
    if not bool(mask[0, 0, -1, -1]):  # MPT's says what is hidden: the last token sees at least itself
        return args, {**kwargs, "attention_mask": mask | closed}
    return args, {**kwargs, "attention_mask": mask & ~closed}


def _same_shape(what: str, mask: Tensor, args: Any, kwargs: Any) -> None:
    """Raise UsageError where a pass does not carry the texts that a mask [n, .., T, T] was made for."""
    (n, length), (rows, width) = (mask.shape[0], mask.shape[-1]), first_input(args, kwargs).shape[:2]
    if (n, length) != (rows, width):
        raise UsageError(
            f"{what} are for {n} texts of {length} tokens; this pass carries {rows} of {width} (generation is not for whole texts)"
        )
