"""The query language: words, "phrases", -words, and filters such as author:merullo.

Any text is a query; what is not understood is said, and left out.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from nullius.feed.text import arxiv_id, clean

LONGEST = 2_000  # characters that are read
MOST_WORDS = 48
VERDICTS = {
    "holds": "holds",
    "hold": "holds",
    "fails": "fails",
    "fail": "fails",
    "inconclusive": "inconclusive",
    "out-of-reach": "out of reach",
}
_PIECE = re.compile(r'(-?)(?:([A-Za-z]{2,12}):)?(?:"([^"]*)"|(\S+))')
# Papers "without one or without the other" are nearly all of them: what is said is two endings of words
_ENDINGS = re.compile(r"(?<!\S)-([^\W\d_]+),?\s+(?:or|vs\.?|versus)\s+-([^\W\d_]+)(?!\S)", re.IGNORECASE)
_ADDRESS = re.compile(  # of a paper of arXiv's, as it is pasted
    r"(?:https?://)?(?:(?:www\.|export\.)?arxiv\.org/(?:abs|pdf|html)/|huggingface\.co/papers/|(?:doi\.org/)?10\.48550/arxiv\.)(.+?)(?:\.pdf|\.md)?/?",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")


@dataclass(frozen=True)
class Filter:
    """One filter, as it was written (text) and as it is applied. value: a word, a date, True or False; negated: with a minus before it."""

    name: str
    value: str | bool | datetime.date
    text: str
    negated: bool = False


@dataclass(frozen=True)
class Query:
    """A query taken apart. prose: all of it that is no filter, as it was written; known: arXiv ids in it."""

    text: str
    prose: str = ""
    words: tuple[str, ...] = ()
    phrases: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    filters: tuple[Filter, ...] = ()
    known: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()

    @property
    def asked(self) -> str:
        """The words and phrases, in one line."""
        return " ".join([*self.words, *self.phrases])

    def without(self, one: Filter) -> Query:
        """Return the query without one of its filters."""
        alone = re.compile(rf"(?<!\S){re.escape(one.text)}(?!\S)")  # not the end of one with a minus
        rest = alone.sub(" ", self.text, count=1) if alone.search(self.text) else self.text.replace(one.text, " ", 1)
        text = " ".join(rest.split())
        return replace(self, text=text, filters=tuple(entry for entry in self.filters if entry != one))


def parse(text: str) -> Query:
    """Take a query apart. Never raises.

    >>> query = parse('who "bound entities" -music after:2024')
    >>> query.words, query.phrases, query.excluded, query.filters[0].value
    (('who',), ('bound entities',), ('music',), datetime.date(2024, 1, 1))
    """
    text = clean(text).strip()
    messages = [f"only the first {LONGEST:,} characters were read"] if len(text) > LONGEST else []
    words: list[str] = []
    phrases: list[str] = []
    excluded: list[str] = []
    filters: list[Filter] = []
    known: list[str] = []
    prose: list[str] = []
    read, endings = _ENDINGS.subn(r"\1 or \2", text[:LONGEST])
    if endings:
        messages.append("endings such as “-ity or -ness” were searched for; to leave words out, write -one -other")
    for match in _PIECE.finditer(read):
        minus, name, quoted, bare = match[1], (match[2] or "").lower(), match[3], match[4]
        value = quoted if quoted is not None else bare
        if (name == "id" and not minus and (identifier := arxiv_id(value))) or (identifier := _named(match[0].strip('"'))):
            known.append(identifier[0])
        elif name in _FILTERS:
            try:
                filters.append(Filter(name, _FILTERS[name](value.strip()), match[0], bool(minus)))
            except ValueError as problem:
                messages.append(f"{match[0][:60]}: {problem}; searched without it")
        elif name and bare is not None and not value.startswith("//") and not minus:
            messages.append(f"'{name}:' is no filter; there are {', '.join(f'{known}:' for known in _FILTERS)}; searched without it")
        elif minus and (name or quoted is None or quoted):
            excluded += _WORD.findall(value)
        elif quoted is not None:
            phrases += [quoted] if _WORD.search(quoted) else []
            prose.append(quoted)
        else:
            bare = f"{match[2]}:{value}" if name else value
            words += _WORD.findall(bare)
            prose.append(bare)
    if len(words) > MOST_WORDS:
        messages.append(f"only the first {MOST_WORDS} words were searched for")
    unique = dict.fromkeys(words[:MOST_WORDS])
    apart = {"words": tuple(unique), "phrases": tuple(phrases[:8]), "excluded": tuple(excluded[:MOST_WORDS])}
    return Query(text, " ".join(prose), **apart, filters=tuple(dict.fromkeys(filters)), known=tuple(known), messages=tuple(messages))


def _named(piece: str) -> tuple[str, int | None] | None:
    """The arXiv id that a piece of a query is, or the address of."""
    address = _ADDRESS.fullmatch(piece)
    return arxiv_id(address[1] if address else piece)


def _text(value: str) -> str:
    if not _WORD.search(value):
        raise ValueError("it needs a value")
    return value


def _yes_no(value: str) -> bool:
    if value.lower() in ("yes", "no", "true", "false"):
        return value.lower() in ("yes", "true")
    raise ValueError("it takes yes or no")


def _verdict(value: str) -> str:
    if value.lower() not in VERDICTS:
        raise ValueError(f"it takes {', '.join(dict.fromkeys(VERDICTS.values()))}".replace("out of reach", "out-of-reach"))
    return VERDICTS[value.lower()]


def _code(value: str) -> str:
    if value.lower() != "code":
        raise ValueError("papers can have code: has:code")
    return "code"


def _date(last: bool) -> Callable[[str], datetime.date]:
    def read(value: str) -> datetime.date:
        match = re.fullmatch(r"(\d{4})(?:-(\d{1,2})(?:-(\d{1,2}))?)?", value)
        try:
            if match is None:
                raise ValueError
            year, month, day = (int(part) if part else None for part in match.groups())
            assert year is not None
            if day:
                return datetime.date(year, month or 1, day)
            if not last:
                return datetime.date(year, month or 1, 1)
            following = datetime.date(year + (month in (None, 12)), 1 if month in (None, 12) else (month or 0) + 1, 1)
            return following - datetime.timedelta(days=1)
        except (ValueError, OverflowError):
            raise ValueError("a date is written 2024, 2024-05 or 2024-05-31") from None

    return read


def _day(value: str) -> datetime.date:
    if value.count("-") != 2:
        raise ValueError("a day is written 2024-05-31")
    return _date(last=False)(value)


_FILTERS: dict[str, Callable[[str], str | bool | datetime.date]] = {
    "author": _text,
    "cat": _text,
    "day": _day,
    "after": _date(last=False),
    "before": _date(last=True),
    "runnable": _yes_no,
    "verdict": _verdict,
    "subject": _text,
    "instrument": _text,
    "source": _text,
    "has": _code,
    "id": _text,
}
