"""Imports go down only, the public names are these, and looking at the package costs nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import sightline

SOURCE = Path(sightline.__file__).parent

# From the bottom to the top. A room may import the rooms before it, and its own parts.
ROOMS = [
    "errors", "config", "files", "tokenizer", "pixels", "image_headers", "images", "inputs", "outputs", "spreadsheet",
    "page", "preprocess", "templates",
    "models.layers", "models.vision_transformer", "models.modified_resnet", "models.text_transformer", "models.clip",
    "hub", "weight_pickle", "archive", "layouts", "checkpoint", "engine", "reduction", "exported",
    "encoder", "embedded", "embed", "storage", "scale_out",
    "estimator", "feature_arrays", "classifier_file", "zero_shot", "logistic_regression", "linear_probe",
    "index", "explain", "heat_picture", "map", "label", "data", "evaluate", "verify", "wise_ft",
    "distributed", "loss", "fine_tune", "muon", "optim", "train", "server", "cli", "train.__main__", "__main__",
]  # fmt: skip


def room_of(module: str) -> str:
    return module if module in ROOMS else module.partition(".")[0]


def imported(path: Path) -> set[str]:
    """The sightline modules that a file imports, lazily or not; those for type checking alone do not count."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("sightline."):
            names.add(node.module.removeprefix("sightline."))
        if isinstance(node, ast.ImportFrom) and node.module == "sightline":
            names.update(alias.name for alias in node.names if (SOURCE / f"{alias.name}.py").exists())
    return names


def test_imports_go_down_only() -> None:
    for path in SOURCE.rglob("*.py"):
        module = ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        if module in ("__init__", "models"):
            continue
        room = room_of(module)
        assert room in ROOMS, f"{path.name} is in no layer: add it to ROOMS"
        for other in imported(path):
            assert ROOMS.index(room_of(other)) <= ROOMS.index(room), f"{module} imports {other}, which is above it"


def test_nothing_imports_the_peers() -> None:
    for path in SOURCE.rglob("*.py"):
        roots = {
            name.partition(".")[0]
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            for name in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        }
        assert not roots & {"open_clip", "clip", "transformers", "torchvision", "timm", "pickle5"}, path


def test_the_public_names_are_these() -> None:
    assert sightline.__all__ == [
        "CLIP", "Encoder", "ImageIndex", "LinearProbe", "ModelConfig", "Preprocess", "SightlineError", "Tokenizer",
        "TrainConfig", "ZeroShotClassifier",
        "available_models", "available_template_sets", "class_names", "create_model", "find_images", "load",
        "model_config", "read_image", "template_set", "tokenize", "train",
    ]  # fmt: skip
    assert all(getattr(sightline, name) is not None for name in sightline.__all__)


def test_importing_sightline_imports_no_heavy_library() -> None:
    code = "import sys, sightline; print([m for m in ('torch', 'numpy', 'PIL', 'rich', 'typer') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_the_package_named_train_is_what_trains_too() -> None:
    """Python binds `sightline.train` to the package as soon as anything of it is imported."""
    code = "import sightline.train.config, sightline; print(callable(sightline.train), sightline.TrainConfig.__name__)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True TrainConfig\n"
