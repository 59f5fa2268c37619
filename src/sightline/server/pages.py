"""The page for people: `/` and what it loads from `/static/`, files of the package as they are."""

import hashlib
from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

router = APIRouter(include_in_schema=False)
# Written out: what the system would guess differs between machines, and browsers run no module of another type.
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@router.get("/")
async def page(request: Request) -> Response:
    return _reply(request, "index.html")


@router.get("/static/{name}")
async def static(request: Request, name: str) -> Response:
    return _reply(request, name)


def _reply(request: Request, name: str) -> Response:
    """A file, or 304 where the browser has it: it asks each time, so that a new version is there at once."""
    if name not in _contents():
        raise HTTPException(404, "there is no such file")
    content, tag = _contents()[name]
    headers = {"etag": tag, "cache-control": "no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers | {"content-type": _TYPES[name[name.rindex(".") :]]})


@cache
def _contents() -> dict[str, tuple[bytes, str]]:
    """Every file of the page by its name, with its ETag: nothing else can be asked for."""
    found = {file.name: file.read_bytes() for file in (files("sightline.server") / "page").iterdir()}
    return {name: (content, f'"{hashlib.sha256(content).hexdigest()[:20]}"') for name, content in found.items()}
