"""The wavefront: all layers of a patching sweep in one forward pass over the suffix.

A sweep asks what the model would say if, in a run on one text (the base), one activation were that of another run (the source). Run cell by
cell, a sweep over L layers and T positions is L·T forward passes. Most of that work is the same each time, and mathematics lets us skip it:

- positions before the patched one are those of the base run (attention is causal): their keys and values are kept and read as a prefix;
- layers below the patched one are those of the base run: a cell's rows *join* the batch at the patched layer, as the base run's residual
  stream with the patch in it, and from there on travel up together with all rows that joined below;
- positions other than the last are not carried beyond the last layer's attention;
- vocabulary rows that nobody reads are never made.

So one pass over the suffix from position t carries the cells of all layers at t (`travel`); and one climb through the layers carries those of all
positions (`climb`), so that each layer's weights are fetched once. Both run the untouched transformers model.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import lcm
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from nullius.instruments import onednn, resume, suffix_attention, taps, tensor_cores, usual_layers
from nullius.models import hooks, some_logits
from nullius.models.anatomy import Anatomy
from nullius.models.dataflow import first_input, first_output, with_input
from nullius.models.language_model import Batch, LanguageModel

FromTheMiddle = Callable[[Tensor], Tensor]  # a layer's end from the stream behind its attention [.., d_model]
Write = Callable[[int, Tensor], None]  # (layer, the site's tensor for the rows that have just joined, to be changed in place)


@dataclass(frozen=True)
class Base:
    """The run into which is patched. ids: [n, T], no padding; stream: resid_pre of every layer [layers, n, T, d_model]; keys, values by layer.

    last: output of the final norm at the last position [n, d_model]. end: resid_post of the last layer [n, T, d_model]. logits: as the model
    itself makes them, at the last position [n, V], or those that were asked for [n, k]. sites: what else was asked for, by name [layers, n, T, ...].
    """

    ids: Tensor
    stream: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    last: Tensor
    end: Tensor
    logits: Tensor
    sites: Mapping[str, Tensor] = field(default_factory=dict)

    def pairs(self, rows: slice) -> Base:
        """Return the same for some of the texts."""
        keys, values = (tuple(part[rows] for part in side) for side in (self.keys, self.values))
        return Base(self.ids[rows], self.stream[:, rows], keys, values, self.last[rows], self.end[rows], self.logits[rows])

    def below(self, layer: int) -> Tensor:
        """The residual stream at a layer's input [n, T, d_model]; layer n_layers: what leaves the last one."""
        return self.end if layer == len(self.stream) else self.stream[layer]


@torch.no_grad()
def run_base(model: LanguageModel, batch: Batch, sites: Sequence[str] = (), answers: Tensor | None = None) -> Base:
    """Run the base texts once and keep what every cell needs. answers: tokens [n, k] whose logits are wanted (None: those of all tokens).

    Raises SubjectError for a model that cannot be run from the middle of a text.
    """
    from nullius.instruments import resumable  # which tries it by what is below

    resumable.check(model)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "position_ids": batch.position_ids}
    cache: Any = None

    def run() -> Tensor:
        nonlocal cache
        cache = DynamicCache()
        return model.hf(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]

    logits, end, last, kept = run_keeping(
        model, sites, run if answers is None else lambda: some_logits.of(model.anatomy.unembed, answers, run)
    )
    stream = kept.pop("resid_pre")
    keys, values = tuple(layer.keys for layer in cache.layers), tuple(layer.values for layer in cache.layers)
    return Base(batch.input_ids, stream, keys, values, last, end, logits.float(), kept)


def run_keeping(model: LanguageModel, sites: Sequence[str], run: Callable[[], Tensor]) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Run, and return what `run` does, the final norm's input, its output at the last position, and every layer's resid_pre and `sites` by name."""
    ends: list[tuple[Tensor, Tensor]] = []
    with _keeping(model, ("resid_pre", *sites)) as kept, ExitStack() as stack:
        at_the_end = model.anatomy.final_norm.register_forward_hook(lambda _module, args, output: ends.append((args[0], output[:, -1])))
        stack.callback(at_the_end.remove)
        logits = run()
    return logits, *ends[-1], kept


@torch.no_grad()
def run_source(model: LanguageModel, base: Base, ids: Tensor, first: int, sites: Sequence[str]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Run texts that are the base's before `first`, from there on; sites must be among those of the base run, or resid_pre.

    Returns the sites over whole texts [layers, n, T, ...], the input of the lowest layer over the suffix [n, T − first, d_model], and the final
    norm's output at the last position [n, d_model].
    """
    old = {site: base.stream if site == "resid_pre" else base.sites[site] for site in sites}
    if first == ids.shape[1]:  # the same texts
        return old, base.stream[0][:, first:], base.last
    bottom: list[Tensor] = []
    with _keeping(model, sites) as kept, ExitStack() as stack:
        stack.callback(hooks.on_read(model.anatomy, model.anatomy.site("resid_pre", 0), bottom.append).remove)
        last = run_suffix(model, base, ids, first)[:, -1]
    return {site: torch.cat([old[site][:, :, :first], kept[site]], 2) for site in sites}, bottom[0], last


@contextmanager
def _keeping(model: LanguageModel, sites: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """While open, keep some sites of every layer as the model runs: by name [layers, n, T, ...]."""
    kept: dict[str, Tensor] = {}
    layers = model.anatomy.n_layers

    def keep(site: str, layer: int, value: Tensor) -> None:
        if site not in kept:  # all layers in one piece: gathered one by one they would be there twice for a moment
            kept[site] = value.new_empty(layers, *value.shape)
        kept[site][layer] = value

    with ExitStack() as stack:
        for site in sites:
            for layer in range(layers):
                stack.callback(hooks.on_read(model.anatomy, model.anatomy.site(site, layer), partial(keep, site, layer)).remove)
        yield kept


class _Prefix(DynamicCache):
    """Keys and values of the base run before `start`, in front of those of whatever rows arrive; nothing is kept."""

    def __init__(self, base: Base, start: int) -> None:
        super().__init__()
        self.base, self.start = base, start

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.start

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.start == 0:
            return key_states, value_states
        whole = []
        for new, old in ((key_states, self.base.keys[layer_idx]), (value_states, self.base.values[layer_idx])):
            n, heads, _, width = old.shape
            both = new.new_empty(len(new), heads, self.start + new.shape[2], width)
            both.unflatten(0, (-1, n))[:, :, :, : self.start] = old[:, :, : self.start]
            both[:, :, self.start :] = new
            whole.append(both)
        return whole[0], whole[1]


@dataclass(frozen=True)
class Joining:
    """Rows that join: the residual stream at the input of `layer` over the suffix from `start` [copies · n, T − start, d_model], copy by copy.

    Layer n_layers is the final norm, of which the last position is enough.
    """

    start: int
    layer: int
    rows: Tensor


@torch.no_grad()
def climb(
    model: LanguageModel,
    base: Base,
    rows: Mapping[int, int],
    lowest: int,
    cells: Callable[[int, FromTheMiddle | None], Iterable[Joining]],
    tokens: int,
) -> dict[int, Tensor]:
    """Send patched rows up through the model, all of them layer by layer; return, by start, the final norm's output at the last position [rows, d].

    rows: how many there will be, by start. cells(layer, from_the_middle), asked from the lowest layer up: what is patched there, and joins at that
    layer's input or at the next one's; it may be given the layer from its middle on (None: as it is in the model). Rows of a start come back in the
    order in which they joined. tokens: positions that a layer is given at once; what comes between two layers is kept for all.
    """
    anatomy, length = model.anatomy, base.ids.shape[1]
    top = anatomy.n_layers - 1
    calls = {start: _calls(model, base, start) for start in rows}
    sizes = [count * (length - start) for start, count in rows.items()]
    places = base.stream.new_empty(sum(sizes), anatomy.d_model).split(sizes)
    stream = {start: place.view(count, length - start, -1) for place, (start, count) in zip(places, rows.items(), strict=True)}
    joined = dict.fromkeys(rows, 0)
    ends: dict[int, list[Tensor]] = {start: [] for start in rows}

    def join(new: Joining) -> None:
        before, joined[new.start] = joined[new.start], joined[new.start] + len(new.rows)
        stream[new.start][before : joined[new.start]] = new.rows

    with suffix_attention.in_products(model):
        for layer in range(lowest, anatomy.n_layers):
            with tensor_cores.maps(anatomy.layers[layer]):
                usual = _usual(base, layer, calls, anatomy)
                above = []  # what joins at the next layer's input
                for new in cells(layer, None if usual is None else usual.from_the_middle):
                    if new.layer == layer:
                        join(new)
                    else:
                        above.append(new)
                here = {start: stream[start][:count] for start, count in joined.items() if count}
                found = (
                    _run_apart(base, layer, here, calls, anatomy, tokens)
                    if usual is None
                    else _run_together(usual, base, layer, here, calls)
                )
                for start, end in found.items():
                    ends[start].append(end)
                for new in above:
                    if layer == top:
                        ends[new.start].append(new.rows[:, -1])
                    else:
                        join(new)
    return {start: anatomy.final_norm(torch.cat(parts)[:, None])[:, 0] for start, parts in ends.items()}


Calls = Mapping[int, Sequence[tuple[Any, Any]]]  # by start: what each layer is called with, behind the stream


def _usual(base: Base, layer: int, calls: Calls, anatomy: Anatomy) -> usual_layers.Layer | None:
    """A layer's weights, where it can take the rows of all suffixes together; tried, where it is not known, on the shortest suffix of the base."""
    start = max(calls)
    args, kwargs = calls[start][layer]
    some, prefix = base.stream[layer][:, start:], (base.keys[layer], base.values[layer])
    if args or not usual_layers.usual(anatomy.layers[layer], kwargs, some, prefix):
        return None
    return usual_layers.Layer(anatomy.layers[layer])


def _run_together(usual: usual_layers.Layer, base: Base, layer: int, here: Mapping[int, Tensor], calls: Calls) -> dict[int, Tensor]:
    """Run the rows of all suffixes through a layer of the usual kind, in place; of the last layer return what leaves it at the last position."""
    prefix = base.keys[layer], base.values[layer]
    suffixes = [usual_layers.together(rows, calls[start][layer][1], prefix) for start, rows in here.items()]
    if layer == len(base.stream) - 1:
        return dict(zip(here, usual.ends(suffixes), strict=True)) if suffixes else {}
    usual.run(suffixes)
    return {}


def _run_apart(base: Base, layer: int, here: Mapping[int, Tensor], calls: Calls, anatomy: Anatomy, tokens: int) -> dict[int, Tensor]:
    """The same with any layer, as it is: some rows of one suffix at a time."""
    n, block, is_top = len(base.ids), anatomy.layers[layer], layer == anatomy.n_layers - 1
    ends: dict[int, Tensor] = {}
    with onednn.maps(block), ExitStack() as stack:
        for module in _behind_the_attention(anatomy) if is_top else ():
            stack.callback(module.register_forward_pre_hook(_last_only, with_kwargs=True).remove)
        for start, rows in here.items():
            args, kwargs = calls[start][layer]
            most = tokens // rows.shape[1]
            unit = lcm(n, 8) if lcm(n, 8) <= most else n  # whole copies, and if it can be a number of tokens that `onednn` takes
            parts = rows.split(max(1, most // unit) * unit)
            outs = (first_output(block(part, *args, **kwargs)) for part in parts)
            if is_top:
                ends[start] = torch.cat([out[:, -1] for out in outs])
            else:
                for part, out in zip(parts, outs, strict=True):
                    part.copy_(out)
    return ends


def _calls(model: LanguageModel, base: Base, start: int) -> list[tuple[Any, Any]]:
    """What the decoder calls each of its layers with, behind the stream, over the suffix from `start`: mask, rotary embedding, prefix."""
    found: list[tuple[Any, Any]] = []

    def note(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        found.append((args, kwargs))
        return model.anatomy.returned(len(found) - 1, hidden_states)

    try:
        for block in model.anatomy.layers:
            block.forward = note
        run_suffix(model, base, base.ids[:1], start)  # of one text: nothing is computed that has rows
    finally:
        for block in model.anatomy.layers:
            del block.forward  # uncovers the method of its class
    return found


def run_suffix(model: LanguageModel, base: Base, ids: Tensor, start: int) -> Tensor:
    """Run the decoder over texts that are the base's before `start`: ids [n, T] → output of the final norm [n, T − start, d_model]."""
    length = ids.shape[1]
    return model.anatomy.decoder(
        input_ids=ids[:, start:],
        attention_mask=suffix_mask(model, start, length),
        position_ids=torch.arange(start, length, device=ids.device)[None],
        past_key_values=_Prefix(base, start),
        use_cache=True,
    ).last_hidden_state


@torch.no_grad()
def travel(model: LanguageModel, base: Base, start: int, joining: Sequence[tuple[int, Tensor]]) -> Tensor:
    """Send patched rows up through the model, over the suffix from `start`; return the final norm's output at the last position [rows, d_model].

    joining: (layer, rows) by ascending layer: the residual stream at that layer's input [copies · n, T − start, d_model], copy by copy (layer
    n_layers: at the final norm). Rows come back in this order. Hooks of the caller see all rows that have joined, the newest last.
    """
    anatomy = model.anatomy
    above = [rows for layer, rows in joining if layer == anatomy.n_layers]
    out = []
    inside = [(layer, rows) for layer, rows in joining if layer < anatomy.n_layers]
    if inside:
        lowest, first = inside[0]
        with ExitStack() as stack:
            stack.enter_context(resume.from_layer(model, lowest, first[:1]))
            for i, (layer, rows) in enumerate(inside):
                stack.callback(anatomy.layers[layer].register_forward_pre_hook(_joining(rows, alone=i == 0), with_kwargs=True).remove)
            stack.enter_context(resume.rows_joining(model))
            out.append(run_suffix(model, base, base.ids[:1], start)[:, -1])  # one row, until rows join
    out += [anatomy.final_norm(rows[:, -1:])[:, -1] for rows in above]
    return torch.cat(out)


def _behind_the_attention(anatomy: Anatomy) -> list[nn.Module]:
    """The modules of the last layer at which all positions but the last can be dropped (the stream that they are added to keeps its shape)."""
    layer = anatomy.n_layers - 1
    norm = anatomy.mlp_norm(layer)
    feed_forward = anatomy.mlp(layer) if norm is None or norm is anatomy.attn_norm(layer) else norm
    return [anatomy.o_proj(layer), feed_forward]


def _last_only(_module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    return with_input(args, kwargs, first_input(args, kwargs)[:, -1:].contiguous())


@torch.no_grad()
def wave(model: LanguageModel, base: Base, start: int, layers: Sequence[int], copies: int, site: str, write: Write) -> Tensor:
    """Run all cells of some layers over the suffix from `start`; return the final norm's output at the last position [layers, copies, n, d].

    layers: ascending. copies: cells per layer (1, or the number of heads); each is a copy of the n base rows. When a layer's rows have
    joined, write(layer, x) changes the site there in place: x is [copies · n, T − start, ...], copy by copy.
    """
    n = len(base.ids)
    joining = []
    with ExitStack() as stack:
        for layer in layers:
            rows = base.stream[layer][:, start:].repeat(copies, 1, 1)
            if site == "resid_pre":
                write(layer, rows)
            else:
                stack.enter_context(taps.edit(model, site, layer, _newest(layer, copies * n, write)))
            joining.append((layer, rows))
        return travel(model, base, start, joining).view(len(layers), copies, n, -1)


def _joining(rows: Tensor, alone: bool) -> Callable[..., Any]:
    """A hook before a layer: its rows join those that come from below (the first layer's replace the stand-in that was fed)."""

    def join(_module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        below = first_input(args, kwargs)
        return with_input(args, kwargs, rows if alone else torch.cat([below, rows]))

    return join


def _newest(layer: int, joined: int, write: Write) -> Callable[[Tensor], Tensor]:
    """An edit of the rows that have just joined, in place: the tensor was made in this pass, and a copy of all rows would cost more than the
    edit."""

    def edit(value: Tensor) -> Tensor:
        write(layer, value[-joined:])
        return value

    return edit


def suffix_mask(model: LanguageModel, start: int, length: int) -> Any:
    """Additive causal mask [1, 1, T − start, T]; where layers look back over a window only, one mask for each kind of layer."""
    config = model.hf.config.get_text_config()
    query = torch.arange(start, length, device=model.device)[:, None]
    key = torch.arange(length, device=model.device)[None, :]

    def additive(allowed: Tensor) -> Tensor:
        lowest = torch.finfo(model.dtype).min
        return torch.zeros(allowed.shape, dtype=model.dtype, device=model.device).masked_fill(~allowed, lowest)[None, None]

    causal = key <= query
    kinds = set(getattr(config, "layer_types", None) or [])
    window = getattr(config, "sliding_window", None)
    if not kinds and window and hasattr(sys.modules[type(model.anatomy.decoder).__module__], "create_sliding_window_causal_mask"):
        return additive(causal & (query - key < window))  # every layer looks back so far (Mistral, Phi 3)
    if "sliding_attention" not in kinds or not window:
        return additive(causal)
    masks = {"full_attention": additive(causal), "sliding_attention": additive(causal & (query - key < window))}
    return {kind: masks[kind] for kind in kinds}
