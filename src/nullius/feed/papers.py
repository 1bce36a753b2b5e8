"""One paper: found by any of its names, and all that is known of it."""

from __future__ import annotations

import re

import sqlalchemy as sa

from nullius.errors import UsageError, nearest
from nullius.feed import cards, catalogue, verdicts
from nullius.feed.database import reading
from nullius.feed.shapes import Found, Matrix, Origin, Paper, StudyFacts
from nullius.feed.tables import paper, paper_category, paper_day, paper_name, paper_source, study
from nullius.feed.text import arxiv_id

_NUMBER = re.compile(r"p(\d{1,9})")


class UnknownPaper(UsageError):
    """No paper has this name; the message names the nearest."""


def find(key: str) -> Found:
    """Return the paper with this slug, arXiv id (any version), DOI, number or former name. Raises UnknownPaper with the nearest slugs."""
    with reading() as connection:
        return find_in(connection, key)


def find_in(connection: sa.Connection, key: str) -> Found:
    """Do as `find` does, within the caller's transaction."""
    asked = key.strip()
    lowered = asked.lower()
    conditions = [paper.c.slug == lowered, paper.c.doi == lowered.removeprefix("doi:").removeprefix("https://doi.org/")]
    if identifier := arxiv_id(asked):
        conditions.append(paper.c.arxiv_id == identifier[0])
    if match := _NUMBER.fullmatch(lowered):
        conditions.append(paper.c.id == int(match[1]))
    row = connection.execute(sa.select(paper).where(sa.or_(*conditions)).order_by(paper.c.id).limit(1)).mappings().first()
    if row is None:
        old = sa.select(paper).join(paper_name, paper_name.c.paper == paper.c.id).where(paper_name.c.name == lowered)
        row = connection.execute(old).mappings().first()
    for _ in range(20):  # a paper merged into one that was merged itself
        if row is None or row["merged_into"] is None:
            break
        row = connection.execute(sa.select(paper).where(paper.c.id == row["merged_into"])).mappings().first()
    if row is None:
        slugs = [entry.slug for entry in catalogue.papers()]
        raise UnknownPaper(f"no paper '{asked[:80]}'{nearest(asked[:80], slugs)}; `nullius papers --search` finds papers by what they say")
    proper = cards.key_of(dict(row))
    return Found(row["id"], proper, redirect=asked != proper)


def get(paper_id: int, *, subject: str = "", account: str | None = None) -> Paper:
    """Return all that is known of a paper, by its number (`find` gives it)."""
    with reading() as connection:
        row = connection.execute(sa.select(paper).where(paper.c.id == paper_id)).mappings().first()
        if row is None:
            raise UnknownPaper(f"no paper with number {paper_id}")
        (card,) = cards.from_rows(connection, [dict(row)], subject=subject, account=account)
        categories = connection.execute(sa.select(paper_category.c.category).where(paper_category.c.paper == paper_id)).scalars()
        days = connection.execute(sa.select(paper_day.c.day).where(paper_day.c.paper == paper_id).distinct()).scalars()
        origins = connection.execute(sa.select(paper_source).where(paper_source.c.paper == paper_id).order_by(paper_source.c.fetched_at))
        facts = ("abstract", "their_summary", "their_summary_source", "doi", "version", "comment", "journal_ref")
        return Paper(
            card=card,
            raw_title=row["title"],
            categories=tuple(sorted(categories, key=lambda name: (name != row["primary_category"], name))),
            days=tuple(sorted(days)),
            origins=tuple(Origin(found.source, found.external_id, found.version, found.fetched_at) for found in origins),
            about=catalogue.abouts().get(row["slug"], ""),
            **{name: row[name] for name in facts},
        )


def matrix(slug: str) -> Matrix:
    """Return claims × subjects of a paper that has a study; empty for one that has none."""
    with reading() as connection:
        return verdicts.matrix(connection, slug)


def study_of(slug: str) -> StudyFacts | None:
    """Return what a paper's study offers; None without a study, or before `nullius.feed.claims.refresh` has read it."""
    with reading() as connection:
        row = connection.execute(sa.select(study).where(study.c.slug == slug)).mappings().first()
        if row is None:
            return None
        facts = {name: row[name] for name in ("slug", "question", "minutes", "subject", "trains_its_own")}
        return StudyFacts(**facts, options=tuple(row["options"]))
