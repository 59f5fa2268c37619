"""Headers that would cost far more than their pixels are refused at once; what cameras and programs write is read."""

import io
import random
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.errors import ImageError
from sightline.image_headers import MAX_JPEG_SEGMENTS, check_header, open_image
from sightline.images import open_header, read_image, read_reduced

PHOTOS = sorted((Path(__file__).parents[1] / "examples" / "photos").glob("*.jpg"))
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
SEGMENTS = "has too many segments before its picture"
LOOSE = "has too many bytes between its segments and in its tables"
CHUNKS = "has too many chunks"
PARTS = "has too many parts before its picture"
VALUES = "has too many values in a tag"
EXIF = "has more than 4,194,304 bytes of EXIF"


def encode(kind: str, image: Image.Image = NOISE, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def segment(code: int, content: bytes = b"") -> bytes:
    return bytes([0xFF, code]) + struct.pack(">H", len(content) + 2) + content


def chunk(name: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def jpeg(before: bytes) -> bytes:
    whole = encode("JPEG")
    return whole[:2] + before + whole[2:]


def png(before: bytes = b"", after: bytes = b"") -> bytes:
    whole = encode("PNG")
    return whole[:33] + before + whole[33:-12] + after + whole[-12:]


def gif(before: bytes) -> bytes:
    whole = encode("GIF", NOISE.convert("P"))
    start = 13 + 3 * 256  # after the palette
    return whole[:start] + before + whole[start:]


def tiff(tag: int, tag_type: int, count: int) -> bytes:
    return b"II*\0" + struct.pack("<IHHHII", 8, 1, tag, tag_type, count, 30) + bytes(100)


def big_tiff(tags: int) -> bytes:
    return b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, tags) + struct.pack("<HHQQ", 60000, 99, 1, 0) * tags + bytes(8)


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a JPEG of empty segments": (lambda: jpeg(segment(0xE5) * (MAX_JPEG_SEGMENTS + 1)), SEGMENTS),
    "a JPEG of comments": (lambda: jpeg(segment(0xFE, b"a") * (MAX_JPEG_SEGMENTS + 1)), SEGMENTS),
    "a JPEG of segments of length 0": (lambda: jpeg(b"\xff\xe5\0\0" * (MAX_JPEG_SEGMENTS + 1)), SEGMENTS),
    "a JPEG whose EXIF is in many segments": (lambda: jpeg(segment(0xE1, b"Exif\0\0") * 65), SEGMENTS),
    "a JPEG whose resources are in many segments": (lambda: jpeg(segment(0xED, b"Photoshop 3.0\0") * 257), SEGMENTS),
    "a JPEG of fill bytes": (lambda: jpeg(b"\xff" * 70_000), LOOSE),
    "a JPEG of zeros": (lambda: jpeg(segment(0xE0) + bytes(70_000)), LOOSE),
    "a JPEG of escaped bytes": (lambda: jpeg(b"\xff\0" * 35_000), LOOSE),
    "a JPEG of restart markers": (lambda: jpeg(b"\xff\xd0" * 35_000), LOOSE),
    "a JPEG of frames": (lambda: jpeg(segment(0xC0, bytes(30_000)) * 3), LOOSE),
    "a JPEG of quantisation tables": (lambda: jpeg(segment(0xDB, bytes(65 * 500)) * 3), LOOSE),
    "a JPEG of nothing but fill bytes": (lambda: b"\xff\xd8" + b"\xff" * 70_000, LOOSE),
    "a PNG of private chunks": (lambda: png(chunk(b"abCd") * 1001), CHUNKS),
    "a PNG of chunks with odd names": (lambda: png(chunk(b"a_1d") * 1001), CHUNKS),
    "a PNG of texts": (lambda: png(chunk(b"tEXt", b"k\0v") * 1001), CHUNKS),
    "a PNG of texts after its picture": (lambda: png(after=chunk(b"tEXt", b"k\0v") * 1001), CHUNKS),
    "a PNG of profiles": (lambda: png(chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**20))) * 201), CHUNKS),
    "a PNG of empty data": (lambda: png(after=chunk(b"IDAT") * (2**17 + 1)), CHUNKS),
    "a PNG of much EXIF": (lambda: png(chunk(b"eXIf", bytes(2**22 + 1))), EXIF),
    "a PNG of much EXIF after its picture": (lambda: png(after=chunk(b"eXIf", bytes(2**22 + 1))), EXIF),
    "a WebP of much EXIF": (lambda: encode("WEBP", exif=bytes(2**22 + 1)), EXIF),
    "a GIF of comments": (lambda: gif(b"\x21\xfe\1c\0" * 40_000), PARTS),
    "a GIF of one comment in small blocks": (lambda: gif(b"\x21\xfe" + b"\1c" * 40_000 + b"\0"), PARTS),
    "a GIF of unknown bytes": (lambda: gif(b"a" * 70_000), PARTS),
    "a PPM with a long comment": (lambda: b"P6 #" + b"x" * 70_000 + b"\n1 1 255\nabc", PARTS),
    "a PPM of spaces": (lambda: b"P6 " + b" " * 70_000 + b"1 1 255\nabc", PARTS),
    "a plain PPM of comments": (lambda: b"P3 1 1 255\n" + b"#\n" * 1001 + b"1 1 1 ", "has more than 1,000 comments"),
    "a TIFF of fractions": (lambda: tiff(282, 5, 4097), VALUES),
    "a TIFF of numbers": (lambda: tiff(258, 3, 2**20 + 1), VALUES),
    "a BigTIFF of tags": (lambda: big_tiff(70_000), PARTS),
    "a BMP of runs over a huge area": (
        lambda: b"BM" + bytes(12) + struct.pack("<IiiHHIIiiII", 40, 4097, 4097, 1, 8, 1, 0, 0, 0, 0, 0) + bytes(1024),
        "is a run-length BMP of more than 16,777,216 pixels",
    ),
}


@pytest.mark.parametrize("what", BOMBS)
def test_a_header_that_is_too_dear_is_refused_by_every_reader(what: str) -> None:
    make, reason = BOMBS[what]
    data = make()

    def header(data: bytes) -> None:
        with open_header(data) as image:
            image.load()

    for read in (read_image, lambda data: read_reduced(data, 8), header):
        if read is header and what == "a PNG of much EXIF after its picture":
            continue  # which is not in the header
        with pytest.raises(ImageError) as refusal:
            read(data)
        assert refusal.value.reason == reason


XMP = b"http://ns.adobe.com/xap/1.0/\0"
EXTENDED_XMP = b"http://ns.adobe.com/xmp/extension/\0"
LARGE_METADATA = (
    segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + bytes(65_000))
    + segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 15  # 1 MB
    + segment(0xE1, XMP + b"<x/>")
    + segment(0xE1, EXTENDED_XMP + bytes(65_000)) * 16
    + b"".join(segment(0xE2, b"ICC_PROFILE\0" + bytes([i + 1, 16]) + bytes(65_000)) for i in range(16))
)
GOOD: dict[str, Callable[[], bytes]] = {
    "a progressive JPEG": lambda: encode("JPEG", progressive=True),
    "a JPEG of 3 MB of EXIF, XMP and profile": lambda: jpeg(LARGE_METADATA),
    "a JPEG with some fill bytes": lambda: jpeg(b"\xff" * 1000),
    "a JPEG with many comments": lambda: jpeg(segment(0xFE, b"a comment") * 4000),
    "a PNG of thousands of data chunks": lambda: (
        (whole := encode("PNG"))[:33]
        + b"".join(chunk(b"IDAT", whole[i : min(i + 1, len(whole) - 16)]) for i in range(41, len(whole) - 16))
        + whole[-12:]
    ),
    "a PNG with many texts": lambda: png(chunk(b"tEXt", b"k\0v") * 500, chunk(b"tEXt", b"k\0v") * 400),
    "a GIF with 1 MB of comment": lambda: gif(b"\x21\xfe" + (b"\xff" + b"c" * 255) * 4000 + b"\0"),
    "a TIFF of a strip for each row": lambda: encode("TIFF", tiffinfo={278: 1}, compression="tiff_lzw"),
    "a PPM with a comment": lambda: b"P6 # made by hand\n64 48 255\n" + NOISE.tobytes(),
}


@pytest.mark.parametrize("what", GOOD)
def test_what_programs_write_is_read_as_pillow_reads_it(what: str) -> None:
    data = GOOD[what]()
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(np.asarray(read_image(data)), expected)
    pixels, size = read_reduced(data, None)
    assert np.array_equal(pixels, expected)
    assert size == NOISE.size
    with open_header(data) as header:
        assert header.size == NOISE.size


@pytest.mark.parametrize("photo", PHOTOS, ids=lambda path: path.stem)
def test_the_header_of_a_photograph_is_read_as_pillow_reads_it(photo: Path) -> None:
    with Image.open(photo) as expected, open_header(photo.read_bytes()) as image:
        assert (image.size, image.mode, image.info) == (expected.size, expected.mode, expected.info)


def test_a_long_animation_is_read_for_its_first_frame() -> None:
    frames = [Image.new("P", (2, 2), colour % 255) for colour in range(700)]
    for kind in ("GIF", "PNG", "WEBP"):
        animation = encode(kind, frames[0], save_all=True, append_images=frames[1:])
        assert read_image(animation).size == (2, 2)


def test_of_cut_and_altered_files_the_walk_raises_nothing_but_an_image_error() -> None:
    chance = random.Random(0)
    files = {
        "JPEG": jpeg(segment(0xFE, b"a")),
        "PNG": png(chunk(b"tEXt", b"k\0v")),
        "TIFF": tiff(282, 5, 1),
        "PPM": b"P3 1 1 255\n#\n1 1 1 ",
    }
    files |= {"TIFF ": big_tiff(3), "TIFF  ": b"MM\0*" + bytes([255] * 20), "TIFF   ": b"II+\0" + bytes([255] * 20)}
    for kind, good in files.items():
        for _ in range(300):
            data = bytearray(good[: chance.randint(2, len(good))])
            for _ in range(chance.randint(0, 4)):
                data[chance.randrange(2, max(3, min(len(data), 80))) % len(data)] = chance.choice((0, 1, 127, 255))
            with suppress(ImageError):
                check_header(bytes(data), kind.strip(), "a")


def test_reading_goes_on_without_limit_once_a_file_is_opened() -> None:
    image = open_image(encode("PNG"), "PNG", "a")
    for _ in range(70_000):
        image.fp.read(0)  # type: ignore[attr-defined]
    assert np.array_equal(np.asarray(image), np.asarray(NOISE))
