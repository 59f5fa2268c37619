"""Safe decoding of image files that nobody has vouched for.

`read_image` makes one upright RGB picture of a file, bytes, a stream or a PIL image, or raises an
`ImageError` whose reason is a few plain words. `read_reduced` does so for an image that will be made small.
`find_images` turns files, folders and globs into paths.

A format is known by the first bytes of a file, never by its suffix; of an animation the first frame is
read. What becomes of the pixels:

- Grey of more than 8 bits is scaled, not clipped: integers as 0..65535 (v / 257, rounded), floats as 0..1
  if all of them lie there, else as 0..255. Values beyond are refused, and so are floats that are not
  finite. (Colour of 16 bits is Pillow's own: the high byte of each sample.)
- Transparency is laid over white. (`Preprocess` drops it from a PIL image, as the original does.)
- All else (CMYK, YCbCr, Lab, palettes, 1 bit) Pillow converts. Colour profiles are not applied.
- The image is turned as its EXIF or XMP orientation says.

Any number of threads may read at once. Of what is global nothing changes but the warning filters, which
hold one entry about Pillow while a read is under way.
"""

import errno
import os
import re
import stat
import threading
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from sightline.errors import ImageError, InvalidArgumentError
from sightline.image_headers import check_exif, check_header, open_image
from sightline.pixels import SIDEWAYS, decode_jpeg, to_rgb, turn_of

MAX_PIXELS = 178_956_970  # what Pillow itself never exceeds (2 × Image.MAX_IMAGE_PIXELS): 683 MiB as RGB
MAX_BYTES = 2**29
MAX_JPEG_SCANS = 100  # usual are ten; each is a pass over all pixels, and a hundred bytes can ask for one

_STEMS = "jpg jpeg jpe jfif png apng webp gif bmp tif tiff avif pbm pgm ppm pnm pfm"
SUFFIXES = frozenset(f".{stem}" for stem in _STEMS.split())
_SIGNATURES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WebP": rb"RIFF....WEBP",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "AVIF": rb"....ftyp(avif|avis|mif1|msf1)",
    "PPM": rb"P[1-6f][\s#]",
}
_SCAN = re.compile(rb"\xff\xda\0")
_FILE_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_OS_REASONS = {
    errno.ENOENT: "does not exist",
    errno.ENOTDIR: "does not exist",
    errno.EACCES: "may not be read (permission denied)",
    errno.EPERM: "may not be read (permission denied)",
    errno.ELOOP: "is a link that leads in a circle",
    errno.ENAMETOOLONG: "has too long a name",
}
ImageSource = str | os.PathLike | bytes | BinaryIO | Image.Image


def read_image(
    source: ImageSource,
    *,
    name: str | None = None,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
) -> Image.Image:
    """Decodes an image to upright RGB by the rules at the head of this module.

    Args:
        source: a path, the bytes of a file, a binary stream (from its start if it can seek), or a PIL image.
        name: what an error calls the image; by default its path.
        max_pixels: checked when the header is read, before a pixel is decoded; `MAX_PIXELS` at most.
        max_bytes: checked before the file is read.

    Returns:
        A new image of mode "RGB" without metadata.

    Raises:
        ImageError: for whatever may be wrong with the image.
        InvalidArgumentError: for an argument of another type, or a `max_pixels` out of range.
    """
    if not 0 < max_pixels <= MAX_PIXELS:
        raise InvalidArgumentError(f"max_pixels is {max_pixels}; it must be between 1 and {MAX_PIXELS}")
    name = source_name(source) if name is None else printable_name(name)
    if isinstance(source, Image.Image):
        with _refusing(name, source.format or "image", max_pixels):
            return _decode(source, name, max_pixels)
    data = _read_bytes(source, name, max_bytes)
    kind = _kind_of(data, name)
    with _refusing(name, kind, max_pixels):
        return _decode(open_image(data, kind, name), name, max_pixels)


def read_reduced(source: ImageSource, enough: int | None) -> tuple[np.ndarray, tuple[int, int]]:
    """An image that will be made small: as `read_image` gives it, or where that is faster, smaller.

    Of a JPEG, no more is decoded than leaves the shorter side `enough` pixels; None: all of it is.

    Returns:
        The pixels, (height, width, 3) uint8, and the width and height of the whole image, both turned upright.

    Raises:
        ImageError: as `read_image`, for the same images and with the same words.
    """
    if isinstance(source, Image.Image):
        image = read_image(source)
        return np.array(image), image.size
    name = source_name(source)
    data = _read_bytes(source, name, MAX_BYTES)
    kind = _kind_of(data, name)
    with _refusing(name, kind, MAX_PIXELS):
        image = open_image(data, kind, name)
        _check_size(image, name, MAX_PIXELS)
        pixels = decode_jpeg(data, image, enough) if kind == "JPEG" else None
        if pixels is None:
            image = _decode(image, name, MAX_PIXELS)
            return np.array(image), image.size
        turn = turn_of(image)
        size = image.size[::-1] if turn in SIDEWAYS else image.size
        return (pixels if turn is None else np.array(Image.fromarray(pixels).transpose(turn))), size


def read_bytes(path: str | os.PathLike) -> bytes:
    """The bytes of an image file, which is looked at before it is read: no pipe hangs, and none is too large.

    Raises:
        ImageError: if it is no file, is empty, is larger than `MAX_BYTES`, or cannot be read.
    """
    return _read_bytes(path, source_name(path), MAX_BYTES)


@contextmanager
def open_header(data: bytes) -> Iterator[Image.Image]:
    """An image of which only the header is read, for its size and metadata.

    Raises:
        ImageError: for what is no image, and for whatever Pillow raises of it in here.
    """
    kind = _kind_of(data, "<bytes>")
    with _refusing("<bytes>", kind, MAX_PIXELS):
        yield open_image(data, kind, "<bytes>")


def printable_name(name: str | os.PathLike) -> str:
    r"""A file's name as one line of valid text: a line break shows as \n, a byte not UTF-8 as \udcff."""
    hidden = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return "".join(ascii(c)[1:-1] if unicodedata.category(c) in hidden else c for c in os.fsdecode(name))


def find_images(
    paths: str | os.PathLike | Iterable[str | os.PathLike],
    *,
    on_error: Callable[[ImageError], object] | None = None,
) -> Iterator[Path]:
    """Expands files, folders and globs to the paths of images, in the order given.

    A file is yielded whatever its suffix, and so is a path that leads nowhere: reading it says why.
    A folder gives the files below it that have one of `SUFFIXES`, sorted, without hidden entries, each
    linked folder once. A glob (`*`, `?`, `[…]`, `**` for any depth) stands for all that it matches.

    Args:
        on_error: is called for each folder that cannot be listed; without it, the error is raised.
    """
    for path in [paths] if isinstance(paths, (str, os.PathLike)) else paths:
        listed: set[tuple[int, int]] = set()
        walked: set[Path] = set()
        for match in _matches(Path(os.path.expanduser(os.fsdecode(path)))):
            if os.path.isdir(match):
                walked.add(match)
                yield from _walk(match, listed, on_error)
            elif walked.isdisjoint(match.parents):  # a glob may match a folder and also what is in it
                yield match


def _matches(given: Path) -> list[Path]:
    """What a glob stands for; of a glob without a match, and of any other path, itself."""
    fixed = next((i for i, part in enumerate(given.parts) if re.search(r"[*?\[]", part)), None)
    if fixed is None or os.path.lexists(given):
        return [given]
    base, pattern = Path(*given.parts[:fixed]), Path(*given.parts[fixed:])
    hidden_too = any(part.startswith(".") for part in pattern.parts)

    def is_hidden(path: Path) -> bool:
        return any(part.startswith(".") for part in path.relative_to(base).parts)

    return sorted(path for path in base.glob(str(pattern)) if hidden_too or not is_hidden(path)) or [given]


def _walk(folder: Path, listed: set[tuple[int, int]], on_error: Callable | None) -> Iterator[Path]:
    waiting = [(str(folder), True)]  # a stack of our own: folders nest deeper than Python recurses
    while waiting:
        path, is_folder = waiting.pop()
        if not is_folder:
            yield Path(path)
            continue
        try:
            waiting += _list(path, listed)
        except OSError as error:
            refusal = ImageError(printable_name(Path(path)), _os_reason(error))
            if on_error is None:
                raise refusal from error
            on_error(refusal)


def _list(folder: str, listed: set[tuple[int, int]]) -> list[tuple[str, bool]]:
    """The images and folders in a folder, last first; nothing if a link has led here before."""
    status = os.stat(folder)
    if (status.st_dev, status.st_ino) in listed:
        return []
    listed.add((status.st_dev, status.st_ino))
    kept = []
    with os.scandir(folder) as entries:
        for entry in entries:
            linked = entry.is_symlink() and os.path.isdir(entry.path)
            is_folder = linked or entry.is_dir(follow_symlinks=False)
            wanted = is_folder or os.path.splitext(entry.name)[1].lower() in SUFFIXES
            if wanted and not entry.name.startswith("."):
                kept.append((entry.path, is_folder))
    return sorted(kept, reverse=True)


def source_name(source: Any) -> str:
    """What an error calls an image: its path where it has one, on one line."""
    return printable_name(_stated_name(source))


def _stated_name(source: Any) -> str:
    if isinstance(source, (str, os.PathLike)):
        return os.fsdecode(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "<bytes>"
    if isinstance(source, Image.Image):
        return os.fsdecode(getattr(source, "filename", "") or "<image>")
    stated = getattr(source, "name", None)
    return stated if isinstance(stated, str) else "<stream>"


def _read_bytes(source: Any, name: str, max_bytes: int) -> bytes:
    if isinstance(source, (str, os.PathLike)):
        data = _read_file(source, name, max_bytes)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
    elif hasattr(source, "read"):
        data = _read_stream(source, name, max_bytes)
    else:
        raise InvalidArgumentError(f"an image is a path, bytes, a stream or a PIL image, not {type(source)}")
    if not data:
        raise ImageError(name, "is empty")
    if len(data) > max_bytes:
        raise ImageError(name, f"has more than {max_bytes:,} bytes")
    return data


def _read_file(path: str | os.PathLike, name: str, max_bytes: int) -> bytes:
    def open_at_once(path: str, flags: int) -> int:
        return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))

    try:
        _check_file(os.stat(path), name, max_bytes)  # first: opening alone can wake a writer or wind a tape
        with open(path, "rb", opener=open_at_once) as file:
            status = os.fstat(file.fileno())
            _check_file(status, name, max_bytes)  # again: something else may stand there by now
            return file.read(status.st_size)
    except ImageError:
        raise
    except OSError as error:
        raise ImageError(name, _os_reason(error)) from error
    except ValueError as error:
        raise ImageError(name, "is not a name that a file can have") from error


def _check_file(status: os.stat_result, name: str, max_bytes: int) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        raise ImageError(name, f"is {_FILE_KINDS.get(kind, 'something else')}, not a file")
    if status.st_size > max_bytes:
        raise ImageError(name, f"has more than {max_bytes:,} bytes")


def _os_reason(error: OSError) -> str:
    return _OS_REASONS.get(error.errno or 0, f"cannot be read ({error.strerror or type(error).__name__})")


def _read_stream(stream: Any, name: str, max_bytes: int) -> bytes:
    data = bytearray()
    try:
        if stream.seekable():
            stream.seek(0)
        while len(data) <= max_bytes and (block := stream.read(2**20)):
            data += block
    except Exception as error:
        raise ImageError(name, f"cannot be read from its stream ({type(error).__name__})") from error
    return bytes(data)


def _kind_of(data: bytes, name: str) -> str:
    """The format that the first bytes state; no decoder but its own ever sees the file, nor one too dear to open."""
    for kind, signature in _SIGNATURES.items():
        if re.match(signature, data[:16], re.DOTALL):
            if kind == "JPEG" and next(islice(_SCAN.finditer(data), MAX_JPEG_SCANS, None), None):
                raise ImageError(name, f"has more than {MAX_JPEG_SCANS} scans")
            check_header(data, kind, name)
            return kind
    raise ImageError(name, f"is not an image that Sightline reads ({', '.join(_SIGNATURES)})")


@contextmanager
def _refusing(name: str, kind: str, max_pixels: int) -> Iterator[None]:
    """Whatever Pillow raises leaves as an `ImageError`; whatever it warns of stays inside."""
    try:
        with _pillow_quiet():
            yield
    except ImageError:
        raise
    except Exception as error:  # of hostile files, decoders have raised nearly every kind there is
        if isinstance(error, Image.DecompressionBombError):
            reason = f"has more than {max_pixels:,} pixels"
        elif isinstance(error, MemoryError):
            reason = "needs more memory than there is"
        elif isinstance(error, EOFError) or "truncated" in str(error).lower():
            reason = "is truncated"
        else:
            reason = f"is truncated, damaged, or a kind of {kind} that Pillow cannot read"
        raise ImageError(name, reason) from error


_quiet_lock = threading.Lock()
_quiet_readers = 0
_quiet_entry = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


@contextmanager
def _pillow_quiet() -> Iterator[None]:
    """Silences Pillow's warnings, also under `-W error`, while any thread is in here.

    `warnings.catch_warnings` is not for threads: when two overlap, one's filters outlive both.
    """
    global _quiet_readers
    with _quiet_lock:
        _quiet_readers += 1
        filters: Any = warnings.filters
        if not filters or filters[0] is not _quiet_entry:
            filters.insert(0, _quiet_entry)
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_readers -= 1
            filters = warnings.filters
            while _quiet_readers == 0 and _quiet_entry in filters:
                filters.remove(_quiet_entry)


def _decode(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    _check_size(image, name, max_pixels)
    image.load()
    check_exif(image, name)  # again: that of a PNG may follow its pixels
    rgb = to_rgb(image, name)
    if (turn := turn_of(image)) is not None:
        rgb = rgb.transpose(turn)
    rgb.info.clear()  # or else a second reading would turn it again
    return rgb


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(name, f"has more than {max_pixels:,} pixels")
    if width * height == 0:
        raise ImageError(name, "has no pixels")
