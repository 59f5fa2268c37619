"""The server as one ASGI application."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI

import sightline
from sightline.encoder import Encoder
from sightline.server import classify, embeddings, explaining, mapping, pages, photos, status
from sightline.server.documents import document
from sightline.server.errors import add_handlers
from sightline.server.explaining import Explainer
from sightline.server.features import Features
from sightline.server.library import Library
from sightline.server.limits import Guard
from sightline.server.mapping import MapMaker
from sightline.server.metrics import Metrics
from sightline.server.photo_schemas import ExplainRequest, SearchRequest, SimilarRequest
from sightline.server.pictures import Pictures
from sightline.server.schemas import ClassifyRequest, EmbeddingsRequest, RankRequest
from sightline.server.settings import Settings


def create_app(clip: Encoder, *, index: Path | None = None, settings: Settings | None = None) -> FastAPI:
    """The server of a model, and of an index where there is one.

    Routes find what they need in `request.app.state`: `features` (images and texts to features, in batches),
    `settings`, `metrics`, `explainer`, `pictures`, and `library` and `map_maker`, which are None without an index.

    Args:
        clip: the model.
        index: the folder of an index that this model made.
        settings: its limits; by default, those for a server on loopback.
    """
    settings = settings or Settings()
    metrics = Metrics()
    features = Features(clip, settings, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            await features.start()
            async with _photos(app, index, clip):
                yield
        finally:
            await features.close()

    app = FastAPI(
        title="Sightline",
        summary="CLIP: embeddings, zero-shot classification and search of images and texts.",
        version=sightline.__version__,
        docs_url=None,  # that page loads its scripts from another site
        redoc_url=None,
        redirect_slashes=False,  # that would name the place as `Host` does, whatever is in it
        lifespan=lifespan,
    )
    app.state.features, app.state.settings, app.state.metrics = features, settings, metrics
    add_handlers(app)
    for room in (embeddings, classify, photos, mapping, explaining, status, pages):
        app.include_router(room.router)
    document(app, EmbeddingsRequest, ClassifyRequest, RankRequest, SearchRequest, SimilarRequest, ExplainRequest)
    app.add_middleware(Guard, settings=settings, metrics=metrics, batcher=features.batcher)
    return app


@asynccontextmanager
async def _photos(app: FastAPI, index: Path | None, clip: Encoder) -> AsyncIterator[None]:
    """What the routes about photos need, with threads of their own."""
    state = app.state
    state.pictures, state.explainer = Pictures(), Explainer(clip)
    state.library = state.map_maker = None
    if index is not None:
        state.library = Library(index, clip)
        state.map_maker = MapMaker(index, clip, state.library.ids.seal)
    yield
    state.explainer.close()
    state.pictures.close()
    if state.library is not None:
        state.map_maker.close()
        await state.library.close()
