"""Labels as people write them: on the command line, or in a file."""

import csv
from pathlib import Path

from sightline.errors import InvalidArgumentError

_EXAMPLE = '--labels "cat, dog, rocket"'


def read_labels(text: str | None, file: Path | None) -> list[str]:
    """The labels of `--labels` or of `--labels-file`: one of the two must be given.

    Raises:
        InvalidArgumentError: if there are none, if they cannot be read, or if one is there twice.
    """
    if text is not None and file is not None:
        raise InvalidArgumentError("--labels and --labels-file are both given: leave one out")
    if text is not None:
        return _checked(_split(text), "--labels")
    if file is not None:
        return _checked(_lines(file), str(file))
    raise InvalidArgumentError(f"no labels: say what to look for, for example {_EXAMPLE}, or name a --labels-file")


def _split(text: str) -> list[str]:
    try:
        text.encode()
        rows = list(csv.reader([text], skipinitialspace=True, strict=True))
    except UnicodeEncodeError:  # bytes that the shell handed over
        raise InvalidArgumentError(f"--labels {text!r} is not UTF-8") from None
    except csv.Error as error:
        raise InvalidArgumentError(f"--labels {text!r} cannot be read ({error}): write {_EXAMPLE}") from None
    return [label for row in rows for label in row]


def _lines(file: Path) -> list[str]:
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except OSError as error:
        raise InvalidArgumentError(f"--labels-file {file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"--labels-file {file}: is not UTF-8 (byte {error.start})") from None
    return [line for line in lines if not line.lstrip().startswith("#")]


def _checked(given: list[str], where: str) -> list[str]:
    labels = [label.strip() for label in given if label.strip()]
    if not labels:
        raise InvalidArgumentError(f"{where}: has no labels; write them as in {_EXAMPLE}")
    seen: dict[str, str] = {}
    for label in labels:
        key = " ".join(label.lower().split())  # as far as the tokenizer tells labels apart
        if key in seen:
            also = f" (also as {seen[key]!r})" if seen[key] != label else ""
            raise InvalidArgumentError(f"{where}: the label {label!r} is there twice{also}; leave one out")
        seen[key] = label
    return labels
