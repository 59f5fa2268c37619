"""`Preprocess` gives the tensor of the original CLIP's `_transform`, bit for bit, for every PIL image."""

import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from peers import import_openai_clip
from sightline.errors import ImageError, InvalidArgumentError
from sightline.preprocess import MAX_ASPECT, Preprocess

PHOTOS = sorted((Path(__file__).parents[1] / "examples" / "photos").glob("*.jpg"))
MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"]
MODES += ["I;16", "I;16L", "I;16B", "I", "F"]
SIZES = [(1, 1), (3, 1000), (224, 224), (225, 224), (223, 500), (500, 223), (448, 449), (100, 101)]


@cache
def original(size: int) -> Callable[[Image.Image], torch.Tensor]:
    import_openai_clip()
    from clip.clip import _transform

    return _transform(size)


def noise(mode: str, width: int, height: int) -> Image.Image:
    """An image of any mode whose every sample is random, and over the whole range of its type."""
    random = np.random.default_rng(width * height)
    if mode == "F":
        return Image.fromarray(random.normal(128, 200, (height, width)).astype(np.float32))
    if mode == "I":
        return Image.fromarray(random.integers(-(2**17), 2**17, (height, width), dtype=np.int32))
    if mode == "1":
        return noise("L", width, height).convert("1")
    bytes_a_pixel = 2 if mode.startswith("I;16") else len(Image.new(mode, (1, 1)).tobytes())
    image = Image.frombytes(mode, (width, height), random.bytes(width * height * bytes_a_pixel))
    if mode in ("P", "PA"):
        image.putpalette(random.bytes(768))
    return image


def assert_same(image: Image.Image, size: int = 224) -> None:
    ours, theirs = Preprocess(size)(image), original(size)(image)
    assert ours.dtype == theirs.dtype == torch.float32
    assert ours.is_contiguous()
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("photo", PHOTOS, ids=lambda path: path.stem)
def test_every_photograph_equals_the_original(photo: Path) -> None:
    with Image.open(photo) as image:
        assert_same(image)
        assert_same(image.convert("RGB"), 336)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_and_size_equals_the_original(mode: str, size: tuple[int, int]) -> None:
    assert_same(noise(mode, *size))


@pytest.mark.parametrize("size", [1, 7, 224, 288, 336, 448])
def test_every_image_size_equals_the_original(size: int) -> None:
    for width, height in ((300, 201), (201, 300), (size, size), (size + 1, size), (size, size + 3)):
        assert_same(noise("RGB", width, height), size)


def test_the_crop_of_every_remainder_equals_the_original() -> None:
    for longer in range(32, 64):  # half a pixel to the left, to the right, to the even side
        assert_same(noise("RGB", longer, 32), 32)
        assert_same(noise("RGB", 32, longer), 32)
        assert_same(noise("RGB", longer * 7, 150), 32)


@pytest.mark.parametrize("transparency", [3, b"\0\x80" * 8], ids=["one colour", "an alpha for each colour"])
def test_a_palette_with_transparency_equals_the_original(transparency: int | bytes) -> None:
    image = noise("P", 300, 260)
    expected = original(224)(image)
    image.info["transparency"] = transparency  # of which Pillow warns, and the original lets it
    assert torch.equal(Preprocess(224)(image), expected)
    assert image.info["transparency"] == transparency


def test_exif_orientation_is_not_looked_at_as_in_the_original() -> None:
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    noise("RGB", 300, 260).save(file, "PNG", exif=exif)
    assert_same(Image.open(file))


def test_the_image_itself_is_left_as_it_was() -> None:
    for image in (noise("RGBA", 224, 224), noise("P", 300, 300)):
        before = image.copy()
        Preprocess(224)(image)
        assert image == before


def test_mean_and_std_are_those_given() -> None:
    grey = Image.new("RGB", (5, 5), (51, 102, 255))
    tensor = Preprocess(2, mean=(0.1, 0.2, 0.5), std=(0.5, 0.1, 2))(grey)
    assert tensor.shape == (3, 2, 2)
    assert torch.allclose(tensor[:, 0, 0], torch.tensor([0.2, 2.0, 0.25]))
    assert torch.equal(Preprocess(2, mean=(0, 0, 0), std=(1, 1, 1))(grey)[2], torch.ones(2, 2))


def test_an_image_at_the_limit_of_thinness_equals_the_original_and_beyond_it_is_refused() -> None:
    assert_same(noise("L", 1, MAX_ASPECT), 16)
    assert_same(noise("RGB", 3 * MAX_ASPECT, 3), 16)
    assert_same(noise("RGB", 1000, 3), 224)
    for width, height in ((1, MAX_ASPECT + 1), (100_000, 1)):
        with pytest.raises(ImageError, match=f"{width}×{height}: is too long and thin \\(the limit is 1:1000\\)"):
            Preprocess(224)(Image.new("RGB", (width, height)))


def test_an_image_that_cannot_be_used_is_refused() -> None:
    half = io.BytesIO(PHOTOS[0].read_bytes()[:20_000])
    with pytest.raises(ImageError, match=r"RGB image of \d+×\d+: cannot be decoded or resized \(OSError\)"):
        Preprocess(224)(Image.open(half))
    with pytest.raises(ImageError, match="La image of 5×5: cannot be decoded or resized"):
        Preprocess(224)(Image.new("La", (5, 5)))
    with pytest.raises(ImageError, match="image of 0×5: has no pixels"):
        Preprocess(224)(Image.new("RGB", (0, 5)))
    with pytest.raises(InvalidArgumentError, match="a PIL image, not str"):
        Preprocess(224)("cat.jpg")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 0}, "image_size"),
        ({"image_size": 224.0}, "image_size"),
        ({"image_size": True}, "image_size"),
        ({"image_size": 224, "mean": (0, 0)}, "three finite numbers"),
        ({"image_size": 224, "std": (1, 1, float("nan"))}, "three finite numbers"),
        ({"image_size": 224, "std": (1, 0, 1)}, "above zero"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        Preprocess(**settings)


def test_it_is_a_value_that_travels_between_processes() -> None:
    preprocess = Preprocess(224)
    assert pickle.loads(pickle.dumps(preprocess)) == preprocess == Preprocess(224)
    assert len({preprocess, Preprocess(224), Preprocess(336)}) == 2
    assert repr(preprocess).startswith("Preprocess(image_size=224, mean=(0.48145466, ")


@pytest.mark.parametrize("room", ["preprocess", "images"])
def test_importing_it_does_not_import_torch(room: str) -> None:
    code = f"import sys, sightline.{room}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
