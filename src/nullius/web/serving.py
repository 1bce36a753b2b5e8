"""Running the server: address, one-time link, worker, orderly end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import webbrowser
from collections.abc import Callable, Iterator

import uvicorn

from nullius.errors import NulliusError
from nullius.feed.database import make_ready
from nullius.lab import schema
from nullius.web import who
from nullius.web.app import create
from nullius.web.settings import Settings

BACKLOG = 512
RESTART_SECONDS = 1.0


def serve(settings: Settings, *, browser: bool, worker: bool, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C. Raises NulliusError when the port is taken."""
    listening = _listen(settings)
    make_ready(schema.url())
    if settings.shared:
        say(f"nullius: {settings.base_url} (listening on {settings.host}:{settings.port})")
    else:
        address = f"{settings.base_url}/enter?key={who.key_to_enter(settings)}"
        say(f"nullius: {settings.base_url} can be read; to vote and run, open this address, once:\n{address}")
        if browser:
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
    config = uvicorn.Config(
        create(settings),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=3,
        timeout_keep_alive=30,
        proxy_headers=settings.shared,
        lifespan="on",
    )
    with _worker() if worker else contextlib.nullcontext():
        uvicorn.Server(config).run(sockets=[listening])


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
    except OSError as error:
        raise NulliusError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; another nullius may be there, or choose --port"
        ) from None
    listening.listen(BACKLOG)
    return listening


@contextlib.contextmanager
def _worker() -> Iterator[None]:
    """A worker beside the server, which ends with it. One that is killed (out of memory, say) is followed by another."""
    ending = threading.Event()

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "nullius.web.working", str(os.getpid())], start_new_session=True)

    process = start()

    def keep() -> None:
        nonlocal process
        while process.wait() < 0 and not ending.wait(RESTART_SECONDS):  # one that ended by itself has said why
            process = start()

    keeper = threading.Thread(target=keep, daemon=True)
    keeper.start()
    try:
        yield
    finally:
        ending.set()
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        keeper.join(15)
        process.kill()
