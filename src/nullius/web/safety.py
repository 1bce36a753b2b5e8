"""The guard before every route: which host is meant, where a change comes from, how much may be sent, and what a browser may do with the answer.

Loopback is no wall. Other users and programs of the machine reach it, and so does any page in the user's browser, which can make a name of
its own resolve to 127.0.0.1 (DNS rebinding). Hence an exact list of hosts, and a look at the origin of every change.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nullius.web.problems import Problem
from nullius.web.settings import Settings

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
CSP = (
    "default-src 'self'; base-uri 'none'; object-src 'none'; frame-ancestors 'none'; form-action 'self'; "
    "img-src 'self' data:; style-src 'self'; script-src 'self'; connect-src 'self'; frame-src 'self'"
)
FIXED = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
ONE_CLICK = "/u/"  # RFC 8058: mail programs post here with no cookie and no origin of ours
FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")


class _TooLarge(Exception):
    pass


class Guard:
    """Pure ASGI, so that streams pass untouched."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, started, seen = Headers(scope=scope), False, 0
        most = self.settings.import_bytes if scope["path"].startswith(("/import", "/api/v1/imports")) else self.settings.body_bytes

        async def dressed(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                if seen > most:  # whoever read the body took it for one that cannot be read
                    raise _TooLarge
                started = True
                self._dress(MutableHeaders(scope=message))
            await send(message)

        problem = self._problem(scope, headers)
        if problem is not None:
            await answer(problem, dressed)
            return

        async def measured() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > most:
                raise _TooLarge
            return message

        try:
            if int(headers.get("content-length") or 0) > most:
                raise _TooLarge
            await self.app(scope, measured, dressed)
        except (_TooLarge, ValueError) as error:
            if started or not isinstance(error, _TooLarge):
                raise
            seen = 0
            await answer(Problem(413, f"At most {most:,} bytes may be sent here.".replace(",", " ")), dressed)

    def _dress(self, headers: MutableHeaders) -> None:
        headers.setdefault("Content-Security-Policy", CSP)
        for name, value in FIXED.items():
            headers.setdefault(name, value)
        if self.settings.secure:
            headers.setdefault("Strict-Transport-Security", "max-age=31536000")

    def _problem(self, scope: Scope, headers: Headers) -> Problem | None:
        if headers.get("host", "").lower() not in self.settings.hosts:
            return Problem(421, f"This server is {self.settings.base_url}.", "Use that address.")
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            return Problem(400, "Content-Length is not a number.")
        if scope["method"] in SAFE:
            return None
        if not scope["path"].startswith(ONE_CLICK) and (reason := self._foreign(headers)):
            return Problem(403, f"A change was asked for {reason}.", "Open this server's own page and try again there.")
        return self._kind(scope, headers, length)

    def _foreign(self, headers: Headers) -> str:
        """Where a change comes from, if that is not this site or a program; '' when it may pass."""
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site is not None and site not in ("same-origin", "none"):
            return "by another site"
        if origin is not None and origin.lower() not in self.settings.origins:
            return f"from {origin[:80]}"
        return ""

    def _kind(self, scope: Scope, headers: Headers, length: str) -> Problem | None:
        """JSON comes as JSON: a foreign page can post forms and text without asking, but not that."""
        kind = headers.get("content-type", "").split(";")[0].strip().lower()
        if length == "0" and "transfer-encoding" not in headers:
            return None
        wanted: Iterable[str] = FORMS
        if scope["path"].startswith(("/api/", "/mcp")):
            wanted = ("application/json",)
        if kind not in wanted:
            return Problem(415, f"Content-Type here is {' or '.join(wanted)}, not '{kind[:60]}'.")
        return None


async def answer(problem: Problem, send: Send) -> None:
    """Send a problem where no page can be drawn yet."""
    body = json.dumps(problem.to_dict(), ensure_ascii=False).encode()
    head = [(b"content-type", b"application/problem+json"), (b"content-length", str(len(body)).encode()), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": problem.status, "headers": head})
    await send({"type": "http.response.body", "body": body})
