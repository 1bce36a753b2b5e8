"""Vocabulary projections by group: what a state or a direction says in each language, script or class of words.

A group is a set of tokens. Of *states*, the probability of a group is the sum over its tokens of the lens's. Of *directions*, which have no
scale, a group's score is how far its tokens' mean lies above the vocabulary's, in standard errors of a mean of that many random tokens: 0 ± 1
for a random direction.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from nullius.errors import UsageError
from nullius.instruments import checks, lens
from nullius.instruments.direct_effects import pushed_through
from nullius.models.language_model import LanguageModel

Groups = Mapping[str, Sequence[int | str]]  # token ids, or words of one token; a token counts once


def of_words(model: LanguageModel, words: Mapping[str, Iterable[str]]) -> dict[str, list[int]]:
    """Groups of the first tokens of words, written behind a space and capitalised too; tokens that two groups share belong to neither.

    Raises UsageError for a group of which nothing is left, and for words that stand in no list.
    """
    for name, some in words.items():
        if isinstance(some, str):
            raise UsageError(f"the words of group '{name}' stand in a list: ['{some}'], not '{some}'")
    found = {name: {model.first_token(f" {form}") for word in some for form in (word, word.capitalize())} for name, some in words.items()}
    counts: dict[int, int] = {}
    for tokens in found.values():
        for token in tokens:
            counts[token] = counts.get(token, 0) + 1
    groups = {name: sorted(token for token in tokens if counts[token] == 1) for name, tokens in found.items()}
    for name, ids in groups.items():
        if not ids:
            raise UsageError(f"the words of group '{name}' share all their first tokens with other groups in {model.name}")
    return groups


def by_script(model: LanguageModel, least: int = 20) -> dict[str, list[int]]:
    """Tokens by the script of their letters (LATIN, CYRILLIC, CJK ...), tokens of two scripts or without a letter left out; scripts of `least`
    tokens or more."""
    groups: dict[str, list[int]] = {}
    for token in range(len(model.anatomy.unembedding())):
        text = model.tokenizer.decode([token])
        scripts = {unicodedata.name(letter, "?").split(" ")[0] for letter in text if letter.isalpha()}
        if len(scripts) == 1 and "\ufffd" not in text:
            groups.setdefault(scripts.pop(), []).append(token)
    return {name: ids for name, ids in sorted(groups.items()) if len(ids) >= least}


@torch.no_grad()
def mass(model: LanguageModel, states: Tensor, groups: Groups) -> Tensor:
    """Probability of each group when states of the residual stream [.., d_model] are read by the logit lens: [.., groups].

    Raises UsageError without a group, for an empty one, for what is no token, and for states of another width or not finite.
    """
    ids = _indices(model, groups)
    checks.finite(checks.wide(states, model.anatomy.d_model, "states"), "states")
    rows = states.reshape(-1, states.shape[-1])
    out = torch.empty(len(rows), len(ids))
    for start in range(0, len(rows), step := lens.rows_at_once(model)):
        p = lens.to_logits(model, rows[start : start + step]).softmax(-1)
        out[start : start + step] = torch.stack([p[:, tokens].sum(1) for tokens in ids], 1).cpu()
    return out.reshape(*states.shape[:-1], len(ids))


@torch.no_grad()
def scores(model: LanguageModel, directions: Tensor, groups: Groups) -> Tensor:
    """Standardised mean projection of each group's tokens onto directions [.., d_model]: [.., groups], through the final norm's gain.

    (mean over the group − mean over the vocabulary) / (deviation over the vocabulary · √(1/n − 1/V)). 0 for a zero direction. Errors as in `mass`.
    """
    ids = _indices(model, groups)
    checks.finite(checks.wide(directions, model.anatomy.d_model, "directions"), "directions")
    rows = directions.reshape(-1, directions.shape[-1])
    out = torch.empty(len(rows), len(ids))
    for start in range(0, len(rows), step := lens.rows_at_once(model)):
        along = _along(model, rows[start : start + step])
        size = along.shape[1]
        centre, deviation = along.mean(1), along.std(1, correction=0).clamp(min=1e-30)
        columns = [
            (along[:, t].mean(1) - centre) / (deviation * max(1 / len(t) - 1 / size, 1e-12) ** 0.5) for t in ids
        ]  # finite population: a group that is the whole vocabulary scores 0
        out[start : start + step] = torch.stack(columns, 1).cpu()
    return out.reshape(*directions.shape[:-1], len(ids))


@torch.no_grad()
def top_tokens(model: LanguageModel, direction: Tensor, k: int = 10) -> list[str]:
    """The k tokens that a direction [d_model] speaks for most, as text. Raises UsageError for several directions, or more tokens than there are."""
    size = len(model.anatomy.unembedding())
    if direction.ndim != 1 or not 1 <= k <= size:
        raise UsageError(f"top tokens are 1 to {size} of one direction [d_model]; got k = {k} and {list(direction.shape)}")
    checks.finite(checks.wide(direction, model.anatomy.d_model, "a direction"), "the direction")
    best = _along(model, direction[None])[0].topk(k).indices.tolist()
    return [model.tokenizer.decode([token]) for token in best]


def _along(model: LanguageModel, rows: Tensor) -> Tensor:
    """Logits [N, V] that directions [N, d_model] add: gain of the final norm (and its centring), no scale and no bias."""
    anatomy = model.anatomy
    known = torch.ones(1, anatomy.d_model, device=model.device, dtype=model.dtype)
    known[:, 1::2] = -1  # mean 0, mean square 1: there the norm has no scale of its own
    return pushed_through(anatomy.final_norm, known, rows.to(model.device).float()) @ anatomy.unembedding().float().T


def _indices(model: LanguageModel, groups: Groups) -> list[Tensor]:
    size = len(model.anatomy.unembedding())
    if not groups:
        raise UsageError("no group of tokens: give at least one")
    found = []
    for name, some in groups.items():
        ids = [] if isinstance(some, str) else list(dict.fromkeys(some))
        if not ids or any(not isinstance(token, str) and not 0 <= token < size for token in ids):
            raise UsageError(f"group '{name}' must hold tokens between 0 and {size - 1}, one at least")
        found.append(model.token_ids(ids).unique())
    return found
