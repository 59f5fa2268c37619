"""Names to files: what a name means, downloads that are resumed and checked, Hugging Face repositories, errors."""

import ast
import hashlib
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sightline import hub
from sightline.config import available_models
from sightline.errors import DownloadError, InvalidArgumentError, ModelNotFoundError

SRC = Path(hub.__file__).parents[1]
CONTENT = bytes(range(256)) * 4096  # one MiB, four blocks of a download
HALF = len(CONTENT) // 2
SHA256 = hashlib.sha256(CONTENT).hexdigest()
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Server(ThreadingHTTPServer):
    """A loopback server for both kinds of source. `log` has a line for each request; a test says what goes wrong."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.log: list[str] = []
        self.sent = 0
        self.ranges = True  # whether Range is honoured
        self.wrong_range = False  # whether it is answered with other bytes than asked for
        self.cuts: list[int] = []  # for the requests to come: how many bytes are sent before the connection is cut
        self.content = CONTENT
        self.status = 200
        self.stalled: threading.Event | None = None  # what a request waits for after its first half
        self.repository: dict[str, bytes] = {}
        self.refusal: tuple[int, str] | None = None


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path.startswith("/api/"):
            self._hub_api()
        elif "/resolve/" in self.path:
            self._hub_file(send=True)
        else:
            self._published_file()

    def do_HEAD(self) -> None:
        self._hub_file(send=False)

    def _published_file(self) -> None:
        server, wanted = self.server, self.headers["Range"]
        server.log.append(wanted or "whole")
        if server.status != 200:
            return self._reply(server.status, b"", {})
        if not wanted or not server.ranges:
            return self._send(200, server.content, {})
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(server.content):
            return self._reply(416, b"", {"Content-Range": f"bytes */{len(server.content)}"})
        said = start + server.wrong_range
        span = f"bytes {said}-{len(server.content) - 1}/{len(server.content)}"
        return self._send(206, server.content[said:], {"Content-Range": span})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self._reply(status, None, {**headers, "Content-Length": str(len(body))})
        cut = self.server.cuts.pop(0) if self.server.cuts else len(body)
        if self.server.stalled and not self.server.stalled.is_set():
            self.wfile.write(body[:HALF])
            self.server.sent += HALF
            self.server.stalled.wait(60)
            return
        self.wfile.write(body[:cut])
        self.server.sent += len(body[:cut])

    def _hub_api(self) -> None:
        self.server.log.append(self.path.partition("?")[0])
        if self.server.refusal:
            status, code = self.server.refusal
            return self._reply(status, b"", {"X-Error-Code": code})
        if "/tree/" in self.path:
            data: Any = [
                {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
                for name, body in self.server.repository.items()
            ]
        else:
            siblings = [{"rfilename": name} for name in self.server.repository]
            data = {"id": "owner/name", "sha": COMMIT, "siblings": siblings}
        return self._reply(200, json.dumps(data).encode(), {"Content-Type": "application/json"})

    def _hub_file(self, send: bool) -> None:
        body = self.server.repository[self.path.rpartition("/")[2]]
        if send:
            self.server.log.append(self.path)
        etag = hashlib.sha1(body).hexdigest()
        self._reply(200, body if send else None, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, len(body))

    def _reply(self, status: int, body: bytes | None, headers: dict[str, str], length: int | None = None) -> None:
        self.send_response(status)
        if body is not None or length is not None:
            headers = {**headers, "Content-Length": str(len(body or b"") if length is None else length)}
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(body)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests neither see how this machine reaches a network nor reach one."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "SIGHTLINE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def url(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the server serves what these tests take for the published RN50."""
    url = f"{server.url}/{SHA256}/RN50.pt"
    monkeypatch.setitem(hub.PUBLISHED, "RN50", (url, SHA256))
    return url


# ── what a name means ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_published_names_are_those_of_the_architectures() -> None:
    assert list(hub.PUBLISHED) == available_models()


def test_the_published_urls_are_those_of_the_original_package() -> None:
    spec = importlib.util.find_spec("clip")
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).with_name("clip.py").read_text("utf-8"))
    models = next(n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "_MODELS")
    assert {name: url for name, (url, _) in hub.PUBLISHED.items()} == ast.literal_eval(models)


def test_every_published_url_is_https_and_carries_its_digest() -> None:
    for url, sha256 in hub.PUBLISHED.values():
        assert url.startswith("https://")
        assert url.split("/")[-2] == sha256
        assert len(bytes.fromhex(sha256)) == 32


def test_a_path_that_exists_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "weights.pt"
    file.write_bytes(b"")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.resolve(file) == file
    assert hub.resolve(str(tmp_path)) == tmp_path
    assert hub.resolve("~/weights.pt") == file


def test_a_published_name_wins_over_a_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("RN50").mkdir()
    assert hub.resolve("RN50", download_root=tmp_path / "weights") == tmp_path / "weights" / "RN50.pt"
    assert hub.resolve("./RN50") == Path("RN50")


def test_the_starter_is_a_folder_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "package"
    monkeypatch.setattr(hub, "files", {"sightline": package}.__getitem__)
    with pytest.raises(ModelNotFoundError) as caught:
        hub.resolve("starter")
    assert str(caught.value) == (
        f"this installation lacks the starter model ({package}/starter): install Sightline again"
    )
    (package / "starter").mkdir(parents=True)
    assert hub.resolve("starter") == package / "starter"


KNOWN = f"known: {', '.join(available_models())}, starter, 'hf-hub:owner/name', or a path that exists"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("RN5O", f"no model is named 'RN5O'; did you mean 'RN50'? {KNOWN}"),
        ("vit-b-32", f"no model is named 'vit-b-32'; did you mean 'ViT-B/32'? {KNOWN}"),
        ("ViT-L/14@336", f"no file or folder 'ViT-L/14@336'; did you mean 'ViT-L/14@336px' or 'ViT-L/14'? {KNOWN}"),
        ("nonsense", f"no model is named 'nonsense'; {KNOWN}"),
        ("", f"no model is named ''; {KNOWN}"),
        ("x" * 5000, f"no model is named '{'x' * 5000}'; {KNOWN}"),
        ("nul\0", f"no model is named 'nul\\x00'; {KNOWN}"),
        ("./nowhere", f"no file or folder './nowhere'; {KNOWN}"),
        ("~nobody-of-that-name/x", f"no file or folder '~nobody-of-that-name/x'; {KNOWN}"),
        ("weights.safetensors", f"no file or folder 'weights.safetensors'; {KNOWN}"),
        ("owner/name", f"no file or folder 'owner/name'; did you mean 'hf-hub:owner/name'? {KNOWN}"),
    ],
)
def test_an_unknown_name_is_refused_with_what_was_meant(name: str, message: str) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        hub.resolve(name)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"SIGHTLINE_CACHE": "/own"}, "/own"),
        ({"SIGHTLINE_CACHE": "/own", "XDG_CACHE_HOME": "/xdg"}, "/own"),
        ({"SIGHTLINE_CACHE": "~/own"}, "/home/me/own"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/sightline"),
        ({"SIGHTLINE_CACHE": "", "XDG_CACHE_HOME": ""}, "/home/me/.cache/sightline"),
        ({}, "/home/me/.cache/sightline"),
    ],
)
def test_the_cache_folder(environment: dict[str, str], folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HOME": "/home/me", **environment}.items():
        monkeypatch.setenv(name, value)
    assert hub.cache_dir() == Path(folder)


def test_without_a_home_the_cache_is_a_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where neither HOME nor a passwd entry is there
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    home = tmp_path / f"sightline-{os.getuid()}"
    assert hub.cache_dir() == home / ".cache/sightline"
    assert hub.published_dir() == home / ".cache/clip"
    home.chmod(0o777)
    with pytest.raises(InvalidArgumentError, match="set HOME"):
        hub.cache_dir()


def test_the_import_is_light() -> None:
    # The package's own __init__ is left out: this is about what hub.py itself draws in.
    code = (
        "import sys, types; package = types.ModuleType('sightline'); package.__path__ = [sys.argv[1]];"
        "sys.modules['sightline'] = package; import sightline.hub;"
        "print({'huggingface_hub', 'filelock', 'rich', 'urllib.request', 'http', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, SRC / "sightline"], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# ── published files ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_published_file_is_downloaded_once(server: Server, url: str, tmp_path: Path) -> None:
    path = hub.resolve("RN50", download_root=tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "RN50.pt"
    assert path.read_bytes() == CONTENT
    assert hub.resolve("RN50", download_root=tmp_path / "new" / "folder") == path
    assert server.log == ["whole"]
    assert {f.name for f in path.parent.iterdir()} <= {"RN50.pt", "RN50.pt.verified", "RN50.pt.lock"}


def test_it_lands_where_the_original_puts_it(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.resolve("RN50") == tmp_path / ".cache/clip/RN50.pt"
    assert hub.resolve("RN50", download_root="~/mine") == tmp_path / "mine/RN50.pt"


def test_a_file_that_is_there_is_used_as_it_is(server: Server, url: str, tmp_path: Path) -> None:
    (tmp_path / "RN50.pt").write_bytes(CONTENT)
    assert hub.resolve("RN50", download_root=tmp_path) == tmp_path / "RN50.pt"
    assert server.log == []


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


def test_a_sidecar_that_cannot_be_written_is_no_error(server: Server, url: str, tmp_path: Path) -> None:
    (tmp_path / "RN50.pt").write_bytes(CONTENT)
    (tmp_path / "RN50.pt.verified").mkdir()  # refuses to be read and to be written, for root too
    assert hub.resolve("RN50", download_root=tmp_path) == tmp_path / "RN50.pt"
    assert server.log == []


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


def test_a_cut_connection_is_taken_up_where_it_was_cut(server: Server, url: str, tmp_path: Path) -> None:
    server.cuts = [HALF, 1000]
    assert hub.resolve("RN50", download_root=tmp_path).read_bytes() == CONTENT
    assert server.log == ["whole", f"bytes={HALF}-", f"bytes={HALF + 1000}-"]
    assert server.sent == len(CONTENT)


def test_a_later_call_takes_up_what_an_earlier_one_left(server: Server, url: str, tmp_path: Path) -> None:
    server.cuts = [HALF, 0]
    with pytest.raises(DownloadError) as caught:
        hub.resolve("RN50", download_root=tmp_path)
    assert str(caught.value) == (
        f"could not download RN50: the connection was cut after {HALF:,} of {len(CONTENT):,} bytes, which are kept; "
        f"try again, or download {url} on another machine and put it at {tmp_path}/RN50.pt"
    )
    assert (tmp_path / "RN50.pt.part").read_bytes() == CONTENT[:HALF]
    assert not (tmp_path / "RN50.pt").exists()
    assert hub.resolve("RN50", download_root=tmp_path).read_bytes() == CONTENT
    assert server.sent == len(CONTENT)
    assert not (tmp_path / "RN50.pt.part").exists()


def test_a_connection_that_is_cut_again_and_again_is_given_up(server: Server, url: str, tmp_path: Path) -> None:
    server.cuts = [1] * 100
    with pytest.raises(DownloadError, match=f"cut after {hub.TURNS} of"):
        hub.resolve("RN50", download_root=tmp_path)
    assert len(server.log) == hub.TURNS


def test_a_server_without_ranges_is_asked_from_the_start(server: Server, url: str, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "RN50.pt.part").write_bytes(b"other bytes")
    assert hub.resolve("RN50", download_root=tmp_path).read_bytes() == CONTENT
    assert server.log == ["bytes=11-"]


@pytest.mark.parametrize("content", [CONTENT, CONTENT + b"more"])
def test_a_range_that_cannot_be_had_starts_over(content: bytes, server: Server, url: str, tmp_path: Path) -> None:
    (tmp_path / "RN50.pt.part").write_bytes(content)
    assert hub.resolve("RN50", download_root=tmp_path).read_bytes() == CONTENT
    assert server.log == [f"bytes={len(content)}-", "whole"]


def test_bytes_from_elsewhere_in_the_file_are_not_joined(server: Server, url: str, tmp_path: Path) -> None:
    server.wrong_range = True
    (tmp_path / "RN50.pt.part").write_bytes(CONTENT[:HALF])
    with pytest.raises(DownloadError, match="another part of the file than was asked for"):
        hub.resolve("RN50", download_root=tmp_path)
    assert hub.resolve("RN50", download_root=tmp_path).read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing_behind(server: Server, url: str, tmp_path: Path) -> None:
    server.content = b"<html>Please sign in to this network</html>"
    found = hashlib.sha256(server.content).hexdigest()
    with pytest.raises(DownloadError) as caught:
        hub.resolve("RN50", download_root=tmp_path)
    assert str(caught.value) == (
        f"could not download RN50: what arrived has the SHA-256 {found} and was deleted; "
        f"try again, or download {url} on another machine and put it at {tmp_path}/RN50.pt"
    )
    assert {f.name for f in tmp_path.iterdir()} <= {"RN50.pt.lock"}


def stale_part(server: Server, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "RN50.pt.part").write_bytes(b"other bytes")


def missing(server: Server, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.status = 404


def broken(server: Server, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.status = 503


def stalling(server: Server, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.stalled = threading.Event()
    monkeypatch.setattr(hub, "TIMEOUT", 0.1)
    monkeypatch.setattr(hub, "TURNS", 1)


def unreachable(server: Server, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/{SHA256}/RN50.pt"
    monkeypatch.setitem(hub.PUBLISHED, "RN50", (url, SHA256))


def disk_full(server: Server, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.symlink("/dev/full", root / "RN50.pt.part")


def folder_in_the_way(server: Server, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    trouble: Callable[..., None], reason: str, server: Server, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trouble(server, tmp_path, monkeypatch)
    with pytest.raises(DownloadError) as caught:
        hub.resolve("RN50", download_root=tmp_path)
    by_hand = re.escape(f"download {hub.PUBLISHED['RN50'][0]} on another machine and put it at {tmp_path}/RN50.pt")
    assert re.fullmatch(f"could not download RN50: {reason}; try again, or {by_hand}", str(caught.value))
    if server.stalled:
        server.stalled.set()


def test_a_stalled_download_is_kept_for_the_next_call(
    server: Server, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stalling(server, tmp_path, monkeypatch)
    with pytest.raises(DownloadError):
        hub.resolve("RN50", download_root=tmp_path)
    assert server.stalled is not None
    server.stalled.set()
    hub.resolve("RN50", download_root=tmp_path)
    assert server.log == ["whole", f"bytes={HALF}-"]


@pytest.mark.parametrize("value", ["1", "ON", "yes", "True"])
def test_offline_nothing_is_downloaded(
    value: str, server: Server, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    assert server.log == []


@pytest.mark.parametrize("value", ["0", "", "off", "no"])
def test_other_values_do_not_mean_offline(
    value: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert hub.resolve("RN50", download_root=tmp_path).exists()


def test_of_two_processes_one_downloads_and_the_other_waits(server: Server, url: str, tmp_path: Path) -> None:
    server.stalled = threading.Event()
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
    server.stalled.set()
    outputs = [process.communicate(timeout=30)[0] for process in processes]
    assert lines[0].startswith("downloading RN50.pt: ")
    assert lines[1] == f"waiting for another process that downloads {tmp_path}/RN50.pt\n"
    assert outputs == [f"{tmp_path}/RN50.pt\n"] * 2
    assert (tmp_path / "RN50.pt").read_bytes() == CONTENT
    assert server.log == ["whole", f"bytes={HALF}-"]
    assert server.sent == len(CONTENT)


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


# ── Hugging Face ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("names", "weights"),
    [
        (["model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["open_clip_pytorch_model.bin", "open_clip_model.safetensors"], ["open_clip_model.safetensors"]),
        (
            ["model.safetensors", "open_clip_model.safetensors", "open_clip_config.json"],
            ["open_clip_model.safetensors"],
        ),
        (
            ["model.safetensors", "open_clip_pytorch_model.bin", "open_clip_config.json"],
            ["open_clip_pytorch_model.bin"],
        ),
        (["model.safetensors", "open_clip_config.json"], ["model.safetensors"]),
        (["open_clip_pytorch_model.bin", "pytorch_model.bin", "a.pt"], ["open_clip_pytorch_model.bin"]),
        (["pytorch_model.bin", "extra.safetensors"], ["pytorch_model.bin"]),
        (["ViT-B-32.pt", "README.md"], ["ViT-B-32.pt"]),
        (["best.safetensors", "best.pt"], ["best.safetensors"]),
        (["a.pt", "b.pt"], []),
        (["onnx/model.safetensors", "README.md"], []),
        ([], []),
        (
            ["model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"],
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"],
        ),
        (["model-00001-of-00002.safetensors", "model.safetensors.index.json"], []),
        (["model-00001-of-00002.safetensors", "model.safetensors.index.json", "a.pt"], ["a.pt"]),
        (
            ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json"],
            ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json"],
        ),
        (["pytorch_model-00001-of-00002.bin", "model-00002-of-00002.safetensors", "pytorch_model.bin.index.json"], []),
    ],
)
def test_one_format_of_the_weights_is_chosen(names: list[str], weights: list[str]) -> None:
    assert hub.weight_files(names) == weights


BAD_NAMES = {
    "hf-hub:": "Repo id must use alphanumeric chars",
    "hf-hub:name": "write hf-hub:owner/name",
    "hf-hub:owner/": "Repo id must use alphanumeric chars",
    "hf-hub:../name": "Repo id must use alphanumeric chars",
    "hf-hub:owner/na me": "Repo id must use alphanumeric chars",
    "hf-hub:owner/na..me": "Cannot have -- or .. in repo_id",
    "hf-hub:owner/name/file.pt": "Repo id must be in the form",
    "hf-hub:https://huggingface.co/owner/name": "Repo id must be in the form",
    "hf-hub:owner/name@": "has no revision after the @: write a branch, a tag or a commit there",
    "hf-hub:owner/name@../../x": "has no revision after the @: write a branch, a tag or a commit there",
    "hf-hub:owner/name@/etc": "has no revision after the @: write a branch, a tag or a commit there",
}


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_can_be_no_repository_is_refused_before_any_call(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_snapshot", None)
    with pytest.raises(ModelNotFoundError) as caught:
        hub.resolve(name)
    assert str(caught.value).startswith(repr(name))
    assert BAD_NAMES[name] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def huggingface(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """huggingface_hub, with this server for its hub and `tmp_path/hub` for its cache.

    Its constants are set and not the environment, which it reads when it is imported.
    """
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    server.repository = {
        "README.md": b"# A model",
        "config.json": b"{}",
        "tokenizer.json": b"{}",
        "model.safetensors": b"safe",
        "pytorch_model.bin": b"not so safe",
        "onnx/model.onnx": b"another",
    }
    return server


def cached(root: Path, *names: str, revision: str = "main") -> Path:
    """A snapshot as huggingface_hub lays it out in its cache."""
    repo = root / "models--owner--name"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / revision).write_text(COMMIT)
    (repo / "blobs").mkdir()
    folder = repo / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    for name in names:
        (repo / "blobs" / name).write_bytes(b"blob")
        (folder / name).symlink_to(f"../../blobs/{name}")
    return folder


def test_of_a_repository_only_what_is_needed_is_fetched(huggingface: Server, tmp_path: Path) -> None:
    folder = hub.resolve("hf-hub:owner/name")
    assert folder == tmp_path / "hub/models--owner--name/snapshots" / COMMIT
    found = {f.name: f.read_bytes() for f in folder.iterdir()}
    assert found == {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": b"safe"}


def test_a_revision_is_asked_for_and_found_again_offline(huggingface: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hub.resolve("hf-hub:owner/name@v1.0")
    assert huggingface.log[0] == "/api/models/owner/name/revision/v1.0"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    huggingface.log.clear()
    assert hub.resolve("hf-hub:owner/name@v1.0") == folder
    assert huggingface.log == []


def test_weights_that_cannot_be_told_are_listed(huggingface: Server) -> None:
    huggingface.repository = {"README.md": b"", "b.pt": b"", "a.pt": b""}
    with pytest.raises(ModelNotFoundError) as caught:
        hub.resolve("hf-hub:owner/name")
    assert str(caught.value) == (
        "cannot tell which file of https://huggingface.co/owner/name has CLIP weights (candidates: a.pt, b.pt): "
        "download the one you mean and pass its path"
    )


COPY = "download the repository on another machine (hf download owner/name) and pass its folder"


@pytest.mark.parametrize(
    ("refusal", "kind", "message"),
    [
        (
            (404, "RepoNotFound"),
            ModelNotFoundError,
            "https://huggingface.co/owner/name does not exist or is private: check the name, or set HF_TOKEN",
        ),
        (
            (404, "RevisionNotFound"),
            ModelNotFoundError,
            "hf-hub:owner/name@v9: no such revision, see the branches and tags of https://huggingface.co/owner/name",
        ),
        (
            (403, "GatedRepo"),
            ModelNotFoundError,
            "hf-hub:owner/name@v9 is gated: accept its conditions at https://huggingface.co/owner/name "
            "and set HF_TOKEN",
        ),
        ((500, ""), DownloadError, f"could not download hf-hub:owner/name@v9: .*500.*; try again, or {COPY}"),
    ],
)
def test_what_hugging_face_refuses(
    refusal: tuple[int, str], kind: type[Exception], message: str, huggingface: Server
) -> None:
    huggingface.refusal = refusal
    with pytest.raises(kind) as caught:
        hub.resolve("hf-hub:owner/name@v9")
    assert re.fullmatch(re.escape(message).replace(r"\.\*", ".*"), str(caught.value))


def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that refuses connections, as with the network down."""
    from huggingface_hub import constants

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")


def test_without_a_network_the_cached_copy_serves(
    huggingface: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = cached(tmp_path / "hub", "config.json", "model.safetensors")
    no_hub(monkeypatch)
    with pytest.warns(UserWarning, match=f"using the cached copy in {folder}, because could not download hf-hub:"):
        assert hub.resolve("hf-hub:owner/name") == folder


def test_without_a_network_and_a_copy_the_error_says_what_to_do(
    huggingface: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_hub(monkeypatch)
    with pytest.raises(DownloadError) as caught:
        hub.resolve("hf-hub:owner/name")
    assert re.fullmatch(
        rf"could not download hf-hub:owner/name: .*Connection refused; try again, or {re.escape(COPY)}",
        str(caught.value),
    )


@pytest.mark.parametrize("names", [["config.json"], ["config.json", "model-00001-of-00002.safetensors"]])
def test_offline_a_snapshot_without_all_its_weights_is_not_whole(
    names: list[str], huggingface: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(tmp_path / "hub", *names)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError) as caught:
        hub.resolve("hf-hub:owner/name")
    assert str(caught.value) == (
        f"hf-hub:owner/name is not whole in the cache and HF_HUB_OFFLINE is set: unset it, or {COPY}"
    )


def test_offline_the_cache_is_where_hf_home_says(tmp_path: Path) -> None:
    folder = cached(tmp_path / "home" / "hub", "config.json", "model.safetensors", revision="v1")
    done = subprocess.run(
        [sys.executable, "-c", "from sightline import hub; print(hub.resolve('hf-hub:owner/name@v1'))"],
        env={**os.environ, "PYTHONPATH": str(SRC), "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{folder}\n"


# ── the network itself ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.network
def test_the_published_files_are_where_they_were() -> None:
    for url, _ in hub.PUBLISHED.values():
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=30) as response:
            assert int(response.headers["Content-Length"]) > 2e8
