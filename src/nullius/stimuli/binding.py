"""Binding tasks: groups of entities that belong together, told one after another, and a question for one by another (after Gur-Arieh et al. 2025).

    The apple is in Box C, the lamp is in Box A, the coin is in Box F. Box A contains the

A group has an entity of each category. The question names one (the key) and asks for another (the answer). Interchange triples (`triple`) are pairs
of such texts, base and source, made so that the state in which the source's question is decided would, put into the base, choose a different group
by each way in which a model may keep it: by the group's place, by the key, or by the answer itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from nullius.stimuli.binding_tasks import FILLERS, TASKS, Task

Kind = Literal["all", "new answer", "new key", "both new", "index only"]
KINDS: tuple[Kind, ...] = ("all", "new answer", "new key", "both new", "index only")


@dataclass(frozen=True)
class Bound:
    """A text. groups: entities in the order of the task's categories; key, answer: numbers of categories; asked: the key that is asked about.

    fillers: sentences without entities, one after each group but the last; none where empty.
    """

    task: Task
    groups: tuple[tuple[str, ...], ...]
    key: int
    answer: int
    asked: str
    fillers: tuple[str, ...] = ()

    @property
    def index(self) -> int:
        """The place of the group asked about. Raises ValueError where the key is in none."""
        return [group[self.key] for group in self.groups].index(self.asked)

    @property
    def candidates(self) -> tuple[str, ...]:
        """The answers of all groups, in their order, each with a leading space."""
        return tuple(f" {group[self.answer]}" for group in self.groups)

    @cached_property
    def prompt(self) -> str:
        """The whole text; the next word is the answer."""
        told = [self.task.group.format(**dict(zip(self.task.categories, group, strict=True))) for group in self.groups]
        if self.fillers:
            text = " ".join(f"{_sentence(one)} {filler}" for one, filler in zip(told, (*self.fillers, ""), strict=True)).rstrip()
        else:
            text = _sentence(", ".join(told))
        return f"{text} {self.task.question(self.key, self.answer, self.asked)}"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


@dataclass(frozen=True)
class Triple:
    """Base and source, and the group of the base to which each way of keeping the source's question points; None where it points to none.

    positional: the place of the source's group. lexical: where the source's key stands in the base. reflexive: where its answer stands.
    """

    base: Bound
    source: Bound
    positional: int
    lexical: int | None
    reflexive: int | None

    @property
    def unchanged(self) -> int:
        """The group that the base's own question points to."""
        return self.base.index


def draw(
    rng: np.random.Generator,
    task: Task,
    groups: int,
    *,
    key: int = -1,
    answer: int = 0,
    pools: Sequence[Sequence[str]] | None = None,
    fillers: bool = False,
) -> Bound:
    """Draw a text at random. key, answer: numbers of categories (−1 the last). pools: words of each category (`single`; default: the task's).

    Raises ValueError for more groups than a pool has words, or the same category as key and answer.
    """
    chosen = pools or task.pools
    n = len(task.categories)
    key, answer = key % n, answer % n
    short = min(map(len, chosen))
    if not 0 < groups <= short or key == answer:
        raise ValueError(f"{groups} groups of {task.name} need as many words of each category (the fewest: {short}), and key ≠ answer")
    columns = [[pool[i] for i in rng.permutation(len(pool))[:groups]] for pool in chosen]
    told = tuple(zip(*columns, strict=True))
    between = tuple(FILLERS[i] for i in rng.integers(len(FILLERS), size=groups - 1)) if fillers else ()
    return Bound(task, told, key, answer, told[int(rng.integers(groups))][key], between)


def triple(
    rng: np.random.Generator,
    base: Bound,
    cell: tuple[int, int, int] | None = None,
    kind: Kind = "all",
    pools: Sequence[Sequence[str]] | None = None,
) -> Triple:
    """Make the source of a base. cell: the places (positional, lexical, reflexive), at random and all different when None.

    "all": the answers of groups positional and reflexive change places, so do the keys of groups positional and lexical, and the source asks about
    group positional by its new key. "new answer", "new key", "both new": what the group gets is strange to the base instead, and that way of
    keeping the question points nowhere. "index only": nothing changes places, and another group is asked about. Raises ValueError where a place is
    the one that the base asks about, or equals positional.
    """
    i0, n = base.index, len(base.groups)
    if cell is None:
        others = [i for i in rng.permutation(n).tolist() if i != i0]
        if len(others) < 3:
            raise ValueError("places that are all different need at least four groups")
        cell = (others[0], others[1], others[2])
    p, k, r = cell
    if i0 in cell or p in (k, r) or not all(0 <= i < n for i in cell):
        raise ValueError(
            f"places {cell} must lie among {n} groups, differ from the {i0} that the base asks about, and the first from the others"
        )
    rows = [list(group) for group in base.groups]
    if kind == "index only":
        return Triple(base, replace(base, asked=rows[p][base.key]), p, p, p)
    chosen = pools or base.task.pools
    if kind in ("new answer", "both new"):
        rows[p][base.answer] = _stranger(rng, chosen[base.answer], base, base.answer)
    else:
        rows[p][base.answer], rows[r][base.answer] = rows[r][base.answer], rows[p][base.answer]
    if kind in ("new key", "both new"):
        rows[p][base.key] = _stranger(rng, chosen[base.key], base, base.key)
    else:
        rows[p][base.key], rows[k][base.key] = rows[k][base.key], rows[p][base.key]
    source = replace(base, groups=tuple(map(tuple, rows)), asked=rows[p][base.key])
    return Triple(base, source, p, None if kind in ("new key", "both new") else k, None if kind in ("new answer", "both new") else r)


def _stranger(rng: np.random.Generator, pool: Sequence[str], base: Bound, category: int) -> str:
    there = {group[category] for group in base.groups}
    others = [word for word in pool if word not in there]
    if not others:
        raise ValueError(f"no word of {base.task.categories[category]} is left that the base does not have")
    return others[int(rng.integers(len(others)))]


def asking(base: Bound, place: int) -> Bound:
    """The same groups, the one at a place asked about."""
    return replace(base, asked=base.groups[place][base.key])


def single(task: Task, tokens: Callable[[str], Sequence[int]], unknown: int | None = None) -> tuple[tuple[str, ...], ...]:
    """The pools of a task with only those words that are one token with a leading space, no two with the same one.

    tokens: text → token ids. unknown: the id of what is not in the vocabulary.
    """
    pools = []
    for pool in task.pools:
        seen: dict[int, str] = {}
        for word in pool:
            ids = tokens(f" {word}")
            if len(ids) == 1 and ids[0] != unknown:
                seen.setdefault(ids[0], word)
        pools.append(tuple(seen.values()))
    return tuple(pools)


__all__ = ["KINDS", "TASKS", "Bound", "Kind", "Task", "Triple", "asking", "draw", "single", "triple"]
