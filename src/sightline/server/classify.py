"""POST /v1/classify and /v1/rank: images and words held against each other."""

import heapq
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response

from sightline.encoder import Encoder
from sightline.errors import InvalidArgumentError
from sightline.label.rows import Labeller
from sightline.server.documents import ERRORS, body_of
from sightline.server.embeddings import encode, json_reply
from sightline.server.errors import ApiError, of_sightline
from sightline.server.features import Features
from sightline.server.reading import Given, check_count, check_text, image_bytes, read
from sightline.server.schemas import ClassifyReply, ClassifyRequest, LabelSet, RankReply, RankRequest
from sightline.server.settings import Settings
from sightline.server.status import check_model
from sightline.templates import TemplateSet, template_set
from sightline.zero_shot import BACKGROUND, ZeroShotClassifier, softmax

_ROW, _SET = 60, 100  # bytes of an answer beside the label, and the name of the set, at most
_SMALL = 1_000  # images × labels that are weighed in the event loop; more go to a thread
router = APIRouter(prefix="/v1", responses=ERRORS, tags=["model"])


@router.post("/classify", response_model=ClassifyReply, openapi_extra=body_of(ClassifyRequest))
async def classify(request: Request) -> Response:
    """Which labels fit each image best, with probabilities, and whether any does."""
    given = await read(request, ClassifyRequest)
    features: Features = request.app.state.features
    name = check_model(request, given.says.model)
    sets = _label_sets(given.says)
    count = len(given.says.images) + len(given.files)
    check_count(count, features.settings, "images", "images")
    templates = _check_sets(given.says, sets, count, features.settings)
    _check_answer(sets, given.says.top_k, count, features.settings)
    inputs = await _read_images(request, given.says.images, given.files)
    images = np.stack([feature.vector for feature in await encode(features, inputs)])
    background = (await features.classes([BACKGROUND]))[0]
    results = []
    for key, labels in sets.items():
        classes = await features.label_classes(labels.labels, templates[key], _place(given.says, key, "labels"))
        asked = (key, labels, images, classes, background, features.clip, given.says)
        is_small = count * len(labels.labels) <= _SMALL
        results.append(_results(*asked) if is_small else await features.run(_results, *asked))
    rows = [
        {"object": "classification", "index": index, "sets": list(of_image)}
        for index, of_image in enumerate(zip(*results, strict=True))
    ]
    return json_reply({"object": "list", "model": name, "data": rows})


@router.post("/rank", response_model=RankReply, openapi_extra=body_of(RankRequest))
async def rank_by_fit(request: Request) -> Response:
    """Texts by how well they fit one image, or images by how well they fit one text, best first."""
    given = await read(request, RankRequest)
    features: Features = request.app.state.features
    name = check_model(request, given.says.model)
    one, others = await _sides(request, given)
    first, *rest = await encode(features, [one, *others])
    scores = np.stack([feature.vector for feature in rest]).astype(np.float64) @ first.vector
    shares = softmax(features.clip.scale * scores[None])[0]
    best = np.argsort(-scores, kind="stable")[: given.says.top_k]
    rows = [
        {"object": "rank", "index": int(i), "score": _six_digits(scores[i]), "probability": _six_digits(shares[i])}
        for i in best
    ]
    return json_reply({"object": "list", "model": name, "data": rows})


def _results(
    name: str, asked: LabelSet, images: np.ndarray, classes: np.ndarray, background: np.ndarray, clip: Encoder,
    says: ClassifyRequest,
) -> list[dict[str, Any]]:  # fmt: skip
    """What each image is by one label set."""
    classifier = ZeroShotClassifier.from_features(
        clip, asked.labels, classes, background, independent=asked.independent
    )
    labeller = Labeller(classifier, abstain_below=says.abstain_below, top=says.top_k, background=background)
    rows = [labeller.row("", image) for image in images]
    return [
        {
            "name": name,
            "labels": [{"label": label, "probability": probability} for label, probability in row.ranked],
            "fit": row.fit,
            "abstain": row.abstain,
        }
        for row in rows
    ]


def _six_digits(number: float) -> float:
    """A float32 has no more significant digits than these."""
    return float(f"{number:.6g}")


def _label_sets(says: ClassifyRequest) -> dict[str, LabelSet]:
    """The label sets by name; `labels` alone are one, named "labels"."""
    if (says.labels is None) == (says.label_sets is None):
        raise ApiError(422, "give `labels`, or `label_sets`, and not both", code="invalid_value", param="labels")
    if says.labels is not None:
        return {"labels": LabelSet(labels=says.labels, templates=says.templates, independent=says.independent)}
    if not says.label_sets:
        raise ApiError(422, "there are no label sets", code="nothing_given", param="label_sets")
    return says.label_sets


def _check_sets(
    says: ClassifyRequest, sets: dict[str, LabelSet], images: int, settings: Settings
) -> dict[str, TemplateSet]:
    """The templates of each set. Raises ApiError for labels or templates that cannot be used, or that are too many."""
    param = "labels" if says.label_sets is None else "label_sets"
    labels = sum(len(asked.labels) for asked in sets.values())
    if labels * images > settings.max_pairs:
        message = f"{images} images × {labels:,} labels: send at most {settings.max_pairs:,} pairs"
        raise ApiError(422, message, code="too_many_items", param=param)
    templates = {name: _templates(says, name, asked, settings) for name, asked in sets.items()}
    total = sum(len(asked.labels) * len(templates[name].templates) for name, asked in sets.items())
    if total > settings.max_prompts:
        message = f"{total:,} prompts (labels × templates): send at most {settings.max_prompts:,}"
        raise ApiError(422, message, code="too_many_items", param=param)
    return templates


def _check_answer(sets: Mapping[str, LabelSet], top_k: int, images: int, settings: Settings) -> None:
    """Raises ApiError for an answer that may be longer than it shall be, whichever labels are the best."""

    def longest(asked: LabelSet) -> int:
        labels = heapq.nlargest(top_k, (len(json.dumps(label)) for label in asked.labels))
        return sum(labels) + _ROW * len(labels)

    size = images * sum(len(json.dumps(name)) + _SET + longest(asked) for name, asked in sets.items())
    if size > settings.max_answer:
        message = (
            f"{images} images × {len(sets)} label sets × {top_k} labels may make an answer of {size:,} bytes, and "
            f"{settings.max_answer:,} is the most: lower top_k, or send fewer images"
        )
        raise ApiError(422, message, code="answer_too_large", param="top_k")


def _place(says: ClassifyRequest, name: str, part: str) -> str:
    """Where in a request the `labels` or `templates` of a set are."""
    return part if says.label_sets is None else f"label_sets.{name}.{part}"


def _templates(says: ClassifyRequest, name: str, asked: LabelSet, settings: Settings) -> TemplateSet:
    """The templates of a set whose labels and templates are sound; else an ApiError."""
    check_text(name, settings, "label_sets")
    where, of_templates = _place(says, name, "labels"), _place(says, name, "templates")
    if not asked.labels:
        raise ApiError(422, "there are no labels", code="nothing_given", param=where)
    for number, label in enumerate(asked.labels):
        check_text(label, settings, f"{where}[{number}]")
    for number, template in enumerate([asked.templates] if isinstance(asked.templates, str) else asked.templates):
        check_text(template, settings, of_templates if asked.templates is template else f"{of_templates}[{number}]")
    try:
        return template_set(asked.templates)
    except InvalidArgumentError as error:
        raise of_sightline(error, of_templates) from None


async def _read_images(request: Request, images: Sequence[Any], files: Sequence[bytes]) -> list[tuple[str, bytes]]:
    named = [(f"images[{i}]", await image_bytes(request, image, f"images[{i}]")) for i, image in enumerate(images)]
    return [*named, *((f"file[{i}]", file) for i, file in enumerate(files))]


async def _sides(
    request: Request, given: Given[RankRequest]
) -> tuple[tuple[str, str | bytes], list[tuple[str, str | bytes]]]:
    """What is ranked against, and what is ranked, each with the part of the request it came from."""
    says, settings, files = given.says, request.app.state.settings, given.files
    if says.texts is not None and says.text is None and says.images is None:
        if (says.image is None) != (len(files) == 1):
            raise ApiError(422, "give one image for the texts", code="invalid_value", param="image")
        check_count(len(says.texts), settings, "texts", "texts")
        image = files[0] if says.image is None else await image_bytes(request, says.image, "image")
        return ("image", image), [
            (f"texts[{i}]", check_text(text, settings, f"texts[{i}]")) for i, text in enumerate(says.texts)
        ]
    if says.text is not None and says.texts is None and says.image is None:
        check_count(len(says.images or []) + len(files), settings, "images", "images")
        images = await _read_images(request, says.images or [], files)
        return ("text", check_text(says.text, settings, "text")), [*images]
    message = "give one `image` and `texts`, or one `text` and `images`"
    raise ApiError(422, message, code="invalid_value", param="texts" if says.texts is not None else "text")
