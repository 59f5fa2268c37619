"""Which model is served, and how the server is: models, templates, health, ready and metrics."""

import asyncio
import os
import time
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from sightline.config import available_models
from sightline.encoder import Encoder
from sightline.hub import STARTER
from sightline.server.documents import ERRORS
from sightline.server.errors import ApiError, logger, unavailable
from sightline.server.features import Features
from sightline.server.schemas import ModelsReply, ServedModel, State, TemplatesReply
from sightline.templates import available_template_sets, template_set

router = APIRouter()
_PATIENCE = 30.0  # seconds for a real embedding, behind whatever waits
_STARTED = int(time.time())


def public_name(clip: Encoder) -> str:
    """What clients call the model: a published name, or the last part of a path, which is nobody's business."""
    name = clip.name
    if name in (STARTER, *available_models()) or name.startswith("hf-hub:"):
        return name
    return os.path.basename(os.path.normpath(name)) if os.sep in name or Path(name).exists() else name


def check_model(request: Request, asked: str | None) -> str:
    """The name of the model that is served. Raises ApiError 404 if another was asked for."""
    name = public_name(request.app.state.features.clip)
    if asked not in (None, "", name):
        raise ApiError(
            404, f"this server has one model, {name!r}: name that, or none", code="model_not_found", param="model"
        )
    return name


@router.get("/v1/models", response_model=ModelsReply, responses=ERRORS, tags=["status"])
async def models(request: Request) -> Response:
    """The one model that is served."""
    return JSONResponse({"object": "list", "data": [_served(request.app.state.features.clip)]})


@router.get("/v1/models/{name:path}", response_model=ServedModel, responses=ERRORS, tags=["status"])
async def model(request: Request, name: str) -> Response:
    """The same, by its name."""
    check_model(request, name or "/")  # no name is fine in a request, and no route here
    return JSONResponse(_served(request.app.state.features.clip))


@router.get("/v1/templates", response_model=TemplatesReply, responses=ERRORS, tags=["status"])
async def templates() -> Response:
    """The published template sets, to be named in `templates`."""
    sets = [{"name": name, "templates": list(template_set(name).templates)} for name in available_template_sets()]
    return JSONResponse({"object": "list", "data": sets})


@router.get("/health", response_model=State, tags=["status"])
async def health() -> Response:
    """Whether the server is alive; for whether it can work, ask /ready."""
    return JSONResponse({"status": "alive"})


@router.get("/ready", response_model=State, responses=ERRORS, tags=["status"])
async def ready(request: Request) -> Response:
    """Whether the model encodes: an image and a text are."""
    features: Features = request.app.state.features
    try:
        await asyncio.wait_for(features.probe(), _PATIENCE)
    except TimeoutError:
        raise unavailable(f"the encoder did not answer within {_PATIENCE:g} s") from None
    except ApiError as error:
        raise unavailable(error.message) from None
    except Exception as error:
        logger.error("a probe failed", exc_info=error)
        raise unavailable("the encoder fails; the server's log says why") from None
    return JSONResponse({"status": "ready"})


@router.get("/metrics", tags=["status"], response_class=Response)
async def metrics(request: Request) -> Response:
    """For Prometheus."""
    return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _served(clip: Encoder) -> dict[str, object]:
    config = clip.engine.config
    return {
        "id": public_name(clip),
        "object": "model",
        "created": _STARTED,
        "owned_by": "sightline",
        "embed_dim": clip.embed_dim,
        "image_size": clip.preprocess.image_size,
        "context_length": config.text.context_length,
        "precision": clip.engine.precision,
    }
