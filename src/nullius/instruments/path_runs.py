"""The runs behind path patching: senders of a layer as rows of one batch, held components at their values of the base run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nullius.errors import SubjectError, UsageError
from nullius.instruments import alike, indices, questions, resumable, resume, taps, wavefront
from nullius.instruments.heads import Head
from nullius.instruments.patching import Metric, check_lengths
from nullius.models import hooks
from nullius.models.dataflow import first_input, first_output
from nullius.models.language_model import Batch, LanguageModel

At = int | Sequence[int] | None  # a position, one for each text, or None for all positions


@dataclass(frozen=True, order=True)
class Mlp:
    """A layer's feed-forward block."""

    layer: int

    def __str__(self) -> str:
        return f"mlp {self.layer}"


Sender = Head | Mlp


@dataclass(frozen=True)
class Receiver:
    """What reads: the query of a head, or the key or value of a key-value head, at a position (of each text, or None for all of them)."""

    site: Literal["q", "k", "v"]
    layer: int
    head: int
    at: int | tuple[int, ...] | None = -1

    def __str__(self) -> str:
        return f"{self.site} {self.layer}.{self.head}"


def positions(at: At, n: int, length: int) -> Tensor | None:
    """Return a position for each of n texts [n], counted from 0, or None for all positions. Raises UsageError for one outside the text."""
    if at is None:
        return None
    given = indices.columns(at).cpu()
    given = given.expand(n) if given.ndim == 0 else given
    if given.shape != (n,):
        raise UsageError(f"{len(given)} positions for {n} pairs: give one for all, or one for each pair")
    if bool(((given < -length) | (given >= length)).any()):
        outside = next(int(i) for i in given if not -length <= i < length)
        raise UsageError(f"position {outside} does not exist: the texts have {length} tokens, 0 to {length - 1}")
    return given % length


def check(model: LanguageModel, base: Batch, source: Batch, senders: Sequence[Sender], receivers: Sequence[Receiver]) -> None:
    """Raise UsageError for pairs of unequal length and for components that the model does not have."""
    check_lengths(model, base, source)
    anatomy = model.anatomy
    if isinstance(senders, (Head, Mlp)) or not senders:
        raise UsageError("no sender in a list: give at least one head or feed-forward block")
    for sender in senders:
        check_sender(model, sender)
    for receiver in receivers:
        if receiver.site not in ("q", "k", "v"):
            raise UsageError(f"receiver {receiver} is no query, key or value of a head: `site_paths` patches paths into any site")
        if receiver.layer < 0:
            raise UsageError(f"receiver {receiver} does not exist: {model.name} has layers 0 to {anatomy.n_layers - 1}")
        heads = anatomy.site(receiver.site, receiver.layer).heads
        if not 0 <= receiver.head < heads:
            raise UsageError(f"receiver {receiver} does not exist: {model.name} has {receiver.site} of heads 0 to {heads - 1}")


def check_sender(model: LanguageModel, sender: Sender, what: str = "sender") -> None:
    """Raise UsageError for a head or feed-forward block that the model does not have."""
    anatomy = model.anatomy
    if not isinstance(sender, (Head, Mlp)):
        raise UsageError(f"{what} {sender} is no Head(layer, head) and no Mlp(layer): `site_paths` patches paths from any site")
    if not 0 <= sender.layer < anatomy.n_layers:
        raise UsageError(f"{what} {sender} does not exist: {model.name} has layers 0 to {anatomy.n_layers - 1}")
    if isinstance(sender, Head) and not 0 <= sender.head < anatomy.n_heads:
        raise UsageError(f"{what} {sender} does not exist: {model.name} has heads 0 to {anatomy.n_heads - 1} in each layer")


def cut(receivers: Sequence[Receiver], rows: slice, n: int) -> list[Receiver]:
    """Return the receivers for some of n texts."""
    for receiver in receivers:
        if isinstance(receiver.at, tuple) and len(receiver.at) != n:
            raise UsageError(f"receiver {receiver} has {len(receiver.at)} positions for {n} pairs")
    return [replace(r, at=r.at[rows]) if isinstance(r.at, tuple) else r for r in receivers]


@dataclass(frozen=True)
class Readout:
    """The metric of the answers' scores. answers: token ids [n, k]."""

    model: LanguageModel
    answers: Tensor
    metric: Metric
    scores: Literal["logits", "log_probs"]

    def __call__(self, last: Tensor) -> Tensor:
        """Metric [copies, n] from the final norm's output [copies, n, d_model]; for logits only the answers' vocabulary rows are used."""
        anatomy = self.model.anatomy
        logits = anatomy.logits(last, self.answers) if self.scores == "logits" else self._chosen(anatomy.logits(last))
        return torch.stack([self.measured(copy) for copy in logits])

    def measured(self, scores: Tensor) -> Tensor:
        """The metric [n] of the answers' scores [n, k]. Raises UsageError for one that does not give one number a row."""
        found = self.metric(scores)
        if found.shape != scores.shape[:1]:
            raise UsageError(f"a metric gives one number a row: from scores {list(scores.shape)} to [rows]; this gave {list(found.shape)}")
        return found

    def plain(self, batch: Batch) -> Tensor:
        """Metric [n] as the model itself makes its logits."""
        return self.measured(self.of(self.model.logits(batch).float()))

    def of(self, logits: Tensor) -> Tensor:
        """The answers' scores [n, k] among logits [n, V]."""
        return logits.gather(1, self.answers) if self.scores == "logits" else self._chosen(logits[None])[0]

    def _chosen(self, logits: Tensor) -> Tensor:
        return logits.log_softmax(-1).gather(-1, self.answers.expand(len(logits), *self.answers.shape))


def _pick(x: Tensor, where: Tensor) -> Tensor:
    """Take x [n, T, ...] at positions [n, P]: [n, P, ...]."""
    return x[torch.arange(len(x), device=x.device)[:, None], where]


def _times(x: Tensor, copies: int) -> Tensor:
    """Repeat rows [n, ...] to [copies · n, ...], copy by copy."""
    return x.repeat(copies, *[1] * (x.ndim - 1))


def _stacked(site: str, kept: dict[int, Tensor]) -> Tensor:
    if len({value.shape for value in kept.values()}) > 1:
        raise SubjectError(f"the layers of this model differ in the width of {site}: path patching wants one width")
    return torch.stack([kept[layer] for layer in sorted(kept)])


class Run:
    """Everything that pairs of texts need for path patching. at, source_at: [n] or None, see `paths.patch`. held: layers of held blocks."""

    @torch.no_grad()
    def __init__(
        self,
        model: LanguageModel,
        base: Batch,
        source: Batch,
        receivers: Sequence[Receiver],
        at: Tensor | None,
        source_at: Tensor | None,
        free: set[Head],
        held: set[int],
    ) -> None:
        self.model, self.text, self.receivers, self.held = model, base, list(receivers), held
        anatomy, device = model.anatomy, base.input_ids.device
        self.n, self.length = base.input_ids.shape
        every = torch.arange(self.length).expand(self.n, -1)
        asked = [positions(receiver.at, self.n, self.length) for receiver in self.receivers]
        self.to = [(every if one is None else one[:, None]).to(device) for one in asked]  # of each receiver [n, P]
        # the positions at which the first run is needed when nothing moves between positions
        last = every[:, -1:]
        columns = (
            [last]
            if not receivers
            else [every]
            if any(one is None for one in asked)
            else [one[:, None] for one in asked if one is not None]
        )
        self.where = torch.unique(torch.cat(columns, 1), dim=1).to(device)
        self.sent = (torch.ones_like(every, dtype=torch.bool) if at is None else every == at[:, None]).to(device)  # [n, T]
        self.local = not free
        if self.local and not bool(_pick(self.sent, self.where).any()):
            what = f"no {'receiver' if receivers else 'logit'} is read there"
            raise UsageError(f"no path is left: with all heads held, what a sender writes stays at its position, and {what}")
        self.holding = torch.tensor(
            [[Head(layer, head) not in free for head in range(anatomy.n_heads)] for layer in range(anatomy.n_layers)], device=device
        )
        resumable.check(model)
        self.attn: dict[int, Any] = {}
        self.mlp: dict[int, Any] = {}
        self.z: dict[int, Tensor] = {}
        self.mlp_out: dict[int, Tensor] = {}
        self.received: dict[int, Tensor] = {}
        # what all texts begin with is run once where nothing is read there
        once = self.local and not receivers and bool(alike.beginning(base)) and questions.runs_from_middle(model)
        with ExitStack() as stack:
            for layer in range(anatomy.n_layers):
                for module, kept in ((anatomy.attn(layer), self.attn), (anatomy.mlp(layer), self.mlp)):
                    stack.callback(module.register_forward_hook(partial(self._keep_local, kept, layer)).remove)
                for site, into in (("z", self.z), ("mlp_out", self.mlp_out)) if not once else ():
                    stack.callback(hooks.on_read(anatomy, anatomy.site(site, layer), partial(into.__setitem__, layer)).remove)
            for i, receiver in enumerate(self.receivers):
                stack.callback(hooks.on_read(anatomy, anatomy.site(receiver.site, receiver.layer), partial(self._keep_received, i)).remove)
            self.base = alike.run_base(model, base, ("z", "mlp_out")) if once else wavefront.run_base(model, base)
        if once:
            self.z, self.mlp_out = (dict(enumerate(self.base.sites[site])) for site in ("z", "mlp_out"))
        own = {site: _stacked(site, kept) for site, kept in (("z", self.z), ("mlp_out", self.mlp_out))}
        differs = (base.input_ids != source.input_ids).any(0)  # from the first such position on the source is run
        first = int(differs.int().argmax()) if bool(differs.any()) else self.length
        there, _, self.source_last = wavefront.run_source(model, replace(self.base, sites=own), source.input_ids, first, list(own))
        if at is not None:  # the sender's source value, at every position; `sent` says where it is used
            taken = (source_at if source_at is not None else at).to(device)[:, None].expand(-1, self.length)
            there = {site: torch.stack([_pick(layer, taken) for layer in value]) for site, value in there.items()}
        elif source_at is not None:
            raise UsageError("source_at goes with a sender at one position; this one is patched at all of them")
        self.there = there

    def _keep_local(self, into: dict[int, Any], layer: int, _module: nn.Module, _args: Any, output: Any) -> None:
        out = first_output(output)
        if len(out) < self.n:  # the beginning of all texts
            return
        kept = _pick(out, self.where - (self.length - out.shape[1]))
        into[layer] = (kept, *[None] * (len(output) - 1)) if isinstance(output, tuple) else kept

    def _keep_received(self, i: int, value: Tensor) -> None:
        self.received[i] = _pick(value[:, :, self.receivers[i].head], self.to[i])

    def values(self, senders: Sequence[Sender], readout: Readout, unpatched: Tensor, max_rows: int) -> Tensor:
        """The metric with each sender patched [senders, n]; unpatched: that of the base run [n], which is also a sender's that no path leaves."""
        out = unpatched.expand(len(senders), -1).clone()
        size = max(1, max_rows // self.n)
        for layer in sorted({sender.layer for sender in senders}):
            if self.receivers and layer >= max(receiver.layer for receiver in self.receivers):
                continue
            for kind in (Head, Mlp):
                here = [i for i, sender in enumerate(senders) if sender.layer == layer and isinstance(sender, kind)]
                for some in (here[i : i + size] for i in range(0, len(here), size)):
                    out[some] = readout(self._last(layer, [senders[i] for i in some]))
        return out

    def _last(self, layer: int, senders: Sequence[Sender]) -> Tensor:
        """Output of the final norm at the last position [senders, n, d_model], for senders of one layer and one kind."""
        arrived = [_times(self.received[i], len(senders)) for i in range(len(self.receivers))]
        first = self._local if self.local else self._general
        last = first(layer, senders, arrived)
        if not self.receivers:
            return last
        return self._second(arrived, len(senders))

    # the first run, all heads held: no attention, only the positions where something is read

    def _local(self, layer: int, senders: Sequence[Sender], arrived: list[Tensor]) -> Tensor:
        model, anatomy, copies = self.model, self.model.anatomy, len(senders)
        rows = _times(_pick(self.base.stream[layer], self.where), copies)
        top = max((receiver.layer for receiver in self.receivers), default=anatomy.n_layers - 1)
        with ExitStack() as stack:
            stack.enter_context(resume.from_layer(model, layer, rows))
            if layer == 0:
                for handle in hooks.on_write(anatomy, anatomy.site("resid_pre", 0), lambda _: rows):  # more rows than came
                    stack.callback(handle.remove)
            for above in range(layer, anatomy.n_layers):
                if above > top:
                    stack.enter_context(resume.skipped(model, [above]))
                    continue
                add = self._written(layer, senders) if above == layer and isinstance(senders[0], Head) else None
                stack.enter_context(_calling(anatomy.attn(above), partial(self._held_attention, above, copies, add, arrived)))
                if above in self.held:
                    kept = partial(_kept, self.mlp[above], copies, None)
                    if anatomy.adds_stream(above):
                        own, there = (_pick(side[above], self.where) for side in (self.mlp_out, self.there["mlp_out"]))
                        sends = above == layer and isinstance(senders[0], Mlp)  # its own output is the module's, and not seen here
                        own = torch.where(_pick(self.sent, self.where)[..., None], there, own) if sends else own
                        kept = partial(_added, own, copies)
                    stack.enter_context(_calling(anatomy.mlp(above), kept))
            if isinstance(senders[0], Mlp):
                there, sent = _pick(self.there["mlp_out"][layer], self.where), _pick(self.sent, self.where)
                stack.enter_context(taps.edit(model, "mlp_out", layer, partial(_instead, _times(there, copies), _times(sent, copies))))
            width = self.where.shape[1]
            ids = self.base.ids[:1, :1].expand(1, width)
            positions = torch.arange(width, device=ids.device)[None]
            stack.enter_context(resume.rows_joining(model))
            out = anatomy.decoder(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
        return out[:, -1].unflatten(0, (copies, self.n))

    def _written(self, layer: int, senders: Sequence[Sender]) -> Tensor:
        """What each sending head writes more than in the base run [senders · n, P, d_model]."""
        change = _pick(self.there["z"][layer] - self.z[layer], self.where) * _pick(self.sent, self.where)[..., None, None]
        heads = [sender.head for sender in senders if isinstance(sender, Head)]
        return torch.einsum("npsd,sdm->snpm", change[:, :, heads], self.model.anatomy.o_weight(layer)[heads]).flatten(0, 1)

    def _held_attention(self, layer: int, copies: int, add: Tensor | None, arrived: list[Tensor], *args: Any, **kwargs: Any) -> Any:
        """An attention whose heads are held: its output is that of the base run, and what it would read is taken down for the receivers."""
        anatomy = self.model.anatomy
        x = first_input(args, kwargs)
        if add is None:  # the sender's own layer reads nothing new
            for i, receiver in enumerate(self.receivers):
                if receiver.layer == layer:
                    site = anatomy.site(receiver.site, layer)
                    value = anatomy.split_heads(site, first_output(site.module(x)))[:, :, receiver.head]
                    column = (_times(self.where, copies)[:, None, :] == _times(self.to[i], copies)[:, :, None]).int().argmax(-1)
                    arrived[i] = _pick(value, column)
        return _kept(self.attn[layer], copies, add)

    # the first run where some heads are free: over the suffix from the first position that a sender is patched at

    def _general(self, layer: int, senders: Sequence[Sender], arrived: list[Tensor]) -> Tensor:
        model, anatomy, copies = self.model, self.model.anatomy, len(senders)
        start = int(self.sent.any(0).int().argmax())
        sent = self.sent[:, start:]
        with ExitStack() as stack:
            for above in range(layer + 1, anatomy.n_layers):
                kept, holding = self.z[above][:, start:], self.holding[above][:, None]
                stack.enter_context(taps.edit(model, "z", above, partial(_hold, kept, holding, copies)))
            for above in sorted(self.held):
                if above >= layer:
                    kept = self.mlp_out[above][:, start:]
                    stack.enter_context(taps.edit(model, "mlp_out", above, partial(_hold, kept, None, copies)))
            for i, receiver in enumerate(self.receivers):
                if receiver.layer > layer:
                    take = partial(self._take, arrived, i, start, copies)
                    stack.callback(hooks.on_read(anatomy, anatomy.site(receiver.site, receiver.layer), take).remove)

            def write(_layer: int, x: Tensor) -> None:
                for row, sender in zip(x.unflatten(0, (copies, self.n)), senders, strict=True):
                    if isinstance(sender, Head):
                        row[:, :, sender.head][sent] = self.there["z"][layer][:, start:, sender.head][sent]
                    else:
                        row[sent] = self.there["mlp_out"][layer][:, start:][sent]

            site = "z" if isinstance(senders[0], Head) else "mlp_out"
            return wavefront.wave(model, self.base, start, [layer], copies, site, write)[0]

    def _take(self, arrived: list[Tensor], i: int, start: int, copies: int, value: Tensor) -> None:
        to = _times(self.to[i], copies)
        new = _pick(value[:, :, self.receivers[i].head], (to - start).clamp(min=0))
        arrived[i] = torch.where((to >= start)[..., None], new, arrived[i])

    # the second run: everything is free but what the receivers read

    def _second(self, arrived: list[Tensor], copies: int) -> Tensor:
        start = min(int(to.min()) for to in self.to)
        lowest = min(receiver.layer for receiver in self.receivers)
        with self._pasted(arrived, copies, start):
            return wavefront.wave(self.model, self.base, start, [lowest], copies, "resid_pre", lambda _layer, _x: None)[0]

    @contextmanager
    def _pasted(self, arrived: list[Tensor], copies: int, start: int) -> Iterator[None]:
        with ExitStack() as stack:
            for receiver, to, value in zip(self.receivers, self.to, arrived, strict=True):
                edit = partial(_paste, value, _times(to, copies) - start, receiver.head)
                stack.enter_context(taps.edit(self.model, receiver.site, receiver.layer, edit))
            yield

    def plain(self, sender: Sender, readout: Readout) -> Tensor:
        """One sender as anyone would run it: whole texts, all layers, hooks that hold and paste [n]."""
        model = self.model
        arrived = [self.received[i] for i in range(len(self.receivers))]
        with ExitStack() as stack:
            for layer in range(model.anatomy.n_layers):
                stack.enter_context(taps.edit(model, "z", layer, partial(_hold, self.z[layer], self.holding[layer][:, None], 1)))
                if layer in self.held:
                    stack.enter_context(taps.edit(model, "mlp_out", layer, partial(_hold, self.mlp_out[layer], None, 1)))
            if isinstance(sender, Head):
                there, sent = self.there["z"][sender.layer], torch.zeros_like(self.there["z"][sender.layer][..., 0], dtype=torch.bool)
                sent[:, :, sender.head] = self.sent
                stack.enter_context(taps.edit(model, "z", sender.layer, partial(_instead, there, sent)))
            else:
                stack.enter_context(
                    taps.edit(model, "mlp_out", sender.layer, partial(_instead, self.there["mlp_out"][sender.layer], self.sent))
                )
            for i, receiver in enumerate(self.receivers):
                take = partial(self._take, arrived, i, 0, 1)
                stack.callback(hooks.on_read(model.anatomy, model.anatomy.site(receiver.site, receiver.layer), take).remove)
            first = readout.plain(self.text)
        if not self.receivers:
            return first
        with self._pasted(arrived, 1, 0):
            return readout.plain(self.text)


@contextmanager
def _calling(module: nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    """While open, a module computes something else."""
    module.forward = function
    try:
        yield
    finally:
        del module.forward  # uncovers the method of its class


def _kept(output: Any, copies: int, add: Tensor | None, *_args: Any, **_kwargs: Any) -> Any:
    """What a module returned in the base run, for every copy, with something added to it."""
    value = _times(first_output(output), copies)
    value = value if add is None else value + add
    return (value, *output[1:]) if isinstance(output, tuple) else value


def _added(kept: Tensor, copies: int, _x: Tensor, stream: Tensor) -> Tensor:
    """What a block that is given the stream too returns, with its own part held."""
    return stream + _times(kept, copies)


def _hold(kept: Tensor, which: Tensor | None, copies: int, value: Tensor) -> Tensor:
    old = _times(kept, copies)
    return old if which is None else torch.where(which, old, value)


def _instead(there: Tensor, sent: Tensor, value: Tensor) -> Tensor:
    return torch.where(sent[..., None], there, value)


def _paste(value: Tensor, to: Tensor, head: int, whole: Tensor) -> Tensor:
    whole = whole.clone()
    whole[torch.arange(len(whole), device=whole.device)[:, None], to, head] = value
    return whole
