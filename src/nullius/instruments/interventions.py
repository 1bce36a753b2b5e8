"""Interventions: change what a model computes, at any site, while it runs, and leave it as it was.

    where = Where("z", layer=5, heads=[3], positions="last")
    with applied(model, [scale(where, 0.0)]):
        model.logits(batch)

A `Where` names a part of a site: heads, units (neurons of `mlp_post`, keys of `pattern`, coordinates elsewhere), a subspace, positions, rows of the
batch. An intervention says what becomes of that part. Several may be open at once; they act in the order given, and each may have rows of its
own, so that one pass carries many experiments. Everything is differentiable in the values handed over. Nothing is broadcast unasked: a
value's shape says what it is for (see `Where`), and one that fits nothing is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nullius.errors import UsageError
from nullius.instruments import indices, taps
from nullius.instruments.where import Cells, Change, Clock, Plan, Where
from nullius.models import hooks
from nullius.models.language_model import LanguageModel


@dataclass(frozen=True, eq=False)
class Intervention:
    """What becomes of a part. change(part [N, ..], cells) → the new part [N, ..], for N pairs of row and column.

    values, wholes: the tensors that it uses, by what they are called in an error; they are checked against `where` (see `where.Plan`).
    """

    where: Where
    change: Change
    values: dict[str, Tensor] = field(default_factory=dict)
    wholes: dict[str, tuple[str, Tensor]] = field(default_factory=dict)


def set_to(where: Where, value: Tensor | float) -> Intervention:
    """Replace the part by a value (a number: every entry of it)."""
    if isinstance(value, (int, float)):
        return Intervention(where, lambda part, _cells: torch.full_like(part, value))
    values = {"value": indices.numbers("value", value)}
    return Intervention(where, lambda part, cells: cells.spread(values["value"], part), values)


def add(where: Where, vector: Tensor, factor: float | Tensor = 1.0) -> Intervention:
    """Add a vector to the part (steering), times a factor: a number, or one for each row [rows]."""
    values, by = {"vector": indices.numbers("vector", vector)}, _factor(factor)
    return Intervention(where, lambda part, cells: part + cells.by_row(by, part) * cells.spread(values["vector"], part), values)


def scale(where: Where, factor: float | Tensor, around: Tensor | None = None) -> Intervention:
    """x ← μ + α (x − μ). factor: α, a number or one for each row [rows]. around: μ for the part, 0 when None."""
    values, by = {} if around is None else {"around": indices.numbers("around", around)}, _factor(factor)

    def change(part: Tensor, cells: Cells) -> Tensor:
        centre = cells.spread(values["around"], part) if values else 0.0
        return centre + cells.by_row(by, part) * (part - centre)

    return Intervention(where, change, values)


def _factor(factor: Any) -> float | Tensor:
    return factor if isinstance(factor, (int, float)) else indices.numbers("factor", factor)


def project_out(where: Where, directions: Tensor) -> Intervention:
    """Remove what lies in the span of directions [width] or [k, width] (of each head, at sites with heads). `where` must not name a basis.

    Raises UsageError for directions that do not span k dimensions (zeros among them).
    """
    if where.basis is not None:
        raise UsageError("project_out makes a basis of its directions itself: leave out `basis`")
    directions = indices.numbers("directions", directions)
    span = orthonormal(directions if directions.ndim == 2 else directions[None])
    return scale(replace(where, basis=span), 0.0)


def interchange(where: Where, source: Tensor, from_positions: Sequence[int] | Tensor | None = None) -> Intervention:
    """Put in the part's value of another run. source: the whole site there [rows, T, ..], as `taps.read(..., positions="all")[site][layer]`, a row
    for each row that is touched.

    from_positions: for each of `where`'s positions, the column of the source to take [P] or [rows, P]; same columns when None, and then the source
    must be as wide as the batch, and row by row as far padded: of a source's padding only its own run knows.
    """
    if from_positions is not None:
        if isinstance(where.positions, str):
            raise UsageError("from_positions pairs up with positions: give `where` a list of positions, not a word")
        takes = indices.columns(from_positions)
        wanted = indices.columns(where.positions).shape[-1:]
        if takes.shape[-1:] != wanted:
            raise UsageError(
                f"from_positions has {takes.shape[-1] if takes.ndim else 0} columns for {int(wanted[0]) if wanted else 0} positions"
            )
    else:
        takes = None
    return Intervention(
        where, lambda part, cells: cells.taken(source, takes, part), wholes={"source": ("run" if takes is None else "rows", source)}
    )


def mean_ablate(where: Where, mean: Tensor) -> Intervention:
    """Put in the mean of the site [..], whole (one layer of `means`), for every row and position."""
    return Intervention(
        where, lambda part, cells: cells.plan.part_of(mean.to(part.device)).to(part).expand_as(part), wholes={"mean": ("site", mean)}
    )


def resample_ablate(where: Where, pool: Tensor, donors: Sequence[int]) -> Intervention:
    """Put in another text's value. pool: the whole site in runs on m texts [m, T, ..]; donors: for each row, which of them (see `others`)."""
    donors = indices.listed("donors", donors)
    wrong = next((donor for donor in donors if not 0 <= donor < len(pool)), None)
    if wrong is not None:
        raise UsageError(f"donor {wrong} does not exist: the pool has texts 0 to {len(pool) - 1}")
    return interchange(where, pool[torch.as_tensor(donors, device=pool.device)])


def others(n: int, rng: np.random.Generator) -> list[int]:
    """For each of n ≥ 2 texts another one, each taken once: a random permutation that leaves none in its place."""
    if n < 2:
        raise UsageError("resampling needs at least two texts: one cannot stand in for itself")
    order = rng.permutation(n)
    donors = np.empty(n, dtype=int)
    donors[order] = np.roll(order, 1)
    return donors.tolist()


def orthonormal(directions: Tensor) -> Tensor:
    """Orthonormal rows [k, width] that span the rows of [k, width], the first along the first. Differentiable. UsageError if they are dependent."""
    if directions.ndim != 2:
        raise UsageError(f"directions must be [k, width]; got {list(directions.shape)}")
    q, r = torch.linalg.qr(directions.to(torch.promote_types(directions.dtype, torch.float32)).T)
    size = r.detach().diagonal().abs()
    least = 1e-6 * float(directions.detach().norm(dim=1).max())
    if len(size) < len(directions) or not float(size.min()) > least:
        raise UsageError(f"{len(directions)} directions do not span {len(directions)} dimensions: one is a combination of others")
    return (q * r.diagonal().sign()).T


@contextmanager
def applied(model: LanguageModel, interventions: Sequence[Intervention]) -> Iterator[None]:
    """While open, every forward pass of the model is changed so. Nests; leaves no hook behind, also after an error.

    Raises UsageError or SubjectError, at once: unknown site, layer, head or unit (with the range that exists), a basis that is not orthonormal, a
    value whose shape fits nothing, a model whose layers are compiled. When a batch arrives: rows or positions that it does not have, and generation
    without a cache or with an assistant, in which no pass says which of its columns are new.
    """
    if isinstance(interventions, (Intervention, Where)) or not all(isinstance(one, Intervention) for one in interventions):
        raise UsageError("interventions stand in a list, each made by set_to, add, scale, project_out, interchange or an ablation")
    plans: dict[tuple[str, int], list[tuple[Plan, Change]]] = {}
    clock = Clock()
    for one in interventions:
        plan = Plan(model, one.where, clock, one.values, one.wholes)
        plans.setdefault((one.where.site, plan.layer), []).append((plan, one.change))
    with ExitStack() as stack:
        stack.callback(model.anatomy.decoder.register_forward_pre_hook(clock, with_kwargs=True).remove)
        stack.enter_context(_generating(model.hf, clock))
        for (site, layer), group in plans.items():
            if site == "logits":
                stack.callback(model.hf.register_forward_hook(_on_logits(group)).remove)
            else:
                stack.enter_context(taps.edit(model, site, layer, _by_query(_edit(group)) if site == "pattern" else _edit(group)))
        yield


@contextmanager
def _generating(hf: Any, clock: Clock) -> Iterator[None]:
    """While open, generation that runs the whole text again for each token is refused, since its columns cannot be told from those of another text;
    so is one that tries several tokens in one pass (assistants, look-up in the prompt), whose first pass is longer than the prompt. One that reads
    its prompt in chunks tells the clock how long the prompt is."""

    def prepare(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("use_cache") is False:
            raise UsageError("generation under interventions must keep its cache: leave out use_cache=False")
        if kwargs.get("is_first_iteration") is False:  # said again behind the first pass by those that guess alone
            raise UsageError("generation under interventions takes one token a pass: leave out the assistant, or the look-up in the prompt")
        return inner(*args, **kwargs)

    def prefill(inner: Callable[..., Any], ids: Tensor, settings: Any, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if settings.prefill_chunk_size is None:
            return inner(ids, settings, state, *args, **kwargs)
        mask = state.get("attention_mask")  # as wide as the prompt, also where `ids` are only what the cache lacks
        with clock.reading(ids.shape[1] if mask is None else mask.shape[1], mask):
            return inner(ids, settings, state, *args, **kwargs)

    with ExitStack() as stack:
        for name, outer in (("prepare_inputs_for_generation", prepare), ("_prefill", prefill)):
            stack.enter_context(_around(hf, name, outer))
        yield


@contextmanager
def _around(hf: Any, name: str, outer: Callable[..., Any]) -> Iterator[None]:
    """While open, a call of a model's method, if it has it, is one of outer(method, ...)."""
    inner = getattr(hf, name, None)
    if inner is None:
        yield
        return
    before = vars(hf).get(name)
    setattr(hf, name, wraps(inner)(partial(outer, inner)))
    try:
        yield
    finally:
        if before is None:
            delattr(hf, name)  # uncovers the method of its class
        else:
            setattr(hf, name, before)


def generate(model: LanguageModel, texts: Sequence[str], interventions: Sequence[Intervention], max_new_tokens: int) -> list[str]:
    """Greedy continuations under interventions, without the prompts. One batch: row i of an intervention is texts[i], in the order given.

    Raises UsageError as `applied`, and for less than one new token.
    """
    return written(model, texts, interventions, max_new_tokens=max_new_tokens)


@torch.no_grad()
def written(
    model: LanguageModel,
    texts: Sequence[str],
    interventions: Sequence[Intervention],
    *,
    max_new_tokens: int,
    min_new_tokens: int = 0,
    repetition_penalty: float = 1.0,
    no_repeat_ngram_size: int = 0,
) -> list[str]:
    """As `generate`, with more of transformers' settings of greedy decoding."""
    from transformers import GenerationConfig

    if max_new_tokens < max(1, min_new_tokens):
        raise UsageError(f"at least {max(1, min_new_tokens)} new tokens must be asked for, not {max_new_tokens}")
    ends = model.hf.generation_config.eos_token_id
    batch = model.encode(texts)
    greedy = GenerationConfig(  # spelt out: what is left unset comes from the model's own config, which may ask for sampling or a penalty
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        repetition_penalty=repetition_penalty,
        no_repeat_ngram_size=no_repeat_ngram_size,
        pad_token_id=model.pad_id,
        eos_token_id=model.tokenizer.eos_token_id if ends is None else ends,
    )
    with applied(model, interventions):
        out = model.hf.generate(input_ids=batch.input_ids, attention_mask=batch.attention_mask, generation_config=greedy)
    return model.tokenizer.batch_decode(out[:, batch.input_ids.shape[1] :], skip_special_tokens=True)


@torch.no_grad()
def means(model: LanguageModel, texts: Sequence[str], site: str, batch_size: int = 32) -> Tensor:
    """Mean of a site over all tokens of the texts, padding left out: [layers, ..], float32. Raises UsageError for no text, and for `pattern`."""
    if not len(texts) or site == "pattern":
        raise UsageError(
            "a mean wants a text at least" if not len(texts) else "a pattern has the size of its text: it has no mean over tokens"
        )
    anatomy = model.anatomy
    total: list[Tensor | float] = [0.0] * anatomy.n_layers
    count = 0.0
    for chosen in model.by_length(texts, batch_size):
        batch = model.encode([texts[i] for i in chosen])
        real = batch.attention_mask.bool()
        count += float(real.sum())
        with ExitStack() as stack:
            for layer in range(anatomy.n_layers):

                def take(x: Tensor, layer: int = layer, real: Tensor = real) -> None:
                    total[layer] = total[layer] + x[real].float().sum(0)

                stack.callback(hooks.on_read(anatomy, anatomy.site(site, layer), take).remove)
            model.hidden(batch)
    return torch.stack([torch.as_tensor(part) / count for part in total])


def _edit(plans: Sequence[tuple[Plan, Change]]) -> Callable[[Tensor], Tensor]:
    def edit(x: Tensor) -> Tensor:
        for plan, change in plans:
            x = plan.apply(x, change)
        return x

    return edit


def _by_query(edit: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A pattern comes as [B, heads, query, key]: positions are those of the queries, units the keys."""
    return lambda pattern: edit(pattern.transpose(1, 2)).transpose(1, 2)


def _on_logits(plans: Sequence[tuple[Plan, Change]]) -> Callable[..., None]:
    def hook(_module: Any, _args: Any, output: Any) -> None:
        output.logits = _edit(plans)(output.logits)

    return hook
