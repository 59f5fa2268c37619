"""What OpenAPI is told of bodies that the routes read themselves: the same schema as JSON and as a form with files."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from sightline.server.schemas import ErrorReply

_PLACE = "#/components/schemas/{model}"
# What any route may answer beside its own.
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply, "description": text}
    for status, text in {
        400: "No HTTP/1.1 request, or one with several Host headers",
        401: "The API key is missing or wrong",
        403: "Another site, or another name than localhost",
        404: "Another model than the one that is served",
        408: "The request did not arrive in time",
        413: "Too many bytes, or JSON too deep or too long",
        415: "Neither JSON nor a form in UTF-8",
        422: "Something in the request cannot be used; `param` says which",
        429: "The queue is full; Retry-After says when to come back",
        500: "A fault of the server's",
        503: "The encoder is being started again, or the server ends",
    }.items()
}


def body_of(schema: type[BaseModel]) -> dict[str, Any]:
    """The `openapi_extra` of a route that takes this schema."""
    reference = {"$ref": _PLACE.format(model=schema.__name__)}
    files = {
        "type": "object",
        "properties": {"file": {"type": "array", "items": {"type": "string", "format": "binary"}}},
    }
    content = {
        "application/json": {"schema": reference},
        "multipart/form-data": {"schema": files, "encoding": {"file": {"contentType": "image/*"}}},
    }
    return {"requestBody": {"required": True, "content": content}}


def document(app: FastAPI, *schemas: type[BaseModel]) -> None:
    """Have `app` tell of these schemas in /openapi.json too."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            _, definitions = models_json_schema([(schema, "validation") for schema in schemas], ref_template=_PLACE)
            made["components"]["schemas"].update(definitions["$defs"])
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
