"""Files, images and strings to unit features. `load` is the door: a name in, an `Encoder` out."""

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sightline.checkpoint import build_model, export_checkpoint, read_checkpoint, save_checkpoint
from sightline.config import ModelConfig, Towers, model_config
from sightline.errors import ImageError, InvalidArgumentError, SightlineError
from sightline.hub import STARTER, resolve
from sightline.images import ImageSource, read_image, source_name
from sightline.layouts import Layout
from sightline.models.clip import CLIP
from sightline.preprocess import Preprocess
from sightline.tokenizer import Tokenizer

MODEL_VARIABLE = "SIGHTLINE_MODEL"


def default_model() -> str:
    """The model that is meant when none is named: what SIGHTLINE_MODEL says, else the starter."""
    return os.environ.get(MODEL_VARIABLE) or STARTER


def load(
    name: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    jit: bool = False,
    download_root: str | None = None,
    *,
    towers: Towers = "both",
    config: ModelConfig | str | None = None,
) -> "Encoder":
    """Load a model in float32, ready to encode.

    Args:
        name: a published name ("ViT-B/32"), a folder, a `.pt`, `.bin` or `.safetensors` file, "hf-hub:owner/name"
            (with "@revision" if wanted), or "starter"; `default_model()` when left out.
        device: where it runs; a CUDA device if there is one, else the CPU.
        jit: False; the original has a scripted variant, which Sightline does not need.
        download_root: where published weights are kept; `~/.cache/clip`, as in the original.
        towers: "image" or "text" reads and builds that tower alone, in about that tower's memory.
        config: the configuration (or the name of the architecture) of weights that come without one.

    Returns:
        An `Encoder`, which unpacks into `model, preprocess` as the original's result does.

    Raises:
        ModelNotFoundError, DownloadError: if the name leads to no weights.
        CheckpointError: if the weights cannot be read, or do not fit.
    """
    if jit:
        raise InvalidArgumentError("jit=True is not supported: Sightline's model is one class, leave jit out")
    name = default_model() if name is None else name
    if isinstance(config, str):
        config = model_config(config)
    if config is not None and not isinstance(config, ModelConfig):
        raise InvalidArgumentError(f"config must be a ModelConfig or the name of one, not {type(config).__name__}")
    device = _device(device)
    path = resolve(name, download_root=download_root)
    checkpoint = read_checkpoint(path, config, towers)
    model = build_model(checkpoint, towers).to(device)
    return Encoder(model, checkpoint.tokenizer, str(name))


class Encoder:
    """A model with what belongs to it: `model`, `preprocess`, `tokenizer`, and the `name` it was loaded by.

    `model, preprocess = encoder` unpacks it as the original's `clip.load` result.
    """

    def __init__(self, model: CLIP, tokenizer: Tokenizer, name: str = "a model in memory"):
        self.model = model
        self.preprocess = Preprocess(model.config.vision.image_size, model.config.mean, model.config.std)
        self.tokenizer = tokenizer
        self.name = name

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.preprocess))

    def __getitem__(self, index: int) -> Any:
        return (self.model, self.preprocess)[index]

    def __len__(self) -> int:
        return 2

    def __repr__(self) -> str:
        return f"Encoder({self.name!r}, towers={self.model.towers!r}, device={str(self.device)!r})"

    @property
    def device(self) -> torch.device:
        return self.model.logit_scale.device

    @property
    def embed_dim(self) -> int:
        return self.model.config.embed_dim

    @property
    def scale(self) -> float:
        """What cosines are multiplied by before a softmax: exp(logit_scale)."""
        return float(self.model.logit_scale.detach().exp())

    def encode_images(self, images: "Iterable[ImageSource]", *, batch_size: int = 32) -> np.ndarray:
        """Image features (n, embed_dim), float32, of unit length.

        Args:
            images: paths, bytes, open files or PIL images. A PIL image is preprocessed exactly as the original does.
            batch_size: images that go through the model together.

        Raises:
            ImageError: for the first image that cannot be read. `stream_images` carries on instead.
        """
        rows = []
        for _, feature in self.stream_images(images, batch_size=batch_size):
            if isinstance(feature, SightlineError):
                raise feature
            rows.append(feature)
        return np.stack(rows) if rows else np.empty((0, self.embed_dim), np.float32)

    def stream_images(
        self, images: "Iterable[ImageSource]", *, batch_size: int = 32
    ) -> "Iterator[tuple[ImageSource, np.ndarray | SightlineError]]":
        """Each image with its unit feature (embed_dim,), or with the error it met, in order and a batch at a time.

        Images are decoded in threads while the batch before them is encoded; memory does not grow with their number.
        """
        _check_batch_size(batch_size)
        if isinstance(images, (str, bytes, os.PathLike, Image.Image)):
            raise InvalidArgumentError("images must be a list of images; put brackets around the one")
        if not isinstance(images, Iterable):
            raise InvalidArgumentError(f"images must be a list of images, not {type(images).__name__}")
        sources = iter(images)
        with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode") as pool:
            ahead: deque[tuple[ImageSource, Future]] = deque()
            try:
                while True:
                    for source in islice(sources, 2 * batch_size - len(ahead)):
                        ahead.append((source, pool.submit(self._prepare, source)))
                    if not ahead:
                        return
                    batch = [ahead.popleft() for _ in range(min(batch_size, len(ahead)))]
                    yield from self._encode_batch([(source, future.result()) for source, future in batch])
            finally:
                for _, future in ahead:
                    future.cancel()

    def encode_texts(self, texts: Iterable[str], *, batch_size: int = 64, truncate: bool = False) -> np.ndarray:
        """Text features (n, embed_dim), float32, of unit length.

        Texts are sorted by length and each batch is cut to its longest: the mask is causal, so padding after the end
        token has no part in the result.

        Raises:
            TextTooLongError: for a text that does not fit the context, unless `truncate`.
        """
        _check_batch_size(batch_size)
        tokens = torch.from_numpy(self.tokenizer.batch(texts, truncate=truncate))
        lengths = tokens.argmax(dim=1) + 1
        features = np.empty((len(tokens), self.embed_dim), np.float32)
        for rows in lengths.argsort(stable=True).split(batch_size):
            batch = tokens[rows, : int(lengths[rows].max())] if len(rows) else tokens
            with torch.inference_mode():
                encoded = self.model.encode_text(batch.to(self.device), normalize=True)
            features[rows] = encoded.float().cpu().numpy()
        return features

    def fingerprint(self) -> str:
        """A SHA-256 over configuration, weights and vocabulary: equal where the features are.

        Computed anew each time: no counter tells of every way in which weights can be changed.
        """
        identity = json.dumps([self.model.config.to_dict(), self.tokenizer.fingerprint], sort_keys=True)
        digest = hashlib.sha256(identity.encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def save(self, folder: str | os.PathLike[str], *, card: str = "") -> None:
        """Write the model as Sightline's own folder, which `load` reads back. `card` is its README."""
        save_checkpoint(self.model, self.tokenizer, Path(folder).expanduser(), card=card)

    def export(self, target: str | os.PathLike[str], *, to: Layout) -> None:
        """Write what `transformers`, `open_clip` or the `original` clip loads."""
        export_checkpoint(self.model, self.tokenizer, Path(target).expanduser(), to)

    def _prepare(self, source: "ImageSource") -> Tensor | SightlineError:
        """The image as a tensor, or why not. Errors are made anew: a traceback would keep the file's bytes alive."""
        try:
            return self.preprocess(source if isinstance(source, Image.Image) else read_image(source))
        except ImageError as error:
            return ImageError(source_name(source), error.reason)
        except InvalidArgumentError as error:
            return InvalidArgumentError(*error.args)

    def _encode_batch(
        self, batch: "list[tuple[ImageSource, Tensor | SightlineError]]"
    ) -> "Iterator[tuple[ImageSource, np.ndarray | SightlineError]]":
        tensors = [image for _, image in batch if isinstance(image, Tensor)]
        if tensors:
            with torch.inference_mode():
                encoded = self.model.encode_image(torch.stack(tensors).to(self.device), normalize=True)
            features = iter(encoded.float().cpu().numpy())
        for source, image in batch:
            yield source, next(features) if isinstance(image, Tensor) else image


def _check_batch_size(batch_size: int) -> None:
    if not isinstance(batch_size, int) or batch_size < 1:
        raise InvalidArgumentError(f"batch_size must be a whole number above zero, not {batch_size!r}")


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(device)
        torch.empty(1, device=device).item()  # "meta" exists too, and can compute nothing
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise InvalidArgumentError(f"device {str(device)!r} cannot be used here ({reason}): try 'cpu'") from None
    return device
