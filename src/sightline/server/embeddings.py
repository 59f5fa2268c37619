"""POST /v1/embeddings: texts and images to unit features, in OpenAI's shape."""

import base64
import json
from collections.abc import Sequence

import numpy as np
import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from sightline.server.documents import ERRORS, body_of
from sightline.server.errors import ApiError, of_sightline
from sightline.server.features import Feature, Features
from sightline.server.reading import Given, check_count, check_text, image_bytes, read
from sightline.server.schemas import EmbeddingsReply, EmbeddingsRequest, ImagePart, TextPart
from sightline.server.status import check_model

router = APIRouter(prefix="/v1", responses=ERRORS, tags=["model"])
_Part = str | TextPart | ImagePart


@router.post("/embeddings", response_model=EmbeddingsReply, openapi_extra=body_of(EmbeddingsRequest))
async def embeddings(request: Request) -> Response:
    """The unit feature of each text and image, in the order given."""
    given = await read(request, EmbeddingsRequest)
    features: Features = request.app.state.features
    name = check_model(request, given.says.model)
    _check_dimensions(given.says.dimensions, features.clip.embed_dim)
    found = await encode(features, await _inputs(request, given))
    tokens = sum(feature.tokens for feature in found)
    as_base64 = given.says.encoding_format == "base64"
    rows = [
        {"object": "embedding", "index": index, "embedding": _written(feature.vector, as_base64)}
        for index, feature in enumerate(found)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    content = {"object": "list", "model": name, "data": rows, "usage": usage}
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


async def encode(features: Features, inputs: Sequence[tuple[str, str | bytes]]) -> list[Feature]:
    """The features of texts and of the bytes of images, each with the part of the request it came from.

    Raises:
        ApiError: for the first that failed, naming its part.
    """
    found: dict[int, Feature | BaseException] = {}
    texts = {place: what for place, (_, what) in enumerate(inputs) if isinstance(what, str)}
    images = {place: what for place, (_, what) in enumerate(inputs) if isinstance(what, bytes)}
    if texts:
        found |= zip(texts, await features.texts(list(texts.values())), strict=True)
    if images:
        found |= zip(images, await features.images(list(images.values())), strict=True)
    rows = []
    for place, (param, _) in enumerate(inputs):
        feature = found[place]
        if isinstance(feature, Feature):
            rows.append(feature)
        else:
            raise of_sightline(feature, param)
    return rows


def json_reply(content: object) -> Response:
    return Response(json.dumps(content, allow_nan=False), media_type="application/json")


async def _inputs(request: Request, given: Given[EmbeddingsRequest]) -> list[tuple[str, str | bytes]]:
    says, settings = given.says, request.app.state.settings
    if says.input is not None and says.messages is not None:
        message = "`input` and `messages` are both given: leave one out"
        raise ApiError(422, message, code="invalid_value", param="messages")
    parts = _of_messages(says) if says.messages is not None else _of_input(says)
    check_count(len(parts) + len(given.files), settings, "inputs", "input")
    inputs: list[tuple[str, str | bytes]] = []
    for place, part in parts:
        if isinstance(part, ImagePart) or (isinstance(part, str) and _is_image(part, says.modality)):
            inputs.append((place, await image_bytes(request, part, place)))
        else:
            inputs.append((place, check_text(part.text if isinstance(part, TextPart) else part, settings, place)))
    return [*inputs, *((f"file[{number}]", file) for number, file in enumerate(given.files))]


def _of_input(says: EmbeddingsRequest) -> list[tuple[str, _Part]]:
    if isinstance(says.input, str):
        return [("input", says.input)]
    return [(f"input[{number}]", part) for number, part in enumerate(says.input or [])]


def _of_messages(says: EmbeddingsRequest) -> list[tuple[str, _Part]]:
    return [
        (f"messages[{number}].content[{place}]", part)
        for number, message in enumerate(says.messages or [])
        for place, part in enumerate([message.content] if isinstance(message.content, str) else message.content)
    ]


def _is_image(text: str, modality: str | None) -> bool:
    return text[:11].lower() == "data:image/" if modality is None else modality == "image"


def _check_dimensions(wanted: int | None, embed_dim: int) -> None:
    if wanted not in (None, embed_dim):
        message = f"the features of this model have {embed_dim} numbers: leave `dimensions` out"
        raise ApiError(422, message, code="invalid_value", param="dimensions")


def _written(vector: np.ndarray, as_base64: bool) -> str | np.ndarray:
    """Numbers are written with the digits that a float32 needs, and no more."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if as_base64 else np.ascontiguousarray(vector)
