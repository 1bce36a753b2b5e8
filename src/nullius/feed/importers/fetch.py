"""Fetching for the importers: only from hosts on a list, redirects looked at again, capped, patient, polite.

Five tries with growing pauses for what may pass (no connection, timeouts, 429, 5xx, a body that breaks off); a Retry-After is obeyed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime

import httpx

from nullius import __version__
from nullius.errors import NulliusError
from nullius.feed.importers.decode import MOST_FROM_WEB, Document
from nullius.feed.text import one_line

TRIES = 5
LONGEST_PAUSE = 600.0
LONGEST_ANSWER = 600.0  # seconds: a source that lets each byte wait for nearly its timeout would hold an import for a year
TIMEOUT = httpx.Timeout(30.0, connect=10.0)
HOSTS = frozenset({"huggingface.co", "arxiv.org", "www.arxiv.org", "export.arxiv.org", "oaipmh.arxiv.org"})
_PAUSED = {"arxiv.org", "www.arxiv.org", "export.arxiv.org", "oaipmh.arxiv.org"}  # these ask for one request in three seconds
_PASSING = {408, 425, 429, 500, 502, 503, 504}


class Unreachable(NulliusError):
    """A source did not answer, or not with what was asked for; the message says when it makes sense to go on."""


def allowed_hosts() -> frozenset[str]:
    """Return the hosts that importers may ask: those of the sources, the mirror that HF_ENDPOINT names, and those that NULLIUS_IMPORT_HOSTS adds
    (host or host:port, by comma)."""
    more = os.environ.get("NULLIUS_IMPORT_HOSTS", "").split(",")
    mirror = os.environ.get("HF_ENDPOINT", "").partition("://")[2].partition("/")[0]
    return HOSTS | {host.strip().lower() for host in (*more, mirror) if host.strip()}


@dataclass
class Fetcher:
    """One connection to the sources. say: takes a line for the user; sleep and clock can be others in tests."""

    say: Callable[[str], None] = lambda line: None
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    hosts: frozenset[str] = field(default_factory=allowed_hosts)
    most: int = MOST_FROM_WEB
    _client: httpx.Client | None = None
    _last: dict[str, float] = field(default_factory=dict)

    def get(self, address: str) -> Document:
        """Return what an address answers. Raises Unreachable after five tries, at once for what will not pass (404, a host not on the list)."""
        reason, pause = "", 0.0
        for attempt in range(TRIES):
            if attempt:
                if pause > LONGEST_PAUSE:
                    break
                self.say(f"{reason}: trying again in {pause:.0f} s ({attempt + 1} of {TRIES})")
                self.sleep(pause)
            pause = min(LONGEST_PAUSE, 2.0 * 2**attempt)
            try:
                return self._once(address)
            except _Passing as passing:
                reason = str(passing)
                pause = max(pause, passing.after) if passing.after is not None else pause
        when = f"; it asks to come back in {pause:.0f} s" if pause > LONGEST_PAUSE else "; run the same command again later to go on"
        raise Unreachable(f"{reason}{when}")

    def _once(self, address: str) -> Document:
        for _ in range(6):
            url = self._checked(address)
            self._wait(url)
            try:
                with self._connection().stream("GET", url, headers={"User-Agent": f"nullius/{__version__}"}) as answer:
                    if answer.is_redirect:
                        address = str(url.join(answer.headers.get("location", "")))
                        continue
                    return self._read(url, answer)
            except httpx.InvalidURL:
                raise Unreachable(f"{url.host} leads on to something that is no address") from None
            except httpx.TransportError as error:
                raise _Passing(f"{url.host} does not answer ({type(error).__name__})") from None
            except httpx.DecodingError:
                raise _Passing(f"{url.host} sent a damaged answer") from None
        raise Unreachable(f"{address} leads from address to address")

    def _checked(self, address: str) -> httpx.URL:
        try:
            url = httpx.URL(address)
        except httpx.InvalidURL:
            raise Unreachable(f"'{one_line(address)[:100]}' is no address") from None
        host = url.host.lower()
        if url.scheme not in ("http", "https") or not self.hosts & {host, f"{host}:{url.port}"}:
            known = ", ".join(sorted(HOSTS))
            raise Unreachable(f"importers fetch from {known} only, not from {one_line(address)[:100]}; save the page and import the file")
        return url

    def _wait(self, url: httpx.URL) -> None:
        """One request in three seconds to arXiv, whichever of its hosts."""
        if url.host.lower() in _PAUSED:
            due = self._last.get("arxiv", -3.0) + 3.0
            if (left := due - self.clock()) > 0:
                self.sleep(left)
            self._last["arxiv"] = self.clock()

    def _read(self, url: httpx.URL, answer: httpx.Response) -> Document:
        if answer.status_code in _PASSING:
            raise _Passing(f"{url.host} answers {answer.status_code} {answer.reason_phrase}", _retry_after(answer))
        if answer.status_code != 200:
            raise Unreachable(f"{url} answers {answer.status_code} {answer.reason_phrase}")
        content = bytearray()
        end = self.clock() + LONGEST_ANSWER
        for piece in answer.iter_bytes():
            content += piece
            if self.clock() > end:
                raise _Passing(f"{url.host} takes more than {LONGEST_ANSWER:.0f} s for one answer")
            if len(content) > self.most:
                raise Unreachable(
                    f"{url} answers with more than {self.most // 1_000_000} MB: ask for less at a time, or import it from a file"
                )
        return Document.of(bytes(content), str(url), self.most, answer.charset_encoding)

    def _connection(self) -> httpx.Client:
        if self._client is None:
            self._client = httpx.Client(timeout=TIMEOUT, follow_redirects=False)
        return self._client

    def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None


class _Passing(Exception):
    """Something that another try may get over. after: seconds that the source asks for."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


def _retry_after(answer: httpx.Response) -> float | None:
    value = answer.headers.get("retry-after", "").strip()
    if value.isdecimal():
        return float(value[:9])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
