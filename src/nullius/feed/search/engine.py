"""The one search: known items first, then words and meaning fused, within the filters of the query.

Words and meaning each give their best 200; a paper's score is Σ 1/(60 + rank) over the lists it is in (Cormack et al. 2009). A paper named by id
or slug, one whose title holds the whole phrase, and at most five whose titles hold all the words go before. Filters act inside both lists.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nullius.errors import UsageError
from nullius.feed import cards
from nullius.feed.database import reading
from nullius.feed.search import filters, minilm, vectors, weights, words
from nullius.feed.search.query import Query, parse
from nullius.feed.shapes import Card, plain

if TYPE_CHECKING:
    import sqlalchemy as sa
    from tantivy import Query as Condition
    from tantivy import Searcher

BEST = 200
SMOOTHING = 60
IN_TITLE = 5
LEAST_COSINE = 0.2  # below it nothing is alike: unrelated texts lie around 0.05 ± 0.07
NEAR_BEST = {"words": 0.4, "meaning": 0.75}  # a list ends where scores fall below this part of its best: chosen on the tuning half
ALIKE = 20_000  # papers up to which a filter is met by scoring all of them
Why = Literal["known", "words", "meaning", "both"]
NO_WEIGHTS = "by words only: the weights for meaning are not here (`nullius feed index` fetches them)"
NO_VECTORS = "by words only: no paper is embedded yet (`nullius feed index` does it)"


@dataclass(frozen=True)
class Hit:
    """A paper that was found, and by what."""

    card: Card
    why: Why


@dataclass(frozen=True)
class Results:
    """What a search found. total: all that was found (of which `hits` is a page); cursor: of the next page; removed: by filter, without hits.

    messages: what was not understood or is not available, in sentences for the reader. meaning: whether meaning took part.
    """

    query: Query
    hits: tuple[Hit, ...]
    total: int
    cursor: str
    milliseconds: float
    meaning: bool
    messages: tuple[str, ...] = ()
    removed: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the results as plain JSON data."""
        hits = [{**plain(hit.card), "why": hit.why} for hit in self.hits]
        chips = [{"name": one.name, "value": plain(one.value), "text": one.text} for one in self.query.filters]
        own = {"query": self.query.text, "filters": chips, "total": self.total, "cursor": self.cursor, "meaning": self.meaning}
        return {**own, "milliseconds": self.milliseconds, "messages": list(self.messages), "removed": dict(self.removed), "hits": hits}


def search(
    text: str, *, limit: int = 50, cursor: str = "", subject: str = "", account: str | None = None, update: bool = True, by: str = "both"
) -> Results:
    """Search for papers. Any text will do; what is not understood stands in `messages`.

    subject, account: as in `cards.from_rows`. update: index papers that changed first, where they are few. by: both, words or meaning.
    Raises UsageError for a bad cursor, NulliusError for a database that cannot be read.
    """
    started = time.perf_counter()
    query = parse(text)
    first = _place(cursor)
    messages = list(query.messages)
    index = words.open_index()
    with reading() as connection:
        if update and not index.catch_up(connection):
            messages.append("many papers are not indexed yet: `nullius feed index`")
        found = _Search(connection, index, query, by)
        ranked = found.ranked()
        removed = {} if ranked else found.removed()
        page = ranked[first : first + limit]
        shown = {card.id: card for card in cards.by_ids(connection, [number for number, _ in page], subject=subject, account=account)}
    messages += found.messages
    hits = tuple(Hit(shown[number], why) for number, why in page if number in shown)
    following = str(first + limit) if first + limit < len(ranked) else ""
    milliseconds = round(1000 * (time.perf_counter() - started), 1)
    return Results(query, hits, len(ranked), following, milliseconds, found.meant, tuple(messages), removed)


def rank(text: str, *, by: str = "both", index: words.WordIndex | None = None) -> list[int]:
    """Return the numbers of what a search finds, best first; for measuring."""
    with reading() as connection:
        return [number for number, _ in _Search(connection, index or words.open_index(), parse(text), by).ranked()]


def _place(cursor: str) -> int:
    if cursor and not (cursor.isdecimal() and len(cursor) < 7):
        raise UsageError(f"'{cursor[:40]}' is no place in this list; begin at its first page")
    return int(cursor or 0)


class _Search:
    """One query at work on one state of the index."""

    def __init__(self, connection: sa.Connection, index: words.WordIndex, query: Query, by: str) -> None:
        self.connection, self.index, self.query, self.by = connection, index, query, by
        self.searcher: Searcher = index.searcher()
        self.messages: list[str] = []
        self.meant = False

    def ranked(self) -> list[tuple[int, Why]]:
        within = self._within(self.query)
        if not self.query.asked:
            if not self.query.known and not self.query.filters and not self.query.excluded:
                return []
            named = self._named(within)
            if self.query.known:
                return [(number, "known") for number in named]
            return [
                (number, "words")
                for number in self.index.top(self.searcher, filters.both(filters.everything(), within), 2 * BEST, newest=True)[0]
            ]
        by_words = self._by_words(within) if self.by != "meaning" else []
        by_meaning = self._by_meaning(within) if self.by != "words" else []
        first = self._known_items(within) if self.by != "meaning" else []
        scores: dict[int, float] = {}
        for ranking in (by_words, by_meaning):
            for position, number in enumerate(ranking, start=1):
                scores[number] = scores.get(number, 0.0) + 1 / (SMOOTHING + position)
        in_words, in_meaning = set(by_words), set(by_meaning)
        fused = sorted(scores, key=lambda number: -scores[number])
        known = dict.fromkeys(first)
        ordered: list[tuple[int, Why]] = [(number, "known") for number in known]
        for number in fused:
            if number not in known:
                ordered.append((number, "both" if number in in_words & in_meaning else "words" if number in in_words else "meaning"))
        return ordered

    def removed(self) -> dict[str, int]:
        """How many papers each filter alone keeps from being found; of several that each keep out all, how many of what there is without any."""
        counts = {}
        for one in self.query.filters:
            rest = self.query.without(one)
            counts[one.text] = self.index.count(self.searcher, self._matching(rest))
        if not any(counts.values()):
            total = self.index.count(self.searcher, self._matching(replace(self.query, filters=())))
            for one in self.query.filters:
                counts[one.text] = total - self.index.count(self.searcher, self._matching(replace(self.query, filters=(one,))))
        return {text: number for text, number in counts.items() if number}

    def _matching(self, query: Query) -> Condition:
        """Papers that match some of the words and all filters."""
        found, _ = self.index.any_of(query.asked.split(), self.searcher) if query.asked else (None, [])
        return filters.both(found if found is not None else filters.everything(), self._within(query))

    def _within(self, query: Query) -> Condition | None:
        return filters.condition(self.connection, self.index, query)

    def _by_words(self, within: Condition | None) -> list[int]:
        found, missing = self.index.any_of([*self.query.words, *" ".join(self.query.phrases).split()], self.searcher)
        if missing:
            self.messages.append(f"no paper has {', '.join(f'“{word}”' for word in missing[:5])}: searched for words one letter away")
        return _near_best("words", *self.index.top(self.searcher, filters.both(found, within), BEST)) if found is not None else []

    def _by_meaning(self, within: Condition | None) -> list[int]:
        if not weights.here():
            self.messages.append(NO_WEIGHTS)
            return []
        held = vectors.open_vectors(words.folder() / "vectors")
        if not len(held):
            self.messages.append(NO_VECTORS)
            return []
        self.meant = True
        wanted = minilm.load(weights.folder()).encode([self.query.prose or self.query.asked])[0]
        if within is None:
            numbers, cosines = held.nearest(wanted, BEST)
            return _alike(numbers, cosines)
        matching = self.index.count(self.searcher, within)
        if matching <= ALIKE:
            among = np.array(self.index.top(self.searcher, within, matching)[0], np.int64)
            return _alike(*held.nearest(wanted, BEST, among))
        limit = 4 * BEST * max(1, len(held) // matching)
        while True:  # the nearest that pass the filter are among the nearest, if enough of those are looked at
            likely = held.likely(wanted, limit)
            passing = self.index.top(self.searcher, filters.both(self.index.ids(likely), within), len(likely))[0]
            if len(passing) >= 2 * BEST or limit >= len(held):
                return _alike(*held.nearest(wanted, BEST, np.array(passing, np.int64)))
            limit *= 8

    def _known_items(self, within: Condition | None) -> list[int]:
        """Papers that the query names: by id or slug, by a phrase of the title, by all its words in the title (at most five).

        All of it as one phrase comes before what is quoted in it: titles have quotation marks too.
        """
        found = self._named(within)
        whole = [self.query.prose] if len(self.index.terms(self.query.prose)) > 1 else []
        for phrase in [*whole, *self.query.phrases]:
            if (wanted := self.index.phrase("title", phrase)) is not None:
                found += self.index.top(self.searcher, filters.both(wanted, within), IN_TITLE)[0]
        terms = dict.fromkeys(self.index.terms(" ".join(word for word in self.query.words if word.lower() not in words.STOP_WORDS)))
        if terms:
            found += self.index.top(self.searcher, filters.both(self.index.all_of("title", terms), within), IN_TITLE)[0]
        return list(dict.fromkeys(found))

    def _named(self, within: Condition | None) -> list[int]:
        names = [*self.query.known, self.query.text.strip().lower()]
        numbers = filters.numbers_of(self.connection, names)
        if within is None or not numbers:
            return numbers
        return [number for number in numbers if self.index.count(self.searcher, filters.both(self.index.ids([number]), within))]


def _alike(numbers: Sequence[int], cosines: Sequence[float]) -> list[int]:
    known = [(number, cosine) for number, cosine in zip(numbers, cosines, strict=True) if cosine >= LEAST_COSINE]
    return _near_best("meaning", [number for number, _ in known], [cosine for _, cosine in known])


def _near_best(way: str, numbers: Sequence[int], scores: Sequence[float]) -> list[int]:
    """Cut a list where it only goes on because something has to come next."""
    return [number for number, score in zip(numbers, scores, strict=True) if score >= NEAR_BEST[way] * scores[0]]
