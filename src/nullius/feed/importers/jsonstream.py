"""The items of a JSON list, one by one, from text that comes in pieces: what is whole is given out before the break is found."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from nullius.feed.importers.records import Unreadable

_SPACE = re.compile(r"[ \t\n]*")


def items(pieces: Iterator[str], name: str) -> Iterator[Any]:
    """Give the items of a list; a single object is the only item. Raises Unreadable, after the last whole item, for broken JSON."""
    decoder = json.JSONDecoder(parse_int=_number, parse_constant=lambda word: None)  # NaN and Infinity are no JSON: unknown
    buffer, at, number = "", 0, 0
    opened = closed = False
    wanted = 1
    while True:
        fresh = next(pieces, None) if len(buffer) - at < wanted else ""
        if fresh:
            buffer, at = buffer[at:] + fresh, 0
        at = _skip(buffer, at)
        if not opened and at < len(buffer):
            opened, single = True, buffer[at] != "["
            at = _skip(buffer, at + (not single))
        if opened and at < len(buffer):
            if closed:
                raise Unreadable(f"{name}: something follows the end of the list, which stands after record {number}")
            if not single and buffer[at] == "]":
                closed, at, wanted = True, at + 1, 1
                continue
            try:
                item, end = decoder.raw_decode(buffer, at)
                after = _skip(buffer, end)
                if after == len(buffer) and fresh is not None:  # a number may go on, and the comma is yet to come
                    raise json.JSONDecodeError("more", buffer, end)
            except (json.JSONDecodeError, RecursionError):
                if fresh is None:
                    raise Unreadable(f"{name}: the JSON breaks off or is damaged after record {number}") from None
                wanted = 2 * (len(buffer) - at) + 1
                continue
            number += 1
            yield item
            wanted = 1
            if single:
                closed, at = True, after
            elif after < len(buffer) and buffer[after] == ",":
                at = _skip(buffer, after + 1)
            elif after < len(buffer) and buffer[after] == "]":
                at = after
            else:
                raise Unreadable(f"{name}: the JSON breaks off or is damaged after record {number}")
        elif fresh is None:
            if not closed:
                raise Unreadable(f"{name}: the JSON breaks off after record {number}" if opened else f"{name} is empty")
            return


def _number(digits: str) -> int | float:
    """Python refuses to read whole numbers of thousands of digits; as a float it is no count, and its record alone is left out."""
    return int(digits) if len(digits) < 100 else float(digits)


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()
