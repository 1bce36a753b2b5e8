"""Pages about the site itself: entering, choices, what it is, whether it is well."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import Any

from starlette.responses import Response

import nullius
from nullius.lab import journal
from nullius.web import asking, shelf, verdicts, who
from nullius.web.problems import Problem
from nullius.web.site import THEMES, Answer, Visit, get, page, post, see

YEAR = 365 * 86400
STARTED = time.time()


@get("/enter")
def enter(visit: Visit) -> Response:
    """The one-time address of a local server: sets the owner's cookie and leaves the address bar clean."""
    cookie = who.enter(visit.query("key"), visit.settings)
    response = see("/")
    flags: dict[str, Any] = {"httponly": True, "samesite": "strict", "secure": visit.settings.secure, "path": "/"}
    response.set_cookie(visit.settings.cookie, cookie, max_age=who.SESSION_DAYS * 86400, **flags)
    return response


@post("/choices")
def choices(visit: Visit) -> Response:
    """The reader's subject and theme, kept in their browser."""
    response = visit.back("/")
    subject, theme = visit.form.get("subject", "").strip(), visit.form.get("theme")
    flags: dict[str, Any] = {"max_age": YEAR, "samesite": "lax", "secure": visit.settings.secure, "path": "/"}
    if subject:
        if subject not in shelf.subject_names():
            raise Problem(422, f"There is no subject '{subject[:80]}' here.", "Choose one of the list.", ("/subjects", "Subjects"))
        response.set_cookie("subject", subject, httponly=True, **flags)
    if theme:
        if theme not in THEMES:
            raise Problem(422, f"A theme is {', '.join(THEMES)}, not '{theme[:20]}'.")
        response.set_cookie("theme", theme, httponly=True, **flags)
    return response


@page("/about", "about.html")
def about(visit: Visit) -> Answer:
    """What this is, and how to read a verdict."""
    return {"schema": "nullius.web.about/1", "nullius": nullius.__version__}


@page("/contributing", "contributing.html")
def contributing(visit: Visit) -> Answer:
    """How a paper gets its study: CONTRIBUTING.md, which the package brings along."""
    return {"schema": "nullius.web.contributing/1", "html": guide()}


@cache
def guide() -> str:
    """Return CONTRIBUTING.md as HTML; its code can be scrolled by keyboard."""
    from markdown_it import MarkdownIt

    text = (Path(__file__).parents[1] / "contributing.md").read_text("utf-8")
    return str(MarkdownIt("commonmark").enable("table").render(text)).replace("<pre>", '<pre tabindex="0">')


@page("/health", "health.html")
def health(visit: Visit) -> Answer:
    """Whether the server is well: for people and for programs that watch it."""
    queued, running = (len(journal.list_runs(limit=1000, state=state)) for state in ("queued", "running"))
    return {
        "schema": "nullius.web.health/1",
        "status": "ok",
        "nullius": nullius.__version__,
        "up_seconds": round(time.time() - STARTED),
        "queued": queued,
        "running": running,
        "worker": asking.worker_seen(),
        "verdicts": len(verdicts.index().verdicts),
    }
