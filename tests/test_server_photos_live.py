"""The photos of an index behind HTTP while the index changes, fails or is busy; and of videos, the moments."""

import io
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

import sightline.server.library as library_room
from index_files import counting_encoder, draw
from photo_fixtures import Served, id_of, names, search, serving
from serving import running, wait_until
from sightline.index.image_index import ImageIndex
from sightline.index.searching import Result, Searching
from sightline.server.app import create_app

pytest_plugins = ["photo_fixtures"]


# ── an index that changes, and one that fails ────────────────────────────────────────────────────────────────────────


def test_what_is_indexed_meanwhile_is_found_and_what_has_gone_is_not(own: Served) -> None:
    api, index, root = own
    gone, moved = id_of(api, "00.jpg"), id_of(api, "01.jpg")
    (root / "00.jpg").unlink()
    os.rename(root / "01.jpg", root / "renamed.jpg")
    draw(root / "new.jpg", 77)
    index.update()
    found = names(search(api, query="a", top_k=100))
    assert {"new.jpg", "renamed.jpg"} <= set(found)
    assert {"00.jpg", "01.jpg"}.isdisjoint(found)
    assert api.get(f"/v1/photos/{gone}").status_code == 404
    assert api.get(f"/v1/photos/{gone}/thumbnail").status_code == 404
    assert api.post("/v1/similar", json={"id": gone}).status_code == 404
    assert api.get(f"/v1/photos/{moved}").json()["name"] == "renamed.jpg"


def test_an_index_in_the_place_of_another_is_opened_anew(own: Served) -> None:
    api, index, root = own
    assert len(search(api, query="a", top_k=100)) == 14
    index.close()
    shutil.rmtree(index.folder)
    reply = api.post("/v1/search", json={"query": "a"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "unavailable")
    assert reply.headers["retry-after"] == "1"
    with ImageIndex.open(index.folder, index.clip) as other:
        (root / "00.jpg").unlink()
        other.update(root)
    assert len(search(api, query="a", top_k=100)) == 13


def test_an_index_that_cannot_be_used_is_said_to_be_without_its_path(own: Served, caplog: Any) -> None:
    api, index, root = own
    index.close()
    catalogue = index.folder / "catalogue.sqlite"
    whole = catalogue.read_bytes()
    for path in index.folder.glob("catalogue.sqlite-*"):
        path.unlink()
    for broken in (b"", b"no database at all", whole[:100] + b"\xff" * (len(whole) - 100)):
        catalogue.unlink()
        catalogue.write_bytes(broken)
        reply = api.post("/v1/search", json={"query": "a"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "unavailable")
        assert str(root.parent) not in reply.text
    assert str(root.parent) in caplog.text  # where the one who runs it reads it
    catalogue.unlink()
    catalogue.write_bytes(whole)
    assert len(search(api, query="a", top_k=100)) == 14


def test_an_index_of_another_model_is_not_searched(own: Served) -> None:
    api, index, _ = own
    with ImageIndex.open(index.folder, counting_encoder(seed=3)[0]) as other:
        other.update(re_encode=True)
    assert api.post("/v1/search", json={"query": "a"}).status_code == 503


def test_without_an_index_there_are_no_photos() -> None:
    with TestClient(create_app(counting_encoder()[0]), base_url="http://localhost") as api:
        assert api.get("/v1/photos").json() == {"object": "photos", "count": 0, "videos": 0, "map": False}
        for path in ("photos/x", "photos/x/thumbnail", "photos/x/image", "map"):
            reply = api.get(f"/v1/{path}")
            assert (reply.status_code, reply.json()["error"]["code"]) == (404, "no_index")
        for path, request in (("search", {"query": "a"}), ("similar", {"id": "x"})):
            assert api.post(f"/v1/{path}", json=request).status_code == 404


def test_photos_are_shown_to_who_has_the_key(own: Served) -> None:
    open_to_all, index, _ = own
    some = id_of(open_to_all, "00.jpg")
    with serving(index, api_key="k") as api:
        for path in ("photos", f"photos/{some}/thumbnail", f"photos/{some}/image", "map"):
            assert api.get(f"/v1/{path}").status_code == 401
        asked = api.post("/v1/search", json={"query": "a"}, headers={"authorization": "Bearer k"})
        path = f"/v1/photos/{asked.json()['data'][0]['id']}/image"
        assert api.get(path).status_code == 401
        assert api.get(path, headers={"authorization": "Bearer k"}).status_code == 200
        assert api.get(f"/v1/photos/{some}", headers={"authorization": "Bearer k"}).status_code == 404  # another seal


def test_the_server_answers_while_the_index_searches(own: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    _, index, _ = own
    reached, go_on = threading.Event(), threading.Event()
    ask = Searching.ask

    def slow(*given: Any) -> list[Result]:
        reached.set()
        go_on.wait(10)
        return ask(*given)

    monkeypatch.setattr(Searching, "ask", slow)
    monkeypatch.setattr(library_room, "_MOST_WAITING", 1)
    statuses: list[int] = []
    with running(create_app(index.clip, index=index.folder)) as address:

        def post() -> None:
            statuses.append(httpx.post(f"{address}/v1/search", json={"query": "a"}, timeout=20).status_code)

        asking = threading.Thread(target=post)
        asking.start()
        assert reached.wait(10)
        assert httpx.get(f"{address}/health").status_code == 200
        assert httpx.post(f"{address}/v1/embeddings", json={"input": "a"}).status_code == 200
        assert httpx.get(f"{address}/v1/photos").status_code == 200
        full = httpx.post(f"{address}/v1/search", json={"query": "a"})
        assert (full.status_code, full.headers["retry-after"]) == (429, "1")
        go_on.set()
        asking.join()
        wait_until(lambda: httpx.post(f"{address}/v1/search", json={"query": "a"}).status_code == 200)
    assert statuses == [200]


# ── videos ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_moments_of_a_video_are_found_and_shown(tmp_path: Path) -> None:
    pytest.importorskip("av")
    from test_video import BLUE, GREEN, RED, film

    root = tmp_path / "photos"
    draw(root / "a.jpg", 1)
    film(root / "film.mp4", [(RED, 4), (GREEN, 3), (BLUE, 5)])
    with ImageIndex.open(tmp_path / "index", counting_encoder()[0]) as index:
        index.update(root)
        with serving(index) as api:
            assert api.get("/v1/photos").json() == {"object": "photos", "count": 1, "videos": 1, "map": True}
            found = search(api, query="a", types=["video"])
            assert len(found) == 3
            green = next(photo for photo in found if round(photo["moment"]) == 4)
            assert (green["kind"], green["name"]) == ("video", "film.mp4")
            picture = Image.open(io.BytesIO(api.get(f"/v1/photos/{green['id']}/thumbnail").content))
            assert int(np.argmax(picture.getpixel((30, 20)))) == 1
            assert names(search(api, "similar", id=green["id"])) == ["a.jpg"]
