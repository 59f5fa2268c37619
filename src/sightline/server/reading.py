"""What a request says: JSON or a form, with images as data URIs, uploads or URLs."""

import asyncio
import binascii
import json
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import orjson
import pybase64
from fastapi import Request
from pydantic import BaseModel, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from sightline.images import printable_name
from sightline.server.errors import ApiError, of_validation
from sightline.server.fetching import fetch
from sightline.server.limits import check_json
from sightline.server.schemas import Image, ImagePart
from sightline.server.settings import Settings

S = TypeVar("S", bound=BaseModel)
# Bytes that are parsed in the event loop; more go to a thread. A photo's JSON stays, as handing it over takes time too.
_LARGE, _LARGE_FORM = 2**18, 2**16
_MOST_FIELDS = 10_000
_MOST_KEYS = 10_000  # in JSON: each may be a fault, and pydantic tells of all of them


@dataclass(frozen=True)
class Given(Generic[S]):
    """What a request says, and the files that came with it."""

    says: S
    files: Sequence[bytes] = ()


async def read(request: Request, schema: type[S]) -> Given[S]:
    """The body of a request, checked.

    Raises:
        ApiError: 415 for what is neither JSON nor a form, 413 for JSON that is too deep or long, 422 for the rest.
    """
    settings, body = request.app.state.settings, await request.body()
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        if len(body) <= _LARGE_FORM:
            return await _parse_form(body, request.headers, schema, settings)
        return await request.app.state.features.run(
            lambda: asyncio.run(_parse_form(body, request.headers, schema, settings))
        )
    if kind != "application/json":
        raise ApiError(415, "send application/json, or multipart/form-data with files", code="unsupported_media_type")
    if len(body) <= _LARGE:
        return Given(parse(body, schema, settings))
    return Given(await request.app.state.features.run(parse, body, schema, settings))


def parse(body: bytes, schema: type[S], settings: Settings) -> S:
    """JSON as the schema has it."""
    return _validated(_json(body, "", settings), schema)


def _validated(values: Any, schema: type[S]) -> S:
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise of_validation(error.errors(include_url=False, include_input=False)) from None


def _json(data: bytes, name: str, settings: Settings) -> Any:
    """JSON of the field `name`, or of the whole body. orjson takes nothing beyond JSON: no NaN, no UTF-16, no half of a
    surrogate pair. Of a key that is there twice it takes the last: the standard library is asked for those."""
    check_json(data, settings)
    try:
        values = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        message = f"{name or 'the body'} is no JSON in UTF-8: {error}"
        raise ApiError(422, message, code="invalid_json", param=name or None) from None
    _check_keys(data)
    return values


def _check_keys(data: bytes) -> None:
    """Raises ApiError: 413 for too many keys, 422 for one that is given twice."""
    seen = 0

    def check(pairs: list[tuple[str, Any]]) -> None:
        nonlocal seen
        seen += len(pairs)
        if seen > _MOST_KEYS:
            raise ApiError(413, f"the JSON has more than {_MOST_KEYS:,} keys", code="json_too_long")
        if len(dict(pairs)) < len(pairs):
            raise _given_twice(Counter(key for key, _ in pairs).most_common(1)[0][0])

    json.loads(data, object_pairs_hook=check)


def _given_twice(name: str) -> ApiError:
    shown = printable_name(name[:80])
    return ApiError(422, f"{shown} is given several times: give it once", code="duplicate_key", param=shown)


async def image_bytes(request: Request, image: Image, param: str) -> bytes:
    """The file that a data URI or a URL stands for; what is in it is looked at later.

    Raises:
        ApiError: 422 for what is neither, and for URLs where they are not allowed.
    """
    given = image if isinstance(image, str) else _url(image)
    scheme = given[:8].partition(":")[0].lower()
    if scheme == "data":
        if len(given) <= _LARGE:
            return _decode(given, param)
        return await request.app.state.features.run(_decode, given, param)
    if scheme in ("http", "https"):
        return await _fetch(request, given, param)
    raise ApiError(
        422, f"{param} is no image: send a data: URI, or a file in a form", code="invalid_image", param=param
    )


def check_count(n: int, settings: Settings, what: str, param: str) -> None:
    """Raises ApiError for none, and for more than a request may have."""
    if not n:
        raise ApiError(422, f"there are no {what}", code="nothing_given", param=param)
    if n > settings.max_items:
        raise ApiError(
            422, f"{n:,} {what} in one request: send at most {settings.max_items}", code="too_many_items", param=param
        )


def check_text(text: str, settings: Settings, param: str) -> str:
    """Raises ApiError for a text that is too long, or empty."""
    if len(text) > settings.max_text:
        message = f"{param} has {len(text):,} characters: send at most {settings.max_text:,}"
        raise ApiError(422, message, code="text_too_long", param=param)
    if not text.strip():
        raise ApiError(422, f"{param} has no text in it", code="nothing_given", param=param)
    return text


def _url(part: ImagePart) -> str:
    return part.image_url if isinstance(part.image_url, str) else part.image_url.url


def _decode(uri: str, param: str) -> bytes:
    head, comma, data = uri.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise ApiError(
            422, f"{param} is no data URI in base64: data:image/jpeg;base64,…", code="invalid_image", param=param
        )
    try:
        return pybase64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(422, f"the base64 of {param} is damaged", code="invalid_image", param=param) from None


async def _fetch(request: Request, url: str, param: str) -> bytes:
    if not request.app.state.settings.allow_urls:
        message = "this server fetches no URLs (it was started without --allow-urls): send the image itself"
        raise ApiError(422, message, code="urls_not_allowed", param=param)
    return await fetch(request, url, param)


class _Form(MultiPartParser):
    """Starlette's reader of forms. A file stays in memory, as the body is already, and never goes to the disk."""

    spool_max_size = 2**40


async def _parse_form(body: bytes, headers: Headers, schema: type[S], settings: Settings) -> Given[S]:
    """A form: fields of the schema's names, those that are lists given several times, and files."""
    _, options = parse_options_header(headers["content-type"])
    if options.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"utf8"):  # the parser takes any codec of Python's
        raise ApiError(415, "the form has another charset than UTF-8: send that", code="unsupported_media_type")
    end = b"--" + options.get(b"boundary", b"") + b"--"  # of the last part (RFC 2046, section 5.1.1)
    if not body.rstrip(b"\r\n").endswith(end):  # the parser leaves out a part that is cut off
        raise ApiError(422, "the form is cut off: send it whole", code="invalid_form")

    async def pieces() -> AsyncGenerator[bytes]:
        yield body

    parser = _Form(
        headers, pieces(), max_files=settings.max_items, max_fields=_MOST_FIELDS, max_part_size=settings.max_body
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise ApiError(422, f"the form cannot be read: {error.message}", code="invalid_form") from None
    files = [value.file.read() for _, value in form.multi_items() if isinstance(value, UploadFile)]
    await form.close()
    return Given(_validated(_fields(form, schema, settings), schema), files)


def _fields(form: FormData, schema: type[BaseModel], settings: Settings) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name in form:
        values = [value for value in form.getlist(name) if isinstance(value, str)]
        if not values:
            continue
        kind = str(schema.model_fields[name].annotation) if name in schema.model_fields else ""
        is_json = "dict[" in kind or "Message" in kind
        if "list[" in kind and not is_json:
            fields[name] = values
        elif len(values) > 1:
            raise _given_twice(name)
        else:
            fields[name] = _json(values[0].encode(), name, settings) if is_json else values[0]
    return fields
