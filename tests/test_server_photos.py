"""The photos of an index behind HTTP: found as the index finds them, shown without their metadata, and named by ids
that lead nowhere else. No reply has a path of the server's."""

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sightline.server.pictures as pictures
from index_files import draw
from photo_fixtures import Served, id_of, names, search
from serving import data_uri
from sightline.index.filters import Filters
from sightline.index.queries import Term
from sightline.index.searching import Result
from sightline.server.library import Ids

pytest_plugins = ["photo_fixtures"]


def agrees(found: list[dict[str, Any]], expected: list[Result], root: Path, atol: float = 1e-5) -> None:
    assert [photo["id"] for photo in found] == list(dict.fromkeys(photo["id"] for photo in found))
    assert len(found) == len(expected) > 0
    for photo, result in zip(found, expected, strict=True):
        assert photo["score"] == pytest.approx(result.score, abs=atol)
        assert (photo["sure"], photo["match"]) == (pytest.approx(result.sure, abs=1e-6), result.match)
        assert (photo["kind"], photo["width"], photo["height"]) == (result.kind, result.width, result.height)
        assert (photo["size"], photo["taken"], photo["copies"]) == (result.size, result.taken, len(result.copies))
        if photo["name"].endswith(("0.jpg", "1.jpg", "2.jpg")):
            assert photo["name"] == str(result.path.relative_to(root))


# ── searching ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_text_finds_what_the_index_finds_and_how_sure_it_is(served: Served) -> None:
    api, index, root = served
    reply = api.post("/v1/search", json={"query": "a dog", "top_k": 7}).json()
    expected = index.search("a dog", k=7)
    agrees(reply["data"], expected, root)
    assert reply["sure"] == pytest.approx(expected[0].sure, abs=1e-6)
    assert reply["match"] == any(result.match for result in expected)


def test_what_is_added_and_subtracted_counts_by_its_weight(served: Served) -> None:
    api, index, root = served
    found = search(
        api, query="a dog", add=["snow", {"text": "night", "weight": 2.5}], subtract=[{"text": "people", "weight": 0.5}]
    )
    agrees(found, index.search("a dog", k=20, add=["snow", "2.5:night"], subtract="0.5:people"), root)
    assert found[0]["sure"] is None


def test_an_image_is_asked_for_as_data_uri_upload_or_id(served: Served) -> None:
    api, index, root = served
    file = (root / "04.jpg").read_bytes()
    found = search(api, images=[data_uri(file)], add=["snow"])
    agrees(found, index.search(file, k=20, add="snow"), root, atol=0.02)
    form = api.post("/v1/search", files=[("file", ("x.jpg", file))], data={"add": "snow"}).json()["data"]
    assert form == found
    by_id = search(api, add=["snow", {"id": id_of(api, "04.jpg")}])
    agrees(by_id, index.search(file, k=20, add="snow"), root, atol=0.02)


def test_a_text_is_never_the_name_of_a_file_or_a_weight(served: Served) -> None:
    api, index, root = served
    for text in (str(root / "04.jpg"), "2:red", "~/photo.jpg"):
        agrees(search(api, query=text), index.search(Term(text), k=20), root)


def test_similar_photos_are_neither_itself_nor_its_copies(served: Served) -> None:
    api, index, root = served
    found = search(api, "similar", id=id_of(api, "03.jpg"), top_k=5)
    agrees(found, index.search(similar_to=root / "03.jpg", k=5), root, atol=1e-3)
    assert {"03.jpg", "copy.jpg"}.isdisjoint(names(found))


@pytest.mark.parametrize(
    ("asked", "few"),
    [
        ({"folder": "2019"}, 3),
        ({"after": "2021"}, 1),
        ({"before": "2021-06", "types": ["jpg"]}, 1),
        ({"min_size": 100}, 1),
        ({"types": ["video"]}, 0),
        ({"near": [47.37, 8.5], "within": 50}, 1),
    ],
)
def test_filters_choose_as_the_index_does(served: Served, asked: dict[str, Any], few: int) -> None:
    api, index, _ = served
    filters = {**asked, "near": tuple(asked["near"])} if "near" in asked else asked
    expected = index.search("a dog", k=50, where=Filters(**filters))
    assert [photo["score"] for photo in search(api, query="a dog", top_k=50, **asked)] == pytest.approx(
        [result.score for result in expected], abs=1e-5
    )
    assert len(expected) == few


def test_a_form_has_filters_too(served: Served) -> None:
    api, _, _ = served

    def form(*fields: tuple[str, str]) -> Any:
        return api.post("/v1/search", files=[(name, (None, value)) for name, value in fields])

    near = form(("query", "a"), ("near", "47.37"), ("near", "8.5"), ("within", "50"), ("types", "jpg"))
    assert names(near.json()["data"]) == ["large.jpg"]
    assert form(("query", "a"), ("near", "nan"), ("near", "8.5")).status_code == 422


def test_the_least_score_leaves_out_what_is_below(served: Served) -> None:
    api, _, _ = served
    scores = [photo["score"] for photo in search(api, query="a dog")]
    assert len(search(api, query="a dog", min_score=scores[3] - 1e-6)) == 4
    nothing = api.post("/v1/search", json={"query": "a dog", "min_score": 0.99}).json()
    assert (nothing["match"], nothing["sure"], nothing["data"]) == (False, None, [])


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        ({}, "query"),
        ({"query": " "}, "query"),
        ({"query": "a\ud800"}, None),  # no JSON in UTF-8
        ({"query": "a", "add": [{}]}, "add[0]"),
        ({"query": "a", "subtract": ["b", {"text": "a", "id": "x"}]}, "subtract[1]"),
        ({"query": "a", "add": [{"text": "b", "weight": 0}]}, "add[0].weight"),
        ({"query": "a", "subtract": ["a"]}, "query"),
        ({"images": ["data:image/jpeg;base64,AAAA"]}, "images[0]"),
        ({"query": "a", "add": ["b"] * 40}, "add[31]"),
        ({"query": "a", "top_k": 0}, "top_k"),
        ({"query": "a", "top_k": 10**9}, "top_k"),
        ({"query": "a", "after": "yesterday"}, "after"),
        ({"query": "a", "after": "2020", "before": "2019"}, "before"),
        ({"query": "a", "near": [100, 0]}, "near"),
        ({"query": "a", "types": ["'; DROP TABLE files; --"]}, "types"),
        ({"query": "a", "types": ["jpg"] * 5000}, "types"),
        ({"query": "a", "min_size": 2**70}, "min_size"),
        ({"query": "a", "folder": "../../etc"}, "folder"),
        ({"query": "a", "folder": "2019/../.."}, "folder"),
        ({"query": "a", "folder": "/"}, "folder"),
        ({"query": "a", "folder": "2019\0"}, "folder"),
        ({"query": "a", "folder": "\udcff"}, None),
    ],
)
def test_what_cannot_be_asked_is_said(served: Served, request_: dict[str, Any], param: str | None) -> None:
    api, _, _ = served
    reply = api.post("/v1/search", content=json.dumps(request_), headers={"content-type": "application/json"})
    assert reply.status_code == 422, reply.text
    assert reply.json()["error"]["param"] == param
    assert "server-of-secrets" not in reply.text


def test_a_folder_named_like_a_home_is_only_a_name(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    api, _, root = served
    monkeypatch.setenv("HOME", str(root))
    assert search(api, query="a", folder="~") == []


# ── ids and names ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_id_is_sealed() -> None:
    ids, others = Ids(), Ids()
    sealed = [ids.seal(number) for number in (0, 1, 2, 2**40)]
    assert [ids.open(name) for name in sealed] == [0, 1, 2, 2**40]
    assert {len(name) for name in sealed} == {32}
    assert [others.open(name) for name in sealed] == [None] * 4
    for place in range(32):
        forged = sealed[1][:place] + ("A" if sealed[1][place] != "A" else "B") + sealed[1][place + 1 :]
        assert ids.open(forged) is None
    for name in ("", "x", "é", "=" * 32, sealed[0] + "=", f" {sealed[0]}", sealed[0][:-4], sealed[0] * 2):
        assert ids.open(name) is None


@pytest.mark.parametrize("id", ["1", "..", "00.jpg", "..%2f..%2fetc%2fpasswd", "%00", "A" * 32, "%2e%2e/etc", "é"])
def test_an_id_that_was_not_given_leads_nowhere(served: Served, id: str) -> None:
    api, _, _ = served
    for path in (f"photos/{id}", f"photos/{id}/thumbnail", f"photos/{id}/image"):
        reply = api.get(f"/v1/{path}")
        assert (reply.status_code, set(reply.json())) == (404, {"error"})
    assert api.post("/v1/similar", json={"id": id}).status_code == 404
    assert api.post("/v1/search", json={"add": [{"id": id}]}).status_code == 404


def test_names_are_text_from_the_folder_of_the_photos_on(served: Served) -> None:
    api, _, _ = served
    found = names(search(api, query="a", top_k=100))
    assert {"<img src=x onerror=alert(1)>.jpg", "=cmd|'calc'!A1.jpg", "%2e%2e%2f..\\x.jpg", "2019/10.jpg"} <= set(found)
    assert "a\\nb\\r\\nX-Evil: 1\\udcff.jpg" in found
    assert all(name.isprintable() for name in found)
    for name in found:
        reply = api.get(f"/v1/photos/{id_of(api, name)}/image")
        assert reply.status_code == 200
        assert reply.headers["content-type"] == "image/jpeg"
        assert reply.headers["content-disposition"] == "inline"
        assert "x-evil" not in reply.headers


def test_no_reply_has_a_path_of_the_servers(served: Served) -> None:
    api, _, _ = served
    some = id_of(api, "large.jpg")
    replies = [
        api.get("/v1/photos"),
        api.get(f"/v1/photos/{some}"),
        api.get(f"/v1/photos/{some}/image"),
        api.post("/v1/search", json={"query": "a"}),
        api.post("/v1/search", json={"query": "a", "folder": "missing"}),
        api.post("/v1/similar", json={"id": some}),
        api.get("/v1/models"),
    ]
    for reply in replies:
        assert reply.status_code == 200
        assert b"server-of-secrets" not in reply.content + str(reply.headers).encode()


def test_what_is_known_of_a_photo_is_told_and_its_place_is_not(served: Served) -> None:
    api, _, root = served
    some = id_of(api, "large.jpg")
    size = (root / "large.jpg").stat().st_size
    assert api.get(f"/v1/photos/{some}").json() == {
        "object": "photo", "id": some, "name": "large.jpg", "kind": "photo", "moment": None, "size": size,
        "width": 900, "height": 600, "taken": "2021-05-06T07:08:09", "copies": 0,
    }  # fmt: skip
    assert api.get(f"/v1/photos/{id_of(api, '03.jpg')}").json()["copies"] == 1
    assert api.get("/v1/photos").json() == {"object": "photos", "count": 14, "videos": 0, "map": True}


# ── pictures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("what", "size"), [("thumbnail", (320, 213)), ("image", (900, 600))])
def test_a_picture_is_small_and_made_of_pixels_alone(served: Served, what: str, size: tuple[int, int]) -> None:
    api, _, root = served
    reply = api.get(f"/v1/photos/{id_of(api, 'large.jpg')}/{what}")
    picture = Image.open(io.BytesIO(reply.content))
    assert (picture.format, picture.size) == ("JPEG", size)
    assert b"secret" in (root / "large.jpg").read_bytes()
    assert b"secret" not in reply.content
    assert not picture.getexif()
    assert "comment" not in picture.info
    expected = np.asarray(Image.open(root / "large.jpg").resize(size), np.float32)
    assert np.abs(np.asarray(picture, np.float32) - expected).mean() < 4
    assert reply.headers["cache-control"] == "private, max-age=600"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["content-security-policy"].startswith("default-src 'none'")


def test_a_picture_that_the_client_has_is_neither_sent_nor_made_again(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    api, _, _ = served
    path = f"/v1/photos/{id_of(api, '05.jpg')}/thumbnail"
    first = api.get(path)
    monkeypatch.setattr(pictures, "_jpeg", None)  # what is kept is not made again
    assert api.get(path).content == first.content
    tag = first.headers["etag"]
    for given in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = api.get(path, headers={"if-none-match": given})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert api.get(path, headers={"if-none-match": '"other"'}).status_code == 200


def test_few_pictures_are_kept(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    api, _, _ = served
    monkeypatch.setattr(pictures, "_KEPT", 3000)
    for photo in search(api, query="a", top_k=100):
        assert api.get(f"/v1/photos/{photo['id']}/thumbnail").status_code == 200
    kept = api.app.state.pictures  # type: ignore[attr-defined]
    assert kept._size == sum(map(len, kept._kept.values())) <= 3000


def test_a_photo_that_was_changed_has_another_picture(own: Served) -> None:
    api, _, root = own
    path = f"/v1/photos/{id_of(api, '05.jpg')}/thumbnail"
    before = api.get(path)
    draw(root / "05.jpg", 99)
    after = api.get(path, headers={"if-none-match": before.headers["etag"]})
    assert after.status_code == 200
    assert after.content != before.content


def test_what_has_gone_or_become_something_else_has_no_picture(own: Served, tmp_path: Path) -> None:
    api, _, root = own
    outside = tmp_path / "outside.jpg"
    draw(outside, 7)
    ids = {name: id_of(api, name) for name in ("00.jpg", "01.jpg", "02.jpg", "04.jpg", "2019/10.jpg")}
    (root / "00.jpg").unlink()
    (root / "01.jpg").write_bytes(b"<svg onload=alert(1)>")
    (root / "02.jpg").unlink()
    (root / "02.jpg").symlink_to(outside)
    (root / "04.jpg").unlink()
    os.mkfifo(root / "04.jpg")
    shutil.move(root / "2019", tmp_path / "elsewhere")
    (root / "2019").symlink_to(tmp_path / "elsewhere")
    for name, id in ids.items():
        reply = api.get(f"/v1/photos/{id}/image")
        assert reply.status_code == 404, name
        assert reply.json()["error"]["code"] in ("photo_not_found", "no_picture")
        assert str(tmp_path) not in reply.text
