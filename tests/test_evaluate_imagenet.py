"""Sets of ImageNet's classes are measured beside ImageNet, and what strangers there are is measured as such."""

import html
import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

import sightline
from data_files import picture
from sightline.cli import app
from sightline.evaluate.named_sets import describe
from sightline.evaluate.run import Evaluation, read_results
from sightline.templates import class_names, fill, template_set
from sightline.zero_shot import class_features
from tiny import small_vocabulary

CLASSES = {"imagenet": (0, 1, 2, 700), "imagenetv2": (0, 2), "imagenet-a": (6, 11), "imagenet-o": (1, 2)}
NUMBERS = {
    name: [number for (number,) in describe(name).imagenet_numbers]  # type: ignore[union-attr]
    for name in CLASSES
}
CLASSES["imagenet"] += tuple(NUMBERS["imagenet-a"][:2])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few images of a few classes of each, by their ids; those of A are of classes that ImageNet shows here too."""
    root, count = tmp_path_factory.mktemp("data"), 0
    for name, classes in CLASSES.items():
        shown = NUMBERS["imagenet-a"][:2] if name == "imagenet-a" else classes
        for number in shown if name != "imagenet-o" else NUMBERS["imagenet-o"][:2]:
            folder = root / name / wordnet(number)
            folder.mkdir(parents=True)
            for i in range(3):
                (folder / f"{i}.png").write_bytes(picture(count := count + 1))
    return root


def wordnet(number: int) -> str:
    spellings = describe("imagenet").classes.spellings  # type: ignore[union-attr]
    return next(label for label, meant in spellings.items() if meant == number and label.startswith("n"))


@pytest.fixture(scope="module")
def measured(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Evaluation, str]:
    """The model, what was found of it, and what was said."""
    folder = tmp_path_factory.mktemp("measured")
    small_vocabulary().save(folder / "model")
    said = run(folder, data, ",".join(CLASSES), folder / "out")
    found = read_results(folder / "out" / "results.json")
    assert found is not None
    return folder, found, said


def run(folder: Path, data: Path, names: str, out: Path) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIGHTLINE_CACHE", str(folder / "cache"))
        arguments = ["--data", names, "--data-folder", data, "--templates", "plain", "--tasks", "zero-shot,abstaining"]
        given = ["evaluate", "--model", folder / "model", *arguments, "--out", out]
        said = CliRunner().invoke(app, list(map(str, given)), catch_exceptions=False)
    assert said.exit_code == 0, said.output
    return said.stdout + said.stderr


def cosines(folder: Path, data: Path, name: str) -> tuple[np.ndarray, np.ndarray, float]:
    """By hand: of each image to ImageNet's 1,000 classes, the number of its own class, and the model's scale."""
    clip = sightline.load(folder / "model")
    classes = class_features(clip, [fill(template_set("plain"), each) for each in class_names("imagenet")])
    ids = {wordnet(number): number for number in range(1000) if (data / name / wordnet(number)).exists()}
    paths = [path for label in sorted(ids) for path in sorted((data / name / label).iterdir())]
    labels = np.array([ids[path.parent.name] for path in paths])
    return clip.encode_images(paths) @ classes.T, labels, clip.scale


def test_beside_a_set_of_some_classes_stands_imagenet_of_the_same(data: Path, measured) -> None:
    folder, found, _ = measured
    scores, labels, _ = cosines(folder, data, "imagenet")
    some = np.array(NUMBERS["imagenet-a"])
    shown = np.isin(labels, some)
    expected = (some[scores[shown][:, some].argmax(axis=1)] == labels[shown]).mean()
    figures = found.figures("measured0/model", "imagenet-a", "zero-shot")
    assert shown.sum() == 6
    assert figures["imagenet top-1, same classes"]["value"] == pytest.approx(expected)
    assert "imagenet top-1, same classes" not in found.figures("measured0/model", "imagenetv2", "zero-shot")


OVER = "effective robustness over ResNet-101"


def test_beside_one_baseline_effective_robustness_is_the_difference_of_the_drops(
    data: Path, measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, _ = measured
    monkeypatch.setattr("sightline.evaluate.shifts.COMPARABLE", 1)
    said, top1 = run(folder, data, "imagenet,imagenetv2", tmp_path / "out"), {}
    found = read_results(tmp_path / "out" / "results.json")
    assert found is not None
    assert "over ResNet-101 is left out" not in said
    for name in ("imagenet", "imagenetv2"):
        scores, labels, _ = cosines(folder, data, name)
        top1[name] = (scores.argmax(axis=1) == labels).mean()
    over = found.figures("measured0/model", "imagenetv2", "zero-shot")[OVER]
    assert over["value"] == pytest.approx(top1["imagenetv2"] - top1["imagenet"] + 0.762 - 0.643)
    assert over["low"] <= over["value"] <= over["high"]
    assert f"{100 * over['value']:+.1f} points ({100 * over['low']:+.1f} to " in said, "and no per cent"


def test_a_model_far_from_the_baseline_s_accuracy_is_not_put_beside_it(measured) -> None:
    """One that is right on nothing has nothing to lose: the difference of the drops would be its best figure."""
    _, found, said = measured
    for name in ("imagenetv2", "imagenet-a"):
        assert OVER not in found.figures("measured0/model", name, "zero-shot")
        assert f"note: zero-shot on {name}: {OVER} is left out: imagenet top-1 is " in said
    assert "only within 15 points of that model's 76.2%" in said


def test_the_images_of_imagenet_o_are_strangers_and_of_no_class(data: Path, measured) -> None:
    folder, found, said = measured
    assert set(found.figures("measured0/model", "imagenet-o", "abstaining")) == {"strangers AUROC"}
    assert not found.figures("measured0/model", "imagenet-o", "zero-shot")
    assert "left out: zero-shot on imagenet-o: its images are of no class that it lists" in said
    sure = []
    for name in ("imagenet", "imagenet-o"):
        scores, _, scale = cosines(folder, data, name)
        exponentials = np.exp(scale * (scores - scores.max(axis=1, keepdims=True)))
        sure.append(1 / exponentials.sum(axis=1))
    expected = roc_auc_score(np.repeat([1, 0], list(map(len, sure))), np.concatenate(sure))
    area = found.figures("measured0/model", "imagenet-o", "abstaining")["strangers AUROC"]["value"]
    assert area == pytest.approx(expected, abs=0.02)


def test_imagenet_o_without_imagenet_says_what_it_needs(data: Path, measured, tmp_path: Path) -> None:
    folder, _, _ = measured
    said = run(folder, data, "imagenet-o,imagenetv2", tmp_path / "out")
    assert "left out: abstaining on imagenet-o: its images are strangers to ImageNet's: name imagenet in --data" in said


def test_other_images_of_imagenet_are_another_measurement_of_the_shift(data: Path, measured, tmp_path: Path) -> None:
    folder, found, _ = measured
    run(folder, data, "imagenet-a", tmp_path)
    alone = read_results(tmp_path / "results.json")
    assert alone is not None
    keys = [each.tables[[row["data"] for row in each.tables].index("imagenet-a")]["key"] for each in (found, alone)]
    assert keys[0] != keys[1]
    assert "imagenet top-1, same classes" not in json.dumps(alone.results)


def test_the_report_puts_shifts_beside_imagenet_and_strangers_elsewhere(measured) -> None:
    folder, _, _ = measured
    page = html.unescape((folder / "out" / "report.html").read_text("utf-8"))
    (shifts,) = [part for part in page.split("<section ") if part.startswith("id='shifts'")]
    assert "imagenetv2" in shifts
    assert "ResNet-101" in shifts
    assert "64.3%" in shifts
    assert "imagenet-o" not in shifts
    (published,) = [part for part in page.split("<section ") if part.startswith("id='published'")]
    assert "ViT-B/32" in published
    assert "63.2%" in published
    assert "<b>measured0/model</b>" in published
    assert "<small>" in published, "the figure that was measured has its interval"
