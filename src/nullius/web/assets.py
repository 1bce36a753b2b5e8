"""Files that pages need: read once, compressed once, served under their hash for ever."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nullius.lab import interactive
from nullius.web.problems import Problem

TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}


@dataclass(frozen=True)
class Asset:
    """name: as written in templates; content and its gzip; sha256 of the content."""

    name: str
    content: bytes
    packed: bytes
    sha256: str
    type: str

    @property
    def address(self) -> str:
        return f"/static/{self.sha256[:12]}/{self.name}"


@cache
def assets() -> dict[str, Asset]:
    """Return all assets by name."""
    held = {entry.name: entry.read_bytes() for entry in files("nullius.web").joinpath("static").iterdir() if entry.is_file()}
    # One script: htmx looks at the page as soon as it has run, and would not know of an extension that arrives later
    held["htmx.js"] = held["htmx.min.js"] + b"\n" + held["hx-sse.min.js"]
    packed = {interactive.LIBRARY.removesuffix(".gz"): interactive.library()}
    held |= {name: gzip.decompress(content) for name, content in packed.items()}
    found = {}
    for name, content in held.items():
        kind = TYPES.get(name.rsplit(".", 1)[-1])
        if kind:
            small = packed.get(name) or gzip.compress(content, 9, mtime=0)
            found[name] = Asset(name, content, small, hashlib.sha256(content).hexdigest(), kind)
    return found


def address(name: str) -> str:
    """Return where a page finds an asset. Raises KeyError for one that is not there."""
    return assets()[name].address


async def serve(request: Request) -> Response:
    """Answer with an asset; an old hash gets the new content, but is not kept."""
    asset = assets().get(request.path_params["name"])
    if asset is None:
        raise Problem(404, "There is no such file.")
    current = asset.sha256.startswith(request.path_params["digest"]) and len(request.path_params["digest"]) == 12
    headers = {"Cache-Control": "public, max-age=31536000, immutable" if current else "no-cache", "Vary": "Accept-Encoding"}
    if asset.name.startswith("plotly"):  # loaded from a sandbox, which is of no origin
        headers["Cross-Origin-Resource-Policy"] = "cross-origin"
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(asset.packed, media_type=asset.type, headers={**headers, "Content-Encoding": "gzip"})
    return Response(asset.content, media_type=asset.type, headers=headers)


def favicon(_request: Request) -> Response:
    """Browsers ask for it whatever a page says."""
    asset = assets()["logo.svg"]
    return Response(asset.content, media_type=asset.type, headers={"Cache-Control": "public, max-age=86400"})


routes = [Route("/static/{digest}/{name}", serve), Route("/favicon.ico", favicon)]
