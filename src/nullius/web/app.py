"""The app: routes, guard, errors, life. `create` makes one; `serve` runs it with its worker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from importlib import import_module

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import nullius
from nullius.errors import NulliusError
from nullius.feed import heat
from nullius.feed.database import make_ready
from nullius.lab import schema
from nullius.web import api, assets, assistants, registry, safety, site, verdicts, who
from nullius.web.live import Live
from nullius.web.pages import runs as run_pages
from nullius.web.problems import Problem, from_error
from nullius.web.settings import Settings

log = logging.getLogger("nullius.web")
TEND_SECONDS = 15.0
SECRET_PATHS = ("/u/", "/subscribe/confirm/")
_PAGES = "addresses daily exploring frame importing papers personal runs searching subjects subscribing"
PAGES = (*(f"pages.{name}" for name in _PAGES.split()), "api_desk", "atom", "badge", "describing", "signing")


def create(settings: Settings) -> FastAPI:
    """Make the app for some settings; the database is opened when it starts."""

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(make_ready, schema.url())
        tending = asyncio.create_task(_tend())
        async with assistant.session_manager.run():
            yield
        tending.cancel()
        await app.state.live.close()

    app = FastAPI(title="nullius", version=nullius.__version__, lifespan=life, docs_url=None, redoc_url=None, openapi_url=None)
    pages = site.Site(settings)
    app.state.site, app.state.settings = pages, settings
    app.state.live = Live(lambda run_id: _piece(pages, run_id))
    for name in PAGES:
        import_module(f"nullius.web.{name}")
    assistant = assistants.make(settings)
    app.include_router(api.router)
    app.router.routes += [*assistants.routes(assistant, settings), *assets.routes, Route("/runs/{id}/live", _watch), *site.routes(pages)]
    app.add_middleware(safety.Guard, settings=settings)
    for kind in (Problem, NulliusError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _answer)
    return app


async def _tend() -> None:
    """What must be done beside answering: read the studies once, which takes seconds after an update, and count finished runs as heat."""
    await run_in_threadpool(registry.refresh)
    seen: tuple[object, ...] = ()
    while True:
        try:
            now = await run_in_threadpool(verdicts.stamp)
            if now != seen:
                await run_in_threadpool(heat.catch_up)
                seen = now
        except NulliusError as error:  # a database that is busy now is asked again
            log.warning("%s", error)
        await asyncio.sleep(TEND_SECONDS)


async def _watch(request: Request) -> Response:
    await site.visit_of(request, request.app.state.settings)  # a private server is private here too
    found = await run_in_threadpool(run_pages.record, request.path_params["id"])
    live: Live = request.app.state.live
    return await live.pieces(request, found["id"])


def _piece(pages: site.Site, run_id: str) -> str:
    """The fragment of a run's page that shows how far it is."""
    from nullius.lab import journal
    from nullius.web import asking

    found = journal.get_run(run_id)
    data = {
        "progress": run_pages.progress(found, journal.events(run_id)) if found["state"] == "running" else None,
        "waiting": run_pages.waiting(found) if found["state"] == "queued" else None,
        "worker": asking.worker_seen(),
    }
    return pages.templates.get_template("_progress.html").render(data)


async def _answer(request: Request, error: Exception) -> Response:
    """Draw whatever went wrong: a page for people, problem+json for programs, a line for htmx."""
    problem = _problem(request, error)
    if problem.status == 301:
        return Response(status_code=301, headers={"Location": problem.advice})
    headers = {"Cache-Control": "no-store", **problem.headers}
    if _wants_json(request):
        return JSONResponse(problem.to_dict(), problem.status, headers, "application/problem+json")
    pages: site.Site = request.app.state.site
    visit = site.Visit(request, pages.settings, await run_in_threadpool(_person, request, pages.settings))
    template = "_problem.html" if visit.fragment else "problem.html"
    try:
        text = await run_in_threadpool(pages.render, template, visit, {"problem": problem})
    except Exception:  # the database is gone, say: the frame cannot be drawn either
        log.exception("no page could be drawn")
        return JSONResponse(problem.to_dict(), problem.status, headers, "application/problem+json")
    return Response(text, problem.status, headers, "text/html; charset=utf-8")


def _person(request: Request, settings: Settings) -> who.Person:
    try:
        return who.identify(request, settings)
    except Exception:  # an error page must not fail for the same reason as the page
        return who.NOBODY


def _problem(request: Request, error: Exception) -> Problem:
    if isinstance(error, Problem):
        return error
    if isinstance(error, NulliusError):
        return from_error(error, reading=request.method in safety.SAFE)
    if isinstance(error, HTTPException):
        if error.status_code == 404:
            return Problem(404, f"There is no page {request.url.path[:120]} here.")
        return Problem(error.status_code, str(error.detail), headers=error.headers)
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
        return Problem(422, f"{where}: {first['msg']}.", "The API is described at /api/v1/openapi.json.")
    log.error("%s %s", request.method, _without_secrets(request), exc_info=error)
    return Problem(
        500, "Something went wrong here, not with you. It was written down.", "Try again; if it stays, tell who runs this server."
    )


def _without_secrets(request: Request) -> str:
    """The path as the log may hold it: links that work by themselves (to confirm, to leave) name nobody there."""
    path = request.url.path
    for beginning in SECRET_PATHS:
        if path.startswith(beginning):
            return f"{beginning}…"
    return path


def _wants_json(request: Request) -> bool:
    path = request.url.path
    return path.startswith(("/api/", "/mcp")) or path.endswith(".json") or "text/html" not in request.headers.get("accept", "text/html")
