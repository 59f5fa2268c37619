"""The files of the page: how they are served, and what is in none of them."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

import sightline.server
from serving import client

PAGE = Path(sightline.server.__file__).parent / "page"
FILES = {file.name: file.read_text("utf-8") for file in PAGE.iterdir()}


@pytest.fixture(scope="module")
def api() -> Iterator[TestClient]:
    with client() as asked:
        yield asked


class Tags(HTMLParser):
    """The tags of a document, each with its attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))


TAGS = Tags(FILES["index.html"]).found


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/", "text/html"), ("/static/main.js", "text/javascript"), ("/static/style.css", "text/css"),
     ("/static/icon.svg", "image/svg+xml")],
)  # fmt: skip
def test_files_come_with_their_type_and_are_asked_for_again(api: TestClient, path: str, kind: str) -> None:
    reply = api.get(path)
    assert reply.content == (PAGE / (path.rsplit("/", 1)[1] or "index.html")).read_bytes()
    assert reply.headers["content-type"].split(";")[0] == kind
    assert reply.headers["cache-control"] == "no-cache"
    assert "script-src 'self'; style-src 'self'" in reply.headers["content-security-policy"]
    again = api.get(path, headers={"if-none-match": reply.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert api.head(path).headers["content-length"] == str(len(reply.content))


@pytest.mark.parametrize(
    "name", ["app.py", "..%2fapp.py", "%2e%2e/app.py", "..%5capp.py", "%2fetc%2fpasswd", "x%00.js", ""]
)
def test_nothing_else_is_served(api: TestClient, name: str) -> None:
    reply = api.get(f"/static/{name}")
    assert reply.status_code == 404
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


def test_every_file_is_used_and_there(api: TestClient) -> None:
    named = set(re.findall(r'(?:href|src)="static/([\w.]+)"', FILES["index.html"]))
    for text in (FILES[name] for name in FILES if name.endswith(".js")):
        named |= set(re.findall(r'from "\./([\w.]+)"', text))
    assert named | {"index.html"} == set(FILES)


def test_nothing_is_inline_and_nothing_is_of_another_place() -> None:
    assert not [tag for tag, attributes in TAGS for name in attributes if name == "style" or name.startswith("on")]
    assert [attributes.get("src") for tag, attributes in TAGS if tag == "script"] == ["static/main.js"]
    assert "style" not in [tag for tag, _ in TAGS]
    for name, text in FILES.items():
        addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.[a-z]+\S*", text)) - {"http://www.w3.org/2000/svg"}
        assert not {each.rstrip('";') for each in addresses} - {"http://www.w3.org/2000/svg"}, name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            name
        )


def test_every_field_and_button_has_a_name() -> None:
    labelled = {attributes.get("for") for tag, attributes in TAGS if tag == "label"}
    inside = set(
        re.findall(r'<label[^>]*>(?:(?!</label>).)*?<(?:input|select)[^>]*id="([\w-]+)"', FILES["index.html"], re.S)
    )
    for tag, attributes in TAGS:
        if tag in ("input", "select", "textarea", "canvas") and "aria-hidden" not in attributes:
            assert attributes.get("aria-label") or attributes.get("id") in labelled | inside, attributes


def test_ids_are_unique_and_what_is_referred_to_is_there() -> None:
    ids = [attributes["id"] for _, attributes in TAGS if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in TAGS:
        for name in ("for", "aria-controls", "aria-labelledby", "aria-describedby"):
            assert attributes.get(name) in {None, *ids}
    for name in FILES:
        assert set(re.findall(r'byId\("([\w-]+)"\)', FILES[name])) <= set(ids), name


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_and_fields_be_seen_in_light_and_in_dark(scheme: str) -> None:
    light, dark = re.findall(r":root \{(.*?)\}", FILES["style.css"], re.S)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", light if scheme == "light" else dark))
    assert (luminance(colours["page"]) < 0.1) == (scheme == "dark")
    pairs = [(ink, paper) for ink in ("ink", "muted", "sure", "wrong", "accent") for paper in ("page", "card")]
    for ink, paper in [*pairs, ("on-accent", "accent"), ("wrong", "wrong-tint"), ("ink", "tint"), ("muted", "track")]:
        assert contrast(colours[ink], colours[paper]) >= 4.5, (ink, paper)  # WCAG 2.2, 1.4.3
    for paper in ("page", "card"):
        assert contrast(colours["rim"], colours[paper]) >= 3, paper  # 1.4.11


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    """The relative luminance of #rrggbb (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
