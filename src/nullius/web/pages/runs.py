"""Runs: the queue, one run (live while it goes on, permanent afterwards), its files, and asking for one."""

from __future__ import annotations

import html
import io
import re
import secrets
import zipfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.responses import Response

from nullius.errors import NulliusError
from nullius.lab import journal, queue
from nullius.paths import data_dir
from nullius.web import asking, calibrations, registry, shelf, verdicts
from nullius.web.problems import Problem, from_error
from nullius.web.site import Visit, get, page, post, see

PAGE = 50
HEAD = 20_000  # characters of a drawing in which it says how large it is and what it shows
SANDBOXED = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
INTERACTIVE = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "frame-ancestors 'self'"
)
TYPES = {"svg": "image/svg+xml", "html": "text/html; charset=utf-8", "json": "application/json", "txt": "text/plain; charset=utf-8"}


def record(key: str) -> dict[str, Any]:
    """Return a run. Raises Problem 404."""
    if not (6 <= len(key) <= 26 and key.isascii() and key.isalnum()):
        raise Problem(404, f"There is no run '{key[:40]}'.", "", ("/runs", "All runs"))
    try:
        return journal.get_run(key)
    except NulliusError as error:
        problem = from_error(error, reading=True)
        problem.link = ("/runs", "All runs")
        raise problem from None


def progress(found: Mapping[str, Any], events: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how far a run is: part, done, total, notes so far, seconds gone, seconds left (of the whole run, where it can be told)."""
    steps = [event["payload"] for event in events if event["kind"] == "step"]
    notes = [event["payload"]["text"] for event in events if event["kind"] == "note"]
    part = steps[-1] if steps else {"label": "", "done": 0, "total": None}
    begun = datetime.fromisoformat(found["started"])
    gone = (datetime.now(UTC) - begun).total_seconds()
    expected = verdicts.expected_seconds(found["slug"], found["asked_subject"], found["full"])
    share = min(0.99, gone / expected) if expected else None
    last = events[-1]["seq"] if events else -1
    return {
        "label": part["label"],
        "done": part["done"],
        "total": part["total"],
        "notes": notes,
        "gone": gone,
        "left": max(0.0, expected - gone) if expected else None,
        "share": share,
        "seq": last,
    }


def waiting(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return how many stand before a queued run, and about how long that takes."""
    before = queue.position(found["id"])
    if before is None:
        return {"before": 0, "seconds": 0.0}
    ahead = [r for r in journal.list_runs(limit=200, state="queued") if r["id"] < found["id"]] + journal.list_runs(
        limit=20, state="running"
    )
    return {"before": before, "seconds": sum(verdicts.expected_seconds(r["slug"], r["asked_subject"], r["full"]) or 120.0 for r in ahead)}


@page("/runs", "runs.html")
def runs(visit: Visit) -> dict[str, Any]:
    """Runs, newest first, failed ones too; those that wait or run stand on top."""
    state, paper = visit.query("state"), visit.query("paper")
    if state and state not in ("queued", "running", "done", "failed", "cancelled", "aborted"):
        raise Problem(422, f"There is no state '{state[:40]}'.", "", ("/runs", "All runs"))
    before, mine = visit.query("before"), visit.person.account if visit.query("mine") else None
    found = journal.list_runs(paper or None, limit=PAGE + 1, state=state or None, before=before, account=mine)
    more = found[PAGE - 1]["id"] if len(found) > PAGE else None
    open_runs = [] if state or before else journal.list_runs(limit=100, state="running") + journal.list_runs(limit=100, state="queued")
    return {
        "schema": "nullius.web.runs/1",
        "open": [{**_short(r), "progress": progress(r, journal.events(r["id"])[-1:])} for r in open_runs],
        "runs": [_short(r) for r in found[:PAGE]],
        "before": more,
        "state": state,
        "paper": paper,
        "mine": bool(visit.query("mine")),
        "worker": asking.worker_seen(),
    }


def _short(found: Mapping[str, Any]) -> dict[str, Any]:
    names = ("id", "slug", "asked_subject", "full", "seed", "state", "reason", "started", "finished", "wall_seconds")
    words = [{"claim": v["claim"], "word": v["word"]} for v in found["verdicts"]]
    return {**{name: found[name] for name in names}, "verdicts": words, "subject": found["subject"]["name"]}


@page("/runs/{id}", "run.html")
def run(visit: Visit) -> dict[str, Any]:
    """One run: the record nullius.run/1, how far it is, and in what it differs from the one before."""
    found = record(visit.params["id"])
    live = found["state"] in queue.OPEN
    events = journal.events(found["id"]) if live else []
    asked = queue.asked(found["id"])
    return {
        "schema": "nullius.web.run/1",
        "run": public(found),
        "paper": shelf.brief(found["slug"]),
        "live": live,
        "progress": progress(found, events) if found["state"] == "running" else None,
        "waiting": waiting(found) if found["state"] == "queued" else None,
        "cancellable": live and asking.may_cancel(visit.person, asked),
        "figures": figures(found),
        "calibration": [calibrations.of(name) for name in dict.fromkeys(name for v in found["verdicts"] for name in v.get("rests_on", ()))],
        "scales": [verdicts.scale([v], v["published"]) for v in found["verdicts"]],
        "against": _against(found) if found["state"] == "done" else None,
        "expected": verdicts.expected_seconds(found["slug"], found["asked_subject"], found["full"]),
        "worker": asking.worker_seen() if live else True,
    }


def public(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record without the server's own folders."""
    kept = [{name: entry[name] for name in ("name", "bytes", "sha256")} for entry in found["artefacts"]]
    return {**found, "artefacts": kept}


def figures(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The figures of a run: name, caption (also for those who cannot see it), and the files that show it."""
    import json

    names = {entry["name"] for entry in found["artefacts"]}
    drawn = []
    for name in sorted(name for name in names if name.endswith(".json") and name.startswith("figure")):
        stem = name.removesuffix(".json")
        path = data_dir() / "runs" / found["id"] / name
        about = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        if f"{stem}.svg" in names:
            drawn.append(
                {
                    "run": found["id"],
                    "svg": f"{stem}.svg",
                    "html": f"{stem}.html" if f"{stem}.html" in names else None,
                    "title": about.get("title", stem),
                    "caption": about.get("caption", ""),
                    **_seen(path.with_suffix(".svg")),
                }
            )
    return sorted(drawn, key=lambda figure: figure["svg"] != "figure.svg")


def _seen(path: Path) -> dict[str, Any]:
    """What a drawing says of itself. size: width and height in pixels, so that a page does not jump; words: what it shows."""
    head = ""
    if path.is_file():
        with path.open(encoding="utf-8", errors="replace") as file:
            head = file.read(HEAD)
    size = re.search(r'<svg[^>]*\swidth="([0-9.]+)pt"[^>]*\sheight="([0-9.]+)pt"', head)
    words = re.search(r"<desc[^>]*>(.*?)</desc>", head, re.DOTALL)
    return {
        "size": [round(float(length) * 4 / 3) for length in size.groups()] if size else None,
        "words": html.unescape(words[1]) if words else "",
    }


def _against(found: Mapping[str, Any]) -> dict[str, Any] | None:
    """The run before on the same subject, and the inputs in which the two differ."""
    from nullius.lab.rerun import differences

    earlier = journal.list_runs(found["slug"], limit=20, state="done", before=found["id"])
    if found["rerun_of"]:
        earlier = [r for r in [*earlier, *_maybe(found["rerun_of"])] if r["id"] == found["rerun_of"]]
    for other in earlier:
        if other["subject"].get("sha256") == found["subject"].get("sha256") and other["full"] == found["full"]:
            pairs = differences(other, found)
            same = other["environment"]["samples"] == found["environment"]["samples"]
            told, sources = _told(pairs)
            raw = {name: list(pair) for name, pair in pairs.items()}
            return {"id": other["id"], "same": same, "differences": raw, "told": told, "sources": sources}
    return None


def _told(pairs: Mapping[str, Sequence[Any]]) -> tuple[list[str], list[str]]:
    """Differences as words: seed 0 → 1, torch 2.11 → 2.13; and the source files that changed, whose hashes say nothing to anybody."""

    def word(value: Any) -> str:
        if isinstance(value, Mapping):
            return " ".join(f"{name} {option}" for name, option in value.items()) or "none"
        return "none" if value is None else str(value)

    sources = [name for name in pairs if name.endswith(".py")]
    inputs = {name: pair for name, pair in pairs.items() if name not in sources}
    if "full" in inputs:
        inputs["scale"] = tuple("full" if full else "quick" for full in inputs.pop("full"))
    return [f"{name} {word(a)} → {word(b)}" for name, (a, b) in inputs.items()], sources


def _maybe(run_id: str) -> list[dict[str, Any]]:
    try:
        return [journal.get_run(run_id)]
    except NulliusError:
        return []


@get("/runs/{id}/files/{name}")
def file(visit: Visit) -> Response:
    """A file of a run. Figures to explore run their script in a sandbox of their own, which sees nothing of this site."""
    found = record(visit.params["id"])
    name = visit.params["name"]
    if name not in {entry["name"] for entry in found["artefacts"]}:
        raise Problem(404, f"This run has no file '{name[:60]}'.", "", (f"/runs/{found['id']}", "The run"))
    path = Path(data_dir()) / "runs" / found["id"] / name
    if not path.is_file():
        raise Problem(410, f"The file '{name}' is no longer on this machine.", "Run it again.", (f"/runs/{found['id']}", "The run"))
    suffix = name.rsplit(".", 1)[-1]
    headers = {
        "Cache-Control": "private, max-age=31536000, immutable",
        "Content-Security-Policy": INTERACTIVE if suffix == "html" else SANDBOXED,
    }
    if suffix == "html":
        headers["X-Frame-Options"] = "SAMEORIGIN"
    if suffix not in TYPES:
        headers["Content-Disposition"] = f'attachment; filename="{found["id"]}-{name}"'
    return Response(path.read_bytes(), media_type=TYPES.get(suffix, "application/octet-stream"), headers=headers)


@get("/runs/{id}/all.zip")
def everything(visit: Visit) -> Response:
    """All files of a run and its record, in one archive."""
    from nullius.lab.records import dumps

    found = record(visit.params["id"])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("record.json", dumps(public(found), indent=2))
        for entry in found["artefacts"]:
            path = Path(data_dir()) / "runs" / found["id"] / entry["name"]
            if path.is_file():
                archive.writestr(entry["name"], path.read_bytes())
    headers = {"Content-Disposition": f'attachment; filename="nullius-{found["id"]}.zip"'}
    return Response(buffer.getvalue(), media_type="application/zip", headers=headers)


@post("/runs/{id}/cancel")
def cancel(visit: Visit) -> Response:
    """Cancel a run that waits or goes on."""
    asking.cancel(visit.person, record(visit.params["id"])["id"], visit.settings)
    return see(f"/runs/{visit.params['id']}")


@post("/runs/{id}/again")
def again(visit: Visit) -> Response:
    """Queue a run with everything as it was: a rerun of one that is done, whose numbers it should give, or one that did not come to its end anew."""
    found = record(visit.params["id"])
    if found["state"] in queue.OPEN:
        raise Problem(422, "This run has not ended yet.", "Wait for it, or cancel it.", (f"/runs/{found['id']}", "The run"))
    done = found["state"] == "done"
    wish = asking.Wish(found["slug"], found["asked_subject"], found["full"], found["seed"], found["options"], found["id"] if done else None)
    made = asking.ask(
        visit.person, wish, visit.settings, threads=found["environment"]["threads"] if done else None, key=visit.form.get("key")
    )
    return see(f"/runs/{made}")


@post("/papers/{key:path}/run")
def start(visit: Visit) -> Response:
    """Queue a run of a paper's study, as the form on its page asks."""
    paper = shelf.paper(visit.params["key"])
    form = visit.form
    subject = form.get("other_subject", "").strip() or form.get("subject", "").strip() or visit.subject
    options = {name.removeprefix("option-"): value for name, value in form.items() if name.startswith("option-") and value}
    seed = form.get("seed", "").strip() or "0"
    if not (seed.isascii() and seed.isdecimal() and len(seed) <= 19):
        raise Problem(422, f"A seed is a whole number from 0 on, not '{seed[:30]}'.", "", (f"/papers/{paper['key']}", paper["title"]))
    wish = asking.Wish(paper["slug"], subject, form.get("scale") == "full", int(seed), options)
    made = asking.ask(visit.person, wish, visit.settings, key=form.get("key") or secrets.token_hex(8))
    return see(f"/runs/{made}")


@post("/subjects/run-all")
def start_all(visit: Visit) -> Response:
    """Queue every study that has no verdict on a subject yet."""
    visit.need("run-full")
    name = visit.form.get("subject", "").strip()
    if name not in shelf.subject_names():
        raise Problem(422, f"There is no subject '{name[:80]}' here.", "Choose one of the list.", ("/subjects", "Subjects"))
    done = {v["slug"] for v in verdicts.index().verdicts if v["subject"]["name"] == name}
    waiting = {r["slug"] for r in journal.list_runs(limit=1000, state="queued") if r["asked_subject"] == name}
    for slug in sorted(set(registry.described()) - done - waiting):
        asking.ask(visit.person, asking.Wish(slug, name), visit.settings)
    return see("/runs")
