"""The catalogue of papers that nullius knows by heart. Imports neither torch nor a database."""

from __future__ import annotations

import datetime
import re
import tomllib
import unicodedata
from dataclasses import MISSING, asdict, dataclass, fields
from functools import cache
from importlib.resources import files
from typing import Any

from nullius.errors import NulliusError, UsageError, nearest
from nullius.lab import studies


@dataclass(frozen=True)
class Paper:
    """An entry of the catalogue. authors: their number. code: the official repository, empty when none is known.

    summary: one sentence. about: what is asked, how, and what is found, in a paragraph of our own words and the field's.
    """

    slug: str
    title: str
    arxiv: str
    date: datetime.date
    authors: int
    question: str
    summary: str
    about: str
    code: str = ""

    @property
    def runs(self) -> bool:
        """Whether a study of this paper exists."""
        return self.slug in studies.modules()

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as plain JSON data."""
        return {**asdict(self), "date": self.date.isoformat(), "url": f"https://arxiv.org/abs/{self.arxiv}", "runs": self.runs}


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(files("nullius.feed").joinpath("papers.toml").read_text("utf-8"))


@cache
def papers() -> tuple[Paper, ...]:
    """Return all papers, newest first."""
    return tuple(sorted(map(_entry, _table()["paper"]), key=lambda paper: (paper.date, paper.slug), reverse=True))


def _entry(entry: dict[str, Any]) -> Paper:
    """A paper from its entry in papers.toml. Raises NulliusError where it lacks something, or has what no entry has."""
    needed = {field.name for field in fields(Paper) if field.default is MISSING}
    wrong = [f"lacks {name}" for name in sorted(needed - entry.keys())] + [
        f"has '{name}'" for name in sorted(entry.keys() - needed - {"code"})
    ]
    if wrong:
        raise NulliusError(f"papers.toml, entry '{entry.get('slug', '')}': {', '.join(wrong)}; CONTRIBUTING.md shows a whole one")
    return Paper(**{**entry, "about": " ".join(entry["about"].split())})


@cache
def abouts() -> dict[str, str]:
    """Return what our paragraph on each paper says, by slug."""
    return {entry.slug: entry.about for entry in papers()}


def day() -> datetime.date:
    """Return the day on whose page the papers of the catalogue stand."""
    found: datetime.date = _table()["day"]
    return found


def paper(key: str) -> Paper:
    """Return the paper with this slug or arXiv id (a version suffix is ignored), or raise UsageError with the nearest slugs."""
    arxiv = re.sub(r"^(arxiv:)?(\d{4}\.\d{4,5})(v\d+)?$", r"\2", key.strip().lower())
    for entry in papers():
        if key == entry.slug or arxiv == entry.arxiv:
            return entry
    raise UsageError(f"no paper '{key}'{nearest(key, [entry.slug for entry in papers()])}; `nullius papers` lists them")


def words(text: str) -> list[str]:
    """Split text into case-folded words with a light English stem, so that "claims" meets "claim".

    >>> words("Mixing mechanisms: bound entities")
    ['mix', 'mechanism', 'bound', 'entiti']
    """
    plain = unicodedata.normalize("NFKD", text).casefold()
    return [_stem(word) for word in re.findall(r"[a-z0-9]+(?:\.[0-9]+)?", plain)]


def _stem(word: str) -> str:
    for suffix, rest in (("ies", "i"), ("ing", ""), ("ed", ""), ("es", ""), ("s", "")):
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            return word[: -len(suffix)] + rest
    return word[:-1] + "i" if word.endswith("y") and len(word) > 3 else word
