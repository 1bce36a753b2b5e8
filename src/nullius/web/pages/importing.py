"""Importing papers: a file, pasted text, or an address of a source on the list."""

from __future__ import annotations

import io
from datetime import date
from typing import Any

import sqlalchemy as sa

from nullius.errors import NulliusError
from nullius.feed.database import reading
from nullius.feed.importers.decode import Document
from nullius.feed.importers.fetch import allowed_hosts
from nullius.feed.importers.running import Report, import_document, import_from, imports
from nullius.feed.tables import import_reject
from nullius.web.problems import Problem, from_error
from nullius.web.site import Answer, Visit, page, post

SHOWN = 100


@page("/import", "import.html")
def overview(visit: Visit) -> Answer:
    """Import papers, and what was imported before."""
    visit.need("import")
    return {"schema": "nullius.web.imports/1", **_past(), "report": None}


def _past() -> dict[str, Any]:
    return {"imports": imports(20), "hosts": sorted(allowed_hosts())}


@page("/import/{id}", "import_report.html")
def report(visit: Visit) -> Answer:
    """One import: its counts, and what was rejected, why."""
    visit.need("import")
    found = next((row for row in imports(1000) if row["id"] == visit.params["id"]), None)
    if found is None:
        raise Problem(404, "There is no such import.", "", ("/import", "Imports"))
    query = sa.select(import_reject.c.position, import_reject.c.reason, import_reject.c.head).where(
        import_reject.c.import_run == found["id"]
    )
    with reading() as connection:
        rejects = [dict(row) for row in connection.execute(query.order_by(import_reject.c.id).limit(SHOWN)).mappings()]
    return {"schema": "nullius.web.import/1", "found": found, "rejects": rejects}


@post("/import")
def run(visit: Visit) -> Answer:
    """Import what was uploaded, pasted or named. What is good is kept; what is not is listed with the reason."""
    visit.need("import")
    upload = next(iter(visit.files.values()), None)
    made = read(visit.form.get("text", ""), visit.form.get("address", "").strip(), visit.form.get("date", ""), upload)
    return {"template": "import.html", "schema": "nullius.web.imports/1", **_past(), "report": told(made)}


def read(text: str, address: str, date_of_page: str, upload: bytes | None = None) -> Report:
    """Import an upload, else a text, else from an address. Raises Problem 422 for nothing, for an address that is none, for what no source speaks."""
    day = _day(date_of_page)
    try:
        if upload is not None:
            return import_document(Document(io.BytesIO(upload), "an upload"), day=day)
        if text.strip():
            return import_document(Document(io.BytesIO(text.encode("utf-8", "replace")), "pasted text"), day=day)
        if not address:
            raise Problem(422, "There is nothing to import.", "Choose a file, paste text, or give an address.", ("/import", "Import"))
        if not address.startswith(("http://", "https://")):  # a path would be a file of the server
            raise Problem(422, "This is no web address.", f"Sources: {', '.join(sorted(allowed_hosts()))}.")
        return import_from(address, day=day)
    except NulliusError as error:
        raise from_error(error, reading=False) from None


def _day(text: str) -> date | None:
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        raise Problem(422, f"'{text[:20]}' is no date; write 2025-11-04.") from None


def told(made: Report) -> dict[str, Any]:
    """An import as plain data, with the first of its rejects."""
    return {**made.to_dict(), "summary": made.summary, "rejects": made.rejects[:SHOWN]}
