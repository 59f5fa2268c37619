"""Whatever is sent, the reply is the stated one, in OpenAI's error shape, and the server answers the next request."""

import io
import json
import struct
import threading
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from pydantic import ValidationError

from serving import JSON, client, data_uri, guard_of, photo
from sightline.errors import InvalidArgumentError
from sightline.server import reading
from sightline.server.errors import ApiError
from sightline.server.limits import check_json
from sightline.server.schemas import EmbeddingsRequest
from sightline.server.settings import Settings


@pytest.fixture(scope="module")
def api() -> Iterator[TestClient]:
    with client() as asked:
        yield asked


def refused(api: TestClient, status: int, code: str, path: str = "embeddings", **request: Any) -> dict[str, Any]:
    """The error of a reply that must be this one; and the server lives."""
    reply = api.post(f"/v1/{path}", **request)
    assert reply.status_code == status, reply.text[:300]
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code, error
    assert error["message"].isprintable()
    assert api.post("/v1/embeddings", json={"input": "a cat"}).status_code == 200
    return error


def bomb() -> bytes:
    """64 million pixels in a few kilobytes."""
    file = io.BytesIO()
    Image.new("1", (8000, 8000)).save(file, "PNG")
    return file.getvalue()


def head_of(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and ends there."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT"
    chunks = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (head, data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_an_image_of_one_pixel_is_an_image(api: TestClient) -> None:
    reply = api.post("/v1/embeddings", json={"input": data_uri(photo(size=(1, 1), format="PNG"))})
    assert (reply.status_code, len(reply.json()["data"])) == (200, 1)


@pytest.mark.parametrize(
    ("file", "says"),
    [
        pytest.param(photo(size=(1, 10_000), format="PNG"), "too long and thin", id="1 x 10,000"),
        pytest.param(photo(size=(10_000, 1), format="PNG"), "too long and thin", id="10,000 x 1"),
        pytest.param(photo(size=(64, 64))[:-300], "truncated", id="truncated JPEG"),
        pytest.param(photo(format="PNG")[:60], "truncated", id="truncated PNG"),
        pytest.param(photo()[:20], "truncated", id="a head alone"),
        pytest.param(b"", "not an image", id="empty"),
        pytest.param(b"<svg onload=alert(1)>", "not an image", id="SVG"),
        pytest.param(bomb(), "more than 50,000,000 pixels", id="bomb"),
        pytest.param(head_of(60_000, 60_000), "more than 50,000,000 pixels", id="beyond what Pillow opens"),
    ],
)
def test_an_image_that_cannot_be_is_refused_and_named(api: TestClient, file: bytes, says: str) -> None:
    error = refused(api, 422, "invalid_image", json={"input": ["a cat", data_uri(file)]})
    assert says in error["message"]
    assert error["param"] == "input[1]"
    error = refused(api, 422, "invalid_image", "classify", files=[("file", ("x", file))], data={"labels": "cat"})
    assert error["param"] == "file[0]"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        pytest.param(b"[" * 200_000, 413, "json_too_deep", id="deep lists"),
        pytest.param(b'{"a":' * 200_000, 413, "json_too_deep", id="deep objects"),
        pytest.param(b'{"input": [' + b"0," * 300_000 + b"0]}", 413, "json_too_long", id="many values"),
        pytest.param(json.dumps(dict.fromkeys(map(str, range(10_001)))).encode(), 413, "json_too_long", id="many keys"),
        pytest.param(b'{"input": ' + b'"a"' + b" " * 60_000_000 + b"}", 413, "too_large", id="60 MB"),
        pytest.param(b'{"input": "a", "dimensions": NaN}', 422, "invalid_json", id="NaN"),
        pytest.param(b'{"input": "a", "dimensions": -Infinity}', 422, "invalid_json", id="infinity"),
        pytest.param(b'{"input": "a", "dimensions": 1e999}', 422, "invalid_json", id="beyond a float"),
        pytest.param(b'{"input": "a", "dimensions": ' + b"9" * 5000 + b"}", 422, "invalid_json", id="5,000 digits"),
        pytest.param(b'{"input": "a"', 422, "invalid_json", id="cut off"),
        pytest.param(b'{"input": "\xff"}', 422, "invalid_json", id="not UTF-8"),
        pytest.param('{"input": "a"}'.encode("utf-16"), 422, "invalid_json", id="UTF-16"),
        pytest.param(b'{"input": "\\ud800"}', 422, "invalid_json", id="half a surrogate pair"),
        pytest.param(b'{"\\ud800": 1}', 422, "invalid_json", id="half a surrogate pair as a key"),
        pytest.param(b'{"input": "a", "model": null, "input": "b"}', 422, "duplicate_key", id="a key twice"),
        pytest.param(b'{"input": [{"type": "text", "text": "a", "type": 1}]}', 422, "duplicate_key", id="deeper"),
        pytest.param(b"", 422, "invalid_json", id="empty"),
        pytest.param(b"null", 422, "invalid_value", id="null"),
        pytest.param(b'"[[[[[["', 422, "invalid_value", id="brackets in a string"),
    ],
)
def test_json_that_cannot_be_is_refused(api: TestClient, body: bytes, status: int, code: str) -> None:
    refused(api, status, code, content=body, headers=JSON)


@pytest.mark.parametrize(
    ("path", "request_", "code"),
    [
        ("embeddings", {}, "nothing_given"),
        ("embeddings", {"input": []}, "nothing_given"),
        ("embeddings", {"input": " "}, "nothing_given"),
        ("embeddings", {"input": 5}, "invalid_value"),
        ("embeddings", {"input": [[1, 2]]}, "invalid_value"),
        ("embeddings", {"input": ["a"] * 10_000}, "too_many_items"),
        ("embeddings", {"input": "x" * 3000}, "text_too_long"),
        ("embeddings", {"input": "cat " * 100}, "text_too_long"),
        ("embeddings", {"input": "a", "dimensions": 7}, "invalid_value"),
        ("embeddings", {"input": "a", "inpt": "b"}, "invalid_value"),
        ("embeddings", {"input": "a", "messages": []}, "invalid_value"),
        ("embeddings", {"input": "a", "encoding_format": "hex"}, "invalid_value"),
        ("embeddings", {"input": "file:///etc/passwd", "modality": "image"}, "invalid_image"),
        ("embeddings", {"input": "/etc/passwd", "modality": "image"}, "invalid_image"),
        ("embeddings", {"input": "http://127.0.0.1/x.jpg", "modality": "image"}, "urls_not_allowed"),
        ("embeddings", {"input": "data:image/png,abc"}, "invalid_image"),
        ("embeddings", {"input": "data:image/png;base64,%%%"}, "invalid_image"),
        ("embeddings", {"input": "data:image/png;base64,é"}, "invalid_image"),
        ("classify", {"labels": ["a"]}, "nothing_given"),
        ("classify", {"images": ["x"]}, "invalid_value"),
        ("classify", {"images": ["x"], "labels": []}, "nothing_given"),
        ("classify", {"images": ["x"], "labels": ["a", " "]}, "nothing_given"),
        ("classify", {"images": ["x"], "labels": ["cat " * 100]}, "invalid_image"),
        ("classify", {"images": [data_uri(photo())], "labels": ["cat " * 100]}, "text_too_long"),
        ("classify", {"images": ["x"], "labels": ["a"], "label_sets": {}}, "invalid_value"),
        ("classify", {"images": ["x"], "label_sets": {}}, "nothing_given"),
        ("classify", {"images": ["x"], "labels": ["a"], "templates": "no such set"}, "invalid_value"),
        ("classify", {"images": ["x"], "labels": ["a"], "templates": ["{x}"]}, "invalid_value"),
        ("classify", {"images": ["x"], "labels": ["a"], "templates": []}, "invalid_value"),
        ("classify", {"images": ["x"], "labels": ["a"] * 2000, "templates": "imagenet"}, "too_many_items"),
        ("classify", {"images": [data_uri(photo())] * 200, "labels": ["a"] * 6000}, "too_many_items"),
        ("classify", {"images": ["x"], "labels": ["a"], "top_k": 0}, "invalid_value"),
        ("classify", {"images": ["x"], "labels": ["a"], "top_k": 10**6}, "invalid_value"),
        ("classify", {"images": ["x"], "labels": ["a"], "abstain_below": 2}, "invalid_value"),
        ("rank", {}, "invalid_value"),
        ("rank", {"image": "x", "text": "y"}, "invalid_value"),
        ("rank", {"image": data_uri(photo()), "texts": []}, "nothing_given"),
        ("rank", {"text": "y", "images": ["z"]}, "invalid_image"),
    ],
)
def test_what_makes_no_sense_is_refused(api: TestClient, path: str, request_: dict[str, Any], code: str) -> None:
    refused(api, 422, code, path, json=request_)


LONG = "cat " * 100


@pytest.mark.parametrize(
    ("path", "request_", "param"),
    [
        ("embeddings", {"input": ["a", 5]}, "input[1]"),
        ("embeddings", {"input": "a", "messages": []}, "messages"),
        ("embeddings", {"input": ["a", LONG]}, "input[1]"),
        ("embeddings", {"input": "a", "model": "other"}, "model"),
        ("embeddings", {"input": "a", "inpt": "a"}, "inpt"),
        ("classify", {"images": [data_uri(photo())], "labels": ["a", LONG]}, "labels[1]"),
        ("classify", {"images": ["x"], "labels": ["a"], "templates": "no such set"}, "templates"),
        ("classify", {"images": ["x"], "labels": ["a"], "templates": ["{}", " "]}, "templates[1]"),
        ("classify", {"images": ["x"], "label_sets": {"of": {"labels": ["red", ""]}}}, "label_sets.of.labels[1]"),
        ("classify", {"images": ["x"], "label_sets": {"labels": {"labels": []}}}, "label_sets.labels.labels"),
        ("classify", {"images": ["x"], "label_sets": {"of": {"labels": ["a"], "templates": "b"}}},
         "label_sets.of.templates"),
        ("classify", {"images": [data_uri(photo())], "label_sets": {"of": {"labels": [LONG]}}},
         "label_sets.of.labels[0]"),
        ("rank", {}, "text"),
        ("rank", {"image": data_uri(photo()), "texts": ["a", LONG]}, "texts[1]"),
        ("explain", {"image": data_uri(photo()), "texts": [LONG]}, "texts"),
        ("explain", {"image": data_uri(head_of(60_000, 60_000)), "texts": ["a"]}, "image"),
    ],
)  # fmt: skip
def test_errors_name_the_place(api: TestClient, path: str, request_: dict[str, Any], param: str) -> None:
    error = api.post(f"/v1/{path}", json=request_).json()["error"]
    assert error["param"] == param, error


def test_what_is_given_twice_is_named(api: TestClient) -> None:
    request = b'{"images": [], "labels": ["a"], "top_k": 1, "top_k": 2}'
    assert refused(api, 422, "duplicate_key", "classify", content=request, headers=JSON)["param"] == "top_k"
    files = [("file", ("a", photo()))]
    error = refused(api, 422, "duplicate_key", "classify", files=files, data={"labels": ["a", "b"], "top_k": [1, 2]})
    assert error["param"] == "top_k"
    sets = '{"a": {"labels": ["x"]}, "a": {"labels": ["y"]}}'
    assert refused(api, 422, "duplicate_key", "classify", files=files, data={"label_sets": sets})["param"] == "a"


def test_of_many_faults_one_is_looked_for() -> None:
    for request in ({"input": [0] * 1000}, {"messages": [{"content": [{}] * 1000}] * 10}):
        with pytest.raises(ValidationError) as found:
            EmbeddingsRequest.model_validate(request)
        assert found.value.error_count() < 10


def test_a_large_form_is_parsed_beside_the_event_loop(api: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    parse = reading._Form.parse

    async def noted(form: Any) -> Any:
        threads.append(threading.current_thread().name)
        return await parse(form)

    monkeypatch.setattr(reading._Form, "parse", noted)
    for size in (10, 100_000):
        assert api.post("/v1/classify", files=[("file", ("a", b"x" * size))], data={"labels": "a"}).status_code == 422
    assert [name.startswith("work") for name in threads] == [False, True]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/xml", ""])
def test_other_kinds_of_bodies_are_not_read(api: TestClient, kind: str) -> None:
    refused(api, 415, "unsupported_media_type", content=b'{"input": "a"}', headers={"content-type": kind})


def test_forms_that_cannot_be_are_refused(api: TestClient) -> None:
    form = {"content-type": "multipart/form-data; boundary=x"}
    refused(api, 422, "invalid_form", content=b"--x\r\nno form", headers=form)
    refused(api, 422, "invalid_form", content=b"", headers={"content-type": "multipart/form-data"})
    refused(api, 422, "invalid_form", files=[("file", ("a", b"x"))] * 300)
    parts = [b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + photo() + b"\r\n"] * 2
    whole = b"".join(parts) + b"--x--\r\n"
    assert len(api.post("/v1/embeddings", content=whole, headers=form).json()["data"]) == 2
    for missing in (4, 6, 30, len(parts[0])):
        refused(api, 422, "invalid_form", content=whole[:-missing], headers=form)
    for charset in ("undefined", "punycode", "utf-16", "latin-1", "\xff"):  # the first two are no codec for this
        named = {"content-type": f"{form['content-type']}; charset={charset}".encode("latin-1")}
        refused(api, 415, "unsupported_media_type", content=whole, headers=named)
    for charset in ("utf-8", '"UTF-8"'):
        named = {"content-type": f"{form['content-type']}; charset={charset}"}
        assert api.post("/v1/embeddings", content=whole, headers=named).status_code == 200
    sets = {"label_sets": "[" * 10_000}
    refused(api, 413, "json_too_deep", "classify", files=[("file", ("a", photo()))], data=sets)
    refused(api, 422, "invalid_json", "classify", files=[("file", ("a", photo()))], data={"label_sets": "NaN"})


def test_a_name_of_another_site_and_its_pages_are_not_answered(api: TestClient) -> None:
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost@evil", "", "[::1]x"):
        assert api.get("/v1/models", headers={"host": host}).json()["error"]["code"] == "host_not_allowed"
    for host in ("localhost:8000", "127.0.0.1", "[::1]:80", "LOCALHOST", "localhost:"):
        assert api.get("/v1/models", headers={"host": host}).status_code == 200
    twice = api.get("/v1/models", headers=[("host", "localhost"), ("host", "evil.example")])
    assert (twice.status_code, twice.json()["error"]["code"]) == (400, "invalid_http")
    for origin in ("http://evil.example", "null", "http://["):
        assert api.get("/v1/models", headers={"origin": origin}).json()["error"]["code"] == "origin_not_allowed"
    for origin in ("https://localhost", "ftp://localhost", "http://localhost:81"):
        assert api.get("/v1/models", headers={"origin": origin}).status_code == 403
    own = api.get("/v1/models", headers={"origin": "http://localhost"})
    assert own.status_code == 200
    assert not [name for name in own.headers if name.startswith("access-control")]
    assert "default-src 'none'" in own.headers["content-security-policy"]


def test_what_a_browser_says_of_its_page_is_believed(api: TestClient) -> None:
    for site, mode, path, status in (
        ("cross-site", "no-cors", "/v1/models", 403),
        ("cross-site", "navigate", "/v1/models", 403),
        ("same-site", "cors", "/v1/models", 403),  # another port of this machine
        ("cross-site", "no-cors", "/metrics", 403),
        ("cross-site", "no-cors", "/", 403),
        ("cross-site", "navigate", "/", 200),  # a link to our page
        ("same-origin", "cors", "/v1/models", 200),
        ("none", "navigate", "/v1/models", 200),  # typed into the address bar
    ):
        reply = api.get(path, headers={"sec-fetch-site": site, "sec-fetch-mode": mode})
        assert reply.status_code == status, (site, mode, path)
    behind_tls = {"sec-fetch-site": "same-origin", "origin": "https://localhost"}
    assert api.get("/v1/models", headers=behind_tls).status_code == 200
    assert api.get("/v1/models", headers={**behind_tls, "origin": "https://evil.example"}).status_code == 403


def test_a_method_that_is_none_is_told_which_there_are(api: TestClient) -> None:
    for method, path, allowed in (
        ("GET", "/v1/embeddings", "POST"),
        ("HEAD", "/v1/embeddings", "POST"),
        ("DELETE", "/health", "GET, HEAD"),
        ("PUT", "/", "GET, HEAD"),
    ):
        reply = api.request(method, path)
        assert (reply.status_code, reply.headers["allow"]) == (405, allowed)
        if method != "HEAD":
            assert reply.json()["error"]["code"] == "http_405"
            assert allowed in reply.json()["error"]["message"]


def test_a_slash_too_many_leads_nowhere(api: TestClient) -> None:
    for path in ("/v1/models/", "/v1/photos/", "/health/", "/static/", "/metrics/", "/openapi.json/"):
        reply = api.get(path, follow_redirects=False)
        assert (reply.status_code, set(reply.json())) == (404, {"error"}), path
    assert api.post("/v1/embeddings/", json={}, follow_redirects=False).status_code == 404


def test_what_answers_get_answers_head(api: TestClient) -> None:
    for path in ("/", "/health", "/ready", "/metrics", "/v1/models", "/openapi.json", "/static/index.html"):
        reply = api.head(path)
        assert (reply.status_code, reply.content) == (200, b"")
        assert reply.headers["content-type"] == api.get(path).headers["content-type"]
    assert api.head("/nowhere").status_code == 404


def test_without_the_key_nothing_but_health_is_told() -> None:
    with client(api_key="sesame") as api:
        for given in (None, "", "Bearer", "Bearer wrong", "Basic sesame", "Bearer s\xe9same x"):
            headers = {} if given is None else {"authorization": given.encode("utf-8")}
            for path in ("/v1/models", "/metrics", "/v1/embeddings"):
                reply = api.get(path, headers=headers)
                assert (reply.status_code, reply.json()["error"]["type"]) == (401, "authentication_error")
        assert api.get("/health").status_code == api.get("/ready").status_code == 200
        assert api.get("/v1/models", headers={"authorization": b"Bearer sesame"}).status_code == 200


def test_requests_that_are_read_together_hold_no_more_than_they_may() -> None:
    with client(max_body=1000) as api:
        guard = guard_of(api.app)
        guard.hold(7900)
        refused_ = api.post("/v1/embeddings", json={"input": "x" * 500})
        assert (refused_.status_code, refused_.headers["retry-after"]) == (429, "1")
        guard.hold(-7900)
        assert api.post("/v1/embeddings", json={"input": "a cat"}).status_code == 200
        assert guard._held == 0


def test_depth_is_counted_outside_strings_alone() -> None:
    settings = Settings(max_depth=3)
    for fine in (b"[[[]]]", b'["[[[[[", "\\"[[[[[", {"]": []}]', b'[["\\\\"], [[]]]', b""):
        check_json(fine, settings)
    for deep in (b"[[[[", b'{"a":[{"b":[]}]}', b'["\\\\", [[[]]]]', json.dumps([[[["x"]]]]).encode()):
        with pytest.raises(ApiError, match="brackets"):
            check_json(deep, settings)


def test_a_string_that_never_ends_takes_time_in_proportion_to_its_length() -> None:
    settings = Settings()
    for end in (b"", b"\\"):
        check_json(b"[]" * (settings.max_depth + 1) + b'"' + b'\\"' * 2**20 + end, settings)  # else: days


@pytest.mark.parametrize(
    "wrong",
    [
        {"api_key": " "},
        {"api_key": "sésame"},
        {"max_body": 0},
        {"max_answer": 0},
        {"max_items": 600},
        {"max_pixels": 10**9},
        {"batch_size": 0},
    ],
)
def test_settings_that_make_no_server_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        Settings(**wrong)
