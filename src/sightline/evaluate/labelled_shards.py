"""WebDataset shards for measuring: a class in a `.cls` beside each image, or several captions in a `.txt`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sightline.data.pairs import captions_of
from sightline.data.shards import Shards
from sightline.errors import DataError


class UnlabelledError(DataError):
    """Data in which there is no place for labels, and which may have captions; not data in which a label is missing."""


class LabelledShards(Shards):
    """Images with a `.cls` each: the number of a class, as CLIP_benchmark and webdataset write it, or its name."""

    texts = ("cls",)
    wanting = (
        "has no labels: needed is a folder of images for each class, a column 'label', or a .cls beside each image"
    )

    def __init__(self, paths: Sequence[Path]):
        try:
            super().__init__(paths)
        except DataError as error:
            if error.reason.startswith(self.wanting):
                raise UnlabelledError(error.name, error.reason) from None
            raise

    def labels(self) -> list[str]:
        return [self._label(index) for index in range(len(self))]

    def _label(self, index: int) -> str:
        shard, row = self._row(index)
        return self._captions(self.paths[shard], row, self.sources[shard])[0]

    def _captions(self, path: str, row: np.void, name: str) -> tuple[str, ...]:
        return captions_of(self.text(path, row, name), name)


class CaptionedShards(Shards):
    """Images with a `.txt` each, of which every line is a caption."""

    texts = ("txt", "json")

    def _captions(self, path: str, row: np.void, name: str) -> tuple[str, ...]:
        if row["json"]:
            return super()._captions(path, row, name)
        return captions_of(self.text(path, row, name).splitlines(), name)
