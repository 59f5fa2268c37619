"""The report shows what was measured, whoever named it, asks nothing of the network, and is for all eyes."""

import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest

from sightline.errors import InvalidArgumentError, SightlineError
from sightline.evaluate.cells import many, matrix, p_value, shots
from sightline.evaluate.comparisons import Comparison
from sightline.evaluate.features import ImageFeatures
from sightline.evaluate.found import check_taught, classified
from sightline.evaluate.intervals import wilson
from sightline.evaluate.report import report, write_report
from sightline.evaluate.run import Evaluation
from sightline.evaluate.sections import SECTIONS, accuracy, differences, robustness

HOSTILE = "<script>alert('x')</script>$\\frac{"
SHARE = [0.5, 0.4, 0.6]
HALVES = [[0.5, 0.5], [0.5, 0.5]]


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, page: bytes):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page.decode("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def tables(name: str) -> dict[str, dict]:
    """What each task leaves for drawing, made up."""
    robust = {"clean": SHARE, "all": SHARE, "kinds": {kind: [SHARE] * 5 for kind in ("jpeg", "contrast")}}
    classified = {
        "classes": [name, "bee", "cat"], "images": [4, 4, 0], "right": [3, 1, 0],
        "confused": [[1, 0, 3, 0.75, 0.3, 1.0]], "matrix": {"classes": [0, 1], "images": [[3, 1], [3, 1]]},
    }  # fmt: skip
    return {
        "zero-shot": classified,
        "probe": {**classified, "C": 1e4, "sweep": [[0.01, 0.25], [1e4, 0.75]], "training_images": 9},
        "few-shot": {"shots": [1, 2], "curve": [SHARE, SHARE], "zero_shot": SHARE, "draws": 10},
        "calibration": {"bins": [[0, None, None]] * 14 + [[20, 0.9, 0.8]]},
        "abstaining": {"curve": [[0.1, 1.0], [1, 0.5]], "thresholds": [[0.05, 0.9, SHARE, SHARE]]},
        "robustness": {"images": 8, "severities": [1, 2, 3, 4, 5], "zero-shot": robust, "probe": robust},
        "prompts": {"steps": [[f"a {name} {{}}.", 0.5]], "offered": 3, "set": "custom", "chosen_on": 9},
        "bias": {"groups": [name, "b"], "labels": [name, "y"], "shares": HALVES, "low": HALVES, "high": HALVES},
        "retrieval": {"images": 12, "captions": 24},
        "efficiency": {"batch_size": 32},
    }  # fmt: skip


FIGURES = {
    "zero-shot": ("top-1", "top-5", "mean per class"),
    "probe": ("top-1", "top-5", "mean per class"),
    "few-shot": ("1-shot", "2-shot", "shots that equal zero-shot"),
    "calibration": ("calibration error", "error by chance alone", "mean confidence"),
    "abstaining": ("coverage at 5% error", "accuracy at 5% error", "strangers AUROC"),
    "robustness": (
        "zero-shot, uncorrupted", "zero-shot, corruptions", "probe, uncorrupted", "probe, corruptions",
        "effective robustness over the probe", "zero-shot, jpeg", "zero-shot, contrast",
        "probe, jpeg", "probe, contrast",
    ),
    "prompts": ("chosen templates", "all templates", "first chosen"),
    "bias": ("largest gap",),
    "retrieval": ("image-to-text recall@1", "text-to-image recall@1"),
    "efficiency": ("image parameters", "image FLOPs", "images per second"),
}  # fmt: skip


def evaluation(models: tuple[str, ...] = ("one", "two"), name: str = "ant") -> Evaluation:
    about = {"format": 1, "sightline": "0", "python": "3", "written": "2026-01-01 00:00", "command": f"evaluate {name}"}
    found = Evaluation({**about, "seed": 7, "limit": None, "templates": [name], "labels": [name]})
    for model in models:
        found.models[model] = {
            "from": name,
            "fingerprint": "f" * 64,
            "precision": "float32",
            "device": "cpu",
            "image_size": 32,
        }
    data = {
        "measured": "test",
        "images": 8,
        "identity": "i" * 64,
        "training": "train",
        "training_images": 9,
        "classes": 3,
    }
    found.data[name] = data | {
        "templates": name,
        "licence": name,
        "measure": "top-1",
        "of_imagenet": False,
        "unreadable": 3,
        "training_unreadable": 1,
        "unreadable_images": [f"/{name}.png: no image"],
    }
    for model in models:
        for task, table in tables(name).items():
            here = {"model": model, "data": "" if task == "efficiency" else name, "task": task}
            found.tables.append({**here, "key": "", "seconds": 1.0, "unreadable": {}, "right": None, "table": table})
            found.results += [
                {**here, "name": figure, "value": 0.5, "low": 0.4, "high": 0.6} for figure in FIGURES[task]
            ]
    found.left_out.append({"data": name, "task": "probe", "reason": HOSTILE, "failed": False})
    if len(models) > 1:
        found.comparisons = [Comparison(name, "zero-shot", *models[:2], 0.1, 0.05, 0.15, 0.001, 0.002)._asdict()]
    return found


@pytest.fixture(scope="module")
def html() -> bytes:
    return report(evaluation())


def test_every_section_is_there_and_in_the_contents(html: bytes) -> None:
    page = Page(html)
    sections = [found["id"] for tag, found in page.tags if tag == "section"]
    assert [found["href"] for tag, found in page.tags if tag == "a"] == [f"#{name}" for name in sections]
    assert sections == [
        "accuracy", "differences", "few-shot", "calibration", "abstaining", "classes", "confusion", "robustness",
        "retrieval", "prompts", "bias", "efficiency", "measured", "reading",
    ]  # fmt: skip
    for shown in ("seed", "ffffffffffffffff", "evaluate ant", "p after Holm", "float32", "0.002"):
        assert shown in page.text, shown


def test_drawings_say_in_words_what_they_show_and_are_whole(html: bytes) -> None:
    pictures = [found for tag, found in Page(html).tags if found.get("role") == "img"]
    assert len(pictures) == 7
    assert all("%" in (found["aria-label"] or "") for found in pictures)
    for text in re.findall(r"<svg.*?</svg>", html.decode(), re.DOTALL):
        ElementTree.fromstring(text)


def test_the_page_asks_nothing_of_the_network(html: bytes) -> None:
    page = Page(html)
    links = [value for _, found in page.tags for name, value in found.items() if name in ("src", "href", "xlink:href")]
    assert links
    assert all(link and link.startswith("#") for link in links)
    assert not re.search(rb"@import|url\((?!#)", html)
    assert not any(tag in ("script", "link", "iframe", "img") for tag, _ in page.tags)
    assert any("default-src 'none'" in (found.get("content") or "") for tag, found in page.tags if tag == "meta")


def test_hostile_names_are_text() -> None:
    page = Page(report(evaluation((HOSTILE, "two"), HOSTILE)))
    assert not any(tag in ("script", "img") for tag, _ in page.tags)
    assert page.text.count("<script>alert") > 20


def test_what_cannot_be_seen_in_a_name_is_shown_and_a_long_one_is_cut() -> None:
    name = "evil\x07\u202ename" + "x" * 200
    page = report(evaluation(("one", "two"), name)).decode()
    assert "\x07" not in page
    assert "\u202e" not in page
    assert "evil\\x07\\u202ename" in page
    tables = re.sub(r"<details>.*?</details>", "", page[: page.index("id='measured'")])  # without whole templates
    shown = re.sub(r"<[^>]*>", "", tables)
    assert "x" * 60 not in shown
    assert "x" * 200 in page, "the whole is where one points"


def test_the_best_is_bold_only_if_it_is_surely_so() -> None:
    found = evaluation()
    assert "<b>50.0%</b>" in accuracy(found)
    found.comparisons[0]["adjusted"] = 0.06
    assert "<b>50.0%</b>" not in accuracy(found)


def lines(html: str) -> list[list[str]]:
    """The cells of all tables' lines, as text."""
    rows = re.findall(r"<tr>(.*?)</tr>", html)
    return [[re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<td.*?</td>", row)] for row in rows]


def test_top_5_stands_under_top_1_and_each_classifier_is_named_once() -> None:
    found = evaluation(("one",))
    shown = [row[:3] for row in lines(accuracy(found)) if len(row) == 4]
    assert shown == [
        ["ant", "zero-shot", "top-1"], ["", "", "top-5"], ["", "linear probe", "top-1"], ["", "", "top-5"],
    ]  # fmt: skip
    found.results = [row for row in found.results if row["name"] != "top-5"]  # of five classes or fewer
    assert "top-5" not in accuracy(found)


def test_the_strength_of_a_probe_and_what_was_tried_are_folded() -> None:
    page = accuracy(evaluation(("one",)))
    folded = page[page.index("<details>") : page.index("</details>")]
    assert "<figcaption>ant<b>C = 10,000</b>" in folded
    assert lines(folded)[1:] == [["0.01", "25.0%"], ["10,000", "75.0%"]]
    assert "<b>75.0%</b>" in folded
    assert "<b>25.0%</b>" not in folded


def test_each_corruption_has_its_figures_folded() -> None:
    found = evaluation(("one",))
    found.figures("one", "ant", "robustness")["probe, jpeg"]["value"] = 0.123
    page = robustness(found)
    folded = page[page.index("<details>") : page.index("</details>")]
    assert [[row[0], row[2][:5]] for row in lines(folded)[1:]] == [["jpeg", "12.3%"], ["contrast", "50.0%"]]
    assert "severity" in re.sub(r"<details>.*</details>", "", page), "which is said below the small plots"


def test_what_a_model_costs_stands_beside_its_accuracy_also_of_one_model_alone() -> None:
    page = SECTIONS["efficiency"][1](evaluation(("one",)))
    assert "50.0%" in lines(page)[-1][-1]
    assert 'aria-label="one: 0 a second, 50.0%"' in page


def test_beside_the_calibration_error_stands_what_chance_gives() -> None:
    found = evaluation(("one",))
    found.figures("one", "ant", "calibration")["error by chance alone"]["value"] = 0.034
    assert [cell[:5] for cell in lines(SECTIONS["calibration"][1](found))[-1][2:]] == ["50.0%", "3.4% ", "50.0%"]


def test_beside_what_the_starter_was_taught_it_is_not_said_to_have_seen_nothing() -> None:
    found = evaluation(("one",))
    sections = [SECTIONS[name][1] for name in ("accuracy", "few-shot", "abstaining")]
    assert not any("was taught" in section(found) for section in sections)
    found.models["one"]["from"] = "starter"
    assert all("The starter was taught the names of CIFAR-10" in section(found) for section in sections)
    assert "chosen on images that it knows" in SECTIONS["abstaining"][1](found)
    assert not re.search("seen none|words alone", report(found).decode())


def luminance(colour: np.ndarray) -> float:
    """Relative luminance of sRGB (W3C, WCAG 2.1)."""
    linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_share_of_a_confusion_matrix_can_be_read(html: bytes, scheme: str) -> None:
    """Contrast of ink and cell as the page's own colours make them, of every per cent."""
    roots = re.findall(r":root \{(.*?)\}", html.decode().replace("\n", " "))
    colours = {
        name: np.array([int(value[i : i + 2], 16) for i in (0, 2, 4)]) / 255
        for name, value in re.findall(r"--([\w-]+): #(\w{6})\b", roots[scheme == "dark"])
    }
    (most,) = set(re.findall(r"calc\((\.\d+) \* var\(--part\)\)", html.decode()))
    assert "@media (prefers-color-scheme: dark) { .matrix td.bright { color: #000; } }" in html.decode()
    for percent in range(1, 101):
        cells = re.findall(r"<td class='([^']*)'", matrix(["a", "b"], [[percent, 0], [percent, 0]], [100, 100]))
        for kind, line in ((cells[0], "line-1"), (cells[2], "line-2")):
            part = float(most) * percent / 100
            cell = luminance(part * colours[line] + (1 - part) * colours["card"])
            ink = 0.0 if scheme == "dark" and "bright" in kind else luminance(colours["ink"])
            assert (max(cell, ink) + 0.05) / (min(cell, ink) + 0.05) > 3.9, (percent, line)


def test_robustness_is_told_from_the_line_of_several_models_probes() -> None:
    found = evaluation()
    assert "over the line" not in robustness(found), "two probes of one accuracy make no line"

    def put(model: str, name: str, value: float) -> None:
        found.figures(model, "ant", "robustness")[name]["value"] = value

    for model, clean, corrupted in (("one", 0.5, 0.3), ("two", 0.8, 0.6)):
        put(model, "probe, uncorrupted", clean)
        put(model, "probe, corruptions", corrupted)
    put("one", "zero-shot, uncorrupted", 0.8)  # where the line says 0.6
    put("one", "zero-shot, corruptions", 0.7)
    assert "over the line of all probes" in robustness(found)
    assert "+10.0</td>" in robustness(found)


def test_what_is_taken_for_another_once_or_twice_is_no_habit() -> None:
    """Of a class with one image and that one wrong, 100% are taken for another."""
    labels = np.array([0, 1, 1, *[2] * 20])
    taken_for = np.array([1, 0, 0, *[3] * 3, *[2] * 17])
    subject = SimpleNamespace(
        measured=labels, settings=SimpleNamespace(seed=0), data=SimpleNamespace(class_names=tuple("abcd"))
    )
    found = ImageFeatures(np.ones((23, 2)), labels, np.arange(23), 0)
    table = classified(subject, found, np.eye(4)[taken_for], {}).table  # type: ignore[arg-type]
    assert [row[:4] for row in table["confused"]] == [[2, 3, 3, 0.15]]
    assert table["matrix"]["images"][1] == [2, 0, 0, 0], "the matrix of few classes has them all"


def test_where_no_confusion_is_a_habit_the_matrix_of_few_classes_is_shown_all_the_same() -> None:
    found = evaluation(("one",))
    found.table("one", "ant", "zero-shot")["confused"] = []  # type: ignore[index]
    page = SECTIONS["confusion"][1](found)
    assert "class='matrix'" in page
    assert "taken for</th>" not in page
    found.table("one", "ant", "zero-shot")["right"] = [4, 4, 0]  # type: ignore[index]
    assert SECTIONS["confusion"][1](found) == ""


def test_what_cannot_be_learned_is_said_with_the_names_of_classes() -> None:
    def subject(taught: list[int], measured: list[int]) -> SimpleNamespace:
        features, training = (SimpleNamespace(labels=np.array(labels)) for labels in (measured, taught))
        data = SimpleNamespace(class_names=("ant", "bee", "cat"))
        return SimpleNamespace(data=data, features=features, training_features=training)

    with pytest.raises(InvalidArgumentError, match=r"all labels are one class \('bee'\): there is nothing"):
        check_taught(subject([1, 1], [0, 1]))  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match=r"no class of the measured images \('cat'\) is among"):
        check_taught(subject([0, 1], [2]), measured=True)  # type: ignore[arg-type]
    check_taught(subject([0, 1], [2]))  # type: ignore[arg-type]


def test_a_tie_is_said_to_be_one() -> None:
    found = evaluation()
    found.comparisons[0] |= {"value": 0.0, "low": -0.1, "high": 0.1, "p_value": 1.0, "adjusted": 1.0}
    assert "one and two, as often right" in differences(found)
    assert "+0.0" not in differences(found)


def test_of_one_model_there_is_nothing_to_compare_and_the_page_begins_with_its_figures() -> None:
    found = evaluation(("one",))
    found.tables = []  # of which drawings are made
    page = Page(report(found))
    assert "differences" not in [found.get("id") for _, found in page.tags]
    assert "50.0%ant, zero-shot" in page.text


def test_an_evaluation_of_nothing_has_a_page() -> None:
    about = evaluation().about
    assert "What was measured" in Page(report(Evaluation(about))).text


def test_another_page_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("<html>my own</html>")
    with pytest.raises(SightlineError, match="no page of Sightline"):
        write_report(tmp_path, evaluation())
    assert (tmp_path / "report.html").read_text() == "<html>my own</html>"
    (tmp_path / "report.html").unlink()
    for _ in range(2):  # its own is
        write_report(tmp_path, Evaluation(evaluation().about))


def test_numbers_are_said_as_a_reader_reads_them() -> None:
    assert [many(value) for value in (None, 950, 151_277_313, 4.4e9)] == ["–", "950", "151 M", "4.4 G"]
    assert [p_value(value) for value in (1e-9, 0.0002, 0.034, 1.0)] == ["&lt; 0.0001", "0.0002", "0.034", "1"]
    assert shots({"value": None, "low": 3.4, "high": None}, 16) == "over 16 <small>3.4 to over 16</small>"
    assert shots({"value": 0.0, "low": 0.0, "high": 0.0}, 16) == "under 1"


def test_wilson_intervals_are_those_of_the_textbook() -> None:
    """Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    images = np.array([263.0, 148, 20, 29])
    low, high = wilson(np.array([81, 15, 0, 1]) / images, images)
    assert low == pytest.approx([0.2553, 0.0624, 0.0, 0.0061], abs=1e-4)
    assert high == pytest.approx([0.3662, 0.1605, 0.1611, 0.1718], abs=1e-4)
