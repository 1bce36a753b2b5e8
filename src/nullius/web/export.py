"""A read-only copy of the site for any static host: pages, their JSON, feeds, citations, figures. No script, no form does anything there."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx

from nullius.errors import UsageError
from nullius.lab.artefacts import write_text
from nullius.web.app import create
from nullius.web.settings import Settings, secret

_LINK = re.compile(r'(?:href|src)="(/[^"#]*)')
STARTS = ("/", "/index.json", "/week", "/month", "/trending", "/subjects", "/runs", "/calibration", "/about", "/subscribe", "/favicon.ico")
# What only a server can do, and what would never end
LEFT_OUT = ("/enter", "/signin", "/account", "/library", "/import", "/search", "/health", "/choices", "/api/", "/mcp")
MOST = 100_000


def export(folder: str, base_url: str, say: Callable[[str], None] = lambda _line: None) -> int:
    """Write the site into a folder and return how many files that are. Raises UsageError when it holds something already."""
    root = Path(folder)
    if root.exists() and any(root.iterdir()):
        raise UsageError(f"{folder} is not empty; give a new folder")
    return asyncio.run(_export(root, base_url.rstrip("/"), say))


async def _export(root: Path, base_url: str, say: Callable[[str], None]) -> int:
    settings = Settings(base_url=base_url, secret=secret())
    app = create(settings)
    written, waiting, seen = 0, list(STARTS), set(STARTS)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url=f"http://127.0.0.1:{settings.port}") as client,
    ):
        while waiting and written < MOST:
            path = waiting.pop(0)
            answer = await client.get(path, headers={"Accept": "text/html"})
            if answer.status_code in (301, 303):
                found = [answer.headers["location"]]
            elif answer.status_code != 200:
                say(f"left out {path}: {answer.status_code}")
                continue
            else:
                written += _write(root, path, answer)
                html = answer.headers.get("content-type", "").startswith("text/html")
                found = _LINK.findall(answer.text) if html else []
            for link in found:
                target = urlsplit(link.replace("&amp;", "&"))
                if not target.query and target.path not in seen and not target.path.startswith(LEFT_OUT):
                    seen.add(target.path)
                    waiting.append(target.path)
    return written


def _write(root: Path, path: str, answer: httpx.Response) -> int:
    """One file for an address: pages become folders with an index.html."""
    parts = [part for part in unquote(urlsplit(path).path).split("/") if part]
    if any(part in (".", "..") or "\0" in part for part in parts):
        return 0
    target = root.joinpath(*parts) if parts else root
    if answer.headers.get("content-type", "").startswith("text/html") and not path.endswith(".html"):
        write_text(target / "index.html", _still(answer.text))
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(answer.content)
    return 1


def _still(html: str) -> str:
    """A page without what needs a server: forms, scripts."""
    html = re.sub(r"<script\b(?![^>]*ld\+json).*?</script>", "", html, flags=re.DOTALL)
    return re.sub(r"<form\b.*?</form>", "", html, flags=re.DOTALL)
