"""Signing mail with the sending domain's own key (DKIM, RFC 6376), where the relay does not do it.

Both List- headers are signed, as RFC 8058 asks of a mail that one click unsubscribes from; and each header that a forger might add a second of is
signed once more than it occurs, so that an added one breaks the signature.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from nullius.errors import UsageError
from nullius.feed.digest.settings import MailSettings

HEADERS = (
    *("From", "To", "Subject", "Date", "Message-ID", "MIME-Version", "Content-Type", "Content-Language", "Auto-Submitted", "Precedence"),
    *("List-Id", "List-Unsubscribe", "List-Unsubscribe-Post"),
)


def signed(settings: MailSettings, message: bytes) -> bytes:
    """Return a message (CRLF line ends) under its signature, or as it is where no key is set up.

    Raises UsageError for a key that cannot be read, and where dkimpy is not installed.
    """
    if not settings.dkim_key:
        return message
    try:
        import dkim
    except ImportError:
        raise UsageError("signing mail needs dkimpy: pip install 'nullius[dkim]'") from None
    present = [
        name.encode() for name in HEADERS if re.search(rb"(?im)^" + re.escape(name.encode()) + rb":", message.partition(b"\r\n\r\n")[0])
    ]
    try:
        signature: bytes = dkim.sign(
            message,
            settings.dkim_selector.encode(),
            settings.host.encode(),
            key(settings.dkim_key),
            canonicalize=(b"relaxed", b"relaxed"),
            include_headers=[*present, *present],
        )
    except dkim.DKIMException as error:
        raise UsageError(f"NULLIUS_DKIM_KEY ({settings.dkim_key}) signs nothing: {error}; it must be an RSA key in PEM") from None
    return signature + message


@lru_cache(maxsize=4)
def check(settings: MailSettings) -> None:
    """See that mail can be signed, before any is claimed for sending. Raises UsageError."""
    signed(settings, b"From: nullius\r\n\r\nA trial.\r\n")


@lru_cache(maxsize=4)
def key(path: str) -> bytes:
    """Return the private key in a file. Raises UsageError when there is none."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"NULLIUS_DKIM_KEY: {path} cannot be read ({error.strerror})") from None
