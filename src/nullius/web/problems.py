"""What goes wrong, in plain words: one exception, drawn as a page or as application/problem+json (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from nullius.errors import NulliusError, UsageError


class Problem(Exception):
    """An answer that is not the one that was asked for.

    status: of HTTP. detail: what was wrong, where. advice: what to do; without one and without a link, what helps with most of that status.
    link: (address, words) of where to go instead.
    """

    def __init__(
        self, status: int, detail: str, advice: str = "", link: tuple[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.link, self.headers = status, detail, link, dict(headers or {})
        self.advice = advice or ("" if link else NEXT.get(status, ""))

    @property
    def title(self) -> str:
        return TITLES.get(self.status) or HTTPStatus(self.status).phrase

    def to_dict(self) -> dict[str, Any]:
        """Return the problem as RFC 9457 wants it."""
        body: dict[str, Any] = {"type": f"about:blank#{self.status}", "title": self.title, "status": self.status, "detail": self.detail}
        if self.advice:
            body["advice"] = self.advice
        if self.link:
            body["see"] = self.link[0]
        return body


TITLES = {
    400: "This request cannot be read",
    401: "Sign in first",
    403: "Not allowed",
    404: "There is nothing here",
    405: "This address does not take that",
    409: "Something else came first",
    410: "This is gone",
    413: "Too large",
    415: "Not a type that is read here",
    421: "Not this server",
    422: "This cannot be used as it is",
    429: "Too many requests",
    500: "Something broke here",
    503: "Not now",
}


NEXT = {
    400: "Go back, reload the page and try again.",
    403: "Ask a maintainer of this server.",
    404: "Check the address, or search for what you meant.",
    405: "Go back, and use the buttons of the page.",
    409: "Reload the page to see how things are now.",
    413: "Send less at a time: a file in parts, a shorter text.",
    415: "Send it as the page, or the description of the API, says.",
    422: "Go back and change it.",
}


def from_error(error: NulliusError, *, reading: bool) -> Problem:
    """Turn an error for people into a problem: what was asked for is not there (reading), cannot be used, or the journal is in trouble."""
    if isinstance(error, UsageError):
        return Problem(404 if reading else 422, _for_the_page(str(error)))
    return Problem(503, str(error), "Reload in a moment; if it stays so, tell who runs this server.")


def _for_the_page(line: str) -> str:
    """The command line's advice is no use to somebody at a page."""
    return line.split("; `nullius")[0]
