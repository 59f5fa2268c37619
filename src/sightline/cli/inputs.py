"""Paths as they are given: as arguments, and as a list on stdin."""

import os
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from sightline.errors import ImageError, InvalidArgumentError, SightlineError


def as_utf8(argument: str, option: str) -> str:
    """An argument's text, whatever the locale took its bytes for.

    Raises:
        InvalidArgumentError: if the shell handed over bytes that are not UTF-8.
    """
    try:
        return os.fsencode(argument).decode("utf-8")
    except UnicodeError:
        raise InvalidArgumentError(f"{option} {argument!r} is not UTF-8") from None


def check_paths(arguments: list[str], null: bool) -> None:
    """Refuse, before any work, a command line that names no input."""
    if not arguments and not null:
        raise InvalidArgumentError("no PATHS: name files, folders or globs, or - to read their names from stdin")
    if "" in arguments:  # an unset variable of the shell, which would stand for the folder that one is in
        raise InvalidArgumentError("one of the PATHS is empty")


def reads_stdin(arguments: list[str], null: bool) -> bool:
    return null or "-" in arguments


def find_given(arguments: list[str], null: bool, on_error: Callable[[ImageError], object]) -> Iterator[Path]:
    """The images that the arguments stand for, and those that stdin lists: for `-`, or with `null`.

    They are looked at as far as the first that exists: a typing error shall not cost a model's download.

    Raises:
        SightlineError: if none exists.
    """
    from sightline.images import find_images, printable_name

    found = find_images(_given(arguments, null), on_error=on_error)
    missing: list[Path] = []
    for path in found:
        if os.path.lexists(path):
            return chain(missing, [path], found)
        missing.append(path)
    if missing:
        more = f" (nor do {len(missing) - 1} others)" if len(missing) > 1 else ""
        raise SightlineError(f"no images found: {printable_name(missing[0])} does not exist{more}")
    where = [printable_name(path) for path in arguments if path != "-"]
    raise SightlineError(f"no images found in {', '.join(where) or 'the list on stdin'}")


def count_images(arguments: list[str]) -> int:
    """How many images `find_given` will find, where stdin has no part in it."""
    from sightline.images import find_images

    return sum(1 for _ in find_images(arguments, on_error=lambda error: None))


def _given(arguments: list[str], null: bool) -> Iterator[str]:
    for argument in arguments:
        if argument == "-":
            yield from _listed(sys.stdin.buffer, b"\0" if null else b"\n")
        else:
            yield argument
    if null and "-" not in arguments:
        yield from _listed(sys.stdin.buffer, b"\0")


def _listed(stream: BinaryIO, end: bytes) -> Iterator[str]:
    rest = b""
    while block := stream.read1(2**16):  # type: ignore[attr-defined]  # what has arrived, without waiting for more
        *names, rest = (rest + block).split(end)
        yield from _decoded(names, end)
    yield from _decoded([rest], end)


def _decoded(names: list[bytes], end: bytes) -> Iterator[str]:
    for name in names:
        # A list from Windows has \r\n; yet a name may end in \r.
        listed = name.removesuffix(b"\r") if end == b"\n" and not os.path.lexists(name) else name
        if listed:
            yield os.fsdecode(listed)
