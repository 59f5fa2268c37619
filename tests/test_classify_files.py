"""`sightline classify`: where paths come from, whatever they are called, and what it writes."""

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from command_fixtures import LABELS, command, draw, records, run
from sightline.cli.output import six_digits, spreadsheet_text
from sightline.images import printable_name

pytest_plugins = ["command_fixtures"]
pytestmark = pytest.mark.usefixtures("home")


# ── where paths come from ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("arguments", "input", "names"),
    [
        (["photos/*.png"], b"", ["0-red.png", "1-green.png", "2-blue.png"]),
        (["photos/2*", "photos/0-red.png"], b"", ["2-blue.png", "0-red.png"]),
        (["-"], b"photos/2-blue.png\n\nphotos/0-red.png", ["2-blue.png", "0-red.png"]),
        (["photos/1-green.png", "-"], b"photos/2-blue.png\n", ["1-green.png", "2-blue.png"]),
        (["-0"], b"photos/2-blue.png\0photos/0-red.png\0", ["2-blue.png", "0-red.png"]),
        (["--null", "-"], b"photos/2-blue.png\0", ["2-blue.png"]),
        (["-0", "photos/1-green.png"], b"photos/2-blue.png", ["1-green.png", "2-blue.png"]),
        (["-"], b"photos\n", ["0-red.png", "1-green.png", "2-blue.png"]),
        (["-"], b"photos/2-blue.png\r\n\r\nphotos/0-red.png\r", ["2-blue.png", "0-red.png"]),
    ],
)
def test_paths_are_arguments_globs_and_lists(
    photos: Path, model: str, arguments: list[str], input: bytes, names: list[str]
) -> None:
    options = ("--labels", LABELS, "--model", model, "--format", "jsonl")
    result = run("classify", *arguments, *options, input=input)
    assert (result.exit_code, result.stderr) == (0, "")
    assert [record["path"] for record in records(result.stdout)] == [f"photos/{name}" for name in names]


HOSTILE = [
    b"=cmd()|' !A0.png",
    b"+1.png",
    b"-rf.png",
    b"@sum.png",
    b' "quoted", and comma.png',
    b"line\nbreak.png",
    b"\x1b[31mred.png",
    b"tab\t.png",
    b"[a-z]*.png",
    b"bytes \xff\xfe.png",
    "猫 é ＝1.png".encode(),
]


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    folder = tmp_path / "hostile"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in HOSTILE:
        try:
            draw(name)
        except OSError:
            pytest.skip("this file system has no such names")
    return sorted(HOSTILE)


def classify_all(hostile: list[bytes], *options: str) -> str:
    result = run("classify", "--labels", LABELS, *options, "--", *map(os.fsdecode, hostile))
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


def test_json_lines_give_the_bytes_of_any_file_name(hostile: list[bytes], model: str) -> None:
    process = command("classify", "--labels", LABELS, "--model", model, "--format", "jsonl", "--", *hostile)
    stdout, stderr = process.communicate()
    assert (process.returncode, stderr) == (0, b"")
    assert stdout.isascii()
    assert [os.fsencode(record["path"]) for record in records(stdout.decode())] == hostile


def test_csv_holds_no_formulas(hostile: list[bytes], model: str) -> None:
    stdout = classify_all(hostile, "--model", model, "--format", "csv", "--top", "1")
    _, *rows = csv.reader(io.StringIO(stdout))
    assert [row[0] for row in rows] == [spreadsheet_text(os.fsdecode(name)) for name in hostile]
    assert not [row[0] for row in rows if row[0].startswith(("=", "+", "-", "@", "\t"))]
    assert not [c for row in rows for c in row[0] if ord(c) < 32]


def test_the_table_shows_any_name_in_one_line(hostile: list[bytes], model: str) -> None:
    stdout = classify_all(hostile, "--model", model)
    lines = stdout.splitlines()
    assert len(lines) == len(hostile)
    for line, name in zip(lines, hostile, strict=True):
        assert line.startswith(printable_name(name))
    assert "\x1b" not in stdout


def test_parquet_holds_any_name(hostile: list[bytes], model: str) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    classify_all(hostile, "--model", model, "-o", "../out.parquet", "--top", "1")
    rows = parquet.read_table("../out.parquet").to_pylist()
    assert [row["path_bytes"] or row["path"].encode() for row in rows] == hostile


def test_failures_with_hostile_names_are_listed_in_one_line_each(hostile: list[bytes], model: str) -> None:
    for name in hostile[1:]:
        Path(os.fsdecode(name)).write_bytes(b"no image")
    listed = b"\0".join(hostile)
    result = run("classify", "-0", "--labels", LABELS, "--model", model, "--format", "jsonl", input=listed)
    assert result.exit_code == 3
    _, *lines = result.stderr.splitlines()
    assert [line.removeprefix("  ").partition(": is not an image")[0] for line in lines] == [
        printable_name(name) for name in hostile[1:]
    ]
    assert [os.fsencode(record["path"]) for record in records(result.stdout)] == hostile


@pytest.mark.parametrize(
    ("text", "safe"),
    [("cat", "cat"), ("=1", "'=1"), (" @x", "' @x"), ("－1", "'－1"), ("a=1", "a=1"), ("\t=1", "\\t=1"), ("", "")],
)
def test_text_for_spreadsheets(text: str, safe: str) -> None:
    assert spreadsheet_text(text) == safe


def test_probabilities_keep_six_digits_however_small() -> None:
    assert [six_digits(p) for p in (1.0, 0.12345678, 1.23456789e-12)] == [1.0, 0.123457, 1.23457e-12]


# ── the output file ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "start"), [("a.jsonl", "{"), ("a.csv", '"path"'), ("a.txt", "photos/"), ("a", "photos/")]
)
def test_the_name_of_the_output_says_its_format(photos: Path, model: str, name: str, start: str) -> None:
    Path(name).write_text("what was there before")
    result = run("classify", "photos", "--labels", LABELS, "--model", model, "-o", name)
    assert (result.exit_code, result.output) == (0, "")
    assert Path(name).read_text().startswith(start)
    assert sorted(os.listdir()) == sorted([name, "photos"])


@pytest.mark.parametrize("output", ["nowhere/out.csv", "photos", "photos/0-red.png/out.csv"])
def test_an_output_that_cannot_be_written_is_told_before_the_work(photos: Path, output: str) -> None:
    result = run("classify", "photos", "--labels", LABELS, "--model", "is not looked at", "-o", output)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: cannot write {output}: ")
    assert os.listdir() == ["photos"]


def test_after_a_failure_the_output_is_as_it_was(photos: Path) -> None:
    Path("out.csv").write_text("precious")
    assert run("classify", "photos", "--labels", LABELS, "--model", "no such model", "-o", "out.csv").exit_code == 1
    assert Path("out.csv").read_text() == "precious"
    assert sorted(os.listdir()) == ["out.csv", "photos"]


def test_an_output_that_is_a_link_or_a_device_stays_one(photos: Path, model: str) -> None:
    Path("link.csv").symlink_to("real.csv")
    assert run("classify", "photos", "--labels", LABELS, "--model", model, "-o", "link.csv").exit_code == 0
    assert Path("link.csv").is_symlink()
    assert Path("real.csv").read_text().startswith('"path"')
    os.mkfifo("pipe")
    reader = subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE)
    arguments = ("--labels", LABELS, "--model", model, "--format", "jsonl", "-o", "pipe")
    assert run("classify", "photos", *arguments).exit_code == 0
    assert len(records(reader.communicate()[0].decode())) == 3
    assert Path("pipe").is_fifo()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("format", ["table", "jsonl", "csv"])
def test_a_full_disk_is_one_line(photos: Path, model: str, format: str) -> None:
    arguments = ("--labels", LABELS, "--model", model, "--format", format, "-o", "/dev/full")
    result = run("classify", "photos", *arguments)
    assert (result.exit_code, result.stderr) == (1, "error: cannot write /dev/full: No space left on device\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_stdout_that_is_full_is_one_line() -> None:
    with open("/dev/full", "wb") as full:
        process = command("models", stdout=full)
        assert process.communicate() == (None, b"error: cannot write stdout: No space left on device\n")
    assert process.returncode == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("arguments", [["--help"], ["classify", "--help"]])
def test_help_that_cannot_be_written_is_one_line(arguments: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        process = command(*arguments, stdout=full)
        assert process.communicate() == (None, b"error: cannot write: No space left on device\n")
    assert process.returncode == 1


def test_a_closed_stdin_is_an_empty_list() -> None:
    shell = ["sh", "-c", '"$0" -m sightline classify - --labels cat,dog <&-', sys.executable]
    done = subprocess.run(shell, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: no images found in the list on stdin\n"


def test_arguments_are_utf8_whatever_the_locale(photos: Path, model: str) -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    labels = "猫, Straße".encode()
    arguments = ("classify", "photos", "--labels", labels, "--model", model, "--format", "jsonl")
    stdout, stderr = command(*arguments, env=environment).communicate()
    assert stderr == b""
    assert {entry["label"] for entry in records(stdout.decode())[0]["labels"]} == {"猫", "Straße"}
