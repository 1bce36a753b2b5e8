"""How a server is set up: alone on this machine (the default), or shared by a lab."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from nullius.errors import UsageError
from nullius.paths import secret


@dataclass(frozen=True)
class Settings:
    """base_url: what people type, without a slash at the end. maintainers: e-mail addresses with every right. secret: signs cookies and links.

    private: alone, even reading needs the one-time address. in_flight: the most bytes of a body; imports may have more.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    shared: bool = False
    private: bool = False
    base_url: str = "http://127.0.0.1:8000"
    maintainers: frozenset[str] = frozenset()
    secret: bytes = field(default=b"", repr=False)
    max_parameters: float = 1e9
    body_bytes: int = 1_000_000
    import_bytes: int = 10_000_000

    @property
    def secure(self) -> bool:
        """Whether pages travel over https."""
        return self.base_url.startswith("https://")

    @property
    def hosts(self) -> frozenset[str]:
        """The values of the Host header that are answered."""
        if self.shared:
            return frozenset({urlsplit(self.base_url).netloc.lower()})
        names = {"127.0.0.1", "localhost", "[::1]", urlsplit(self.base_url).netloc.rpartition(":")[0].lower()}
        return frozenset(f"{name}:{self.port}" for name in names) | (names if self.port == 80 else frozenset())  # which browsers leave out

    @property
    def origins(self) -> frozenset[str]:
        """The values of the Origin header from which something may be changed."""
        return frozenset(f"{'https' if self.secure else 'http'}://{host}" for host in self.hosts)

    @property
    def cookie(self) -> str:
        """The name of the session cookie. Cookies do not know ports: two servers on one machine must not log each other out."""
        return "__Host-nullius" if self.secure else f"nullius-{self.port}"


def settings(
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    shared: bool = False,
    private: bool = False,
    base_url: str = "",
    maintainers: frozenset[str] = frozenset(),
) -> Settings:
    """Check how a server is to be set up. Raises UsageError for an address that others reach without --shared, for a shared one without https or one
    that is to be private.
    """
    base_url = base_url.rstrip("/")
    if not shared:
        if not loopback(host):
            raise UsageError(
                f"{host} can be reached by others; write --shared (with accounts), or leave --host out to stay on this machine"
            )
        shown = f"[{host}]" if ":" in host else host
        return Settings(host, port, False, private, f"http://{shown}:{port}", secret=secret())
    if private:
        raise UsageError(
            "--private is for a server of your own; on a shared one there would be no page left to sign in at: leave one of the two out"
        )
    base_url = base_url.removesuffix(":443")
    if not re.fullmatch(r"https://([A-Za-z0-9-]+\.)*[A-Za-z0-9-]+(:\d{1,5})?|https://\[[0-9A-Fa-f:.]+\](:\d{1,5})?", base_url):
        raise UsageError(f"a shared server needs --base-url https://HOST, the address that people type, not '{base_url}'")
    return Settings(host, port, True, False, base_url, frozenset(name.lower() for name in maintainers), secret())


def loopback(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
