"""What every page has in common: one function makes its data, a template draws them, and the same data are its JSON."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import jinja2
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

import nullius
from nullius.lab.records import dumps
from nullius.web import assets, citing, limiting, lines, who, words
from nullius.web.problems import Problem
from nullius.web.settings import Settings

DEFAULT_SUBJECT = "smollm2-135m"
THEMES = ("auto", "light", "dark")
CACHE_SECONDS = 1.0
CACHED_PAGES = 512
Answer = Mapping[str, Any] | Response


@dataclass
class Visit:
    """A request as handlers see it. form: fields of a POST (texts); files: its uploads, by field."""

    request: Request
    settings: Settings
    person: who.Person
    form: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def params(self) -> dict[str, str]:
        """What stands in the address's path."""
        return self.request.path_params

    @property
    def path(self) -> str:
        return self.request.url.path

    @cached_property
    def subject(self) -> str:
        """The subject whose verdicts this reader wants to see: the page's own (`?subject=`), else what was chosen in the header."""
        return (self.query("subject") or self.request.cookies.get("subject") or DEFAULT_SUBJECT)[:200]

    @property
    def theme(self) -> str:
        chosen = self.request.cookies.get("theme", "auto")
        return chosen if chosen in THEMES else "auto"

    @property
    def fragment(self) -> bool:
        """Whether htmx asks for a piece of a page."""
        return "hx-request" in self.request.headers

    def query(self, name: str, default: str = "") -> str:
        return self.request.query_params.get(name, default)

    def integer(self, name: str, default: int, most: int) -> int:
        """A whole number of the query, between 1 and `most`. Raises Problem 422 for anything else."""
        text = self.query(name)
        if not text:
            return default
        if not (text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= most):
            raise Problem(422, f"{name} is a whole number from 1 to {most}, not '{text[:40]}'.")
        return int(text)

    def link(self, **changed: Any) -> str:
        """This address with some of its query changed; None takes a part out."""
        query = {**dict(self.request.query_params), **changed}
        kept = {name: value for name, value in query.items() if value not in (None, "")}
        path = self.path.removesuffix(".json")
        return f"{quote(path)}?{urlencode(kept)}" if kept else quote(path)

    def need(self, action: str) -> None:
        """Raise Problem 401 or 403 unless this person may do something (see `who.RIGHTS`)."""
        who.need(self.person, action, self.settings)

    def back(self, default: str = "/") -> RedirectResponse:
        """Return to the page that a form was on; only ever to a page of this site."""
        return see(local_path(self.form.get("next", ""), default))


def see(path: str) -> RedirectResponse:
    """After a change: look at this page."""
    return RedirectResponse(path, 303)


def local_path(text: str, default: str = "/") -> str:
    """A path of this site, or the default: an address given by anybody must not lead elsewhere."""
    parts = urlsplit(text)
    good = text.startswith("/") and not text.startswith(("//", "/\\")) and not parts.scheme and not parts.netloc and text.isprintable()
    return text if good and "\\" not in text else default


@dataclass
class _Kept:
    until: float
    response: tuple[bytes, bytes, str, str]


class Site:
    """Draws pages. Holds nothing that cannot be made again."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.kept: dict[tuple[str, ...], _Kept] = {}
        self.making: dict[tuple[str, ...], asyncio.Future[Any]] = {}
        self.templates = jinja2.Environment(
            loader=jinja2.PackageLoader("nullius.web"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        self.templates.filters.update(words.FILTERS)
        self.templates.filters["path"] = lambda text: quote(str(text), safe="/")
        self.templates.globals |= {"asset": assets.address, "version": nullius.__version__, "settings": settings, "themes": THEMES}
        self.templates.globals |= {"plot": lines.plot, "forest": lines.forest}

    def render(self, template: str, visit: Visit, data: Mapping[str, Any]) -> str:
        """Draw a template with a page's data."""
        from nullius.web import shelf
        from nullius.web.pages import addresses

        frame = {"visit": visit, "person": visit.person, "known_subjects": shelf.subject_names(visit.subject)}
        frame["notice"] = addresses.noticed(visit)
        return self.templates.get_template(template).render({**data, **frame})

    def reply(self, request: Request, body: str, kind: str, *, status: int = 200, etag: bool = True) -> Response:
        """Answer with text: compressed where wanted, and 304 where the reader has it already."""
        content = body.encode("utf-8", "replace")
        tag = f'W/"{hashlib.blake2b(content, digest_size=12).hexdigest()}"' if etag and status == 200 else ""
        return _send(request, (content, gzip.compress(content, 5, mtime=0), kind, tag), status)


def _send(request: Request, made: tuple[bytes, bytes, str, str], status: int = 200) -> Response:
    content, packed, kind, tag = made
    headers = {"Vary": "Accept, Accept-Encoding, Cookie, Authorization", "Cache-Control": "private, no-cache"}
    if tag:
        headers["ETag"] = tag
        if tag in (part.strip() for part in request.headers.get("if-none-match", "").split(",")):
            return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", "") and len(packed) < len(content):
        return Response(packed, status, {**headers, "Content-Encoding": "gzip"}, kind)
    return Response(content, status, headers, kind)


def _own(request: Request, made: tuple[bytes, bytes, str, str]) -> Response:
    """A page of somebody who votes and saves: not to be kept, or going back would show it as it was before the vote."""
    response = _send(request, (*made[:3], ""))
    response.headers["Cache-Control"] = "private, no-store"
    return response


Handler = Callable[[Visit], Answer]
_pages: list[tuple[str, str, str, Handler]] = []  # method, path, template, handler


def page(path: str, template: str) -> Callable[[Handler], Handler]:
    """Make a function the page at a path, and its JSON at the same path + `.json`."""

    def wrap(handler: Handler) -> Handler:
        _pages.append(("GET", path, template, handler))
        return handler

    return wrap


def post(path: str) -> Callable[[Handler], Handler]:
    """Make a function what happens when a form is sent to a path. It returns a response."""

    def wrap(handler: Handler) -> Handler:
        _pages.append(("POST", path, "", handler))
        return handler

    return wrap


def get(path: str) -> Callable[[Handler], Handler]:
    """Make a function the answer to a path that is no page: a file, say."""

    def wrap(handler: Handler) -> Handler:
        _pages.append(("GET", path, "", handler))
        return handler

    return wrap


def routes(site: Site) -> list[Route]:
    """Return the routes of all pages: JSON before HTML, since a name may hold a dot, and longer paths before shorter ones."""
    made = []
    for method, path, template, handler in sorted(_pages, key=lambda entry: -_weight(entry[1])):
        if method == "POST":
            made.append(Route(path, _poster(site, handler), methods=["POST"]))
        elif not template:
            made.append(Route(path, _getter(site, handler), methods=["GET"]))
        else:
            as_json = "/index.json" if path == "/" else f"{path}.json"
            made.append(Route(as_json, _pager(site, handler, ""), methods=["GET"]))
            made.append(Route(path, _pager(site, handler, template), methods=["GET"]))
    return made


def _weight(path: str) -> int:
    """How particular a path is: fixed parts count, names that may hold anything come last."""
    return 100 * path.count("/") + 10 * (path.count("/") - path.count("{")) + path.count("}.") - 1000 * path.endswith(":path}")


def _pager(site: Site, handler: Handler, template: str) -> Callable[[Request], Any]:
    kind = "text/html; charset=utf-8" if template else "application/json"

    def make(visit: Visit) -> Response | tuple[bytes, bytes, str, str]:
        answer = handler(visit)
        if isinstance(answer, Response):
            return answer
        text = site.render(template, visit, answer) if template else dumps(answer)
        content = text.encode("utf-8", "replace")
        return content, gzip.compress(content, 5, mtime=0), kind, f'W/"{hashlib.blake2b(content, digest_size=12).hexdigest()}"'

    async def endpoint(request: Request) -> Response:
        visit = await visit_of(request, site.settings)
        limiting.page(visit.person, request, site.settings)
        if visit.person.role != "visitor":
            made = await run_in_threadpool(make, visit)
            return made if isinstance(made, Response) else _own(request, made) if template else _send(request, made)
        key = (template, str(request.url), visit.subject, visit.theme, citing.wanted(request.headers.get("accept", "")) or "")
        kept = site.kept.get(key)
        if kept and kept.until > time.monotonic():
            return _send(request, kept.response)
        if key not in site.making:  # one makes a page, all who ask meanwhile get the same
            site.making[key] = asyncio.ensure_future(_make(site, key, make, visit))
        made = await asyncio.shield(site.making[key])
        return made if isinstance(made, Response) else _send(request, made)

    return endpoint


async def _make(site: Site, key: tuple[str, ...], make: Callable[[Visit], Any], visit: Visit) -> Any:
    """Make a page that nobody in particular asks for, and keep it for a moment."""
    try:
        made = await run_in_threadpool(make, visit)
        if not isinstance(made, Response) and len(made[0]) < 1_000_000:
            if len(site.kept) >= CACHED_PAGES:
                site.kept.clear()
            site.kept[key] = _Kept(time.monotonic() + CACHE_SECONDS, made)
        return made
    finally:
        site.making.pop(key, None)


def _getter(site: Site, handler: Handler) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        visit = await visit_of(request, site.settings)
        limiting.page(visit.person, request, site.settings)
        answer = await run_in_threadpool(handler, visit)
        assert isinstance(answer, Response)
        return answer

    return endpoint


def _poster(site: Site, handler: Handler) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        visit = await visit_of(request, site.settings)
        visit.form, visit.files = await _fields(request)
        limiting.change(visit.person, request, site.settings)
        answer = await run_in_threadpool(handler, visit)
        site.kept.clear()
        if isinstance(answer, Response):
            return answer
        return site.reply(request, site.render(str(answer["template"]), visit, answer), "text/html; charset=utf-8", etag=False)

    return endpoint


async def _fields(request: Request) -> tuple[dict[str, str], dict[str, bytes]]:
    """The fields of a form. Raises Problem 400 for a body that is none."""
    try:
        form: FormData = await request.form(max_files=1, max_fields=100)
    except Exception as error:
        if type(error).__name__ == "_TooLarge":
            raise
        raise Problem(400, "The form cannot be read.", "Reload the page and send it again.") from None
    texts = {name: value for name, value in form.items() if isinstance(value, str)}
    uploads = {name: await value.read() for name, value in form.items() if isinstance(value, UploadFile) and value.filename}
    await form.close()
    return texts, uploads


async def visit_of(request: Request, settings: Settings) -> Visit:
    """Find out who asks."""
    if "cookie" in request.headers or "authorization" in request.headers:
        person = await run_in_threadpool(who.identify, request, settings)
    else:
        person = who.NOBODY
    if settings.private and person.role == "visitor" and request.url.path not in who.OPEN_PATHS:
        raise Problem(401, "This server is private.", "Open the one-time address that `nullius web` printed.")
    return Visit(request, settings, person)
