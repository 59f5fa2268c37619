"""The command line: help, exit codes and signals, what is shown on a terminal, `export` and `models`."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

import sightline
from command_fixtures import LABELS, command, records, run
from sightline.cli import progress
from sightline.cli.models import PARAMETERS
from sightline.cli.output import JsonLinesWriter
from sightline.cli.table import TableWriter
from tiny import tiny_encoder

pytest_plugins = ["command_fixtures"]
pytestmark = pytest.mark.usefixtures("home")
COMMANDS = (
    "classify", "embed", "evaluate", "explain", "export", "index", "interpolate", "label", "map", "models", "probe",
    "search", "serve", "train", "verify",
)  # fmt: skip


# ── help, and the process ────────────────────────────────────────────────────────────────────────────────────────────


def test_help_teaches_by_example() -> None:
    help = run("--help").stdout
    assert 'sightline classify photos/ --labels "cat, dog, rocket"' in help
    for name in COMMANDS:
        assert f"  {name} " in help
        assert f"  sightline {name} " in (own := run(name, "--help").stdout) or f"  sightline {name}\n" in own
    assert "SIGHTLINE_MODEL" in run("classify", "--help").stdout


def test_version() -> None:
    assert run("--version").stdout == f"sightline {sightline.__version__}\n"


def imports_of(*arguments: str) -> set[str]:
    """The modules that a command imports."""
    run = [sys.executable, "-X", "importtime", "-m", "sightline", *arguments]
    process = subprocess.run(run, capture_output=True, text=True, check=True)
    return {line.rpartition("|")[2].strip() for line in process.stderr.splitlines()}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_waits_for_no_heavy_import(arguments: list[str]) -> None:
    assert not imports_of(*arguments) & {"torch", "numpy", "PIL", "rich", "huggingface_hub", "sightline.encoder"}


def test_models_waits_for_no_torch() -> None:
    assert not imports_of("models") & {"torch", "huggingface_hub"}


def test_a_closed_pipe_ends_the_command_quietly(photos: Path, model: str) -> None:
    process = command("classify", *["photos"] * 1000, "--labels", LABELS, "--model", model, "--format", "jsonl")
    assert process.stdout.readline().startswith(b"{")
    process.stdout.close()
    assert (process.wait(), process.stderr.read()) == (0, b"")
    process.stderr.close()
    process.stdin.close()


def test_an_interruption_is_one_line_and_leaves_no_file(photos: Path, model: str) -> None:
    process = command("classify", "-", "--labels", LABELS, "--model", model, "-o", "out.csv")
    while len(os.listdir()) == 1:  # until it has begun to write
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate()
    assert (process.returncode, stdout, stderr) == (130, b"", b"interrupted\n")
    assert os.listdir() == ["photos"]


def test_a_bug_keeps_its_traceback(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("sightline.cli.classify.load_model", broken)
    with pytest.raises(ZeroDivisionError):
        run("classify", "photos", "--labels", LABELS)


def test_json_lines_are_written_as_they_come() -> None:
    class Stream(io.BytesIO):
        flushed = 0

        def flush(self) -> None:
            self.flushed += 1

    stream = Stream()
    writer = JsonLinesWriter(stream)
    writer.write("a.jpg", [("cat", 1.0)])
    writer.fail("b.jpg", "is empty")
    assert stream.flushed == 2
    assert records(stream.getvalue().decode())[1] == {"path": "b.jpg", "error": "is empty"}


# ── on a terminal ────────────────────────────────────────────────────────────────────────────────────────────────────


def terminal(width: int = 60) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, color_system="standard", highlight=False)


def shown(console: Console) -> str:
    """What a person sees: without the codes for colour and cursor."""
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", console.file.getvalue())


def test_the_table_fits_a_terminal_and_nothing_is_cut_off() -> None:
    labels = ["golden retriever", "猫", "a photographer"]
    console = terminal()
    writer = TableWriter(io.BytesIO(), labels, 2, console)
    writer.write("a.jpg", [("猫", 0.75), ("golden retriever", 0.2), ("a photographer", 0.05)])
    assert shown(console) == ""
    writer.write("b/" * 30 + "c.jpg", [("a photographer", 1.0)])
    writer.write("[bold]d.jpg", [("golden retriever", 0.0)])
    writer.close()
    assert [line.rstrip() for line in shown(console).splitlines()] == [
        "a.jpg  猫                75.0% ███████▌",
        "       golden retriever  20.0%",
        "       a photographer     5.0%",
        "b/" * 30 + "c.jpg",
        "       a photographer   100.0% ██████████",
        "[bold]d.jpg  golden retriever   0.0%",
    ]
    assert "\x1b[1m" in console.file.getvalue()


def test_a_progress_bar_appears_when_work_takes_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    console = terminal()
    with progress.progress_bar("counting sheep", console, 10) as report:
        report(10)
    assert "sheep" not in shown(console)
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    with progress.progress_bar("counting sheep", console) as report:
        deadline = time.monotonic() + 10
        while "4/10" not in shown(console) and time.monotonic() < deadline:
            report(4, 10)
            time.sleep(0.01)
    assert "counting sheep" in shown(console)
    assert "4/10" in shown(console)


def test_no_progress_bar_without_a_terminal() -> None:
    with progress.progress_bar("counting sheep", None, 10) as report:
        assert report(5) is None


# ── export and models ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("to", "hint"),
    [
        ("transformers", "CLIPModel.from_pretrained('out.pt')"),
        ("open_clip", "open_clip.create_model_and_transforms('local-dir:out.pt')"),
        ("original", "clip.load('out.pt')"),
    ],
)
def test_export_writes_a_model_and_tells_how_to_load_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, hint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_encoder().save("tiny")
    result = run("export", "out.pt", "--to", to, "--model", "tiny")
    assert (result.exit_code, result.stderr) == (0, "")
    target = Path("out.pt")
    for file in target.iterdir() if target.is_dir() else [target]:
        assert re.search(
            rf"^wrote +{re.escape(str(file))} +{file.stat().st_size:,} bytes$", result.stdout, re.MULTILINE
        )
    assert hint in result.stdout
    again = run("export", "out.pt", "--to", to, "--model", "tiny")
    assert (again.exit_code, again.stdout) == (1, "")
    assert again.stderr == "error: out.pt: is there already; name a new " + (
        "file\n" if to == "original" else "folder\n"
    )


@pytest.mark.parametrize("to", ["transformers", "open_clip", "original"])
def test_export_says_where_a_vocabulary_does_not_come_along(tmp_path: Path, model: str, to: str) -> None:
    result = run("export", str(tmp_path / "out"), "--to", to, "--model", model)
    assert result.exit_code == 0
    assert ("a vocabulary of its own (1,000 tokens)" in result.stderr) == (to != "transformers")


def test_export_refuses_what_it_cannot_do(tmp_path: Path, model: str) -> None:
    assert run("export", str(tmp_path / "out"), "--model", model).exit_code == 2
    assert run("export", str(tmp_path / "out"), "--to", "pickle", "--model", model).exit_code == 2
    (tmp_path / "file").touch()
    result = run("export", str(tmp_path / "file" / "out"), "--to", "transformers", "--model", model)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert os.listdir(tmp_path) == ["file"]


def test_models_lists_every_name_and_whether_it_is_here() -> None:
    assert [record["path"] for record in records(run("models", "--format", "jsonl").stdout)[:-1]] == [None] * 9
    weights = Path.home() / ".cache/clip/ViT-B-32.pt"
    weights.parent.mkdir(parents=True)
    weights.touch()
    found = {record["name"]: record for record in records(run("models", "--format", "jsonl").stdout)}
    assert list(found) == [*sightline.available_models(), "starter"]
    assert found["ViT-B/32"] == {
        "name": "ViT-B/32",
        "parameters": 151_277_313,
        "image_size": 224,
        "embed_dim": 512,
        "path": str(weights),
    }
    lines = run("models").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["model", *found]
    assert lines[6].split() == ["ViT-B/32", "151.3M", "224", "512", str(weights)]


def test_models_reads_the_starter_without_torch(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "starter").symlink_to(model)
    monkeypatch.setattr("sightline.cli.models.files", lambda package: tmp_path)
    starter = records(run("models", "--format", "jsonl").stdout)[-1]
    parameters = sum(parameter.numel() for parameter in sightline.load(model).model.parameters())
    assert starter == {
        "name": "starter",
        "parameters": parameters,
        "image_size": 32,
        "embed_dim": 48,
        "path": str(tmp_path / "starter"),
    }


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_counted_right(name: str) -> None:
    with torch.device("meta"):
        model = sightline.models.clip.CLIP(sightline.model_config(name))
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
