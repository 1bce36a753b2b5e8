"""Interchange interventions: put a state of one text into the run on another, and see whether the model answers as if it knew what was carried.

`interchange` sweeps all blocks and tokens for pairs that differ in one thing that decides the next token (Geiger et al. 2021). `counterfactuals` and
`transplant` test a stated causal model (`causal_models`): if the state at a place is a variable of it, then with that state from a source text the
model must say what the program says when the variable comes from there. The share of pairs for which it does is the interchange intervention
accuracy; `placebo` pairs say what it would be without the variable: the state comes from a text that was not asked.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nullius.errors import SubjectError, UsageError
from nullius.instruments import checks, indices, interventions, patching, resume, taps, wavefront
from nullius.instruments.causal_models import CausalModel
from nullius.instruments.where import Where
from nullius.models.language_model import Batch, LanguageModel


@dataclass(frozen=True)
class Interchanged:
    """flipped: whether the source's answer is preferred with the state after each block at each token put in [pairs, layers, tokens]; tokens before
    the first that differs cannot matter and count as not. correct: whether both plain runs prefer their own answer [pairs]."""

    flipped: NDArray[np.float64]
    correct: NDArray[np.float64]


@torch.no_grad()
def interchange(
    model: LanguageModel, base: Sequence[Sequence[int]], source: Sequence[Sequence[int]], answers: Sequence[tuple[int, int]]
) -> Interchanged:
    """Interchange the residual stream after every block at every token, exactly.

    base, source: token ids, pairs of equal length. answers: for each pair the source's next token and the base's. Raises UsageError for pairs of
    unequal length.
    """
    sweep = patching.residual(model, model.pad(base), model.pad(source), answers, site="resid_post")
    correct = (sweep.source > 0) & (sweep.base < 0)
    return Interchanged((sweep.values > 0).double().cpu().numpy(), correct.double().cpu().numpy())


def carried(flipped: NDArray[np.float64], places: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.float64], list[int]]:
    """Whether the difference travels through a few places only.

    flipped: [networks, pairs, layers, tokens]. places: the tokens that may carry it. For each layer but the last (after which only the last token can
    matter) the place with the higher accuracy is chosen on the first half of the pairs. On the second half: accuracy there, and at the mean of
    all tokens between the places, [networks · pairs] each; and which place was chosen for each layer, as an index into `places`.
    """
    half, layers = flipped.shape[1] // 2, flipped.shape[2] - 1
    best = flipped[:, :half, :layers][..., list(places)].mean((0, 1)).argmax(-1).tolist()
    tested = flipped[:, half:, :layers]
    there = np.mean([tested[:, :, layer, places[choice]] for layer, choice in enumerate(best)], axis=0)
    between = [i for i in range(min(places) + 1, max(places)) if i not in places]
    return there.ravel(), tested[..., between].mean((2, 3)).ravel(), best


@dataclass(frozen=True)
class Counterfactuals:
    """Pairs of texts with the tokens that are expected. base, source: texts [n]. wanted: the token that should follow the base when the variable
    comes from the source; unchanged: the one that follows it as it is [n]; ids, or strings of one token each. Raises UsageError where they differ in
    number."""

    base: tuple[str, ...]
    source: tuple[str, ...]
    wanted: tuple[int | str, ...]
    unchanged: tuple[int | str, ...]

    def __post_init__(self) -> None:
        if len({len(self.base), len(self.source), len(self.wanted), len(self.unchanged)}) > 1:
            raise UsageError(f"{len(self.base)} base texts need as many sources, wanted and unchanged tokens")

    def __len__(self) -> int:
        return len(self.base)

    def part(self, rows: Sequence[int]) -> Counterfactuals:
        """Some of the pairs."""
        base, source = (tuple(side[i] for i in rows) for side in (self.base, self.source))
        return Counterfactuals(base, source, *(tuple(side[i] for i in rows) for side in (self.wanted, self.unchanged)))

    def split(self, rng: np.random.Generator, share: float = 0.5) -> tuple[Counterfactuals, Counterfactuals]:
        """Split at random, the first part holding `share` of the base texts: no base text stands in both."""
        texts = list(dict.fromkeys(self.base))
        first = {texts[i] for i in rng.permutation(len(texts))[: round(share * len(texts))]}
        inside = [i for i, text in enumerate(self.base) if text in first]
        return self.part(inside), self.part([i for i in range(len(self)) if self.base[i] not in first])

    def placebo(self, rng: np.random.Generator) -> Counterfactuals:
        """The same pairs with each other's sources: the state comes from a text that has nothing to do with what is wanted."""
        return replace(self, source=tuple(self.source[i] for i in interventions.others(len(self), rng)))

    def shuffled(self, rng: np.random.Generator) -> Counterfactuals:
        """The same pairs with each other's wanted tokens: nothing that could be learned."""
        return replace(self, wanted=tuple(self.wanted[i] for i in interventions.others(len(self), rng)))


def counterfactuals(
    causal: CausalModel,
    pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
    variables: Collection[str],
    text: Callable[[Mapping[str, Any]], str],
    token: Callable[[Any], int | str],
    informative: bool = True,
) -> Counterfactuals:
    """Make counterfactuals of pairs of inputs (base, source). text: inputs → prompt; token: value of the output → token id.

    informative: keep only pairs for which the interchange changes what should be said; a model that ignores it is right about all others.
    Raises UsageError where no pair is left, and for what the causal model does not have.
    """
    if isinstance(variables, str):
        raise UsageError(f"variables must be a list: ['{variables}'], not '{variables}'")
    rows = []
    for base, source in pairs:
        wanted, unchanged = causal.interchange(base, source, variables)[causal.output], causal.run(base)[causal.output]
        if not informative or wanted != unchanged:
            rows.append((text(base), text(source), token(wanted), token(unchanged)))
    if not rows:
        raise UsageError(f"no pair changes what the causal model says when {', '.join(variables)} is interchanged")
    return Counterfactuals(*(tuple(column) for column in zip(*rows, strict=True)))


@dataclass(frozen=True)
class At:
    """A place in the model: a site and a layer, heads of it, a token. token: a column counted from the front (≥ 0, the leading token is 0) or from
    the end (−1 the last); or a role, that is text → the part of it that ends with the token."""

    site: str
    layer: int
    token: int | Callable[[str], str] = -1
    heads: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class Prepared:
    """Pairs of one model ready to be run again and again, each time with another basis. Made by `prepare`.

    base: the base texts; below: what enters layer `at.layer` in their runs [n, T, d_model], None at layer 0; columns: where the state is put
    [n, 1]; states: what stands at the place in the sources' runs [n, 1, ..].
    """

    model: LanguageModel
    at: At
    base: Batch
    below: Tensor | None
    columns: Tensor
    states: Tensor
    wanted: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.wanted)

    def logits(self, rows: Sequence[int], basis: Tensor | None = None) -> Tensor:
        """Logits [rows, V] of some base texts with the states from their sources; layers below the place are not run again. As `transplant`."""
        chosen = torch.as_tensor(list(rows))
        base = Batch(self.base.input_ids[chosen], self.base.attention_mask[chosen])
        where = Where(self.at.site, self.at.layer, heads=self.at.heads, basis=basis, positions=self.columns[chosen])
        taken = interventions.interchange(where, self.states[chosen], torch.zeros_like(self.columns[chosen]))
        with ExitStack() as stack:
            if self.below is not None:
                stack.enter_context(resume.from_layer(self.model, self.at.layer, self.below[chosen]))
            stack.enter_context(interventions.applied(self.model, [taken]))
            return self.model.logits(base).float()


@torch.no_grad()
def prepare(model: LanguageModel, pairs: Counterfactuals, at: At, batch_size: int = 64) -> Prepared:
    """Run bases and sources once, up to the place. Errors as in `transplant`."""
    if not len(pairs):
        raise UsageError("no pairs to interchange: give at least one")
    if at.site in ("pattern", "logits"):
        raise UsageError(f"{at.site} are no state of a token that could be carried to another text: take q and k, or resid_post")
    checks.at_least_one(batch_size=batch_size)
    at = replace(at, layer=model.anatomy._layer(at.layer))
    tokens = tuple(model.token_ids(list(pairs.wanted)).tolist())
    there, here = columns(model, pairs.source, at.token), columns(model, pairs.base, at.token)
    if isinstance(at.token, int) and at.token != -1:
        same_length(model, pairs.base, pairs.source)
    base, source = model.encode(pairs.base), model.encode(pairs.source)
    states, below = [], []
    for start in range(0, len(pairs), batch_size):
        rows = slice(start, start + batch_size)
        part = Batch(source.input_ids[rows], source.attention_mask[rows])
        with resume.skipped(model, range(at.layer + 1, model.anatomy.n_layers)):
            whole = taps.read(model, part, [at.site], [at.layer], positions="all")[at.site][0]
        states.append(whole[torch.arange(len(whole)), there[rows]])
        if at.layer:
            part = Batch(base.input_ids[rows], base.attention_mask[rows])
            with resume.skipped(model, range(at.layer, model.anatomy.n_layers)):
                below.append(taps.read(model, part, ["resid_pre"], [at.layer], positions="all")["resid_pre"][0])
    return Prepared(model, at, base, torch.cat(below) if below else None, here[:, None], torch.cat(states)[:, None], tokens)


def transplant(model: LanguageModel, pairs: Counterfactuals, at: At, basis: Tensor | None = None, batch_size: int = 64) -> Tensor:
    """Logits [n, V] of the base texts with the state at a place from their sources; with `basis` [k, width] (orthonormal), what lies in that span
    only.

    Differentiable in `basis`. Texts of unequal length are aligned by `at.token`: −1 and roles mean the same in both. Raises UsageError, with both
    tokenisations, where a column from the front would not; for a place or a token that does not exist, no pairs, and a basis that does not fit.
    """
    checks.at_least_one(batch_size=batch_size)
    out = []
    for start in range(0, max(1, len(pairs)), batch_size):
        some = prepare(model, pairs.part(range(start, min(start + batch_size, len(pairs)))), at)
        out.append(some.logits(range(len(some)), basis))
    return torch.cat(out)


@torch.no_grad()
def accuracy(model: LanguageModel, pairs: Counterfactuals, at: At, basis: Tensor | None = None) -> NDArray[np.float64]:
    """1 where the greedy next token is the one wanted [n]; its mean is the interchange intervention accuracy. Errors as in `transplant`."""
    return (transplant(model, pairs, at, basis).argmax(-1) == model.token_ids(list(pairs.wanted))).double().cpu().numpy()


def columns(model: LanguageModel, texts: Sequence[str], token: int | Callable[[str], str]) -> Tensor:
    """The column [n] of a token in the left-padded batch of texts. Raises UsageError where it does not exist, or a role's part is not a whole number
    of tokens of its text (both tokenisations are shown)."""
    if not callable(token):
        (token,) = indices.listed("token", [token])
    batch = model.encode(texts)
    width, found = batch.input_ids.shape[1], []
    for row, text in enumerate(texts):
        pad = width - int(batch.attention_mask[row].sum())
        if callable(token):
            part = token(text)
            if not isinstance(part, str):
                raise UsageError(f"a role gives a part of the text, the one that ends with its token; it gave {part!r} for: {text}")
            ids, whole = (model.encode([some]).input_ids[0].tolist() for some in (part, text))
            if whole[: len(ids)] != ids:
                raise UsageError(
                    f"the part that a role names does not end at a token's end:\n{_side_by_side(model, {'part': part, 'text': text})}"
                )
            place = len(ids) - 1
        else:
            place = token if token >= 0 else width - pad + token
        if not 0 <= place < width - pad:
            raise UsageError(f"token {token} does not exist in a text of {width - pad} tokens: {text}")
        found.append(pad + place)
    return torch.tensor(found)


def same_length(model: LanguageModel, base: Sequence[str], source: Sequence[str]) -> None:
    """Raise UsageError, with both tokenisations side by side, for the first pair whose texts do not have the same number of tokens."""
    if isinstance(base, str) or isinstance(source, str) or len(base) != len(source):
        raise UsageError(f"base and source texts stand in lists of one length; got {len(base)} and {len(source)}")
    for a, b in zip(base, source, strict=True):
        if len(model.tokens(a)) != len(model.tokens(b)):
            shown = _side_by_side(model, {"base": a, "source": b})
            raise UsageError(f"base and source have different lengths, so that a column means different things; name a role:\n{shown}")


def _side_by_side(model: LanguageModel, texts: Mapping[str, str]) -> str:
    rows = {name: model.tokenizer.convert_ids_to_tokens(model.tokens(text)) for name, text in texts.items()}
    longest = max(map(len, rows.values()))
    widths = [max(len(row[i]) if i < len(row) else 0 for row in rows.values()) for i in range(longest)]
    return "\n".join(f"  {name:<7} " + " | ".join(token.ljust(widths[i]) for i, token in enumerate(row)) for name, row in rows.items())


@dataclass(frozen=True)
class Moved:
    """What a model says with the last token's state from the source, for each layer that it enters. candidates: logits of each pair's candidates
    [layers, n, k]; emitted: the greedy next token over the whole vocabulary [layers, n]."""

    candidates: NDArray[np.float64]
    emitted: NDArray[np.int64]


@torch.no_grad()
def last_token(
    model: LanguageModel,
    base: Sequence[str],
    source: Sequence[str],
    candidates: Sequence[Sequence[int]],
    layers: Sequence[int],
    batch_size: int = 32,
    *,
    vocabulary: bool = True,
) -> Moved:
    """Take the residual stream that enters each of `layers`, at the last token, from the source. candidates: token ids [n, k].

    Only the last token is run again, through the layers above (`wavefront`); sources are run up to the highest of `layers`. vocabulary: False leaves
    `emitted` at −1 and projects the last token onto the candidates alone. Raises UsageError for a pair of unequal length, SubjectError for a model
    that makes its logits from the final norm in another way than is known here.
    """
    same_length(model, base, source)
    layers = [model.anatomy._layer(layer) for layer in indices.listed("layers", layers)]
    answers = model.token_ids(candidates)
    if not layers or answers.ndim != 2 or len(answers) != len(base):
        raise UsageError(f"give a layer at least, and candidates [{len(base)}, k], a row for each pair; got {list(answers.shape)}")
    logits = np.zeros((len(layers), *answers.shape))
    emitted = np.full((len(layers), len(base)), -1, dtype=np.int64)
    order = sorted(set(layers))
    lengths = [len(model.tokens(text)) for text in base]
    for length in dict.fromkeys(lengths):
        same = [i for i, other in enumerate(lengths) if other == length]
        for start in range(0, len(same), batch_size):
            rows = same[start : start + batch_size]
            here, there = (model.encode([side[i] for i in rows]) for side in (base, source))
            run = wavefront.run_base(model, here)
            check_read_out(model, run)
            with resume.skipped(model, range(order[-1], model.anatomy.n_layers)):
                states = taps.read(model, there, ["resid_pre"], order)["resid_pre"]  # [layers, rows, d_model]
            joining = [(layer, state[:, None]) for layer, state in zip(order, states, strict=True)]
            hidden = wavefront.travel(model, run, here.input_ids.shape[1] - 1, joining).unflatten(0, (len(order), len(rows)))
            for place, layer in enumerate(order):
                where = np.flatnonzero(np.array(layers) == layer)[:, None]
                if vocabulary:
                    whole = read_out(model, hidden[place])
                    emitted[where, rows] = whole.argmax(-1).cpu().numpy()
                    found = whole.gather(1, answers[rows])
                else:
                    found = read_out(model, hidden[place], answers[rows])
                logits[where, rows] = found.double().cpu().numpy()
    return Moved(logits, emitted)


def read_out(model: LanguageModel, hidden: Tensor, tokens: Tensor | None = None) -> Tensor:
    """Logits from the final norm's output [n, d_model]: of the whole vocabulary [n, V], or of tokens [n, k] alone."""
    return model.anatomy.logits(hidden, tokens)


def check_read_out(model: LanguageModel, run: wavefront.Base) -> None:
    """Raise SubjectError where `read_out` is not how the model itself makes its logits (seen on the first text of a run)."""
    seen = read_out(model, run.last[:1])
    if float((seen - run.logits[:1]).abs().max()) > patching.TOLERANCE[model.dtype] * max(1.0, float(seen.abs().max())):
        raise SubjectError(f"{model.name} makes its logits from the final norm in a way that is not known here")
