"""What goes wrong, in OpenAI's shape: {"error": {"message", "type", "param", "code"}}.

No reply names a path of the server's. Of Sightline's own errors only those that tell of the input are passed on.
"""

import json
import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from sightline.errors import ImageError, InvalidArgumentError, SightlineError, TextTooLongError

logger = logging.getLogger("sightline.server")

_BRANCHES = ("str", "TextPart", "ImagePart", "ImageUrl", "Term")
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that is answered by an error.

    Args:
        status: of HTTP.
        message: one line: what was wrong, and what to do.
        code: the same in a word, for programs.
        param: which part of the request it was.
        retry_after: seconds after which it is worth asking again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.retry_after = status, message, code, param, retry_after

    def reply(self) -> Response:
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        headers = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        # ASCII throughout: a message may quote half of a surrogate pair, which UTF-8 has no bytes for.
        content = json.dumps({"error": error}).encode("ascii")
        return Response(content, self.status, headers, media_type="application/json")


def busy(retry_after: int) -> ApiError:
    message = f"the server has as much work as it takes: try again in {retry_after} s"
    return ApiError(429, message, code="queue_full", retry_after=retry_after)


def unavailable(message: str) -> ApiError:
    return ApiError(503, message, code="unavailable", retry_after=1)


def of_sightline(error: BaseException, param: str | None = None) -> ApiError:
    """What a client is told of an error inside: the reason where it lies in the input, else nothing but that."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ImageError):
        return ApiError(422, f"the image {error.reason}", code="invalid_image", param=param)
    if isinstance(error, TextTooLongError):
        message = "the text has more tokens than the model's context holds: shorten it"
        return ApiError(422, message, code="text_too_long", param=param)
    if isinstance(error, InvalidArgumentError):
        return ApiError(422, str(error), code="invalid_value", param=param)
    logger.error("a request failed", exc_info=error)
    return ApiError(500, "the server failed on this request; its log says why", code="internal_error", param=param)


def of_validation(errors: Any) -> ApiError:
    """What pydantic found deepest, which is nearest to the cause, with the place in words like `labels[3]`."""
    first = max(errors, key=lambda error: len(error["loc"]))
    place = ""
    for part in first["loc"]:
        if part in _BRANCHES or str(part).startswith("list["):
            continue  # pydantic names the type it tried too
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    return ApiError(422, f"{place or 'the request'}: {first['msg']}", code="invalid_value", param=place or None)


def add_handlers(app: FastAPI) -> None:
    """Every error leaves in the one shape."""

    async def api(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        if error.status in (413, 429):
            request.app.state.metrics.rejected.labels(error.code).inc()
        return error.reply()

    async def sightline(_: Request, error: Exception) -> Response:
        return of_sightline(error).reply()

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headers, message = dict(error.headers or {}), str(error.detail).lower()
        if error.status_code == 405:
            headers["Allow"] = headers["Allow"].replace("GET", "GET, HEAD")  # which `Guard` makes a GET of
            message = f"{request.url.path} has no {request.method}: use {headers['Allow']}"
        reply = ApiError(error.status_code, message, code=f"http_{error.status_code}").reply()
        reply.headers.update(headers)
        return reply

    async def validation(_: Request, error: Exception) -> Response:
        assert isinstance(error, (RequestValidationError, ValidationError))
        return of_validation(error.errors()).reply()

    app.add_exception_handler(ApiError, api)
    app.add_exception_handler(SightlineError, sightline)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, validation)
