"""Reading files that nobody has vouched for: whole ones up to a size, and pieces of large ones."""

import functools
import os
import stat

from sightline.errors import DataError
from sightline.images import printable_name

_OPEN_FILES = 64


def read_file(path: str | os.PathLike[str], limit: int) -> bytes:
    """The bytes of a regular file.

    Raises:
        DataError: for what cannot be read, what is no file (a pipe would be waited for), and above `limit` bytes.
    """
    check_file(path)  # first: to open a pipe is to wait for its writer
    try:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise DataError(printable_name(path), reason(error)) from error
    if len(data) > limit:
        raise DataError(printable_name(path), f"has more than {limit:,} bytes")
    return data


def read_at(path: str, offset: int, size: int) -> bytes:
    """`size` bytes of a file that stays open for the next call.

    Raises:
        DataError: if the file cannot be read, or ends before.
    """
    try:
        data = os.pread(_opened(path).number, size, offset)
    except OSError as error:
        raise DataError(printable_name(path), reason(error)) from error
    if len(data) < size:
        raise DataError(printable_name(path), f"ends before byte {offset + size:,}: it has changed since it was opened")
    return data


def check_file(path: str | os.PathLike[str]) -> os.stat_result:
    """The status of a regular file.

    Raises:
        DataError: if there is no such file, or if it is of another kind.
    """
    name = printable_name(path)
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(name, reason(error)) from error
    except ValueError as error:
        raise DataError(name, "is not a name that a file can have") from error
    if not stat.S_ISREG(status.st_mode):
        raise DataError(name, "is a folder, not a file" if stat.S_ISDIR(status.st_mode) else "is not a regular file")
    return status


def reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "does not exist"
    return f"cannot be read ({error.strerror or type(error).__name__})"


class _Opened:
    """A file descriptor that closes with its last user. `pread` moves no position, so forks and threads may share."""

    def __init__(self, path: str):
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


_opened = functools.lru_cache(maxsize=_OPEN_FILES)(_Opened)
