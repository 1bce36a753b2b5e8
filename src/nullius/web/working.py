"""The worker beside a server: works while the server lives, and between runs embeds new papers for search by meaning.

It imports nothing of the web, so that it is there as soon as the first page.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from nullius.errors import NulliusError
from nullius.lab.worker import Worker

EMBED_SECONDS, REST_SECONDS = 3.0, 30.0


def work(parent: int) -> None:
    """Execute queued runs until the process that started this one is gone. Another worker on this machine does as well."""
    one = Worker(say=lambda line: print(f"worker: {line}", flush=True))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: one.stop())

    def idle() -> bool:
        _embed()
        return os.getppid() == parent

    try:
        one.work(idle=idle)
    except NulliusError as error:
        print(f"worker: {error}", flush=True)


_next = 0.0


def _embed() -> None:
    """Embed some papers that are new, newest first, for a few seconds; a run that is asked for meanwhile waits no longer than that."""
    global _next
    if time.monotonic() < _next:
        return
    from nullius.feed.search import embedding, weights

    try:
        more = bool(weights.here() and embedding.missing() and embedding.embed(seconds=EMBED_SECONDS))
    except NulliusError as error:
        print(f"worker: {error}", flush=True)
        more = False
    _next = time.monotonic() + (0.0 if more else REST_SECONDS)


if __name__ == "__main__":
    work(int(sys.argv[1]))
