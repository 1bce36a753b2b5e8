"""Mail that pages ask for, sent by the feed's mailer; a server without one says so."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable

from nullius.web.problems import Problem

_ADDRESS = re.compile(r"[^\s@<>\"',;:\\()\[\]]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9.-]{0,250}[A-Za-z0-9])?\.[A-Za-z]{2,63}")
send: Callable[[str, str, str], None] | None = None  # to, subject, text: set by whoever starts a server that can send


def possible() -> bool:
    """Whether this server can send mail."""
    return send is not None or importlib.util.find_spec("nullius.feed.mail") is not None


def address(text: str) -> str:
    """Check an e-mail address. Raises Problem 422 for what is none."""
    text = text.strip()
    if len(text) > 254 or not _ADDRESS.fullmatch(text):
        raise Problem(422, "This is no e-mail address.", "Write it as name@host.")
    return text


def sign_in(email: str, link: str) -> None:
    """Send a sign-in link. Raises Problem 503 where no mail can be sent."""
    text = f"Sign in to nullius:\n\n{link}\n\nThe link works once, for 15 minutes. If you did not ask for it, nothing happens.\n"
    _send(email, "Sign in to nullius", text)


def _send(email: str, subject: str, text: str) -> None:
    if send is None:
        raise Problem(503, "This server cannot send mail.", "Sign in another way, or tell who runs it: mail is not set up.")
    send(email, subject, text)
