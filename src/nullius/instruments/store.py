"""A store of activations on disk, for data sets larger than memory: safetensors shards and an index.

    found = record(model, texts, "activations/", ["resid_post"], layers=[10, 20])
    for shard in found.shards("resid_post", 10):
        shard.values, shard.text, shard.position  # [tokens, d_model], [tokens], [tokens]

Only what was asked for is kept, and no padding. Every shard is written whole or not at all, so that a run that was killed goes on where it
stopped: call `record` again with the same arguments. Nothing below is larger in memory than two shards.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nullius.errors import NulliusError, UsageError
from nullius.models import hooks
from nullius.models.language_model import LanguageModel

INDEX = "index.json"


@dataclass(frozen=True)
class Shard:
    """Some tokens of a store. values: the site there [tokens, ...]; text: which text each token is of; position: where in it; token: its id."""

    values: Tensor
    text: Tensor
    position: Tensor
    token: Tensor


class Store:
    """Activations in a folder. sites: name → layers; texts: their number; complete: whether every shard is there."""

    def __init__(self, folder: str | Path) -> None:
        """Open a store. Raises UsageError where there is none."""
        self.folder = Path(folder)
        try:
            index = json.loads((self.folder / INDEX).read_text("utf-8"))
            self.request: dict[str, Any] = index["request"]
            self.plan: list[list[list[int]]] = index["shards"]  # per shard its batches, each a list of text numbers
        except (OSError, ValueError, KeyError, TypeError):
            raise UsageError(f"no activation store in {self.folder}: {INDEX} is missing or is not one") from None
        self.texts: int = self.request["n_texts"]
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
    positions: Literal["all", "last"] = "all",
    dtype: torch.dtype | None = None,
    batch_tokens: int = 1024,
    shard_bytes: int = 2**28,
) -> Store:
    """Run the decoder over texts (or rows of token ids, taken as they are) and write sites of some layers (None: all) to a folder.

    positions: every token, or the last of each text. dtype: to store in (None: the model's own). batch_tokens: padding included, in one pass.
    A folder with the same request is finished, not begun anew. Raises UsageError for an unknown site or layer, for `pattern` (its size grows with
    the text), for no texts, and for a folder that holds something else; NulliusError when the disk refuses.
    """
    anatomy = model.anatomy
    layers = list(range(anatomy.n_layers)) if layers is None else [int(layer) for layer in layers]
    if "pattern" in sites:
        raise UsageError("a pattern has the size of its text: read it with taps.read, batch by batch")
    if not sites or not layers or not len(texts):
        raise UsageError("nothing to store: give at least one site, one layer and one text")
    places = {(site, layer): anatomy.site(site, layer) for site in sites for layer in layers}
    layers = sorted({place.layer for place in places.values()})
    rows = _rows(model, texts)
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    cuts = _cut([len(rows[i]) for i in order], batch_tokens)
    dtype = dtype or model.dtype
    sizes = _sizes(model, sites, layers)
    each = sum(sizes.values()) * dtype.itemsize
    plan: list[list[list[int]]] = [[]]
    held = 0
    for start, stop in pairwise(cuts):
        batch = order[start:stop]
        size = each * (sum(len(rows[i]) for i in batch) if positions == "all" else len(batch))
        if plan[-1] and held + size > shard_bytes:
            plan.append([])
            held = 0
        plan[-1].append(batch)
        held += size
    request = {
        "subject": model.name,
        "weights": model.weights_sha256,
        "texts": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
        "n_texts": len(rows),
        "sites": list(sites),
        "layers": layers,
        "positions": positions,
        "dtype": str(dtype).removeprefix("torch."),
        "plan": hashlib.sha256(json.dumps(plan).encode()).hexdigest(),
    }
    store = _begin(Path(folder), request, plan)
    waiting: Future[None] | None = None
    with ThreadPoolExecutor(1) as writer:  # a shard is written while the next one is computed
        for shard, batches in enumerate(plan):
            if store.path(shard).exists():
                continue
            tensors = _run(model, [[rows[i] for i in batch] for batch in batches], batches, sites, layers, positions, dtype, sizes)
            if waiting is not None:
                waiting.result()
            waiting = writer.submit(_write, store.path(shard), tensors)
        if waiting is not None:
            waiting.result()
    return store


def _rows(model: LanguageModel, texts: Sequence[str] | Sequence[Sequence[int]]) -> list[list[int]]:
    """Token ids of each text, with the subject's leading token, as `LanguageModel.encode` makes them."""
    rows: list[list[int]] = []
    for text in texts:
        if isinstance(text, str):
            ids, lead = model.tokens(text), [model.bos_id] if model.bos_id is not None else []
            rows.append(ids if lead and ids[:1] == lead else lead + ids)
        else:
            rows.append([int(i) for i in text])
        if not rows[-1]:
            raise UsageError(f"text {len(rows) - 1} has no token")
    return rows


def _cut(lengths: list[int], batch_tokens: int) -> list[int]:
    """Where batches begin, of texts by falling length, so that none has more tokens (padding included) than it may; at least one text each."""
    cuts = [0]
    while cuts[-1] < len(lengths):
        cuts.append(min(len(lengths), cuts[-1] + max(1, batch_tokens // lengths[cuts[-1]])))
    return cuts


def _sizes(model: LanguageModel, sites: Sequence[str], layers: Sequence[int]) -> dict[tuple[str, int], int]:
    """Numbers that each site of each layer has for one token."""
    anatomy, out = model.anatomy, {}
    for site in sites:
        for layer in layers:
            heads = anatomy.site(site, layer).heads
            out[site, layer] = heads * anatomy.d_head if heads else anatomy.d_mlp if site == "mlp_post" else anatomy.d_model
    return out


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
    texts: list[list[list[int]]],
    numbers: list[list[int]],
    sites: Sequence[str],
    layers: Sequence[int],
    positions: str,
    dtype: torch.dtype,
    sizes: dict[tuple[str, int], int],
) -> dict[str, Tensor]:
    """One shard: its batches, run one after the other into tensors of its final size."""
    anatomy = model.anatomy
    count = sum(len(row) if positions == "all" else 1 for batch in texts for row in batch)
    # One piece of memory: of many smaller ones a C library learns to give what is freed back at once, and fetches it again page by page. That then
    # befell each of the model's own temporaries, and cost a tenth of the pass.
    whole = torch.empty(count * sum(sizes.values()), dtype=dtype).split([count * size for size in sizes.values()])
    out = {f"{site}.{layer}": part.view(count, -1) for (site, layer), part in zip(sizes, whole, strict=True)}
    for name in ("text", "position", "token"):
        out[name] = torch.empty(count, dtype=torch.int64)
    done = 0
    for rows, which in zip(texts, numbers, strict=True):
        batch = model.pad(rows)
        real = batch.attention_mask.bool()
        if positions == "last":
            real = torch.zeros_like(real)
            real[:, -1] = True
        n = int(real.sum())
        here = slice(done, done + n)
        with ExitStack() as stack:
            for site in sites:
                for layer in layers:
                    take = partial(_take, out[f"{site}.{layer}"][here], real)
                    stack.callback(hooks.on_read(anatomy, anatomy.site(site, layer), take).remove)
            model.hidden(batch)
        out["text"][here] = torch.tensor(which, device=real.device)[:, None].expand_as(real)[real].cpu()
        out["position"][here] = batch.position_ids[real].cpu()
        out["token"][here] = batch.input_ids[real].cpu()
        done += n
    for site in sites:
        for layer in layers:
            heads = anatomy.site(site, layer).heads
            if heads:
                out[f"{site}.{layer}"] = out[f"{site}.{layer}"].unflatten(-1, (heads, anatomy.d_head))
    return out


def _take(into: Tensor, real: Tensor, value: Tensor) -> None:
    """Copy the real tokens of a site [B, T, ...] to where they belong."""
    value = value.flatten(2)
    into.copy_(value.flatten(0, 1) if bool(real.all()) else value[real])


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a shard under another name first, so that one that is there is whole."""
    before = path.with_name(f".{path.name}.partial")
    try:
        save_file(tensors, before)
        os.replace(before, path)
    except (OSError, SafetensorError) as error:
        before.unlink(missing_ok=True)
        raise NulliusError(f"cannot write {path}: {error}") from None
