"""A set of stimuli: items that share a type, with what they share (a country, a template) at hand for splitting and clustering."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

T = TypeVar("T")


@dataclass(frozen=True)
class Stimuli(Generic[T]):
    """An ordered, immutable set of items. A field is any attribute of the items, named as a string."""

    items: tuple[T, ...]

    @classmethod
    def of(cls, items: Iterable[T]) -> Stimuli[T]:
        """Make a set of any iterable."""
        return cls(tuple(items))

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)

    def __getitem__(self, index: int) -> T:
        return self.items[index]

    def field(self, name: str) -> list[Any]:
        """Return one field of every item, in order (cluster labels, prompts ...). Raises AttributeError for an unknown field."""
        return [getattr(item, name) for item in self.items]

    def where(self, keep: Callable[[T], bool]) -> Stimuli[T]:
        """Return the items for which `keep` is true."""
        return Stimuli.of(item for item in self.items if keep(item))

    def split(self, fraction: float, rng: np.random.Generator, by: str | None = None) -> tuple[Stimuli[T], Stimuli[T]]:
        """Split at random into two sets, the first holding `fraction` of the groups.

        by: the field whose values are the groups; a group stays whole on one side. None: every item is its own group.
        Raises ValueError when one side would be empty.
        """
        groups = self._groups(by)
        names = list(dict.fromkeys(groups))
        cut = round(fraction * len(names))
        if not 0 < cut < len(names):
            raise ValueError(f"cannot split {len(names)} groups at {fraction}: one side would be empty")
        chosen = {names[i] for i in rng.permutation(len(names))[:cut]}
        return self._pick(groups, chosen), self._pick(groups, set(names) - chosen)

    def sample(self, n: int, rng: np.random.Generator, by: str | None = None) -> Stimuli[T]:
        """Return `n` items drawn without replacement (all when there are fewer), in their order; `by`: all items of `n` groups."""
        groups = self._groups(by)
        names = list(dict.fromkeys(groups))
        return self._pick(groups, {names[i] for i in rng.permutation(len(names))[:n]})

    def _groups(self, by: str | None) -> list[Hashable]:
        return self.field(by) if by else list(range(len(self.items)))

    def _pick(self, groups: list[Hashable], chosen: set[Hashable]) -> Stimuli[T]:
        return Stimuli.of(item for item, group in zip(self.items, groups, strict=True) if group in chosen)
