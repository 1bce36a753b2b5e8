"""The attention pattern of a running model, also where the model uses a fused kernel, which has none to give.

While watched, a layer's attention is computed as ever, by the kernel that the model uses, and beside it the pattern, by the eager formula of the
model's own code: what the model goes on with is bit for bit the same, and other layers pay nothing. An edited pattern replaces the kernel's
output by pattern · values. In training the pattern is the one before dropout, and an edited one is not dropped out from.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from nullius.errors import SubjectError, UsageError
from nullius.instruments import indices
from nullius.models import hooks
from nullius.models.language_model import Batch, LanguageModel

if TYPE_CHECKING:
    from nullius.instruments.heads import Head

Watch = Callable[[Tensor], Tensor | None]  # pattern [B, heads, query, key] → nothing, or another one to go on with
_KERNELS = ("eager", "sdpa")
_watches: dict[int, list[tuple[Watch, bool]]] = {}  # by attention module (its id), while it is watched: in the order in which they came


@contextmanager
def watched(model: LanguageModel, watches: Mapping[int, Watch], last: bool = False) -> Iterator[None]:
    """While open, hand the pattern of some layers [B, heads, query, key] to a function each time it is made. May be nested.

    watches: by layer; what returns a tensor of the same shape edits the pattern. last: only the last query's row is made (for reading).
    Attentions that do without transformers' interface (GPT-J, BLOOM, MPT) make their pattern themselves: it is read, and cannot be edited.
    Raises UsageError for a layer that does not exist, SubjectError for a kernel or an architecture that gives no pattern, and for compiled layers.
    """
    before = model.hf.config._attn_implementation
    kernel = before.removeprefix("nullius_")
    sites = {layer: model.anatomy.site("pattern", layer) for layer in watches}
    for site in sites.values():
        hooks.not_compiled(model.anatomy, site)
    modules = {layer: site.module for layer, site in sites.items()}
    if kernel not in _KERNELS:
        raise SubjectError(f"{model.name} runs {before}, which gives no attention pattern: load it with sdpa or eager attention")
    if not all(hasattr(sys.modules[type(module).__module__], "eager_attention_forward") for module in modules.values()):
        with _returned(model.anatomy.family, modules, watches, last):
            yield
        return
    handles = [module.register_forward_pre_hook(_looked_at) for module in modules.values()]
    for layer, module in modules.items():
        _watches.setdefault(id(module), []).append((watches[layer], last))
    if before == kernel:
        model.hf.set_attn_implementation(f"nullius_{kernel}")
    try:
        yield
    finally:
        if before == kernel:
            model.hf.set_attn_implementation(before)
        for layer, module in modules.items():
            _watches[id(module)].remove((watches[layer], last))
            if not _watches[id(module)]:
                del _watches[id(module)]
        for handle in handles:
            handle.remove()


def _looked_at(_module: nn.Module, _args: Any) -> None:
    """A hook that does nothing, and by which instruments that go round a layer's own code see that it is watched."""


@contextmanager
def _returned(family: str, modules: Mapping[int, nn.Module], watches: Mapping[int, Watch], last: bool) -> Iterator[None]:
    """While open, hand over the patterns that attentions return beside their output."""

    def hook(watch: Watch, _module: nn.Module, _args: Any, output: Any) -> None:
        pattern = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if not isinstance(pattern, Tensor) or pattern.ndim != 4:
            raise SubjectError(f"the attention of {family} gives no pattern")
        if watch(pattern[:, :, -1:] if last else pattern) is not None:
            raise SubjectError(f"the attention pattern of {family} can be read, not edited: edit z or v instead")

    with ExitStack() as stack:
        for layer, module in modules.items():
            stack.callback(module.register_forward_hook(partial(hook, watches[layer])).remove)
        yield


@torch.no_grad()
def mass(model: LanguageModel, batch: Batch | Sequence[str], heads: Sequence[Head], columns: Sequence[Sequence[int]]) -> Tensor:
    """The share of attention that the last position pays to some columns of each text: [n, heads], on the CPU.

    columns: for each text its own. Raises UsageError for a head that does not exist, and where texts and lists of columns do not pair up.
    """
    batch = model.batch(batch)
    n, length = batch.input_ids.shape
    chosen = [indices.listed("columns", some) for some in columns]
    outside = next((column for some in chosen for column in some if not -length <= column < length), None)
    if len(chosen) != n or outside is not None:
        what = f"column {outside} does not exist: the batch has columns 0 to {length - 1}"
        raise UsageError(f"{len(chosen)} lists of columns for {n} texts" if len(chosen) != n else what)
    wrong = next((head for head in heads if not 0 <= head.head < model.anatomy.n_heads), None)
    if wrong is not None:
        raise UsageError(f"head {wrong} does not exist: {model.name} has heads 0 to {model.anatomy.n_heads - 1} in each layer")
    kept: dict[int, Tensor] = {}
    with watched(model, {head.layer: partial(_take, kept, head.layer) for head in heads}, last=True):
        model.hidden(batch)
    each = [[kept[head.layer][text, head.head, 0, some].sum() for head in heads] for text, some in enumerate(chosen)]
    return torch.tensor(each)


def _take(into: dict[int, Tensor], layer: int, pattern: Tensor) -> None:
    into[layer] = pattern.float().cpu()


def _attend(kernel: str) -> Callable[..., Any]:
    """An attention function of transformers that runs another one, and serves those who watch."""

    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> Any:
        eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        inner = ALL_ATTENTION_FUNCTIONS.get_interface(kernel, eager)
        out, weights = inner(module, query, key, value, attention_mask, **kwargs)
        for watch, last in _watches.get(id(module), []):
            rows = slice(-1, None) if last else slice(None)
            if weights is None or last or kwargs.get("dropout"):
                mask = _additive(attention_mask, query, key)[..., rows, :]
                pattern = eager(module, query[:, :, rows], key, value, mask, **{**kwargs, "dropout": 0.0})[1]
            else:
                pattern = weights
            edited = watch(pattern)
            if edited is not None and edited.shape != pattern.shape:
                raise UsageError(f"an edit of a pattern must keep its shape {list(pattern.shape)}; it gave {list(edited.shape)}")
            if edited is not None:
                weights = edited
                groups = edited.shape[1] // value.shape[1]
                out = (edited @ value.repeat_interleave(groups, 1)).transpose(1, 2).contiguous()
        return out, weights

    return attend


def _additive(mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor:
    """The mask as the eager formula wants it. None: causal, as a fused kernel takes it."""
    if mask is None:
        queries, keys = query.shape[2], key.shape[2]
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)[None, None]
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill(~mask, torch.finfo(query.dtype).min)


for _kernel in _KERNELS:
    AttentionInterface.register(f"nullius_{_kernel}", _attend(_kernel))
    AttentionMaskInterface.register(f"nullius_{_kernel}", AttentionMaskInterface()[_kernel])
