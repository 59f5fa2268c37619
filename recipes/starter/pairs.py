"""The starter's training data: every image small and ready to use, every class with its everyday names.

    python recipes/starter/pairs.py DATA OUT
    python recipes/starter/pairs.py DATA TWIN --leave-out 20

DATA holds `tiny-imagenet`, `cifar10`, `cifar100` and `caltech101`, each with a `train.parquet` of encoded `image`,
`label` and `synonyms`. OUT gets two Parquet files of each: `train/NAME.parquet`, and `held-out/NAME.parquet` with the
last 500 images, by which anything is chosen that has to be chosen.

A class is called by its names in `concepts.json` (else its label and synonyms), and by what it is a kind of, so that
sharp pictures too are known as "cat", "dog" or "person". One in five sharp images loses half of its resolution: the
small sets come enlarged and so blurred, which would otherwise tell the sets apart.

With `--leave-out N`, N classes of Tiny ImageNet are not in the pairs, drawn from those of which no name is taught
by another class; `OUT/left-out.parquet` has their images of `tiny-imagenet/val.parquet`, to measure what carries over
to names that were never seen.
"""

import argparse
import io
import json
import sys
from collections import Counter
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
COLUMNS = ["image", "label", "synonyms"]


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


def left_out(labels: dict[str, dict[str, list[str]]], concepts: dict, count: int) -> set[str]:
    """Classes of Tiny ImageNet that share no name with another class. `labels`: those of each set, with synonyms."""
    named = [
        (label, names_of(label, synonyms, concepts)) for of_set in labels.values() for label, synonyms in of_set.items()
    ]
    times = Counter(name for _, names in named for name in names if name not in concepts["hypernyms"])
    alone = {label for label, names in named if all(times[name] <= 1 for name in names)}
    return set(Random(0).sample(sorted(alone & set(labels["tiny-imagenet"])), count))


def labels_of(table: pa.Table) -> dict[str, list[str]]:
    return {row["label"]: row["synonyms"] for row in table.select(["label", "synonyms"]).to_pylist()}


def without(table: pa.Table, labels: set[str]) -> pa.Table:
    return table.filter(pa.array([label not in labels for label in table["label"].to_pylist()]))


def rows(table: pa.Table, name: str, concepts: dict, augment: bool) -> Iterator[dict]:
    random = Random(name)
    for row in table.to_pylist():
        halve = augment and not name.startswith("cifar") and random.random() < BLURRED
        label, *others = names_of(row["label"], row["synonyms"], concepts)
        yield {"image": small(row["image"], SIDES[name], halve), "label": label, "synonyms": others}


def main(source: Path, out: Path, leave_out: int) -> None:
    concepts = json.loads((Path(__file__).parent / "concepts.json").read_text("utf-8"))
    for part in ("train", "held-out"):
        (out / part).mkdir(parents=True, exist_ok=True)
    tables = {name: pq.read_table(source / name / "train.parquet", columns=COLUMNS) for name in SIDES}
    unseen = left_out({name: labels_of(table) for name, table in tables.items()}, concepts, leave_out)
    if unseen:
        measured = pq.read_table(source / "tiny-imagenet" / "val.parquet", columns=COLUMNS)
        pq.write_table(without(measured, set(labels_of(measured)) - unseen), out / "left-out.parquet")
        print(f"left out: {', '.join(sorted(unseen))}", file=sys.stderr)
    for name, whole in tables.items():
        table = without(whole, unseen)
        cut = len(table) - HELD_OUT
        train = pa.concat_tables([table.slice(0, cut)] * TIMES.get(name, 1))
        for part, images in (("train", train), ("held-out", table.slice(cut))):
            made = pa.Table.from_pylist(list(rows(images, name, concepts, part == "train")))
            pq.write_table(made, out / part / f"{name}.parquet", row_group_size=ROWS, compression="none")
        print(f"{name}: {cut:,} images to train on, {HELD_OUT} held out", file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--leave-out", type=int, default=0, metavar="N")
    arguments = parser.parse_args()
    main(arguments.data, arguments.out, arguments.leave_out)
