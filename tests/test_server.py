"""The API of `sightline serve`: what it answers equals what the library computes."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

import sightline
from serving import Gate, client, data_uri, photo
from sightline.encoder import Encoder
from sightline.label.rows import Labeller
from sightline.server.app import create_app
from sightline.server.errors import of_sightline
from tiny import small_vocabulary

RED, BLUE = photo("red"), photo("blue", (30, 60), "PNG")
LABELS = ["cat", "dog", "a red thing"]


@pytest.fixture(scope="module")
def api() -> Iterator[TestClient]:
    with client() as asked:
        yield asked


@pytest.fixture(scope="module")
def clip(api: TestClient) -> Encoder:
    return api.app.state.features.clip  # type: ignore[attr-defined]


def embed(api: TestClient, **request: object) -> np.ndarray:
    reply = api.post("/v1/embeddings", json=request)
    assert reply.status_code == 200, reply.text
    return np.array([row["embedding"] for row in reply.json()["data"]], np.float32)


def test_texts_are_embedded_as_the_encoder_does(api: TestClient, clip: Encoder) -> None:
    texts = ["a cat", "two dogs on a beach"]
    np.testing.assert_allclose(embed(api, input=texts), clip.encode_texts(texts), atol=1e-6)
    np.testing.assert_allclose(embed(api, input="a cat"), clip.encode_texts(["a cat"]), atol=1e-6)


def test_images_are_embedded_as_the_encoder_does(api: TestClient, clip: Encoder) -> None:
    expected = clip.encode_images([RED, BLUE])
    np.testing.assert_allclose(embed(api, input=[data_uri(RED), data_uri(BLUE)]), expected, atol=1e-6)
    uploaded = api.post("/v1/embeddings", files=[("file", ("a.jpg", RED)), ("file", ("b.png", BLUE))]).json()["data"]
    np.testing.assert_allclose([row["embedding"] for row in uploaded], expected, atol=1e-6)


def test_texts_and_images_come_back_in_the_order_given(api: TestClient, clip: Encoder) -> None:
    mixed = embed(
        api,
        input=[
            data_uri(RED),
            "a cat",
            {"type": "image_url", "image_url": {"url": data_uri(BLUE)}},
            {"type": "text", "text": "a dog"},
        ],
    )
    red, blue = clip.encode_images([RED, BLUE])
    cat, dog = clip.encode_texts(["a cat", "a dog"])
    np.testing.assert_allclose(mixed, [red, cat, blue, dog], atol=1e-6)


def test_messages_and_modality_are_understood(api: TestClient, clip: Encoder) -> None:
    parts = [{"type": "image_url", "image_url": data_uri(RED)}, {"type": "text", "text": "a cat"}]
    expected = [clip.encode_images([RED])[0], clip.encode_texts(["a cat"])[0]]
    np.testing.assert_allclose(embed(api, messages=[{"role": "user", "content": parts}]), expected, atol=1e-6)
    np.testing.assert_allclose(embed(api, input=[data_uri(RED)], modality="image"), expected[:1], atol=1e-6)
    text = "data:image/ is how it begins"
    np.testing.assert_allclose(embed(api, input=text, modality="text"), clip.encode_texts([text]), atol=1e-6)


def test_base64_holds_the_same_float32(api: TestClient) -> None:
    plain = embed(api, input=["a cat"])[0]
    encoded = api.post("/v1/embeddings", json={"input": ["a cat"], "encoding_format": "base64"}).json()
    packed = np.frombuffer(base64.b64decode(encoded["data"][0]["embedding"]), "<f4")
    np.testing.assert_array_equal(packed, plain)


def test_usage_counts_the_tokens_of_texts_whether_they_were_known_or_not(api: TestClient, clip: Encoder) -> None:
    tokens = int(np.count_nonzero(clip.tokenizer.batch(["a tiny zebra"])[0]))
    for _ in range(2):
        usage = api.post("/v1/embeddings", json={"input": ["a tiny zebra", data_uri(RED)]}).json()["usage"]
        assert usage == {"prompt_tokens": tokens, "total_tokens": tokens}


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("templates", ["plain", ["a drawing of {}.", "{} at night"]])
def test_classify_says_what_the_classifier_and_the_labeller_say(
    api: TestClient, clip: Encoder, templates: str | list[str], independent: bool
) -> None:
    request = {"images": [data_uri(RED), data_uri(BLUE)], "labels": LABELS, "templates": templates}
    reply = api.post("/v1/classify", json={**request, "independent": independent, "abstain_below": 0.3}).json()
    classifier = sightline.ZeroShotClassifier(clip, LABELS, templates, independent=independent)
    labeller = Labeller(classifier, abstain_below=0.3)
    for index, feature in enumerate(clip.encode_images([RED, BLUE])):
        expected, (found,) = labeller.row("", feature), reply["data"][index]["sets"]
        assert found["name"] == "labels"
        assert [label["label"] for label in found["labels"]] == [label for label, _ in expected.ranked]
        probabilities = [label["probability"] for label in found["labels"]]
        np.testing.assert_allclose(probabilities, [p for _, p in expected.ranked], rtol=1e-4)
        assert found["fit"] == pytest.approx(expected.fit, rel=1e-4)
        assert found["abstain"] == expected.abstain


def test_several_label_sets_are_answered_at_once(api: TestClient) -> None:
    sets = {
        "animal": {"labels": ["cat", "dog", "bird"]},
        "colour": {"labels": ["red", "blue"], "templates": "a {} thing", "independent": True},
    }
    reply = api.post("/v1/classify", json={"images": [data_uri(RED)], "label_sets": sets, "top_k": 2}).json()
    animal, colour = reply["data"][0]["sets"]
    assert (animal["name"], colour["name"]) == ("animal", "colour")
    assert len(animal["labels"]) == len(colour["labels"]) == 2
    alone = api.post("/v1/classify", json={"images": [data_uri(RED)], "labels": ["cat", "dog", "bird"], "top_k": 2})
    for of_alone, of_several in zip(alone.json()["data"][0]["sets"][0]["labels"], animal["labels"], strict=True):
        assert of_alone == pytest.approx(of_several)


def test_a_form_asks_the_same_as_json(api: TestClient) -> None:
    form = {"labels": LABELS, "top_k": "2", "independent": "true"}
    uploaded = api.post("/v1/classify", files=[("file", ("x.jpg", RED))], data=form)
    asked = {"images": [data_uri(RED)], "labels": LABELS, "top_k": 2, "independent": True}
    assert uploaded.json() == api.post("/v1/classify", json=asked).json()
    sets = {"label_sets": json.dumps({"a": {"labels": LABELS}})}
    assert api.post("/v1/classify", files=[("file", ("x.jpg", RED))], data=sets).status_code == 200


def test_rank_orders_by_cosine_both_ways(api: TestClient, clip: Encoder) -> None:
    image, texts = clip.encode_images([RED])[0].astype(float), clip.encode_texts(LABELS)
    cosines = texts @ image
    shares = np.exp(clip.scale * cosines) / np.exp(clip.scale * cosines).sum()
    found = api.post("/v1/rank", json={"image": data_uri(RED), "texts": LABELS}).json()["data"]
    assert [row["index"] for row in found] == np.argsort(-cosines).tolist()
    assert [row["score"] for row in found] == pytest.approx(np.sort(cosines)[::-1].tolist(), abs=1e-6)
    assert [row["probability"] for row in found] == pytest.approx(np.sort(shares)[::-1].tolist(), rel=1e-4)

    to_images = clip.encode_images([RED, BLUE]) @ texts[0]
    found = api.post("/v1/rank", json={"text": "cat", "images": [data_uri(RED), data_uri(BLUE)], "top_k": 1}).json()
    assert [row["index"] for row in found["data"]] == [int(to_images.argmax())]
    uploaded = api.post("/v1/rank", files=[("file", ("x.jpg", RED))], data={"texts": LABELS})
    assert uploaded.json() == api.post("/v1/rank", json={"image": data_uri(RED), "texts": LABELS}).json()


def test_what_was_encoded_is_not_encoded_again() -> None:
    with client() as api:
        images, texts = Gate(api.app, "image"), Gate(api.app, "text")  # type: ignore[arg-type]
        for _ in range(3):
            api.post("/v1/classify", json={"images": [data_uri(RED)], "labels": ["cat", "dog"]})
        assert (images.batches, texts.batches) == ([1], [4, 1, 2])  # the background in five prompts, then the labels
        api.post("/v1/classify", json={"images": [data_uri(RED)], "labels": ["dog", "cat", "bird"]})
        assert (images.batches, texts.batches) == ([1], [4, 1, 2, 1])


def test_a_cache_holds_no_more_than_it_may() -> None:
    with client(cache_size=3) as api:
        texts = Gate(api.app, "text")  # type: ignore[arg-type]
        for text in ["a", "b", "c", "d", "a"]:
            embed(api, input=text)
        assert len(texts.batches) == 5
        embed(api, input="a")
        assert len(texts.batches) == 5


def test_models_and_templates_are_listed(api: TestClient, clip: Encoder) -> None:
    (served,) = api.get("/v1/models").json()["data"]
    assert (served["id"], served["embed_dim"], served["image_size"]) == ("a model in memory", clip.embed_dim, 32)
    assert api.get(f"/v1/models/{served['id']}").json() == served
    assert api.get("/v1/models/other").json()["error"]["code"] == "model_not_found"
    assert api.post("/v1/embeddings", json={"input": "x", "model": "other"}).status_code == 404
    sets = {row["name"]: row["templates"] for row in api.get("/v1/templates").json()["data"]}
    assert len(sets["imagenet"]) == 80


def test_no_reply_tells_where_the_model_is(tmp_path: Path) -> None:
    small_vocabulary().save(tmp_path / "secret" / "mine")
    loaded = sightline.load(tmp_path / "secret" / "mine")
    with TestClient(create_app(loaded), base_url="http://localhost") as api:
        replies = [api.get("/v1/models"), api.post("/v1/embeddings", json={"input": "a cat", "model": "mine"})]
        replies += [api.post("/v1/embeddings", json={"input": "a cat", "model": "x"}), api.get("/openapi.json")]
        assert [reply.status_code for reply in replies] == [200, 200, 404, 200]
        assert not any("secret" in reply.text for reply in replies)
        reply = of_sightline(sightline.SightlineError(f"{tmp_path}: is damaged"))
        assert (reply.status, str(tmp_path) in reply.message) == (500, False)


def test_health_ready_and_metrics() -> None:
    with client() as api:
        assert api.get("/health").json() == {"status": "alive"}
        assert api.get("/ready").json() == {"status": "ready"}
        api.post("/v1/embeddings", json={"input": ["a", "b"]})
        api.post("/v1/embeddings", json={"input": []})
        api.get("/nowhere/1"), api.get("/nowhere/2")
        counted = api.get("/metrics").text
    assert 'sightline_requests_total{route="/v1/embeddings",status="200"} 1.0' in counted
    assert 'sightline_requests_total{route="/v1/embeddings",status="422"} 1.0' in counted
    assert 'sightline_requests_total{route="none",status="404"} 2.0' in counted
    assert 'sightline_batch_size_sum{kind="text"} 4.0' in counted  # at the start, for /ready, and two texts
    assert 'sightline_queue{kind="text"} 0.0' in counted
    assert "process_resident_memory_bytes" in counted


def test_the_openapi_document_tells_of_bodies_and_errors(api: TestClient) -> None:
    document = api.get("/openapi.json").json()
    for path in ("embeddings", "classify", "rank"):
        asked = document["paths"][f"/v1/{path}"]["post"]
        assert set(asked["requestBody"]["content"]) == {"application/json", "multipart/form-data"}
        assert {"200", "413", "422", "429"} <= set(asked["responses"])
    assert {"EmbeddingsRequest", "LabelSet", "ErrorReply"} <= set(document["components"]["schemas"])


def test_an_image_tower_alone_serves_images_and_refuses_texts(tmp_path: Path) -> None:
    small_vocabulary().save(tmp_path / "mine")
    with TestClient(create_app(sightline.load(tmp_path / "mine", towers="image")), base_url="http://localhost") as api:
        assert api.get("/ready").status_code == 200
        assert embed(api, input=[data_uri(RED)]).shape == (1, 48)
        assert api.post("/v1/embeddings", json={"input": "a cat"}).status_code == 422


def test_the_page_is_served_and_nothing_beside_it(api: TestClient) -> None:
    page = api.get("/")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert api.get("/static/index.html").content == page.content
    for path in (
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/static//etc/passwd",
        "/static/x",
    ):
        assert api.get(path).status_code == 404
