"""Tiny real training data on disk, for the tests: pictures, and every kind of file that holds pairs."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def picture(i: int, size: tuple[int, int] = (24, 20), kind: str = "PNG") -> bytes:
    """An encoded picture that differs from the others: noise about a colour of its own."""
    noise = np.random.default_rng(i).integers(0, 256, (size[1], size[0], 3))
    file = io.BytesIO()
    Image.fromarray((noise // 2 + (i * 37 % 128)).astype(np.uint8)).save(file, kind)
    return file.getvalue()


def write_csv(folder: Path, n: int, name: str = "pairs.csv") -> Path:
    """`n` pictures and a table of their paths and captions."""
    for i in range(n):
        (folder / f"{i}.png").write_bytes(picture(i))
    rows = "".join(f'{i}.png,"caption, number {i}"\n' for i in range(n))
    (folder / name).write_text("path,caption\n" + rows)
    return folder / name


def write_tar(path: Path, files: list[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), 1.5  # type: ignore[assignment]  # as webdataset writes it
            tar.addfile(member, io.BytesIO(data))
    return path


def sample_files(i: int) -> list[tuple[str, bytes]]:
    """What a shard holds of one sample."""
    described = json.dumps({"caption": f"described {i}"}).encode()
    return [(f"{i:04d}.png", picture(i)), (f"{i:04d}.txt", f"caption {i}".encode()), (f"{i:04d}.json", described)]


def write_shard(path: Path, numbers: range) -> Path:
    return write_tar(path, [file for i in numbers for file in sample_files(i)])


def write_parquet(path: Path, columns: dict, row_group_size: int = 4, metadata: dict | None = None) -> Path:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table(columns)
    if metadata:
        table = table.replace_schema_metadata(metadata)
    parquet.write_table(table, path, row_group_size=row_group_size)
    return path
