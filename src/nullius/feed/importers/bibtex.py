"""BibTeX: every entry with a title is a paper. Duplicate keys and entries that are never closed are reported with their lines; the rest is kept."""

from __future__ import annotations

import datetime
import logging
import re
from collections.abc import Iterator, Mapping

import bibtexparser
from bibtexparser.model import Block, DuplicateBlockKeyBlock, DuplicateFieldKeyBlock, Entry, MiddlewareErrorBlock, ParsingFailedBlock

from nullius.feed.importers import records
from nullius.feed.importers.decode import Document
from nullius.feed.importers.records import BadRecord, Record, Reject
from nullius.feed.text import arxiv_id, key

SOURCE = "bibtex"
BLOCKS = 200  # entries parsed at a time, so that a file of any size takes little memory
_ARXIV = re.compile(
    r"(?:arxiv[.:/\s]+(?:abs/|pdf/)?|arxiv\.org/(?:abs|pdf)/)((?:\d{4}\.\d{4,5}|[a-z-]{2,12}(?:\.[a-z-]{2,12})?/\d{7})(?:v\d{1,3})?)",
    re.IGNORECASE,
)
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_BRACE = re.compile(r"\\|[{}]")


def parse(document: Document) -> Iterator[Record | Reject]:
    """Give the papers of a BibTeX file, and a reject for each entry that is none."""
    logging.getLogger("bibtexparser").setLevel(logging.ERROR)  # what it warns of is reported here, as rejects
    seen: set[str] = set()
    strings = ""
    for line, blocks in _groups(document):
        prefix = strings
        library = bibtexparser.parse_string(prefix + blocks)
        shift = line - prefix.count("\n") + 1
        strings += "".join(f"{string.raw}\n" for string in library.strings if string.raw and string.raw not in strings)
        failed = [(block.start_line or 0, block) for block in library.failed_blocks]
        entries = [(entry.start_line or 0, entry) for entry in library.entries]
        for start, block in sorted([*entries, *failed], key=lambda found: found[0]):
            yield _one(block, f"line {start + shift}", seen)


def _groups(document: Document) -> Iterator[tuple[int, str]]:
    """Give (line where it starts, text) of groups of entries; an entry begins with @ at the beginning of a line."""
    start, entries = 0, 0
    held: list[str] = []
    for line, text in enumerate(_lines(document)):
        if text.lstrip().startswith("@"):
            entries += 1
            if entries > BLOCKS:
                yield start, "".join(held)
                start, entries, held = line, 1, []
        held.append(text)
    yield start, "".join(held)


def _lines(document: Document) -> Iterator[str]:
    rest = ""
    for piece in document.text():
        *whole, rest = (rest + piece).split("\n")
        yield from (f"{line}\n" for line in whole)
    if rest:
        yield rest


def _one(block: Block, position: str, seen: set[str]) -> Record | Reject:
    raw = block.raw or ""
    if isinstance(block, DuplicateBlockKeyBlock):
        return Reject(position, f"the key '{block.key}' was used before", records.head(raw))
    if isinstance(block, DuplicateFieldKeyBlock):
        return Reject(position, "a field is given twice", records.head(raw))
    if isinstance(block, MiddlewareErrorBlock | ParsingFailedBlock) or not isinstance(block, Entry):
        return Reject(position, "the entry is not closed or not well formed", records.head(raw))
    if block.key and block.key in seen:
        return Reject(position, f"the key '{block.key}' was used before", records.head(raw))
    seen.add(block.key)
    try:
        return _record({name.lower(): str(field.value) for name, field in block.fields_dict.items()})
    except BadRecord as reason:
        return Reject(position, str(reason), records.head(raw))


def _record(fields: Mapping[str, str]) -> Record:
    title = records.title(_plain(fields.get("title", "")))
    arxiv, version = _arxiv(fields)
    doi = records.doi(fields.get("doi", "")) or (records.doi(fields["url"]) if "doi.org/" in fields.get("url", "") else None)
    published, exact = _date(fields)
    return Record(
        source=SOURCE,
        external_id=arxiv or doi or key(title)[:200],
        arxiv_id=arxiv,
        version=version,
        doi=doi,
        title=title,
        abstract=records.abstract(_plain(fields.get("abstract", ""))),
        authors=_authors(fields.get("author", "")),
        published=published,
        date_inferred=published is not None and not exact,
        primary_category=records.string(fields.get("primaryclass"), "primaryclass", 60) or None,
        categories=tuple(name for name in [records.string(fields.get("primaryclass"), "primaryclass", 60)] if name),
        journal_ref=records.string(_plain(fields.get("journal") or fields.get("journaltitle") or fields.get("booktitle") or ""), "journal"),
    )


def _arxiv(fields: Mapping[str, str]) -> tuple[str | None, int | None]:
    archive = fields.get("archiveprefix", fields.get("eprinttype", "arxiv")).strip().lower()
    if archive == "arxiv" and (eprint := fields.get("eprint", "").strip()):
        found = arxiv_id(eprint.split()[0]) or _linked(eprint)  # "2310.15910 [cs.CL]" and a whole address are written too
        if found is None and "archiveprefix" in fields:
            raise BadRecord(f"'{eprint[:40]}' is no arXiv id")
        if found is not None:
            return found
    for name in ("url", "note", "journal", "doi"):
        if found := _linked(fields.get(name, "")):
            return found
    return None, None


def _linked(text: str) -> tuple[str, int | None] | None:
    """The arXiv id that a text names, as an address or after "arXiv:"."""
    match = _ARXIV.search(text)
    return arxiv_id(match[1]) if match else None


def _date(fields: Mapping[str, str]) -> tuple[datetime.date | None, bool]:
    """Return the day of an entry and whether it was all written: of a year alone it is the first day."""
    written = fields.get("date", "").split("/")[0].strip()
    if not written:
        year, month = fields.get("year", "").strip(), fields.get("month", "").strip().lower()[:3]
        if not year:
            return None, False
        number = _MONTHS.index(month) + 1 if month in _MONTHS else int(month) if month.isdecimal() else None
        written = f"{year}-{number:02}" if number else year
    for length, rest in ((4, "-01-01"), (7, "-01")):
        if len(written) == length:
            return records.day(written + rest), False
    return records.day(written), True


def _authors(value: str) -> tuple[str, ...]:
    """Split on "and" outside braces; "Last, First" becomes "First Last"; "others" is no name."""
    parts: list[str] = []
    held: list[str] = []
    depth = 0
    for word in value.split():
        if word == "and" and depth == 0:
            parts.append(" ".join(held))
            held = []
        else:
            held.append(word)
        depth += word.count("{") - word.count("}")
    names = []
    for part in [*parts, " ".join(held)]:
        last, comma, first = _plain(part).partition(",")
        name = f"{first.rpartition(',')[2].strip()} {last.strip()}" if comma else last
        if name.strip() and name.strip() != "others":
            names.append(records.string(name, "author", records.LONGEST["name"]))
    return tuple(names)


def _plain(text: str) -> str:
    """Take away braces that only protect capitals; what holds TeX commands stays as written."""
    opened: list[int] = []  # where braces were opened in which nothing of TeX has come yet
    dropped: set[int] = set()
    for match in _BRACE.finditer(text):
        if match[0] == "\\":
            opened.clear()
        elif match[0] == "{":
            opened.append(match.start())
        elif opened:
            dropped |= {opened.pop(), match.start()}
    return "".join(character for place, character in enumerate(text) if place not in dropped) if dropped else text
