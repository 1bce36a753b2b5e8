"""When a reply counts as right: one rule per task (McCoy et al. 2023). Rules take (reply, gold) and return a bool.

Base rule: quotes stripped, the gold string occurs in the reply. It is lenient for one-word golds, so tasks whose answer is a number, a date or a
list have parsers of their own. Replies of subjects that go on writing are cut where the answer's line ends.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from nullius.stimuli.embers_transforms import UNITS, pig_latin

Rule = Callable[[str, str], bool]
MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"]


def strip_quotes(reply: str) -> str:
    """Remove white space and quotation marks around a reply."""
    return reply.strip().strip("\"'“”‘’` ").strip()


def contains(reply: str, gold: str) -> bool:
    """Whether the gold string occurs in the reply, quotes aside. An empty reply is wrong."""
    return bool(gold) and strip_quotes(gold) in strip_quotes(reply)


def contains_any_case(reply: str, gold: str) -> bool:
    """As `contains`, letter case aside."""
    return contains(reply.lower(), gold.lower())


def pig_latin_decoded(reply: str, gold: str) -> bool:
    """The paper's rule for decoding: the gold occurs in the reply, case aside, or the re-encoded gold in the re-encoded reply.

    Re-encoding forgives what the encoding loses (where a consonant cluster ended).
    """
    return contains_any_case(reply, gold) or contains(pig_latin(strip_quotes(reply)), pig_latin(strip_quotes(gold)))


def number(reply: str, gold: str) -> bool:
    """The last number of the reply's first line that has one, written in digits or in words up to nineteen, equals the gold."""
    for line in reply.splitlines():
        found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", line)
        if found:
            return float(found[-1].replace(",", "")) == float(gold)
        spelled = [word for word in re.findall(r"[a-z]+", line.lower()) if word in UNITS]
        if spelled:
            return float(UNITS.index(spelled[-1])) == float(gold)
    return False


def date(reply: str, gold: str) -> bool:
    """The first "Month Day, Year" of the reply equals the gold; ordinal endings and a missing comma are forgiven."""
    pattern = rf"({'|'.join(MONTHS)})\s+(\d{{1,2}})(?:st|nd|rd|th)?,?\s+(\d{{4}})"
    found, wanted = re.search(pattern, reply), re.search(pattern, gold)
    return found is not None and wanted is not None and found.groups() == wanted.groups()


def listed(reply: str, gold: str) -> bool:
    """The reply holds the gold's items in the gold's order, as a comma-separated line or one a line, with or without numbering."""
    return _items(gold) in _blocks(reply)


def _items(line: str) -> tuple[str, ...]:
    return tuple(
        strip_quotes(re.sub(r"^\s*(?:\d+[.)]|[-*•])\s+", "", part)).rstrip(".").lower() for part in line.split(",") if part.strip()
    )


def _blocks(reply: str) -> Sequence[tuple[str, ...]]:
    lines = [line.split(":")[-1] for line in reply.splitlines() if line.strip()]
    column = tuple(item for line in lines if "," not in line for item in _items(line))
    return [_items(line) for line in lines] + [column]


def last_line(reply: str, gold: str) -> bool:
    """The gold occurs in the last line that is not empty: for prompts that ask for steps first."""
    lines = [line for line in reply.splitlines() if line.strip()]
    return bool(lines) and contains(lines[-1], gold)
