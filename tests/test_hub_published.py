"""Published files: fetched once, checked, resumed, and what is said where that fails."""

import hashlib
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hub_server import CONTENT, HALF, SHA256, SRC, Server
from sightline import hub
from sightline.errors import DownloadError

pytest_plugins = ["hub_server"]
pytestmark = pytest.mark.usefixtures("plain_environment")


def test_a_published_file_is_downloaded_once(origin: Server, url: str, tmp_path: Path) -> None:
    path = hub.resolve("RN50", download_root=tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "RN50.pt"
    assert path.read_bytes() == CONTENT
    assert hub.resolve("RN50", download_root=tmp_path / "new" / "folder") == path
    assert origin.log == ["whole"]
    assert {f.name for f in path.parent.iterdir()} <= {"RN50.pt", "RN50.pt.verified", "RN50.pt.lock"}


def test_it_lands_where_the_original_puts_it(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.resolve("RN50") == tmp_path / ".cache/clip/RN50.pt"
    assert hub.resolve("RN50", download_root="~/mine") == tmp_path / "mine/RN50.pt"


def test_a_file_that_is_there_is_used_as_it_is(origin: Server, url: str, tmp_path: Path) -> None:
    (tmp_path / "RN50.pt").write_bytes(CONTENT)
    assert hub.resolve("RN50", download_root=tmp_path) == tmp_path / "RN50.pt"
    assert origin.log == []


def test_a_file_is_hashed_once_and_again_when_it_changes(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []
    digest = hub._sha256
    monkeypatch.setattr(hub, "_sha256", lambda path: (hashed.append(path), digest(path))[1])
    file = tmp_path / "RN50.pt"
    file.write_bytes(CONTENT)
    for _ in range(3):
        hub.resolve("RN50", download_root=tmp_path)
    assert hashed == [file]
    os.utime(file, ns=(1, 1))
    hub.resolve("RN50", download_root=tmp_path)
    assert hashed == [file, file]


def test_a_sidecar_that_cannot_be_written_is_no_error(origin: Server, url: str, tmp_path: Path) -> None:
    (tmp_path / "RN50.pt").write_bytes(CONTENT)
    (tmp_path / "RN50.pt.verified").mkdir()  # refuses to be read and to be written, for root too
    assert hub.resolve("RN50", download_root=tmp_path) == tmp_path / "RN50.pt"
    assert origin.log == []


@pytest.mark.parametrize("content", [b"", CONTENT[:HALF], CONTENT[:-1] + b"!"])
def test_a_damaged_file_is_downloaded_again(content: bytes, url: str, tmp_path: Path) -> None:
    file = tmp_path / "RN50.pt"
    file.write_bytes(content)
    with pytest.warns(UserWarning, match=re.escape(f"{file} is damaged (wrong SHA-256): downloading it again")):
        hub.resolve("RN50", download_root=tmp_path)
    assert file.read_bytes() == CONTENT


def test_a_sidecar_does_not_vouch_for_another_file(url: str, tmp_path: Path) -> None:
    file = hub.resolve("RN50", download_root=tmp_path)
    file.write_bytes(CONTENT[:-1] + b"!")
    os.utime(file, ns=(1, 1))
    with pytest.warns(UserWarning, match="damaged"):
        hub.resolve("RN50", download_root=tmp_path)
    assert file.read_bytes() == CONTENT


def test_a_cut_connection_is_taken_up_where_it_was_cut(origin: Server, url: str, tmp_path: Path) -> None:
    origin.cuts = [HALF, 1000]
    assert hub.resolve("RN50", download_root=tmp_path).read_bytes() == CONTENT
    assert origin.log == ["whole", f"bytes={HALF}-", f"bytes={HALF + 1000}-"]
    assert origin.sent == len(CONTENT)


def test_a_later_call_takes_up_what_an_earlier_one_left(origin: Server, url: str, tmp_path: Path) -> None:
    origin.cuts = [HALF, 0]
    with pytest.raises(DownloadError) as caught:
        hub.resolve("RN50", download_root=tmp_path)
    assert str(caught.value) == (
        f"could not download RN50: the connection was cut after {HALF:,} of {len(CONTENT):,} bytes, which are kept; "
        f"try again, or download {url} on another machine and put it at {tmp_path}/RN50.pt"
    )
    assert (tmp_path / "RN50.pt.part").read_bytes() == CONTENT[:HALF]
    assert not (tmp_path / "RN50.pt").exists()
    assert hub.resolve("RN50", download_root=tmp_path).read_bytes() == CONTENT
    assert origin.sent == len(CONTENT)
    assert not (tmp_path / "RN50.pt.part").exists()


def test_a_connection_that_is_cut_again_and_again_is_given_up(origin: Server, url: str, tmp_path: Path) -> None:
    origin.cuts = [1] * 100
    with pytest.raises(DownloadError, match=f"cut after {hub.TURNS} of"):
        hub.resolve("RN50", download_root=tmp_path)
    assert len(origin.log) == hub.TURNS


def test_a_server_without_ranges_is_asked_from_the_start(origin: Server, url: str, tmp_path: Path) -> None:
    origin.ranges = False
    (tmp_path / "RN50.pt.part").write_bytes(b"other bytes")
    assert hub.resolve("RN50", download_root=tmp_path).read_bytes() == CONTENT
    assert origin.log == ["bytes=11-"]


@pytest.mark.parametrize("content", [CONTENT, CONTENT + b"more"])
def test_a_range_that_cannot_be_had_starts_over(content: bytes, origin: Server, url: str, tmp_path: Path) -> None:
    (tmp_path / "RN50.pt.part").write_bytes(content)
    assert hub.resolve("RN50", download_root=tmp_path).read_bytes() == CONTENT
    assert origin.log == [f"bytes={len(content)}-", "whole"]


def test_bytes_from_elsewhere_in_the_file_are_not_joined(origin: Server, url: str, tmp_path: Path) -> None:
    origin.wrong_range = True
    (tmp_path / "RN50.pt.part").write_bytes(CONTENT[:HALF])
    with pytest.raises(DownloadError, match="another part of the file than was asked for"):
        hub.resolve("RN50", download_root=tmp_path)
    assert hub.resolve("RN50", download_root=tmp_path).read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing_behind(origin: Server, url: str, tmp_path: Path) -> None:
    origin.content = b"<html>Please sign in to this network</html>"
    found = hashlib.sha256(origin.content).hexdigest()
    with pytest.raises(DownloadError) as caught:
        hub.resolve("RN50", download_root=tmp_path)
    assert str(caught.value) == (
        f"could not download RN50: what arrived has the SHA-256 {found} and was deleted; "
        f"try again, or download {url} on another machine and put it at {tmp_path}/RN50.pt"
    )
    assert {f.name for f in tmp_path.iterdir()} <= {"RN50.pt.lock"}


def stale_part(origin: Server, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "RN50.pt.part").write_bytes(b"other bytes")


def missing(origin: Server, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin.status = 404


def broken(origin: Server, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin.status = 503


def stalling(origin: Server, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin.stalled = threading.Event()
    monkeypatch.setattr(hub, "TIMEOUT", 0.1)
    monkeypatch.setattr(hub, "TURNS", 1)


def unreachable(origin: Server, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/{SHA256}/RN50.pt"
    monkeypatch.setitem(hub.PUBLISHED, "RN50", (url, SHA256))


def disk_full(origin: Server, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.symlink("/dev/full", root / "RN50.pt.part")


def folder_in_the_way(origin: Server, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "RN50.pt").mkdir()


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (stale_part, r"what arrived has the SHA-256 [0-9a-f]{64} and was deleted"),
        (missing, r"HTTP 404 Not Found"),
        (broken, r"HTTP 503 Service Unavailable"),
        (stalling, r"timed out"),
        (unreachable, r"\[Errno \d+\] Connection refused"),
        (disk_full, r"\[Errno 28\] No space left on device"),
        (folder_in_the_way, r"\S+/RN50.pt is in the way and is not a file"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_whatever_fails_the_error_says_which_file_to_put_where(
    trouble: Callable[..., None], reason: str, origin: Server, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trouble(origin, tmp_path, monkeypatch)
    with pytest.raises(DownloadError) as caught:
        hub.resolve("RN50", download_root=tmp_path)
    by_hand = re.escape(f"download {hub.PUBLISHED['RN50'][0]} on another machine and put it at {tmp_path}/RN50.pt")
    assert re.fullmatch(f"could not download RN50: {reason}; try again, or {by_hand}", str(caught.value))
    if origin.stalled:
        origin.stalled.set()


def test_a_stalled_download_is_kept_for_the_next_call(
    origin: Server, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stalling(origin, tmp_path, monkeypatch)
    with pytest.raises(DownloadError):
        hub.resolve("RN50", download_root=tmp_path)
    assert origin.stalled is not None
    origin.stalled.set()
    hub.resolve("RN50", download_root=tmp_path)
    assert origin.log == ["whole", f"bytes={HALF}-"]


@pytest.mark.parametrize("value", ["1", "ON", "yes", "True"])
def test_offline_nothing_is_downloaded(
    value: str, origin: Server, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    file, by_hand = tmp_path / "RN50.pt", f"download {url} on another machine and put it at {tmp_path}/RN50.pt"
    with pytest.raises(DownloadError) as caught:
        hub.resolve("RN50", download_root=tmp_path)
    assert str(caught.value) == f"{file} is not there and HF_HUB_OFFLINE is set: unset it, or {by_hand}"
    file.write_bytes(b"damaged")
    with pytest.raises(DownloadError) as caught:
        hub.resolve("RN50", download_root=tmp_path)
    assert str(caught.value) == f"{file} is damaged (wrong SHA-256) and HF_HUB_OFFLINE is set: unset it, or {by_hand}"
    file.write_bytes(CONTENT)
    assert hub.resolve("RN50", download_root=tmp_path) == file
    assert origin.log == []


@pytest.mark.parametrize("value", ["0", "", "off", "no"])
def test_other_values_do_not_mean_offline(
    value: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert hub.resolve("RN50", download_root=tmp_path).exists()


def test_of_two_processes_one_downloads_and_the_other_waits(origin: Server, url: str, tmp_path: Path) -> None:
    origin.stalled = threading.Event()
    code = (
        "import sys; from sightline import hub; hub.PUBLISHED['RN50'] = (sys.argv[1], sys.argv[2]);"
        "print(hub.resolve('RN50', download_root=sys.argv[3]))"
    )
    command = [sys.executable, "-c", code, url, SHA256, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    # Each says one line before either can finish: which of them downloads, and which waits.
    lines = sorted(process.stderr.readline() for process in processes if process.stderr)
    origin.stalled.set()
    outputs = [process.communicate(timeout=30)[0] for process in processes]
    assert lines[0].startswith("downloading RN50.pt: ")
    assert lines[1] == f"waiting for another process that downloads {tmp_path}/RN50.pt\n"
    assert outputs == [f"{tmp_path}/RN50.pt\n"] * 2
    assert (tmp_path / "RN50.pt").read_bytes() == CONTENT
    assert origin.log == ["whole", f"bytes={HALF}-"]
    assert origin.sent == len(CONTENT)


def test_progress_is_a_line_now_and_then(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.resolve("RN50", download_root=tmp_path)
    assert capsys.readouterr() == ("", "downloading RN50.pt: 0 of 1 MB\n")


def test_progress_is_a_bar_on_a_terminal(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    hub.resolve("RN50", download_root=tmp_path)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "downloading RN50.pt" in captured.err
    assert "1.0/1.0 MB" in captured.err


def test_a_program_without_stderr_downloads_as_well(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert hub.resolve("RN50", download_root=tmp_path).exists()
    assert capsys.readouterr().out == ""
