"""The API described: OpenAPI 3.1 as JSON, and as a page of our own, since nothing is loaded from another host."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.responses import JSONResponse, Response

from nullius.web import page_shapes, shapes
from nullius.web.site import Answer, Visit, get, page


def openapi(app: FastAPI) -> dict[str, Any]:
    """Return the description, made once."""
    if not app.openapi_schema:
        made = get_openapi(title="nullius", version="1", openapi_version="3.1.0", description=_ABOUT, routes=app.routes)
        made["components"]["schemas"]["ProblemBody"] = shapes.ProblemBody.model_json_schema()
        made["components"]["schemas"] |= page_shapes.described()
        made["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        made["security"] = [{}, {"token": []}]
        for path in made["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None) if not _is_problem(operation["responses"].get("422")) else None
        app.openapi_schema = made
    return app.openapi_schema


_ABOUT = (
    "Papers, claims, verdicts and runs. Lists go on with `cursor`. Answers carry an ETag. Errors are application/problem+json (RFC 9457). Reading "
    "needs no token; voting, saving and running need one of /account, with the scope for it. Every page is JSON too, at its address + `.json`, in "
    "the shapes whose names begin with Page."
)


def _is_problem(response: Any) -> bool:
    return isinstance(response, dict) and "application/problem+json" in response.get("content", {})


@get("/api/v1/openapi.json")
def description(visit: Visit) -> Response:
    """OpenAPI 3.1."""
    return JSONResponse(openapi(visit.request.app), headers={"Cache-Control": "public, max-age=300"})


@page("/api/v1/docs", "api.html")
def docs(visit: Visit) -> Answer:
    """The description, to read."""
    operations = []
    for path, methods in openapi(visit.request.app)["paths"].items():
        for method, about in methods.items():
            parameters = [{"name": p["name"], "in": p["in"], "required": p.get("required", False)} for p in about.get("parameters", [])]
            operations.append({"method": method.upper(), "path": path, "about": about.get("description", ""), "parameters": parameters})
    return {"schema": "nullius.web.api/1", "operations": operations}
