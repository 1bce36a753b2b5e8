"""A store of activations on disk, for data sets larger than memory: safetensors shards and an index.

    found = record(model, texts, "activations/", ["resid_post"], layers=[10, 20])
    for shard in found.shards("resid_post", 10):
        shard.values, shard.text, shard.position  # [tokens, d_model], [tokens], [tokens]

Only what was asked for is kept (sites, layers, heads, positions), and no padding; no text is run beyond the last position that is wanted of it.
Every shard is written whole or not at all, so that a run that was killed goes on where it stopped: call `record` again with the same arguments.
Nothing below is larger in memory than two shards.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nullius.errors import NulliusError, UsageError
from nullius.instruments import indices
from nullius.models import hooks
from nullius.models.anatomy import Site
from nullius.models.language_model import Batch, LanguageModel

INDEX = "index.json"
Positions = Literal["all", "last"] | Sequence[int] | Sequence[Sequence[int]] | Tensor
Places = Mapping[tuple[str, int], Site]  # by site and layer


@dataclass(frozen=True)
class Shard:
    """Some tokens of a store. values: the site there [tokens, ...]; text: which text each token is of; position: where in it; token: its id."""

    values: Tensor
    text: Tensor
    position: Tensor
    token: Tensor


class Store:
    """Activations in a folder. sites: name → layers; heads: which, in this order, of sites that have heads (None: all); texts: their number;
    complete: whether every shard is there."""

    def __init__(self, folder: str | Path) -> None:
        """Open a store. Raises UsageError where there is none."""
        self.folder = Path(folder)
        try:
            found = json.loads((self.folder / INDEX).read_text("utf-8"))
            self.request: dict[str, Any] = found["request"]
            self.plan: list[list[list[int]]] = found["shards"]  # per shard its batches, each a list of text numbers
        except (OSError, ValueError, KeyError, TypeError):
            raise UsageError(f"no activation store in {self.folder}: {INDEX} is missing or is not one") from None
        self.texts: int = self.request["n_texts"]
        self.heads: list[int] | None = self.request.get("heads")
        self.sites: dict[str, list[int]] = dict.fromkeys(self.request["sites"], self.request["layers"])

    def path(self, shard: int) -> Path:
        """Return the file of a shard."""
        return self.folder / f"shard-{shard:05d}.safetensors"

    @property
    def complete(self) -> bool:
        return all(self.path(shard).exists() for shard in range(len(self.plan)))

    def shards(self, site: str, layer: int) -> Iterator[Shard]:
        """Go through a site of a layer, a shard at a time. Raises UsageError for what was not stored, and for a store that is not complete."""
        if site not in self.sites or layer not in self.sites[site]:
            there = "; ".join(f"{name} of layers {', '.join(map(str, layers))}" for name, layers in self.sites.items())
            raise UsageError(f"{site} of layer {layer} is not in {self.folder}, which holds {there}")
        missing = [shard for shard in range(len(self.plan)) if not self.path(shard).exists()]
        if missing:
            raise UsageError(f"{self.folder} lacks {len(missing)} of {len(self.plan)} shards: call record again to finish it")
        for shard in range(len(self.plan)):
            try:
                with safe_open(self.path(shard), "pt") as file:
                    yield Shard(*(file.get_tensor(name) for name in (f"{site}.{layer}", "text", "position", "token")))
            except (SafetensorError, OSError) as error:
                raise NulliusError(f"cannot read {self.path(shard)} ({error}): delete it and call record again") from None

    def read(self, site: str, layer: int) -> Shard:
        """All tokens of a site of a layer, in memory, in the order of the texts."""
        parts = list(self.shards(site, layer))
        whole = Shard(*(torch.cat([getattr(part, name) for part in parts]) for name in ("values", "text", "position", "token")))
        order = torch.argsort(whole.text * (int(whole.position.max()) + 1) + whole.position)
        return Shard(whole.values[order], whole.text[order], whole.position[order], whole.token[order])


@torch.no_grad()
def record(
    model: LanguageModel,
    texts: Sequence[str] | Sequence[Sequence[int]],
    folder: str | Path,
    sites: Sequence[str],
    layers: Sequence[int] | None = None,
    *,
    positions: Positions = "all",
    heads: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    batch_tokens: int = 1024,
    shard_bytes: int = 2**28,
) -> Store:
    """Run the decoder over texts (or rows of token ids, taken as they are) and write sites of some layers (None: all) to a folder.

    positions: every token, the last of each text, positions that all texts have ([0, 3, -1]), or a list of positions for each text; counted from a
    text's own first token (its leading token included), from the end where they are negative. heads: keep these only, of sites that have heads.
    dtype: to store in (None: the model's own). batch_tokens: padding included, in one pass. A folder with the same request is finished, not begun
    anew. Raises UsageError for an unknown site, layer, head or token id, a position that a text does not have, for `pattern` (its size grows with
    the text), for no texts, and for a folder that holds something else; SubjectError for compiled layers; NulliusError when the disk refuses.
    """
    if isinstance(texts, str):
        raise UsageError(f"one text stands in a list: ['{texts[:20]}'], not '{texts[:20]}'")
    if isinstance(texts, Batch):
        raise UsageError("texts, or rows of their token ids, are stored, not a batch that is padded already")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise UsageError(f"activations are stored in a type of floating point (torch.float16, say), not in {dtype}")
    if not hasattr(texts, "__len__"):  # a generator
        texts = list(texts)  # type: ignore[assignment]
    anatomy, sites = model.anatomy, [sites] if isinstance(sites, str) else list(sites)
    layers = list(range(anatomy.n_layers)) if layers is None else indices.listed("layers", layers)
    heads = None if heads is None else indices.listed("heads", heads)
    if "pattern" in sites:
        raise UsageError("a pattern has the size of its text: read it with taps.read, batch by batch")
    if not sites or not layers or not len(texts):
        raise UsageError("nothing to store: give at least one site, one layer and one text")
    layers = sorted({anatomy.site(site, layer).layer for site in sites for layer in layers})
    places = {(name, layer): anatomy.site(name, layer) for name in sites for layer in layers}  # in order, each once
    for site in places.values():
        hooks.not_compiled(anatomy, site)
    chosen = _chosen(model, places, heads)
    whole = _rows(model, texts)
    wanted = _wanted(whole, positions)
    rows = [row[: max(some) + 1] for row, some in zip(whole, wanted, strict=True)]  # what comes behind changes nothing before
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    cuts = _cut([len(rows[i]) for i in order], batch_tokens)
    dtype = dtype or model.dtype
    sizes = {place: site.width * (len(chosen[place]) if place in chosen else site.heads or 1) for place, site in places.items()}
    each = sum(sizes.values()) * dtype.itemsize
    plan: list[list[list[int]]] = [[]]
    held = 0
    for start, stop in pairwise(cuts):
        batch = order[start:stop]
        size = each * sum(len(wanted[i]) for i in batch)
        if plan[-1] and held + size > shard_bytes:
            plan.append([])
            held = 0
        plan[-1].append(batch)
        held += size
    request = {
        "subject": model.name,
        "weights": model.weights_sha256,
        "texts": hashlib.sha256(json.dumps(whole).encode()).hexdigest(),
        "n_texts": len(rows),
        "sites": sites,
        "layers": layers,
        "positions": positions if isinstance(positions, str) else hashlib.sha256(json.dumps(wanted).encode()).hexdigest(),
        "heads": heads,
        "dtype": str(dtype).removeprefix("torch."),
        "plan": hashlib.sha256(json.dumps(plan).encode()).hexdigest(),
    }
    store = _begin(Path(folder), request, plan)
    waiting: Future[None] | None = None
    with ThreadPoolExecutor(1) as writer:  # a shard is written while the next one is computed
        for shard, batches in enumerate(plan):
            if store.path(shard).exists():
                continue
            tensors = _run(model, rows, wanted, batches, places, chosen, dtype, sizes)
            if waiting is not None:
                waiting.result()
            waiting = writer.submit(_write, store.path(shard), tensors)
        if waiting is not None:
            waiting.result()
    return store


def _rows(model: LanguageModel, texts: Sequence[str] | Sequence[Sequence[int]]) -> list[list[int]]:
    """Token ids of each text, with the subject's leading token, as `LanguageModel.encode` makes them."""
    rows: list[list[int]] = []
    size = len(model.anatomy.unembedding())
    for text in texts:
        if isinstance(text, str):
            ids, lead = model.tokens(text), [model.bos_id] if model.bos_id is not None else []
            rows.append(ids if lead and ids[:1] == lead else lead + ids)
        else:
            rows.append(indices.listed("token ids", text))
        if not rows[-1]:
            raise UsageError(f"text {len(rows) - 1} has no token")
        wrong = min(rows[-1]) if min(rows[-1]) < 0 else max(rows[-1])
        if not 0 <= wrong < size:
            raise UsageError(f"{wrong} in text {len(rows) - 1} is no token of {model.name}: its vocabulary has ids 0 to {size - 1}")
    return rows


def _cut(lengths: list[int], batch_tokens: int) -> list[int]:
    """Where batches begin, of texts by falling length, so that none has more tokens (padding included) than it may; at least one text each."""
    cuts = [0]
    while cuts[-1] < len(lengths):
        cuts.append(min(len(lengths), cuts[-1] + max(1, batch_tokens // lengths[cuts[-1]])))
    return cuts


def _wanted(rows: list[list[int]], positions: Positions) -> list[Sequence[int]]:
    """The positions to keep of each text, counted from its first token, each once and in order."""
    if isinstance(positions, str):
        if positions not in ("all", "last"):
            raise UsageError(f"no positions '{positions}': give numbers, or last or all")
        return [range(0 if positions == "all" else len(row) - 1, len(row)) for row in rows]
    given: list[list[int]] = []
    try:
        if all(np.ndim(p) == 0 for p in positions):
            given = [indices.listed("positions", positions)] * len(rows)
        else:
            given = [indices.listed("positions", some) for some in positions]
    except (TypeError, UsageError):
        given = []
    if len(given) != len(rows) or not all(given):
        raise UsageError(f"positions must be numbers for all texts, or a list of them, not empty, for each of the {len(rows)} texts")
    out: list[Sequence[int]] = []
    for i, (row, some) in enumerate(zip(rows, given, strict=True)):
        wrong = next((p for p in some if not -len(row) <= p < len(row)), None)
        if wrong is not None:
            raise UsageError(f"position {wrong} does not exist in text {i}, which has positions 0 to {len(row) - 1}")
        out.append(sorted({p % len(row) for p in some}))
    return out


def _chosen(model: LanguageModel, places: Places, heads: Sequence[int] | None) -> dict[tuple[str, int], Tensor]:
    """The heads to keep of each place that has heads; nothing where all are wanted."""
    if heads is None:
        return {}
    if not len(heads):
        raise UsageError("no head to store: give at least one, or leave `heads` out for all")
    with_heads = {place: site.heads for place, site in places.items() if site.heads}
    if not with_heads:
        raise UsageError(f"heads are chosen, and {', '.join(sorted({name for name, _ in places}))} has none")
    for (name, _), there in with_heads.items():
        wrong = next((head for head in heads if not 0 <= head < there), None)
        if wrong is not None:
            raise UsageError(f"head {wrong} does not exist: {name} of {model.name} has heads 0 to {there - 1}")
    return dict.fromkeys(with_heads, torch.tensor(heads))


def _begin(folder: Path, request: dict[str, Any], plan: list[list[list[int]]]) -> Store:
    """Make the folder and its index, or find them as they should be."""
    if (folder / INDEX).exists():
        store = Store(folder)
        other = [key for key in request if store.request.get(key) != request[key]]
        if other:
            raise UsageError(f"{folder} holds other activations (another {other[0]}): choose another folder, or delete it")
        return store
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.glob("shard-*")):
            raise UsageError(f"{folder} holds shards without an index: choose another folder, or delete it")
        partial_ = folder / f".{INDEX}.partial"
        partial_.write_text(json.dumps({"request": request, "shards": plan}), "utf-8")
        os.replace(partial_, folder / INDEX)
    except OSError as error:
        raise NulliusError(f"cannot write to {folder}: {error.strerror}") from None
    return Store(folder)


def _run(
    model: LanguageModel,
    rows: list[list[int]],
    wanted: list[Sequence[int]],
    batches: list[list[int]],
    places: Places,
    chosen: Mapping[tuple[str, int], Tensor],
    dtype: torch.dtype,
    sizes: Mapping[tuple[str, int], int],
) -> dict[str, Tensor]:
    """One shard: its batches, run one after the other into tensors of its final size."""
    anatomy = model.anatomy
    count = sum(len(wanted[i]) for batch in batches for i in batch)
    # One piece of memory: of many smaller ones a C library learns to give what is freed back at once, and fetches it again page by page. That then
    # befell each of the model's own temporaries, and cost a tenth of the pass.
    whole = torch.empty(count * sum(sizes.values()), dtype=dtype).split([count * size for size in sizes.values()])
    out = {place: part.view(count, -1) for place, part in zip(sizes, whole, strict=True)}
    about = {name: torch.empty(count, dtype=torch.int64) for name in ("text", "position", "token")}
    done = 0
    for which in batches:
        batch = model.pad([rows[i] for i in which])
        kept = torch.zeros(batch.input_ids.shape, dtype=torch.bool)
        for row, i in enumerate(which):
            kept[row, torch.tensor(wanted[i]) + kept.shape[1] - len(rows[i])] = True
        here = slice(done, done + int(kept.sum()))
        every = bool(kept.all())
        kept = kept.to(model.device)
        with ExitStack() as stack:
            for place, site in places.items():
                take = partial(_take, out[place][here], None if every else kept, chosen.get(place))
                stack.callback(hooks.on_read(anatomy, site, take).remove)
            model.hidden(batch)
        about["text"][here] = torch.tensor(which, device=kept.device)[:, None].expand_as(kept)[kept].cpu()
        about["position"][here] = batch.position_ids[kept].cpu()
        about["token"][here] = batch.input_ids[kept].cpu()
        done = here.stop
    by_head = {place: out[place].unflatten(-1, (-1, site.width)) if site.heads else out[place] for place, site in places.items()}
    return {**{f"{name}.{layer}": values for (name, layer), values in by_head.items()}, **about}


def _take(into: Tensor, kept: Tensor | None, heads: Tensor | None, value: Tensor) -> None:
    """Copy the tokens (None: all) and heads (None: all) of a site [B, T, ...] that are kept to where they belong."""
    value = value.flatten(0, 1) if kept is None else value[kept]
    value = value if heads is None else value.index_select(1, heads.to(value.device))
    into.copy_(value.flatten(1))


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a shard under another name first, so that one that is there is whole."""
    before = path.with_name(f".{path.name}.partial")
    try:
        save_file(tensors, before)
        os.replace(before, path)
    except (OSError, SafetensorError) as error:
        before.unlink(missing_ok=True)
        raise NulliusError(f"cannot write {path}: {error}") from None
