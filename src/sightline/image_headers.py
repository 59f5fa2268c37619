"""What stands before an image's pixels, bounded: no limit on pixels bounds it, and Pillow goes through it in Python.

Thirty megabytes of empty markers before a JPEG of one pixel would take half a minute and gigabytes. So two things
are done, before and while Pillow opens a file:

- `check_header` walks a JPEG's segments, a PNG's chunks and a TIFF's tags by their lengths, a few dozen steps in a
  usual file, and counts what is dear. Its steps are Pillow's: what Pillow cannot read ends the walk, and is Pillow's
  to refuse.
- `open_image` lets Pillow read only so often while it opens a file: GIF blocks, TIFF tags, the single bytes of a PNM
  comment, and whatever else there is.

The limits are far above what cameras and programs write: a profile, a depth map or a history in XMP of several
megabytes is some hundred segments of 64 KiB.
"""

import io
import re
import struct
from itertools import islice

from PIL import Image

from sightline.errors import ImageError

MAX_JPEG_SEGMENTS = 4096  # before the picture, 256 MiB when full
MAX_JPEG_PARSED = {b"Exif\0\0": 64, b"Photoshop 3.0\0": 256}  # segments of 64 KiB that Pillow joins, or parses
MAX_JPEG_LOOSE = 2**16  # bytes of tables, and of what lies between segments: all that is not metadata
MAX_PNG_CHUNKS = 1000  # libpng's own limit
MAX_PNG_EXPANDING = 200  # of them such as Pillow may expand to 1 MiB each
MAX_PNG_DATA_CHUNKS = 2**17  # the largest files in the usual 8 KiB have half of it
MAX_PNM_COMMENTS = 1000
MAX_TIFF_VALUES = 2**20  # of a tag: the largest image has 700,000 of the smallest tiles
MAX_TIFF_FRACTIONS = 4096  # of a tag: each becomes an object of Python's
MAX_READS = 2**16  # a usual header takes some dozens
MAX_RUN_LENGTH_PIXELS = 2**24  # of a BMP, whose runs Pillow expands in Python
MAX_EXIF_BYTES = 2**22  # a tag of one value may hold millions, and each becomes an object

_MARKER = re.compile(rb"\xff[^\0\xff]")
_CHUNK_NAME = re.compile(rb"\w{4}")
_TIFF_BYTES, _TIFF_FRACTIONS = (1, 2, 7), (5, 10)  # types: BYTE, ASCII and UNDEFINED; RATIONAL and SRATIONAL
_PNG_DATA = (b"IDAT", b"fdAT", b"fcTL")
_PNG_EXPANDING = (b"iCCP", b"zTXt", b"iTXt")


def check_header(data: bytes, kind: str, name: str) -> None:
    """Raises ImageError, which calls the image `name`, if a file of a format has too many parts before its pixels."""
    walk = {"JPEG": _jpeg_excess, "PNG": _png_excess, "PPM": _pnm_excess, "TIFF": _tiff_excess}.get(kind)
    if walk and (much := walk(data)) is not None:
        raise ImageError(name, f"has {much}")


def open_image(data: bytes, kind: str, name: str) -> Image.Image:
    """The image of a file that `check_header` has passed, with its header read.

    Raises:
        ImageError: if the header has too many parts, or a part is too large.
        Exception: of any other kind by Pillow, for what is no image.
    """
    stream = _HeaderStream(data, name)
    image = Image.open(stream, formats=[kind])
    stream.opened()
    check_exif(image, name)
    if image.tile and image.tile[0][0] == "bmp_rle" and image.width * image.height > MAX_RUN_LENGTH_PIXELS:
        raise ImageError(name, f"is a run-length BMP of more than {MAX_RUN_LENGTH_PIXELS:,} pixels")
    return image


def check_exif(image: Image.Image, name: str) -> None:
    """Raises ImageError if there is more EXIF than it is safe to parse."""
    stated = (image.info.get("exif"), image.info.get("Raw profile type exif"))
    if any(len(exif) > MAX_EXIF_BYTES for exif in stated if isinstance(exif, (bytes, str))):
        raise ImageError(name, f"has more than {MAX_EXIF_BYTES:,} bytes of EXIF")


class _HeaderStream(io.BytesIO):
    """The bytes of an image file. To read them more than `MAX_READS` times raises an ImageError, until `opened`."""

    def __init__(self, data: bytes, name: str):
        super().__init__(data)
        self._name = name
        self._reads_left: float = MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads_left -= 1
        if self._reads_left < 0:
            raise ImageError(self._name, "has too many parts before its picture")
        return io.BytesIO.read(self, size)  # sooner than by super(): it is called for single bytes

    def opened(self) -> None:
        """From now on pixels are read, and their number has a limit of its own."""
        self._reads_left = float("inf")


def _jpeg_excess(data: bytes) -> str | None:
    position, segments, loose = 2, 0, 0
    parsed = dict.fromkeys(MAX_JPEG_PARSED, 0)
    while loose <= MAX_JPEG_LOOSE and (marker := _MARKER.search(data, position, position + MAX_JPEG_LOOSE + 2)):
        loose += marker.start() - position
        position, code = marker.end(), data[marker.end() - 1]
        if code < 0xC0 or code == 0xDA or position + 2 > len(data):  # no marker, the picture, or the end
            break
        if code == 0xC8 or 0xD0 <= code <= 0xD9 or 0xF0 <= code <= 0xFD:  # those that nothing belongs to
            loose += 2
            continue
        length = max(2, data[position] << 8 | data[position + 1])
        if 0xE0 <= code <= 0xEF or code == 0xFE:
            segments += 1
            for start, most in MAX_JPEG_PARSED.items():
                parsed[start] += data.startswith(start, position + 2)
                if segments > MAX_JPEG_SEGMENTS or parsed[start] > most:
                    return "too many segments before its picture"
        else:
            loose += length
        position += length
    else:
        loose += max(0, len(data) - position)  # no marker is near
    return "too many bytes between its segments and in its tables" if loose > MAX_JPEG_LOOSE else None


def _png_excess(data: bytes) -> str | None:
    position, chunks, expanding, data_chunks = 8, 0, 0, 0
    while position + 8 <= len(data) and _CHUNK_NAME.match(data, position + 4):
        length, name = struct.unpack_from(">I4s", data, position)
        position += length + 12  # with its name and checksum
        if name in _PNG_DATA:
            data_chunks += 1
        else:
            chunks += 1
            expanding += name in _PNG_EXPANDING
        if data_chunks > MAX_PNG_DATA_CHUNKS or chunks > MAX_PNG_CHUNKS or expanding > MAX_PNG_EXPANDING:
            return "too many chunks"
        if name == b"IEND":
            break
    return None


def _tiff_excess(data: bytes) -> str | None:
    """Of the first image's tags: Pillow makes a number of each value of those it asks for."""
    big = data[2:3] == b"+"
    order = "<" if data[:1] == b"I" else ">"
    count, entry = struct.Struct(order + "HQ"[big]), struct.Struct(order + ("2xHQ8x" if big else "2xHI4x"))
    try:
        (start,) = struct.unpack_from(order + "IQ"[big], data, 8 if big else 4)
        (entries,) = count.unpack_from(data, min(start, len(data)))
    except struct.error:
        return None
    directory = data[start + count.size : start + count.size + min(entries, MAX_READS) * entry.size]
    for tag_type, values in entry.iter_unpack(directory[: len(directory) // entry.size * entry.size]):
        is_bytes = tag_type in _TIFF_BYTES
        if not is_bytes and values > (MAX_TIFF_FRACTIONS if tag_type in _TIFF_FRACTIONS else MAX_TIFF_VALUES):
            return "too many values in a tag"
    return None


def _pnm_excess(data: bytes) -> str | None:
    """In the plain formats, whose pixels are text too, each comment is a pass over what follows."""
    if data[1] in b"123" and next(islice(re.finditer(b"#", data), MAX_PNM_COMMENTS, None), None):
        return f"more than {MAX_PNM_COMMENTS:,} comments"
    return None
