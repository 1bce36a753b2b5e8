"""How mail leaves: the sending host, the addresses of this site, and the key that signs its links."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from itsdangerous import BadSignature, URLSafeSerializer

from nullius.errors import UsageError

UNSUBSCRIBE = "nullius unsubscribe"


@dataclass(frozen=True)
class MailSettings:
    """smtp: smtp://[user:password@]host[:port] (STARTTLS is asked for unless the host is this machine), or smtps://. sender: the From address.

    base_url: the site's address, without a slash at the end; where it is https, mails offer one-click unsubscription (RFC 8058). secret: signs
    links. Mail must leave with a DKIM signature that covers both List- headers: the relay's, which knows the domain's key, or one of our own.
    dkim_key: file of the domain's private key (RSA, PEM); dkim_selector: under which name the public one stands in the DNS.
    """

    smtp: str
    sender: str
    base_url: str
    secret: bytes = field(repr=False)
    dkim_key: str = ""
    dkim_selector: str = "nullius"

    @property
    def host(self) -> str:
        """The sending domain."""
        return self.sender.rpartition("@")[2]

    @property
    def one_click(self) -> bool:
        """Whether mails can offer one-click unsubscription."""
        return self.base_url.startswith("https://")

    def unsubscribe_token(self, subscription: str) -> str:
        """Return what stands in a subscription's unsubscribe links. It never expires."""
        return str(URLSafeSerializer(self.secret, salt=UNSUBSCRIBE).dumps(subscription))

    def envelope_sender(self, delivery: int) -> str:
        """Return the address that bounces of a delivery go to (VERP)."""
        return f"bounces+{delivery}.{self._mark(delivery)}@{self.host}"

    def bounced(self, recipient: str) -> int | None:
        """Return the delivery that a bounce address names, None for an address that was never made here."""
        local, _, host = recipient.strip(" <>").rpartition("@")
        name, _, rest = local.partition("+")
        number, _, mark = rest.partition(".")
        if name != "bounces" or host.lower() != self.host.lower() or not (number.isascii() and number.isdecimal() and len(number) < 19):
            return None
        return int(number) if hmac.compare_digest(mark.lower().encode(), self._mark(int(number)).encode()) else None

    def message_id(self, subscription: str, period: str) -> str:
        """Return the Message-ID of a subscription's mail for a period: the same whenever it is asked for."""
        mark = hmac.new(self.secret, f"message {subscription} {period}".encode(), hashlib.sha256).hexdigest()[:16]
        return f"<{subscription}.{period}.{mark}@{self.host}>"

    def _mark(self, delivery: int) -> str:
        return hmac.new(self.secret, f"bounce {delivery}".encode(), hashlib.sha256).hexdigest()[:16]


def unsubscribed(token: str, secret: bytes) -> str | None:
    """Return the subscription that an unsubscribe link names, None for a link that was never made here."""
    try:
        return str(URLSafeSerializer(secret, salt=UNSUBSCRIBE).loads(token))
    except BadSignature:
        return None


def from_environment(base_url: str, secret: bytes) -> MailSettings | None:
    """Return the settings of NULLIUS_SMTP and NULLIUS_MAIL_FROM, None where no mail is set up. Raises UsageError for settings that cannot be."""
    smtp, sender = os.environ.get("NULLIUS_SMTP", ""), os.environ.get("NULLIUS_MAIL_FROM", "")
    if not smtp and not sender:
        return None
    parts = urlsplit(smtp)
    if parts.scheme not in ("smtp", "smtps") or not parts.hostname:
        raise UsageError("NULLIUS_SMTP must be smtp://[user:password@]host[:port] or smtps://…")
    if sender.count("@") != 1 or sender.startswith("@") or sender.endswith("@") or any(c.isspace() for c in sender):
        raise UsageError(f"NULLIUS_MAIL_FROM must be the address that mails come from, not '{sender[:60]}'")
    key, selector = os.environ.get("NULLIUS_DKIM_KEY", ""), os.environ.get("NULLIUS_DKIM_SELECTOR", "nullius")
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?", selector):
        raise UsageError(f"NULLIUS_DKIM_SELECTOR must be a name of the DNS, not '{selector[:60]}'")
    settings = MailSettings(smtp, sender, base_url.rstrip("/"), secret, key, selector)
    if key:
        from nullius.feed.digest.signing import check

        check(settings)
    return settings


@dataclass(frozen=True)
class Server:
    """An SMTP server, as NULLIUS_SMTP names it."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    tls: bool  # from the first byte
    local: bool  # this machine: needs no encryption

    @classmethod
    def of(cls, settings: MailSettings) -> Server:
        """Take an address apart."""
        parts = urlsplit(settings.smtp)
        host, tls = parts.hostname or "", parts.scheme == "smtps"
        port = parts.port or (465 if tls else 25 if not parts.username else 587)
        return cls(host, port, unquote(parts.username or ""), unquote(parts.password or ""), tls, _loopback(host))


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
