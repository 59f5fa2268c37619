"""Random changes to a training image, and its decoding at no more than the size that is needed."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from sightline.config import MEAN, STD
from sightline.errors import ImageError, InvalidArgumentError
from sightline.images import open_header, read_image
from sightline.preprocess import MAX_ASPECT, normalise

if TYPE_CHECKING:
    import torch

_JPEG = b"\xff\xd8\xff"
_Change = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class Augment:
    """What is done to each training image, in this order. By default only the crop, as in the paper (section 2.4).

    All that is drawn comes from the generator given with the image, so the same generator gives the same pixels.

    Args:
        image_size: the side of the result, in pixels.
        mean, std: for `normalise`: of the red, green and blue channel, on the scale 0..1.
        scale: the share of the image's area that the crop has, at least and at most.
        ratio: the crop's width to its height, at least and at most, before it is made square.
        flip: how often it is mirrored, left to right.
        brightness, contrast, saturation: each changed by a factor of 1 ± this much, in a random order.
        hue: turned by up to this part of the colour circle, at most 0.5.
        jitter: how often those four happen.
        grayscale, blur: how often it loses its colour; how often it is blurred, by a Gaussian of 0.1 to 2
            pixels where image_size is 224, and in proportion elsewhere.
        erase: how often a rectangle of 2% to 33% of it is filled with the mean colour.
    """

    image_size: int
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    jitter: float = 1.0
    grayscale: float = 0.0
    blur: float = 0.0
    erase: float = 0.0

    def __post_init__(self) -> None:
        if type(self.image_size) is not int or self.image_size < 1:
            raise InvalidArgumentError(f"image_size must be a whole number above zero, not {self.image_size!r}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise InvalidArgumentError("mean and std need three numbers each, those of std above zero")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise InvalidArgumentError(f"scale must be two shares, 0 < low ≤ high ≤ 1, not {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise InvalidArgumentError(f"ratio must be two numbers, 0 < low ≤ high, not {self.ratio}")
        for f in fields(self)[5:]:
            most = 0.5 if f.name == "hue" else 1.0
            if not 0 <= getattr(self, f.name) <= most:
                raise InvalidArgumentError(f"{f.name} must be from 0 to {most:g}, not {getattr(self, f.name)!r}")

    def __call__(self, image: Image.Image, random: Random) -> "torch.Tensor":
        """A PIL image to (3, image_size, image_size) float32, normalised as `Preprocess` does it."""
        import torch

        return self.normalise(torch.from_numpy(self.pixels(image, random)).permute(2, 0, 1))

    def normalise(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """(…, 3, s, s) uint8 to float32, on whatever device, as `Preprocess` does it."""
        return normalise(pixels, self.mean, self.std)

    def read(self, data: bytes, random: Random, name: str) -> np.ndarray:
        """An encoded image to (image_size, image_size, 3) uint8. `name` is what an error calls it.

        Raises:
            ImageError: for an image that cannot be read, or that is over `MAX_ASPECT` times as long as wide.
        """
        # What no crop would be enlarged from, were it as wide as high; one of the oddest shape is, by a seventh.
        enough = math.ceil(self.image_size / math.sqrt(self.scale[0]))
        return self.pixels(_decode(data, name, enough), random, name)

    def pixels(self, image: Image.Image, random: Random, name: str = "image") -> np.ndarray:
        """A PIL image to (image_size, image_size, 3) uint8."""
        pixels = _resize(np.asarray(image.convert("RGB")), self._crop(*image.size, random, name), self.image_size)
        if random.random() < self.flip:
            pixels = pixels[:, ::-1]
        changes = self._drawn(random)
        if changes:
            image = Image.fromarray(np.ascontiguousarray(pixels))
            for change in changes:
                image = change(image)
            pixels = np.asarray(image)
        if random.random() < self.erase:
            pixels = self._erased(pixels, random)
        return np.ascontiguousarray(pixels)

    def _crop(self, width: int, height: int, random: Random, name: str) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of a random crop: the rules of torchvision's RandomResizedCrop."""
        if max(width, height) > MAX_ASPECT * min(width, height):
            raise ImageError(name, f"is too long and thin (the limit is 1:{MAX_ASPECT})")
        low, high = (math.log(ratio) for ratio in self.ratio)
        for _ in range(10):
            area = _between(random, *self.scale) * width * height
            ratio = math.exp(_between(random, low, high))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, top = _below(random, width - w + 1), _below(random, height - h + 1)
                return left, top, left + w, top + h
        w, h = min(width, round(height * self.ratio[1])), min(height, round(width / self.ratio[0]))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h

    def _drawn(self, random: Random) -> list[_Change]:
        """What else happens to the image, in order."""
        changes = self._jitter(random) if random.random() < self.jitter else []
        if random.random() < self.grayscale:
            changes.append(_grey)
        if random.random() < self.blur:
            changes.append(partial(_blur, _between(random, 0.1, 2.0) * self.image_size / 224))
        return changes

    def _jitter(self, random: Random) -> list[_Change]:
        steps: list[_Change] = []
        for enhancer, strength in (
            (ImageEnhance.Brightness, self.brightness),
            (ImageEnhance.Contrast, self.contrast),
            (ImageEnhance.Color, self.saturation),
        ):
            if strength:
                steps.append(partial(_enhance, enhancer, _between(random, 1 - strength, 1 + strength)))
        if self.hue:
            steps.append(partial(_turn_hue, round(_between(random, -self.hue, self.hue) * 256)))
        return [steps.pop(_below(random, len(steps))) for _ in range(len(steps))]

    def _erased(self, pixels: np.ndarray, random: Random) -> np.ndarray:
        side = self.image_size
        area = _between(random, 0.02, 0.33) * side**2
        ratio = math.exp(_between(random, math.log(0.3), math.log(1 / 0.3)))
        w, h = min(side, round(math.sqrt(area * ratio))), min(side, round(math.sqrt(area / ratio)))
        left, top = _below(random, side - w + 1), _below(random, side - h + 1)
        pixels = pixels.copy()
        pixels[top : top + h, left : left + w] = [round(255 * mean) for mean in self.mean]
        return pixels


def _resize(pixels: np.ndarray, box: tuple[int, int, int, int], side: int) -> np.ndarray:
    """A part of an image to (side, side, 3): bicubic with antialias, the filter of Pillow in a quarter of its time."""
    import torch

    left, top, right, bottom = box
    part = torch.from_numpy(pixels[top:bottom, left:right].copy()).permute(2, 0, 1)[None]  # (1, 3, height, width)
    resized = torch.nn.functional.interpolate(part, (side, side), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def _decode(data: bytes, name: str, side: int) -> Image.Image:
    """An image as `read_image` gives it. A large JPEG is decoded at a half, a quarter or an eighth of its size, as
    long as both sides keep `side` pixels: that takes a part of the time, and the crop is made smaller anyway."""
    if data.startswith(_JPEG):
        try:
            with open_header(data) as image:
                if image.format == "JPEG" and min(image.size) >= 2 * side:
                    image.draft(None, (side, side))
                    return read_image(image, name=name)
        except ImageError:  # whatever it is, read_image says it of the file by its name
            pass
    return read_image(data, name=name)


def _enhance(enhancer: Any, factor: float, image: Image.Image) -> Image.Image:
    return enhancer(image).enhance(factor)


def _grey(image: Image.Image) -> Image.Image:
    return image.convert("L").convert("RGB")


def _blur(radius: float, image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius))


def _turn_hue(turn: int, image: Image.Image) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    hue = hue.point([(level + turn) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def _below(random: Random, n: int) -> int:
    return int(random.random() * n)


def _between(random: Random, low: float, high: float) -> float:
    return low + (high - low) * random.random()
