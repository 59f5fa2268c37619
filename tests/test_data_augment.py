"""What is done to a training image follows from its generator alone, and is what it says."""

import io
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from data_files import picture
from sightline.data import Augment
from sightline.errors import ImageError, InvalidArgumentError
from sightline.preprocess import Preprocess

STRONG = {
    "scale": (0.3, 1.0), "flip": 0.5, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1,
    "jitter": 0.8, "grayscale": 0.2, "blur": 0.5, "erase": 0.5,
}  # fmt: skip
WHOLE = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}


def smooth(width: int = 60, height: int = 40) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return Image.fromarray((np.stack([x, y, 1 - x], axis=-1) * 200 + 20).astype(np.uint8))


def pixels(image: Image.Image, seed: int = 0, size: int = 16, **settings) -> np.ndarray:
    return Augment(size, **settings).pixels(image, Random(seed))


def test_the_crop_of_the_whole_square_is_what_preprocess_gives() -> None:
    for size in (16, 64):
        given = smooth(50, 50)
        ours, theirs = Augment(size, **WHOLE)(given, Random(0)), Preprocess(size)(given)
        assert ours.dtype == torch.float32
        assert (ours - theirs).abs().max() < 1.1 / 255 / 0.26  # one level of 256, by the standard deviation


def test_normalising_is_bit_for_bit_that_of_preprocess() -> None:
    levels = torch.arange(256, dtype=torch.uint8).repeat(3, 1).reshape(3, 16, 16)
    image = Image.fromarray(levels.permute(1, 2, 0).numpy())
    assert torch.equal(Augment(16).normalise(levels[None])[0], Preprocess(16)(image))


@pytest.mark.parametrize("settings", [{}, STRONG])
def test_the_same_generator_gives_the_same_pixels(settings) -> None:
    image = Image.open(io.BytesIO(picture(0, (90, 70))))
    assert (pixels(image, 5, **settings) == pixels(image, 5, **settings)).all()
    assert (pixels(image, 5, **settings) != pixels(image, 6, **settings)).any()
    assert pixels(image, 5, **settings).shape == (16, 16, 3)


def test_crops_have_the_area_and_the_shape_that_were_asked_for() -> None:
    augment = Augment(16, scale=(0.3, 0.6), ratio=(0.5, 2.0))
    boxes = np.array([augment._crop(300, 200, Random(seed), "") for seed in range(400)])
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert (boxes >= 0).all()
    assert (boxes[:, 2] <= 300).all()
    assert (boxes[:, 3] <= 200).all()
    assert 0.29 < (w * h / 60_000).min() < 0.35 < 0.55 < (w * h / 60_000).max() < 0.61
    assert 0.49 < (w / h).min() < 0.6 < 1.7 < (w / h).max() < 2.02
    assert boxes[:, 0].min() < 10
    assert boxes[:, 2].max() > 290


def test_an_image_that_no_crop_fits_gives_its_middle() -> None:
    assert Augment(16)._crop(900, 10, Random(0), "") == (443, 0, 456, 10)
    assert pixels(smooth(900, 1)).shape == (16, 16, 3)


def test_each_change_is_off_until_asked_for_and_does_what_it_says() -> None:
    plain = pixels(smooth(), **WHOLE)
    assert (pixels(smooth(), flip=1.0, **WHOLE) == plain[:, ::-1]).all()
    grey = pixels(smooth(), grayscale=1.0, **WHOLE)
    assert (grey == grey[:, :, :1]).all()
    noise = Image.open(io.BytesIO(picture(0, (64, 64))))
    assert pixels(noise, 2, 224, blur=1.0, **WHOLE).std() < pixels(noise, 2, 224, **WHOLE).std()
    for change in ("brightness", "contrast", "saturation", "hue"):
        changed = pixels(smooth(), 3, **{change: 0.3}, **WHOLE)
        assert 0 < np.abs(changed.astype(int) - plain).mean() < 80
        assert (pixels(smooth(), 3, **{change: 0.3}, jitter=0.0, **WHOLE) == plain).all()


def test_erasing_fills_a_part_with_the_mean_colour() -> None:
    mean = [round(255 * value) for value in Augment(16).mean]
    shares = [(pixels(smooth(), seed, 32, erase=1.0) == mean).all(axis=2).mean() for seed in range(200)]
    assert 0.01 < min(shares) < 0.05
    assert 0.25 < max(shares) < 0.36


def test_a_large_jpeg_is_decoded_small_and_looks_the_same() -> None:
    file = io.BytesIO()
    smooth(640, 480).save(file, "JPEG", quality=95, exif=_turned())
    small = Augment(32).read(file.getvalue(), Random(0), "large")
    whole = Augment(32).pixels(smooth(640, 480).transpose(Image.Transpose.ROTATE_270), Random(0))
    assert np.abs(small.astype(int) - whole).mean() < 3


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x112] = 6
    return exif


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_every_usual_format_is_read(kind) -> None:
    assert Augment(16).read(picture(0, (300, 200), kind), Random(0), "x").shape == (16, 16, 3)


def test_an_image_too_long_and_thin_is_refused() -> None:
    with pytest.raises(ImageError, match="x: is too long and thin"):
        Augment(16).read(picture(0, (1, 1001)), Random(0), "x")


@pytest.mark.parametrize(
    "settings",
    [
        {"image_size": 0}, {"image_size": 2.0}, {"std": (0, 1, 1)}, {"mean": (0, 1)}, {"scale": (0, 1)},
        {"scale": (0.9, 0.8)}, {"scale": (0.5, 1.5)}, {"ratio": (0, 1)}, {"ratio": (2, 1)}, {"flip": 1.5},
        {"hue": 0.6}, {"blur": -0.1}, {"erase": float("nan")},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(settings) -> None:
    with pytest.raises(InvalidArgumentError):
        Augment(**{"image_size": 16, **settings})
