"""Repositories of Hugging Face: which of their files are fetched, and what is said where they are not."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hub_server import COMMIT, SRC, Server
from sightline import hub
from sightline.errors import DownloadError, ModelNotFoundError

pytest_plugins = ["hub_server"]
pytestmark = pytest.mark.usefixtures("plain_environment")


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
def huggingface(origin: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """huggingface_hub, with this origin for its hub and `tmp_path/hub` for its cache.

    Its constants are set and not the environment, which it reads when it is imported.
    """
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", origin.url)
    template = origin.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    origin.repository = {
        "README.md": b"# A model",
        "config.json": b"{}",
        "tokenizer.json": b"{}",
        "model.safetensors": b"safe",
        "pytorch_model.bin": b"not so safe",
        "onnx/model.onnx": b"another",
    }
    return origin


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
