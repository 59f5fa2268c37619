"""The starter's training data: every image small and ready to use, every class with its everyday names.

    python recipes/starter/pairs.py DATA OUT

DATA holds `tiny-imagenet`, `cifar10`, `cifar100` and `caltech101`, each with a `train.parquet` of encoded `image`,
`label` and `synonyms`. OUT gets two Parquet files of each: `train/NAME.parquet`, and `held-out/NAME.parquet` with the
last 500 images, by which anything is chosen that has to be chosen.

A class is called by its names in `concepts.json` (else its label and synonyms), and by what it is a kind of, so that
sharp pictures too are known as "cat", "dog" or "person". One in five sharp images loses half of its resolution: the
small sets come enlarged and so blurred, which would otherwise tell the sets apart.
"""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIDES = {"tiny-imagenet": 64, "cifar100": 32, "cifar10": 32, "caltech101": 80}
HELD_OUT = 500
BLURRED = 0.2
TIMES = {"caltech101": 3}  # how often a set that is small is in the data
ROWS = 500


def small(data: bytes, side: int, halve: bool) -> bytes:
    """The centre square of an image, at most `side` pixels wide, as a PPM file: it takes no time to decode."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = side / min(image.size) / (2 if halve else 1)
    side = side // 2 if halve else side
    if scale != 1:
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    buffer = io.BytesIO()
    image.crop((left, top, left + side, top + side)).save(buffer, "PPM")
    return buffer.getvalue()


def names_of(label: str, synonyms: list[str], concepts: dict) -> list[str]:
    """What an image of a class may be called: its everyday name first, the label itself among the rest."""
    names = [*concepts["names"].get(label, ()), label, *([] if label in concepts["names"] else synonyms)]
    kinds = [kind for kind, members in concepts["hypernyms"].items() if label in members]
    return list(dict.fromkeys([*(name.lower() for name in names), *kinds]))


def rows(table: pa.Table, name: str, concepts: dict, augment: bool) -> Iterator[dict]:
    random = Random(name)
    for row in table.to_pylist():
        halve = augment and not name.startswith("cifar") and random.random() < BLURRED
        label, *others = names_of(row["label"], row["synonyms"], concepts)
        yield {"image": small(row["image"], SIDES[name], halve), "label": label, "synonyms": others}


def main(source: Path, out: Path) -> None:
    concepts = json.loads((Path(__file__).parent / "concepts.json").read_text("utf-8"))
    for part in ("train", "held-out"):
        (out / part).mkdir(parents=True, exist_ok=True)
    for name in SIDES:
        table = pq.read_table(source / name / "train.parquet", columns=["image", "label", "synonyms"])
        cut = len(table) - HELD_OUT
        train = pa.concat_tables([table.slice(0, cut)] * TIMES.get(name, 1))
        for part, images in (("train", train), ("held-out", table.slice(cut))):
            made = pa.Table.from_pylist(list(rows(images, name, concepts, part == "train")))
            pq.write_table(made, out / part / f"{name}.parquet", row_group_size=ROWS, compression="none")
        print(f"{name}: {cut:,} images to train on, {HELD_OUT} held out", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
