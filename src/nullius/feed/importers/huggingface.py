"""Hugging Face's daily papers: the list of /api/daily_papers, and the flat object of /api/papers/ID.

The outer publishedAt is the day on whose page the paper stood, the inner one the paper's own date. A missing count is unknown, not 0.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from typing import Any

from nullius.feed.importers import records
from nullius.feed.importers.decode import Document
from nullius.feed.importers.jsonstream import items
from nullius.feed.importers.records import BadRecord, Record, Reject

SOURCE = "huggingface"


def parse(document: Document) -> Iterator[Record | Reject]:
    """Give the papers of a document, and a reject for each item that is none. Raises Unreadable when it breaks off."""
    for number, item in enumerate(items(document.text(), document.name), start=1):
        yield record_or_reject(item, f"record {number}")


def record_or_reject(item: Any, position: str) -> Record | Reject:
    """Return an item as a record, or as a reject that says what is wrong with it."""
    try:
        return record(item)
    except BadRecord as reason:
        return Reject(position, str(reason), records.head(item))


def record(item: Any) -> Record:
    """Return an item of the list, or a flat paper, as a record. Raises BadRecord."""
    if not isinstance(item, Mapping):
        raise BadRecord(f"a paper is an object, not {type(item).__name__}")
    if "error" in item and "id" not in item and "paper" not in item:
        raise BadRecord(f"the source reports: {records.string(item['error'], 'error')}")
    inner = item.get("paper", item)
    if not isinstance(inner, Mapping):
        raise BadRecord(f"paper is {type(inner).__name__}, not an object")
    outer = item if inner is not item else {}
    if not isinstance(inner.get("id"), str):
        raise BadRecord("no id")
    arxiv, version = records.arxiv_id(inner["id"])
    stood = records.past_day(outer.get("publishedAt"), "day of the page") or records.past_day(
        inner.get("submittedOnDailyAt"), "day of the page"
    )
    counts = {
        "hf_upvotes": records.count(inner.get("upvotes"), "upvotes"),
        "hf_comments": records.count(outer.get("numComments"), "numComments"),
        "github_stars": records.count(inner.get("githubStars"), "githubStars"),
    }
    return Record(
        source=SOURCE,
        external_id=arxiv,
        version=version,
        arxiv_id=arxiv,
        title=records.title(inner.get("title") or outer.get("title")),
        abstract=records.abstract(inner.get("summary") or outer.get("summary")),
        their_summary=records.string(inner.get("ai_summary"), "ai_summary", records.LONGEST["abstract"]),
        authors=_authors(inner.get("authors")),
        published=records.past_day(inner.get("publishedAt"), "publishedAt"),
        code=records.web_address(inner.get("githubRepo")),
        days=(stood,) if stood else (),
        signals={kind: value for kind, value in counts.items() if value is not None},
    )


def _authors(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise BadRecord(f"authors is {type(value).__name__}, not a list")
    shown = [entry for entry in value if not (isinstance(entry, Mapping) and entry.get("hidden"))]
    names = [
        records.string(entry.get("name") if isinstance(entry, Mapping) else entry, "author", records.LONGEST["name"]) for entry in shown
    ]
    return tuple(name for name in names if name)


def address(base: str, day: datetime.date, page: int, limit: int = 100) -> str:
    """Return where a day's papers are asked for."""
    return f"{base.rstrip('/')}/api/daily_papers?date={day.isoformat()}&p={page}&limit={limit}"
