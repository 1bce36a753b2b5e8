"""The JSON API, version 1: what pages show, for programs. Cursors instead of offsets, ETags, problems by RFC 9457, unknown parameters refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Path, Query
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from nullius.errors import NulliusError
from nullius.feed import library
from nullius.lab import journal, queue
from nullius.lab.records import dumps
from nullius.web import asking, calibrations, finding, limiting, registry, shapes, shelf, site, verdicts
from nullius.web.pages import papers as paper_pages
from nullius.web.pages import runs as run_pages
from nullius.web.pages import subjects as subject_pages
from nullius.web.problems import Problem, from_error
from nullius.web.site import Visit


class Strict(JSONResponse):
    """JSON has no infinity: the open end of an interval is null."""

    def render(self, content: Any) -> bytes:
        return dumps(content).encode("utf-8", "replace")


class Tagged(APIRoute):
    """A route whose answers carry an ETag, and are 304 for who has them."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def tagged(request: Request) -> Response:
            response = await handler(request)
            body = getattr(response, "body", None)
            if request.method == "GET" and response.status_code == 200 and body is not None:
                tag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
                headers = {"ETag": tag, "Cache-Control": "private, no-cache", "Vary": "Cookie, Authorization"}
                if tag in (part.strip().removeprefix("W/") for part in request.headers.get("if-none-match", "").split(",")):
                    return Response(status_code=304, headers=headers)
                response.headers.update(headers)
            return response

        return tagged


def known_only(request: Request) -> None:
    """Refuse a parameter that this address does not take: a misspelt filter must not look like an answer to it."""
    taken = {parameter.alias for parameter in request.scope["route"].dependant.query_params}
    unknown = sorted(set(request.query_params) - taken)
    if unknown:
        raise Problem(422, f"Unknown parameter '{unknown[0][:60]}'.", f"Known here: {', '.join(sorted(taken)) or 'none'}.")


async def visiting(request: Request) -> Visit:
    """Who asks, counted against their limits."""
    visit = await site.visit_of(request, request.app.state.settings)
    if request.method == "GET":
        limiting.page(visit.person, request, visit.settings)
    else:
        limiting.change(visit.person, request, visit.settings)
    visit.need("read")
    return visit


Asker = Annotated[Visit, Depends(visiting)]
Limit = Annotated[int, Query(ge=1, le=100)]
Cursor = Annotated[str, Query(max_length=500)]
Key = Annotated[str, Path(max_length=200)]
RunId = Annotated[str, Path(max_length=26)]
CODES = (400, 401, 403, 404, 409, 410, 413, 415, 421, 422, 429, 503)
PROBLEMS: dict[int | str, dict[str, Any]] = {
    code: {
        "description": "Problem (RFC 9457)",
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemBody"}}},
    }
    for code in CODES
}
router = APIRouter(
    prefix="/api/v1",
    route_class=Tagged,
    default_response_class=Strict,
    dependencies=[Depends(known_only)],
    responses={**PROBLEMS, 304: {"description": "Unchanged"}},
)


@router.get("/papers", response_model=shapes.Papers)
def papers(
    visit: Asker,
    q: Annotated[str, Query(max_length=5000)] = "",
    day: Annotated[str, Query(pattern=r"^\d{4}-\d{2}-\d{2}$")] = "",
    week: Annotated[str, Query(pattern=r"^\d{4}-W\d{2}$")] = "",
    month: Annotated[str, Query(pattern=r"^\d{4}-\d{2}$")] = "",
    sort: Literal["newest", "voted", "contested", "untested", "trending"] = "newest",
    runnable: bool | None = None,
    verdict: Literal["", "holds", "fails", "inconclusive", "out of reach"] = "",
    subject: Annotated[str, Query(max_length=200)] = site.DEFAULT_SUBJECT,
    cursor: Cursor = "",
    limit: Limit = 50,
) -> Any:
    """Papers: all, of a day, week or month, trending, or found (q takes the search page's filters)."""
    if sum(map(bool, (q, day, week, month))) > 1:
        raise Problem(422, "Give one of q, day, week, month.")
    wish = finding.Wish(q, day, week, month, sort, runnable, verdict, subject, cursor, limit)
    return finding.papers(visit.person, wish)


@router.get("/papers/{key:path}/matrix", response_model=shapes.Matrix)
def matrix(visit: Asker, key: Key) -> Any:
    """Claims × subjects."""
    found = shelf.paper(key)
    if not found["runnable"]:
        raise Problem(404, f"{found['key']} has no study yet, and so no claims.", "CONTRIBUTING shows how to write one.")
    return verdicts.matrix(found["slug"], visit.subject)


@router.get("/papers/{key:path}/similar", response_model=shapes.Papers)
def similar(visit: Asker, key: Key, by: Literal["meaning", "newest", "instrument"] = "meaning") -> Any:
    """Ten papers like this one."""
    found = shelf.similar(shelf.paper(key), by, visit.person, visit.subject)
    return {"papers": found, "total": len(found), "cursor": None}


@router.post("/papers/{key:path}/vote", response_model=shapes.Votes)
def vote(visit: Asker, key: Key) -> Any:
    """Vote; twice is once."""
    return _vote(visit, key, True)


@router.delete("/papers/{key:path}/vote", response_model=shapes.Votes)
def unvote(visit: Asker, key: Key) -> Any:
    """Take the vote back."""
    return _vote(visit, key, False)


def _vote(visit: Visit, key: str, on: bool) -> dict[str, Any]:
    visit.need("vote")
    found = shelf.paper(key)
    shelf.set_vote(visit.person, found["id"], on)
    return {"votes": shelf.by_id(found["id"])["votes"], "voted": on}


@router.get("/papers/{key:path}", response_model=shapes.PaperBody)
def paper(visit: Asker, key: Key) -> Any:
    """One paper: claims, verdicts on every subject, runs, notes."""
    return paper_pages.details(visit, shelf.paper(key))


@router.get("/claims", response_model=shapes.Claims)
def claims(visit: Asker, paper: Annotated[str, Query(max_length=200)] = "") -> Any:
    """Claims registered today, of one paper or of all."""
    slugs = [shelf.paper(paper)["slug"]] if paper else sorted(registry.described())
    return {"claims": [{**claim, "slug": slug} for slug in slugs for claim in registry.claims(slug)]}


@router.get("/subjects", response_model=shapes.Subjects)
def subjects(visit: Asker) -> Any:
    """Subjects known by name, and all that were tested."""
    return subject_pages.subjects(visit)


@router.get("/subjects/{name:path}/dossier", response_model=shapes.Dossier)
def dossier(visit: Asker, name: Annotated[str, Path(max_length=1000)]) -> Any:
    """Everything that was found about one subject."""
    return subject_pages.dossier(name)


@router.get("/compare", response_model=shapes.Compared)
def compare(visit: Asker, paper: Annotated[str, Query(max_length=200)], m: Annotated[list[str], Query(min_length=2, max_length=10)]) -> Any:
    """One paper, several subjects, with paired differences where stimuli are shared."""
    found = shelf.paper(paper)
    names = tuple(dict.fromkeys(m))
    stamp = tuple(v["run"] for v in verdicts.index().by_slug.get(found["slug"] or "", []))
    try:
        return {"slug": found["slug"], "claims": subject_pages.compared(found["slug"] or "", names, stamp)}
    except NulliusError as error:
        raise from_error(error, reading=True) from None


@router.get("/calibration", response_model=shapes.Instruments)
def calibration(visit: Asker) -> Any:
    """Instruments against cases whose answer is known."""
    return {"instruments": calibrations.table()}


@router.get("/runs", response_model=shapes.Runs)
def runs(
    visit: Asker,
    paper: Annotated[str, Query(max_length=200)] = "",
    state: shapes.State | None = None,
    cursor: Cursor = "",
    limit: Limit = 50,
) -> Any:
    """Runs, newest first."""
    found = journal.list_runs(paper or None, limit=limit + 1, state=state, before=cursor or "~")
    more = found[limit - 1]["id"] if len(found) > limit else None
    return {"runs": [run_pages.public(r) for r in found[:limit]], "cursor": more}


@router.post("/runs", response_model=shapes.Started, status_code=202)
def start(visit: Asker, wish: shapes.RunWish, idempotency_key: Annotated[str | None, Header(max_length=200)] = None) -> Any:
    """Queue a run. The same Idempotency-Key gives the same run."""
    found = shelf.paper(wish.paper)
    asked = asking.Wish(found["slug"], wish.subject, wish.scale == "full", wish.seed, wish.options)
    made = asking.ask(visit.person, asked, visit.settings, key=idempotency_key)
    return started(made, visit.settings.base_url)


def started(run_id: str, base: str) -> dict[str, Any]:
    """What is told about a run that was just asked for."""
    found = journal.get_run(run_id)
    expected = verdicts.expected_seconds(found["slug"], found["asked_subject"], found["full"])
    links = {"page": f"{base}/runs/{run_id}", "events": f"{base}/api/v1/runs/{run_id}/events"}
    return {"id": run_id, "state": found["state"], "expected_seconds": expected, "waiting": queue.position(run_id) or 0, **links}


@router.get("/runs/{id}", response_model=shapes.Run)
def run(visit: Asker, id: RunId) -> Any:
    """One run."""
    found = run_pages.record(id)
    events = journal.events(found["id"]) if found["state"] == "running" else []
    return {**run_pages.public(found), **({"progress": run_pages.progress(found, events)} if events else {})}


@router.delete("/runs/{id}", response_model=shapes.Run)
def cancel(visit: Asker, id: RunId) -> Any:
    """Cancel a run that waits or goes on; what it noted so far is kept."""
    found = run_pages.record(id)
    asking.cancel(visit.person, found["id"], visit.settings)
    return run_pages.public(journal.get_run(found["id"]))


@router.get(
    "/runs/{id}/events",
    response_class=Response,
    responses={200: {"content": {"text/event-stream": {}}, "description": "step, note, state, ended"}},
)
async def events(
    request: Request, visit: Asker, id: RunId, last_event_id: Annotated[str | None, Header(max_length=20)] = None, after: int = -1
) -> Response:
    """Events of a run as they come (server-sent events); resumes after Last-Event-ID."""
    from starlette.concurrency import run_in_threadpool

    found = await run_in_threadpool(run_pages.record, id)
    response: Response = await request.app.state.live.events(request, found["id"])
    return response


@router.get(
    "/runs/{id}/samples.parquet",
    response_class=Response,
    responses={200: {"content": {"application/vnd.apache.parquet": {}}, "description": "All samples"}},
)
def samples(visit: Asker, id: RunId) -> Response:
    """The per-item samples that the verdicts were computed from."""
    found = run_pages.record(id)
    path = journal.data_dir() / "runs" / found["id"] / "samples.parquet"
    if found["state"] != "done" or not path.is_file():
        raise Problem(404, "This run has no samples.")
    headers = {"Content-Disposition": f'attachment; filename="{found["id"]}.parquet"'}
    return Response(path.read_bytes(), media_type="application/vnd.apache.parquet", headers=headers)


@router.get("/saved", response_model=shapes.Saved)
def saved(visit: Asker, cursor: Cursor = "", limit: Limit = 50) -> Any:
    """One's library."""
    visit.need("account" if visit.person.scopes is None else "save")
    found = library.saved_papers(visit.person.account, subject=visit.subject, limit=limit + 1, after=cursor)
    rows = [
        {"paper": shelf.shown(e.card, visit.subject), **{n: getattr(e, n) for n in ("created", "note", "collection", "read_at")}}
        for e in found
    ]
    return {"saved": rows[:limit], "cursor": rows[limit - 1]["created"] if len(rows) > limit else None}


@router.put("/saved/{key:path}", response_model=shapes.Votes)
def save(visit: Asker, key: Key, wish: shapes.SaveWish) -> Any:
    """Save a paper, or change what is kept beside it."""
    visit.need("save")
    found = shelf.paper(key)
    library.save(visit.person.account, found["id"], note=wish.note, collection=wish.collection, read=wish.read)
    return {"votes": found["votes"], "voted": shelf.cards([found["id"]], visit.person, visit.subject)[0]["voted"]}


@router.delete("/saved/{key:path}", status_code=204, response_class=Response)
def unsave(visit: Asker, key: Key) -> Response:
    """Take a paper out of one's library."""
    visit.need("save")
    shelf.set_saved(visit.person, shelf.paper(key)["id"], False)
    return Response(status_code=204)
