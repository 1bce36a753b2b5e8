"""arXiv's two interfaces: the Atom feed of its search (a few papers) and OAI-PMH in arXivRaw (many).

In OAI-PMH the datestamp is when the record changed; the paper's date is that of version v1. An error of the search arrives as an entry whose
id contains /api/errors.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from xml.etree.ElementTree import Element

from nullius.feed.importers import records
from nullius.feed.importers.decode import Document
from nullius.feed.importers.records import BadRecord, Record, Reject, Unreadable
from nullius.feed.importers.xmlstream import children, elements, local, text

SOURCE = "arxiv"
_WITHDRAWN = re.compile(
    r"\s*(?:(?:this|the)\s+(?:paper|article|submission|manuscript|work|preprint)\s+(?:has\s+been|is|was)\s+)?withdrawn\b", re.IGNORECASE
)
_PARENTHESIS = re.compile(r"[()]")


@dataclass(frozen=True)
class Token:
    """How OAI-PMH says that there is more: what to ask for next; empty at the end of a list."""

    value: str


@dataclass(frozen=True)
class Total:
    """How many papers the Atom search found."""

    value: int


class Refused(Unreadable):
    """The source answered with an error of its own. code: badResumptionToken, noRecordsMatch, ..."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


def parse_atom(document: Document) -> Iterator[Record | Reject | Total]:
    """Give the entries of an Atom feed. Raises Refused for an error entry, Unreadable for a broken feed."""
    number = 0
    for tag, element in elements(document.text(), {"entry", "totalResults"}, document.name):
        if tag == "totalResults":
            if (total := text(element).strip()).isdecimal():
                yield Total(int(total[:12]))
            continue
        number += 1
        if "/api/errors" in text(element, "id"):
            raise Refused(f"{document.name}: arXiv says: {records.string(text(element, 'summary'), 'error')}", "error")
        yield _or_reject(_atom_record, element, f"record {number}")


def _atom_record(entry: Element) -> Record:
    address = text(entry, "id").strip()
    arxiv, version = records.arxiv_id(address.rsplit("/abs/", 1)[-1])
    authors = [records.string(text(author, "name"), "author", records.LONGEST["name"]) for author in children(entry, "author")]
    categories = [category.get("term", "") for category in children(entry, "category")]
    primary = [category.get("term", "") for category in children(entry, "primary_category")]
    published = records.past_day(text(entry, "published").strip(), "published")
    return _record(
        arxiv,
        version,
        title=text(entry, "title"),
        abstract=text(entry, "summary"),
        authors=tuple(name for name in authors if name),
        published=published,
        categories=[*primary, *categories],
        comment=text(entry, "comment"),
        journal_ref=text(entry, "journal_ref"),
        doi=text(entry, "doi"),
    )


def parse_oai(document: Document) -> Iterator[Record | Reject | Token]:
    """Give the records of a ListRecords answer, and its resumption token. Raises Refused for an error, Unreadable for a broken answer."""
    number = 0
    for tag, element in elements(document.text(), {"record", "resumptionToken", "error"}, document.name):
        if tag == "error":
            code = element.get("code", "error")
            raise Refused(f"{document.name}: arXiv says: {code}: {records.string(text(element), 'error')}", code)
        if tag == "resumptionToken":
            yield Token(text(element).strip())
            continue
        number += 1
        yield _or_reject(_oai_record, element, f"record {number}")


def _oai_record(record: Element) -> Record:
    headers = children(record, "header")
    if not headers:
        raise BadRecord("no header")
    arxiv, _ = records.arxiv_id(text(headers[0], "identifier").strip().removeprefix("oai:arXiv.org:"))
    if headers[0].get("status") == "deleted":
        return Record(source=SOURCE, external_id=f"{arxiv} deleted", arxiv_id=arxiv, withdrawn=True)
    bodies = [body for metadata in children(record, "metadata") for body in metadata if local(body.tag) == "arXivRaw"]
    if not bodies:
        raise BadRecord("no arXivRaw in it")
    body = bodies[0]
    versions = {}
    for version in children(body, "version"):
        if re.fullmatch(r"v\d{1,3}", version.get("version", "")):
            versions[int(version.get("version", "")[1:])] = text(version, "date")
    if not versions:
        raise BadRecord("no version in it")
    return _record(
        arxiv,
        max(versions),
        title=text(body, "title"),
        abstract=text(body, "abstract"),
        authors=names(text(body, "authors")),
        published=_mail_date(versions[min(versions)]),
        categories=text(body, "categories").split(),
        comment=text(body, "comments"),
        journal_ref=text(body, "journal-ref"),
        doi=text(body, "doi"),
    )


def _record(
    arxiv: str,
    version: int | None,
    *,
    title: str,
    abstract: str,
    authors: tuple[str, ...],
    published: datetime.date | None,
    categories: list[str],
    comment: str,
    journal_ref: str,
    doi: str,
) -> Record:
    own = [records.string(category, "category", 60) for category in dict.fromkeys(categories) if category.strip()]
    comment, abstract = records.string(comment, "comment"), records.abstract(abstract)
    return Record(
        source=SOURCE,
        external_id=f"{arxiv}v{version}" if version else arxiv,
        version=version,
        arxiv_id=arxiv,
        doi=records.doi(doi),
        title=records.title(title),
        abstract=abstract,
        authors=authors,
        published=published,
        categories=tuple(dict.fromkeys(own)),
        primary_category=own[0] if own else None,
        comment=comment,
        journal_ref=records.string(journal_ref, "journal_ref"),
        withdrawn=bool(_WITHDRAWN.match(comment) or _WITHDRAWN.match(abstract)),
        days=(published,) if published else (),
    )


def names(authors: str) -> tuple[str, ...]:
    """Split arXiv's one string of authors; affiliations in parentheses are dropped.

    >>> names("A. Turing (Manchester), Kurt Gödel and Emmy Noether")
    ('A. Turing', 'Kurt Gödel', 'Emmy Noether')
    """
    line = _without_parentheses(records.string(authors, "authors", records.LONGEST["authors"]))
    found = [part.strip()[: records.LONGEST["name"]] for part in re.split(r",\s*(?:and\s+)?|\s+and\s+", line)]
    return tuple(name for name in found if name)


def _without_parentheses(line: str) -> str:
    """Drop what stands in parentheses, which may hold others; one that is never closed, or was never opened, stays."""
    opened: list[int] = []
    inside: list[tuple[int, int]] = []
    for match in _PARENTHESIS.finditer(line):
        if match[0] == "(":
            opened.append(match.start())
        elif opened:
            start = opened.pop()
            while inside and inside[-1][0] > start:
                inside.pop()
            inside.append((start, match.end()))
    ends = [0, *(end for _, end in inside)]
    return "".join(line[end:start] for end, start in zip(ends, [*(start for start, _ in inside), len(line)], strict=True))


def _mail_date(value: str) -> datetime.date | None:
    try:
        return records.past_day(parsedate_to_datetime(value.strip()).isoformat(), "date of v1")
    except (ValueError, TypeError, IndexError, OverflowError):
        raise BadRecord(f"date of v1 '{value[:40]}' is no day") from None


def _or_reject(read: Callable[[Element], Record], element: Element, position: str) -> Record | Reject:
    try:
        return read(element)
    except BadRecord as reason:
        return Reject(position, str(reason), records.head(" ".join("".join(element.itertext()).split())))
