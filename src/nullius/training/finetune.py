"""Finetuning in memory: a subject and some texts in, a trained copy out. For studies; `nullius train` is the program for more than that.

The copy is trained whole, in selected parts (`parts.Parts`), or through low-rank adapters (`lora.Lora`), with AdamW, a linear warm-up and the
norm of the gradient clipped. Same seed, same machine: same weights. Interventions that are open on the subject act while the copy trains, and end
with its training.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nullius.errors import NulliusError, UsageError
from nullius.models.language_model import LanguageModel, Provenance
from nullius.training import copies, shared_prefix
from nullius.training import lora as adapters
from nullius.training.config import Optimiser, Schedule
from nullius.training.lora import Lora
from nullius.training.optimisers import Optimisers, outside_layers
from nullius.training.parts import Parts, only
from nullius.training.schedules import factor

Data = Sequence[str] | Sequence[tuple[str, str]] | Tensor
IGNORED = -100  # label of a position that is no target


@dataclass(frozen=True)
class Tuned:
    """A trained copy. losses: of each step's batch before the step, nats per target token [steps]. trained: how many weights were trained."""

    model: LanguageModel
    losses: NDArray[np.float64]
    trained: int


def finetune(
    model: LanguageModel,
    data: Data,
    steps: int,
    *,
    rate: float = 1e-4,
    batch: int = 16,
    seed: int = 0,
    parts: Parts | None = None,
    lora: Lora | None = None,
    weight_decay: float = 0.0,
    clip: float = 1.0,
    warmup: int = 0,
    decay: float = 0.0,
    optimiser: Literal["adamw", "muon"] = "adamw",
    max_tokens: int = 512,
    autocast: bool = False,
    name: str = "",
    on_step: Callable[[int, int], None] | None = None,
    snapshots: Sequence[int] = (),
    on_snapshot: Callable[[int, LanguageModel], None] | None = None,
) -> Tuned:
    """Train a copy of a subject; the subject itself is left as it is.

    data: texts (every token is a target), pairs (prompt, answer) whose answer's tokens alone are targets, or token ids [n, T] (every token but
    the first is one). Texts and prompts get the subject's leading token as in `LanguageModel.encode`; token ids are taken as they are.
    steps: batches of `batch` rows, drawn without replacement until all have been seen, then anew. parts: what is trained, all else keeping
    every bit (default: everything). lora: train adapters instead, merged into the copy. warmup: steps in which the rate rises linearly.
    decay: part of the steps, at the end, over which it falls linearly to 0. optimiser: muon learns small networks from nothing in fewer steps.
    max_tokens: rows are cut there. autocast: compute in bfloat16 what bears it, the weights staying as they are. on_step(done, steps)
    after each step; on_snapshot(step, model) before the given steps (steps: at the end),
    with the model under training, not yet merged where lora is given.

    clip: largest norm of the gradient (0: any).
    Raises UsageError for no data, data of another kind, a pair without an answer, numbers out of range, parts and lora together; NulliusError when a
    loss is no number.

    >>> tuned = finetune(model, [("3 + 4 =", " 7")], steps=20, parts=Parts(heads=((2, 1),)))  # doctest: +SKIP
    """
    if parts is not None and lora is not None:
        raise UsageError("train selected parts or LoRA adapters, not both")
    _check({"steps": steps, "warmup": warmup, "seed": seed}, 0)
    _check({"batch": batch, "max_tokens": max_tokens}, 1)
    for what, value in {"rate": rate, "weight_decay": weight_decay, "clip": clip, "decay": decay}.items():
        if not 0 <= value <= (1 if what == "decay" else math.inf) or value == math.inf:
            raise UsageError(f"{what} must be a number of at least 0{' and at most 1' * (what == 'decay')}, not {value}")
    if optimiser not in ("adamw", "muon"):
        raise UsageError(f"the optimiser is adamw or muon, not {optimiser!r}")
    if any(not 0 <= at <= steps for at in snapshots):
        raise UsageError(
            f"snapshots are taken before steps 0 to {steps - 1} and at the end ({steps}), not at {', '.join(map(str, snapshots))}"
        )
    rows = _rows(model, data, max_tokens)
    hf = copies.plain(model.hf)
    trained = LanguageModel(hf, model.tokenizer, name or f"{model.name} (tuned)", model.weights_sha256, Provenance("made in this process"))
    masks = None if parts is None else parts.masks(trained)
    body = hf if lora is None else adapters.add(hf, lora, seed)
    if lora is not None:
        masks = {key: None for key, value in body.named_parameters() if value.requires_grad}
    losses = []
    devices = [model.device] if model.device.type == "cuda" else []
    with copies.lent(model.hf, hf), only(body, masks) as held, torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)  # dropout, where the architecture has any
        settings = Optimiser(optimiser, rate, betas=(0.9, 0.999), weight_decay=weight_decay)
        optimisers = Optimisers(held.named, settings, outside_layers(hf), fused=True)
        order, how = _order(len(rows), batch, seed), Schedule("wsd", warmup, decay=decay)
        body.train()
        for step in range(steps):
            if step in snapshots and on_snapshot is not None:
                _show(on_snapshot, step, trained)
                body.train()
            with torch.autocast(model.device.type, torch.bfloat16, enabled=autocast):
                loss = _loss(trained, [rows[i] for i in next(order)])
            loss.backward()
            held.mask_gradients()
            nn.utils.clip_grad_norm_(held.parameters, clip or math.inf)
            optimisers.step(factor(how, step, steps))
            held.restore()
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise NulliusError(f"the loss of step {step + 1} is {losses[-1]}: lower the rate ({rate:g}), or lengthen the warm-up")
            if on_step is not None:
                on_step(step + 1, steps)
        if steps in snapshots and on_snapshot is not None:
            _show(on_snapshot, steps, trained)
        count, changed = held.count, list(held.named)
    if lora is not None or masks is None:
        plain = hf if lora is None else adapters.merge(body)
        return Tuned(LanguageModel.wrap(plain, model.tokenizer, trained.name), np.array(losses), count)
    hf.eval()
    trained.weights_sha256, trained.tokens_seen = _digest(hf, changed, model.weights_sha256), 0
    return Tuned(trained, np.array(losses), count)


def _check(numbers: dict[str, int], least: int) -> None:
    """Raise UsageError for what is no whole number, or below the least."""
    for what, value in numbers.items():
        if not hasattr(value, "__index__") or value < least:
            raise UsageError(f"{what} must be a whole number of at least {least}, not {value!r}")


def _digest(hf: nn.Module, changed: Sequence[str], base: str) -> str:
    """SHA-256 of a subject's own hash and of the parameters that may have changed: all others are its own."""
    digest, named = hashlib.sha256(base.encode()), dict(hf.named_parameters())
    for name in sorted(changed):
        digest.update(name.encode())
        digest.update(named[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _show(on_snapshot: Callable[[int, LanguageModel], None], step: int, model: LanguageModel) -> None:
    model.hf.eval()
    with torch.no_grad():
        on_snapshot(step, model)


def _rows(model: LanguageModel, data: Data, max_tokens: int) -> list[tuple[list[int], int]]:
    """Token ids of each row, and how many at its beginning are no targets."""
    if len(data) == 0:
        raise UsageError("no data to train on; give at least one text")
    if isinstance(data, str):
        raise UsageError(f"one text stands in a list: ['{data[:20]}'], not '{data[:20]}'")
    if isinstance(data, Tensor):
        if data.ndim != 2 or data.shape[1] < 2 or data.is_floating_point():
            raise UsageError(f"token ids must be whole numbers [n, T], of at least 2 tokens; got {data.dtype} {list(data.shape)}")
        model.token_ids(data)
        return [(row, 1) for row in data[:, :max_tokens].tolist()]
    lead = [model.bos_id] if model.bos_id is not None else []
    rows = []
    for item in data:
        pair = isinstance(item, Sequence) and len(item) == 2 and all(isinstance(part, str) for part in item)
        if not isinstance(item, str) and not pair:
            raise UsageError(f"data is texts, or pairs (prompt, answer); got {item!r:.60}")
        prompt, text = ("", item) if isinstance(item, str) else (item[0], item[0] + item[1])
        ids, before = model.tokens(text), model.tokens(prompt) if prompt else []
        shared = next((i for i, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b), min(len(before), len(ids)))
        own = [] if lead and ids[:1] == lead else lead
        row, given = (own + ids)[:max_tokens], max(1, len(own) + shared)
        if len(row) <= given:
            raise UsageError(f"a row has no token to predict within {max_tokens} tokens: {text[:60]!r}")
        rows.append((row, given))
    return rows


def _loss(model: LanguageModel, rows: Sequence[tuple[list[int], int]]) -> Tensor:
    """Mean loss of a batch, in nats per target token. Logits are made from the first position that predicts a target onwards, and what all rows
    begin with is run once where that saves something."""
    batch = model.pad([ids for ids, _ in rows])
    width = batch.input_ids.shape[1]
    given = [width - len(ids) + n for ids, n in rows]
    first = min(given)
    target = torch.arange(first, width, device=model.device) >= torch.tensor(given, device=model.device)[:, None]
    labels = torch.where(target, batch.input_ids[:, first:], IGNORED)
    logits = shared_prefix.logits(model, batch, first - 1)
    if logits is None:
        logits = model.hf(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            use_cache=False,
            logits_to_keep=width - first + 1,
        ).logits[:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)


def _order(n: int, batch: int, seed: int) -> Iterator[list[int]]:
    """Batches of row numbers for ever: each pass in an order of its own, and a batch may reach from one pass into the next."""
    generator = np.random.default_rng(seed)
    waiting: list[int] = []
    while True:
        while len(waiting) < batch:
            waiting += cast("list[int]", generator.permutation(n).tolist())
        yield waiting[:batch]
        waiting = waiting[batch:]
