"""One paper: its claims on every subject, its figure, running it, votes, notes, what is like it, and how to cite it."""

from __future__ import annotations

from typing import Any

from starlette.responses import RedirectResponse, Response

from nullius.errors import UsageError
from nullius.feed import discussion, merging
from nullius.feed.shapes import Note
from nullius.feed.similar import By
from nullius.feed.tables import LOCAL
from nullius.lab import journal
from nullius.web import calibrations, citing, registry, shelf, verdicts
from nullius.web.pages.runs import figures
from nullius.web.problems import Problem
from nullius.web.site import Answer, Visit, get, page, post, see

SIMILAR: tuple[By, ...] = ("meaning", "newest", "instrument")


@page("/papers/{key:path}", "paper.html")
def paper(visit: Visit) -> Answer:
    """A paper. Other names of it (versions, former names) lead to its one address; citation formats also by Accept."""
    key = visit.params["key"]
    found = shelf.paper(key)
    if key != found["key"]:
        suffix = ".json" if visit.path.endswith(".json") else ""
        return RedirectResponse(f"/papers/{found['key']}{suffix}", 301)
    wanted = citing.wanted(visit.request.headers.get("accept", ""))
    if wanted and not visit.path.endswith(".json"):
        return _cited(found, wanted)
    return {"schema": "nullius.web.paper/1", **details(visit, found)}


def details(visit: Visit, found: dict[str, Any]) -> dict[str, Any]:
    """Everything on a paper's page, as plain data."""
    slug = found["slug"] if found["runnable"] else None
    study = registry.known(slug)
    by = next((name for name in SIMILAR if name == visit.query("similar", "meaning")), None)
    if by is None:
        raise Problem(422, f"Similar papers are found by {', '.join(SIMILAR)}, not by '{visit.query('similar')[:40]}'.")
    runs = journal.list_runs(found["slug"], limit=1000) if found["slug"] else []
    (card,) = shelf.cards([found["id"]], visit.person, visit.subject)
    names = shelf.authors(found["id"])
    return {
        "scholars": [{"@type": "Person", "name": name} for name in names],
        "paper": {**found, "authors": names, "categories": shelf.categories(found["id"])},
        "card": card,
        "study": {name: study[name] for name in ("question", "minutes", "subject", "options", "trains_its_own")} if study else None,
        "matrix": verdicts.matrix(found["slug"], visit.subject) if study else None,
        "calibration": [calibrations.of(name) for name in registry.instruments(slug)],
        "figure": _figure(runs, visit.subject),
        "subject": visit.subject,
        "expected": verdicts.expected_seconds(slug, visit.subject) if slug else None,
        "memory": next((r["peak_bytes"] for r in runs if r["state"] == "done" and r["subject"]["name"] == visit.subject), None),
        "runs": [_run(r) for r in runs[:20]],
        "run_count": len(runs),
        "similar_by": by,
        "similar": shelf.similar(found, by, visit.person, visit.subject),
        "notes": [shown_note(note) for note in discussion.thread(found["id"])],
    }


def _run(found: dict[str, Any]) -> dict[str, Any]:
    words = [{"claim": v["claim"], "word": v["word"]} for v in found["verdicts"]]
    names = ("id", "asked_subject", "full", "seed", "state", "reason", "started", "wall_seconds")
    return {**{name: found[name] for name in names}, "verdicts": words}


def _figure(runs: list[dict[str, Any]], subject: str) -> dict[str, Any] | None:
    """The newest figure that is there, on the reader's subject if possible."""
    drawn = [r for r in runs if any(entry["name"] == "figure.svg" for entry in r["artefacts"])]
    for r in sorted(drawn, key=lambda r: r["subject"]["name"] != subject)[:1]:
        for figure in figures(r)[:1]:
            return {**figure, "subject": r["subject"]["name"], "full": r["full"]}
    return None


def _cited(found: dict[str, Any], form: str) -> Response:
    data = {**found, "authors": shelf.authors(found["id"])}
    text, kind = citing.one(data, form)
    headers = {"Content-Disposition": f'inline; filename="{found["key"].replace("/", "-")}.{citing.SUFFIX[form]}"', "Vary": "Accept"}
    return Response(text, media_type=kind, headers=headers)


@get("/papers/{key:path}.bib")
def bib(visit: Visit) -> Response:
    """BibTeX."""
    return _cited(shelf.paper(visit.params["key"]), "bibtex")


@get("/papers/{key:path}.ris")
def ris(visit: Visit) -> Response:
    """RIS, which Zotero, EndNote and Mendeley read."""
    return _cited(shelf.paper(visit.params["key"]), "ris")


@get("/papers/{key:path}.csl.json")
def csl(visit: Visit) -> Response:
    """CSL-JSON."""
    return _cited(shelf.paper(visit.params["key"]), "csl")


@post("/papers/{key:path}/vote")
def vote(visit: Visit) -> Answer:
    """Vote for a paper, or take the vote back. With htmx the answer is the button as it is now."""
    visit.need("vote")
    found = shelf.paper(visit.params["key"])
    shelf.set_vote(visit.person, found["id"], visit.form.get("on") != "0")
    return _button(visit, found, "_vote.html")


@post("/papers/{key:path}/save")
def save(visit: Visit) -> Answer:
    """Put a paper into the reader's library, or take it out."""
    visit.need("save")
    found = shelf.paper(visit.params["key"])
    shelf.set_saved(visit.person, found["id"], visit.form.get("on") != "0")
    return _button(visit, found, "_save.html")


def _button(visit: Visit, found: dict[str, Any], template: str) -> Answer:
    if not visit.fragment:
        return visit.back(f"/papers/{found['key']}")
    (card,) = shelf.cards([found["id"]], visit.person, visit.subject)
    return {"template": template, "card": card, "here": visit.form.get("next", "/")}


def shown_note(note: Note) -> dict[str, Any]:
    """A note as plain data."""
    names = ("id", "run", "claim", "account", "text", "html", "created", "edited", "removed")
    by = note.author or ("you" if note.account == LOCAL else "somebody who left")
    return {**{name: getattr(note, name) for name in names}, "by": by, "replies": [shown_note(reply) for reply in note.replies]}


@post("/papers/{key:path}/notes")
def add_note(visit: Visit) -> Response:
    """Add a note to a paper, to one verdict of it, or to another note."""
    visit.need("note")
    found, form = shelf.paper(visit.params["key"]), visit.form
    run_id, _, claim = form.get("about", "").partition("/")
    parent = form.get("parent", "")
    if parent and not (parent.isascii() and parent.isdecimal() and len(parent) < 10):
        raise Problem(422, "This is no note to answer.")
    about: dict[str, Any] = {"run_id": run_id or None, "claim": claim or None, "parent": int(parent) if parent else None}
    discussion.write(visit.person.account, found["id"], form.get("text", ""), **about)
    return visit.back(f"/papers/{found['key']}#notes")


@post("/notes/{id}/remove")
def remove_note(visit: Visit) -> Response:
    """Take a note away: one's own, or any for a maintainer."""
    visit.need("note")
    number = visit.params["id"]
    if not (number.isascii() and number.isdecimal() and len(number) < 10):
        raise Problem(404, "There is no such note.")
    try:
        discussion.remove(visit.person.account, int(number), maintainer=visit.person.role == "maintainer")
    except UsageError as error:
        raise Problem(403, f"{str(error)[:1].upper()}{str(error)[1:]}.") from None
    return visit.back("/")


@post("/papers/{key:path}/merge")
def merge(visit: Visit) -> Response:
    """Merge a paper into another one that is the same: its votes, saves and notes go along, its address leads there."""
    visit.need("merge")
    found, into = shelf.paper(visit.params["key"]), shelf.paper(visit.form.get("into", "").strip())
    merging.merge(found["id"], into["id"])
    return see(f"/papers/{into['key']}")
