"""Notes on a paper, or on one verdict of it: markdown, sanitised, threaded one level."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from markdown_it import MarkdownIt

from nullius.feed import tables
from nullius.feed.database import reading, writing
from nullius.feed.text import clean
from nullius.lab.journal import now
from nullius.lab.schema import verdict
from nullius.web.problems import Problem
from nullius.web.who import Person

LONGEST = 5000
# HTML is shown as text, pictures are not fetched, headings would break the page's outline
_markdown = MarkdownIt("commonmark", {"html": False, "breaks": True}).disable(["image", "heading", "lheading", "html_block", "html_inline"])
_markdown.validateLink = lambda url: bool(re.match(r"(https?://|mailto:|/(?!/))", url, re.IGNORECASE))  # type: ignore[method-assign]


def html(text: str) -> str:
    """Draw a note. Whatever it holds, nothing in it is executed or loaded."""
    drawn: str = _markdown.render(clean(text))
    return drawn.replace("<a href=", '<a rel="nofollow noreferrer ugc" href=')


def notes(paper_id: int) -> list[dict[str, Any]]:
    """Return the notes of a paper, oldest first, each with its replies. A removed note keeps its place while it has replies."""
    note, account = tables.note, tables.account
    query = sa.select(note, account.c.name.label("by_name"), account.c.email).outerjoin(account, account.c.id == note.c.account)
    with reading() as connection:
        rows = connection.execute(query.where(note.c.paper == paper_id).order_by(note.c.id)).mappings().all()
    shown = {row["id"]: {**_shown(row), "replies": []} for row in rows}
    for row in rows:
        if row["parent"] in shown and not row["removed_at"]:
            shown[row["parent"]]["replies"].append(shown[row["id"]])
    return [shown[r["id"]] for r in rows if r["parent"] is None and (not r["removed_at"] or shown[r["id"]]["replies"])]


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    by = row["by_name"] or (row["email"] or "").split("@")[0] or ("you" if row["account"] == tables.LOCAL else "somebody who left")
    text = "*removed*" if row["removed_at"] else row["text"]
    about = {"id": row["id"], "account": row["account"], "by": by, "created": row["created"], "removed": bool(row["removed_at"])}
    return {**about, "text": text, "html": html(text), "run": row["run_id"], "claim": row["claim"]}


def add(person: Person, paper_id: int, form: Mapping[str, str]) -> int:
    """Add a note and return its number. Raises Problem 422 for an empty or overlong one, or one about something that is not there."""
    text = clean(form.get("text", "")).strip()
    if not text:
        raise Problem(422, "The note is empty.")
    if len(text) > LONGEST:
        raise Problem(422, f"A note has at most {LONGEST} characters; this one has {len(text)}.")
    note, parent = tables.note, form.get("parent", "")
    run_id, _, claim = form.get("about", "").partition("/")
    values: dict[str, Any] = {"paper": paper_id, "account": person.account, "text": text, "created": now()}
    with writing() as connection:
        if parent:
            if not (parent.isascii() and parent.isdecimal() and len(parent) < 10):
                raise Problem(422, "This is no note to reply to.")
            found = connection.execute(sa.select(note).where(note.c.id == int(parent), note.c.paper == paper_id)).mappings().first()
            if found is None or found["removed_at"]:
                raise Problem(422, "The note that this replies to is gone.")
            values["parent"] = found["parent"] or found["id"]  # one level
        elif run_id:
            known = sa.select(verdict.c.claim).where(verdict.c.run_id == run_id, verdict.c.claim == claim)
            if connection.execute(known).first() is None:
                raise Problem(422, "There is no such verdict.")
            values |= {"run_id": run_id, "claim": claim}
        made = connection.execute(note.insert().values(**values)).inserted_primary_key
        _count(connection, paper_id)
        return int(made[0]) if made else 0


def remove(person: Person, note_id: str) -> None:
    """Take a note away: one's own, or any for a maintainer. Raises Problem 403 and 404."""
    note = tables.note
    if not (note_id.isascii() and note_id.isdecimal() and len(note_id) < 10):
        raise Problem(404, "There is no such note.")
    with writing() as connection:
        found = connection.execute(sa.select(note).where(note.c.id == int(note_id))).mappings().first()
        if found is None:
            raise Problem(404, "There is no such note.")
        if found["account"] != person.account and person.role != "maintainer":
            raise Problem(403, "This note was written by somebody else.")
        connection.execute(note.update().where(note.c.id == int(note_id)).values(removed_at=now(), text=""))
        _count(connection, found["paper"])


def _count(connection: sa.Connection, paper_id: int) -> None:
    own = sa.select(sa.func.count()).where(tables.note.c.paper == paper_id, tables.note.c.removed_at.is_(None)).scalar_subquery()
    connection.execute(tables.paper.update().where(tables.paper.c.id == paper_id).values(notes=own))
