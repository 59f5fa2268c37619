"""A map in a process of its own: UMAP holds Python's lock for half a second at a time, and the server shall answer.

Messages are pickles. The process is sent what it is to make, sends texts and is sent their features, and at last sends
the map, or why there is none. It has no model: the server's encodes.
"""

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from sightline.encoder import Encoder
from sightline.index.catalogue import Catalogue
from sightline.map import Projection
from sightline.map.library_map import LibraryMap, make_map


class MapProcess:
    """Makes a map when it is called; another thread may end that."""

    def __init__(self, folder: Path, clip: Encoder):
        self._folder, self._clip = folder, clip
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, projection: Projection) -> LibraryMap:
        """As `make_map`; raises RuntimeError too, where the process has ended before."""
        command = [sys.executable, "-P", "-m", __name__]
        pipe = subprocess.PIPE
        # In a session of its own: Ctrl-C is for the server, which ends it.
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True) as self._process:
            asks, answers = cast(IO[bytes], self._process.stdin), cast(IO[bytes], self._process.stdout)
            try:
                answer: Any = (self._folder, projection, self._clip.embed_dim, self._clip.scale)
                while isinstance(answer, tuple | np.ndarray):
                    _send(asks, answer)
                    answer = pickle.load(answers)
                    if isinstance(answer, list):
                        answer = self._clip.encode_texts(answer)
            except (EOFError, OSError, pickle.UnpicklingError):
                raise RuntimeError("the process that makes the map has ended too early") from None
            finally:
                self._process.kill()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def close(self) -> None:
        """End what is being made."""
        if self._process is not None:
            self._process.kill()


class _Asked:
    """In the process, in the model's place."""

    def __init__(self, embed_dim: int, scale: float, asks: IO[bytes], answers: IO[bytes]):
        self.embed_dim, self.scale = embed_dim, scale
        self._asks, self._answers = asks, answers

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        _send(self._asks, list(texts))
        return pickle.load(self._answers)


def _send(pipe: IO[bytes], message: object) -> None:
    pickle.dump(message, pipe, pickle.HIGHEST_PROTOCOL)
    pipe.flush()


def _main() -> None:
    answers, asks = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no message
    if sys.platform != "win32":
        os.nice(10)  # the server comes first
    folder, projection, embed_dim, scale = pickle.load(answers)
    model: Any = _Asked(embed_dim, scale, asks, answers)
    try:
        with Catalogue.open(folder) as catalogue:
            made: object = make_map(catalogue, lambda: model, projection)
    except Exception as error:
        made = error
    _send(asks, made)


if __name__ == "__main__":
    _main()
