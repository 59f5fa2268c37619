"""The page for everybody: by keyboard alone, on a phone, in small windows, in dark and light, and without motion."""

import re

import pytest
from playwright.sync_api import Locator, Page, expect

from browsing import PHONE, PHOTOS, Watched, needs_chromium, stroke, wait_for

pytest_plugins = ["page_fixtures"]
pytestmark = needs_chromium

# What has the focus by a short name, and whether one sees that: an outline of its own, of what stands for it or is
# around it.
FOCUSED = """() => {
    const at = document.activeElement;
    const frame = at.matches(".unseen") ? at.previousElementSibling : at.closest(".ask, .paper") ?? at;
    const { outlineStyle, outlineWidth, boxShadow } = getComputedStyle(frame);
    const isSeen = frame.matches(".ask") ? boxShadow : outlineStyle === "solid" && parseFloat(outlineWidth) >= 2;
    return [at.id || at.ariaLabel || at.textContent.trim(), Boolean(isSeen) && isSeen !== "none"];
}"""
# Everything to be touched that is smaller than a finger, by a short name.
SMALL = """() => [...document.querySelectorAll("button, summary, select, textarea, input, label.button, label.zone")]
    .filter(each => each.checkVisibility() && !each.matches(".unseen"))
    .map(each => [each, (each.type === "checkbox" ? each.closest("label") : each).getBoundingClientRect()])
    .filter(([, { width, height }]) => width < 40 || height < 40)
    .map(([each, { width, height }]) => `${each.id || each.ariaLabel || each.textContent}: ${width} x ${height}`)"""
# What the server makes of photos takes seconds: here no photo is on the map.
MAP = {"object": "map", "total": 2, "points": [], "clusters": [{"name": "cats", "count": 2, "x": 0.1, "y": 0.2}]}
WIDTH = "document.documentElement.scrollWidth"


HEAT = {"fit": 1.0, "grid": [[3.0] * 7] * 7, "square": [0, 0, 512, 512], "size": [512, 512]}


def with_map(page: Page) -> None:
    page.route("**/v1/map", lambda route: route.fulfill(json=MAP))


def walk(page: Page, steps: int) -> list[str]:
    """What has the focus after each press of the tab key; all of it is seen to."""
    stops = []
    for _ in range(steps):
        page.keyboard.press("Tab")
        name, is_seen = page.evaluate(FOCUSED)
        assert is_seen, f"nothing shows that {name} has the focus"
        stops.append(name)
    return stops


def to_next_tab(page: Page, place: str) -> None:
    """Goes there by keyboard, and waits for a place in it."""
    page.locator('[role="tab"][aria-selected="true"]').focus()
    page.keyboard.press("ArrowRight")
    page.locator(place).wait_for()


def is_in_view(page: Page, place: Locator) -> bool:
    """Whether all of an element is in the window and nothing lies over its middle."""
    box = place.bounding_box()
    assert box is not None
    assert page.viewport_size is not None
    width, height = page.viewport_size["width"], page.viewport_size["height"]
    middle = [box["x"] + box["width"] / 2, box["y"] + box["height"] / 2]
    is_inside = min(box["x"], box["y"]) >= 0 and box["x"] + box["width"] <= width and box["y"] + box["height"] <= height
    return is_inside and place.evaluate("(it, [x, y]) => it.contains(document.elementFromPoint(x, y))", middle)


# By keyboard


def test_tabs_go_by_arrow_keys_and_stand_in_the_address(watched: Watched) -> None:
    page = watched.open("#classify?labels=a%0Ab")
    expect(page.get_by_role("textbox", name="Labels", exact=True)).to_have_value("a\nb")
    page.get_by_role("tab", name="Classify").focus()
    for key, tab in {"ArrowRight": "draw", "End": "map", "Home": "search", "ArrowLeft": "map"}.items():
        page.keyboard.press(key)
        expect(page.locator(f"#tab-{tab}")).to_be_focused()
        expect(page.locator(f"#panel-{tab}")).to_be_visible()
        assert page.evaluate("location.hash").startswith(f"#{tab}")
        assert page.locator('[role="tabpanel"]:visible').count() == 1
    assert page.locator("#tab-map").evaluate("tab => getComputedStyle(tab).outlineStyle") == "solid"
    page.go_back()
    expect(page.locator("#panel-search")).to_be_visible()


def nearest(page: Page, count: int) -> list[str]:
    """The names of the first photos of the gallery."""
    page.locator(".tile").first.wait_for()
    return page.locator("#search-results .tile .name").all_inner_texts()[:count]


def test_the_focus_goes_through_each_tab_in_the_order_that_one_reads(watched: Watched) -> None:
    page = watched.open("#search?q=a+rocket", before=with_map)
    page.locator(".tile").first.wait_for()
    page.locator("#tab-search").focus()
    above = ["search-text", "search-file", "search-add", "search-subtract", "Filters"]
    first = [line for name in nearest(page, 2) for line in (name, f"Photos similar to {name}")]
    assert walk(page, 9) == above + first
    to_next_tab(page, "#classify-prompts select")
    given = ["classify-files", "classify-labels", "Prompts and “none of these”", "Prompts 1", "classify-compare"]
    assert walk(page, 8) == [*given, "classify-least", "classify-independent", "cat, dog, rocket"]
    to_next_tab(page, "#draw-canvas")
    board = ["draw-undo", "draw-clear", "draw-canvas", "black", "draw-width"]
    assert walk(page, 7) == [*board, "draw-next", "Choose the word yourself"]
    to_next_tab(page, "#map-clusters summary")
    assert walk(page, 5) == ["map-canvas", "map-in", "map-out", "map-whole", "cats2"]


def test_a_photo_is_opened_and_left_by_keyboard_and_the_focus_comes_back(watched: Watched) -> None:
    page = watched.open("#search?q=a+rocket")
    picture = page.get_by_role("button", name="rocket.jpg", exact=True)
    picture.focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("button", name=nearest(page, 2)[1], exact=True)).to_be_focused()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    expect(page.locator("#viewer")).to_be_visible()
    expect(page.locator("#viewer-close")).to_be_focused()
    assert walk(page, 4) == ["viewer-text", "viewer-why", "viewer-similar", "viewer-next"]
    page.keyboard.press("Escape")
    expect(page.locator("#viewer")).not_to_be_visible()
    expect(picture).to_be_focused()
    page.keyboard.press("Enter")
    page.locator("#viewer-similar").press("Enter")
    expect(page.locator("#search-status")).to_have_text("12 photos, the nearest first.")
    expect(page.locator("#panel-search")).to_be_focused()  # not lost with the button that was there
    assert walk(page, 1) == ["Do not look for rocket.jpg"]


def test_a_button_that_goes_leaves_the_focus_near(watched: Watched) -> None:
    page = watched.open("#search?q=a+rocket")
    page.get_by_role("button", name="1 more photo").press("Enter")
    expect(page.locator(".tile").last.locator(".picture")).to_be_focused()
    page.goto(f"{watched.address}/#classify?labels=a%0Ab%0Ac%0Ad%0Ae%0Af")
    page.get_by_label("Photos to classify").set_input_files([PHOTOS / "cat.jpg", PHOTOS / "grass.jpg"])
    page.get_by_role("button", name="All 6 labels").first.press("Enter")
    expect(page.locator(".bars").first).to_be_focused()
    page.get_by_role("button", name="Remove cat.jpg").press("Enter")
    expect(page.get_by_role("button", name="Remove grass.jpg")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_label("Photos to classify")).to_be_focused()


def test_one_draws_and_keeps_by_keyboard(watched: Watched) -> None:
    page = watched.open("#draw?word=cat")
    page.locator("#tab-draw").focus()
    walk(page, 3)
    expect(page.get_by_text("By keyboard: arrows move the pen")).to_be_visible()
    for key in (" ", "Shift+ArrowRight", "Shift+ArrowDown", " "):
        page.keyboard.press(key)
    page.locator("#draw-guesses li").first.wait_for()
    assert walk(page, 3)[-1] == "draw-keep"
    page.keyboard.press("Enter")
    expect(page.locator(".drawings li")).to_have_count(1)


# In any window


def test_a_photo_fits_the_window_with_all_that_is_said_of_it(watched: Watched) -> None:
    page = watched.open("#search?q=a+woman")
    page.route("**/v1/explain", lambda route: route.fulfill(json={"data": [HEAT]}))
    page.get_by_role("button", name="astronaut.jpg", exact=True).click()
    page.get_by_role("button", name="Show where").click()
    page.locator("canvas.heat").wait_for()
    for width, height in [(1280, 800), (1200, 800), (1024, 600), (900, 700), (768, 1024), (844, 390), (360, 640)]:
        page.set_viewport_size({"width": width, "height": height})
        for name in ("#viewer-close", "#viewer-similar", "#viewer-next", ".framed"):
            assert is_in_view(page, page.locator(name)), (name, width, height)
        photo, heat = page.locator(".framed").bounding_box(), page.locator("canvas.heat").bounding_box()
        assert photo == pytest.approx(heat, abs=1)  # which is of the whole photo, as it is square
        assert photo is not None
        assert min(photo["width"], photo["height"]) > 150


def test_what_is_asked_beside_photos_is_never_cut_off(watched: Watched) -> None:
    page = watched.open("#classify?labels=cat%0Adog%0Arocket", viewport={"width": 1200, "height": 800})
    page.get_by_label("Photos to classify").set_input_files([PHOTOS / "cat.jpg"] * 8)
    expect(page.locator("#classify-status")).to_have_text(re.compile("^8 photos"))
    assert is_in_view(page, page.locator("#classify-independent"))
    page.mouse.wheel(0, 500)
    wait_for(page, "scrollY > 100")
    assert is_in_view(page, page.locator("#classify-independent"))  # it stays, as all of it is seen
    for _ in range(2):
        page.get_by_role("button", name="Compare with others").click()
    for height in (800, 600):
        page.set_viewport_size({"width": 1200, "height": height})
        page.evaluate("scrollTo(0, 0)")
        page.locator("#classify-independent").scroll_into_view_if_needed()
        assert is_in_view(page, page.locator("#classify-independent"))
        assert page.locator(".side").evaluate("side => side.scrollHeight <= side.clientHeight")


def test_a_phone_scrolls_down_alone_and_all_is_as_large_as_a_finger(watched: Watched) -> None:
    page = watched.open("#search?q=a+rocket", before=with_map, color_scheme="dark", **PHONE)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 21, 27)"
    page.locator(".tile").first.wait_for()
    page.get_by_text("Filters").tap()
    found = [page.evaluate(SMALL), page.evaluate(WIDTH)]
    page.get_by_role("button", name="rocket.jpg", exact=True).tap()
    found += [page.evaluate(SMALL), page.evaluate(WIDTH)]
    page.locator("#viewer-close").tap()
    page.goto(f"{watched.address}/#classify?labels={'%0A'.join(letter + 'long' * 30 for letter in 'abcdef')}")
    page.get_by_label("Photos to classify").set_input_files([PHOTOS / "cat.jpg"])
    page.get_by_text("All 6 labels").wait_for()
    page.get_by_text("Prompts and “none of these”").tap()
    page.get_by_role("button", name="Compare with others").tap()
    found += [page.evaluate(SMALL), page.evaluate(WIDTH)]
    page.goto(f"{watched.address}/#draw?word={'long' * 25}")
    stroke(page, [(0.2, 0.2), (0.8, 0.2)])
    page.locator("#draw-keep:enabled").tap()
    page.locator(".drawings li").wait_for()
    found += [page.evaluate(SMALL), page.evaluate(WIDTH)]
    page.locator("#tab-map").tap()
    page.locator("#map-clusters summary").first.tap()
    found += [page.evaluate(SMALL), page.evaluate(WIDTH)]
    assert found == [[], 390] * 5


def test_nothing_moves_by_itself_where_that_is_not_wanted(watched: Watched) -> None:
    page = watched.open("#search?q=a+rocket")
    page.locator(".tile").first.wait_for()
    page.evaluate("document.querySelector('#search-status').classList.add('working')")
    moving = """() => [getComputedStyle(document.querySelector(".tile .track"), "::after").transitionDuration,
        getComputedStyle(document.querySelector("#search-status"), "::before").animationName]"""
    assert page.evaluate(moving) == ["0s", "none"]
    page.emulate_media(reduced_motion="no-preference")
    assert page.evaluate(moving) == ["0.25s", "turn"]


# Names on the map


def test_names_on_the_map_cover_neither_each_other_nor_photos(watched: Watched) -> None:
    page = watched.open("#draw")
    plates = page.evaluate(
        """async () => {
            const { drawNames } = await import("/static/names.js");
            const context = document.createElement("canvas").getContext("2d");
            const plates = [];
            context.roundRect = (left, top, width, height) => plates.push([left, top, width, height]);
            const names = [...Array(40).keys()].map(i => ({ name: `name ${i}`, x: 200 + i, y: 150, colour: "red" }));
            const photo = { left: 150, top: 120, width: 100, height: 60 };
            const room = { ink: "black", card: "white", edge: "grey", width: 400, height: 300 };
            drawNames(context, [...names, { name: "outside", x: 500, y: 20, colour: "red" }], [photo], room);
            return plates;
        }"""
    )
    assert 8 < len(plates) < 40  # those that there is room for
    for i, (left, top, width, height) in enumerate(plates):
        assert 0 <= left <= left + width <= 400
        assert 0 <= top <= top + height <= 300
        for other in plates[:i]:
            apart = [
                left + width <= other[0],
                other[0] + other[2] <= left,
                top + height <= other[1],
                other[1] + other[3] <= top,
            ]
            assert any(apart)
    left, top, width, height = plates[0]
    assert top + height <= 120 or top >= 180 or left + width <= 150 or left >= 250
