"""Template sets and class names: the published lists, what is taken for a template, what is refused."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sightline import templates
from sightline.errors import InvalidArgumentError
from sightline.templates import (
    TemplateSet,
    available_template_sets,
    class_names,
    class_synonyms,
    fill,
    template_set,
)

# name: (number of templates, number of classes or None where only templates are published)
PUBLISHED: dict[str, tuple[int, int | None]] = {
    "birdsnap": (1, 500),
    "caltech101": (34, 102),
    "cifar10": (18, 10),
    "cifar100": (18, 100),
    "clevr_counts": (1, 8),
    "country211": (5, 211),
    "dtd": (8, 47),
    "eurosat": (3, 10),
    "fer2013": (6, 7),
    "fgvc_aircraft": (2, 100),
    "flowers102": (1, 102),
    "food101": (1, 101),
    "gtsrb": (3, 43),
    "hateful_memes": (1, 2),
    "imagenet": (80, 1000),
    "imagenet7": (7, None),
    "kinetics700": (28, 700),
    "kitti": (1, 4),
    "mnist": (1, 10),
    "oxford_pets": (1, 37),
    "patch_camelyon": (1, 2),
    "plain": (1, None),
    "rendered_sst2": (1, 2),
    "resisc45": (18, 45),
    "stanford_cars": (8, 196),
    "stl10": (2, 10),
    "sun397": (2, 397),
    "ucf101": (48, 101),
    "voc2007": (1, 20),
}
WITH_CLASSES = [name for name, (_, classes) in PUBLISHED.items() if classes]


@pytest.fixture(scope="module")
def open_clip_metadata() -> ModuleType:
    """open_clip's lists, loaded by path: the package itself would import torchvision."""
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        pytest.skip("open_clip is not installed")
    spec = importlib.util.spec_from_file_location(
        "open_clip_metadata", Path(package.origin).with_name("zero_shot_metadata.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_available_sets_are_the_published_ones():
    assert available_template_sets() == tuple(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_set(name):
    found = template_set(name)
    assert found.name == name
    assert found.source
    assert len(found.templates) == len(set(found.templates)) == PUBLISHED[name][0]
    assert all(template.count("{}") == 1 for template in found.templates)
    assert template_set(name) is found  # read once


@pytest.mark.parametrize("name", WITH_CLASSES)
def test_class_names(name):
    names = class_names(name)
    assert len(names) == PUBLISHED[name][1]
    repeated = {label for label in names if names.count(label) > 1}
    # OpenAI's list names two pairs of ImageNet classes alike; evaluations depend on it, so it stays.
    assert repeated == ({"missile", "sunglasses"} if name == "imagenet" else set())
    assert all(label.strip() == label != "" for label in names)


def test_imagenet_equals_open_clip(open_clip_metadata):
    peer = open_clip_metadata
    assert list(template_set("imagenet").templates) == [fn("{}") for fn in peer.OPENAI_IMAGENET_TEMPLATES]
    assert list(template_set("imagenet7").templates) == [fn("{}") for fn in peer.SIMPLE_IMAGENET_TEMPLATES]
    assert class_names("imagenet") == tuple(peer.IMAGENET_CLASSNAMES)


def test_the_seven_are_among_the_eighty():
    assert set(template_set("imagenet7").templates) <= set(template_set("imagenet").templates)


@pytest.mark.parametrize(
    ("name", "position", "label"),
    [
        ("imagenet", 0, "tench"),
        ("imagenet", 134, "crane bird"),
        ("imagenet", 999, "toilet paper"),
        ("cifar10", 9, "truck"),
        ("food101", 100, "waffles"),
        ("flowers102", 11, "colt's foot"),
        ("oxford_pets", 11, "Sphynx"),
        ("kinetics700", 699, "zumba"),
        ("gtsrb", 14, "stop"),
        ("stanford_cars", 195, "smart fortwo Convertible 2012"),
        ("fer2013", 3, "happy"),
    ],
)
def test_class_names_are_in_the_published_order(name, position, label):
    assert class_names(name)[position] == label


def test_class_synonyms():
    assert class_synonyms("fer2013")[5] == ("surprised", "shocked", "spooked")
    assert class_synonyms("cifar10")[0] == ("airplane",)


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("pets", "oxford_pets"),
        ("food", "food101"),
        ("flowers", "flowers102"),
        ("textures", "dtd"),
        ("satellite", "eurosat"),
        ("aerial", "resisc45"),
        ("cars", "stanford_cars"),
        ("aircraft", "fgvc_aircraft"),
        ("scenes", "sun397"),
        ("actions", "kinetics700"),
        ("traffic_signs", "gtsrb"),
        ("digits", "mnist"),
        ("rendered_text", "rendered_sst2"),
        ("pcam", "patch_camelyon"),
        ("imagenet1k", "imagenet"),
        ("Food101", "food101"),
        (" traffic signs ", "gtsrb"),
        ("FGVC-Aircraft", "fgvc_aircraft"),
    ],
)
def test_aliases(alias, name):
    assert template_set(alias) is template_set(name)


def test_no_alias_means_two_sets():
    every = [key for name, entry in templates._published().items() for key in (name, *entry["aliases"])]
    assert len(every) == len(set(every))
    assert all(templates._canonical(key) in PUBLISHED for key in every)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a {}.", ("a {}.",)),
        ("{}", ("{}",)),
        (["a {}.", "the {}."], ("a {}.", "the {}.")),
        (("a {}.",), ("a {}.",)),
    ],
)
def test_templates_of_ones_own(given, expected):
    found = template_set(given)
    assert found == TemplateSet("custom", expected, "given by the caller")
    assert template_set(found) is found


@pytest.mark.parametrize("label", ["dog", "{}", "{0}", "{name}", "100% {", "a\\b", ""])
def test_filling_is_plain_text(label):
    assert fill("a {}!", label) == ["a " + label + "!"]
    assert fill(["a {}", "{} b"], label) == ["a " + label, label + " b"]


def test_fill_takes_whatever_template_set_takes():
    assert fill("plain", "dog") == fill(template_set("plain"), "dog") == ["a photo of a dog."]
    assert fill("imagenet", "dog")[0] == "a bad photo of a dog."


KNOWN = ", ".join(PUBLISHED)
ONE_SLOT = "needs exactly one {}, where the label goes, and no other brace"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "imagnet",
            f"no template set 'imagnet': use one of {KNOWN}, or a template of your own with exactly one {{}}",
        ),
        ("", f"no template set '': use one of {KNOWN}, or a template of your own with exactly one {{}}"),
        ("a {0}", f"template 'a {{0}}' {ONE_SLOT}"),
        ("a {name}", f"template 'a {{name}}' {ONE_SLOT}"),
        ("{}{}", f"template '{{}}{{}}' {ONE_SLOT}"),
        ("a {} on a {place}", f"template 'a {{}} on a {{place}}' {ONE_SLOT}"),
        ("{{}}", f"template '{{{{}}}}' {ONE_SLOT}"),
        ("a }", f"template 'a }}' {ONE_SLOT}"),
        (["a {}.", "a dog."], f"template 'a dog.' {ONE_SLOT}"),
        ([], "an empty list of templates: give at least one, such as 'a photo of a {}.'"),
        ((), "an empty list of templates: give at least one, such as 'a photo of a {}.'"),
        (["a {}.", 3], "template 2 must be a string, not int"),
        (None, "templates must be a name, a template or a list of templates, not NoneType"),
        (b"a {}", "templates must be a name, a template or a list of templates, not bytes"),
        ({"a {}"}, "templates must be a name, a template or a list of templates, not set"),
    ],
)
def test_refused_templates(given: Any, message):
    with pytest.raises(InvalidArgumentError) as caught:
        template_set(given)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["imagenet7", "svhn"])
def test_refused_class_names(name):
    with pytest.raises(InvalidArgumentError) as caught:
        class_names(name)
    assert str(caught.value) == f"no class names for {name!r}: there are some for {', '.join(WITH_CLASSES)}"


def test_a_label_must_be_a_string():
    with pytest.raises(InvalidArgumentError, match=r"^a label must be a string, not int$"):
        fill("plain", 3)  # type: ignore[arg-type]


def test_importing_reads_no_data():
    code = "from sightline import templates; assert not templates._published.cache_info().currsize"
    subprocess.run([sys.executable, "-c", code], check=True)
