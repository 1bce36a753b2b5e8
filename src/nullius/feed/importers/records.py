"""A paper as an importer read it, checked; and what becomes of one that cannot be used."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nullius.errors import NulliusError
from nullius.feed.text import arxiv_id as parts_of
from nullius.feed.text import clean, one_line

_DOI = re.compile(r"10\.\d{4,9}/\S+")
LONGEST = {
    "title": 2_000,
    "abstract": 50_000,
    "name": 300,
    "short": 1_000,
    "doi": 300,
    "authors": 4_000_000,
}  # characters; longer than any real one


EXPECTED = "JSON of Hugging Face, Atom or OAI-PMH of arXiv, BibTeX or a saved Daily Papers page"


class Unreadable(NulliusError):
    """An input, or the rest of it, cannot be read; whole records before the break were given out already."""


class BadRecord(Exception):
    """One record cannot be used; the message says why, in one line that a database takes."""

    def __init__(self, reason: str) -> None:
        super().__init__(one_line(reason))


@dataclass(frozen=True)
class Reject:
    """A record that was left out: where it stood, why, and how it begins."""

    position: str
    reason: str
    head: str


@dataclass(frozen=True)
class Record:
    """A paper as one source tells it. What the source does not tell is empty or None.

    external_id: the source's name for it (with version, where there are versions). days: the daily pages that it stood on. signals: counts, by
    kind. withdrawn without a title: the source says only that the paper is gone.
    """

    source: str
    external_id: str
    title: str = ""
    version: int | None = None
    arxiv_id: str | None = None
    doi: str | None = None
    abstract: str = ""
    their_summary: str = ""
    authors: tuple[str, ...] = ()
    n_authors: int | None = None
    published: datetime.date | None = None
    date_inferred: bool = False
    categories: tuple[str, ...] = ()
    primary_category: str | None = None
    comment: str = ""
    journal_ref: str = ""
    code: str | None = None
    withdrawn: bool = False
    days: tuple[datetime.date, ...] = ()
    signals: Mapping[str, int] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 of everything the record says."""
        said = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return hashlib.sha256(json.dumps(said, sort_keys=True, default=str, ensure_ascii=False).encode()).hexdigest()


def arxiv_id(text: str) -> tuple[str, int | None]:
    """Return an arXiv id without its version, and the version. Raises BadRecord for anything else.

    >>> arxiv_id("arXiv:2310.15910v2"), arxiv_id("hep-th/9901001")
    (('2310.15910', 2), ('hep-th/9901001', None))
    """
    found = parts_of(text)
    if found is None:
        raise BadRecord(f"'{text[:40]}' is no arXiv id")
    return found


def doi(text: str) -> str | None:
    """Return a DOI in lower case, or None when the text holds none."""
    match = _DOI.search(text)
    return match[0].rstrip(".,;)}").lower() if match and len(match[0]) <= LONGEST["doi"] else None


def title(value: Any) -> str:
    """Return a title in one line. Raises BadRecord when there is none."""
    text = string(value, "title", LONGEST["title"])
    if not text:
        raise BadRecord("no title")
    return text


def string(value: Any, name: str, longest: int = LONGEST["short"]) -> str:
    """Return a text in one line; None is an empty one. Raises BadRecord for what is no text."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRecord(f"{name} is {type(value).__name__}, not text")
    return one_line(value)[:longest]


def abstract(value: Any) -> str:
    """Return an abstract: paragraphs (separated by blank lines) without hard line breaks."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRecord(f"abstract is {type(value).__name__}, not text")
    paragraphs = [one_line(part) for part in re.split(r"\n\s*\n", clean(value))]
    return "\n\n".join(part for part in paragraphs if part)[: LONGEST["abstract"]]


def day(value: Any, name: str = "date") -> datetime.date | None:
    """Return the day of an ISO 8601 date or moment (in UTC); None for nothing. Raises BadRecord for what is no day (31 February)."""
    if value is None or value == "":
        return None
    try:
        if len(value) <= 10:
            found = datetime.date.fromisoformat(value)
        else:
            moment = datetime.datetime.fromisoformat(value.strip())
            found = (moment.astimezone(datetime.UTC) if moment.tzinfo else moment).date()
    except (TypeError, ValueError, OverflowError):
        raise BadRecord(f"{name} '{str(value)[:40]}' is no day") from None
    if not 1900 <= found.year <= 2200:
        raise BadRecord(f"{name} '{str(value)[:40]}' is no year of a paper")
    return found


def past_day(value: Any, name: str = "date") -> datetime.date | None:
    """Return the day as `day` does. Raises BadRecord for one that is yet to come, which would stand on the first page until it does."""
    found = day(value, name)
    if found is not None and found > latest_day():
        raise BadRecord(f"{name} '{found}' is yet to come")
    return found


def latest_day() -> datetime.date:
    """Return the last day that something can have been published on: today, and two days for clocks and zones of time."""
    return datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=2)


def count(value: Any, name: str) -> int | None:
    """Return a count; None stays unknown. Raises BadRecord for what is none."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise BadRecord(f"{name} '{str(value)[:40]}' is no count")
    return value


def web_address(value: Any) -> str | None:
    """Return an http(s) address, or None for anything else."""
    if not isinstance(value, str) or not re.fullmatch(r"https?://[^\s\"'<>]{3,500}", clean(value).strip(), re.IGNORECASE):
        return None
    return clean(value).strip()


def head(text: Any) -> str:
    """Return how a record begins, for the list of rejects."""
    return one_line(text if isinstance(text, str) else json.dumps(text, ensure_ascii=False, default=str))[:200]
