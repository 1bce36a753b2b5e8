"""The search page."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from nullius.feed import papers as feed_papers
from nullius.web import citing, finding, shelf
from nullius.web.problems import Problem
from nullius.web.site import Answer, Visit, get, page

LONGEST = 5000


def asked(visit: Visit) -> str:
    """The query of a search. Raises Problem 422 when it is longer than any question."""
    text = visit.query("q")
    if len(text) > LONGEST:
        raise Problem(422, f"A search has at most {LONGEST} characters; this one has {len(text)}.")
    return text.strip()


@page("/search", "search.html")
def search(visit: Visit) -> Answer:
    """Papers by words and by meaning; each filter is part of the address, so that a search can be shared."""
    text = asked(visit)
    found: dict[str, Any] = finding.search(visit.person, text, visit.subject, cursor=visit.query("cursor")[:500])
    chips = [f"subject:{visit.subject} verdict:fails", "runnable:yes", "has:code", "after:2025"]
    suggestions = [chip for chip in chips if not any(part.split(":")[0] + ":" in text for part in chip.split())]
    return {"schema": "nullius.web.search/1", "query_text": text, **found, "suggestions": suggestions, "subject": visit.subject}


@get("/search.bib")
def bib(visit: Visit) -> Response:
    """The best 100 of a search as BibTeX."""
    found = finding.search(visit.person, asked(visit), visit.subject, limit=100)["papers"]
    text, kind = citing.many([shelf.full(feed_papers.find(card["key"]).id) for card in found], "bibtex")
    return Response(text, media_type=kind, headers={"Content-Disposition": 'inline; filename="search.bib"'})
