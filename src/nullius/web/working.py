"""The worker beside a server: works while the server lives. It imports nothing of the web, so that it is there as soon as the first page."""

from __future__ import annotations

import os
import signal
import sys

from nullius.errors import NulliusError
from nullius.lab.worker import Worker


def work(parent: int) -> None:
    """Execute queued runs until the process that started this one is gone. Another worker on this machine does as well."""
    one = Worker(say=lambda line: print(f"worker: {line}", flush=True))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: one.stop())
    try:
        one.work(idle=lambda: os.getppid() == parent)
    except NulliusError as error:
        print(f"worker: {error}", flush=True)


if __name__ == "__main__":
    work(int(sys.argv[1]))
