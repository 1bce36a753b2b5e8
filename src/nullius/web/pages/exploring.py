"""Figures to explore, on the page: the stored file without the library inside it, which the page loads once, and only on click.

The file itself needs nothing else and stays as it is, to keep and to send on. Its script runs in a sandbox that sees nothing of this site.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from starlette.responses import Response

from nullius.lab.interactive import without_library
from nullius.paths import data_dir
from nullius.web import assets
from nullius.web.pages import runs
from nullius.web.problems import Problem
from nullius.web.site import Visit, get

LIBRARY = "plotly-basic.min.js"
_UNSAFE = "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; frame-ancestors 'self'"


@get("/runs/{id}/explore/{name}.html")
def explore(visit: Visit) -> Response:
    """A figure to explore. A file that the lab did not make so is answered as it is stored."""
    found = runs.record(visit.params["id"])
    name = f"{visit.params['name']}.html"
    stored = next((entry for entry in found["artefacts"] if entry["name"] == name), None)
    path = Path(data_dir()) / "runs" / found["id"] / name
    if stored is None or not path.is_file():
        raise Problem(404, f"This run has no figure '{visit.params['name'][:60]}' to explore.", "", (f"/runs/{found['id']}", "The run"))
    small = _small(str(path), stored["sha256"])
    site = visit.request.app.state.site
    response: Response = site.reply(visit.request, small or path.read_text("utf-8"), "text/html; charset=utf-8")
    scheme = "https" if visit.settings.secure else "http"
    library = f"{scheme}://{visit.request.headers['host']}{assets.address(LIBRARY)}"  # a host of the list: the guard has seen to it
    policy = f"sandbox allow-scripts; script-src 'unsafe-inline' {library}; {_UNSAFE}"
    response.headers.update({"Content-Security-Policy": policy, "X-Frame-Options": "SAMEORIGIN"})
    return response


@lru_cache(maxsize=32)
def _small(path: str, _sha256: str) -> str | None:
    """The file with a reference in place of the library; None where there is none in it."""
    return without_library(Path(path).read_text("utf-8"), assets.address(LIBRARY))
