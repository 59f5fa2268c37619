"""One PIL image to one tensor, bit for bit as the original CLIP makes it (`_transform` in its `clip.py`)."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from sightline.config import MEAN, STD
from sightline.errors import ImageError, InvalidArgumentError

if TYPE_CHECKING:
    import torch

MAX_ASPECT = 1000


@dataclass(frozen=True)
class Preprocess:
    """Resizes the shorter side to `image_size`, crops the middle square, and normalises the channels.

    Calling it takes any PIL image and gives a float32 tensor of shape (3, image_size, image_size). Like the
    original it resizes an image in its own mode and makes it RGB last: a palette is resized to the nearest
    pixel, alpha is dropped, EXIF orientation is not looked at. `read_image` is what treats files with care.

    An image over `MAX_ASPECT` times as long as it is wide is refused. To be exact it is resized whole, which
    takes 4 · image_size² bytes for each unit of that ratio: 200 MB at the limit for 224 pixels.

    Args:
        image_size: the side of the square, in pixels.
        mean, std: of the red, green and blue channel, on the scale 0..1.

    Raises:
        ImageError: by the call, for an image without pixels, too long and thin, or that Pillow cannot decode.
        InvalidArgumentError: for settings out of range, and by the call for what is not a PIL image.
    """

    image_size: int
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD

    def __post_init__(self) -> None:
        if type(self.image_size) is not int or self.image_size < 1:
            raise InvalidArgumentError(f"image_size must be a whole number above zero, not {self.image_size!r}")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(map(math.isfinite, (*self.mean, *self.std))):
            raise InvalidArgumentError("mean and std need three finite numbers each")
        if min(self.std) <= 0:
            raise InvalidArgumentError(f"std must be above zero, not {self.std}")

    def __call__(self, image: Image.Image) -> "torch.Tensor":
        import torch

        pixels = np.asarray(self._square(image))  # (image_size, image_size, 3), uint8
        tensor = np.empty((3, self.image_size, self.image_size), np.float32)
        for channel, mean, std in zip(range(3), self.mean, self.std, strict=True):
            # The original's three operations in its order, on each of the 256 levels instead of on each pixel.
            levels = (np.arange(256, dtype=np.float32) / np.float32(255) - np.float32(mean)) / np.float32(std)
            tensor[channel] = levels[pixels[:, :, channel]]
        return torch.from_numpy(tensor)

    def _square(self, image: Image.Image) -> Image.Image:
        if not isinstance(image, Image.Image):
            raise InvalidArgumentError(
                f"preprocess takes a PIL image, not {type(image).__name__}; read_image makes one of a file"
            )
        width, height = image.size
        size = self._resized_size(width, height)
        # As in `torchvision`, Python's rounding: halves go to the even number.
        left, top = (round((side - self.image_size) / 2) for side in size)
        try:
            if image.size != size:
                image = image.resize(size, Image.Resampling.BICUBIC)
            image = image.crop((left, top, left + self.image_size, top + self.image_size))
            image.info.pop("transparency", None)  # it moves no pixel of the RGB, and Pillow warns of some forms
            return image.convert("RGB")
        except Exception as error:  # an image that was opened but not yet read may hold anything
            name = f"{image.mode} image of {width}×{height}"
            raise ImageError(name, f"cannot be decoded or resized ({type(error).__name__})") from error

    def _resized_size(self, width: int, height: int) -> tuple[int, int]:
        short, long = sorted((width, height))
        if short == 0:
            raise ImageError(f"image of {width}×{height}", "has no pixels")
        if long > MAX_ASPECT * short:
            raise ImageError(f"image of {width}×{height}", f"is too long and thin (the limit is 1:{MAX_ASPECT})")
        long = int(self.image_size * long / short)
        return (self.image_size, long) if width <= height else (long, self.image_size)
