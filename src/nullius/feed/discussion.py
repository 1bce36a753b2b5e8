"""Notes on a paper or on one verdict: markdown, threaded one level, counted on the paper's card."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from nullius.errors import UsageError
from nullius.feed.database import reading, writing
from nullius.feed.shapes import Note
from nullius.feed.tables import account as _account
from nullius.feed.tables import note, paper
from nullius.feed.text import clean
from nullius.lab.journal import now
from nullius.lab.schema import run, verdict

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

MOST_CHARACTERS = 5_000
MOST_CELLS = 2_000  # of a table: rows that leave cells out get them all the same, 720,000 from 5,000 characters
_LINK = re.compile(r"https?://|/(?!/)|#", re.IGNORECASE)
_TAGS = {
    *("a", "blockquote", "br", "code", "em", "h4", "hr", "li", "ol", "p", "pre", "s", "strong"),
    *("table", "tbody", "td", "th", "thead", "tr", "ul"),
}


def write(account: str, paper_id: int, text: str, *, run_id: str | None = None, claim: str | None = None, parent: int | None = None) -> int:
    """Write a note and return its number. run_id, claim: the verdict that it is about. parent: the note that it answers.

    An answer to an answer joins the same thread. Raises UsageError for an empty or too long text, and for a paper, verdict or note that is not
    there.
    """
    text = _checked(text)
    with writing() as connection:
        slug = connection.execute(sa.select(paper.c.slug).where(paper.c.id == paper_id).with_for_update()).first()
        if slug is None:
            raise UsageError("the paper that this note is about does not exist")
        if run_id is not None:
            about = sa.select(run.c.id).where(run.c.id == run_id, run.c.slug == slug[0])
            if claim is not None:
                about = about.join(verdict, sa.and_(verdict.c.run_id == run.c.id, verdict.c.claim == claim))
            if connection.execute(about).first() is None:
                raise UsageError("the verdict that this note is about does not exist")
        if parent is not None:
            above = connection.execute(sa.select(note.c.id, note.c.parent).where(note.c.id == parent, note.c.paper == paper_id)).first()
            if above is None:
                raise UsageError("the note that this one answers does not exist")
            parent = above.parent or above.id
        values = {"paper": paper_id, "run_id": run_id, "claim": claim, "account": account, "parent": parent, "text": text, "created": now()}
        number = connection.execute(note.insert().values(**values)).inserted_primary_key
        assert number is not None
        _count(connection, paper_id)
        return int(number[0])


def edit(account: str, number: int, text: str) -> None:
    """Change a note of one's own. Raises UsageError for another's, or one that is not there."""
    text = _checked(text)
    own = sa.and_(note.c.id == number, note.c.account == account, note.c.removed_at.is_(None))
    with writing() as connection:
        if not connection.execute(note.update().where(own).values(text=text, edited=now())).rowcount:
            raise UsageError("this note is not yours, or no longer there")


def remove(account: str, number: int, *, maintainer: bool = False) -> None:
    """Remove a note of one's own (a maintainer: anybody's). Its text is gone; its place stays where somebody answered."""
    own = note.c.id == number if maintainer else sa.and_(note.c.id == number, note.c.account == account)
    with writing() as connection:
        row = connection.execute(sa.select(note.c.id, note.c.paper).where(own)).first()
        if row is None:
            raise UsageError("this note is not yours, or no longer there")
        connection.execute(sa.select(paper.c.id).where(paper.c.id == row.paper).with_for_update())  # who answers it, or counts, waits
        if connection.execute(sa.select(note.c.id).where(note.c.parent == number).limit(1)).first() is None:
            connection.execute(note.delete().where(note.c.id == number))
        else:
            connection.execute(note.update().where(note.c.id == number).values(text="", removed_at=now()))
        _count(connection, row.paper)


def thread(paper_id: int, *, run_id: str | None = None) -> tuple[Note, ...]:
    """Return the notes on a paper (run_id: only those on a run's verdicts), oldest first, each with its answers."""
    query = (
        sa.select(note, _account.c.name, _account.c.email)
        .outerjoin(_account, _account.c.id == note.c.account)
        .where(note.c.paper == paper_id)
    )
    with reading() as connection:
        rows = [dict(row) for row in connection.execute(query.order_by(note.c.created, note.c.id)).mappings()]
    replies: dict[int, list[Note]] = {}
    for row in rows:
        if row["parent"] is not None:
            replies.setdefault(row["parent"], []).append(_note(row))
    tops = [row for row in rows if row["parent"] is None and (run_id is None or row["run_id"] == run_id)]
    return tuple(_note(row, tuple(replies.get(row["id"], ()))) for row in tops)


def _called(row: Mapping[str, Any]) -> str:
    """The name of an account; without one what stands before the @, as its owner is greeted; '' for an account that is gone."""
    return row["name"] or (row["email"] or "").split("@")[0]


def _note(row: Mapping[str, Any], replies: tuple[Note, ...] = ()) -> Note:
    removed = row["removed_at"] is not None
    own = {name: row[name] for name in ("id", "paper", "claim", "account", "text", "created", "edited")}
    return Note(**own, run=row["run_id"], author=_called(row), html="" if removed else html(row["text"]), removed=removed, replies=replies)


def html(text: str) -> str:
    """Return markdown as HTML that is safe to show: a small set of elements, links to http(s) and to pages of this site only, nothing that runs,
    no images, no table that is many times its text.

    >>> html("*yes* <script>alert(1)</script> [x](javascript:alert(1))")
    '<p><em>yes</em> &lt;script&gt;alert(1)&lt;/script&gt; [x](javascript:alert(1))</p>\\n'
    """
    import nh3

    columns = max((line.count("|") for line in text.splitlines()), default=0)
    rendered = _markdown(tables=columns * text.count("\n") <= MOST_CELLS).render(text)
    return nh3.clean(rendered, tags=_TAGS, attributes={"a": {"href"}}, url_schemes={"http", "https"}, link_rel="nofollow noopener ugc")


@cache
def _markdown(tables: bool) -> MarkdownIt:
    from markdown_it import MarkdownIt

    made = MarkdownIt("commonmark", {"html": False, "maxNesting": 20}).enable(["strikethrough", *(["table"] if tables else [])])
    made.validateLink = lambda url: _LINK.match(url) is not None  # type: ignore[method-assign]  # as its documentation says
    return made


def _checked(text: str) -> str:
    text = clean(text).strip()
    if not text:
        raise UsageError("a note needs some text")
    if len(text) > MOST_CHARACTERS:
        raise UsageError(f"a note has at most {MOST_CHARACTERS:,} characters, this one {len(text):,}")
    return text


def _count(connection: sa.Connection, paper_id: int) -> None:
    number = sa.select(sa.func.count()).select_from(note).where(note.c.paper == paper_id, note.c.removed_at.is_(None)).scalar_subquery()
    connection.execute(paper.update().where(paper.c.id == paper_id).values(notes=number))
