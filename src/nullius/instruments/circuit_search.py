"""Finding a circuit backwards, group by group: first the heads that write the answer, then those that tell them, and so on (Prakash et al. 2024).

Each link of the chain is a path-patching sweep over all heads at one position. The first reads the logits, each later one what the heads found
before it read, through their queries, keys or values. The heads whose patch takes most of the metric away make the group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nullius.errors import UsageError
from nullius.instruments import paths
from nullius.instruments.circuits import Group
from nullius.instruments.heads import Head
from nullius.instruments.patching import Metric
from nullius.instruments.path_runs import At
from nullius.models.language_model import Batch, LanguageModel


@dataclass(frozen=True)
class Link:
    """One group: its heads' position in base texts, where their source value is taken from, and what of the group before it they write into.

    size: heads to keep.
    """

    name: str
    size: int
    at: int | tuple[int, ...] = -1
    into: Literal["logits", "q", "k", "v"] = "logits"
    source_at: At = None


@dataclass(frozen=True)
class Found:
    """The groups in the order of the links, and each link's mean effect on the metric [layers, heads] (0 where no path leads on)."""

    groups: tuple[Group, ...]
    effects: tuple[Tensor, ...]


def chain(
    model: LanguageModel,
    base: Sequence[str] | Batch,
    source: Sequence[str] | Batch,
    answers: Sequence[Sequence[int]],
    links: Sequence[Link],
    *,
    metric: Metric,
    scores: Literal["logits", "log_probs"] = "log_probs",
    checks: int = 2,
    progress: Callable[[Sequence[Link]], Iterable[Link]] = iter,
) -> Found:
    """Follow the links backwards. A group holds the heads with the most negative mean effect, the strongest first, none with a positive one.

    progress: wraps the links. Errors as in `paths.patch`; a link whose predecessor found no head finds none either. Raises UsageError for a first
    link that reads anything but the logits, and for a size below 0.
    """
    if links and links[0].into != "logits":
        raise UsageError(f"the first link of a chain writes into the logits; '{links[0].name}' writes into {links[0].into} of nothing")
    if any(link.size < 0 for link in links):
        raise UsageError("a link keeps 0 heads or more")
    groups: list[Group] = []
    effects: list[Tensor] = []
    senders = paths.all_senders(model, mlps=False)
    shape = (model.anatomy.n_layers, model.anatomy.n_heads)
    for link in progress(links):
        receivers = () if link.into == "logits" else paths.receivers_of(model, link.into, groups[-1].heads, link.at)
        if link.into != "logits" and not receivers:
            groups.append(Group(link.name, (), link.at))
            effects.append(torch.zeros(shape))
            continue
        found = paths.patch(
            model, base, source, senders, answers, receivers=receivers, at=link.at, source_at=link.source_at, metric=metric, scores=scores,
            checks=checks,
        )  # fmt: skip
        mean = found.effect().mean(0)
        order = [int(i) for i in mean.argsort(stable=True)[: link.size] if float(mean[i]) < 0]
        groups.append(Group(link.name, tuple(Head(*divmod(i, shape[1])) for i in order), link.at))
        effects.append(mean.view(shape))
    return Found(tuple(groups), tuple(effects))
