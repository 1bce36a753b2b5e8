"""The records of an XML document, one by one, from text that comes in pieces. Entities, DTDs and external references are refused (defusedxml).

defusedxml's parser builds its trees in Python, which took a third of an import's time. So it reads each piece first and builds nothing; what it lets
through is read once more, by the parser in C.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any
from xml.etree.ElementTree import Element, ParseError, XMLParser, XMLPullParser

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser

from nullius.feed.importers.records import Unreadable

_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_DECLARATION = re.compile(r"\s*<\?xml[^>]*\?>")


def elements(pieces: Iterable[str], tags: set[str], name: str) -> Iterator[tuple[str, Element]]:
    """Give (tag, element) for each element with one of the tags (without namespace), complete. It is emptied afterwards.

    Raises Unreadable, after the last whole one, when the document breaks off, is no XML or has a DTD or entities.
    """
    # the text is decoded already: whatever the declaration says, what the parser gets is UTF-8
    parser: Any = XMLPullParser(events=("end",), _parser=XMLParser(encoding="utf-8"))
    guard: Any = DefusedXMLParser(target=object(), encoding="utf-8", forbid_dtd=True)
    guard.parser.DefaultHandlerExpand = None  # else it is called for every tag and text
    broken: ParseError | None = None
    number, first = 0, True
    try:
        for piece in pieces:
            if first:
                piece, first = _DECLARATION.sub("", piece, count=1), False
            content = _ILLEGAL.sub("", piece).encode()
            try:
                guard.feed(content)
            except ParseError as error:  # of what comes before the break the records are wanted
                broken = error
            parser.feed(content)
            for tag, element in _wanted(parser, tags):
                number += 1
                yield tag, element
                element.clear()
            if broken is not None:
                raise broken
        parser.close()
        yield from _wanted(parser, tags)
    except ParseError as error:
        raise Unreadable(f"{name}: the XML breaks off or is damaged after record {number} ({error})") from None
    except DefusedXmlException:
        raise Unreadable(f"{name}: the XML declares a document type or entities, which no feed needs; refused") from None
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"{name}: the XML cannot be read after record {number} ({error})") from None


def _wanted(parser: Any, tags: set[str]) -> Iterator[tuple[str, Element]]:
    for _, element in parser.read_events():
        if (tag := local(element.tag)) in tags:
            yield tag, element


@lru_cache(maxsize=1024)
def local(tag: object) -> str:
    """Return a tag without its namespace."""
    return str(tag).rsplit("}", 1)[-1]


def text(element: Element, *path: str) -> str:
    """Return the text of the first child reached by tags (without namespace), or an empty string."""
    for tag in path:
        for child in element:
            if local(child.tag) == tag:
                element = child
                break
        else:
            return ""
    return "".join(element.itertext())


def children(element: Element, tag: str) -> list[Element]:
    """Return the children with a tag (without namespace)."""
    return [child for child in element if local(child.tag) == tag]
