"""The photos of the index: /v1/search, /v1/similar and /v1/photos."""

import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from sightline.errors import InvalidArgumentError
from sightline.images import printable_name
from sightline.index.catalogue import Catalogue, Row
from sightline.index.filters import Filters, checked_dates, checked_place, checked_types
from sightline.index.queries import Term as QueryTerm
from sightline.server.documents import ERRORS, body_of
from sightline.server.embeddings import encode, json_reply
from sightline.server.errors import ApiError, of_sightline
from sightline.server.library import EncodedQuery, Found, Library, not_found
from sightline.server.photo_schemas import Among, Photo, PhotosReply, SearchReply, SearchRequest, SimilarRequest, Term
from sightline.server.pictures import THUMBNAIL, WHOLE, Pictures
from sightline.server.reading import check_text, image_bytes, read
from sightline.server.settings import Settings
from sightline.server.status import check_model

_NOT_FOUND: dict[int | str, dict[str, Any]] = {
    404: {**ERRORS[404], "description": "No such photo, no index, or another model"}
}
_PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}},
    304: {"description": "The client has it"},
}
_MOST_TERMS = 32
_CHECKS: dict[str, Callable[[Among], object]] = {
    "after": lambda says: checked_dates(says.after, None),
    "before": lambda says: checked_dates(says.after, says.before),
    "near": lambda says: says.near and checked_place((says.near[0], says.near[1])),
    "types": lambda says: checked_types(says.types),
}

router = APIRouter(prefix="/v1", responses=ERRORS | _NOT_FOUND, tags=["photos"])


@router.post("/search", response_model=SearchReply, openapi_extra=body_of(SearchRequest))
async def search(request: Request) -> Response:
    """Photos by what they show, best first; and of a text, how sure each is and whether any matches."""
    library = library_of(request)
    given = await read(request, SearchRequest)
    says = given.says
    name = check_model(request, says.model)
    parts = [
        *([] if says.query is None else [("query", Term(text=says.query), 1.0)]),
        *((f"images[{number}]", Term(image=image), 1.0) for number, image in enumerate(says.images)),
        *((f"file[{number}]", file, 1.0) for number, file in enumerate(given.files)),
        *_terms("add", says.add, 1),
        *_terms("subtract", says.subtract, -1),
    ]
    filters = _filters(says, request.app.state.settings)
    query = await _query(request, library, parts)
    try:
        found = await library.search(query, says.top_k, filters, says.min_score)
    except InvalidArgumentError as error:  # the filters have been looked at
        raise of_sightline(error, "query") from None
    return _found(name, library, found, query.is_one_text)


@router.post("/similar", response_model=SearchReply, openapi_extra=body_of(SimilarRequest))
async def similar(request: Request) -> Response:
    """Photos like one of the index, which is not encoded again."""
    library = library_of(request)
    says = (await read(request, SimilarRequest)).says
    name, own = check_model(request, says.model), feature_of(library, says.id)
    query = await _query(request, library, [("id", own, 1.0)])
    filters = _filters(says, request.app.state.settings)
    return _found(name, library, await library.search(query, says.top_k, filters, says.min_score, own), False)


@router.get("/photos", response_model=PhotosReply)
async def photos(request: Request) -> Response:
    """What is in the index: nothing where the server has none."""
    library: Library | None = request.app.state.library
    kinds = {} if library is None else await library.ask(_count)
    counts = {"count": kinds.get("photo", 0), "videos": kinds.get("video", 0)}
    return JSONResponse({"object": "photos", **counts, "map": library is not None and find_spec("sklearn") is not None})


@router.get("/photos/{id}", response_model=Photo)
async def photo(request: Request, id: str) -> Response:
    """What is known of a photo."""
    library = library_of(request)
    feature = feature_of(library, id)
    _, rows = await library.rows(feature)
    return json_reply({"object": "photo", "id": id, **_known(rows)})


@router.get("/photos/{id}/thumbnail", response_class=Response, responses=_PICTURE)
async def thumbnail(request: Request, id: str) -> Response:
    """A photo made small, at most 320 pixels in each direction, as a JPEG without metadata."""
    return await _picture(request, id, THUMBNAIL)


@router.get("/photos/{id}/image", response_class=Response, responses=_PICTURE)
async def image(request: Request, id: str) -> Response:
    """A photo, or the moment of a video, at most 2,048 pixels in each direction, as a JPEG without metadata."""
    return await _picture(request, id, WHOLE)


def library_of(request: Request) -> Library:
    """The index that is served; raises ApiError 404 where there is none."""
    library: Library | None = request.app.state.library
    if library is None:
        message = "this server has no index: start it with a folder of photos, as `sightline serve PHOTOS`"
        raise ApiError(404, message, code="no_index")
    return library


def feature_of(library: Library, id: str) -> int:
    """The feature of a photo by its id; raises ApiError 404 for an id that was not given by this server."""
    feature = library.ids.open(id)
    if feature is None:
        raise not_found()
    return feature


def shown_name(path: bytes) -> str:
    """A photo's path from the folder of the photos on, as one line of valid text."""
    return printable_name(os.fsdecode(path))


async def _picture(request: Request, id: str, side: int) -> Response:
    library, pictures = library_of(request), request.app.state.pictures
    assert isinstance(pictures, Pictures)
    root, rows = await library.rows(feature_of(library, id))
    return await pictures.reply(request, root, rows[0], side)


def _terms(place: str, terms: Sequence[str | Term], sign: int) -> list[tuple[str, Any, float]]:
    """Each part of a request with its place in it, what it is, and its weight."""
    parts = []
    for number, given in enumerate(terms):
        term = Term(text=given) if isinstance(given, str) else given
        what = [(kind, value) for kind in ("text", "image", "id") if (value := getattr(term, kind)) is not None]
        param = f"{place}[{number}]"
        if len(what) != 1:
            raise ApiError(422, f"{param}: give one of text, image and id", code="invalid_value", param=param)
        parts.append((param, term, sign * term.weight))
    return parts


async def _query(request: Request, library: Library, parts: Sequence[tuple[str, Any, float]]) -> EncodedQuery:
    """Parts (place, text, image or number of a feature, weight) as a query with their features."""
    if len(parts) > _MOST_TERMS:
        message = f"{len(parts)} terms in one search: give at most {_MOST_TERMS}"
        raise ApiError(422, message, code="too_many_items", param=parts[_MOST_TERMS][0])
    given = [(param, await _resolved(request, library, param, what)) for param, what, _ in parts]
    known = [what for _, what in given if isinstance(what, int)]
    new = [(param, what) for param, what in given if not isinstance(what, int)]
    vectors = iter(await library.vectors(known) if known else [])
    encoded = iter(await encode(request.app.state.features, new))
    features = [next(vectors) if isinstance(what, int) else next(encoded).vector for _, what in given]
    terms = tuple(
        QueryTerm(what if isinstance(what, str) else b"", not isinstance(what, str), weight)
        for (_, what), (_, _, weight) in zip(given, parts, strict=True)
    )
    return EncodedQuery(terms, np.stack(features) if features else np.empty((0, 0), np.float32))


async def _resolved(request: Request, library: Library, param: str, what: Any) -> str | bytes | int:
    """What is to be encoded, or the number of a feature that is known."""
    if not isinstance(what, Term):
        return what
    if what.id is not None:
        return feature_of(library, what.id)
    if what.image is not None:
        return await image_bytes(request, what.image, param)
    return check_text(what.text or "", request.app.state.settings, param)


def _filters(says: Among, settings: Settings) -> Filters:
    """Raises ApiError for one that is none, by its name."""
    for name, check in _CHECKS.items():
        try:
            check(says)
        except InvalidArgumentError as error:
            raise of_sightline(error, name) from None
    return Filters(
        after=says.after,
        before=says.before,
        folder=None if says.folder is None else _folder(says.folder, settings),
        near=None if says.near is None else (says.near[0], says.near[1]),
        within=says.within,
        types=says.types,
        min_size=says.min_size,
    )


def _folder(given: str, settings: Settings) -> str:
    """A folder below that of the photos, and no way out of it."""
    parts = Path(check_text(given, settings, "folder")).parts
    if os.path.isabs(given) or ".." in parts or "\0" in given:
        message = "folder: name one below the folder of the photos, from there on"
        raise ApiError(422, message, code="invalid_value", param="folder")
    return os.path.join(os.curdir, *parts)  # with the dot before it, "~" is nobody's home


def _found(model: str, library: Library, found: Sequence[Found], is_one_text: bool) -> Response:
    rows = [
        {
            "object": "photo",
            "id": library.ids.seal(each.feature),
            "name": shown_name(each.path),
            "kind": each.result.kind,
            "moment": each.result.moment,
            "size": each.result.size,
            "width": each.result.width,
            "height": each.result.height,
            "taken": each.result.taken,
            "copies": len(each.result.copies),
            "score": round(each.result.score, 6),
            "sure": None if each.result.sure is None else round(each.result.sure, 6),
            "match": each.result.match,
        }
        for each in found
    ]
    match = any(row["match"] for row in rows) if is_one_text else None
    sure = rows[0]["sure"] if rows else None
    return json_reply({"object": "list", "model": model, "match": match, "sure": sure, "data": rows})


def _known(rows: Sequence[Row]) -> dict[str, Any]:
    row = rows[0]
    facts = {name: getattr(row, name) for name in ("kind", "moment", "size", "width", "height", "taken")}
    return {"name": shown_name(row.path), **facts, "copies": len(rows) - 1}


def _count(catalogue: Catalogue) -> dict[str, int]:
    """How many photos and videos answer."""
    query = """SELECT kind, count(*) FROM contents WHERE id IN (SELECT content FROM features WHERE generation = ?)
               AND id IN (SELECT content FROM files) GROUP BY kind"""
    return dict(catalogue.connection.execute(query, (catalogue.meta("generation"),)).fetchall())
