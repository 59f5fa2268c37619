"""POST /v1/explain: where in a photo a text is found. One at a time: each is as much work as encoding 59 images."""

import asyncio
import base64
import io
from concurrent.futures import ThreadPoolExecutor

from fastapi import APIRouter, Request
from fastapi.responses import Response
from PIL import Image

from sightline.encoder import Encoder
from sightline.errors import SightlineError, TextTooLongError
from sightline.explain import HeatMap, heat_maps
from sightline.heat_picture import HOTTEST, overlay
from sightline.images import read_image
from sightline.server.documents import ERRORS, body_of
from sightline.server.embeddings import json_reply
from sightline.server.errors import ApiError, busy, of_sightline
from sightline.server.features import Features
from sightline.server.photo_schemas import ExplainReply, ExplainRequest
from sightline.server.photos import feature_of, library_of
from sightline.server.pictures import WHOLE
from sightline.server.reading import Given, check_count, check_text, image_bytes, read
from sightline.server.status import check_model

router = APIRouter(prefix="/v1", responses=ERRORS, tags=["model"])
_MOST_WAITING = 8
_SECONDS = 2  # after which it is worth asking again


class Explainer:
    """Makes heat maps in a thread of its own."""

    def __init__(self, clip: Encoder):
        self._clip = clip
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="explain")
        self._waiting = 0

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def maps(
        self, photo: Image.Image | bytes, texts: list[str], max_pixels: int, with_picture: bool
    ) -> list[tuple[HeatMap, str | None]]:
        """The map of each text, and its picture as a data URI; raises ApiError 429 if too many wait."""
        if self._waiting >= _MOST_WAITING:
            raise busy(_SECONDS)
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._pool, self._maps, photo, texts, max_pixels, with_picture)
        finally:
            self._waiting -= 1

    def _maps(
        self, photo: Image.Image | bytes, texts: list[str], max_pixels: int, with_picture: bool
    ) -> list[tuple[HeatMap, str | None]]:
        image = photo if isinstance(photo, Image.Image) else read_image(photo, max_pixels=max_pixels)
        image.thumbnail((WHOLE, WHOLE), Image.Resampling.LANCZOS)
        side = int(WHOLE / len(texts) ** 0.5)  # all pictures together have no more pixels than one may have
        return [
            (heat, _data_uri(overlay(image, heat), side) if with_picture else None)
            for heat in heat_maps(self._clip, image, texts)
        ]


@router.post("/explain", response_model=ExplainReply, openapi_extra=body_of(ExplainRequest))
async def explain(request: Request) -> Response:
    """Where in a photo each text is found."""
    given = await read(request, ExplainRequest)
    features: Features = request.app.state.features
    name, texts = check_model(request, given.says.model), given.says.texts
    if features.clip.engine.towers != "both":
        raise ApiError(422, "the model that is served has no second tower", code="no_such_tower")
    check_count(len(texts), features.settings, "texts", "texts")
    for number, text in enumerate(texts):
        check_text(text, features.settings, f"texts[{number}]")
    photo = await _photo(request, given)
    explainer: Explainer = request.app.state.explainer
    try:
        made = await explainer.maps(photo, texts, features.settings.max_pixels, given.says.picture)
    except SightlineError as error:
        raise of_sightline(error, "texts" if isinstance(error, TextTooLongError) else _place(given)) from None
    rows = [_row(heat, picture) for heat, picture in made]
    return json_reply({"object": "list", "model": name, "hottest": HOTTEST, "data": rows})


async def _photo(request: Request, given: Given[ExplainRequest]) -> Image.Image | bytes:
    says = given.says
    if (says.image is not None) + (says.id is not None) + len(given.files) != 1:
        raise ApiError(422, "give one `image`, one `file` or one `id`", code="invalid_value", param="image")
    if says.image is not None:
        return await image_bytes(request, says.image, "image")
    if says.id is None:
        return given.files[0]
    library = library_of(request)
    root, rows = await library.rows(feature_of(library, says.id))
    return await request.app.state.pictures.image(root, rows[0])


def _place(given: Given[ExplainRequest]) -> str:
    """Where in the request the photo is."""
    return "file[0]" if given.files else "image" if given.says.image is not None else "id"


def _row(heat: HeatMap, picture: str | None) -> dict[str, object]:
    return {
        "object": "heat_map",
        "text": heat.text,
        "score": round(heat.score, 6),
        "fit": round(heat.fit, 6),
        "grid": [[round(value, 4) for value in row] for row in heat.grid.tolist()],
        "square": list(heat.square),
        "size": list(heat.size),
        "picture": picture,
    }


def _data_uri(picture: Image.Image, side: int) -> str:
    """A PNG with at most `side` pixels in each direction."""
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
