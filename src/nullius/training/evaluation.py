"""Looking at a model while it is trained: the loss on held-out text, and how it continues a few beginnings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nullius.training.packed import Packed
from nullius.training.processes import Processes

Head = Callable[[Tensor, Tensor], Tensor]


def loss_of(body: Any, rows: Tensor, head: Head | None = None) -> Tensor:
    """Mean loss in nats per token of rows [n, T + 1]: each token but the first is predicted from those before it.

    head: what makes the loss of logits and targets (`cross_entropy`, or the same compiled).
    """
    return (head or cross_entropy)(body(input_ids=rows[:, :-1], use_cache=False).logits, rows[:, 1:])


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of logits [.., V] and token ids [..], computed in float32."""
    return nn.functional.cross_entropy(logits.flatten(0, -2).float(), targets.flatten())


def held_out_rows(sets: list[Packed], sequence: int, n: int, here: Processes) -> Tensor:
    """Return this process's share [.., sequence + 1] of n windows, taken from the sets in turn; each process gets equally many."""
    chosen: list[tuple[int, int]] = []
    i = 0
    sizes = [each.windows(sequence) for each in sets]
    while len(chosen) < n and i < max(sizes):
        chosen += [(k, i) for k, size in enumerate(sizes) if i < size]
        i += 1
    chosen = chosen[: min(n, len(chosen))]
    count = max(here.world, len(chosen) // here.world * here.world)
    mine = [chosen[j % len(chosen)] for j in range(here.rank, count, here.world)]
    return torch.stack([torch.from_numpy(sets[k].window(i, sequence)) for k, i in mine])


@torch.no_grad()
def held_out_loss(body: Any, rows: Tensor, micro: int, here: Processes) -> float:
    """Mean loss over the rows of all processes, in nats per token."""
    body.eval()
    sums = [float(loss_of(body, part.to(here.device))) * len(part) for part in rows.split(micro)]
    body.train()
    return here.total(sum(sums)) / here.total(len(rows))


@torch.no_grad()
def continuation(body: Any, tokenizer: Any, beginning: str, separator: int, n: int, device: torch.device) -> str:
    """Return the n most probable next tokens, one after the other, as text. No cache is used: any architecture can do that. Of a text longer
    than the model takes, the last tokens count."""
    body.eval()
    longest = getattr(body.config.get_text_config(), "max_position_embeddings", None) or 0
    ids = [separator, *tokenizer(beginning, add_special_tokens=False, verbose=False)["input_ids"]]
    given = len(ids)
    for _ in range(n):
        logits = body(input_ids=torch.tensor([ids[-longest:]], device=device), use_cache=False).logits[0, -1]
        ids.append(int(logits.argmax()))
        if ids[-1] == separator:
            break
    body.train()
    return tokenizer.decode(ids[given:], skip_special_tokens=True)
