"""Data sets of Hugging Face: fetched from a hub on this machine, and by its library from a folder."""

import hashlib
import json
import logging
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from data_files import picture, write_tar
from sightline.errors import DataError, DownloadError
from sightline.evaluate import fetching
from sightline.evaluate.data_sets import open_captioned, open_data_set, open_measurable
from sightline.evaluate.hugging_face import is_of_the_hub
from sightline.evaluate.named_sets import describe

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """A loopback hub of one data set: `files` by name, and a log of those that were sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.files: dict[str, bytes] = {}
        self.sent: list[str] = []
        self.status = 200


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.server.status != 200:
            return self._reply(b"", {}, self.server.status)
        if self.path.startswith("/api/"):
            return self._api()
        name = self.path.partition(f"/resolve/{COMMIT}/")[2]
        self.server.sent.append(name)
        return self._file(name, True)

    def do_HEAD(self) -> None:
        self._file(self.path.partition(f"/resolve/{COMMIT}/")[2], False)

    def _api(self) -> None:
        files = self.server.files.items()
        siblings = [{"rfilename": name} for name in self.server.files]
        data: Any = {"id": "clip-benchmark/wds_vtab-cifar10", "sha": COMMIT, "siblings": siblings}
        if "/tree/" in self.path:
            data = [{"type": "file", "path": n, "size": len(b), "oid": hashlib.sha1(b).hexdigest()} for n, b in files]
        self._reply(json.dumps(data).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str, send: bool) -> None:
        body = self.server.files[name]
        etag = hashlib.sha1(body).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Content-Length": str(len(body))}
        self._reply(body if send else None, headers)

    def _reply(self, body: bytes | None, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body or b"")), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body or b"")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """huggingface_hub with this for its hub: its constants are set, as it reads the environment when it is imported."""
    from huggingface_hub import constants

    server = Hub()
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    server.files = clip_benchmark(tmp_path)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def clip_benchmark(tmp_path: Path) -> dict[str, bytes]:
    shards = {}
    for split, labels in (("train", "012"), ("test", "21")):
        samples = [(f"s{i}.png", picture(i)) for i in range(len(labels))]
        path = write_tar(tmp_path / "a.tar", samples + [(f"s{i}.cls", n.encode()) for i, n in enumerate(labels)])
        shards |= {f"{split}/0.tar": path.read_bytes(), f"{split}/nshards.txt": b"1\n"}
    return {
        "classnames.txt": b"zebra\nant\nfox\n",
        "zeroshot_classification_templates.txt": b"a {c}.\n",
        "README.md": b"of no use",
        "loader.py": b"raise SystemExit",
        "test/evil.sh": b"exit 1",
        "train/../../../0.tar": b"out of here",
        **shards,
    }


def test_a_set_that_is_not_here_is_fetched_a_split_at_a_time(hub: Hub, tmp_path: Path) -> None:
    data = open_data_set("cifar10", tmp_path / "none")
    assert (data.name, data.splits, data.class_names) == ("cifar10", ("train", "test"), ("zebra", "ant", "fox"))
    assert data.templates == ("a {}.",)
    assert sorted(hub.sent) == ["classnames.txt", "zeroshot_classification_templates.txt"]
    images = data.open("test")
    assert (images.name, images.labels.tolist(), images.image(1)) == ("cifar10/test", [2, 1], picture(1))
    assert sorted(hub.sent[2:]) == ["test/0.tar", "test/nshards.txt"]
    assert data.open("train").labels.tolist() == [0, 1, 2]
    assert not {"README.md", "loader.py", "test/evil.sh"} & set(hub.sent)
    assert not any(".." in name for name in hub.sent)


def test_what_was_fetched_is_found_without_a_network(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_data_set("cifar10", tmp_path / "none").open("test")
    hub.status = 503
    data = open_data_set("cifar10", tmp_path / "none")
    assert (data.splits, data.open("test").labels.tolist()) == (("test",), [2, 1])


def test_a_split_that_cannot_be_fetched_is_one_line(hub: Hub, tmp_path: Path) -> None:
    data = open_data_set("cifar10", tmp_path / "none")
    hub.status = 404
    with pytest.raises(DownloadError) as caught:
        data.open("train")
    assert str(caught.value).startswith(
        "could not fetch train of cifar10 from https://huggingface.co/datasets/clip-benchmark/wds_vtab-cifar10 ("
    )
    assert "\n" not in str(caught.value)


def test_a_repository_without_shards_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"classnames.txt": b"a\nb\n", "data.parquet": b""}
    with pytest.raises(DownloadError, match=r"could not fetch cifar10: .*wds_vtab-cifar10 has no shards; try again"):
        open_data_set("cifar10", tmp_path / "none")


def test_without_a_network_the_error_says_where_to_get_the_set(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    with pytest.raises(DownloadError) as caught:
        open_data_set("cifar10", tmp_path / "none")
    assert "\n" not in str(caught.value)
    assert "Connection refused" in str(caught.value)
    assert str(caught.value).endswith(
        "; try again with a network, or get it yourself: https://www.cs.toronto.edu/~kriz/cifar.html, as "
        "DATA/cifar10/train.parquet and test.parquet"
    )


def test_offline_is_honoured(tmp_path: Path) -> None:
    """The tests run with HF_HUB_OFFLINE set."""
    with pytest.raises(DownloadError, match=r"could not fetch mnist from .*offline"):
        open_data_set("mnist", tmp_path)


def test_only_shards_and_texts_of_the_layout_are_taken() -> None:
    names = ["test/0.tar", "train/000012.tar", "test/nshards.txt"]
    assert all(fetching._SHARD.fullmatch(name) for name in names)
    others = ["0.tar", "test/a.tar", "test/0.tar.gz", "x/test/0.tar", "test/../0.tar", "/test/0.tar", "test/0.tar\n"]
    assert not any(fetching._SHARD.fullmatch(name) for name in others)


def test_the_repositories_are_named_as_clip_benchmark_names_them() -> None:
    assert describe("cifar10").repository == "clip-benchmark/wds_vtab-cifar10"  # type: ignore[union-attr]
    assert describe("imagenet").repository == "clip-benchmark/wds_imagenet1k"  # type: ignore[union-attr]
    assert describe("wds_imagenet-r") == describe("ImageNet-R")


# ── the library `datasets` ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", str(tmp_path))
    datasets.disable_progress_bars()
    return datasets


def saved(datasets: Any, folder: Path, splits: dict[str, dict], **features: Any) -> str:
    """A data set as a repository has it."""
    (folder / "data").mkdir(parents=True)
    for split, columns in splits.items():
        kinds = datasets.Features({"picture": datasets.Image(), **features})
        images = [{"bytes": picture(i), "path": None} for i in range(len(next(iter(columns.values()))))]
        table = datasets.Dataset.from_dict({"picture": images, **columns}, features=kinds)
        table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return f"hf:{folder}"


def test_a_data_set_of_hugging_face_is_read_by_its_library(datasets: Any, tmp_path: Path) -> None:
    label = datasets.ClassLabel(names=["zebra", "ant"])
    name = saved(datasets, tmp_path / "beasts", {"train": {"label": [1, 0]}, "test": {"label": [0, 1, 1]}}, label=label)
    data = open_data_set(name)
    assert (data.name, data.splits, data.class_names) == ("beasts", ("train", "test"), ("zebra", "ant"))
    images = data.open("test")
    assert (images.labels.tolist(), images.image(2)) == ([0, 1, 1], picture(2))
    assert data.open("test").identity() == images.identity() != data.open("train").identity()
    with pytest.raises(DataError, match="has no column of captions"):
        open_captioned(name)


def test_labels_that_are_words_and_captions_are_read_too(datasets: Any, tmp_path: Path) -> None:
    words = datasets.Value("string")
    name = saved(datasets, tmp_path / "words", {"train": {"label": ["wren", "owl"]}}, label=words)
    assert open_data_set(name).class_names == ("owl", "wren")
    captions = {"caption": [["a wren", "a bird"], ["an owl"]]}
    said = saved(datasets, tmp_path / "said", {"test": captions}, caption=datasets.List(words))
    images = open_captioned(said)
    assert [images.captions(i) for i in range(2)] == [("a wren", "a bird"), ("an owl",)]
    assert images.image(1) == picture(1)


def test_a_hidden_label_is_of_no_class(datasets: Any, tmp_path: Path) -> None:
    label = datasets.ClassLabel(names=["zebra", "ant"])
    name = saved(datasets, tmp_path / "beasts", {"test": {"label": [0, -1]}}, label=label)
    with pytest.raises(DataError, match=r"beasts/test, row 2: has the label '-1', which is none of the 2 classes"):
        open_data_set(name).open("test")


def test_what_has_no_images_or_is_not_there_is_one_line(datasets: Any, tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"label": ["a", "b"]}).to_parquet(tmp_path / "none" / "test.parquet")
    with pytest.raises(DataError, match="none/test: has no column of images; it has 'label'"):
        open_data_set(f"hf:{tmp_path / 'none'}").open("test")
    with pytest.raises(DataError, match=r"^hf:owner/of-nothing: cannot be loaded \(") as caught:
        open_data_set("hf:owner/of-nothing")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "./gone", "/gone", "~/gone", "a/b/c", "../a"])
def test_a_folder_that_is_not_there_is_no_repository_s_name(name: str) -> None:
    with pytest.raises(DataError) as caught:
        open_data_set(f"hf:{name}")
    assert str(caught.value) == f"hf:{name}: there is no such folder, and it is no owner/name of Hugging Face"
    assert not is_of_the_hub(name)
    assert is_of_the_hub("owner/name:configuration")


def test_a_label_that_is_missing_is_no_reason_to_measure_captions(datasets: Any, tmp_path: Path) -> None:
    """Neither where there are labels alone nor where captions stand beside them."""
    words = datasets.Value("string")
    splits = {"test": {"label": ["wren", None, "owl"]}}
    with pytest.raises(DataError, match=r"labels/test, row 2: has no label$"):
        open_measurable(saved(datasets, tmp_path / "labels", splits, label=words))
    splits["test"]["caption"] = ["a", "b", "c"]
    with pytest.raises(DataError, match=r"both/test, row 2: has no label$"):
        open_measurable(saved(datasets, tmp_path / "both", splits, label=words, caption=words))
    said = open_measurable(saved(datasets, tmp_path / "said", {"test": {"caption": ["a"]}}, caption=words))
    assert (said.class_names, said.measured) == ((), "test")


def test_a_training_split_alone_is_measured_and_not_learned_from(datasets: Any, tmp_path: Path) -> None:
    name = saved(datasets, tmp_path / "a", {"train": {"label": ["wren", "owl"]}}, label=datasets.Value("string"))
    data = open_measurable(name)
    assert (data.measured, data.training) == ("train", None)
    assert "what is measured is its training split" in data.notes[0]


def test_of_attempts_that_fail_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("huggingface_hub.utils._http")
    before = logging.getLogger("huggingface_hub").level

    def tried(*_: object) -> None:
        logger.warning("Retrying in 1s [Retry 1/5].")
        raise ConnectionError("no network")

    monkeypatch.setattr("datasets.get_dataset_split_names", tried)
    with pytest.raises(DataError, match=r"^hf:owner/name: cannot be loaded \(no network\)"):
        open_data_set("hf:owner/name")
    assert not caplog.records
    assert logging.getLogger("huggingface_hub").level == before


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from sightline.errors import MissingExtraError

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"needs the extra \[datasets\]"):
        open_data_set("hf:owner/name")
