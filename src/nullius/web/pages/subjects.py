"""Subjects: what is known of each model, several side by side, and the instruments that the verdicts rest on."""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import Any

from starlette.responses import Response

from nullius.errors import NulliusError, nearest
from nullius.lab import comparison, dossiers, journal, studies
from nullius.models.sources import sources
from nullius.web import calibrations, registry, shelf, verdicts
from nullius.web.problems import Problem, from_error
from nullius.web.site import Answer, Visit, get, page

_drawing = threading.Lock()


@page("/subjects", "subjects.html")
def subjects(visit: Visit) -> Answer:
    """Subjects known by name and those that were tested."""
    tested: dict[str, dict[str, Any]] = {}
    for found in journal.subjects():
        tested.setdefault(found["name"], {**found, "runs": 0})["runs"] += found["runs"]
    words: dict[str, list[dict[str, Any]]] = {}
    for verdict in verdicts.today():
        words.setdefault(verdict["subject"]["name"], []).append(verdict)
    known = {name: source.to_dict() for name, source in sources().items()}
    rows = []
    for name in [*known, *(n for n in tested if n not in known)]:
        source, own = known.get(name), tested.get(name)
        rows.append(
            {
                "name": name,
                "title": source["title"] if source else name,
                "parameters": own["parameters"] if own else source["parameters"] if source else None,
                "architecture": own["architecture"] if own else None,
                "licence": source["licence"] if source else (own or {"provenance": {}})["provenance"].get("licence"),
                "here": source["here"] if source else True,
                "runs": own["runs"] if own else 0,
                "tally": verdicts.decisive(words.get(name, [])),
            }
        )
    return {"schema": "nullius.web.subjects/1", "subjects": rows, "subject": visit.subject}


def dossier(name: str) -> dict[str, Any]:
    """Return the dossier of a subject (nullius.dossier/1), with what is untested and how long that would take. Raises Problem 404."""
    source = sources().get(name)
    try:
        found = dossiers.dossier(name)
    except NulliusError as error:
        if source is None:
            known = shelf.subject_names()
            close = nearest(name, known, 1).removeprefix("; nearest: ")
            problem = from_error(error, reading=True)
            problem.detail = f"There is no subject '{name[:80]}' here."
            problem.link = (f"/subjects/{close}", f"You may mean {close}") if close else ("/subjects", "Subjects")
            raise problem from None
        found = {"subject": _unloaded(source), "questions": {}, "missing": sorted(studies.modules())}
    questions = {question: [_row(row) for row in rows] for question, rows in found["questions"].items()}
    missing = [slug for slug in found["missing"] if slug in registry.described()]
    seconds = sum(verdicts.expected_seconds(slug, name) or 0.0 for slug in missing)
    everything = [v for rows in questions.values() for row in rows for v in row["verdicts"]]
    about = {**found, "schema": "nullius.dossier/1", "questions": questions, "missing": missing, "tally": verdicts.decisive(everything)}
    return {**about, "seconds": seconds, "name": name, "source": source.to_dict() if source else None}


def _row(row: dict[str, Any]) -> dict[str, Any]:
    """A paper in a dossier: its verdicts on claims as they are worded today, and how many there are on earlier wordings."""
    wordings = verdicts.digests(row["slug"])
    own = [verdicts.shown(v) for v in row["verdicts"] if not wordings or v["digest"] in wordings]
    return {**row, "verdicts": own, "earlier": len(row["verdicts"]) - len(own), "paper": shelf.brief(row["slug"])}


def _unloaded(source: Any) -> dict[str, Any]:
    about = {"source": source.hub, "licence": source.licence, "quantisation": source.quantisation}
    return {
        "name": source.name,
        "sha256": None,
        "parameters": source.parameters,
        "architecture": None,
        "chat": source.chat,
        "provenance": about,
    }


@page("/subjects/{name:path}", "dossier.html")
def subject(visit: Visit) -> Answer:
    """A dossier: everything that was found about one subject, a row per paper."""
    return {**dossier(visit.params["name"]), "calibration": calibrations.table(), "download": False}


@get("/subjects/{name:path}/download")
def download(visit: Visit) -> Response:
    """A dossier as one file that needs nothing else."""
    from nullius.web import assets

    site = visit.request.app.state.site
    data = {**dossier(visit.params["name"]), "calibration": calibrations.table(), "css": assets.assets()["style.css"].content.decode()}
    text = site.render("dossier_file.html", visit, data)
    name = "".join(c if c.isalnum() or c in "-._" else "-" for c in visit.params["name"])
    headers = {"Content-Disposition": f'attachment; filename="dossier-{name}.html"'}
    return Response(text, media_type="text/html; charset=utf-8", headers=headers)


@page("/compare/{slug:path}", "compare.html")
def compare(visit: Visit) -> Answer:
    """One paper, several subjects: a forest plot for each claim, a table under it, paired differences where stimuli are shared."""
    found = shelf.paper(visit.params["slug"])
    chosen = list(dict.fromkeys(visit.request.query_params.getlist("m")))[:10]
    tested = [s["name"] for s in verdicts.subjects_of(found["slug"] or "")]
    unknown = [name for name in chosen if name not in tested]
    if unknown:
        raise Problem(
            404,
            f"There is no verdict of {found['key']} on '{unknown[0][:80]}'{nearest(unknown[0], tested)}.",
            "Run it there first.",
            (f"/papers/{found['key']}", found["title"]),
        )
    data: dict[str, Any] = {
        "schema": "nullius.web.compare/1",
        "paper": found,
        "tested": tested,
        "chosen": chosen or tested[:6],
        "claims": [],
        "calibration": [calibrations.of(name) for name in registry.instruments(found["slug"])],
    }
    if len(data["chosen"]) >= 2:
        stamp = tuple(v["run"] for v in verdicts.index().by_slug.get(found["slug"], []))
        data["claims"] = compared(found["slug"], tuple(data["chosen"]), stamp)
    return data


@lru_cache(maxsize=64)
def compared(slug: str, names: tuple[str, ...], _stamp: tuple[str, ...]) -> list[dict[str, Any]]:
    """What the lab says about two or more subjects, with the scale of each claim's plot. Kept until another run is done."""
    with _drawing:
        claims: list[dict[str, Any]] = comparison.compare(slug, names)["claims"]
    return [{**claim, "scale": verdicts.scale(claim["subjects"], claim["published"])} for claim in claims]


@page("/calibration", "calibration.html")
def calibration(visit: Visit) -> Answer:
    """Every instrument against cases whose right answer is known by construction."""
    return {"schema": "nullius.web.calibration/1", "instruments": calibrations.table()}
