"""CIFAR-10's test images as the Parquet file that the accuracy command reads.

    python recipes/starter/cifar10_parquet.py cifar-10-binary.tar.gz cifar10/test.parquet

The archive is the "binary version" at https://www.cs.toronto.edu/~kriz/cifar.html. Needs pyarrow (the extra [parquet]).
"""

import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def main(archive: Path, target: Path) -> None:
    with tarfile.open(archive) as tar:
        files = {Path(member.name).name: tar.extractfile(member) for member in tar if member.isfile()}
        names = files["batches.meta.txt"].read().decode().split()
        records = np.frombuffer(files["test_batch.bin"].read(), np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    images = []
    for pixels in records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1):
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
        images.append(buffer.getvalue())
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": images, "label": [names[i] for i in records[:, 0]]}), target)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
