"""The map of an index and heat maps of photos behind HTTP: what the library computes, without holding up the server."""

import io
import threading
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from PIL import Image

import sightline.server.explaining as explaining
import sightline.server.mapping as mapping
from index_files import counting_encoder, draw, draw_folder
from serving import data_uri, photo, running, wait_until
from sightline.errors import MissingExtraError
from sightline.explain import heat_map
from sightline.heat_picture import HOTTEST, overlay
from sightline.images import read_image
from sightline.index.catalogue import Catalogue
from sightline.index.image_index import ImageIndex
from sightline.map import Projection
from sightline.map.library_map import LibraryMap, make_map
from sightline.server.app import create_app
from sightline.server.map_process import MapProcess

pytest.importorskip("sklearn")
Served = tuple[TestClient, ImageIndex]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageIndex]:
    folder = tmp_path_factory.mktemp("server-of-secrets")
    with ImageIndex.open(folder / "index", counting_encoder()[0]) as made:
        draw(folder / "photos" / "<b>.jpg", 50)
        made.update(draw_folder(folder / "photos", 12))
        yield made


@pytest.fixture(scope="module")
def served(index: ImageIndex) -> Iterator[Served]:
    with TestClient(create_app(index.clip, index=index.folder), base_url="http://localhost") as api:
        yield api, index


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(mapping, "MapProcess", InThisProcess)  # another one takes seconds to import scikit-learn
    with ImageIndex.open(tmp_path / "index", counting_encoder()[0]) as made:
        made.update(draw_folder(tmp_path / "photos", 5))
        with TestClient(create_app(made.clip, index=made.folder), base_url="http://localhost") as api:
            yield api, made


def the_map(api: TestClient) -> dict[str, Any]:
    wait_until(lambda: api.get("/v1/map").status_code != 202, seconds=60)  # a process of low priority makes it
    reply = api.get("/v1/map")
    assert reply.status_code == 200, reply.text
    return reply.json()


class InThisProcess(MapProcess):
    def __call__(self, projection: Projection) -> LibraryMap:
        with Catalogue.open(self._folder) as catalogue:
            return make_map(catalogue, lambda: self._clip, projection)


class Counted:
    """In the place of `MapProcess`: waits until it may go on, counts, and fails where it is told to."""

    def __init__(self, api: TestClient, *errors: Exception):
        self.calls, self.errors = 0, list(errors)
        self.go_on = threading.Event()
        maker = api.app.state.map_maker  # type: ignore[attr-defined]
        self.make, self.close = maker.make, maker.make.close
        maker.make = self

    def __call__(self, projection: Projection) -> Any:
        self.calls += 1
        self.go_on.wait(10)
        if self.errors:
            raise self.errors.pop(0)
        return self.make(projection)


# ── the map ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_map_is_the_librarys(served: Served) -> None:
    api, index = served
    found, expected = the_map(api), make_map(index.catalogue, lambda: index.clip, Projection.pca)
    assert [cluster["name"] for cluster in found["clusters"]] == expected.names
    assert [cluster["count"] for cluster in found["clusters"]] == np.bincount(expected.clusters).tolist()
    assert found["total"] == 13
    places = [(point["x"], point["y"]) for point in found["points"]]
    np.testing.assert_allclose(places, expected.places, atol=1e-4)
    assert [point["cluster"] for point in found["points"]] == expected.clusters.tolist()
    assert [point["name"] for point in found["points"]] == [files[0].path.decode() for files in expected.rows]
    for point in found["points"]:
        assert api.get(f"/v1/photos/{point['id']}").json()["name"] == point["name"]


def test_the_map_is_made_once_in_the_background(own: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    api, _ = own
    counted = Counted(api)
    for _ in range(3):
        reply = api.get("/v1/map")
        assert (reply.status_code, reply.json()) == (202, {"object": "map", "status": "computing"})
        assert reply.headers["retry-after"] == "1"
    assert api.post("/v1/search", json={"query": "a"}).status_code == 200  # meanwhile
    counted.go_on.set()
    assert len(the_map(api)["points"]) == 5
    the_map(api)
    assert counted.calls == 1


def test_a_map_of_photos_that_have_changed_is_made_anew_and_the_old_one_answers(
    own: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    api, index = own
    assert len(the_map(api)["points"]) == 5
    assert index.root is not None
    draw(index.root / "new.jpg", 70)
    index.update()
    counted = Counted(api)
    assert len(the_map(api)["points"]) == 5
    assert counted.calls == 0  # it is too soon
    monkeypatch.setattr(mapping, "_AGAIN", 0.0)
    for _ in range(3):
        assert len(the_map(api)["points"]) == 5
    counted.go_on.set()
    wait_until(lambda: len(the_map(api)["points"]) == 6)
    the_map(api)
    assert counted.calls == 1


def test_what_a_map_fails_with_is_said_once_and_tried_again(own: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    api, index = own
    counted = Counted(api, MissingExtraError("a map", "map"), RuntimeError(f"in {index.folder}"))
    counted.go_on.set()
    for status, code in ((501, "missing_extra"), (500, "internal_error")):
        assert api.get("/v1/map").status_code == 202
        reply = wait_for_other(api)
        assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
        assert str(index.folder) not in reply.text
    assert len(the_map(api)["points"]) == 5


def test_a_map_whose_process_is_killed_fails_and_the_server_goes_on(index: ImageIndex) -> None:
    with TestClient(create_app(index.clip, index=index.folder), base_url="http://localhost") as api:
        assert api.get("/v1/map").status_code == 202
        making = api.app.state.map_maker.make  # type: ignore[attr-defined]
        wait_until(lambda: making._process is not None)
        first = making._process
        making.close()
        assert wait_for_other(api).status_code == 500
        assert api.get("/v1/map").status_code == 202  # and it is tried again
        wait_until(lambda: making._process is not first)
    assert making._process.wait(10) is not None  # no process outlives its server


def wait_for_other(api: TestClient) -> Any:
    replies: list[Any] = []

    def is_other() -> bool:
        replies.append(api.get("/v1/map"))
        return replies[-1].status_code != 202

    wait_until(is_other)
    return replies[-1]


def test_an_index_without_photos_has_no_map(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "bad.jpg").write_bytes(b"no photo")
    with ImageIndex.open(tmp_path / "index", counting_encoder()[0]) as empty:
        empty.update(tmp_path / "photos")
        with TestClient(create_app(empty.clip, index=empty.folder), base_url="http://localhost") as api:
            reply = api.get("/v1/map")
            assert (reply.status_code, reply.json()["error"]["code"]) == (404, "no_photos")
            assert api.post("/v1/search", json={"query": "a"}).json()["data"] == []
            assert api.get("/v1/photos").json()["count"] == 0


# ── heat maps ────────────────────────────────────────────────────────────────────────────────────────────────────────


def agrees(row: dict[str, Any], served: Served, file: bytes | Path, text: str) -> None:
    expected = heat_map(served[1].clip, file, text)
    assert row["text"] == text
    assert (row["score"], row["fit"]) == pytest.approx((expected.score, expected.fit), abs=1e-4)
    np.testing.assert_allclose(row["grid"], expected.grid, atol=1e-3)
    assert (tuple(row["square"]), tuple(row["size"])) == (expected.square, expected.size)


def test_a_heat_map_is_the_librarys(served: Served) -> None:
    api, index = served
    file = photo(size=(60, 40))
    reply = api.post("/v1/explain", json={"image": data_uri(file), "texts": ["a cat", "a dog"]}).json()
    for row, text in zip(reply["data"], ["a cat", "a dog"], strict=True):
        agrees(row, served, file, text)
        assert row["picture"] is None
    form = api.post("/v1/explain", files=[("file", ("x.jpg", file))], data={"texts": ["a cat", "a dog"]})
    assert form.json() == reply
    found = api.post("/v1/search", json={"query": "a"}).json()["data"][0]
    assert index.root is not None
    (row,) = api.post("/v1/explain", json={"id": found["id"], "texts": ["a cat"]}).json()["data"]
    agrees(row, served, index.root / found["name"], "a cat")


def test_a_heat_map_is_drawn_where_that_is_asked_for(served: Served) -> None:
    api, index = served
    file = photo(size=(60, 40))
    reply = api.post("/v1/explain", json={"image": data_uri(file), "texts": ["a cat"], "picture": True}).json()
    kind, _, data = reply["data"][0]["picture"].partition(",")
    drawn, expected = (
        Image.open(io.BytesIO(b64decode(data))),
        overlay(read_image(file), heat_map(index.clip, file, "a cat")),
    )
    assert (kind, drawn.format, reply["hottest"]) == ("data:image/png;base64", "PNG", HOTTEST)
    assert np.abs(np.asarray(drawn, int) - np.asarray(expected, int)).max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1)])
def test_a_photo_of_any_shape_is_explained_or_refused(served: Served, size: tuple[int, int]) -> None:
    request = {"image": data_uri(photo(size=size, format="PNG")), "texts": ["a"], "picture": True}
    reply = served[0].post("/v1/explain", json=request)
    assert (reply.status_code, reply.json().get("error", {}).get("code")) in ((200, None), (422, "invalid_image"))


@pytest.mark.parametrize(
    ("request_", "status", "param"),
    [
        ({"texts": ["a"]}, 422, "image"),
        ({"texts": ["a"], "image": data_uri(photo()), "id": "x"}, 422, "image"),
        ({"texts": ["a"], "id": "x"}, 404, "id"),
        ({"texts": ["a"], "image": "data:image/jpeg;base64,AAAA"}, 422, "image"),
        ({"texts": ["a"], "image": "/etc/passwd"}, 422, "image"),
        ({"texts": [], "image": data_uri(photo())}, 422, "texts"),
        ({"texts": ["a", " "], "image": data_uri(photo())}, 422, "texts[1]"),
        ({"texts": ["a"] * 9, "image": data_uri(photo())}, 422, "texts"),
        ({"texts": ["a " * 500], "image": data_uri(photo())}, 422, None),
    ],
)
def test_what_cannot_be_explained_is_said(
    served: Served, request_: dict[str, Any], status: int, param: str | None
) -> None:
    api, _ = served
    reply = api.post("/v1/explain", json=request_)
    assert reply.status_code == status, reply.text
    assert param is None or reply.json()["error"]["param"] == param


def test_a_photo_with_too_many_pixels_is_not_explained(index: ImageIndex) -> None:
    from sightline.server.settings import Settings

    app = create_app(index.clip, settings=Settings(max_pixels=1000))
    with TestClient(app, base_url="http://localhost") as api:
        reply = api.post("/v1/explain", json={"image": data_uri(photo()), "texts": ["a"]})
        assert (reply.status_code, reply.json()["error"]["code"]) == (422, "invalid_image")
        small = photo(size=(20, 20))
        assert api.post("/v1/explain", json={"image": data_uri(small), "texts": ["a"]}).status_code == 200
        assert api.post("/v1/explain", json={"id": "x", "texts": ["a"]}).json()["error"]["code"] == "no_index"


def test_too_many_explanations_at_once_are_told_to_come_back(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explaining, "_MOST_WAITING", 0)
    reply = served[0].post("/v1/explain", json={"image": data_uri(photo()), "texts": ["a"]})
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "2")


# ── whatever fits the OpenAPI document ───────────────────────────────────────────────────────────────────────────────


def test_no_request_about_photos_finds_a_fault(index: ImageIndex) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    from test_server_schema import CHECKS

    with running(create_app(index.clip, index=index.folder)) as address:
        schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
        about_photos = schema.include(path_regex="photos|search|similar|map|explain")
        found = set()
        for operation in (result.ok() for result in about_photos.get_all_operations()):

            @given(case=operation.as_strategy())
            @settings(
                max_examples=6, deadline=None, derandomize=True, database=None,
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            def ask(case: Any) -> None:
                found.add((case.path, case.call_and_validate(checks=CHECKS, timeout=20).status_code))

            ask()
    assert {path for path, _ in found} == {
        "/v1/search", "/v1/similar", "/v1/photos", "/v1/photos/{id}", "/v1/photos/{id}/thumbnail",
        "/v1/photos/{id}/image", "/v1/map", "/v1/explain",
    }  # fmt: skip
    assert ("/v1/photos", 200) in found
