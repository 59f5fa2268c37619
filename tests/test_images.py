"""What `read_image` makes of good files, what it refuses and why, and which files `find_images` finds."""

import io
import os
import pickle
import socket
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from sightline.errors import ImageError, InvalidArgumentError
from sightline.images import MAX_JPEG_SCANS, find_images, printable_name, read_image

PHOTOS = Path(__file__).parents[1] / "examples" / "photos"
NOT_AN_IMAGE = "is not an image that Sightline reads (JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, PPM)"
TOO_MANY_PIXELS = "has more than 178,956,970 pixels"


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(width: int = 64, height: int = 48) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, **chunks: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    middle = b"".join(chunk(kind.encode(), data) for kind, data in chunks.items())
    return b"\x89PNG\r\n\x1a\n" + header + middle + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def pixels(image: Image.Image) -> list[tuple[int, ...]]:
    return [tuple(pixel) for row in np.asarray(image).tolist() for pixel in row]


def reds(image: Image.Image) -> list[int]:
    return [pixel[0] for pixel in pixels(image)]


def orientation_tag(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def damaged(kind: str) -> str:
    return f"is truncated, damaged, or a kind of {kind} that Pillow cannot read"


def with_bytes(data: bytes, place: int, new: bytes) -> bytes:
    return data[:place] + new + data[place + len(new) :]


def with_many_scans(jpeg: bytes) -> bytes:
    return jpeg[:-2] + jpeg[jpeg.rindex(b"\xff\xda") : -2] * MAX_JPEG_SCANS + jpeg[-2:]


JPEG, PNG, GIF, BMP, TIFF = (encode(noise(), kind) for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF"))
WEBP, AVIF, PPM = (encode(noise(), kind) for kind in ("WEBP", "AVIF", "PPM"))
LZW = encode(noise(), "TIFF", compression="tiff_lzw")
FLOATS = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
HUGE = struct.pack("<HH", 65000, 65000)

HOSTILE = {
    "an empty file": (b"", "is empty"),
    "a single byte": (b"P", NOT_AN_IMAGE),
    "zeros": (bytes(1000), NOT_AN_IMAGE),
    "a text": (b"a photograph of a cat", NOT_AN_IMAGE),
    "a page of HTML": (b"<!DOCTYPE html><title>404</title>", NOT_AN_IMAGE),
    "an SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', NOT_AN_IMAGE),
    "an EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage", NOT_AN_IMAGE),
    "a PDF": (encode(noise(), "PDF"), NOT_AN_IMAGE),
    "a PSD": (b"8BPS\0\1" + bytes(100), NOT_AN_IMAGE),
    "a FITS": (b"SIMPLE  =                    T" + bytes(100), NOT_AN_IMAGE),
    "an icon": (encode(noise(), "ICO"), NOT_AN_IMAGE),
    "a JPEG 2000": (encode(noise(), "JPEG2000"), NOT_AN_IMAGE),
    "a HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), NOT_AN_IMAGE),
    "a sound file": (b"RIFF\x24\0\0\0WAVEfmt " + bytes(100), NOT_AN_IMAGE),
    "half a JPEG": (JPEG[: len(JPEG) // 2], "is truncated"),
    "half a PNG": (PNG[: len(PNG) // 2], "is truncated"),
    "half a GIF": (GIF[: len(GIF) // 2], "is truncated"),
    "half a BMP": (BMP[: len(BMP) // 2], "is truncated"),
    "half a TIFF": (TIFF[: len(TIFF) // 2], "is truncated"),
    "half a compressed TIFF": (LZW[: len(LZW) // 2], damaged("TIFF")),
    "half a WebP": (WEBP[: len(WEBP) // 2], damaged("WebP")),
    "half an AVIF": (AVIF[: len(AVIF) // 2], damaged("AVIF")),
    "half a PPM": (PPM[: len(PPM) // 2], "is truncated"),
    "the first bytes of a JPEG": (JPEG[:20], damaged("JPEG")),
    "the first bytes of a PNG": (PNG[:20], "is truncated"),
    "a PNG with a wrong checksum": (with_bytes(PNG, 29, b"\0\0\0\0"), damaged("PNG")),
    "a PNG of no width": (png(0, 5, 8, 2, b""), damaged("PNG")),
    "a PNG whose text expands a thousandfold": (
        png(1, 1, 8, 0, b"\0\0", zTXt=b"a\0\0" + zlib.compress(bytes(2**22))),
        damaged("PNG"),
    ),
    "a PNG of too many pixels": (png(65000, 65000, 8, 2, b""), TOO_MANY_PIXELS),
    "a JPEG of too many pixels": (
        with_bytes(JPEG, JPEG.index(b"\xff\xc0") + 5, struct.pack(">HH", 65000, 65000)),
        TOO_MANY_PIXELS,
    ),
    "a GIF of too many pixels": (with_bytes(GIF, 6, HUGE), TOO_MANY_PIXELS),
    "a BMP of too many pixels": (with_bytes(BMP, 18, struct.pack("<ii", 65000, 65000)), TOO_MANY_PIXELS),
    "a PPM of too many pixels": (b"P6 65000 65000 255\n", TOO_MANY_PIXELS),
    "a JPEG of endless scans": (
        with_many_scans(encode(noise(), "JPEG", progressive=True)),
        "has more than 100 scans",
    ),
    "a PPM of negative size": (b"P6 -5 5 255\n", damaged("PPM")),
    "a WebP with a broken stream": (with_bytes(WEBP, 20, b"\xff" * 100), damaged("WebP")),
    "an AVIF with a broken header": (with_bytes(AVIF, 40, b"\xff" * 100), damaged("AVIF")),
    "a TIFF whose directory lies outside": (with_bytes(TIFF, 4, b"\xff\xff\xff\x7f"), damaged("TIFF")),
    "a TIFF with a broken stream": (with_bytes(LZW, 3000, b"\xff" * 100), damaged("TIFF")),
    "a TIFF of NaN": (encode(Image.fromarray(FLOATS * np.nan), "TIFF"), "has float values that are not finite"),
    "a TIFF of elevations": (encode(Image.fromarray(FLOATS * 8848), "TIFF"), "has float values outside 0 to 255"),
    "a TIFF of 32-bit integers": (
        encode(Image.fromarray(np.full((3, 4), 65536, np.int32)), "TIFF"),
        "has grey values outside 0 to 65535",
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_is_refused_with_its_reason(what: str, tmp_path: Path) -> None:
    data, reason = HOSTILE[what]
    path = tmp_path / "innocent.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageError) as refusal:
        read_image(path)
    assert refusal.value.reason == reason
    assert str(refusal.value) == f"{path}: {reason}"


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(path))


def a_file_within_a_file(path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_bytes(JPEG)


NOT_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda path: None, "does not exist"),
    "a link to nothing": (lambda path: path.symlink_to("gone"), "does not exist"),
    "a link to itself": (lambda path: path.symlink_to(path), "is a link that leads in a circle"),
    "a folder": (lambda path: path.mkdir(), "is a folder, not a file"),
    "a named pipe": (lambda path: os.mkfifo(path), "is a named pipe, not a file"),
    "a socket": (a_socket, "is a socket, not a file"),
    "an endless device": (lambda path: path.symlink_to("/dev/zero"), "is a device, not a file"),
    "a file of the kernel": (lambda path: path.symlink_to("/proc/self/status"), "is empty"),
    "a file within a file": (a_file_within_a_file, "does not exist"),
    "a file over the limit": (lambda path: path.write_bytes(bytes(2001)), "has more than 2,000 bytes"),
}


@pytest.mark.skipif(sys.platform != "linux", reason="builds the special files of Linux")
@pytest.mark.parametrize("what", NOT_FILES)
def test_what_is_not_a_file_is_refused_without_waiting(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, reason = NOT_FILES[what]
    monkeypatch.chdir(tmp_path)  # the address of a socket must be short
    path = tmp_path / "folder" / "photo.jpg"
    path.parent.mkdir()
    make(path)
    with pytest.raises(ImageError) as refusal:
        read_image(path, max_bytes=2000)
    assert refusal.value.reason == reason


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes in folders")
def test_a_pipe_put_in_a_file_s_place_at_the_last_moment_is_refused_without_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photo.jpg").write_bytes(JPEG)
    os.mkfifo(tmp_path / "pipe.jpg")
    status = os.stat(tmp_path / "photo.jpg")
    monkeypatch.setattr("sightline.images.os.stat", lambda path: status)
    with pytest.raises(ImageError, match="is a named pipe, not a file"):
        read_image(tmp_path / "pipe.jpg")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PermissionError(13, "Permission denied"), "may not be read (permission denied)"),
        (FileNotFoundError(2, "No such file or directory"), "does not exist"),
        (OSError(5, "Input/output error"), "cannot be read (Input/output error)"),
    ],
)
def test_a_file_that_the_system_withholds_is_refused(
    error: OSError, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise error

    (tmp_path / "photo.jpg").write_bytes(JPEG)
    monkeypatch.setattr("sightline.images.os.open", refuse)
    with pytest.raises(ImageError) as refusal:
        read_image(tmp_path / "photo.jpg")
    assert refusal.value.reason == reason


@pytest.mark.parametrize("raised", [SyntaxError, struct.error, zlib.error, OverflowError, RecursionError, KeyError])
def test_whatever_pillow_raises_is_an_image_error(raised: type, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: ImageFile.ImageFile) -> None:
        raise raised("boom")

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(ImageError, match="is truncated, damaged, or a kind of PNG that Pillow cannot read"):
        read_image(PNG)


def test_memory_that_runs_out_is_an_image_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: ImageFile.ImageFile) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(ImageError, match="needs more memory than there is"):
        read_image(PNG)


def test_names_that_no_file_can_have_are_refused() -> None:
    for name, reason in {
        "a\0b.jpg": r"a\\x00b.jpg: is not a name that a file can have",
        "\ud800.jpg": r"\\ud800.jpg: is not a name that a file can have",
        "x" * 300: "x: has too long a name",
        "": ": does not exist",
    }.items():
        with pytest.raises(ImageError, match=f"{reason}$"):
            read_image(name)


def test_a_name_that_is_not_utf_8_or_would_move_the_cursor_prints_on_one_line() -> None:
    with pytest.raises(ImageError) as refusal:
        read_image(b"", name="caf\udce9\n\x1b[2J\u202e 写真.jpg")
    assert str(refusal.value) == r"caf\udce9\n\x1b[2J\u202e 写真.jpg: is empty"
    str(refusal.value).encode("utf-8")
    assert printable_name(Path(os.fsdecode(b"/caf\xe9.jpg"))) == r"/caf\udce9.jpg"


def test_a_file_whose_name_is_not_utf_8_is_read(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.png"
    try:
        Path(os.fsdecode(path)).write_bytes(PNG)
    except OSError:
        pytest.skip("this file system has only names in UTF-8")
    assert read_image(os.fsdecode(path)).size == (64, 48)
    assert [os.fsencode(file) for file in find_images(tmp_path)] == [path]


def test_an_error_travels_between_processes() -> None:
    with pytest.raises(ImageError) as refusal:
        read_image(b"", name="a.jpg")
    copy = pickle.loads(pickle.dumps(refusal.value))
    assert (copy.name, copy.reason) == ("a.jpg", "is empty")


# What becomes of good files.


@pytest.mark.parametrize("photo", sorted(PHOTOS.glob("*.jpg")), ids=lambda path: path.stem)
def test_a_photograph_reads_as_pillow_decodes_it(photo: Path) -> None:
    expected = np.asarray(Image.open(photo).convert("RGB"))
    for source in (photo, str(photo), photo.read_bytes(), photo.open("rb"), Image.open(photo)):
        image = read_image(source)
        assert (image.mode, image.info) == ("RGB", {})
        assert np.array_equal(image, expected)
        if isinstance(source, io.IOBase):
            source.close()


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "PPM", "MPO"])
def test_every_format_is_read_whatever_its_suffix(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "photo.txt"
    path.write_bytes(encode(noise(), kind))
    with Image.open(path) as image:
        assert np.array_equal(read_image(path), np.asarray(image.convert("RGB")))


def test_a_cmyk_jpeg_reads_as_pillow_decodes_it() -> None:
    data = encode(noise().convert("CMYK"), "JPEG")
    assert np.array_equal(read_image(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "LZW"])
def test_an_image_is_turned_upright_once(kind: str, orientation: int) -> None:
    kind, options = ("TIFF", {"compression": "tiff_lzw"}) if kind == "LZW" else (kind, {})
    plain = np.asarray(read_image(encode(noise(), kind, **options)))
    upright = {
        2: plain[:, ::-1],
        3: plain[::-1, ::-1],
        4: plain[::-1],
        5: plain.transpose(1, 0, 2),
        6: np.rot90(plain, -1),
        7: plain[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(plain),
    }
    once = read_image(encode(noise(), kind, exif=orientation_tag(orientation), **options))
    assert np.array_equal(once, upright.get(orientation, plain))
    assert np.array_equal(read_image(once), once)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_is_none_turns_nothing(orientation: int) -> None:
    assert np.array_equal(read_image(encode(noise(), "PNG", exif=orientation_tag(orientation))), noise())


def test_transparency_is_laid_over_white() -> None:
    red = (255, 0, 0)
    rgba = Image.new("RGBA", (3, 1))
    rgba.putdata([(*red, 255), (*red, 128), (*red, 0)])
    assert pixels(read_image(rgba)) == [red, (255, 127, 127), (255, 255, 255)]
    palette = rgba.convert("RGB").quantize(2)
    assert set(pixels(read_image(encode(palette, "PNG")))) == {red}
    assert set(pixels(read_image(encode(palette, "PNG", transparency=palette.getpixel((0, 0)))))) == {(255,) * 3}
    assert set(pixels(read_image(encode(palette, "PNG", transparency=b"\0" * 256)))) == {(255,) * 3}
    assert pixels(read_image(Image.new("LA", (1, 1), (0, 51)))) == [(204, 204, 204)]
    assert pixels(read_image(Image.new("La", (1, 1), (0, 51)))) == [(204, 204, 204)]
    rgb_with_a_clear_colour = png(2, 1, 8, 2, bytes([0, 9, 8, 7, 1, 2, 3]), tRNS=struct.pack(">3H", 9, 8, 7))
    assert pixels(read_image(rgb_with_a_clear_colour)) == [(255, 255, 255), (1, 2, 3)]


SIXTEEN_BITS = np.array([[0, 128, 129, 385, 32768, 65407, 65535]], np.uint16)
EIGHT_BITS = [0, 0, 1, 1, 128, 255, 255]  # v / 257, rounded


@pytest.mark.parametrize(
    "data",
    [
        png(7, 1, 16, 0, b"\0" + SIXTEEN_BITS.astype(">u2").tobytes()),
        b"P5 7 1 65535\n" + SIXTEEN_BITS.astype(">u2").tobytes(),
        encode(Image.fromarray(SIXTEEN_BITS), "TIFF"),
        encode(Image.frombytes("I;16B", (7, 1), SIXTEEN_BITS.astype(">u2").tobytes()), "TIFF"),
        encode(Image.fromarray(SIXTEEN_BITS.astype(np.int32)), "TIFF"),
    ],
    ids=["PNG", "PGM", "TIFF", "big-endian TIFF", "32-bit TIFF"],
)
def test_grey_of_16_bits_is_scaled_not_clipped(data: bytes) -> None:
    assert reds(read_image(data)) == EIGHT_BITS


def test_a_clear_level_of_16_bit_grey_is_white() -> None:
    data = png(2, 1, 16, 0, b"\0" + struct.pack(">2H", 300, 600), tRNS=struct.pack(">H", 300))
    assert reds(read_image(data)) == [255, 2]


def test_colour_of_16_bits_gives_its_high_bytes() -> None:
    data = png(1, 1, 16, 2, b"\0" + struct.pack(">3H", 0x12FF, 0x8000, 0xFFFF))
    assert pixels(read_image(data)) == [(0x12, 0x80, 0xFF)]


@pytest.mark.parametrize(("values", "grey"), [([0, 0.5, 1], [0, 128, 255]), ([0, 0.6, 200], [0, 1, 200])])
def test_floats_run_to_1_or_to_255(values: list[float], grey: list[int]) -> None:
    data = encode(Image.fromarray(np.array([values], np.float32)), "TIFF")
    assert reds(read_image(data)) == grey


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB", "HSV"])
def test_other_modes_are_converted_by_pillow(mode: str) -> None:
    image = Image.open(PHOTOS / "cat.jpg").convert("RGB")
    converted = Image.new(mode, image.size, 0) if mode == "LAB" else image.convert(mode)
    assert np.array_equal(read_image(converted), np.asarray(converted.convert("RGB")))


def test_of_an_animation_the_first_frame_is_read() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        animation = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        assert np.asarray(read_image(animation))[0, 0].tolist() == pytest.approx([255, 0, 0], abs=2)


def test_limits_can_be_lowered_but_pixels_not_raised() -> None:
    assert read_image(PNG, max_pixels=64 * 48, max_bytes=len(PNG)).size == (64, 48)
    with pytest.raises(ImageError, match="<bytes>: has more than 3,071 pixels"):
        read_image(PNG, max_pixels=64 * 48 - 1)
    with pytest.raises(ImageError, match="<image>: has more than 3,071 pixels"):
        read_image(noise(), max_pixels=64 * 48 - 1)
    for source in (PNG, io.BytesIO(PNG)):
        with pytest.raises(ImageError, match="has more than 100 bytes"):
            read_image(source, max_bytes=100)
    for wrong in (0, 2**30):
        with pytest.raises(InvalidArgumentError, match="max_pixels"):
            read_image(PNG, max_pixels=wrong)


def test_streams_are_read_from_their_start_and_broken_ones_refused() -> None:
    stream = io.BytesIO(PNG)
    stream.read(10)
    assert read_image(stream).size == (64, 48)
    stream.close()
    with pytest.raises(ImageError, match="<stream>: cannot be read from its stream"):
        read_image(stream)
    with pytest.raises(ImageError, match="cannot be read from its stream"):
        read_image(io.StringIO("text"))  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="not <class 'int'>"):
        read_image(7)  # type: ignore[arg-type]


def test_an_image_without_pixels_is_refused() -> None:
    with pytest.raises(ImageError, match="has no pixels"):
        read_image(Image.new("RGB", (0, 5)))


def test_pillow_s_warnings_neither_show_nor_become_errors() -> None:
    corrupt_exif = encode(noise(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\1\3\0\xff\xff\xff\xff" * 3)
    large = png(10_000, 9_000, 1, 0, (b"\0" * 1251) * 9_000)  # more pixels than Pillow takes without a warning
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        assert read_image(corrupt_exif).size == (64, 48)
        assert read_image(large).size == (10_000, 9_000)
        assert warnings.filters == before
    assert heard == []


def test_threads_read_at_once_and_leave_the_warning_filters_as_they_were() -> None:
    expected, before = np.asarray(read_image(JPEG)), list(warnings.filters)
    wrong: list[object] = []

    def read_many() -> None:
        for _ in range(50):
            if not np.array_equal(read_image(JPEG), expected):
                wrong.append("pixels")
            try:
                read_image(JPEG[:500])
            except ImageError:
                continue
            wrong.append("read")

    threads = [threading.Thread(target=read_many) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert warnings.filters == before


# Which files are found.


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("b.JPG", "a.png", "notes.txt", "deep/er/c.webp", ".hidden.jpg", ".cache/d.jpg", "z.tiff"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(paths: object, **options: object) -> list[str]:
    return [path.as_posix() for path in find_images(paths, **options)]  # type: ignore[arg-type]


def test_a_folder_gives_its_images_sorted_and_without_hidden_ones(folder: Path) -> None:
    assert found(".") == ["a.png", "b.JPG", "deep/er/c.webp", "z.tiff"]
    assert found([folder / "deep"]) == [(folder / "deep/er/c.webp").as_posix()]


def test_what_is_named_is_yielded_in_the_order_given_whatever_it_is(folder: Path) -> None:
    assert found(["z.tiff", "notes.txt", ".hidden.jpg", "gone.jpg", "deep", ".cache", "z.tiff"]) == [
        "z.tiff",
        "notes.txt",
        ".hidden.jpg",
        "gone.jpg",
        "deep/er/c.webp",
        ".cache/d.jpg",
        "z.tiff",
    ]


def test_a_glob_stands_for_what_it_matches(folder: Path) -> None:
    assert found("*.png") == ["a.png"]
    assert found(folder / "[ab].*") == [f"{folder.as_posix()}/{name}" for name in ("a.png", "b.JPG")]
    assert found("*") == ["a.png", "b.JPG", "deep/er/c.webp", "notes.txt", "z.tiff"]
    assert found("**/*.webp") == ["deep/er/c.webp"]
    assert found("**/*") == ["a.png", "b.JPG", "deep/er/c.webp", "notes.txt", "z.tiff"]
    assert found(".c*/*") == [".cache/d.jpg"]
    assert found("*.bmp") == ["*.bmp"]


def test_a_name_that_looks_like_a_glob_is_taken_as_it_stands(folder: Path) -> None:
    (folder / "[a].png").touch()
    assert found("[a].png") == ["[a].png"]


@pytest.mark.skipif(sys.platform == "win32", reason="links ask for rights on Windows")
def test_links_that_lead_in_circles_end(folder: Path) -> None:
    for number in range(5):
        (folder / "deep" / f"loop{number}").symlink_to(folder, target_is_directory=True)
    (folder / "deep" / "self").symlink_to("self")
    (folder / "deep" / "y.png").symlink_to("nowhere")
    assert found(".") == ["a.png", "b.JPG", "deep/er/c.webp", "deep/y.png", "z.tiff"]
    assert found("**/*.webp") == ["deep/er/c.webp"]


def test_folders_may_nest_deeper_than_python_recurses(folder: Path) -> None:
    deepest = "n/" * 400
    os.makedirs(deepest)
    Path(deepest, "c.png").touch()
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(300)
    try:
        assert len(found("n")[0]) == len(deepest + "c.png")
    finally:
        sys.setrecursionlimit(limit)


def test_a_folder_that_cannot_be_listed_is_told_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("er"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("sightline.images.os.scandir", refuse)
    errors: list[ImageError] = []
    assert found(".", on_error=errors.append) == ["a.png", "b.JPG", "z.tiff"]
    assert [str(error) for error in errors] == ["deep/er: may not be read (permission denied)"]
    with pytest.raises(ImageError, match="deep/er: may not be read"):
        found(".")
