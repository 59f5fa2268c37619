"""Data that are wrong, or meant to do harm: each has a stated result, and none ends a training that can go on."""

import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import pytest
import torch

from data_files import picture, sample_files, write_csv, write_parquet, write_shard, write_tar
from sightline.data import Augment, Batches, open_pairs
from sightline.errors import DataError, SightlineError
from sightline.tokenizer import Tokenizer

TOKENIZER = Tokenizer.standard(16, 1000)

# ── sources that are refused when they are opened ────────────────────────────────────────────────────────────────────


def gzipped(folder: Path) -> Path:
    with tarfile.open(folder / "a.tar", "w:gz") as tar:
        tar.add(__file__, "a.txt")
    return folder / "a.tar"


def written(name: str, data: bytes | str):
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
        return folder / name

    return write


def folder_of(*names: str):
    def write(folder: Path) -> Path:
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(picture(0))
        return folder

    return write


def pipe(name: str):
    def write(folder: Path) -> Path:
        os.mkfifo(folder / name)
        return folder / name

    return write


REFUSED = {
    "a missing table": (lambda folder: folder / "no.csv", r"no\.csv: does not exist"),
    "a missing folder": (lambda folder: folder / "no", r"no: does not exist"),
    "a missing shard": (lambda folder: f"{folder}/{{0..1}}.tar", r"0\.tar: does not exist"),
    "missing Parquet": (lambda folder: folder / "no.parquet", r"no\.parquet: does not exist"),
    "missing remote Parquet": (lambda folder: "memory://no/no.parquet", r"memory://no/no\.parquet: does not exist"),
    "a protocol unknown": (lambda folder: "nope://x.parquet", r"nope://x\.parquet: cannot be read .*nope"),
    "a glob without a match": (lambda folder: f"{folder}/*.tar", r"\*\.tar: matches no file"),
    "a range that is empty": (lambda folder: f"{folder}/{{3..1}}.tar", "range that is empty"),
    "a range without end": (lambda folder: f"{folder}/{{0..{10**15}}}.tar", "of more than 1,000,000"),
    "a name with NUL": (lambda folder: f"{folder}/a\0.csv", r"a\\x00\.csv: is not a name that a file can have"),
    "a command": (lambda folder: "pipe:touch /tmp/harm.tar", "Sightline runs none"),
    "a command among shards": (lambda folder: "a.tar::pipe:cat a.tar", "Sightline runs none"),
    "a remote shard": (lambda folder: "s3://bucket/a.tar", "only Parquet is read"),
    "another kind": (written("a.zip", b"PK"), r"a\.zip: is of a kind that is not read; read are \.csv"),
    "wrong columns": (written("a.csv", "url,words\nx,y\n"), r"a\.csv: has no image column .*it has 'url', 'words'"),
    "no caption column": (written("a.csv", "path,words\nx,y\n"), r"no caption column .*it has 'path', 'words'"),
    "wrong keys": (written("a.jsonl", '{"x": 1}'), r"a\.jsonl: has no image column .*it has 'x'"),
    "an empty CSV": (written("a.csv", ""), r"a\.csv: has no image column .*no columns"),
    "a CSV without rows": (written("a.csv", "path,caption\n\n"), r"a\.csv: has no rows"),
    "an empty JSONL": (written("a.jsonl", "\n"), r"a\.jsonl: has no image column"),
    "JSONL that is JSON": (written("a.jsonl", "[\n{}]"), r"a\.jsonl, row 1: is not JSON"),
    "JSONL of lists": (written("a.jsonl", "[1]"), r"row 1: is no JSON object but list"),
    "a UTF-16 CSV": (written("a.csv", "path,caption\n".encode("utf-16")), r"a\.csv: is UTF-16: save it as UTF-8"),
    "a header of 10 MB": (written("a.csv", "a" * 10**7), r"a\.csv: has a header that cannot be read"),
    "a CSV that is none": (written("a.csv", bytes(range(256))), r"a\.csv: has "),
    "a pipe for a table": (pipe("a.csv"), r"a\.csv: is not a regular file"),
    "a pipe for a shard": (pipe("a.tar"), r"a\.tar: is not a regular file"),
    "a folder without images": (folder_of(), "has no images"),
    "a folder of shards": (lambda folder: write_shard(folder / "a.tar", range(1)).parent, r"\.tar files: name them"),
    "a folder that says nothing": (folder_of("a.png", "b.png"), r"no \.txt beside them, and no folder for each class"),
    "an empty shard": (lambda folder: write_tar(folder / "a.tar", []), r"a\.tar: has no image with a caption"),
    "a shard of zero bytes": (written("a.tar", b""), r"a\.tar: has no image with a caption"),
    "a shard without captions": (lambda folder: write_tar(folder / "a.tar", [("a.png", b"x")]), "1 is left out"),
    "a shard that is none": (written("a.tar", b"<html>" * 999), r"a\.tar: is no tar file"),
    "a compressed shard": (gzipped, r"is compressed \(gzip\)"),
    "Parquet that is none": (written("a.parquet", b"PAR1" * 99), r"a\.parquet: cannot be read as Parquet"),
    "Parquet cut off": (
        lambda folder: written("a.parquet", parquet_bytes(folder)[:-9])(folder),
        r"a\.parquet: cannot be read as Parquet",
    ),
    "Parquet of no rows": (lambda folder: parquet_of(folder, image=[b""][:0], caption=[""][:0]), "has "),
    "Parquet of wrong columns": (lambda folder: parquet_of(folder, url=["x"], words=["y"]), "it has 'url', 'words'"),
    "Parquet of pixels": (lambda folder: parquet_of(folder, image=[[1, 2]], caption=["y"]), "not encoded ones"),
    "Parquet of numbered labels": (lambda folder: parquet_of(folder, image=[b"x"], label=[3]), "no names for them"),
}  # fmt: skip


def parquet_of(folder: Path, **columns) -> Path:
    return write_parquet(folder / "a.parquet", columns)


def parquet_bytes(folder: Path) -> bytes:
    return parquet_of(folder, image=[picture(0)], caption=["x"]).read_bytes()


@pytest.mark.parametrize("what", REFUSED)
def test_a_source_that_is_refused_says_what_and_where(what, tmp_path) -> None:
    write, message = REFUSED[what]
    with pytest.raises(DataError, match=message) as caught:
        open_pairs(write(tmp_path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert not Path("/tmp/harm.tar").exists()
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_both_a_label_and_a_caption_cannot_be_named(tmp_path) -> None:
    with pytest.raises(DataError, match="not both"):
        open_pairs(write_csv(tmp_path, 1), caption_column="caption", label_column="caption")
    with pytest.raises(DataError, match="has no column 'nope'; it has 'path', 'caption'"):
        open_pairs(write_csv(tmp_path, 1), image_column="nope")


# ── pairs that are skipped ───────────────────────────────────────────────────────────────────────────────────────────


def csv_rows(rows: str | bytes):
    """A table of good rows, and some of another kind in their midst."""

    def write(folder: Path) -> Path:
        path = write_csv(folder, 8)
        good = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join([*good[:5], rows.encode() if isinstance(rows, str) else rows, b"\n", *good[5:]]))
        return path

    return write


def json_rows(row: str):
    def write(folder: Path) -> Path:
        write_csv(folder, 8)
        good = [json.dumps({"path": f"{i}.png", "caption": f"caption {i}"}) for i in range(8)]
        (folder / "a.jsonl").write_text("\n".join([*good[:4], row, *good[4:]]))
        return folder / "a.jsonl"

    return write


def picture_file(data: bytes, name: str = "bad.png"):
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return csv_rows(f"{name},a caption")(folder)

    return write


def captioned(text: bytes | None):
    def write(folder: Path) -> Path:
        for i in range(8):
            (folder / f"{i}.png").write_bytes(picture(i))
            (folder / f"{i}.txt").write_text(f"caption {i}")
        (folder / "bad.png").write_bytes(picture(9))
        if text is not None:
            (folder / "bad.txt").write_bytes(text)
        return folder

    return write


def pipe_beside(folder: Path) -> Path:
    os.mkfifo(folder / "bad.txt")
    return captioned(None)(folder)


def shard_with(*files: tuple[str, bytes]):
    def write(folder: Path) -> Path:
        good = [file for i in range(8) for file in sample_files(i)]
        return write_tar(folder / "a.tar", [*good[:9], *files, *good[9:]])

    return write


SKIPPED = {
    "a missing image": (csv_rows("no.png,a caption"), "no.png", "does not exist"),
    "an image that is a folder": (csv_rows("../,a caption"), "pytest", "is a folder, not a file"),
    "an address": (csv_rows("https://x.org/a.png,a caption"), "https:", "does not exist"),
    "a name with NUL": (csv_rows("a\0.png,a caption"), "a\\x00.png", "is not a name that a file can have"),
    "no image in the row": (csv_rows(",a caption"), "row 5", "has no image in column 'path'"),
    "no caption in the row": (csv_rows("0.png"), "0.png", "has no caption"),
    "an empty caption": (csv_rows('0.png," \x01\t"'), "0.png", "has no caption"),
    "a caption that cleaning empties": (csv_rows("0.png,&#32;"), "0.png", "without a word"),
    "a caption that is not UTF-8": (csv_rows(b"0.png,caf\xe9"), "0.png", "not UTF-8"),
    "a field of 10 MB": (csv_rows("0.png," + "a" * 10**7), "row 5", "field larger than field limit"),
    "a stray quote": (csv_rows('0.png,"a "big" dog'), "row 5", "cannot be read (',' expected after '\"')"),
    "a JSON list": (json_rows("[1, 2]"), "row 5", "is no JSON object but list"),
    "broken JSON": (json_rows('{"path": '), "row 5", "is not JSON"),
    "JSON without end": (json_rows("[" * 100_000), "row 5", "is not JSON"),
    "a number for a caption": (json_rows('{"path": "0.png", "caption": 3}'), "0.png", "no text but int"),
    "a number for an image": (json_rows('{"path": 3, "caption": "x"}'), "row 5", "has no image"),
    "half a character": (json_rows('{"path": "0.png", "caption": "\\ud83d"}'), "0.png", "not UTF-8"),
    "an empty image": (picture_file(b""), "bad.png", "is empty"),
    "a text for an image": (picture_file(b"<html>" * 9), "bad.png", "is not an image"),
    "a truncated image": (picture_file(picture(0)[:-100]), "bad.png", "is truncated"),
    "a truncated JPEG": (picture_file(picture(0, (300, 300), "JPEG")[:-900], "bad.jpg"), "bad.jpg", "is truncated"),
    "an image too thin": (picture_file(picture(0, (2100, 1))), "bad.png", "is too long and thin"),
    "no caption file": (captioned(None), "bad.txt", "does not exist"),
    "a caption file of 10 MB": (captioned(b"a" * 10**7), "bad.txt", "has more than 1,048,576 bytes"),
    "an empty caption file": (captioned(b"\n\n"), "bad.png", "has no caption"),
    "a caption file not UTF-8": (captioned(b"caf\xe9"), "bad.png", "not UTF-8"),
    "a pipe for a caption": (pipe_beside, "bad.txt", "is not a regular file"),
    "a caption that is no JSON": (shard_with(("b.png", picture(9)), ("b.json", b"{")), "b.png", "not JSON"),
    "JSON without a caption": (shard_with(("b.png", picture(9)), ("b.json", b"[]")), "b.png", "has no caption"),
    "a caption of 2 MB": (shard_with(("b.png", picture(9)), ("b.txt", b"a" * 2**21)), "b.png", "1,048,576 bytes"),
    "a shard's caption not UTF-8": (shard_with(("b.png", picture(9)), ("b.txt", b"\xff\xfe")), "b.png", "not UTF-8"),
    "a pickle for an image": (shard_with(("b.png", pickle.dumps(1)), ("b.txt", b"x")), "b.png", "is not an image"),
    "nothing in Parquet": (
        lambda folder: parquet_of(folder, image=[picture(0)] * 8 + [None], caption=["x"] * 9),
        "row 9",
        "has no image in column 'image'",
    ),
    "no label in Parquet": (
        lambda folder: parquet_of(folder, image=[picture(0)] * 9, label=["x"] * 8 + [None]),
        "row 9",
        "has no label",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", SKIPPED)
def test_a_bad_pair_is_skipped_and_listed(what, tmp_path) -> None:
    write, name, reason = SKIPPED[what]
    pairs = open_pairs(write(tmp_path))
    batches = Batches(pairs, TOKENIZER, Augment(8), batch_size=len(pairs))
    batch = next(iter(batches))
    assert len(pairs) == 9
    assert len(batch) == 9
    assert batches.report.failed == len(batches.report.failures) == 1
    (failure,) = batches.report.failures.values()
    assert name in failure.name
    assert reason in failure.reason
    assert "\n" not in str(failure)


# ── shards that are used as far as they go ───────────────────────────────────────────────────────────────────────────


def test_a_shard_that_is_cut_gives_the_samples_that_are_whole(tmp_path) -> None:
    whole = write_shard(tmp_path / "whole.tar", range(4))
    with tarfile.open(whole) as tar:
        ends = [member.offset_data + member.size for member in tar if member.name.endswith(".txt")]
    for place in range(ends[0], tar.offset, 301):
        shard = tmp_path / f"{place}.tar"
        shard.write_bytes(whole.read_bytes()[:place])
        pairs = open_pairs(shard)
        assert len(pairs) == sum(end <= place for end in ends)
        assert [pairs[i].image for i in range(len(pairs))] == [picture(i) for i in range(len(pairs))]
        assert pairs.notes[0].startswith(f"{shard}: ")
        assert f"at byte {place:,}" in pairs.notes[0]
        assert pairs.notes[0].endswith("only the samples before that are used")


def test_a_shard_damaged_in_the_middle_says_where(tmp_path) -> None:
    shard = write_shard(tmp_path / "a.tar", range(4))
    with tarfile.open(shard) as tar:
        place = [member.offset for member in tar][6]
    data = bytearray(shard.read_bytes())
    data[place : place + 8] = b"\xff" * 8
    shard.write_bytes(data)
    pairs = open_pairs(shard)
    assert len(pairs) == 2
    assert pairs.notes == (f"{shard}: is damaged at byte {place:,}; only the samples before that are used",)


def test_a_shard_that_shrinks_after_it_was_opened_fails_by_the_sample(tmp_path) -> None:
    shard = write_shard(tmp_path / "a.tar", range(4))
    pairs = open_pairs(shard)
    os.truncate(shard, 2048)
    with pytest.raises(DataError, match="it has changed since it was opened"):
        pairs[3]
    assert pairs.name(3) == f"{shard}, pair 4"


class Harm:
    def __reduce__(self):
        return os.system, ("touch /tmp/harm",)


def test_nothing_in_a_shard_is_unpacked_unpickled_or_run(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    harm = pickle.dumps(Harm())
    files = [
        ("../../escaped.png", picture(0)), ("../../escaped.txt", b"two up"),
        ("/tmp/absolute.png", picture(1)), ("/tmp/absolute.txt", b"absolute"),
        ("a.pyd", harm), ("a.pickle", harm), ("a.pth", harm), ("a.png", picture(2)), ("a.txt", b"with pickles"),
    ]  # fmt: skip
    shard = write_tar(tmp_path / "a.tar", files)
    with tarfile.open(shard, "a") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo("link.png")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        member = tarfile.TarInfo("link.txt")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"text"))
    pairs = open_pairs(shard)
    assert [pairs[i].captions for i in range(len(pairs))] == [("two up",), ("absolute",), ("with pickles",)]
    assert [pairs[i].image for i in range(3)] == [picture(0), picture(1), picture(2)]
    assert pairs.notes == (
        f"{shard}: 1 is left out for want of an image or a caption",
        f"{shard}: 3 are pickled, and left unread",
    )
    assert not any(Path(path).exists() for path in ("/tmp/harm", "/tmp/absolute.png", tmp_path / "../../escaped.png"))
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar"}


def test_headers_that_lie_about_sizes_end_the_reading(tmp_path) -> None:
    good = write_shard(tmp_path / "good.tar", range(1)).read_bytes().rstrip(b"\0")
    good += b"\0" * (-len(good) % 512)
    for field in (b"77777777777\0", b"\x80" + b"\xff" * 11, b"-0000000001\0", b"9999999999x\0"):
        for kind in b"0xLS":
            header = tarfile.TarInfo("b.png").tobuf(tarfile.GNU_FORMAT)
            header = header[:124] + field + header[136:156] + bytes([kind]) + header[157:]
            header = header[:148] + b"%06o\0 " % (256 + sum(header[:148]) + sum(header[156:])) + header[156:]
            (tmp_path / "a.tar").write_bytes(good + header + b"99999999999 path=x\n".ljust(512, b"\0"))
            os.utime(tmp_path / "a.tar", (kind, sum(field)))
            pairs = open_pairs(tmp_path / "a.tar")
            assert len(pairs) == 1
            assert len(pairs.notes) == 1


def test_odd_pax_records_are_read_quickly_and_as_far_as_they_go(tmp_path) -> None:
    good = write_shard(tmp_path / "good.tar", range(1)).read_bytes()
    records = [b"5 a=\n" * 200_000, b"9" * 5000 + b" path=x\n", b"3 a=b\n", b"0 \n", b"-5 a=\n", b"\xff" * 600]
    for number, record in enumerate(records):
        header = tarfile.TarInfo("pax")
        header.type, header.size = tarfile.XHDTYPE, len(record)
        shard = tmp_path / f"{number}.tar"
        shard.write_bytes(header.tobuf() + record + b"\0" * (-len(record) % 512) + good)
        assert open_pairs(shard)[0].captions == ("caption 0",)


def test_the_same_name_twice_is_the_first(tmp_path) -> None:
    files = [*sample_files(0), ("0000.txt", b"another")]
    pairs = open_pairs(write_tar(tmp_path / "a.tar", files))
    assert pairs[0].captions == ("caption 0",)
    assert pairs.notes == (f"{tmp_path / 'a.tar'}: 1 is there a second time: the first is used",)


# ── captions ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_caption_too_long_is_cut_counted_and_named_and_its_end_token_is_last(tmp_path) -> None:
    path = csv_rows("0.png," + "a long caption " * 20 + "\n1.png," + "b" * 100_000)(tmp_path)
    batches = Batches(open_pairs(path), TOKENIZER, Augment(8), batch_size=10)
    batch = next(iter(batches))
    assert batch.tokens.shape == (10, 16)
    assert batches.report.cut == 2
    assert sorted(batches.report.cut_names) == sorted(batch.cut) == ["0.png", "1.png"]
    for row, index in zip(batch.tokens, batch.indices.tolist(), strict=True):
        end = int(row.argmax())
        assert row[end] == TOKENIZER.end_id
        assert not row[end + 1 :].any()
        assert (end == 15) == (index in (4, 5))
    assert batches.report.lines()[0] == "2 of 10 captions were longer than the context and were cut:"


def test_tokens_are_those_of_the_tokenizer(tmp_path) -> None:
    path = csv_rows("0.png,nul\0inside &amp; entities\n1.png," + "too long " * 20)(tmp_path)
    pairs = open_pairs(path)
    batch = next(iter(Batches(pairs, TOKENIZER, Augment(8), batch_size=10)))
    expected = TOKENIZER([pairs[i].captions[0] for i in batch.indices.tolist()], truncate=True)
    assert torch.equal(batch.tokens, expected[:, : batch.tokens.shape[1]])


# ── too much is wrong ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("workers", [0, 1])
def test_where_all_is_bad_the_error_says_so(tmp_path, workers) -> None:
    (tmp_path / "a.csv").write_text("path,caption\n" + "no.png,a caption\n" * 300)
    batches = Batches(open_pairs(tmp_path / "a.csv"), TOKENIZER, Augment(8), batch_size=4, workers=workers)
    with pytest.raises(SightlineError, match=r"no\.png: does not exist; and so it is with 100 pairs one after another"):
        next(iter(batches))


def test_a_few_good_pairs_among_bad_ones_are_enough(tmp_path) -> None:
    path = write_csv(tmp_path, 40)
    path.write_text(path.read_text() + "no.png,a caption\n" * 360)
    batches = Batches(open_pairs(path), TOKENIZER, Augment(8), batch_size=20)
    batch = next(iter(batches))
    assert (batch.indices < 40).all()
    assert batches.report.failed > 40
    assert list(batches.report.failures) == [str(tmp_path / "no.png")]
    again = next(iter(Batches(open_pairs(path), TOKENIZER, Augment(8), batch_size=20)))
    assert torch.equal(batch.indices, again.indices)
