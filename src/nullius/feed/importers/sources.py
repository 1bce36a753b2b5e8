"""What an address or a file is, and how to read all of it: page after page, each with the cursor at which to go on."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from nullius.feed.importers import arxiv, bibtex, huggingface, page, visible
from nullius.feed.importers.decode import Document
from nullius.feed.importers.fetch import Fetcher, Unreachable
from nullius.feed.importers.records import EXPECTED, Record, Reject, Unreadable
from nullius.feed.text import one_line

ATOM_PAGE = 500
ATOM_WINDOW = 10_000  # the search is reported to end there: bulk goes through OAI-PMH
_BIBTEX = re.compile(r"^\s*@\s*[A-Za-z]+\s*[{(]", re.MULTILINE)


@dataclass(frozen=True)
class Cursor:
    """All before this place was given out. value: how to go on from here; empty at the end."""

    value: str


Found = Record | Reject | Cursor
T = TypeVar("T")


def parse(document: Document, day: datetime.date | None = None) -> Iterator[Record | Reject]:
    """Give the papers of a document, whatever it is of the formats that nullius reads. Raises Unreadable for anything else."""
    if other := document.other():
        raise Unreadable(f"{document.name} is {other}: expected {EXPECTED}, as it is or packed with gzip")
    start = document.start().lstrip("\ufeff \t\n")
    if not start.strip():
        raise Unreadable(f"{document.name} is empty: expected {EXPECTED}")
    lowered = start[:2000].lower()
    if start[0] in "[{":
        yield from huggingface.parse(document)
    elif _is_html(lowered):
        yield from page.parse_html(document, day)
    elif "<oai-pmh" in lowered or "<listrecords" in lowered:
        yield from (found for found in arxiv.parse_oai(document) if not isinstance(found, arxiv.Token))
    elif start[0] == "<":
        yield from (found for found in _atom_or_unreadable(document) if not isinstance(found, arxiv.Total))
    elif _BIBTEX.search(start):
        yield from bibtex.parse(document)
    else:
        yield from page.parse_text("".join(document.text()), document.name, day)


def _is_html(lowered: str) -> bool:
    return lowered.startswith("<!doctype html") or "<html" in lowered


def _expect(document: Document, first: str, what: str) -> Document:
    """Return an answer that begins as it should. Raises Unreadable that says what came instead: sources in trouble answer 200 with a page."""
    start = document.start().lstrip("\ufeff \t\n")
    if _is_html(start[:2000].lower()):
        title = one_line(visible.read(start).title)[:80]
        raise Unreadable(f"{document.name} answers with an HTML page{f' titled “{title}”' if title else ''}, not with {what}")
    if not start.startswith(first):
        raise Unreadable(f"{document.name} answers with {f'“{one_line(start)[:80]}”' if start else 'nothing'}, not with {what}")
    return document


def _behind(found: Iterator[T], before: int) -> Iterator[T]:
    """Count the records of a further page on from those before it."""
    for one in found:
        if before and isinstance(one, Reject) and (match := re.fullmatch(r"record (\d+)", one.position)):
            one = replace(one, position=f"record {int(match[1]) + before}")
        yield one


def _atom_or_unreadable(document: Document) -> Iterator[Record | Reject | arxiv.Total]:
    found = False
    for one in arxiv.parse_atom(document):
        found = True
        yield one
    if not found:
        raise Unreadable(f"{document.name} is XML, but neither an Atom feed nor an OAI-PMH answer with papers in it")


def from_web(address: str, fetcher: Fetcher, cursor: str = "", day: datetime.date | None = None) -> Iterator[Found]:
    """Give the papers of an address, from a cursor on: all pages of a list, all answers of OAI-PMH, or one document."""
    try:
        parts = urlsplit(address)
    except ValueError:  # [ without ]
        raise Unreachable(f"'{one_line(address)[:100]}' is no address") from None
    path = parts.path.rstrip("/")
    if match := re.fullmatch(r"/(?:abs|pdf|html)/([^/]+(?:/\d{7})?(?:v\d+)?)(?:\.pdf)?", path):
        address = urlunsplit(("https", "export.arxiv.org", "/api/query", urlencode({"id_list": match[1]}), ""))
        parts, path = urlsplit(address), "/api/query"
    elif match := re.fullmatch(r"/papers/(\d{4}\.\d{4,5})(?:\.md)?", path):
        address = urlunsplit((parts.scheme, parts.netloc, f"/api/papers/{match[1]}", "", ""))
    way: dict[str, Callable[[str, Fetcher, str], Iterator[Found]]] = {
        "/api/daily_papers": _daily,
        "/api/query": _atom,
        "/oai": _oai,
        "/oai2": _oai,
    }
    if path in way and dict(parse_qsl(parts.query)).get("verb", "ListRecords") == "ListRecords":  # else OAI-PMH is asked for one record
        yield from way[path](address, fetcher, cursor)
        return
    yield from parse(fetcher.get(address), day)
    yield Cursor("")


def _with(address: str, **change: str) -> str:
    parts = urlsplit(address)
    return urlunsplit(parts._replace(query=urlencode({**dict(parse_qsl(parts.query)), **change})))


def _asked(address: str, name: str, otherwise: int) -> int:
    value = dict(parse_qsl(urlsplit(address).query)).get(name, "")
    return int(value[:9]) if value.isdecimal() else otherwise


def _daily(address: str, fetcher: Fetcher, cursor: str) -> Iterator[Found]:
    """All pages of a list of daily papers; the cursor is the number of the next page."""
    limit = min(max(_asked(address, "limit", 100), 1), 100)
    number = int(cursor) if cursor.isdecimal() else _asked(address, "p", 0)
    while True:
        answer = _expect(fetcher.get(_with(address, p=str(number), limit=str(limit))), "[", "a list of daily papers in JSON")
        count = 0
        for found in _behind(huggingface.parse(answer), number * limit):
            count += 1
            yield found
        number += 1
        if count < limit:
            yield Cursor("")
            return
        yield Cursor(str(number))


def _atom(address: str, fetcher: Fetcher, cursor: str) -> Iterator[Found]:
    """All pages of a search; the cursor is the number of the next entry."""
    size = min(max(_asked(address, "max_results", ATOM_PAGE), 1), 2000)
    start = int(cursor) if cursor.isdecimal() else _asked(address, "start", 0)
    wanted = _asked(address, "max_results", ATOM_WINDOW) + _asked(address, "start", 0)
    while True:
        answer = _expect(fetcher.get(_with(address, start=str(start), max_results=str(size))), "<", "an Atom feed")
        total = count = 0
        for found in _behind(_atom_or_unreadable(answer), start):
            if isinstance(found, arxiv.Total):
                total = found.value
            else:
                count += 1
                yield found
        start += count
        if start >= ATOM_WINDOW and total > start:
            fetcher.say(
                f"arXiv's search ends at {ATOM_WINDOW:,} of {total:,} papers: fetch so many through OAI-PMH (oaipmh.arxiv.org/oai?set=...)"
            )
        if not count or start >= min(total, wanted, ATOM_WINDOW):
            yield Cursor("")
            return
        yield Cursor(str(start))


def _oai(address: str, fetcher: Fetcher, cursor: str) -> Iterator[Found]:
    """All answers to ListRecords; the cursor is the resumption token. One that has expired begins the window again: nothing is read twice over."""
    base = urlunsplit(urlsplit(address)._replace(query="", fragment=""))
    first = _with(address, verb="ListRecords", metadataPrefix="arXivRaw")
    token = cursor
    expired = False
    count = 0
    while True:
        asked = f"{base}?{urlencode({'verb': 'ListRecords', 'resumptionToken': token})}" if token else first
        following, before = "", count
        try:
            answer = _expect(fetcher.get(asked), "<", "OAI-PMH records")
            for found in _behind(arxiv.parse_oai(answer), before):
                if isinstance(found, arxiv.Token):
                    following = found.value
                else:
                    count += 1
                    yield found
            if count == before and not following:  # a list without records is an error of its own, noRecordsMatch
                raise Unreadable(f"{answer.name} is XML, but no OAI-PMH answer with records in it")
        except arxiv.Refused as refused:
            if refused.code == "noRecordsMatch":
                yield Cursor("")
                return
            if refused.code != "badResumptionToken" or not token or expired:
                raise
            fetcher.say("the list's resumption token has expired: beginning the list again")
            token, expired = "", True
            continue
        yield Cursor(following)
        if not following:
            return
        token = following
