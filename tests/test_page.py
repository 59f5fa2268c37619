"""The page in a real Chromium, clicked, typed in, dropped on and drawn on, before a server of the starter model."""

import base64
import csv
import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect

import sightline
from browsing import HOSTILE, PHONE, PHOTOS, Watched, download, drop, needs_chromium, stroke, wait_for
from serving import running
from sightline.encoder import Encoder
from sightline.explain import heat_map
from sightline.heat_picture import colour
from sightline.index.image_index import ImageIndex
from sightline.server.app import create_app
from sightline.server.settings import Settings

pytest_plugins = ["page_fixtures"]
pytestmark = needs_chromium
LABELS = ["cat", "dog", "rocket", "coffee"]


def names(page: Page) -> list[str]:
    return page.locator("#search-results .tile .name").all_inner_texts()


def found(page: Page, line: str | re.Pattern[str]) -> list[str]:
    """The names in the gallery, once the status says this."""
    expect(page.locator("#search-status")).to_have_text(line)
    return names(page)


def by_library(results: list) -> list[str]:
    return [result.path.name for result in results]


# Search


def test_photos_are_found_as_one_types(watched: Watched, index: ImageIndex) -> None:
    page = watched.open()
    expect(page.get_by_role("heading", name="What are you looking for?")).to_be_visible()
    page.get_by_label("What to look for").press_sequentially("a rocket", delay=15)
    expected = index.search("a rocket", 12)
    assert expected[0].sure is not None
    shown = found(page, re.compile(f"No photo matches “a rocket”.* {expected[0].sure:.1%} sure"))
    assert shown == by_library(expected)
    assert page.evaluate("location.hash") == "#search?q=a+rocket"
    page.reload()
    assert found(page, re.compile("No photo matches “a rocket”"))[0] == "rocket.jpg"
    page.get_by_role("button", name="1 more photo").click()
    assert len(names(page)) == 13


def test_a_photo_that_is_sure_enough_is_a_match(watched: Watched) -> None:
    def surer(route: Route) -> None:
        reply = route.fetch()
        told = reply.json()
        told["data"][0].update(sure=0.97, match=True)
        route.fulfill(response=reply, json=told)

    page = watched.open("#search?q=a+rocket", before=lambda page: page.route("**/v1/search", surer))
    assert found(page, "1 photo matches “a rocket”.")[0] == "rocket.jpg"
    expect(page.locator(".gallery.matches .tile")).to_have_count(1)
    expect(page.get_by_role("heading", name="Less sure")).to_be_visible()
    page.get_by_role("button", name="rocket.jpg", exact=True).click()
    expect(page.locator("#viewer-facts")).to_have_text(re.compile("^97.0% sure: a match"))
    expect(page.locator("#viewer-why")).to_have_text("Why it matched")
    page.get_by_label("A text to find in this photo").fill("smoke")  # which nothing was found by
    expect(page.locator("#viewer-why")).to_have_text("Show where")


def test_more_and_less_of_something_are_searched_together(watched: Watched, index: ImageIndex) -> None:
    page = watched.open("#search?q=a+rocket")
    found(page, re.compile("a rocket"))
    page.get_by_label("with more").fill("cup of coffee, cat")
    page.get_by_label("with less").fill("woman")
    expected = index.search("a rocket", 13, add=["cup of coffee", "cat"], subtract="woman")
    assert found(page, "13 photos, the nearest first.") == by_library(expected)


def test_a_late_reply_does_not_replace_a_newer_one(watched: Watched) -> None:
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route) if "a cat" in (route.request.post_data or "") else route.continue_()

    page = watched.open(before=lambda page: page.route("**/v1/search", hold))
    page.get_by_label("What to look for").fill("a cat")
    expect(page.locator("#search-status")).to_have_text("Searching…")
    while not held:
        page.wait_for_timeout(20)
    page.get_by_label("What to look for").fill("a rocket")
    assert found(page, re.compile("a rocket"))[0] == "rocket.jpg"
    held[0].fulfill(json={"object": "list", "model": "starter", "match": None, "sure": None, "data": []})
    page.wait_for_timeout(100)
    assert found(page, re.compile("a rocket"))[0] == "rocket.jpg"


def test_a_dropped_photo_finds_itself_and_similar_ones_follow(watched: Watched) -> None:
    page = watched.open()
    drop(page, "#search-drop", {"mine.jpg": ("image/jpeg", (PHOTOS / "grass.jpg").read_bytes())})
    assert found(page, "13 photos, the nearest first.")[:2] == ["grass.jpg", "gravel.jpg"]
    page.get_by_role("button", name="Photos similar to gravel.jpg").click()
    assert found(page, "12 photos, the nearest first.")[0] == "grass.jpg"
    page.get_by_role("button", name="Do not look for gravel.jpg").click()
    expect(page.get_by_role("heading", name="What are you looking for?")).to_be_visible()
    drop(page, "#search-drop", {"notes.txt": ("text/plain", b"no photo")})
    expect(page.locator("#search-status")).to_have_text("notes.txt is no image.")


def test_filters_leave_photos_out(watched: Watched) -> None:
    page = watched.open("#search?q=a+rocket")
    page.get_by_text("Filters").click()
    page.get_by_label("Kind").select_option("video")
    assert found(page, "No photo passes the filters.") == []
    page.get_by_label("Kind").select_option("photo")
    assert len(found(page, re.compile("No photo matches"))) == 12


def test_where_a_photo_is_like_a_text_is_shown_over_it(watched: Watched, clip: Encoder) -> None:
    page = watched.open("#search?q=a+rocket")
    _, second, *_ = found(page, re.compile("a rocket"))
    page.get_by_role("button", name="rocket.jpg", exact=True).click()
    expect(page.locator("#viewer-facts")).to_have_text(re.compile("sure: too little for a match"))
    page.get_by_role("button", name="Show where").click()
    page.locator("canvas.heat").wait_for()
    expected = heat_map(clip, PHOTOS / "rocket.jpg", "a rocket")
    left, top, right, bottom = expected.square
    x, y = left + 0.37 * (right - left), top + 0.61 * (bottom - top)
    drawn = page.evaluate(
        "([x, y]) => [...document.querySelector('canvas.heat').getContext('2d').getImageData(x, y, 1, 1).data]",
        [int(0.37 * 140), int(0.61 * 140)],
    )
    assert drawn[:3] == pytest.approx(colour(float(expected.values[int(y), int(x)])), abs=6)
    page.keyboard.press("ArrowRight")
    expect(page.locator("#viewer-name")).to_have_text(second)
    expect(page.locator("canvas.heat")).to_have_count(0)
    page.keyboard.press("Escape")
    expect(page.locator("#viewer")).not_to_be_visible()


def test_a_file_name_is_text(watched: Watched) -> None:
    page = watched.open("#search?q=green")
    found(page, re.compile("green"))
    page.get_by_role("button", name=HOSTILE, exact=True).click()
    expect(page.locator("#viewer-name")).to_have_text(HOSTILE)
    assert page.locator('img[src="x"]').count() == 0


# Classify


def bars(page: Page, row: int) -> dict[str, str]:
    shown = page.locator("#classify-results > li").nth(row).locator(".bar")
    return dict(zip(shown.locator(".name").all_inner_texts(), shown.locator(".number").all_inner_texts(), strict=True))


def test_photos_are_classified_as_the_library_does(watched: Watched, clip: Encoder) -> None:
    page = watched.open("#classify")
    page.get_by_role("textbox", name="Labels", exact=True).fill("\n".join(LABELS))
    files = [PHOTOS / "cat.jpg", PHOTOS / "galaxies.jpg"]
    page.get_by_label("Photos to classify").set_input_files(files)
    expect(page.locator("#classify-status")).to_have_text(re.compile("^2 photos"))
    shares = sightline.ZeroShotClassifier(clip, LABELS).predict_proba(files)
    for row, share in enumerate(shares):
        shown = bars(page, row)
        assert set(shown) == set(LABELS)
        for label, probability in zip(LABELS, share, strict=True):
            assert float(shown[label].strip("<%")) == pytest.approx(100 * probability, abs=0.15)
    expect(page.locator(".verdict b").first).to_have_text("cat")
    page.get_by_label("None of these below").fill("100")
    expect(page.locator("#classify-status")).to_have_text("2 photos, 2 with none of these")
    expect(page.locator(".verdict b").first).to_have_text("none of these")


def test_prompts_are_compared_and_exported(watched: Watched, tmp_path: Path) -> None:
    page = watched.open("#classify?labels=cat%0Adog")
    file = (PHOTOS / "cat.jpg").read_bytes()
    drop(page, "#classify-drop", {"cat.jpg": ("image/jpeg", file), "torn.jpg": ("image/jpeg", file[:900])})
    page.get_by_role("button", name="Compare with others").click()
    page.get_by_label("Prompts 2").select_option("your own…")
    page.get_by_label("Your own prompts").last.fill("a drawing of a {}.\nthe {}")
    page.locator(".answer").nth(1).wait_for()
    expect(page.locator("#classify-status")).to_have_text("2 photos, 1 that cannot be read")
    expect(page.locator("#classify-results .wrong")).to_have_text(re.compile("^The image "))
    (told,) = json.loads(download(page, "#classify-json", tmp_path))
    assert told["photo"] == "cat.jpg"
    assert [result["prompts"] for result in told["results"]] == ["plain", "a drawing of a {}."]
    watched.forgive("422")
    page.get_by_role("button", name="Remove torn.jpg").click()
    expect(page.locator("#classify-status")).to_have_text(re.compile("^1 photo"))


def test_no_name_is_run_by_a_spreadsheet_or_by_the_page(watched: Watched, tmp_path: Path) -> None:
    labels = ["=1+1", "+1", "-1", "@SUM(1)", "<script>alert(1)</script>"]
    names = ["=cmd|' /C calc'!A0.jpg", "-1.jpg", "\t=1.jpg", "a\n=1.jpg", HOSTILE]
    page = watched.open("#classify")
    page.get_by_role("textbox", name="Labels", exact=True).fill("\n".join(labels))
    file = (PHOTOS / "cat.jpg").read_bytes()
    drop(page, "#classify-drop", dict.fromkeys(names, ("image/jpeg", file)))
    expect(page.locator("#classify-status")).to_have_text(re.compile("^5 photos"))
    text = download(page, "#classify-csv", tmp_path)
    rows = list(csv.reader(io.StringIO(text)))
    assert len(rows) == len(text.splitlines()) == 1 + len(names) * len(labels)
    assert not [cell for row in rows for cell in row if re.match(r"[=+\-@\t\r\n]", cell)]
    assert {row[3] for row in rows[1:]} == {"'=1+1", "'+1", "'-1", "'@SUM(1)", labels[4]}
    assert {row[0] for row in rows[1:]} >= {"'-1.jpg", "\\u0009=1.jpg", HOSTILE}
    assert {photo["photo"] for photo in json.loads(download(page, "#classify-json", tmp_path))} == set(names)
    assert page.locator('#panel-classify script, img[src="x"]').count() == 0


# Draw


def kept(page: Page) -> list[dict]:
    return page.evaluate("JSON.parse(localStorage.getItem('sightline-drawings') ?? '[]')")


def test_a_drawing_is_guessed_kept_and_ranked(watched: Watched) -> None:
    page = watched.open("#draw?word=umbrella")
    expect(page.locator("#draw-word")).to_have_text("an umbrella")
    expect(page.get_by_role("button", name="Keep it")).to_be_disabled()
    stroke(page, [(0.2, 0.5), (0.5, 0.2), (0.8, 0.5), (0.2, 0.5)])
    expect(page.locator("#draw-status")).to_have_text(re.compile(r"umbrella.*(%|of 6\d)\.$"))
    assert page.locator("#draw-guesses li").count() >= 5
    expect(page.locator("#draw-guesses .asked")).to_have_count(1)
    page.get_by_role("button", name="Keep it").click()
    expect(page.locator("#draw-status")).to_have_text(re.compile("^Kept"))
    stroke(page, [(0.5, 0.5), (0.5, 0.9)])
    expect(page.locator("#draw-status")).not_to_have_text(re.compile("^(Kept|Looking)"))
    page.get_by_role("button", name="Keep it").click()
    expect(page.locator("#draw-status")).to_have_text(re.compile("best of 2 drawings of an umbrella"))
    page.reload()
    expect(page.locator(".drawings .medal")).to_have_text(["1st", "2nd"])
    assert [drawing["word"] for drawing in kept(page)] == ["umbrella", "umbrella"]
    picture = kept(page)[0]["picture"].removeprefix("data:image/png;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(picture))).size == (256, 256)


def test_strokes_are_undone_and_cleared(watched: Watched) -> None:
    page = watched.open("#draw?word=cat")
    paper = "document.querySelector('#draw-canvas').toDataURL()"
    empty = page.evaluate(paper)
    stroke(page, [(0.2, 0.2), (0.8, 0.2)])
    one = page.evaluate(paper)
    stroke(page, [(0.2, 0.8), (0.8, 0.8)])
    assert len({empty, one, page.evaluate(paper)}) == 3
    page.get_by_role("button", name="Undo").click()
    assert page.evaluate(paper) == one
    page.get_by_role("button", name="Clear").click()
    assert page.evaluate(paper) == empty
    page.get_by_role("button", name="Another word").click()
    expect(page.locator("#draw-word")).not_to_have_text("a cat")


def test_one_draws_by_touch(watched: Watched) -> None:
    phone = watched.open("#draw?word=cat", **PHONE)
    box = phone.locator("#draw-canvas").bounding_box()
    assert box is not None
    phone.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    phone.locator("#draw-guesses li").first.wait_for()


# Map


def test_the_map_is_moved_zoomed_and_opened(watched: Watched) -> None:
    page = watched.open("#map")
    expect(page.locator("#map-status")).to_have_text("13 photos in 2 clusters.")
    canvas = page.locator("#map-canvas")
    picture = "document.querySelector('#map-canvas').toDataURL()"
    wait_for(page, f"{picture}.length > 20000")  # the photos are drawn on it
    before = page.evaluate(picture)
    canvas.focus()
    page.keyboard.press("+")
    wait_for(page, "before => document.querySelector('#map-canvas').toDataURL() !== before", before)
    page.get_by_role("button", name="The whole map").click()
    point = page.evaluate(
        """async () => { const { points } = await (await fetch('v1/map')).json();
           const { width, height } = document.querySelector('#map-canvas').getBoundingClientRect();
           const [across, down] = [width, height].map(side => Math.min(side, 1.5 * width, 1.5 * height) * 0.86 / 2);
           const lone = points.find(p => p.name === 'rocket.jpg');
           return [width / 2 + lone.x * across, height / 2 - lone.y * down]; }"""
    )
    canvas.hover(position={"x": point[0], "y": point[1]})
    expect(page.locator("#map-hovered span")).to_have_text("rocket.jpg")
    canvas.click(position={"x": point[0], "y": point[1]})
    expect(page.locator("#viewer-name")).to_have_text("rocket.jpg")
    page.get_by_role("button", name="Similar photos").click()
    expect(page.get_by_role("tab", name="Search")).to_have_attribute("aria-selected", "true")
    assert "rocket.jpg" not in found(page, "12 photos, the nearest first.")


def test_the_same_photos_stand_in_a_list(watched: Watched) -> None:
    page = watched.open("#map")
    clusters = page.locator("#map-clusters details")
    expect(clusters).to_have_count(2)
    told = [int(each) for each in clusters.locator(".number").all_inner_texts()]
    assert sum(told) == 13
    for number in range(2):
        clusters.nth(number).locator("summary").press("Enter")
        expect(clusters.nth(number).locator("button")).to_have_count(told[number])
    clusters.nth(1).locator("button").first.press("Enter")
    expect(page.locator("#viewer")).to_be_visible()


# All of it


def test_a_busy_server_is_asked_again_when_it_says(watched: Watched) -> None:
    replies = [429, 503]

    def busy(route: Route) -> None:
        if not replies:
            return route.continue_()
        error = {"error": {"message": "busy", "type": "rate_limit_error", "param": None, "code": "queue_full"}}
        return route.fulfill(status=replies.pop(0), headers={"retry-after": "1"}, json=error)

    def prepare(page: Page) -> None:
        page.route("**/v1/search", busy)
        page.clock.install()

    page = watched.open(before=prepare)
    page.get_by_label("What to look for").fill("a rocket")
    expect(page.locator("#search-status")).to_have_text("The server is busy: trying again in 1 s.")
    page.clock.fast_forward(1000)
    expect(page.locator("#search-status")).to_have_text("The server is getting ready: trying again in 1 s.")
    page.clock.fast_forward(1000)
    assert found(page, re.compile("a rocket"))[0] == "rocket.jpg"
    watched.forgive("429", "503")


def test_errors_are_one_line(watched: Watched) -> None:
    page = watched.open()
    page.get_by_label("What to look for").fill("a " * 900)
    expect(page.locator("#search-status.wrong")).to_have_text(re.compile("^The text has more tokens"))
    page.route("**/v1/search", lambda route: route.abort())
    page.get_by_label("What to look for").fill("a cat")
    expect(page.locator("#search-status.wrong")).to_have_text("The server does not answer. Is it still running?")
    watched.forgive("422", "net::ERR_FAILED")


def test_a_key_is_asked_for_once_and_pictures_come_with_it(browser: Browser, clip: Encoder, index: ImageIndex) -> None:
    with running(create_app(clip, index=index.folder, settings=Settings(api_key="a secret"))) as address:
        watched = Watched(browser, address)
        page = watched.open("#search?q=a+rocket", waits=False)
        for key in ("wrong", "a secret"):
            page.get_by_label("API key").fill(key)
            page.get_by_role("button", name="Go on").click()
        assert found(page, re.compile("a rocket"))[0] == "rocket.jpg"
        wait_for(page, "document.querySelector('.tile img')?.naturalWidth > 0")
        page.reload()
        assert found(page, re.compile("a rocket"))[0] == "rocket.jpg"
        watched.close()
        watched.forgive("401")
        assert watched.complaints == watched.outside == []


def test_without_an_index_there_is_no_search_and_no_map(browser: Browser, clip: Encoder) -> None:
    with running(create_app(clip)) as address:
        watched = Watched(browser, address)
        page = watched.open("#search?q=a+rocket")
        assert page.get_by_role("tab").all_inner_texts() == ["Classify", "Draw"]
        expect(page.locator("#panel-classify")).to_be_visible()
        expect(page.locator("#served")).to_have_text("starter")
        watched.close()
        assert watched.complaints == watched.outside == []
