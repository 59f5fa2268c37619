"""Images and texts of requests to unit features: remembered, else prepared in threads and encoded in batches."""

import asyncio
import hashlib
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import orjson
import torch

from sightline.encoder import Encoder
from sightline.errors import ImageError, SightlineError
from sightline.images import MAX_PIXELS, open_header
from sightline.server.batching import Batcher, Encode
from sightline.server.errors import ApiError, of_sightline
from sightline.server.metrics import Metrics
from sightline.server.settings import Settings
from sightline.templates import TemplateSet, fill

T = TypeVar("T")
# Seconds after which Python's lock goes to another thread that waits. The encoding thread takes it anew after each
# operator of a model: beside an event loop that is busy with refusals it would wait Python's own 5 ms each time.
_SWITCH = 0.0005
_THREADS = os.cpu_count() or 1
_LABEL_SETS, _MOST_LABELS = 64, 500  # sets of labels whose classes are kept together, and labels in one


@dataclass(frozen=True, slots=True)
class Feature:
    """A unit feature (embed_dim,), float32, and how many tokens the text had (0 of an image)."""

    vector: np.ndarray
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What the model takes: pixels (image_size, image_size, 3) or ids (context_length,); and what it is known by."""

    inputs: np.ndarray
    key: bytes
    tokens: int = 0


class Features:
    """The model of a server, for many requests at once. Its methods are called in the event loop.

    Args:
        clip: the model.
        settings: the limits.
        metrics: where batches, queue and remembered features are counted.
    """

    def __init__(self, clip: Encoder, settings: Settings, metrics: Metrics):
        self.clip, self.settings = clip, settings
        self._metrics = metrics
        self._remembered = _Remembered(settings.cache_size)
        self._label_sets = _Remembered(min(_LABEL_SETS, settings.cache_size))
        self._margin: float | None = None
        encoders: dict[str, Encode] = {"image": self._encode_images, "text": self._encode_texts}
        self.batcher = Batcher(
            {kind: encoders[kind] for kind in encoders if clip.engine.towers in ("both", kind)},
            batch_size=settings.batch_size,
            deadline=settings.deadline_ms / 1000,
            queue_length=settings.queue_length,
            metrics=metrics,
        )

    async def start(self) -> None:
        """Prepare both towers, so that the first request does not wait for it."""
        sys.setswitchinterval(_SWITCH)
        self._decoders = ThreadPoolExecutor(_THREADS, thread_name_prefix="decode")
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="work")
        self._margin = await self.run(self.clip.jpeg_margin, ())
        self.batcher.start()
        await self.probe()

    async def close(self) -> None:
        await self.batcher.close()
        self._pool.shutdown(cancel_futures=True)
        self._decoders.shutdown(cancel_futures=True)

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """A call that may take a while, in a thread; but no images, which have threads of their own."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    async def images(self, images: Sequence[bytes]) -> list[Feature | BaseException]:
        """The feature of each image file, or why there is none: an ImageError, or what the model failed with.

        Raises:
            ApiError: 429 if the queue has no room for them, 503 if the encoder is being started again.
        """
        return await self._features("image", images, self._prepare_images)

    async def texts(self, texts: Sequence[str]) -> list[Feature | BaseException]:
        """The feature of each text, or why there is none: a TextTooLongError, or what the model failed with.

        Raises:
            ApiError: as `images`.
        """
        return await self._features("text", texts, self._prepare_texts)

    async def classes(self, prompts: Sequence[Sequence[str]], param: str = "labels") -> np.ndarray:
        """The unit feature of each class, (n_classes, embed_dim): the mean over its prompts, normalised.

        Raises:
            ApiError: for a prompt that cannot be encoded, by its place in `param`, and as `texts`.
        """
        keys = [_key("class", "\0".join(group).encode("utf-8", "surrogatepass")) for group in prompts]
        known = {key: self._remembered.get(key) for key in keys}
        wanted = {key: group for key, group in zip(keys, prompts, strict=True) if known[key] is None}
        self._metrics.remembered.labels("class").inc(len(keys) - len(wanted))
        if wanted:
            places = {key: f"{param}[{number}]" for number, key in enumerate(keys)}
            parts = [(places[key], prompt) for key, group in wanted.items() for prompt in group]
            encoded = await self._encode_in_turns(parts)
            means = _unit_means(encoded, [len(group) for group in wanted.values()])
            for key, mean in zip(wanted, means, strict=True):
                known[key] = mean
                self._remembered.put(key, mean)
        return np.stack([known[key] for key in keys])

    async def label_classes(self, labels: Sequence[str], templates: TemplateSet, param: str) -> np.ndarray:
        """The unit feature of each label put into templates, as `classes`: labels that come again cost nothing."""
        key = _key("labels", orjson.dumps([templates.templates, labels]))
        known = self._label_sets.get(key)
        if known is not None:
            self._metrics.remembered.labels("class").inc(len(labels))
            return known
        classes = await self.classes([fill(templates, label) for label in labels], param)
        if len(labels) <= _MOST_LABELS:
            self._label_sets.put(key, classes)
        return classes

    async def probe(self) -> None:
        """Encode one of each kind that the model has a tower for, past what is remembered.

        Raises:
            ApiError, or whatever the model failed with.
        """
        size = self.clip.preprocess.image_size
        inputs = {"image": np.zeros((size, size, 3), np.uint8), "text": self.clip.tokenizer.batch(["a photo."])[0]}
        for kind in inputs:
            if self.clip.engine.towers in ("both", kind):
                with self.batcher.room(kind, 1):
                    found = (await self.batcher.encode(kind, [_Prepared(inputs[kind], b"")]))[0]
                if isinstance(found, BaseException):
                    raise found

    async def _encode_in_turns(self, prompts: list[tuple[str, str]]) -> np.ndarray:
        """Features (n, embed_dim) of prompts, each with its place in the request, a part at a time: others get their
        turn, and the queue has room."""
        step, rows = 2 * self.settings.batch_size, []
        for start in range(0, len(prompts), step):
            part = prompts[start : start + step]
            features = await self._features("text", [prompt for _, prompt in part], self._prepare_texts, keep=False)
            for (place, _), feature in zip(part, features, strict=True):
                if isinstance(feature, BaseException):
                    raise of_sightline(feature, place)
                rows.append(feature.vector)
        return np.stack(rows)

    async def _features(
        self, kind: str, inputs: Sequence[Any], prepare: Callable[[Any], Awaitable[list[Any]]], *, keep: bool = True
    ) -> list[Feature | BaseException]:
        """The feature of each input. Not to `keep` the new ones leaves the others remembered."""
        if kind not in self.batcher.kinds:
            raise ApiError(422, f"the model that is served has no {kind} tower", code="no_such_tower")
        with self.batcher.room(kind, len(inputs)):
            prepared = await prepare(inputs)
            new = [item for item in prepared if isinstance(item, _Prepared)]
            encoded = iter(await self.batcher.encode(kind, new))
        found = [(item, next(encoded)) if isinstance(item, _Prepared) else (None, item) for item in prepared]
        self._metrics.remembered.labels(kind).inc(sum(isinstance(item, Feature) for item in prepared))
        return [self._finished(item, result, keep) for item, result in found]

    def _finished(self, item: _Prepared | None, result: Any, keep: bool) -> Feature | BaseException:
        if item is None or isinstance(result, BaseException):
            return result
        feature = Feature(result, item.tokens)
        if keep:
            self._remembered.put(item.key, feature)
        return feature

    async def _prepare_images(self, images: Sequence[bytes]) -> list[_Prepared | Feature | SightlineError]:
        """As `_prepare_image`, as many at once as there are threads: who brings many slow ones leaves others a turn."""
        turns, loop = asyncio.Semaphore(_THREADS), asyncio.get_running_loop()

        async def prepare(image: bytes) -> _Prepared | Feature | SightlineError:
            async with turns:
                return await loop.run_in_executor(self._decoders, self._prepare_image, image)

        return await asyncio.gather(*map(prepare, images))

    def _prepare_image(self, image: bytes) -> _Prepared | Feature | SightlineError:
        """In a thread: an image's pixels, its feature if it is known, or why it is refused."""
        key = _key("image", image)
        if (known := self._remembered.get(key)) is not None:
            return known
        try:
            with open_header(image) as header:
                if header.width * header.height > self.settings.max_pixels:
                    return ImageError("<bytes>", f"has more than {self.settings.max_pixels:,} pixels")
            return _Prepared(self.clip.preprocess.pixels(image, margin=self._margin), key)
        except ImageError as error:  # anew: a traceback would keep the file's bytes alive
            reason = error.reason.replace(f"{MAX_PIXELS:,}", f"{self.settings.max_pixels:,}")  # the reader's own limit
            return ImageError(error.name, reason)

    async def _prepare_texts(self, texts: Sequence[str]) -> list[_Prepared | Feature | SightlineError]:
        """As `_prepare_text`, all in one thread: each takes moments."""
        return await self.run(lambda: [self._prepare_text(text) for text in texts])

    def _prepare_text(self, text: str) -> _Prepared | Feature | SightlineError:
        """In a thread: a text's ids, its feature if it is known, or why it is refused."""
        try:
            ids = self.clip.tokenizer.batch([text])[0]
        except SightlineError as error:
            return type(error)(*error.args)
        tokens = int(ids.argmax()) + 1
        key = _key("text", ids[:tokens].tobytes())
        known = self._remembered.get(key)
        return _Prepared(ids, key, tokens) if known is None else known

    def _encode_images(self, items: list[_Prepared]) -> np.ndarray:
        """In the encoding thread: unit features (n, embed_dim)."""
        pixels = torch.from_numpy(np.stack([item.inputs for item in items])).permute(0, 3, 1, 2)
        features = self.clip.engine.encode_image(self.clip.preprocess.normalise(pixels.to(self.clip.device)))
        return features.cpu().numpy()

    def _encode_texts(self, items: list[_Prepared]) -> np.ndarray:
        return self.clip.engine.encode_text(np.stack([item.inputs for item in items]), len(items))


class _Remembered:
    """The features used last, by a hash of what they are of. Any thread may ask."""

    def __init__(self, size: int):
        self._size = size
        self._known: OrderedDict[bytes, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes) -> Any:
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
            return self._known.get(key)

    def put(self, key: bytes, feature: Any) -> None:
        if not self._size:
            return
        with self._lock:
            self._known[key] = feature
            self._known.move_to_end(key)
            while len(self._known) > self._size:
                self._known.popitem(last=False)


def _key(kind: str, content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=20, person=kind.encode()).digest()


def _unit_means(features: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """The mean of each group of so many features, normalised (paper section 3.1.4)."""
    mean = np.stack([part.mean(axis=0) for part in np.split(features, np.cumsum(sizes)[:-1])])
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)
