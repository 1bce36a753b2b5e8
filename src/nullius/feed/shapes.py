"""What the feed hands to pages, the JSON interface and assistants: plain, frozen, complete."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Order = Literal["newest", "voted", "contested", "untested"]
ORDERS: tuple[Order, ...] = ("newest", "voted", "contested", "untested")


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; an open end is infinite."""

    value: float
    lo: float
    hi: float


@dataclass(frozen=True)
class Cell:
    """The verdict on one wording of a claim on one subject: the newest full run's, else the newest quick one's.

    runs: how many finished runs gave a verdict on it; agreeing: how many of them gave this word. `note` says so where they disagree.
    """

    slug: str
    claim: str
    digest: str
    subject_sha256: str
    word: str
    run: str
    full: bool
    seed: int
    finished: str
    runs: int
    agreeing: int
    n: int | None
    effect: Estimate | None
    control: Estimate | None
    reason: str
    p_holm: float | None

    @property
    def note(self) -> str:
        """Return "2 of 3 hold" where runs disagree, else an empty string."""
        verb = {"holds": "hold", "fails": "fail"}.get(self.word, self.word)
        return "" if self.agreeing == self.runs else f"{self.agreeing} of {self.runs} {verb}"


@dataclass(frozen=True)
class Card:
    """A paper as lists show it. title: readable (TeX made Unicode), plain text, to be escaped like any other.

    key: what its address is made of (slug, else arXiv id, else "p" and a number). summary: one or two sentences; summary_source: empty for
    ours, "abstract", or whose it is. cells: verdicts on the subject asked for. voted, saved: by the account asked for.
    """

    id: int
    key: str
    slug: str | None
    arxiv_id: str | None
    title: str
    summary: str
    summary_source: str
    authors: tuple[str, ...]
    n_authors: int | None
    published: datetime.date | None
    date_inferred: bool
    category: str | None
    question: str | None
    code: str | None
    withdrawn: bool
    votes: int
    notes: int
    runnable: bool
    minutes: float | None
    signals: Mapping[str, int]
    cells: tuple[Cell, ...] = ()
    subjects: int = 0  # on how many subjects it was run
    voted: bool = False
    saved: bool = False
    changed: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the card as plain JSON data."""
        return plain(self)


@dataclass(frozen=True)
class Listing:
    """A list of papers and the way on. total counts all of it, runnable those of it that have a study; cursor is empty at the end."""

    cards: tuple[Card, ...]
    total: int
    runnable: int
    cursor: str


@dataclass(frozen=True)
class Period:
    """The papers of a day, a week or a month. older, newer: the nearest periods that have papers. decided: verdicts given in it, by word."""

    name: str  # 2025-11-04, 2025-W45, 2025-11
    first: datetime.date
    last: datetime.date
    listing: Listing
    older: str | None
    newer: str | None
    decided: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Heat:
    """A trending score now, in its parts: score = publication + votes + runs + verdicts + upvotes."""

    score: float
    publication: float
    votes: float
    runs: float
    verdicts: float
    upvotes: float


@dataclass(frozen=True)
class Trending:
    """Papers by heat, each with the parts of its score (same order as listing.cards)."""

    listing: Listing
    heats: tuple[Heat, ...]


@dataclass(frozen=True)
class Found:
    """A paper that was asked for by some name. redirect: its proper key where another one was used."""

    id: int
    key: str
    redirect: bool


@dataclass(frozen=True)
class Origin:
    """Where something of a paper was read."""

    source: str
    external_id: str
    version: int | None
    fetched_at: str


@dataclass(frozen=True)
class Paper:
    """All that is known of a paper; `card` holds what lists show, raw_title the title as given, about our paragraph on one of the catalogue."""

    card: Card
    raw_title: str
    abstract: str | None
    their_summary: str | None
    their_summary_source: str | None
    doi: str | None
    version: int | None
    comment: str | None
    journal_ref: str | None
    categories: tuple[str, ...]
    days: tuple[datetime.date, ...]
    origins: tuple[Origin, ...]
    about: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the paper as plain JSON data."""
        return plain(self)


@dataclass(frozen=True)
class ClaimRow:
    """A wording of a claim. description: as nullius.lab.studies.describe gives it (for a retired wording: what its verdicts keep of it)."""

    claim: str
    digest: str
    wording: str
    published: float | str | None
    unit: str
    control: str
    retired: bool
    description: Mapping[str, Any]


@dataclass(frozen=True)
class SubjectColumn:
    """A subject that has verdicts: its weights' hash identifies it, names may repeat."""

    sha256: str
    name: str
    parameters: int
    architecture: str


@dataclass(frozen=True)
class Matrix:
    """Claims × subjects of one paper. cells: by (claim digest, subject hash); what is not in it was not run."""

    claims: tuple[ClaimRow, ...]
    subjects: tuple[SubjectColumn, ...]
    cells: Mapping[tuple[str, str], Cell]

    def to_dict(self) -> dict[str, Any]:
        """Return the matrix as plain JSON data: cells become a list."""
        own = {"claims": plain(self.claims), "subjects": plain(self.subjects)}
        return {**own, "cells": [{**plain(cell), "note": cell.note} for cell in self.cells.values()]}


@dataclass(frozen=True)
class StudyFacts:
    """What a paper's study offers to who runs it. options: [{name, values, help}], the first value is the default."""

    slug: str
    question: str
    minutes: float
    subject: str
    trains_its_own: bool
    options: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Note:
    """A note of the discussion. html: sanitised; empty for a removed one, whose place stays. replies: one level, oldest first."""

    id: int
    paper: int
    run: str | None
    claim: str | None
    account: str | None
    author: str
    text: str
    html: str
    created: str
    edited: str | None
    removed: bool
    replies: tuple[Note, ...] = ()


@dataclass(frozen=True)
class SavedPaper:
    """A paper in an account's library."""

    card: Card
    created: str
    note: str
    read_at: str | None
    collection: str


def plain(value: Any) -> Any:
    """Return dataclasses, dates and tuples as JSON data."""
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, list | tuple) else value
