"""What the name of a model means, and which files it stands for."""

import ast
import importlib.util
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from hub_server import SRC
from sightline import hub
from sightline.config import available_models
from sightline.errors import InvalidArgumentError, ModelNotFoundError

pytest_plugins = ["hub_server"]
pytestmark = pytest.mark.usefixtures("plain_environment")


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


# ── the network itself ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.network
def test_the_published_files_are_where_they_were() -> None:
    for url, _ in hub.PUBLISHED.values():
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=30) as response:
            assert int(response.headers["Content-Length"]) > 2e8
