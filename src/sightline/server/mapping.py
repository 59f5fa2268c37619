"""GET /v1/map: the photos of the index as a map. That takes minutes for many: it is made in the background and kept."""

import asyncio
import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response

from sightline.encoder import Encoder
from sightline.errors import ImageIndexError, MissingExtraError
from sightline.map import Projection
from sightline.map.library_map import LibraryMap
from sightline.map.page import apart
from sightline.server.documents import ERRORS
from sightline.server.errors import ApiError, of_sightline
from sightline.server.library import Library, unusable
from sightline.server.map_process import MapProcess
from sightline.server.photo_schemas import Computing, MapReply
from sightline.server.photos import library_of, shown_name

_AGAIN = 60.0  # seconds, at least, before a map of photos that have changed since is made anew
_RESPONSES: dict[int | str, dict[str, object]] = {
    202: {"model": Computing, "description": "It is being made: Retry-After says when to come back"},
    404: {**ERRORS[404], "description": "There is no index, or no photo in it"},
    501: {**ERRORS[500], "description": "The server has not the extra [map]"},
}

router = APIRouter(prefix="/v1", responses=ERRORS | _RESPONSES, tags=["photos"])


class MapMaker:
    """The map of an index, and who makes it: a process, and a thread that waits for it.

    Args:
        folder: the index.
        clip: the model that made it.
        seal: numbers of features to ids.
    """

    def __init__(self, folder: Path, clip: Encoder, seal: Callable[[int], str]):
        self.make, self._seal = MapProcess(folder, clip), seal
        self._work: asyncio.Future[bytes] | None = None
        self._kept: bytes | None = None
        self._commit: int | None = None  # of the index, when the last was begun
        self._begun = -_AGAIN

    def current(self, commit: int) -> bytes | None:
        """The map as JSON, made of this commit of the index or of an earlier one; None while the first is made.

        Raises:
            Whatever the last attempt failed with, once; the next call makes another.
        """
        if self._work is not None and self._work.done():
            work, self._work = self._work, None
            self._kept = work.result()
        is_due = self._commit != commit and time.monotonic() - self._begun >= _AGAIN
        if self._work is None and (self._kept is None or is_due):
            self._commit, self._begun = commit, time.monotonic()
            self._work = _in_background(self._make)
        return self._kept

    def _make(self) -> bytes:
        projection = Projection.umap if find_spec("umap") else Projection.pca
        return _as_json(self.make(projection), self._seal)

    def close(self) -> None:
        if self._work is not None:
            self._work.cancel()
        self.make.close()


@router.get("/map", response_model=MapReply)
async def library_map(request: Request) -> Response:
    """What is in the index, in clusters with names, alike photos near each other."""
    library: Library = library_of(request)
    commit, count = await library.ask(lambda catalogue: (catalogue.commit, catalogue.count()))
    if not count:
        raise ApiError(404, "there are no photos in the index", code="no_photos")
    maker: MapMaker = request.app.state.map_maker
    try:
        made = maker.current(commit)
    except ImageIndexError as error:
        raise unusable(error) from None
    except MissingExtraError as error:
        raise ApiError(501, str(error), code="missing_extra") from None
    except Exception as error:
        raise of_sightline(error) from None
    if made is None:
        computing = json.dumps({"object": "map", "status": "computing"})
        return Response(computing, 202, {"retry-after": "1"}, media_type="application/json")
    return Response(made, media_type="application/json")


def _as_json(library: LibraryMap, seal: Callable[[int], str]) -> bytes:
    """In ASCII, with places to four digits."""
    members = [np.flatnonzero(library.clusters == number) for number in range(len(library.names))]
    middles = apart(np.stack([np.median(library.places[some], axis=0) for some in members]))
    clusters = [
        {"name": name, "count": len(some), "x": round(x, 4), "y": round(y, 4)}
        for name, some, (x, y) in zip(library.names, members, middles.tolist(), strict=True)
    ]
    points = [
        {
            "id": seal(files[0].feature),
            "name": shown_name(files[0].path),
            "x": round(x, 4),
            "y": round(y, 4),
            "cluster": cluster,
            "moment": files[0].moment,
        }
        for files, (x, y), cluster in zip(library.rows, library.places.tolist(), library.clusters.tolist(), strict=True)
    ]
    return json.dumps({"object": "map", "total": library.total, "clusters": clusters, "points": points}).encode("ascii")


def _in_background(function: Callable[[], bytes]) -> "asyncio.Future[bytes]":
    """A call in a thread that the end of the process does not wait for."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[bytes] = loop.create_future()

    def settle(result: bytes | BaseException) -> None:
        if future.cancelled():
            pass
        elif isinstance(result, bytes):
            future.set_result(result)
        else:
            future.set_exception(result)

    def run() -> None:
        try:
            result: bytes | BaseException = function()
        except BaseException as error:
            result = error
        with suppress(RuntimeError):  # of a loop that is closed
            loop.call_soon_threadsafe(settle, result)

    threading.Thread(target=run, name="map", daemon=True).start()
    return future
