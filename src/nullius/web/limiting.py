"""How often somebody may ask, on a shared server. Alone there is nobody to be protected from."""

from __future__ import annotations

import ipaddress
import time

from limits import RateLimitItem, parse
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from starlette.requests import Request

from nullius.web.problems import Problem
from nullius.web.settings import Settings
from nullius.web.who import Person

PAGES, SEARCHES, CHANGES, MAILS = (parse(text) for text in ("300/minute", "60/minute", "30/minute", "5/hour"))
LEAVING = "/u/"
_limiter = SlidingWindowCounterRateLimiter(MemoryStorage())


def forget() -> None:
    """Start counting anew."""
    _limiter.storage.reset()


def page(person: Person, request: Request, settings: Settings) -> None:
    """Count a page, and a search where it is one. Raises Problem 429 with Retry-After."""
    if settings.shared and person.role == "visitor":
        _count(PAGES, request, "pages")
        if (request.query_params.get("q") and "search" in request.url.path) or (
            request.url.path == "/api/v1/papers" and "q" in request.query_params
        ):
            search(person, request, settings)


def search(person: Person, request: Request, settings: Settings) -> None:
    """Count a search. Raises Problem 429."""
    if settings.shared and person.role == "visitor":
        _count(SEARCHES, request, "searches")


def change(person: Person, request: Request, settings: Settings) -> None:
    """Count a change. Raises Problem 429. To leave a digest is never too much: a mail provider posts for all its readers from a few addresses."""
    if settings.shared and person.role != "maintainer" and not request.url.path.startswith(LEAVING):
        _count(CHANGES, request, "changes", person.account or _address(request))


def mail(request: Request, settings: Settings) -> None:
    """Count a mail that somebody who is not signed in asks for. Raises Problem 429."""
    if settings.shared:
        _count(MAILS, request, "mails")


def _count(limit: RateLimitItem, request: Request, what: str, whose: str = "") -> None:
    key = (what, whose or _address(request))
    if not _limiter.hit(limit, *key):
        wait = max(1, round(_limiter.get_window_stats(limit, *key).reset_time - time.time()))
        raise Problem(
            429,
            f"At most {limit.amount} {what} a {limit.GRANULARITY.name}.",
            f"Try again in {wait} seconds.",
            headers={"Retry-After": str(wait)},
        )


def _address(request: Request) -> str:
    """Who asks, as far as that is known: of IPv6 the network of 64 bits, since whoever has one address there has all of them."""
    host = request.client.host if request.client else ""
    try:
        found = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(found, ipaddress.IPv6Address):
        return str(found.ipv4_mapped or ipaddress.ip_network((found, 64), strict=False).network_address)
    return host
