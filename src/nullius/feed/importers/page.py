"""A saved Daily Papers page. HTML: the JSON that it carries, else its visible text. Text: title, abstract, and a footer that may be missing.

A date without a year belongs to the page's year: that of `day` if given, else the smallest year later than every year printed. One that would
lie after the page's own day is of the year before. There are no ids: papers are matched by title.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from nullius.feed.importers import huggingface, records, visible
from nullius.feed.importers.decode import Document
from nullius.feed.importers.records import BadRecord, Record, Reject, Unreadable
from nullius.feed.text import key, one_line

SOURCE = "page"
LONGEST_TITLE = 250
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_FURNITURE = re.compile(  # of a heading with a link in it a copy has one line, several, or words that hang together
    r"new|subscribe|daily papers|get trending papers\b.*|by|by\s*AK\s*and\b.*|by\b.*\bAK\b.*|(?:AK\s*)?and the research community|AK|\d+|[·•|‹›<>←→]",
    re.IGNORECASE,
)
_AUTHORS = re.compile(r"(?:[•·]\s*)?(\d{1,5}) authors?", re.IGNORECASE)
_DATE = re.compile(  # by the names of months: "Llama 2" is a title
    r"(?:[•·]\s*)?(Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?)"
    r"\.? (\d{1,2})(?:, (\d{4}))?(?:\s+(\d{1,7}))?"
)


@dataclass
class Entry:
    """A paper as it stands on a page of text. written: month, day and year (if printed) of its date."""

    line: int
    title: str
    paragraphs: list[str] = field(default_factory=list)
    n_authors: int | None = None
    written: tuple[int, int, int | None] | None = None
    count: int | None = None
    closed: bool = False  # its footer was read


def parse_html(document: Document, day: datetime.date | None = None) -> Iterator[Record | Reject]:
    """Give the papers of a saved page. Raises Unreadable for a page that is none."""
    found = visible.read("".join(document.text()))
    if found.data is not None:
        try:
            items = _items(json.loads(found.data))
        except (ValueError, RecursionError):
            raise Unreadable(f"{document.name}: the data of this Daily Papers page is damaged; save the page again") from None
        for number, item in enumerate(items, start=1):
            yield huggingface.record_or_reject(item, f"record {number}")
        return
    name = records.string(found.title, "title", 80)
    try:
        yield from parse_text(found.text, document.name, day)
    except Unreadable:
        raise Unreadable(f"{document.name} is an HTML page{f' titled “{name}”' if name else ''}, not a saved Daily Papers page") from None


def _items(props: object) -> Sequence[object]:
    """The list of papers among a page's data, wherever it stands."""
    if isinstance(props, dict):
        for value in [props.get("dailyPapers"), *props.values()]:
            if isinstance(value, list) and (not value or any(isinstance(item, dict) and "paper" in item for item in value)):
                return value
    return []


def parse_text(text: str, name: str, day: datetime.date | None = None) -> Iterator[Record | Reject]:
    """Give the papers of a page of text. Raises Unreadable for a text that has neither the page's heading nor a single footer."""
    entries, printed, known = read_entries(text)
    if not known:
        begins = one_line(text[:400])[:60]
        raise Unreadable(f"{name} is no list of papers that nullius reads (it begins “{begins}”): expected {records.EXPECTED}")
    year = day.year if day else _year(entries, printed)
    page = day
    if page is None and printed is not None:
        try:
            page = datetime.date(printed[2] or year, printed[0], printed[1])
        except ValueError:
            page = None
    if page is not None and page > records.latest_day():
        page = None
    for entry in entries:
        try:
            yield _record(entry, year, page, sure=day is not None)
        except BadRecord as reason:
            yield Reject(f"line {entry.line}", str(reason), records.head(entry.title))


def _year(entries: Sequence[Entry], printed: tuple[int, int, int | None] | None) -> int:
    """The smallest year later than every one printed; a page that prints its own year has that; one that prints none is of the last year in which
    its day, or the latest of its dates, has come."""
    if printed is not None and printed[2] is not None:
        return printed[2]
    written = [entry.written for entry in entries if entry.written is not None]
    years = [year for _, _, year in written if year is not None]
    if years:
        return max(years) + 1
    today = datetime.datetime.now(datetime.UTC).date()
    latest = printed[:2] if printed else max((date[:2] for date in written), default=(1, 1))
    return today.year - (latest > (today.month, today.day))


def _record(entry: Entry, year: int, page: datetime.date | None, *, sure: bool) -> Record:
    if not entry.paragraphs and not entry.closed:
        raise BadRecord("a line without an abstract or a footer is no paper")
    published, inferred = None, False
    if entry.written is not None:
        month, number, printed = entry.written
        inferred = printed is None and not sure
        own_year = printed or year
        if printed is None and page is not None and (month, number) > (page.month, page.day):
            own_year = page.year - 1
        published = records.past_day(f"{own_year:04}-{month:02}-{number:02}")
    title = records.title(entry.title)
    return Record(
        source=SOURCE,
        external_id=key(title)[:200] or title[:200],
        title=title,
        abstract="\n\n".join(entry.paragraphs)[: records.LONGEST["abstract"]],
        n_authors=entry.n_authors,
        published=published,
        date_inferred=inferred,
        days=(page,) if page else (),
        signals={} if entry.count is None else {"unknown_count": entry.count},
    )


def read_entries(text: str) -> tuple[list[Entry], tuple[int, int, int | None] | None, bool]:
    """Return the entries of a page, the date that stands alone before the first of them, and whether this is such a page at all."""
    blocks = _text_blocks(text)
    entries: list[Entry] = []
    printed: tuple[int, int, int | None] | None = None
    known = False
    for i, (line, lines) in enumerate(blocks):
        if any(one.lower() == "daily papers" for one in lines):
            if not known:  # what stands above the heading is the site's menu
                entries.clear()
            known = True
        current = entries[-1] if entries and not entries[-1].closed else None
        left, found = _footer(lines, current or (entries[-1] if entries else None))
        if found and entries:
            entries[-1].closed = True
            known = known or entries[-1].n_authors is not None
        elif found and printed is None and (date := _DATE.fullmatch(lines[-1])):
            printed = _written(date)
        if not left:
            continue
        if current is None or _begins(left, current, (blocks[j] for j in range(i + 1, len(blocks)))):
            entries.append(Entry(line, left[0], [one_line(" ".join(left[1:]))] if left[1:] else []))
            if found and len(left) < len(lines):  # title, abstract and footer in one block
                _footer(lines, entries[-1])
                entries[-1].closed = True
        else:
            current.paragraphs.append(one_line(" ".join(left)))
    return entries, printed, known


def _text_blocks(text: str) -> list[tuple[int, list[str]]]:
    """Return (line number, lines) of what stands between blank lines, without what belongs to the page and to no paper."""
    blocks: list[tuple[int, list[str]]] = []
    fresh = True
    for number, raw in enumerate(text.split("\n"), start=1):
        line = one_line(raw)
        if not line:
            fresh = True
            continue
        if fresh:
            blocks.append((number, []))
            fresh = False
        blocks[-1][1].append(line)
    return blocks


def _footer(lines: Sequence[str], entry: Entry | None) -> tuple[list[str], bool]:
    """Take footer lines out of a block and note in the entry what they say. Returns the lines that are left and whether there was a footer."""
    left, found = [], False
    for line in lines:
        parts = [part.strip() for part in re.split(r"\s*·\s*", line) if part.strip()] if _AUTHORS.match(line) else [line]
        if all(_AUTHORS.fullmatch(part) or _DATE.fullmatch(part) for part in parts):
            for part in parts:
                found = True
                if entry is None:
                    continue
                if authors := _AUTHORS.fullmatch(part):
                    entry.n_authors = int(authors[1])
                elif date := _DATE.fullmatch(part):
                    entry.written = _written(date)
                    entry.count = int(date[4]) if date[4] else entry.count
        elif line.isdecimal() and entry is not None and entry.written is not None and found:
            entry.count = int(line[:7])
        elif not _FURNITURE.fullmatch(line):
            left.append(line)
    return left, found


def _written(date: re.Match[str]) -> tuple[int, int, int | None]:
    return _MONTHS.index(date[1][:3].lower()) + 1, int(date[2]), int(date[3]) if date[3] else None


def _begins(lines: Sequence[str], current: Entry, following: Iterable[tuple[int, list[str]]]) -> bool:
    """Whether a block begins the next paper although the current one has had no footer: a short line without a full stop before a long one."""
    if not current.paragraphs or len(lines[0]) > LONGEST_TITLE or lines[0].endswith((".", ":", ";", ",")):
        return False
    if len(lines) > 1:
        return len(lines[1]) > len(lines[0])
    for _, after in following:
        rest, footer = _footer(after, None)
        if rest:
            return len(" ".join(rest)) > max(len(lines[0]), 120) or rest[0].endswith(".")
        if footer:
            return False
    return False
