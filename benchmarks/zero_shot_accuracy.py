"""Zero-shot top-1 of a model over labelled images in Parquet.

    python benchmarks/zero_shot_accuracy.py cifar10/test.parquet [more.parquet …] [--model starter] [--template "a {}."]

Each file has a column `image` (encoded bytes) and a column `label` (the class name); the classes are the distinct
labels.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

import sightline


def accuracy(clip: sightline.Encoder, path: Path, templates: str | list[str]) -> tuple[float, int, int]:
    """Top-1, the number of images, and the number of classes."""
    table = pq.read_table(path, columns=["image", "label"])
    labels = np.array(table["label"].to_pylist())
    classifier = sightline.ZeroShotClassifier(clip, sorted(set(labels)), templates)
    predicted = classifier.predict(clip.encode_images(table["image"].to_pylist(), batch_size=256))
    return float((predicted == labels).mean()), len(labels), len(classifier.classes_)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--template", default="a photo of a {}.")
    arguments = parser.parse_args()
    clip = sightline.load(arguments.model)
    for path in arguments.files:
        top1, images, classes = accuracy(clip, path, arguments.template)
        print(
            f"{arguments.model}  {path.parent.name}/{path.stem}  {images:,} images, {classes} classes  top-1 {top1:.1%}"
        )


if __name__ == "__main__":
    main()
