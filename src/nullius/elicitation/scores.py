"""Log-likelihood of continuations given contexts, each shared prefix computed once.

All sequences are sorted and laid out as token tries: a token that several sequences share, at the same place after the same tokens, is one
node. A row of nodes goes through the unmodified model with a 4-D mask (a node attends to its ancestors and itself) and with depths as positions,
so that every node's logits are those of its own sequence. Nothing is padded within a row, the last token of a sequence is never fed, and logits
are made only where a continuation's token is predicted. A few-shot prompt, a context with several continuations, or two sentences that part at
their fifth word are all the same case, and cost what differs.

Boundary: context and continuation are tokenised apart, so the boundary is a token boundary; spaces at the end of a context are moved to the start
of the continuation first, where tokenizers expect them. Beginning of text: as in `LanguageModel.encode` (bos=True: one leading token where the
tokenizer has one); with it an empty context scores a whole text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nullius.errors import SubjectError
from nullius.models.language_model import LanguageModel

Request = tuple[str, str]  # context, continuation
Watch = Callable[[Sequence[Any]], Iterable[Any]]  # yields the rows it is given, and may show how many are done
LOGITS_HELD = 2**26  # numbers in one row's logits: 256 MB in float32


@dataclass(frozen=True)
class Score:
    """Token-level score of one continuation: its tokens, their log-probabilities in nats, and whether each was the most probable one.

    `greedy` is True exactly when greedy decoding from the context would write this continuation, token for token.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    greedy: bool

    @property
    def total(self) -> float:
        """Log-probability of the continuation, in nats."""
        return sum(self.logprobs)


def score(
    model: LanguageModel, requests: Sequence[Request], *, bos: bool = True, row_tokens: int | None = None, watch: Watch = iter
) -> list[Score]:
    """Score each (context, continuation). The numbers do not depend on the order of the requests nor on `row_tokens`, to rounding.

    row_tokens: nodes per row (default 512 on a CPU, where attention over other branches is paid for, and 2 048 on a GPU); a longer sequence gets
    a row of its own. Raises SubjectError for a continuation without tokens, or a context without any when there is no beginning-of-text token.
    """
    limit = row_tokens or (512 if model.device.type == "cpu" else 2048)
    memory: dict[str, tuple[int, ...]] = {}

    def tokens(text: str) -> tuple[int, ...]:
        if text not in memory:
            memory[text] = tuple(model.tokens(text)) if text else ()
        return memory[text]

    lead = (model.bos_id,) if bos and model.bos_id is not None else ()
    sequences = []
    for context, continuation in requests:
        body = context.rstrip(" ")
        before, after = lead + tokens(body), tokens(context[len(body) :] + continuation)
        if not after:
            raise SubjectError(f"nothing to score: the continuation of '…{context[-30:]}' has no tokens")
        if not before:
            raise SubjectError(
                f"nothing to condition on: '{continuation[:30]}' needs a context, {model.name} has no beginning-of-text token"
            )
        sequences.append((before, after))
    found: dict[int, Score] = {}
    rows = list(_rows(sequences, limit, LOGITS_HELD // len(model.anatomy.unembedding())))
    for row in watch(rows):
        found |= _run(model, row, sequences)
    return [found[i] for i in range(len(sequences))]


@dataclass
class _Row:
    """A trie laid out depth first: parents come before children. places: request number → the nodes that predict its continuation."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    places: dict[int, list[int]] = field(default_factory=dict)
    predicting: set[int] = field(default_factory=set)


def _rows(sequences: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], max_tokens: int, max_predicting: int) -> Iterator[_Row]:
    """Fill rows with sequences in lexical order, so that what shares a prefix stands together."""
    whole = [before + after for before, after in sequences]
    row, path, previous = _Row(), [], ()  # type: _Row, list[int], tuple[int, ...]
    for i in sorted(range(len(whole)), key=whole.__getitem__):
        fed = whole[i][:-1]
        shared = _common(previous, fed)
        new = len(fed) - shared
        first = len(sequences[i][0]) - 1
        if row.tokens and (len(row.tokens) + new > max_tokens or len(row.predicting) + len(fed) - first > max_predicting):
            yield row
            row, path, shared = _Row(), [], 0
        path = path[:shared]
        for depth in range(shared, len(fed)):
            row.parents.append(path[-1] if path else -1)
            path.append(len(row.tokens))
            row.tokens.append(fed[depth])
            row.depths.append(depth)
        row.places[i] = path[first:]
        row.predicting.update(path[first:])
        previous = fed
    if row.tokens:
        yield row


def _common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    n = 0
    for left, right in zip(a, b, strict=False):
        if left != right:
            break
        n += 1
    return n


@torch.no_grad()
def _run(model: LanguageModel, row: _Row, sequences: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> dict[int, Score]:
    n = len(row.tokens)
    sees = np.zeros((n, n), dtype=bool)
    for node, parent in enumerate(row.parents):
        if parent >= 0:
            sees[node] = sees[parent]
        sees[node, node] = True
    depths = torch.tensor(row.depths)
    positions = sorted(row.predicting)
    logits = model.hf(
        input_ids=torch.tensor([row.tokens], device=model.device),
        attention_mask=_masks(model, torch.from_numpy(sees), depths),
        position_ids=depths[None].to(model.device),
        use_cache=False,
        logits_to_keep=torch.tensor(positions, device=model.device),
    ).logits[0]
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    best, norm = logits.max(-1).values, logits.logsumexp(-1)
    line = {node: i for i, node in enumerate(positions)}
    lines = torch.tensor([line[node] for nodes in row.places.values() for node in nodes], device=model.device)
    wanted = torch.tensor([token for i in row.places for token in sequences[i][1]], device=model.device)
    gold = logits[lines, wanted]
    logprobs, greedy = (gold - norm[lines]).tolist(), (gold == best[lines]).tolist()
    scores, start = {}, 0
    for i, nodes in row.places.items():
        end = start + len(nodes)
        scores[i] = Score(sequences[i][1], tuple(logprobs[start:end]), all(greedy[start:end]))
        start = end
    return scores


def _masks(model: LanguageModel, sees: Tensor, depths: Tensor) -> Tensor | dict[str, Tensor]:
    """The additive mask [1, 1, n, n]; for models with sliding windows shorter than the row is deep, one mask per type of layer."""
    config = model.hf.config.get_text_config()

    def additive(allowed: Tensor) -> Tensor:
        mask = torch.zeros(allowed.shape, dtype=model.dtype).masked_fill_(~allowed, torch.finfo(model.dtype).min)
        return mask[None, None].to(model.device)

    types = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    window = getattr(config, "sliding_window", None) if "sliding_attention" in types else None
    if window is None or int(depths.max()) < window:
        return additive(sees)
    near = additive(sees & (depths[:, None] - depths[None, :] < window))
    return near if types == {"sliding_attention"} else {"full_attention": additive(sees), "sliding_attention": near}
